"""JAX's own checks find nothing in an update of finite gradients, whatever their scale and size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

import optax_gradnorm

TRANSFORMATIONS = {
    "znorm": optax_gradnorm.znorm(),
    "znorm without eps": optax_gradnorm.znorm(eps=0.0),
    "gan": optax_gradnorm.gan(),
    "centralize": optax_gradnorm.centralize(),
    "track_gradient_dynamics": optax_gradnorm.track_gradient_dynamics(),
}
SCALES = [0.0, 1e-45, *(10.0**k for k in (-38, -31, -20, -13, 0, 12, 15, 18, 20, 30, 37)), 3e38]
# Above 3e38 / n a plain sum of n numbers of both signs is inf - inf; to bound each of them first costs half as much
# again of an update on CPUs.
LARGEST = 1e33
LARGE = (256, 256)  # On a CPU other sums are taken of large layers.


def first_update(transformation):
    return lambda gradients: transformation.update(gradients, transformation.init(gradients))


def layers(scale, dtype=jnp.float32):
    """Layers whose mean is of their own scale, constant ones and mixed ones, small and large."""
    generator = np.random.default_rng(0)
    with np.errstate(over="ignore"):
        random = {shape: generator.uniform(-1, 1, shape) * scale for shape in ((3, 4), LARGE)}
        mixed = random[LARGE].copy()
        mixed[0] = 1.0
        tree = {
            "small": random[3, 4],
            "positive": np.abs(random[LARGE]),
            "constant": np.full(LARGE, scale),
        }
        if scale <= LARGEST:
            tree |= {"large": random[LARGE], "mixed": mixed}
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)


@pytest.mark.parametrize("batched", [False, True], ids=["", "vmap"])
@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_checkify_finds_nothing(name, batched):
    update = first_update(TRANSFORMATIONS[name])
    if batched:  # A branch is a selection there, so that both sides are computed.
        update = jax.vmap(update)
    checked = jax.jit(checkify.checkify(update, checkify.all_checks))
    for scale in SCALES:
        gradients = layers(scale)
        if batched:
            gradients = jax.tree.map(lambda x: jnp.stack([x, x / 2]), gradients)
        error, _ = checked(gradients)
        assert error.get() is None, scale


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_debug_nans_finds_nothing(name):
    update = jax.jit(first_update(TRANSFORMATIONS[name]))
    with jax.debug_nans(True):
        for scale in SCALES:
            update(layers(scale))


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_checkify_still_finds_a_nan(name):
    """The check is not quiet because it sees nothing."""
    gradients = {"large": jnp.ones(LARGE).at[0, 0].set(jnp.nan)}
    error, _ = jax.jit(checkify.checkify(first_update(TRANSFORMATIONS[name]), checkify.float_checks))(
        gradients
    )
    assert "nan" in error.get()
