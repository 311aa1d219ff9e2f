"""What the library's tests share: the transformations, trees of gradients, and an update of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_gradnorm

TRANSFORMATIONS = {
    "znorm": optax_gradnorm.znorm,
    "gan": optax_gradnorm.gan,
    "centralize": optax_gradnorm.centralize,
    "track_gradient_dynamics": optax_gradnorm.track_gradient_dynamics,
}


def _each_but(*excluded):
    """Parametrizes a test over the functions that make a transformation, called `factory` there."""
    kept = {name: factory for name, factory in TRANSFORMATIONS.items() if name not in excluded}
    assert len(kept) == len(TRANSFORMATIONS) - len(excluded)
    return pytest.mark.parametrize("factory", kept.values(), ids=kept)


each_transformation = _each_but()
# What some tests exclude, by name and for a reason:
# track_gradient_dynamics changes no update, and what it records is tested in test_dynamics*.py;
each_normalizer = _each_but("track_gradient_dynamics")
# centralize wants no mesh axis named that shards its output units, the others every axis that shards a layer;
each_of_whole_layers = _each_but("centralize")
# znorm and centralize remember nothing;
each_with_state = _each_but("znorm", "centralize")
# gan and track_gradient_dynamics have numbers over all layers, so that shards with layers of their own disagree;
each_of_single_layers = _each_but("gan", "track_gradient_dynamics")
# znorm stands for all of them where what they have in common is tested in full.
each_but_znorm = _each_but("znorm")


def first_update(factory, **options):
    """A compiled function from gradients to the first updates and the state after them."""
    transformation = factory(**options)
    return jax.jit(lambda gradients: transformation.update(gradients, transformation.init(gradients)))


# The same function for the same options, so that many tests compile once.
shared_first_update = functools.cache(first_update)


def description(tree):
    """All that must stay as it is for a second step not to be compiled."""
    return jax.tree.structure(tree), [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(tree)]


def gaussian(*shape, mean=0.0, scale=1.0, seed=0, dtype=jnp.float32):
    """Random numbers of deviation 1 about a mean, times a scale; a generator may be the seed."""
    generator = np.random.default_rng(seed)
    values = generator.standard_normal(shape) + mean
    if jnp.issubdtype(dtype, jnp.complexfloating):
        values = values + 1j * generator.standard_normal(shape)
    return jnp.asarray(values * scale, dtype)


@functools.cache
def params():
    """One layer and a bias."""
    return {"kernel": gaussian(6, 4), "bias": gaussian(4, seed=1)}


@functools.cache
def gradients(seed=1):
    """Those of `params`."""
    array = functools.partial(gaussian, mean=0.3, seed=np.random.default_rng(seed))
    return jax.tree.map(lambda p: array(*p.shape), params())


def nested(seed=0, dtype=jnp.float32, scale=1.0):
    """Layers in dictionaries and lists, a bias and a scalar."""
    array = functools.partial(gaussian, mean=0.5, scale=scale, dtype=dtype, seed=np.random.default_rng(seed))
    return {
        "conv": {"kernel": array(3, 3, 4, 8), "bias": array(8)},
        "blocks": [{"kernel": array(5, 7)}, {"kernel": array(7, 2)}],
        "temperature": array(),
    }


def layers_of_nested(tree):
    return [tree["blocks"][0]["kernel"], tree["blocks"][1]["kernel"], tree["conv"]["kernel"]]


# Leaves that are no layers, or layers of which nothing is left.
LEAVES = {
    "scalar": lambda dtype: jnp.asarray(2.5, dtype),
    "vector": lambda dtype: jnp.asarray([1.5, -2.0, 0.25], dtype),
    "single element": lambda dtype: jnp.full((1, 1), 7.3, dtype),
    "constant": lambda dtype: jnp.full((3, 3, 5), -0.1, dtype),
    "empty": lambda dtype: jnp.zeros((0, 3), dtype),
    "None": lambda dtype: None,
    "MaskedNode": lambda dtype: optax.MaskedNode(),
}
