"""Overlap in residual blocks, and its bounds: NumPy, and the paper's inequalities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax

from optax_gradnorm import overlap

from .matrices import singular_values
from .tables import gaussian


def test_linear_block_against_numpy():
    matrix, cotangent = gaussian(6, 6), gaussian(6, seed=1)
    measured = jax.jit(
        lambda v: overlap.residual_overlap(lambda x: matrix @ x, jnp.zeros(6), v, iterations=300)
    )(cotangent)
    skip = np.asarray(cotangent, np.float64)
    branch = np.asarray(matrix, np.float64).T @ skip
    np.testing.assert_allclose(measured.skip, skip, rtol=1e-6)
    np.testing.assert_allclose(measured.branch, branch, rtol=1e-5)
    np.testing.assert_allclose(measured.total, skip + branch, rtol=1e-5)
    np.testing.assert_allclose(measured.skip_norm, np.linalg.norm(skip), rtol=1e-6)
    np.testing.assert_allclose(measured.branch_norm, np.linalg.norm(branch), rtol=1e-6)
    np.testing.assert_allclose(measured.total_norm, np.linalg.norm(skip + branch), rtol=1e-6)
    cosine = skip @ branch / np.linalg.norm(skip) / np.linalg.norm(branch)
    np.testing.assert_allclose(measured.cosine, cosine, rtol=1e-5)
    amplification = np.linalg.norm(skip + branch) / np.linalg.norm(skip)
    np.testing.assert_allclose(measured.amplification, amplification, rtol=1e-6)
    np.testing.assert_allclose(measured.alpha.norm, singular_values(matrix)[0], rtol=1e-5)
    assert measured.shortcut_alpha == (1, 0)


@pytest.mark.parametrize(
    ("factor", "cosine", "amplification"),
    [(0.5, 1.0, 1.5), (-0.5, -1.0, 0.5), (-1.0, -1.0, 0.0), (0.0, np.nan, 1.0)],
)
def test_branch_along_and_against_the_skip_path(factor, cosine, amplification):
    measured = overlap.residual_overlap(lambda x: factor * x, jnp.zeros((2, 3)), gaussian(2, 3))
    np.testing.assert_allclose(measured.cosine, cosine, rtol=1e-6)
    np.testing.assert_allclose(measured.amplification, amplification, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(measured.alpha.norm, abs(factor), rtol=1e-6)


def test_projection_shortcut_on_pytrees():
    branch_matrix, shortcut_matrix = gaussian(4, 6), gaussian(4, 6, seed=1)
    x, cotangent = {"x": jnp.zeros(6)}, [gaussian(4, seed=2)]
    measured = overlap.residual_overlap(
        lambda x: [branch_matrix @ x["x"]],
        x,
        cotangent,
        shortcut=lambda x: [shortcut_matrix @ x["x"]],
        iterations=300,
    )
    np.testing.assert_allclose(measured.skip["x"], shortcut_matrix.T @ cotangent[0], rtol=1e-5)
    np.testing.assert_allclose(measured.shortcut_alpha.norm, singular_values(shortcut_matrix)[0], rtol=1e-4)
    limit = (measured.shortcut_alpha.norm + measured.alpha.norm) * jnp.linalg.norm(cotangent[0])
    assert measured.total_norm <= limit * (1 + 1e-5)


def test_wrong_arguments_of_residual_overlap():
    with pytest.raises(
        ValueError, match=r"shortcut\(x\) must have the structure, shapes and dtypes of branch\(x\)"
    ):
        overlap.residual_overlap(lambda x: x[:2], jnp.ones(3), jnp.ones(2))
    with pytest.raises(ValueError, match=r"cotangent .* got \['float32\[2\]'\], expected \['float32\[3\]'\]"):
        overlap.residual_overlap(lambda x: x, jnp.ones(3), jnp.ones(2))
    with pytest.raises(
        ValueError, match=r"cotangent .* got \['bfloat16\[3\]'\], expected \['float32\[3\]'\]"
    ):
        overlap.residual_overlap(lambda x: x, jnp.ones(3), jnp.ones(3, jnp.bfloat16))
    with pytest.raises(ValueError, match=r"cotangent .* got \['float32\[\]'\], expected \['float32\[3\]'\]"):
        overlap.residual_overlap(lambda x: x, jnp.ones(3), 1.0)


def test_numpy_arrays_and_scalars_are_taken_as_jax_takes_them():
    measured = overlap.residual_overlap(lambda x: 0.5 * x, np.ones(3), np.ones(3))
    np.testing.assert_allclose(measured.amplification, 1.5, rtol=1e-6)
    assert overlap.residual_overlap(jnp.sin, 0.0, 1.0).amplification == 2


@given(seed=st.integers(0, 10**6), scale=st.floats(0.01, 100.0))
def test_amplification_is_at_most_one_plus_alpha(seed, scale):
    matrix = gaussian(4, 4, seed=seed) * scale
    measured = amplification(matrix, gaussian(4, seed=seed + 1))
    largest = singular_values(matrix)[0]
    assert measured.amplification <= 1 + largest * (1 + 1e-5) + 1e-5
    assert -1 <= measured.cosine <= 1
    # Both legs of the triangle, whatever the angle.
    assert measured.total_norm <= (measured.skip_norm + measured.branch_norm) * (1 + 1e-5)


@jax.jit
def amplification(matrix, cotangent):
    return overlap.residual_overlap(lambda x: matrix @ x, jnp.zeros(4), cotangent, iterations=1)


@pytest.mark.parametrize("gain", [0.1, 1.0, 3.0])
def test_bounds_hold_in_deep_nonlinear_networks(gain):
    """Lemma 2.1, and Lemma 2.2 as an upper bound, with ReLU after each addition."""
    depth, width = 20, 10
    weights = gain * gaussian(depth, 2, width, width) / np.sqrt(width)
    x0, cotangent = gaussian(width, seed=1), gaussian(width, seed=2)

    def branch(w, x):
        return w[1] @ jnp.tanh(w[0] @ x)

    @jax.jit
    def measure(skip):
        def network(x):
            # Returns the output and the input of every block.
            return lax.scan(lambda x, w: (jax.nn.relu(skip * x + branch(w, x)), x), x, weights)

        _, vjp, inputs = jax.vjp(network, x0, has_aux=True)
        norms = jax.vmap(lambda w, x: overlap.operator_norm(lambda x: branch(w, x), x, iterations=100))
        bounds = overlap.gradient_bounds(norms(weights, inputs).norm, jnp.linalg.norm(cotangent))
        return jnp.log(jnp.linalg.norm(vjp(cotangent)[0])), bounds

    with_skip, bounds = measure(1.0)
    assert with_skip <= bounds.log_residual + 1e-3
    without_skip, bounds = measure(0.0)
    assert without_skip <= bounds.log_plain + 1e-3
    assert bounds.log_plain < bounds.log_residual


def test_lemma_2_2_is_not_an_equality():
    """Two singular blocks: each has norm 1, and the gradient is lost between them."""
    first, second = jnp.diag(jnp.array([1.0, 0.0])), jnp.diag(jnp.array([0.0, 1.0]))
    gradient = first.T @ (second.T @ jnp.ones(2))
    alphas = [overlap.operator_norm(lambda x, m=m: m @ x, jnp.zeros(2)).norm for m in (first, second)]
    bounds = overlap.gradient_bounds(alphas, jnp.sqrt(2.0))
    np.testing.assert_allclose(bounds.plain, np.sqrt(2), rtol=1e-6)
    assert jnp.linalg.norm(gradient) == 0


def test_depth_does_not_overflow():
    rng = np.random.default_rng(0)
    alphas, shortcuts = rng.uniform(5, 50, 152), rng.uniform(0, 2, 152)
    norm = 1e-3
    bounds = jax.jit(overlap.gradient_bounds)(jnp.asarray(alphas, jnp.float32), norm)
    np.testing.assert_allclose(bounds.log_residual, np.log1p(alphas).sum() + np.log(norm), rtol=1e-6)
    np.testing.assert_allclose(bounds.log_plain, np.log(alphas).sum() + np.log(norm), rtol=1e-6)
    assert bounds.residual == bounds.plain == jnp.inf
    projected = overlap.gradient_bounds(
        jnp.asarray(alphas, jnp.float32), norm, shortcut_alphas=jnp.asarray(shortcuts, jnp.float32)
    )
    np.testing.assert_allclose(
        projected.log_residual, np.log(alphas + shortcuts).sum() + np.log(norm), rtol=1e-6
    )
    tiny = overlap.gradient_bounds(jnp.asarray(alphas / 1e4, jnp.float32), norm)
    assert tiny.plain == 0
    np.testing.assert_allclose(tiny.log_plain, np.log(alphas / 1e4).sum() + np.log(norm), rtol=1e-6)


def test_bounds_of_small_networks():
    bounds = overlap.gradient_bounds([0.5, 0.0, 2.0], 4.0)
    np.testing.assert_allclose(bounds.residual, 1.5 * 1 * 3 * 4, rtol=1e-6)
    assert bounds.plain == 0
    assert bounds.log_plain == -jnp.inf
    empty = overlap.gradient_bounds([], 4.0)
    np.testing.assert_allclose([empty.residual, empty.plain], 4, rtol=1e-6)
    with pytest.raises(ValueError, match=r"alphas must be one-dimensional, got shape \(\)"):
        overlap.gradient_bounds(2.0, 1.0)


def test_bounds_of_values_known_while_tracing():
    alphas = jnp.array([0.5, 2.0])
    np.testing.assert_allclose(jax.jit(lambda n: overlap.gradient_bounds(alphas, n))(4.0).residual, 18)
    negative = -alphas
    with pytest.raises(ValueError, match="alphas must not be negative, got -2"):
        jax.jit(lambda n: overlap.gradient_bounds(negative, n))(4.0)


def test_small_alphas_keep_their_precision():
    alphas = np.full(100, 1e-6)
    for shortcut_alphas in (1.0, jnp.ones(100)):
        bounds = overlap.gradient_bounds(
            jnp.asarray(alphas, jnp.float32), 1.0, shortcut_alphas=shortcut_alphas
        )
        np.testing.assert_allclose(bounds.log_residual, np.log1p(alphas).sum(), rtol=1e-5)


@pytest.mark.parametrize(
    ("alphas", "norm", "shortcuts", "error", "message"),
    [
        ([-0.5, 2.0], 1.0, 1.0, ValueError, r"alphas must not be negative, got -0.5"),
        ([1j], 1.0, 1.0, TypeError, r"alphas must be real, got complex64"),
        ([1.0, 2.0], [1.0, 2.0], 1.0, ValueError, r"output_gradient_norm must be a scalar, got shape \(2,\)"),
        ([1.0], -1.0, 1.0, ValueError, r"output_gradient_norm must not be negative, got -1"),
        ([1.0, 2.0], 1.0, [1.0] * 3, ValueError, r"shortcut_alphas .* shape \(2,\) of alphas, got \(3,\)"),
        ([1.0, 2.0], 1.0, [1.0, -3.0], ValueError, r"shortcut_alphas must not be negative, got -3"),
    ],
)
def test_wrong_arguments_of_gradient_bounds(alphas, norm, shortcuts, error, message):
    with pytest.raises(error, match=message):
        overlap.gradient_bounds(alphas, norm, shortcut_alphas=shortcuts)
