"""optax_gradnorm.overlap.operator_norm against dense linear algebra in NumPy."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from optax_gradnorm import overlap

from . import reference
from .matrices import singular_values, spectrum
from .tables import gaussian


@functools.partial(jax.jit, static_argnames="iterations")
def norm_of_matrix(matrix, x, iterations, seed=0):
    """Compiled once for all matrices of a shape."""
    return overlap.operator_norm(lambda x: matrix @ x, x, iterations=iterations, key=jax.random.key(seed))


@pytest.mark.parametrize("shape", [(1, 1), (7, 7), (20, 5), (5, 20), (1, 9), (9, 1)])
@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
def test_matrices(shape, dtype):
    matrix = gaussian(*shape, dtype=dtype)
    estimate = norm_of_matrix(matrix, gaussian(shape[1], dtype=dtype), 300)
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
        norm, error = norm_of_matrix(matrix, jnp.zeros(12), iterations, seed)
        values = singular_values(matrix)
        assert np.min(np.abs(values - norm)) <= float(norm * error) + 1e-5 * values[0]
        assert norm <= values[0] * (1 + 1e-6)


def test_estimate_rises_and_error_tells_when_it_has_converged():
    matrix = spectrum([2.0, 1.9], 30)
    estimates = [norm_of_matrix(matrix, jnp.zeros(30), n) for n in (1, 3, 10, 30, 100, 300)]
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


def test_gradient_of_the_operator_norm_at_every_scale():
    """u1 v1^T, of the first singular vectors."""
    matrix = spectrum([3.0, 1.0], 4)
    left, _, right = np.linalg.svd(np.float64(matrix))

    def norm(matrix):
        return overlap.operator_norm(lambda x: matrix @ x, jnp.ones(4), iterations=60).norm

    gradient = jax.jit(jax.grad(norm))
    for scale in (1.0, 1e-32, 1e-20, 1e20, 1e35):
        expected = np.outer(left[:, 0], right[0])
        np.testing.assert_allclose(gradient(matrix * scale), expected, atol=2e-6, err_msg=f"scale {scale}")


@pytest.mark.devices(4)
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


@pytest.mark.devices(4)
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
