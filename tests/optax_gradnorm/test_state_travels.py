"""Where a state has to travel: scans, checkpoints, donated buffers, derivatives."""

import collections
import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import optax_gradnorm

from . import reference
from .chains import assert_close, standard, transformed
from .tables import description, each_transformation, gradients, params


def optimizer_with(factory):
    return optax.chain(factory(), standard(optax.adam(0.1)))


@each_transformation
def test_scan_and_cond(factory):
    """A scan over steps, each under a condition, is the loop."""
    optimizer = optimizer_with(factory)
    steps = [gradients(seed) for seed in (1, 2, 3, 4)]
    taken = [True, False, True, True]

    def step(carry, grads_and_taken):
        grads, take = grads_and_taken

        def apply(carry):
            current, state = carry
            updates, state = optimizer.update(grads, state, current)
            return optax.apply_updates(current, updates), state

        return jax.lax.cond(take, apply, lambda carry: carry, carry), None

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *steps)
    start = (params(), optimizer.init(params()))
    (scanned, scanned_state), _ = jax.jit(lambda s: jax.lax.scan(step, s, (stacked, jnp.asarray(taken))))(
        start
    )

    looped, state = start
    update = jax.jit(optimizer.update)
    for grads, take in zip(steps, taken, strict=True):
        if take:
            updates, state = update(grads, state, looped)
            looped = optax.apply_updates(looped, updates)
    assert_close((scanned, scanned_state), (looped, state), 1e-5)


@each_transformation
def test_donated_state_and_gradients(factory):
    optimizer = optimizer_with(factory)
    expected = jax.jit(optimizer.update)(gradients(), optimizer.init(params()))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(state, grads):
        updates, state = optimizer.update(grads, state)
        return state, updates

    state = optimizer.init(params())
    result, updates = update(state, jax.tree.map(jnp.copy, gradients()))
    # What the update does not read (last step's sigma and multiplier) jit leaves alone.
    used = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim > 0]
    used += [part.first_sigma for part in state if isinstance(part, optax_gradnorm.GanState)]
    assert all(leaf.is_deleted() for leaf in used)
    assert_close((updates, result), expected, 1e-5)
    result, _ = update(result, jax.tree.map(jnp.copy, gradients(2)))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result))


@each_transformation
def test_state_does_not_alias_parameters(factory):
    own = {id(leaf) for leaf in jax.tree.leaves(params())}
    leaves = jax.tree.leaves(factory().init(params()))
    assert not own & {id(leaf) for leaf in leaves}
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)


@each_transformation
def test_pickle(factory):
    optimizer = optimizer_with(factory)
    update = jax.jit(optimizer.update)
    _, state = update(gradients(1), optimizer.init(params()))
    restored = pickle.loads(pickle.dumps(state))
    assert description(jax.tree.map(jnp.asarray, restored)) == description(state)
    assert_close(update(gradients(2), restored), update(gradients(2), state), 0)


@each_transformation
def test_orbax(factory, tmp_path):
    optimizer = optimizer_with(factory)
    update = jax.jit(optimizer.update)
    _, state = update(gradients(1), optimizer.init(params()))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", jax.eval_shape(optimizer.init, params()))
    assert description(restored) == description(state)
    assert_close(restored, state, 0)
    assert_close(update(gradients(2), restored), update(gradients(2), state), 0)


@pytest.mark.parametrize("count", ["count", "step"])
def test_a_state_saved_under_the_fields_old_names(count, tmp_path):
    """As the changelog says to convert it."""
    optimizer = optax.chain(optax_gradnorm.track_gradient_dynamics(), optimizer_with(optax_gradnorm.gan))
    update = jax.jit(optimizer.update)
    _, wanted = update(gradients(1), optimizer.init(params()))
    old_gan = collections.namedtuple("GanState", "first_sigma sigma scale")
    old_dynamics = collections.namedtuple("GradientDynamicsState", f"{count} mean std global_std")
    tracking, (gan_state, adam_state) = wanted
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", (old_dynamics(*tracking), (old_gan(*gan_state), adam_state)))
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state")

    dynamics, (gan, _) = restored
    gan["multiplier"] = gan.pop("scale")
    dynamics["num_updates"] = dynamics.pop(count)
    state, names = optimizer.init(params()), optax_gradnorm.layer_names
    named = dict(zip(names(restored), jax.tree.leaves(restored), strict=True))
    state = jax.tree.unflatten(jax.tree.structure(state), [named[name] for name in names(state)])
    assert description(state) == description(wanted)
    assert_close(state, wanted, 0)


@each_transformation
def test_tree_map_params(factory):
    """Optax tells the parameters in a state from the rest: our states have none."""
    optimizer = optimizer_with(factory)
    state = optimizer.init(params())
    marked = optax.tree_map_params(
        optimizer, lambda p: "parameter", state, transform_non_params=lambda _: "other"
    )
    assert jax.tree.structure(marked) == jax.tree.structure(state)
    counts = [jax.tree.leaves(marked).count(mark) for mark in ("parameter", "other")]
    own = len(jax.tree.leaves(factory().init(params())))
    assert counts == [4, 1 + own]


@each_transformation
def test_vmap(factory):
    """One update per member of an ensemble."""
    transformation = factory()
    members = [gradients(seed) for seed in (1, 2, 3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    states = jax.vmap(transformation.init)(stacked)
    updates, _ = jax.jit(jax.vmap(transformation.update))(stacked, states)
    for i, member in enumerate(members):
        assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], updates), transformed(factory, member))


@each_transformation
def test_eval_shape(factory):
    transformation = factory()
    shapes = jax.eval_shape(lambda p: transformation.update(p, transformation.init(p)), params())
    actual = transformation.update(params(), transformation.init(params()))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), shapes) == jax.tree.map(
        lambda x: (x.shape, x.dtype), actual
    )


@each_transformation
def test_gradient_through_the_update(factory):
    """Learned optimizers differentiate through an update: against central differences in float64."""
    transformation = factory()
    with reference.enable_x64(True):
        generator = np.random.default_rng(0)
        layer = jnp.asarray(generator.standard_normal((3, 4)) + 0.5)
        weights = jnp.asarray(generator.standard_normal((3, 4)))

        @jax.jit
        def weighted(layer):
            return jnp.sum(weights * transformation.update(layer, transformation.init(layer))[0])

        derivative = np.asarray(jax.jit(jax.grad(weighted))(layer))
        step = 1e-6
        for index in np.ndindex(layer.shape):
            difference = (weighted(layer.at[index].add(step)) - weighted(layer.at[index].add(-step))) / (
                2 * step
            )
            assert abs(float(difference) - derivative[index]) <= 1e-8


@each_transformation
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_gradient_through_a_constant_layer_is_finite(factory, value):
    """The deviation has no derivative there, as the magnitude of a number has none at 0: it counts as 0."""
    transformation = factory()
    weights = jnp.arange(12.0).reshape(3, 4)

    @jax.jit
    def weighted(constant, other):
        layers = {"constant": constant, "other": other}
        updates, _ = transformation.update(layers, transformation.init(layers))
        return sum(jnp.sum(weights * leaf) for leaf in jax.tree.leaves(updates))

    derivatives = jax.grad(weighted, argnums=(0, 1))(jnp.full((3, 4), value), weights)
    for derivative in derivatives:
        assert np.isfinite(derivative).all()


@each_transformation
@pytest.mark.parametrize("differentiate", [jax.jacrev, jax.jacfwd])
def test_derivative_where_every_layer_is_constant_is_finite(factory, differentiate):
    transformation = factory()
    jacobian = jax.jit(differentiate(lambda g: transformation.update([g], transformation.init([g]))[0][0]))
    assert np.isfinite(jacobian(jnp.ones((2, 2)))).all()


@pytest.mark.parametrize(
    "options",
    [
        {"mask": {"kernel": True, "bias": False}},
        {"stacked_axes": {"kernel": 0, "bias": 0}},
        {"axis_name": {"kernel": "x", "bias": None}},
    ],
    ids=lambda options: next(iter(options)),
)
def test_tree_map_params_with_options_as_pytrees(options):
    """Optax calls `init` with a placeholder, which has the structure of no option."""
    transformation = optax_gradnorm.gan(**options)
    state = transformation.init({"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)})
    doubled = optax.tree_map_params(transformation, lambda p: 2 * p, state)
    assert jax.tree.map(float, doubled) == jax.tree.map(float, state)
