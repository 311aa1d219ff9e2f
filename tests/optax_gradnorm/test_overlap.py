"""optax_gradnorm.overlap against dense linear algebra in NumPy, and the paper's inequalities."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from optax_gradnorm import overlap

from . import reference


def gaussian(*shape, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(shape)
    if np.issubdtype(dtype, np.complexfloating):
        values = values + 1j * rng.standard_normal(shape)
    return jnp.asarray(values, dtype)


def singular_values(matrix):
    return np.linalg.svd(np.asarray(matrix, np.result_type(matrix.dtype, np.float64)), compute_uv=False)


def spectrum(values, size, seed=0):
    """A square matrix with the given largest singular values, all others 0.1."""
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.standard_normal((size, size)))[0] for _ in range(2))
    diagonal = np.full(size, 0.1)
    diagonal[: len(values)] = values
    return jnp.asarray(left @ np.diag(diagonal) @ right, jnp.float32)


@pytest.mark.parametrize("shape", [(1, 1), (7, 7), (20, 5), (5, 20), (1, 9), (9, 1)])
@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
def test_matrices(shape, dtype):
    matrix = gaussian(*shape, dtype=dtype)
    estimate = overlap.operator_norm(lambda x: matrix @ x, gaussian(shape[1], dtype=dtype), iterations=300)
    np.testing.assert_allclose(estimate.norm, singular_values(matrix)[0], rtol=1e-5)
    assert estimate.error < 1e-2
    assert estimate.norm.dtype == estimate.error.dtype == jnp.float32


def test_nonlinear_function_on_pytrees():
    weights = {"a": gaussian(6, 4), "b": gaussian(6, 3, seed=1)}
    x = {"a": gaussian(4, seed=2), "b": gaussian(3, seed=3)}

    def f(x):
        hidden = jnp.tanh(weights["a"] @ x["a"] + weights["b"] @ x["b"])
        return [hidden, jnp.stack([jnp.sum(x["a"]) * x["b"][0]])]

    flat, unravel = jax.flatten_util.ravel_pytree(x)
    jacobian = jax.jacobian(lambda flat: jnp.concatenate(f(unravel(flat))))(flat)
    estimate = overlap.operator_norm(f, x, iterations=200)
    np.testing.assert_allclose(estimate.norm, singular_values(jacobian)[0], rtol=1e-5)


def convolve(x, kernel, strides=(1, 1), padding="SAME"):
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def test_circular_convolution_has_the_norm_of_its_fourier_transform():
    """Per frequency a circular convolution is the matrix over channels that the kernel's transform gives."""
    size, kernel = 8, gaussian(3, 3, 4, 5)
    transform = np.fft.fft2(np.asarray(kernel, np.float64), (size, size), axes=(0, 1))
    expected = np.linalg.svd(transform, compute_uv=False).max()

    def circular(x):
        wrapped = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="wrap")
        return convolve(wrapped, kernel, padding="VALID")

    estimate = overlap.operator_norm(circular, jnp.zeros((1, size, size, 4)), iterations=300)
    np.testing.assert_allclose(estimate.norm, expected, rtol=1e-4)

    zero_padded = overlap.operator_norm(
        lambda x: convolve(x, kernel), jnp.zeros((1, size, size, 4)), iterations=300
    )
    assert zero_padded.norm < expected


@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
def test_zero_padded_convolution_against_its_dense_matrix(strides):
    kernel = gaussian(3, 3, 2, 3)
    x = jnp.zeros((1, 6, 6, 2))
    jacobian = jax.jacobian(lambda x: convolve(x, kernel, strides))(x).reshape(-1, x.size)
    estimate = overlap.operator_norm(lambda x: convolve(x, kernel, strides), x, iterations=300)
    np.testing.assert_allclose(estimate.norm, singular_values(jacobian)[0], rtol=1e-4)


def test_known_norms():
    x = gaussian(2, 6, 6, 3)
    pooled = overlap.operator_norm(lambda x: jnp.mean(x, (1, 2)), x)
    np.testing.assert_allclose(pooled.norm, 1 / 6, rtol=1e-6)
    identity = overlap.operator_norm(lambda x: x, x)
    np.testing.assert_allclose(identity.norm, 1, rtol=1e-6)
    assert identity.error < 1e-5
    rectified = overlap.operator_norm(jax.nn.relu, x)
    np.testing.assert_allclose(rectified.norm, 1, rtol=1e-6)
    # Averaging in float32 along the batch: the largest of the samples' own norms.
    scales = jnp.array([0.5, 3.0])[:, None, None, None]
    per_sample = overlap.operator_norm(lambda x: scales * x, x)
    np.testing.assert_allclose(per_sample.norm, 3, rtol=1e-6)


@pytest.mark.parametrize("iterations", [1, 2, 5, 20, 100])
def test_error_bounds_the_distance_to_a_singular_value(iterations):
    for seed in range(5):
        matrix = gaussian(12, 12, seed=seed)
        norm, error = overlap.operator_norm(
            lambda x, matrix=matrix: matrix @ x,
            jnp.zeros(12),
            iterations=iterations,
            key=jax.random.key(seed),
        )
        values = singular_values(matrix)
        assert np.min(np.abs(values - norm)) <= float(norm * error) + 1e-5 * values[0]
        assert norm <= values[0] * (1 + 1e-6)


def test_estimate_rises_and_error_tells_when_it_has_converged():
    matrix = spectrum([2.0, 1.9], 30)
    estimates = [
        overlap.operator_norm(lambda x: matrix @ x, jnp.zeros(30), iterations=n)
        for n in (1, 3, 10, 30, 100, 300)
    ]
    norms = [float(estimate.norm) for estimate in estimates]
    assert all(later >= earlier * (1 - 1e-6) for earlier, later in itertools.pairwise(norms))
    assert estimates[0].error > 0.1
    assert estimates[-1].error < 1e-5
    np.testing.assert_allclose(norms[-1], 2, rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1e15, 1e30, 5e37])
def test_squares_neither_vanish_nor_overflow(scale):
    matrix = gaussian(8, 8)
    expected = singular_values(matrix)[0] * scale
    estimate = overlap.operator_norm(lambda x: matrix @ x * scale, jnp.zeros(8), iterations=200)
    np.testing.assert_allclose(estimate.norm, expected, rtol=1e-4)
    measured = overlap.residual_overlap(lambda x: x, jnp.zeros(8), jnp.full(8, scale, jnp.float32))
    np.testing.assert_allclose(measured.total_norm, 2 * scale * np.sqrt(8), rtol=1e-6)
    np.testing.assert_allclose(measured.cosine, 1, rtol=1e-6)


@pytest.mark.parametrize("factor", [1e-37, 9e37, 3e38])
def test_norms_near_the_ends_of_float32(factor):
    """A reciprocal of such a norm is subnormal, which XLA takes for 0."""
    factor = jnp.float32(factor)
    for constant, dtype in ((factor, jnp.float32), (factor.astype(jnp.complex64) * 1j, jnp.complex64)):
        x = jnp.zeros(3, dtype)
        estimate = jax.jit(lambda x, c=constant: overlap.operator_norm(lambda x: c * x, x))(x)
        np.testing.assert_allclose(estimate.norm, factor, rtol=1e-6)
        assert estimate.error < 1e-5
    measured = overlap.residual_overlap(lambda x: x / 4, jnp.zeros(1), factor[None] / 2)
    np.testing.assert_allclose(
        [measured.skip_norm, measured.branch_norm], [factor / 2, factor / 8], rtol=1e-6
    )
    np.testing.assert_allclose([measured.cosine, measured.amplification], [1, 1.25], rtol=1e-6)


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
def test_a_jacobian_without_numbers_never_looks_converged(value):
    estimate = overlap.operator_norm(lambda x: value * x, jnp.ones(3))
    assert not jnp.isfinite(estimate.norm)
    assert jnp.isnan(estimate.error)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float16, 2e-3), (jnp.bfloat16, 2e-2)])
def test_half_precision(dtype, tolerance):
    matrix = spectrum([3.0, 1.0], 64).astype(dtype)
    x = jnp.zeros(64, dtype)
    estimate = overlap.operator_norm(lambda x: matrix @ x, x, iterations=50)
    assert estimate.norm.dtype == jnp.float32
    np.testing.assert_allclose(estimate.norm, singular_values(matrix.astype(jnp.float32))[0], rtol=tolerance)
    measured = overlap.residual_overlap(lambda x: matrix @ x, x, jnp.ones(64, dtype))
    assert measured.total.dtype == dtype
    assert measured.amplification.dtype == jnp.float32
    expected = np.linalg.norm(np.asarray(matrix, np.float64).T @ np.ones(64) + 1) / 8
    np.testing.assert_allclose(measured.amplification, expected, rtol=tolerance)


def test_double_precision():
    with reference.enable_x64(True):
        matrix = gaussian(9, 9, dtype=np.float64)
        estimate = overlap.operator_norm(lambda x: matrix @ x, jnp.zeros(9, jnp.float64), iterations=2000)
        assert estimate.norm.dtype == jnp.float64
        np.testing.assert_allclose(estimate.norm, singular_values(matrix)[0], rtol=1e-12)
        bounds = overlap.gradient_bounds(jnp.full(3, 0.1, jnp.float64), 1.0)
        np.testing.assert_allclose(bounds.residual, 1.1**3, rtol=1e-14)


@pytest.mark.parametrize(
    "f", [lambda x: 0 * x, jnp.round, jnp.sign, jax.lax.stop_gradient, lambda x: jnp.ones(3), lambda x: 1.0]
)
def test_jacobian_of_zeros(f):
    """Computed zeros, and those that the compiler knows."""
    for estimate in (overlap.operator_norm, jax.jit(overlap.operator_norm, static_argnums=0)):
        norm, error = estimate(f, jnp.ones((3, 2)))
        assert norm == error == 0
    if f is jnp.round:
        assert overlap.residual_overlap(f, jnp.ones(4), jnp.ones(4)).alpha.norm == 0


@pytest.mark.parametrize("scale", [1.0, 1e-32, 1e-20, 1e20, 1e35])
def test_gradient_of_the_operator_norm(scale):
    """u1 v1^T, of the first singular vectors."""
    matrix = spectrum([3.0, 1.0], 4)
    left, _, right = np.linalg.svd(np.float64(matrix))

    def norm(matrix):
        return overlap.operator_norm(lambda x: matrix @ x, jnp.ones(4), iterations=60).norm

    gradient = jax.jit(jax.grad(norm))(matrix * scale)
    np.testing.assert_allclose(gradient, np.outer(left[:, 0], right[0]), atol=2e-6)


@pytest.mark.skipif(jax.device_count() < 4, reason="needs four devices")
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_sharded_inputs(axis_type):
    mesh = jax.make_mesh((4,), ("x",), (axis_type,), devices=jax.devices()[:4])
    matrix, x = gaussian(8, 8), gaussian(8, 8, seed=1)
    sharded = jax.device_put(x, NamedSharding(mesh, P("x")))

    def measure(x):
        def branch(x):
            return jnp.tanh(x) @ matrix

        return overlap.operator_norm(branch, x), overlap.residual_overlap(branch, x, jnp.cos(x))

    expected = measure(x)
    with jax.set_mesh(mesh):
        found = jax.jit(measure)(sharded)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6)


@pytest.mark.skipif(jax.device_count() < 4, reason="needs four devices")
def test_every_shard_on_its_own():
    mesh = jax.make_mesh((4,), ("x",), (AxisType.Auto,), devices=jax.devices()[:4])
    matrix, x = gaussian(8, 8), gaussian(8, 8, seed=1)

    def measure(x):
        found = overlap.residual_overlap(lambda x: jnp.tanh(x) @ matrix, x, jnp.cos(x))
        return jax.tree.map(lambda leaf: leaf[None], (found.alpha, found.cosine))

    found = jax.jit(jax.shard_map(measure, mesh=mesh, in_specs=P("x"), out_specs=P("x")))(x)
    expected = [measure(rows) for rows in jnp.split(x, 4)]
    for a, b in zip(jax.tree.leaves(found), zip(*map(jax.tree.leaves, expected), strict=True), strict=True):
        np.testing.assert_allclose(a, np.concatenate(b), rtol=2e-4, atol=2e-6)


def test_jit_vmap_and_weak_types():
    matrices = jnp.stack([gaussian(5, 5, seed=seed) for seed in range(3)])

    @jax.jit
    def norms(matrices):
        return jax.vmap(lambda m: overlap.operator_norm(lambda x: m @ x, jnp.zeros(5), iterations=200).norm)(
            matrices
        )

    np.testing.assert_allclose(norms(matrices), [singular_values(m)[0] for m in matrices], rtol=1e-5)
    np.testing.assert_allclose(overlap.operator_norm(jnp.sin, jnp.asarray(0.5)).norm, np.cos(0.5), rtol=1e-6)


def test_wrong_arguments_of_operator_norm():
    for iterations in (0, -3):
        with pytest.raises(ValueError, match="iterations must be at least 1"):
            overlap.operator_norm(jnp.sin, jnp.ones(2), iterations=iterations)
    for iterations in (2.5, True, "many"):
        with pytest.raises(TypeError, match="iterations must be an integer"):
            overlap.operator_norm(jnp.sin, jnp.ones(2), iterations=iterations)
    with pytest.raises(TypeError, match="x must hold floating-point or complex arrays, got int32"):
        overlap.operator_norm(lambda x: x, jnp.ones(2, jnp.int32))
    with pytest.raises(TypeError, match=r"f\(x\) must hold floating-point or complex arrays, got int32"):
        overlap.operator_norm(lambda x: jnp.argmax(x), jnp.ones(2))
    with pytest.raises(TypeError, match="x must hold floating-point or complex arrays, got none"):
        overlap.operator_norm(lambda x: x, {})
    with pytest.raises(TypeError, match=r"f\(x\) must hold floating-point or complex arrays, got none"):
        overlap.operator_norm(lambda x: None, jnp.ones(2))


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
