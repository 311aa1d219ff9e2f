"""What tests of chains and wrappers share."""

import jax
import numpy as np
import optax

from .tables import shared_first_update


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


def transformed(factory, grads):
    """The first update of the transformation alone."""
    return shared_first_update(factory)(grads)[0]
