"""What tests of gradient dynamics share."""

import jax
import numpy as np

from . import reference
from .tables import layers_of_nested as layers


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
