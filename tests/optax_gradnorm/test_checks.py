"""JAX's own checks find nothing in an update of finite gradients, whatever their scale and size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from .tables import TRANSFORMATIONS, first_update

each = pytest.mark.parametrize(
    ("name", "options"),
    [*((name, {}) for name in TRANSFORMATIONS), ("znorm", {"eps": 0.0})],
    ids=[*TRANSFORMATIONS, "znorm without eps"],
)
SCALES = [0.0, 1e-45, *(10.0**k for k in (-38, -31, -20, -13, 0, 12, 15, 18, 20, 30, 37)), 3e38]
# Above 3e38 / n a plain sum of n numbers of both signs is inf - inf; to bound each of them first costs half as much
# again of an update on CPUs.
LARGEST = 1e33
LARGE = (256, 256)  # On a CPU other sums are taken of large layers.


def trees(scale):
    """A small layer beside a large one: random, of one sign, constant, or with a row of another scale."""
    generator = np.random.default_rng(0)
    with np.errstate(over="ignore"):
        small, random = (generator.uniform(-1, 1, shape) * scale for shape in ((3, 4), LARGE))
        large = [np.abs(random), np.full(LARGE, scale)]
        if scale <= LARGEST:
            mixed = random.copy()
            mixed[0] = 1.0
            large += [random, mixed]
        for layer in large:
            yield {"small": jnp.asarray(small, jnp.float32), "large": jnp.asarray(layer, jnp.float32)}


@pytest.mark.parametrize("batched", [False, True], ids=["", "vmap"])
@each
def test_checkify_finds_nothing(name, options, batched):
    update = first_update(TRANSFORMATIONS[name], **options)
    if batched:  # A branch is a selection there, so that both sides are computed.
        update = jax.vmap(update)
    checked = jax.jit(checkify.checkify(update, checkify.all_checks))
    for scale in SCALES:
        for gradients in trees(scale):
            if batched:
                gradients = jax.tree.map(lambda x: jnp.stack([x, x / 2]), gradients)
            error, _ = checked(gradients)
            assert error.get() is None, scale


@each
def test_debug_nans_finds_nothing(name, options):
    update = first_update(TRANSFORMATIONS[name], **options)
    with jax.debug_nans(True):
        for scale in SCALES:
            for gradients in trees(scale):
                update(gradients)


@each
def test_checkify_still_finds_a_nan(name, options):
    """The check is not quiet because it sees nothing."""
    gradients = {"large": jnp.ones(LARGE).at[0, 0].set(jnp.nan)}
    error, _ = jax.jit(
        checkify.checkify(first_update(TRANSFORMATIONS[name], **options), checkify.float_checks)
    )(gradients)
    assert "nan" in error.get()
