"""Stacked parameters: a stack of layers gives what the layers give one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_gradnorm

from . import reference

FACTORIES = {
    "znorm": optax_gradnorm.znorm,
    "gan": optax_gradnorm.gan,
    "centralize": optax_gradnorm.centralize,
}


def first_update(transformation, grads):
    return jax.jit(lambda g: transformation.update(g, transformation.init(g))[0])(grads)


def layers(count, shape, dtype=jnp.float32):
    """Layers of different scale, one of them constant."""
    generator = np.random.default_rng(0)
    values = [(generator.standard_normal(shape) + 0.3) * 10.0 ** (i - 1) for i in range(count)]
    values[count // 2][:] = 0.25
    return [jnp.asarray(v, dtype) for v in values]


def difference(left, right):
    left, right = reference.exact(left), reference.exact(right)
    return np.max(np.abs(left - right)) / max(1e-30, np.max(np.abs(right)))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float32, jnp.complex64], ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("shape", [(6, 5), (3, 3, 4, 7)], ids=str)
@pytest.mark.parametrize("name", FACTORIES)
def test_one_stacked_axis(name, shape, dtype):
    one_by_one = layers(4, shape, dtype)
    expected = first_update(FACTORIES[name](), one_by_one)
    update = first_update(FACTORIES[name](stacked_axes=1), jnp.stack(one_by_one))
    assert update.dtype == dtype
    tolerance = 1e-6 if dtype != jnp.float16 else 1e-3
    for u, e in zip(update, expected, strict=True):
        assert difference(u, e) <= tolerance


@pytest.mark.parametrize("largest", [1e-37, 9e37, 3e38])
def test_stacked_layers_near_the_ends_of_float32(largest):
    """A reciprocal of such a deviation is subnormal, which XLA takes for 0."""
    values = np.random.default_rng(0).choice([-1.0, 1.0], (8, 4, 4))
    grads = {"stack": jnp.asarray(values * largest, jnp.float32)}
    gan = optax_gradnorm.gan(stacked_axes=1)
    _, state = jax.jit(gan.update)(grads, gan.init(grads))
    expected = reference.global_std(list(np.asarray(grads["stack"])))
    assert abs(float(state.sigma) / expected - 1) <= 1e-6
    tracking = optax_gradnorm.track_gradient_dynamics(stacked_axes=1)
    _, dynamics = jax.jit(tracking.update)(grads, tracking.init(grads))
    assert dynamics.global_std == state.sigma


@pytest.mark.parametrize("name", FACTORIES)
def test_two_stacked_axes(name):
    one_by_one = layers(6, (8, 5))
    expected = first_update(FACTORIES[name](), one_by_one)
    stack = jnp.stack(one_by_one).reshape(2, 3, 8, 5)
    update = first_update(FACTORIES[name](stacked_axes=2), stack)
    for u, e in zip(update.reshape(6, 8, 5), expected, strict=True):
        assert difference(u, e) <= 1e-6


@pytest.mark.parametrize("name", FACTORIES)
def test_the_dimension_rule_counts_what_is_left(name):
    """Stacked biases are biases still, and pass through; an unstacked reading would change them."""
    grads = {"offset": jnp.arange(12.0).reshape(4, 3), "scale": jnp.arange(4.0)}
    stacked = FACTORIES[name](stacked_axes=1)
    with pytest.warns(UserWarning, match="no leaf is a layer"):
        updates = first_update(stacked, grads)
    assert all(np.array_equal(updates[k], grads[k]) for k in grads)
    assert not np.array_equal(first_update(FACTORIES[name](), grads)["offset"], grads["offset"])


@pytest.mark.parametrize("name", FACTORIES)
def test_every_form_of_stacked_axes(name):
    blocks, head = layers(3, (6, 5)), layers(3, (4, 2))[0]
    grads = {
        "blocks": {"kernel": jnp.stack(blocks), "bias": jnp.ones((3, 5))},
        "head": {"kernel": head, "bias": jnp.ones(2)},
    }
    alone = first_update(FACTORIES[name](), [*blocks, head])
    forms = {
        "tree": {"blocks": {"kernel": 1, "bias": 1}, "head": {"kernel": 0, "bias": 0}},
        "prefix": {"blocks": 1, "head": 0},
        "function of the tree": lambda tree: jax.tree.map_with_path(
            lambda path, _: int(path[0].key == "blocks"), tree
        ),
        "function giving a prefix": lambda tree: {"blocks": 1, "head": 0},
        "NumPy integers": {"blocks": np.int32(1), "head": np.int64(0)},
    }
    for form, stacked_axes in forms.items():
        updates = first_update(FACTORIES[name](stacked_axes=stacked_axes), grads)
        for u, e in zip([*updates["blocks"]["kernel"], updates["head"]["kernel"]], alone, strict=True):
            assert difference(u, e) <= 1e-6, form
        assert np.array_equal(updates["blocks"]["bias"], grads["blocks"]["bias"]), form


def test_gan_shows_one_deviation_for_the_whole_stack():
    one_by_one = layers(5, (8, 5))
    gan, stacked = optax_gradnorm.gan(), optax_gradnorm.gan(stacked_axes=1)
    _, state = jax.jit(gan.update)(one_by_one, gan.init(one_by_one))
    stack = jnp.stack(one_by_one)
    _, stacked_state = jax.jit(stacked.update)(stack, stacked.init(stack))
    for a, b in zip(state, stacked_state, strict=True):
        assert a.shape == b.shape == ()
        assert abs(float(a) / float(b) - 1) <= 1e-6


def test_centralize_feature_axis_of_a_stacked_layer():
    one_by_one = layers(3, (4, 5, 6))
    for feature_axis in (0, 1, -1):
        expected = first_update(optax_gradnorm.centralize(feature_axis=feature_axis), one_by_one)
        stacked = optax_gradnorm.centralize(feature_axis=feature_axis, stacked_axes=1)
        for u, e in zip(first_update(stacked, jnp.stack(one_by_one)), expected, strict=True):
            assert difference(u, e) <= 1e-6


def test_masked_biases_of_a_stack():
    """With a mask the layer may have one dimension left, or none: then each element stands alone."""
    bias = jnp.asarray(np.random.default_rng(0).standard_normal((4, 7)), jnp.float32)
    update = first_update(optax_gradnorm.znorm(mask=True, stacked_axes=1), bias)
    for u, row in zip(update, bias, strict=True):
        assert reference.error(u, reference.znorm(row)) <= 2e-6
    assert not np.any(first_update(optax_gradnorm.znorm(mask=True, stacked_axes=2), bias))
    assert not np.any(first_update(optax_gradnorm.gan(mask=True, stacked_axes=2), bias))


def test_many_layers_far_from_zero():
    """The bound holds for the worst of thousands of layers."""
    stack = jnp.asarray(np.random.default_rng(0).standard_normal((4000, 30, 30)) + 1e3, jnp.float32)
    values = reference.exact(stack)
    centered = values - values.mean((1, 2), keepdims=True)
    expected = centered / values.std((1, 2), keepdims=True)
    assert reference.error(first_update(optax_gradnorm.znorm(stacked_axes=1), stack), expected) <= 2e-4
    expected = values - values.mean((1,), keepdims=True)
    assert reference.error(first_update(optax_gradnorm.centralize(stacked_axes=1), stack), expected) <= 2e-4
