"""What tests of gradient dynamics share."""

import jax
import jax.numpy as jnp
import numpy as np

from . import reference


def random_tree(seed=0, dtype=jnp.float32, scale=1.0):
    rng = np.random.default_rng(seed)

    def array(*shape):
        values = rng.standard_normal(shape) + 0.5
        if dtype == jnp.complex64:
            values = values + 1j * rng.standard_normal(shape)
        return jnp.asarray(scale * values, dtype)

    return {
        "conv": {"kernel": array(3, 3, 4, 8), "bias": array(8)},
        "blocks": [{"kernel": array(5, 7)}, {"kernel": array(7, 2)}],
        "temperature": array(),
    }


def layers(tree):
    return [tree["blocks"][0]["kernel"], tree["blocks"][1]["kernel"], tree["conv"]["kernel"]]


def description(tree):
    return jax.tree.structure(tree), [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(tree)]


def assert_records(state, tree, rtol=2e-6):
    """The state holds the statistics of `tree`, in units of each layer's own spread."""
    for mean, std, layer in zip(
        jax.tree.leaves(state.mean), jax.tree.leaves(state.std), layers(tree), strict=True
    ):
        spread = reference.std(layer)
        assert abs(np.asarray(mean) - reference.exact(layer).mean()) <= rtol * spread
        assert abs(np.asarray(std, np.float64) - spread) <= rtol * spread
    expected = reference.global_std(layers(tree))
    assert abs(float(state.global_std) - expected) <= rtol * expected
