"""Stacked parameters: a stack of layers gives what the layers give one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_gradnorm

from . import reference
from .tables import each_normalizer, first_update, gaussian


def updated(grads, factory, **options):
    return first_update(factory, **options)(grads)[0]


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
@each_normalizer
def test_one_stacked_axis(factory, shape, dtype):
    one_by_one = layers(4, shape, dtype)
    expected = updated(one_by_one, factory)
    update = updated(jnp.stack(one_by_one), factory, stacked_axes=1)
    assert update.dtype == dtype
    tolerance = 1e-6 if dtype != jnp.float16 else 1e-3
    for u, e in zip(update, expected, strict=True):
        assert difference(u, e) <= tolerance


@pytest.mark.parametrize("largest", [1e-37, 9e37, 3e38])
def test_stacked_layers_near_the_ends_of_float32(largest):
    """A reciprocal of such a deviation is subnormal, which XLA takes for 0."""
    values = np.random.default_rng(0).choice([-1.0, 1.0], (8, 4, 4))
    grads = {"stack": jnp.asarray(values * largest, jnp.float32)}
    _, state = first_update(optax_gradnorm.gan, stacked_axes=1)(grads)
    expected = reference.global_std(list(np.asarray(grads["stack"])))
    assert abs(float(state.sigma) / expected - 1) <= 1e-6
    _, dynamics = first_update(optax_gradnorm.track_gradient_dynamics, stacked_axes=1)(grads)
    assert dynamics.global_std == state.sigma


@each_normalizer
def test_two_stacked_axes(factory):
    one_by_one = layers(6, (8, 5))
    expected = updated(one_by_one, factory)
    stack = jnp.stack(one_by_one).reshape(2, 3, 8, 5)
    update = updated(stack, factory, stacked_axes=2)
    for u, e in zip(update.reshape(6, 8, 5), expected, strict=True):
        assert difference(u, e) <= 1e-6


@each_normalizer
def test_the_dimension_rule_counts_what_is_left(factory):
    """Stacked biases are biases still, and pass through; an unstacked reading would change them."""
    grads = {"offset": jnp.arange(12.0).reshape(4, 3), "scale": jnp.arange(4.0)}
    with pytest.warns(UserWarning, match="no leaf is a layer"):
        updates = updated(grads, factory, stacked_axes=1)
    assert all(np.array_equal(updates[k], grads[k]) for k in grads)
    assert not np.array_equal(updated(grads, factory)["offset"], grads["offset"])


@each_normalizer
def test_every_form_of_stacked_axes(factory):
    blocks, head = layers(3, (6, 5)), layers(3, (4, 2))[0]
    grads = {
        "blocks": {"kernel": jnp.stack(blocks), "bias": jnp.ones((3, 5))},
        "head": {"kernel": head, "bias": jnp.ones(2)},
    }
    alone = updated([*blocks, head], factory)
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
        updates = updated(grads, factory, stacked_axes=stacked_axes)
        for u, e in zip([*updates["blocks"]["kernel"], updates["head"]["kernel"]], alone, strict=True):
            assert difference(u, e) <= 1e-6, form
        assert np.array_equal(updates["blocks"]["bias"], grads["blocks"]["bias"]), form


def test_gan_shows_one_deviation_for_the_whole_stack():
    one_by_one = layers(5, (8, 5))
    _, state = first_update(optax_gradnorm.gan)(one_by_one)
    _, stacked_state = first_update(optax_gradnorm.gan, stacked_axes=1)(jnp.stack(one_by_one))
    for a, b in zip(state, stacked_state, strict=True):
        assert a.shape == b.shape == ()
        assert abs(float(a) / float(b) - 1) <= 1e-6


def test_centralize_feature_axis_of_a_stacked_layer():
    one_by_one = layers(3, (4, 5, 6))
    for feature_axis in (0, 1, -1):
        expected = updated(one_by_one, optax_gradnorm.centralize, feature_axis=feature_axis)
        updates = updated(
            jnp.stack(one_by_one), optax_gradnorm.centralize, feature_axis=feature_axis, stacked_axes=1
        )
        for u, e in zip(updates, expected, strict=True):
            assert difference(u, e) <= 1e-6


def test_masked_biases_of_a_stack():
    """With a mask the layer may have one dimension left, or none: then each element stands alone."""
    bias = gaussian(4, 7)
    update = updated(bias, optax_gradnorm.znorm, mask=True, stacked_axes=1)
    for u, row in zip(update, bias, strict=True):
        assert reference.error(u, reference.znorm(row)) <= 2e-6
    assert not np.any(updated(bias, optax_gradnorm.znorm, mask=True, stacked_axes=2))
    assert not np.any(updated(bias, optax_gradnorm.gan, mask=True, stacked_axes=2))


def test_many_layers_far_from_zero():
    """The bound holds for the worst of thousands of layers."""
    stack = gaussian(4000, 30, 30, mean=1e3)
    values = reference.exact(stack)
    centered = values - values.mean((1, 2), keepdims=True)
    expected = centered / values.std((1, 2), keepdims=True)
    assert reference.error(updated(stack, optax_gradnorm.znorm, stacked_axes=1), expected) <= 2e-4
    expected = values - values.mean((1,), keepdims=True)
    assert reference.error(updated(stack, optax_gradnorm.centralize, stacked_axes=1), expected) <= 2e-4
