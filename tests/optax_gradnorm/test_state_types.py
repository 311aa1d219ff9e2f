"""States go where Adam's go: every transformation, on every kind of mesh, in every loop and wrapper.

A state must keep its JAX type (shape, dtype, sharding on an explicit mesh, varying axes inside `shard_map`)
from `init` through every update, and say the same as without a mesh.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optax_gradnorm

from . import reference
from .tables import (
    TRANSFORMATIONS,
    each_of_whole_layers,
    each_transformation,
    each_with_state,
    shared_first_update,
)

pytestmark = pytest.mark.devices(8)


@pytest.fixture(autouse=True)
def standard_promotion():
    """Optax promotes its own counters."""
    with jax.numpy_dtype_promotion("standard"):
        yield


# One expert per device beside a layer that all share.
SPECS = {"experts": P("x"), "shared": P(), "bias": P()}
STACKED = {"experts": 1, "shared": 0, "bias": 0}
FACTORIES = {
    **TRANSFORMATIONS,
    "adam": lambda **options: optax.scale_by_adam(),
}
each_factory = pytest.mark.parametrize("factory", FACTORIES.values(), ids=FACTORIES)


@functools.cache
def gradients():
    generator = np.random.default_rng(0)
    scales = 10.0 ** np.arange(8)[:, None, None] / 1e3
    return {
        "experts": jnp.asarray(generator.standard_normal((8, 4, 6)) * scales + 1, jnp.float32),
        "shared": jnp.asarray(generator.standard_normal((8, 6)) + 0.2, jnp.float32),
        "bias": jnp.ones(6),
    }


def scan(transformation, grads):
    def step(state, _):
        updates, state = transformation.update(grads, state)
        return state, updates

    state, updates = lax.scan(step, transformation.init(grads), length=2)
    return jax.tree.map(lambda u: u[-1], updates), state


def cond(transformation, grads):
    state = transformation.init(grads)
    return lax.cond(
        jnp.ones((), bool),
        lambda state: transformation.update(grads, state),
        lambda state: (jax.tree.map(jnp.zeros_like, grads), state),
        state,
    )


def twice(transformation, grads):
    state = transformation.init(grads)
    _, state = transformation.update(grads, state)
    return transformation.update(grads, state)


def multi_steps(transformation, grads):
    return scan(optax.MultiSteps(transformation, 2), grads)


def if_finite(transformation, grads):
    return twice(optax.apply_if_finite(transformation, 3), grads)


PROGRAMS = {p.__name__: p for p in (scan, cond, multi_steps, if_finite)}


def run(function, *arguments):
    return jax.jit(function)(*arguments)


@functools.cache
def without_mesh(program, factory):
    return jax.jit(lambda g: program(factory(stacked_axes=STACKED), g))(gradients())


# Each of these runs a program on a mesh, or only traces it with `call=jax.eval_shape`.


def on_mesh(axis_type, program, factory, options, call=run):
    mesh = jax.make_mesh((8,), ("x",), (axis_type,))
    grads = {name: jax.device_put(g, NamedSharding(mesh, SPECS[name])) for name, g in gradients().items()}
    with jax.set_mesh(mesh):
        # As users do: the state is made outside and handed to a jitted step.
        transformation = factory(stacked_axes=STACKED)
        state = transformation.init(grads)
        call(transformation.update, grads, state)
        return call(lambda g: program(transformation, g), grads)


def in_shard_map(check_vma, program, factory, options, call=run):
    mesh = jax.make_mesh((8,), ("x",), (AxisType.Auto,))
    transformation = factory(stacked_axes=STACKED, **options)

    # Each state leaf gets a leading axis of devices, so that any may differ between them.
    def local(grads):
        updates, state = program(transformation, grads)
        return updates, jax.tree.map(lambda x: x[None], state)

    on_devices = jax.shard_map(
        local, mesh=mesh, in_specs=(SPECS,), out_specs=(SPECS, P("x")), check_vma=check_vma
    )
    return call(on_devices, gradients())


def in_pmap(program, factory, options, call=run):
    transformation = factory(stacked_axes=STACKED, **options)
    axes = {name: 0 if spec else None for name, spec in SPECS.items()}
    grads = dict(gradients())
    grads["experts"] = grads["experts"][:, None]
    mapped = jax.pmap(lambda g: program(transformation, g), "x", in_axes=(axes,))
    return mapped(grads) if call is run else call(mapped, grads)


def gathered(environment, updates, state):
    """Updates and state of all devices as those of one."""
    if environment == "pmap":
        # What all devices share must be the same on all of them.
        for name in ("shared", "bias"):
            copies = np.asarray(updates[name])
            assert all(np.array_equal(copy, copies[0]) for copy in copies)
            updates[name] = copies[0]
        updates["experts"] = updates["experts"][:, 0]
    if environment in ("auto mesh", "explicit mesh"):
        return updates, state
    return updates, per_device(state)


def per_device(state):
    """States of all devices as one: the experts' statistics side by side, all others the same on all."""

    def merge(copies):
        copies = np.asarray(copies)
        if copies.ndim == 1:
            assert all(copy == copies[0] for copy in copies)
            return copies[0]
        return copies.reshape(8, *copies.shape[2:]) if copies.shape[1] == 1 else copies[0]

    return jax.tree.map(merge, state)


ENVIRONMENTS = {
    "auto mesh": functools.partial(on_mesh, AxisType.Auto),
    "explicit mesh": functools.partial(on_mesh, AxisType.Explicit),
    "shard_map": functools.partial(in_shard_map, True),
    "shard_map, check_vma=False": functools.partial(in_shard_map, False),
    "pmap": in_pmap,
}
NAMED = {"stacked_axis_name": {"experts": "x", "shared": None, "bias": None}}


def assert_same(actual, wanted):
    for (path, a), w in zip(jax.tree.leaves_with_path(actual), jax.tree.leaves(wanted), strict=True):
        a, w = np.asarray(a, np.float64), np.asarray(w, np.float64)
        assert a.shape == w.shape, jax.tree_util.keystr(path)
        # In units of each layer's largest element, and of the means of 1 that were subtracted.
        scale = np.abs(w).max(axis=(-2, -1), keepdims=True) if w.ndim > 1 else np.abs(w)
        assert np.all(np.abs(a - w) <= 3e-6 * scale + 3e-7), jax.tree_util.keystr(path)


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("environment", ENVIRONMENTS)
@each_factory
def test_states_keep_their_type(factory, environment, program):
    ENVIRONMENTS[environment](PROGRAMS[program], factory, NAMED, call=jax.eval_shape)


@pytest.mark.parametrize("environment", ENVIRONMENTS)
@each_transformation
def test_experts_beside_shared_layers(factory, environment):
    made = ENVIRONMENTS[environment](multi_steps, factory, NAMED)
    updates, state = gathered(environment, *made)
    wanted_updates, wanted_state = without_mesh(multi_steps, factory)
    assert_same(updates, wanted_updates)
    # Wrappers count in ways of their own; what is ours is found by name.
    for field in ("sigma", "first_sigma", "multiplier", "global_std", "mean", "std"):
        found = optax.tree.get_all_with_path(state, field)
        for (_, value), (_, wanted) in zip(
            found, optax.tree.get_all_with_path(wanted_state, field), strict=True
        ):
            assert_same(value, wanted)


def test_sigma_is_that_of_all_experts():
    _, state = in_shard_map(False, twice, optax_gradnorm.gan, NAMED)
    state = per_device(state)
    layers = [*gradients()["experts"], gradients()["shared"]]
    assert state.sigma == pytest.approx(float(reference.global_std(layers)), rel=3e-6)


@each_with_state
def test_a_bare_name_counts_replicated_leaves_once(factory):
    """Inside `shard_map` JAX knows which leaves are replicated."""
    field = {"gan": "sigma", "track_gradient_dynamics": "global_std"}[factory.__name__]
    wanted = optax.tree.get(without_mesh(twice, factory)[1], field)
    _, state = in_shard_map(True, twice, factory, {"stacked_axis_name": "x"})
    state = per_device(state)
    assert optax.tree.get(state, field) == pytest.approx(float(wanted), rel=3e-6)


@each_of_whole_layers
def test_a_bare_axis_name_over_sharded_and_replicated_leaves(factory):
    """Rows of one leaf over the devices, the other whole on each."""
    mesh = jax.make_mesh((8,), ("x",), (AxisType.Auto,))
    grads = {"rows": gradients()["experts"].reshape(16, 12), "whole": gradients()["shared"]}
    specs = {"rows": P("x"), "whole": P()}
    transformation, alone = factory(axis_name="x"), factory()
    run = jax.shard_map(
        functools.partial(twice, transformation), mesh=mesh, in_specs=(specs,), out_specs=(specs, P())
    )
    assert_same(jax.jit(run)(grads), jax.jit(functools.partial(twice, alone))(grads))


@each_with_state
def test_experts_without_their_axis_are_refused(factory):
    """The state is made outside, where all devices share it; a local deviation must not enter it unseen."""
    mesh = jax.make_mesh((8,), ("x",), (AxisType.Auto,))
    transformation = factory(stacked_axes=STACKED)
    state = transformation.init(gradients())

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(SPECS,), out_specs=SPECS)
    def update(grads):
        return transformation.update(grads, state)[0]

    with pytest.raises(ValueError, match="stacked_axis_name"):
        jax.jit(update)(gradients())


def test_independent_models_one_per_device():
    """An ensemble: nothing is named, so each device keeps a state of its own."""
    mesh = jax.make_mesh((8,), ("x",), (AxisType.Auto,))
    members = gradients()["experts"]
    gan = optax_gradnorm.gan()

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=P("x"), out_specs=P("x"))
    def sigmas(grads):
        _, state = scan(gan, grads[0])
        return state.sigma[None]

    wanted = [float(reference.global_std([member])) for member in members]
    np.testing.assert_allclose(jax.jit(sigmas)(members), wanted, rtol=3e-6)


def test_an_axis_with_two_meanings_is_refused():
    names = {"experts": "x", "shared": None, "bias": None}
    with pytest.raises(ValueError, match="both name 'x' for 'experts'"):
        optax_gradnorm.gan(axis_name=names, stacked_axis_name="x").init(gradients())


@pytest.mark.parametrize("program", [scan, multi_steps], ids=lambda program: program.__name__)
@each_transformation
def test_a_stack_of_one_layer_on_an_explicit_mesh(factory, program):
    """The mesh of a single device, on which one debugs."""
    mesh = jax.make_mesh((1,), ("x",), (AxisType.Explicit,), devices=jax.devices()[:1])
    grads = {"experts": jax.device_put(jnp.ones((1, 4, 6)), NamedSharding(mesh, P("x")))}
    with jax.set_mesh(mesh):
        transformation = factory(stacked_axes=1)
        initial = jax.tree.map(jax.typeof, transformation.init(grads))
        run(functools.partial(program, transformation), grads)
        _, state = transformation.update(grads, transformation.init(grads))
    assert jax.tree.map(jax.typeof, state) == initial


@pytest.mark.parametrize("spec", [P(None, "x"), P("x"), P(None, None, "x")], ids=str)
@each_transformation
def test_vmap_over_large_layers_on_an_explicit_mesh(factory, spec):
    """Where `vmap` turns a branch into a selection, whose condition has to be sharded as the values."""
    mesh = jax.make_mesh((4,), ("x",), (AxisType.Explicit,), devices=jax.devices()[:4])
    grads = jax.random.normal(jax.random.key(0), (4, 256, 256))
    update = shared_first_update(factory)
    wanted = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(update, grads))
    with jax.set_mesh(mesh):
        found = jax.jit(jax.vmap(update))(jax.device_put(grads, NamedSharding(mesh, spec)))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@each_transformation
def test_a_state_of_abstract_parameters_has_the_type_of_one_of_arrays(factory, axis_type):
    mesh = jax.make_mesh((4,), ("x",), (axis_type,), devices=jax.devices()[:4])
    params = jax.device_put({"w": jnp.ones((2, 4, 3, 3))}, NamedSharding(mesh, P(None, "x")))
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params)
    with jax.set_mesh(mesh):
        transformation = factory(stacked_axes=2)
        expected, actual = (
            jax.tree.map(jax.typeof, transformation.init(tree)) for tree in (params, abstract)
        )
    assert actual == expected
