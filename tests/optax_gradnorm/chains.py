"""What tests of chains and wrappers share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_gradnorm

FACTORIES = {
    "znorm": optax_gradnorm.znorm,
    "gan": optax_gradnorm.gan,
    "centralize": optax_gradnorm.centralize,
}
each_factory = pytest.mark.parametrize("factory", FACTORIES.values(), ids=FACTORIES)


@functools.cache
def params():
    generator = np.random.default_rng(0)
    return {
        "kernel": jnp.asarray(generator.standard_normal((6, 4)), jnp.float32),
        "bias": jnp.asarray(generator.standard_normal(4), jnp.float32),
    }


@functools.cache
def gradients(seed=1):
    generator = np.random.default_rng(seed)
    return jax.tree.map(lambda p: jnp.asarray(generator.standard_normal(p.shape) + 0.3, p.dtype), params())


def standard(optimizer):
    """An optimizer under standard promotion, so that what precedes it in a chain stays under strict promotion."""
    optimizer = optax.with_extra_args_support(optimizer)

    def update(updates, state, params=None, **extra):
        with jax.numpy_dtype_promotion("standard"):
            return optimizer.update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(optimizer.init, update)


def assert_close(left, right, tolerance=2e-6):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.abs(a - b).max(initial=0) <= tolerance * max(1, np.abs(b).max(initial=0))


def same_kind(left, right):
    return jax.tree.structure(left) == jax.tree.structure(right) and all(
        (a.shape, a.dtype, a.weak_type) == (b.shape, b.dtype, b.weak_type)
        for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    )


def transformed(factory, grads):
    """The first update of the transformation alone."""
    transformation = factory()
    return jax.jit(lambda g: transformation.update(g, transformation.init(g))[0])(grads)
