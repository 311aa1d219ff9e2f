"""The convolution of the models: its gradients in every mode, against those of `lax`."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from experiments.models.conv import conv_general_dilated

LAYOUT = ("NHWC", "HWIO", "NHWC")
lax_conv = partial(lax.conv_general_dilated, dimension_numbers=LAYOUT)

# (image size, in, out, kernel, stride, padding): every kind that the models use, and odd ones.
CASES = {
    "stem": (16, 3, 16, 3, 1, 1),
    "3x3": (16, 16, 16, 3, 1, 1),
    "3x3 strided": (16, 16, 32, 3, 2, 1),
    "3x3 strided, odd size": (15, 4, 6, 3, 2, 1),
    "projection": (16, 16, 32, 1, 2, 0),
    "1x1": (8, 8, 4, 1, 1, 0),
    "7x7 strided": (20, 3, 8, 7, 2, 3),
    "3x3 padded by more than its reach": (8, 4, 6, 3, 1, 3),
    "same": (9, 4, 5, 3, 2, "SAME"),
    "valid": (9, 4, 5, 4, 3, "VALID"),
    "one pixel": (1, 4, 5, 3, 1, 1),
    "image smaller than the kernel": (2, 5, 4, 3, 1, 1),
    "image smaller than the kernel, strided": (2, 4, 3, 3, 2, 1),
    "image of the kernel's size": (3, 4, 5, 3, 1, 1),
}


def make_case(name, batch=6, dtype=jnp.float32):
    size, features, out, kernel_size, stride, padding = CASES[name]
    keys = jax.random.split(jax.random.key(0), 3)
    images = jax.random.normal(keys[0], (batch, size, size, features), dtype)
    kernel = jax.random.normal(keys[1], (kernel_size, kernel_size, features, out), dtype)
    padding = padding if isinstance(padding, str) else ((padding, padding),) * 2
    options = {"window_strides": (stride, stride), "padding": padding}
    shape = jax.eval_shape(partial(lax_conv, **options), images, kernel).shape
    return images, kernel, jax.random.normal(keys[2], shape, dtype), options


def ours(images, kernel, *, window_strides, padding, **options):
    return conv_general_dilated(images, kernel, window_strides, padding, dimension_numbers=LAYOUT, **options)


def gradients(conv, options):
    return lambda images, kernel, weights: jax.grad(
        lambda i, k: (conv(i, k, **options) * weights).astype(jnp.float32).sum(), argnums=(0, 1)
    )(images, kernel)


def assert_close(actual, expected, tolerance=2e-6):
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.shape == e.shape
        assert a.dtype == e.dtype
        a, e = np.asarray(a, np.float64), np.asarray(e, np.float64)
        np.testing.assert_allclose(a, e, rtol=0, atol=tolerance * np.abs(e).max())


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradients_equal_those_of_lax(name):
    images, kernel, weights, options = make_case(name)
    value, expected = ours(images, kernel, **options), lax_conv(images, kernel, **options)
    if images.shape[1] < kernel.shape[0]:  # a matrix product, with another order of addition
        assert_close(value, expected)
    else:
        np.testing.assert_array_equal(value, expected)
    actual = jax.jit(gradients(ours, options))(images, kernel, weights)
    assert_close(actual, jax.jit(gradients(lax_conv, options))(images, kernel, weights))


def test_without_jit():
    images, kernel, weights, options = make_case("3x3 strided")
    actual = gradients(ours, options)(images, kernel, weights)
    assert_close(actual, jax.jit(gradients(lax_conv, options))(images, kernel, weights))


@pytest.mark.parametrize("name", ["stem", "3x3 strided", "projection"])
def test_gradients_equal_a_float64_reference(name):
    images, kernel, weights, options = make_case(name)
    (stride, _), ((pad, _), _) = options["window_strides"], options["padding"]
    x = np.pad(np.asarray(images, np.float64), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    w, g = np.asarray(kernel, np.float64), np.asarray(weights, np.float64)
    by_images, by_kernel = np.zeros_like(x), np.zeros_like(w)
    for row, column in np.ndindex(g.shape[1:3]):
        window = np.s_[
            :, row * stride : row * stride + w.shape[0], column * stride : column * stride + w.shape[1]
        ]
        by_kernel += np.einsum("nhwi,no->hwio", x[window], g[:, row, column])
        by_images[window] += np.einsum("hwio,no->nhwi", w, g[:, row, column])
    by_images = by_images[:, pad : by_images.shape[1] - pad, pad : by_images.shape[2] - pad]
    actual = jax.jit(gradients(ours, options))(images, kernel, weights)
    for a, e in zip(actual, (by_images, by_kernel), strict=True):
        np.testing.assert_allclose(a, e, rtol=0, atol=2e-6 * np.abs(e).max())


@pytest.mark.parametrize("name", ["3x3", "3x3 strided", "projection"])
def test_bfloat16(name):
    images, kernel, weights, options = make_case(name, dtype=jnp.bfloat16)
    actual = jax.jit(gradients(ours, options))(images, kernel, weights)
    exact = jax.jit(gradients(lax_conv, options))(*(a.astype(jnp.float32) for a in (images, kernel, weights)))
    assert_close(actual, jax.tree.map(lambda e: e.astype(jnp.bfloat16), exact), tolerance=2**-7)


@pytest.mark.parametrize("name", ["3x3", "projection"])
def test_bfloat16_adds_many_chunks_in_float32(name, monkeypatch):
    for limit in ("PATCH_BYTES", "CHUNK"):
        monkeypatch.setattr(f"experiments.models.conv.{limit}", 1)  # one image per chunk
    images, kernel, weights, options = make_case(name, batch=256, dtype=jnp.bfloat16)
    _, by_kernel = jax.jit(gradients(ours, options))(images, kernel, weights)
    exact = jax.jit(gradients(lax_conv, options))(*(a.astype(jnp.float32) for a in (images, kernel, weights)))
    # No worse than rounding each element once.
    error = np.asarray(by_kernel, np.float64) - np.asarray(exact[1], np.float64)
    assert np.linalg.norm(error) < 2**-8 * np.linalg.norm(exact[1])


@pytest.mark.parametrize("batch", [1, 2, 7, 96])
def test_any_batch_size(batch):
    images, kernel, weights, options = make_case("3x3", batch)
    actual = jax.jit(gradients(ours, options))(images, kernel, weights)
    assert_close(actual, jax.jit(gradients(lax_conv, options))(images, kernel, weights), tolerance=5e-6)


def test_empty_batch():
    images, kernel, weights, options = make_case("3x3")
    by_images, by_kernel = gradients(ours, options)(images[:0], kernel, weights[:0])
    assert by_images.shape == (0, *images.shape[1:])
    np.testing.assert_array_equal(by_kernel, jnp.zeros_like(kernel))


@pytest.mark.parametrize("name", ["3x3", "3x3 strided", "projection"])
@pytest.mark.parametrize("transform", [jax.checkpoint, jax.jit])
def test_rematerialisation(name, transform):
    images, kernel, weights, options = make_case(name)
    loss = lambda conv: lambda i, k: jnp.sum(jnp.sin(conv(i, k, **options)) * weights)  # noqa: E731
    actual = jax.jit(jax.grad(transform(loss(ours)), argnums=(0, 1)))(images, kernel)
    assert_close(actual, jax.jit(jax.grad(loss(lax_conv), argnums=(0, 1)))(images, kernel))


@pytest.mark.parametrize("name", ["3x3", "3x3 strided"])
@pytest.mark.parametrize("axes", [(0, 0, 0), (None, 0, None), (0, None, 0)])
def test_vmap(name, axes):
    images, kernel, weights, options = make_case(name)
    arguments = tuple(
        jnp.stack([a, 2 * a, -a]) if axis == 0 else a
        for a, axis in zip((images, kernel, weights), axes, strict=True)
    )
    actual = jax.jit(jax.vmap(gradients(ours, options), axes))(*arguments)
    assert_close(actual, jax.jit(jax.vmap(gradients(lax_conv, options), axes))(*arguments))


@pytest.mark.parametrize("name", ["3x3", "3x3 strided", "projection"])
def test_forward_mode_and_second_derivatives(name):
    images, kernel, weights, options = make_case(name)

    def loss(conv, images, kernel):
        return jnp.sum(jnp.tanh(conv(images, kernel, **options) / 10) * weights)

    def derivatives(conv):
        function = partial(loss, conv)
        directions = (weights.mean() * images + 1, kernel - 1)
        grad = jax.grad(function, argnums=(0, 1))
        tangent = jax.jvp(function, (images, kernel), directions)
        forward_over_reverse = jax.jvp(grad, (images, kernel), directions)[1]
        along = lambda i, k: sum(map(jnp.vdot, grad(i, k), directions))  # noqa: E731
        return tangent, forward_over_reverse, jax.grad(along, argnums=(0, 1))(images, kernel)

    actual, expected = (jax.jit(derivatives, static_argnums=0)(conv) for conv in (ours, lax_conv))
    assert_close(actual, expected, tolerance=1e-5)


def test_linearize_and_its_transpose():
    images, kernel, weights, options = make_case("3x3 strided")
    _, tangent = jax.linearize(lambda i: ours(i, kernel, **options), images)
    (cotangent,) = jax.linear_transpose(tangent, images)(weights)
    assert_close(tangent(images), lax_conv(images, kernel, **options))
    assert_close(cotangent, gradients(lax_conv, options)(images, kernel, weights)[0])


@pytest.mark.parametrize("name", ["3x3", "3x3 strided", "projection"])
def test_batch_sharded_over_devices(name):
    images, kernel, weights, options = make_case(name, batch=16)
    mesh = jax.make_mesh((8,), ("batch",), (jax.sharding.AxisType.Auto,))
    sharded, replicated = NamedSharding(mesh, PartitionSpec("batch")), NamedSharding(mesh, PartitionSpec())
    arguments = jax.device_put((images, kernel, weights), (sharded, replicated, sharded))
    actual = jax.jit(gradients(ours, options), out_shardings=(sharded, replicated))(*arguments)
    assert_close(actual, jax.jit(gradients(lax_conv, options))(images, kernel, weights))


@pytest.mark.parametrize(
    "options",
    [
        {"rhs_dilation": (2, 2)},
        {"lhs_dilation": (2, 2)},
        {"feature_group_count": 4},
        {"precision": lax.Precision.HIGHEST},
        {"preferred_element_type": jnp.float32},
    ],
)
def test_other_options_are_not_lost(options):
    images, kernel, _, padding = make_case("3x3")
    kernel = kernel[:, :, :4] if "feature_group_count" in options else kernel
    actual = jax.value_and_grad(lambda k: ours(images, k, **padding, **options).var())(kernel)
    expected = jax.value_and_grad(lambda k: lax_conv(images, k, **padding, **options).var())(kernel)
    assert_close(actual, expected, tolerance=5e-6)


def test_other_layouts():
    images, kernel, _, options = make_case("3x3")
    images = images.transpose(0, 3, 1, 2)
    layout = ("NCHW", "HWIO", "NHWC")
    actual = conv_general_dilated(images, kernel, (1, 1), options["padding"], dimension_numbers=layout)
    expected = lax.conv_general_dilated(images, kernel, (1, 1), options["padding"], dimension_numbers=layout)
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_in_a_flax_module(dtype):
    def module(conv):
        return nnx.Conv(
            3, 5, (3, 3), 2, padding=1, dtype=dtype, rngs=nnx.Rngs(params=0), conv_general_dilated=conv
        )

    images = jax.random.normal(jax.random.key(1), (6, 8, 8, 3))

    def gradient(conv):
        return nnx.grad(lambda model: model(images).astype(jnp.float32).var())(module(conv))

    assert_close(
        gradient(conv_general_dilated),
        gradient(lax.conv_general_dilated),
        2e-6 if dtype == jnp.float32 else 2e-2,
    )


@pytest.mark.parametrize("name", ["3x3", "3x3 strided", "7x7 strided"])
def test_loops_hold_only_convolutions_that_are_fast_on_cpu(name):
    images, kernel, weights, options = make_case(name)

    def epoch(conv):
        def step(kernel, images):
            by_images, by_kernel = gradients(conv, options)(images, kernel, weights)
            return kernel - by_kernel, by_images

        lowered = jax.jit(lambda k, i: lax.scan(step, k, i)).lower(kernel, jnp.stack([images] * 3))
        return set(re.findall(r"dim_labels=(\S+?)[,\s]", lowered.compile().as_text()))

    assert epoch(ours) == {"b01f_01io->b01f"}
    # What this spares us: should it fail, XLA has learnt it, and the module can go.
    assert epoch(lax_conv) != {"b01f_01io->b01f"}


def test_no_patches_of_a_whole_batch_in_memory():
    images, kernel, weights, options = make_case("3x3", batch=256)
    compiled = jax.jit(gradients(ours, options)).lower(images, kernel, weights).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 2 * images.nbytes
