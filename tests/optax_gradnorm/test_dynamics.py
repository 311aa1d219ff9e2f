"""track_gradient_dynamics: what it records, that it changes nothing, and where its state can go."""

import collections
import functools
import warnings

import chex
import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import linen, nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import optax_gradnorm
from optax_gradnorm import GradientDynamicsState, gradient_dynamics, layer_names, track_gradient_dynamics

from . import reference


@pytest.fixture
def standard_promotion():
    """For what optax promotes itself: adam its count, MultiSteps its number of steps."""
    with jax.numpy_dtype_promotion("standard"):
        yield


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
    grads = random_tree(dtype=dtype, scale=scale)
    transformation = track_gradient_dynamics()
    state = transformation.init(grads)
    updates, new_state = jax.jit(transformation.update)(grads, state)
    chex.assert_trees_all_equal(updates, grads)
    chex.assert_trees_all_equal_dtypes(updates, grads)
    assert_records(new_state, grads)
    assert new_state.step == 1
    assert description(new_state) == description(state)
    complex_mean = dtype == jnp.complex64
    assert {x.dtype for x in jax.tree.leaves(state.mean)} == {
        jnp.dtype("complex64" if complex_mean else "float32")
    }
    assert {x.dtype for x in jax.tree.leaves(state.std)} == {jnp.dtype("float32")}


def test_updates_are_the_very_same_arrays():
    grads = random_tree()
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


@pytest.mark.parametrize("tree", [{}, None, [], {"bias": jnp.ones(3)}, optax.MaskedNode(), jnp.ones(())])
def test_trees_without_layers(tree):
    transformation = track_gradient_dynamics()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="no leaf is a layer")
        state = transformation.init(tree)
    updates, new_state = jax.jit(transformation.update)(tree, state)
    chex.assert_trees_all_equal(updates, tree)
    assert description(new_state) == description(state)
    assert new_state.global_std == 0
    assert new_state.step == 1


def test_constant_layer_and_single_element():
    grads = {"constant": jnp.full((3, 3, 7), -0.1), "single": jnp.full((1, 1), 7.3)}
    transformation = track_gradient_dynamics(mask=True)
    _, state = transformation.update(grads, transformation.init(grads))
    # Rounding of a mean: up to 3 units in the last place.
    np.testing.assert_allclose(state.mean["constant"], np.float32(-0.1), rtol=4e-7)
    np.testing.assert_allclose(state.mean["single"], np.float32(7.3), rtol=2e-7)
    assert state.std["constant"] == state.std["single"] == state.global_std == 0


def test_a_bad_layer_shows_in_that_step_alone():
    grads = random_tree()
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
    assert state.step == 2


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
    grads = random_tree()
    mask = {"conv": False, "blocks": [True, False], "temperature": False}
    transformation = track_gradient_dynamics(mask=mask)
    _, state = transformation.update(grads, transformation.init(grads))
    assert layer_names(state.std) == ["blocks/0/kernel"]
    np.testing.assert_allclose(state.global_std, reference.std(grads["blocks"][0]["kernel"]), rtol=2e-6)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"stacked_axes": -1}, ValueError, "stacked_axes must not be negative, got -1"),
        ({"stacked_axes": 1.5}, TypeError, "stacked_axes must be an integer, got 1.5"),
        ({"mask": "kernel"}, TypeError, "mask must hold booleans"),
        ({"mask": {"other": True}}, ValueError, "mask must have the structure"),
        ({"axis_name": 3}, TypeError, "axis_name must hold mesh axis names, got 3"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        track_gradient_dynamics(**arguments).init({"kernel": jnp.ones((2, 2))})


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
    steps = [random_tree(seed, scale=10.0**-seed) for seed in range(4)]
    params = random_tree()
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
    assert trace.step.tolist() == [1, 2, 3, 4]
    assert layer_names(trace.std) == ["blocks/0/kernel", "blocks/1/kernel", "conv/kernel"]
    for index, grads in enumerate(steps):
        assert_records(jax.tree.map(lambda x, index=index: x[index], trace), grads)
    assert_records(gradient_dynamics(state), steps[-1])


def test_state_goes_through_cond_and_donation_and_compiles_once():
    grads = random_tree()
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
    assert state.step == 2
    assert_records(state, grads)
    assert len(traces) == 1


def wrapped_in_multi_steps(transformation):
    return optax.MultiSteps(optax.chain(transformation, optax.adam(1e-3)), 1).gradient_transformation()


def wrapped_in_inject_hyperparams(transformation):
    return optax.inject_hyperparams(lambda rate: optax.chain(transformation, optax.sgd(rate)))(rate=0.1)


def all_true(tree):
    return jax.tree.map(lambda _: True, tree)


WRAPPERS = {
    "bare": lambda t: t,
    "chain": lambda t: optax.chain(optax.clip_by_global_norm(1e6), t, optax.adamw(1e-3)),
    "nested chain": lambda t: optax.chain(optax.chain(optax.chain(t)), optax.sgd(0.1)),
    "named_chain": lambda t: optax.named_chain(("track", t), ("sgd", optax.sgd(0.1))),
    "masked": lambda t: optax.masked(optax.chain(t, optax.sgd(0.1)), all_true),
    "MultiSteps": wrapped_in_multi_steps,
    "inject_hyperparams": wrapped_in_inject_hyperparams,
    "apply_if_finite": lambda t: optax.apply_if_finite(optax.chain(t, optax.sgd(0.1)), 3),
    "partition": lambda t: optax.partition(
        {"all": optax.chain(t, optax.sgd(0.1)), "none": optax.set_to_zero()},
        lambda tree: jax.tree.map(lambda _: "all", tree),
    ),
}


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_found_in_any_nesting(wrapper):
    grads = random_tree()
    optimizer = WRAPPERS[wrapper](track_gradient_dynamics())
    state = optimizer.init(grads)
    assert gradient_dynamics(state).step == 0
    update = jax.jit(optimizer.update)
    _, new_state = update(grads, state, grads)
    assert description(new_state) == description(state)
    assert_records(gradient_dynamics(new_state), grads)
    _, new_state = update(grads, new_state, grads)
    assert gradient_dynamics(new_state).step == 2


@pytest.mark.usefixtures("standard_promotion")
def test_multi_steps_record_the_accumulated_gradient():
    first, second = random_tree(0), random_tree(1)
    optimizer = optax.MultiSteps(optax.chain(track_gradient_dynamics(), optax.sgd(0.1)), 2)
    state = optimizer.init(first)
    _, state = jax.jit(optimizer.update)(first, state, first)
    assert gradient_dynamics(state).step == 0
    _, state = jax.jit(optimizer.update)(second, state, first)
    average = jax.tree.map(lambda a, b: (a + b) / 2, first, second)
    assert gradient_dynamics(state).step == 1
    assert_records(gradient_dynamics(state), average)


def test_skipped_steps_are_not_recorded():
    grads = random_tree()
    bad = jax.tree.map(lambda x: x * jnp.nan, grads)
    optimizer = optax.apply_if_finite(optax.chain(track_gradient_dynamics(), optax.sgd(0.1)), 3)
    _, state = optimizer.update(grads, optimizer.init(grads))
    _, state = optimizer.update(bad, state)
    assert gradient_dynamics(state).step == 1
    assert_records(gradient_dynamics(state), grads)


def test_partition_tracks_its_own_leaves():
    grads = random_tree()
    optimizer = optax.partition(
        {
            "conv": optax.chain(track_gradient_dynamics(), optax.sgd(0.1)),
            "rest": optax.chain(track_gradient_dynamics(), optax.sgd(0.1)),
        },
        lambda tree: {"conv": "conv", "blocks": "rest", "temperature": "rest"},
    )
    _, state = optimizer.update(grads, optimizer.init(grads), grads)
    conv, rest = gradient_dynamics(state, "conv"), gradient_dynamics(state, "rest")
    assert layer_names(conv.std) == ["conv/kernel"]
    assert layer_names(rest.std) == ["blocks/0/kernel", "blocks/1/kernel"]
    np.testing.assert_allclose(conv.global_std, reference.std(grads["conv"]["kernel"]), rtol=2e-6)
    assert rest.global_std != conv.global_std


def test_none_and_several():
    params = random_tree()
    with pytest.raises(ValueError, match="opt_state holds no track_gradient_dynamics state"):
        gradient_dynamics(optax.sgd(0.1, momentum=0.9).init(params))

    optimizer = optax.named_chain(
        ("raw", track_gradient_dynamics()),
        ("znorm", optax_gradnorm.znorm()),
        ("after", optax.chain(track_gradient_dynamics())),
        ("sgd", optax.sgd(0.1)),
    )
    _, state = optimizer.update(params, optimizer.init(params))
    for which in (1.0, True, ("raw",)):
        with pytest.raises(TypeError, match="which must be an integer"):
            gradient_dynamics(state, which)
    for which in (None, "sgd", "nobody", 2, -1):
        with pytest.raises(ValueError, match=r"which .* holds 2 \(0: raw, 1: after/0\)"):
            gradient_dynamics(state, which)
    assert gradient_dynamics(state, 0) is not gradient_dynamics(state, 1)
    chex.assert_trees_all_equal(gradient_dynamics(state, 0), gradient_dynamics(state, "raw"))
    chex.assert_trees_all_equal(gradient_dynamics(state, 1), gradient_dynamics(state, "after"))
    assert_records(gradient_dynamics(state, "raw"), params)
    np.testing.assert_allclose(gradient_dynamics(state, "after").global_std, 1, rtol=1e-5)


def test_gradients_of_other_parameters():
    transformation = track_gradient_dynamics()
    state = transformation.init({"a": jnp.ones((2, 2))})
    with pytest.raises(ValueError, match="updates have the layer 'b'"):
        transformation.update({"a": jnp.ones((2, 2)), "b": jnp.ones((3, 3))}, state)


def test_gradients_in_another_container_and_order():
    """An OrderedDict keeps the order of its keys, a dictionary sorts them."""
    params = collections.OrderedDict(z=jnp.ones((2, 2)), a=jnp.ones((3, 3)))
    grads = {"a": jnp.asarray([[1.0, 3.0, 5.0]] * 3), "z": jnp.asarray([[7.0, 7.0]] * 2)}
    transformation = track_gradient_dynamics()
    _, state = transformation.update(grads, transformation.init(params))
    assert {name: float(mean) for name, mean in state.mean.items()} == {"z": 7, "a": 3}


def test_gradients_that_are_none():
    """Equinox gives None for what it does not differentiate: such a layer has zeros and does not count."""
    params = {"frozen": jnp.ones((2, 2)), "kernel": jnp.ones((2, 2))}
    grads = {"frozen": None, "kernel": jnp.asarray([[1.0, 3.0], [3.0, 1.0]])}
    transformation = track_gradient_dynamics()
    state = transformation.init(params)
    updates, new_state = jax.jit(transformation.update)(grads, state)
    assert updates["frozen"] is None
    assert description(new_state) == description(state)
    assert new_state.std == {"frozen": 0, "kernel": 1}
    assert new_state.global_std == 1


def test_its_fields_are_not_those_of_adam():
    optimizer = optax.chain(track_gradient_dynamics(), optax.adam(1e-3))
    assert optax.tree.get(optimizer.init({"a": jnp.ones((2, 2))}), "count") == 0


def test_two_in_one_chain_see_before_and_behind_a_normalizer():
    grads = random_tree(scale=1e-4)
    optimizer = optax.chain(track_gradient_dynamics(), optax_gradnorm.gan(), track_gradient_dynamics())
    _, state = jax.jit(optimizer.update)(grads, optimizer.init(grads))
    before, behind = gradient_dynamics(state, 0), gradient_dynamics(state, 1)
    gan_state = state[1]
    np.testing.assert_allclose(before.global_std, gan_state.sigma, rtol=1e-6)
    np.testing.assert_allclose(behind.global_std, gan_state.sigma * gan_state.scale, rtol=1e-5)
    for mean in jax.tree.leaves(behind.mean):
        assert abs(mean) <= 1e-6 * behind.global_std


class NnxModel(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.heads = nnx.List([nnx.Linear(4, 2, rngs=rngs)])

    def __call__(self, x):
        return self.heads[0](self.norm(self.dense(x)))


NNX_LAYERS = ["dense/kernel", "heads/0/kernel"]


def nnx_gradients(model, x):
    return nnx.grad(lambda m: jnp.sum(m(x) ** 2))(model)


@pytest.mark.parametrize("init_on", ["params", "arrays"])
@pytest.mark.parametrize("update_on", ["params", "arrays"])
def test_nnx_states_of_params_and_of_plain_arrays(init_on, update_on):
    model = NnxModel(nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (8, 3))
    params, grads = nnx.state(model, nnx.Param), nnx.state(nnx_gradients(model, x), nnx.Param)
    container = {"params": lambda state: state, "arrays": reference.as_pure}
    transformation = track_gradient_dynamics()
    state = transformation.init(container[init_on](params))
    grads = container[update_on](grads)

    def step(state, _):
        state = transformation.update(grads, state)[1]
        return state, state.global_std

    new_state, trace = jax.jit(lambda s: jax.lax.scan(step, s, length=3))(state)
    assert description(new_state) == description(state)
    assert layer_names(new_state.mean) == layer_names(new_state.std) == NNX_LAYERS
    assert not [
        leaf for leaf in jax.tree.leaves(new_state, is_leaf=nnx.is_data) if isinstance(leaf, nnx.Variable)
    ]
    kernels = [reference.as_pure(grads)["dense"]["kernel"], reference.as_pure(grads)["heads"][0]["kernel"]]
    np.testing.assert_allclose(trace, [reference.global_std(kernels)] * 3, rtol=2e-6)


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("wrapper", ["bare", "chain", "masked", "MultiSteps", "apply_if_finite"])
def test_nnx_optimizer(wrapper):
    model = NnxModel(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, WRAPPERS[wrapper](track_gradient_dynamics()), wrt=nnx.Param)
    x = jax.random.normal(jax.random.key(0), (8, 3))

    @nnx.jit
    def step(model, optimizer):
        grads = nnx_gradients(model, x)
        optimizer.update(model, grads)
        return reference.as_pure(nnx.state(grads, nnx.Param))

    before = gradient_dynamics(optimizer.opt_state)
    for count in (1, 2):
        grads = step(model, optimizer)
        dynamics = gradient_dynamics(optimizer.opt_state)
        assert description(dynamics) == description(before)
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(dynamics))
        assert dynamics.step == count
        assert layer_names(dynamics.std) == NNX_LAYERS
        np.testing.assert_allclose(
            dynamics.std["dense"]["kernel"], reference.std(grads["dense"]["kernel"]), rtol=2e-6
        )
    chex.assert_trees_all_equal(gradient_dynamics(optimizer), dynamics)


def test_metadata_of_parameters_do_not_reach_the_statistics():
    """A kernel's partitioning has two axes; its mean has none."""
    kernel_init = linen.with_partitioning(linen.initializers.lecun_normal(), ("in", "out"))
    model = linen.Dense(4, kernel_init=kernel_init)
    params = model.init(jax.random.key(0), jnp.ones((1, 3)))
    assert isinstance(params["params"]["kernel"], linen.Partitioned)
    state = track_gradient_dynamics().init(params)
    assert isinstance(state.mean["params"]["kernel"], jax.Array)
    _, new_state = track_gradient_dynamics().update(params, state)
    assert description(new_state) == description(state)
    assert layer_names(state.mean) == ["params/kernel"]


def test_names_are_the_same_in_every_framework():
    class LinenModel(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.Dense(2, name="head")(linen.Dense(4, name="dense")(x))

    class EquinoxModel(eqx.Module):
        dense: eqx.nn.Linear
        head: eqx.nn.Linear

    class NnxTwo(nnx.Module):
        def __init__(self):
            self.dense, self.head = nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.Linear(4, 2, rngs=nnx.Rngs(0))

    def haiku_model(x):
        return hk.Linear(2, name="head")(hk.Linear(4, name="dense")(x))

    x, key = jnp.ones((1, 3)), jax.random.key(0)
    equinox = EquinoxModel(eqx.nn.Linear(3, 4, key=key), eqx.nn.Linear(4, 2, key=key))
    trees = {
        "linen": (LinenModel().init(key, x)["params"], ["dense/kernel", "head/kernel"]),
        "nnx": (nnx.state(NnxTwo(), nnx.Param), ["dense/kernel", "head/kernel"]),
        "haiku": (hk.transform(haiku_model).init(key, x), ["dense/w", "head/w"]),
        "equinox": (eqx.filter(equinox, eqx.is_array), ["dense/weight", "head/weight"]),
        "list": ([jnp.ones((3, 4)), jnp.ones(4), jnp.ones((4, 2))], ["0", "2"]),
        "named tuple": (collections.namedtuple("Params", "w b")(jnp.ones((3, 4)), jnp.ones(4)), ["w"]),
    }
    for framework, (params, names) in trees.items():
        transformation = track_gradient_dynamics()
        state = transformation.init(params)
        assert layer_names(state.mean) == names, framework
        _, new_state = jax.jit(transformation.update)(params, state)
        assert description(new_state) == description(state), framework


def test_orbax_saves_and_restores(tmp_path):
    params = random_tree()
    optimizer = optax.chain(track_gradient_dynamics(), optax.sgd(0.1, momentum=0.9))
    _, state = optimizer.update(params, optimizer.init(params), params)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", jax.tree.map(jnp.zeros_like, state))
    chex.assert_trees_all_equal(restored, state)
    assert isinstance(gradient_dynamics(restored), GradientDynamicsState)
    _, resumed = optimizer.update(params, restored, params)
    assert gradient_dynamics(resumed).step == 2


def test_tree_map_params_leaves_the_statistics_alone():
    """The statistics have no axes that a parameter's partition spec could speak of."""
    params = random_tree()
    optimizer = optax.chain(track_gradient_dynamics(), optax.sgd(0.1, momentum=0.9))
    specs = jax.tree.map(lambda x: P(*["x"] * x.ndim), params)
    state_specs = optax.tree_map_params(
        optimizer,
        lambda _, spec: spec,
        optimizer.init(params),
        specs,
        transform_non_params=lambda _: P(),
    )
    assert state_specs[1][0].trace == specs
    is_spec = lambda x: isinstance(x, P)  # noqa: E731
    assert jax.tree.structure(state_specs, is_leaf=is_spec) == jax.tree.structure(optimizer.init(params))
    assert set(jax.tree.leaves(state_specs[0], is_leaf=lambda x: isinstance(x, P))) == {P()}


def test_nothing_waits_for_the_device():
    """No value is read on the host, so tracking never stalls the steps ahead of it."""
    grads = random_tree()
    transformation = track_gradient_dynamics()
    state = transformation.init(grads)
    with jax.transfer_guard_device_to_host("disallow_explicit"):
        _, state = jax.jit(transformation.update)(grads, state)
        jaxpr = str(jax.make_jaxpr(transformation.update)(grads, state))
    assert "callback" not in jaxpr
