"""Layers of one type are measured together on GPUs; here that branch is taken on a CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import optax_gradnorm

from . import reference
from .tables import first_update, gaussian

SCALES = [1e-31, 1e-12, 1.0, 1e12, 1e37]


@pytest.fixture(autouse=True)
def taken(monkeypatch):
    """Takes the branch for NVIDIA GPUs, and counts how often there was one."""
    found = []

    def for_gpus(*arguments, default, **branches):
        found.extend(name for name in branches if name == "cuda")
        return branches.get("cuda", default)(*arguments)

    monkeypatch.setattr(jax.lax, "platform_dependent", for_gpus)
    # What other tests have compiled took the other branch.
    jax.clear_caches()
    yield found
    assert found
    jax.clear_caches()


def layers_of(shape, dtype, *, mean=0.5, scales=SCALES):
    """One layer of this shape at every scale."""
    return [gaussian(*shape, mean=mean, scale=scale, seed=i, dtype=dtype) for i, scale in enumerate(scales)]


# Rows shorter than 32 and longer, one axis and four, and a long axis that is not the last.
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((100, 100), jnp.float32),
        ((3, 3, 8, 16), jnp.float32),
        ((300, 8), jnp.float32),
        ((64, 40, 1), jnp.float32),
        ((3, 3, 8, 16), jnp.complex64),  # whose parts are measured as real arrays are
    ],
)
def test_znorm_at_every_scale(shape, dtype):
    grads = layers_of(shape, dtype)
    updates, _ = first_update(optax_gradnorm.znorm)(grads)
    for update, g in zip(updates, grads, strict=True):
        assert update.dtype == dtype
        assert reference.error(update, reference.znorm(g)) <= 2e-6


@pytest.mark.parametrize(("mean", "bound"), [(1.0, 2e-6), (-1e3, 2e-4)])
def test_znorm_far_from_zero(mean, bound):
    grads = layers_of((100, 100), jnp.float32, mean=mean, scales=SCALES[:4])
    updates, _ = first_update(optax_gradnorm.znorm)(grads)
    for update, g in zip(updates, grads, strict=True):
        assert reference.error(update, reference.znorm(g)) <= bound


def test_half_precision():
    grads = [g.astype(jnp.bfloat16) for g in layers_of((100, 100), jnp.float32)]
    updates, _ = first_update(optax_gradnorm.znorm)(grads)
    for update, g in zip(updates, grads, strict=True):
        expected = reference.znorm(g)
        allowed = np.maximum(reference.ulp(expected, jnp.bfloat16), 2e-6 * np.maximum(1, np.abs(expected)))
        assert np.all(np.abs(reference.exact(update) - expected) <= allowed)


def test_constant_layers_and_a_nan_stay_by_themselves():
    grads = layers_of((40, 50), jnp.float32)[1:4]
    grads += [jnp.full((40, 50), value, jnp.float32) for value in (0.1, 3e38, 0)]
    grads += [grads[0].at[0, 0].set(jnp.nan)]
    updates, _ = first_update(optax_gradnorm.znorm)(grads)
    assert all(jnp.isfinite(update).all() for update in updates[:-1])
    assert not any(update.any() for update in updates[3:6])
    assert jnp.isnan(updates[-1]).all()


def test_gan_and_centralize():
    grads = layers_of((40, 50), jnp.float32)[1:4]
    updates, state = first_update(optax_gradnorm.gan)(grads)
    sigma = reference.global_std(grads)
    assert state.sigma == pytest.approx(sigma, rel=2e-6)
    for update, expected in zip(updates, reference.gan(grads), strict=True):
        assert reference.error(update, expected, max(1e-300, float(np.abs(expected).max()))) <= 4e-6
    updates, _ = first_update(optax_gradnorm.centralize)(grads)
    for update, g in zip(updates, grads, strict=True):
        assert reference.error(update, reference.centralize(g), float(reference.std(g))) <= 2e-6


def test_stacks_and_other_leaves_keep_their_places():
    stack = jnp.stack(layers_of((20, 30), jnp.float32))
    grads = {"a": stack, "bias": jnp.ones(3), "b": 2 * stack, "c": stack[0], "d": None}
    _, state = first_update(
        optax_gradnorm.track_gradient_dynamics,
        stacked_axes=lambda tree: jax.tree.map(lambda g: int(g.ndim == 3), tree),
    )(grads)
    assert state.std["a"].shape == (5,)
    for i in range(5):
        assert state.std["a"][i] == pytest.approx(reference.std(stack[i]), rel=2e-6)
        assert state.mean["b"][i] == pytest.approx(2 * np.mean(reference.exact(stack[i])), rel=2e-6)
    assert state.std["c"] == pytest.approx(reference.std(stack[0]), rel=2e-6)


@pytest.mark.devices(4)
def test_shards_of_layers():
    grads = layers_of((40, 50), jnp.float32)
    mesh = jax.make_mesh((4,), ("rows",), (AxisType.Auto,), devices=jax.devices()[:4])
    transform = optax_gradnorm.znorm(axis_name="rows")
    update = jax.shard_map(
        lambda g: transform.update(g, transform.init(g))[0],
        mesh=mesh,
        in_specs=P("rows"),
        out_specs=P("rows"),
    )
    for whole, g in zip(jax.jit(update)(grads), grads, strict=True):
        assert reference.error(whole, reference.znorm(g)) <= 2e-6


def test_derivatives():
    """Derivatives of the second layer's update by the first layer: none; by its own: that of the formula."""
    grads = layers_of((4, 50), jnp.float32)[2:4]
    transform = optax_gradnorm.znorm()
    direction = jax.random.normal(jax.random.key(0), (4, 50))

    def inner(grads):
        return jnp.vdot(direction, transform.update(grads, transform.init(grads))[0][0])

    own, other = jax.jit(jax.grad(inner))(grads)
    assert not other.any()
    g, v = reference.exact(grads[0]), reference.exact(direction)
    u = reference.znorm(grads[0])
    expected = (v - v.mean() - u * np.mean(u * v)) / reference.std(g)
    np.testing.assert_allclose(own, expected, atol=1e-5)
