"""The U-Net against float64 NumPy, a hand count, and on images of any size."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import optax_gradnorm
from experiments import models
from experiments.models.signal_propagation.normalizers import Normalization
from experiments.models.unet import DoubleConv, UpConv


def build(name="unet4", *, channels=3, num_classes=2, **options):
    rngs = nnx.Rngs(jax.random.key(0, impl="rbg"))
    return models.create(
        name, num_classes=num_classes, channels=channels, image_size=32, rngs=rngs, **options
    )


def fill(name="unet4", **options):
    """With weights and statistics from NumPy, so that none is what a mistake would leave it at."""
    graph, state = nnx.split(nnx.eval_shape(lambda: build(name, **options)))
    random = np.random.default_rng(1)

    def draw(leaf):
        if leaf.ndim == 1:
            return jnp.asarray(random.uniform(0.5, 1.5, leaf.shape), leaf.dtype)
        return jnp.asarray(random.normal(size=leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:-1])), leaf.dtype)

    return nnx.merge(graph, jax.tree.map(draw, state))


apply = nnx.jit(lambda model, images, train: model(images, train=train), static_argnames="train")


def images_for(*shape):
    return np.random.default_rng(2).normal(size=shape).astype(np.float32)


def array(variable):
    return np.asarray(variable[...], np.float64)


def conv_reference(x, kernel):
    size = kernel.shape[0]
    padded = np.pad(x, ((0, 0), (size // 2,) * 2, (size // 2,) * 2, (0, 0)))
    height, width = x.shape[1:3]
    shifts = np.ndindex(size, size)
    return sum(padded[:, i : i + height, j : j + width] @ kernel[i, j] for i, j in shifts)


def double_conv_reference(block, x, train):
    for layer in (block.layer1, block.layer2):
        x = conv_reference(x, array(layer.conv.kernel))
        norm = layer.norm.norm
        mean, var = (x.mean((0, 1, 2)), x.var((0, 1, 2))) if train else (array(norm.mean), array(norm.var))
        x = np.maximum((x - mean) / np.sqrt(var + 1e-5) * array(norm.scale) + array(norm.bias), 0)
    return x


def pool_reference(x):
    """The largest of up to four pixels: at the end of an odd size there are fewer."""
    rows, columns = range(0, x.shape[1], 2), range(0, x.shape[2], 2)
    return np.stack([np.stack([x[:, r : r + 2, c : c + 2].max((1, 2)) for c in columns], 1) for r in rows], 1)


def up_reference(up, x, height, width):
    """Every input pixel adds its value times the 2x2 kernel, pixel by pixel."""
    kernel = array(up.kernel)
    y = np.zeros((len(x), 2 * x.shape[1], 2 * x.shape[2], kernel.shape[-1]))
    for row, column, a, b in np.ndindex(*x.shape[1:3], 2, 2):
        y[:, 2 * row + a, 2 * column + b] += x[:, row, column] @ kernel[a, b]
    return (y + array(up.bias))[:, :height, :width]


def unet_reference(model, x, train):
    x = x.astype(np.float64)
    skips = []
    for level in range(4):
        skips.append(double_conv_reference(model.encoder[level], x, train))
        x = pool_reference(skips[-1])
    x = double_conv_reference(model.encoder[4], x, train)
    for step, skip in enumerate(reversed(skips)):
        up = up_reference(model.ups[step], x, *skip.shape[1:3])
        x = double_conv_reference(model.decoder[step], np.concatenate([skip, up], -1), train)
    return x @ array(model.to_logits.kernel)[0, 0] + array(model.to_logits.bias)


@pytest.mark.parametrize("train", [True, False])
def test_matches_numpy_on_an_odd_size(train):
    model = fill(channels=2)
    images = images_for(3, 27, 21, 2)
    expected = unet_reference(model, images, train)
    logits = apply(model, images, train)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, expected, rtol=2e-4, atol=2e-4 * np.abs(expected).max())


@pytest.mark.parametrize("size", [(101, 75), (16, 32), (1, 1)])
def test_a_mask_has_the_size_of_its_image(size):
    model = fill()
    shape = jax.eval_shape(lambda x: model(x, train=False), jnp.zeros((2, *size, 3)))
    assert shape.shape == (2, *size, 1)


def count_parameters(name, **options):
    params = nnx.state(nnx.eval_shape(lambda: build(name, **options)), nnx.Param)
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def test_parameters_by_hand():
    features = [16, 32, 64, 128, 256]
    expected = 16 + 1  # to the logit
    for before, after in zip([3, *features], features, strict=False):
        expected += 9 * before * after + 9 * after * after + 4 * after
    for above, below in itertools.pairwise(features):
        expected += 4 * below * above + above
        expected += 9 * 2 * above * above + 9 * above * above + 4 * above
    assert count_parameters("unet16") == expected
    # No normalizer has neither scale nor shift; of WeightNorm every convolution has a scale and a bias.
    norms = 2 * 2 * (sum(features) + sum(features[:-1]))
    assert count_parameters("unet16:none") == expected - norms
    assert count_parameters("unet16:weight_norm") == expected


def test_width_64_has_the_31_million_of_the_usual_implementations():
    assert count_parameters("unet64", num_classes=1) == 31_037_633


def test_gradients_reach_every_parameter():
    graph, params, statistics = nnx.split(fill(), nnx.Param, ...)
    images = images_for(2, 17, 16, 3)

    @jax.jit
    def gradients(params):
        return jax.grad(
            lambda p: jnp.mean(jnp.square(nnx.merge(graph, p, statistics, copy=True)(images, train=True)))
        )(params)

    for layer, gradient in zip(
        optax_gradnorm.layer_names(params), jax.tree.leaves(gradients(params)), strict=True
    ):
        assert np.isfinite(gradient).all(), layer
        assert np.any(gradient != 0), layer


def test_kernels_start_he_normal():
    options = {"dtype": jnp.float32, "rngs": nnx.Rngs(jax.random.key(0, impl="rbg"))}
    block = DoubleConv(128, 64, normalization=Normalization("batch_norm"), **options)
    up = UpConv(128, 64, **options)
    for kernel, fan_in in [
        (block.layer1.conv.kernel, 9 * 128),
        (block.layer2.conv.kernel, 9 * 64),
        (up.kernel, 128),
    ]:
        assert np.std(array(kernel)) == pytest.approx(np.sqrt(2 / fan_in), rel=0.03)
    assert not array(up.bias).any()


def test_bfloat16_gives_float32_logits_close_to_those_of_float64():
    images = images_for(2, 16, 16, 3)
    model = fill(dtype=jnp.bfloat16)
    expected = unet_reference(model, images, False)
    logits = apply(model, images, False)
    assert logits.dtype == jnp.float32
    assert 1e-4 < np.abs(logits - expected).max() / np.abs(expected).max() < 0.1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("unet", r"unknown model 'unet'.*or unetWIDTH or unetWIDTH:NORMALIZER"),
        ("unet0", "unknown model 'unet0'"),
        ("unetw16", "unknown model 'unetw16'"),
        ("unet16:batch_nrom", "unknown normalizer 'batch_nrom'"),
        ("unet16:batch_norm:skip_init", r"unknown option 'skip_init'.*groups=N, size=N$"),
        ("unet8:group_norm", "32 groups do not divide 8 features"),
    ],
)
def test_wrong_names_are_explained(name, message):
    with pytest.raises(ValueError, match=message):
        build(name)


def test_a_classification_of_ten_is_refused():
    with pytest.raises(ValueError, match=r"one kind of object.*got 10 classes"):
        build(num_classes=10)
