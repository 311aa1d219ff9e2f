"""track_gradient_dynamics: what it records, and that it changes nothing."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import optax_gradnorm
from optax_gradnorm import gradient_dynamics, layer_names, track_gradient_dynamics

from . import reference
from .dynamics import assert_records
from .tables import description, nested


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [
        (jnp.float32, 1.0),
        (jnp.float32, 1e-31),
        (jnp.float32, 1e37),
        (jnp.bfloat16, 1.0),
        (jnp.bfloat16, 1e-31),
        (jnp.float16, 1e-6),
        (jnp.float16, 1e4),
        (jnp.complex64, 1.0),
        (jnp.complex64, 1e-30),
    ],
)
def test_statistics(dtype, scale):
    grads = nested(dtype=dtype, scale=scale)
    transformation = track_gradient_dynamics()
    state = transformation.init(grads)
    updates, new_state = jax.jit(transformation.update)(grads, state)
    chex.assert_trees_all_equal(updates, grads)
    chex.assert_trees_all_equal_dtypes(updates, grads)
    assert_records(new_state, grads)
    assert new_state.num_updates == 1
    assert description(new_state) == description(state)
    complex_mean = dtype == jnp.complex64
    assert {x.dtype for x in jax.tree.leaves(state.mean)} == {
        jnp.dtype("complex64" if complex_mean else "float32")
    }
    assert {x.dtype for x in jax.tree.leaves(state.std)} == {jnp.dtype("float32")}


def test_updates_are_the_very_same_arrays():
    grads = nested()
    transformation = track_gradient_dynamics()
    updates, _ = transformation.update(grads, transformation.init(grads))
    for update, gradient in zip(jax.tree.leaves(updates), jax.tree.leaves(grads), strict=True):
        assert update is gradient


def test_float64_gradients_are_measured_in_double_precision():
    with reference.enable_x64(True):
        grads = {"kernel": jnp.asarray(np.random.default_rng(0).standard_normal((9, 9)) * 1e-3 + 1e3)}
        assert grads["kernel"].dtype == jnp.float64
        transformation = track_gradient_dynamics()
        state = transformation.init(grads)
        _, new_state = transformation.update(grads, state)
        # Rounded to float32 before they are centred, these would have lost 3 % of their spread.
        np.testing.assert_allclose(new_state.std["kernel"], reference.std(grads["kernel"]), rtol=1e-6)
        assert description(new_state) == description(state)
        assert {x.dtype for x in jax.tree.leaves(new_state)} == {jnp.dtype("float32"), jnp.dtype("int32")}


def test_leaves_that_are_not_layers_are_masked_nodes():
    tree = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3), "absent": None, "empty": jnp.ones((0, 2))}
    state = track_gradient_dynamics().init(tree)
    for statistics in (state.mean, state.std):
        assert statistics["bias"] == statistics["empty"] == optax.MaskedNode()
        assert statistics["absent"] is None
        assert statistics["kernel"].shape == ()
        assert layer_names(statistics) == ["kernel"]


def test_constant_layer_and_single_element():
    grads = {"constant": jnp.full((3, 3, 7), -0.1), "single": jnp.full((1, 1), 7.3)}
    transformation = track_gradient_dynamics(mask=True)
    _, state = transformation.update(grads, transformation.init(grads))
    # Rounding of a mean: up to 3 units in the last place.
    np.testing.assert_allclose(state.mean["constant"], np.float32(-0.1), rtol=4e-7)
    np.testing.assert_allclose(state.mean["single"], np.float32(7.3), rtol=2e-7)
    assert state.std["constant"] == state.std["single"] == state.global_std == 0


def test_a_bad_layer_shows_in_that_step_alone():
    grads = nested()
    bad = jax.tree.map(lambda x: x, grads)
    bad["conv"]["kernel"] = bad["conv"]["kernel"].at[0, 0, 0, 0].set(jnp.nan)
    transformation = track_gradient_dynamics()
    _, state = transformation.update(bad, transformation.init(grads))
    assert jnp.isnan(state.mean["conv"]["kernel"])
    assert jnp.isnan(state.std["conv"]["kernel"])
    assert jnp.isnan(state.global_std)
    assert all(jnp.isfinite(x) for x in jax.tree.leaves((state.mean["blocks"], state.std["blocks"])))
    _, state = transformation.update(grads, state)
    assert_records(state, grads)
    assert state.num_updates == 2


@pytest.mark.parametrize(
    "stacked_axes",
    [1, {"stack": 1, "plain": 0}, lambda tree: {"stack": 1, "plain": 0}],
    ids=["int", "pytree", "callable"],
)
def test_stacked_layers_equal_the_layers_one_by_one(stacked_axes):
    rng = np.random.default_rng(0)
    stack = jnp.asarray(rng.standard_normal((4, 5, 6)) * [[[1]], [[1e-20]], [[1e20]], [[3]]], jnp.float32)
    plain_shape = (1, 5, 6) if stacked_axes == 1 else (5, 6)
    plain = jnp.asarray(rng.standard_normal(plain_shape) + 2, jnp.float32)
    transformation = track_gradient_dynamics(stacked_axes=stacked_axes)
    grads = {"stack": stack, "plain": plain}
    _, state = transformation.update(grads, transformation.init(grads))
    assert state.mean["stack"].shape == state.std["stack"].shape == (4,)

    one_by_one = {"stack": list(stack), "plain": plain.reshape(5, 6)}
    single = track_gradient_dynamics()
    _, expected = single.update(one_by_one, single.init(one_by_one))
    np.testing.assert_allclose(state.mean["stack"], jnp.stack(expected.mean["stack"]), rtol=1e-6)
    np.testing.assert_allclose(state.std["stack"], jnp.stack(expected.std["stack"]), rtol=1e-6)
    np.testing.assert_allclose(state.global_std, expected.global_std, rtol=1e-6)


def test_mask_replaces_the_default_rule():
    grads = nested()
    mask = {"conv": False, "blocks": [True, False], "temperature": False}
    transformation = track_gradient_dynamics(mask=mask)
    _, state = transformation.update(grads, transformation.init(grads))
    assert layer_names(state.std) == ["blocks/0/kernel"]
    np.testing.assert_allclose(state.global_std, reference.std(grads["blocks"][0]["kernel"]), rtol=2e-6)


def test_sharded_statistics_are_those_of_the_whole_leaf():
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("x", "y"))
    rng = np.random.default_rng(0)
    grads = {
        "rows": jnp.asarray(rng.standard_normal((8, 6)) + 3, jnp.float32),
        "both": jnp.asarray(rng.standard_normal((8, 4)) * 1e-20, jnp.float32),
        "replicated": jnp.asarray(rng.standard_normal((5, 3)), jnp.float32),
    }
    specs = {"rows": P("x"), "both": P("x", "y"), "replicated": P()}
    whole = track_gradient_dynamics()
    _, expected = whole.update(grads, whole.init(grads))

    sharded = track_gradient_dynamics(axis_name={"rows": "x", "both": ("x", "y"), "replicated": None})
    state = sharded.init(grads)
    update = jax.shard_map(sharded.update, mesh=mesh, in_specs=(specs, P()), out_specs=(specs, P()))
    updates, inside = jax.jit(update)(grads, state)
    chex.assert_trees_all_equal(updates, grads)
    chex.assert_trees_all_close(inside, expected, rtol=1e-6, atol=0)

    placed = jax.device_put(grads, jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs))
    _, under_jit = jax.jit(whole.update)(placed, whole.init(placed))
    chex.assert_trees_all_close(under_jit, expected, rtol=1e-6, atol=0)


def test_a_scan_over_an_epoch_returns_the_whole_trace():
    steps = [nested(seed, scale=10.0**-seed) for seed in range(4)]
    params = nested()
    optimizer = optax.chain(track_gradient_dynamics(), optax_gradnorm.znorm(), optax.sgd(0.1, momentum=0.9))

    @jax.jit
    def epoch(params, state, gradients):
        def step(carry, grads):
            params, state = carry
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), gradient_dynamics(state)

        return jax.lax.scan(step, (params, state), gradients)

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *steps)
    (_, state), trace = epoch(params, optimizer.init(params), stacked)
    assert trace.num_updates.tolist() == [1, 2, 3, 4]
    assert layer_names(trace.std) == ["blocks/0/kernel", "blocks/1/kernel", "conv/kernel"]
    for index, grads in enumerate(steps):
        assert_records(jax.tree.map(lambda x, index=index: x[index], trace), grads)
    assert_records(gradient_dynamics(state), steps[-1])


def test_state_goes_through_cond_and_donation_and_compiles_once():
    grads = nested()
    transformation = track_gradient_dynamics()
    traces = []

    @functools.partial(jax.jit, donate_argnums=1)
    def maybe(keep, state):
        traces.append(keep)
        return jax.lax.cond(keep, lambda s: transformation.update(grads, s)[1], lambda s: s, state)

    state = transformation.init(grads)
    pointers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(state)]
    assert len(set(pointers)) == len(pointers)
    for keep in (True, False, True):
        state = maybe(jnp.asarray(keep), state)
    assert state.num_updates == 2
    assert_records(state, grads)
    assert len(traces) == 1
