"""track_gradient_dynamics: where its state can go, and how it is found again."""

import collections

import chex
import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from jax.sharding import PartitionSpec as P

import optax_gradnorm
from optax_gradnorm import gradient_dynamics, layer_names, track_gradient_dynamics

from . import reference
from .dynamics import assert_records
from .tables import description, nested


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
    grads = nested()
    optimizer = WRAPPERS[wrapper](track_gradient_dynamics())
    state = optimizer.init(grads)
    assert gradient_dynamics(state).num_updates == 0
    update = jax.jit(optimizer.update)
    _, new_state = update(grads, state, grads)
    assert description(new_state) == description(state)
    assert_records(gradient_dynamics(new_state), grads)
    _, new_state = update(grads, new_state, grads)
    assert gradient_dynamics(new_state).num_updates == 2


@pytest.mark.usefixtures("standard_promotion")
def test_multi_steps_record_the_accumulated_gradient():
    first, second = nested(0), nested(1)
    optimizer = optax.MultiSteps(optax.chain(track_gradient_dynamics(), optax.sgd(0.1)), 2)
    state = optimizer.init(first)
    _, state = jax.jit(optimizer.update)(first, state, first)
    assert gradient_dynamics(state).num_updates == 0
    _, state = jax.jit(optimizer.update)(second, state, first)
    average = jax.tree.map(lambda a, b: (a + b) / 2, first, second)
    assert gradient_dynamics(state).num_updates == 1
    assert_records(gradient_dynamics(state), average)


def test_skipped_steps_are_not_recorded():
    grads = nested()
    bad = jax.tree.map(lambda x: x * jnp.nan, grads)
    optimizer = optax.apply_if_finite(optax.chain(track_gradient_dynamics(), optax.sgd(0.1)), 3)
    _, state = optimizer.update(grads, optimizer.init(grads))
    _, state = optimizer.update(bad, state)
    assert gradient_dynamics(state).num_updates == 1
    assert_records(gradient_dynamics(state), grads)


def test_partition_tracks_its_own_leaves():
    grads = nested()
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
    params = nested()
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


@pytest.mark.parametrize("masks", [("a", "ab"), ("ab", "a")], ids=["unfrozen", "frozen"])
def test_a_mask_that_changes_in_mid_training(masks):
    """Freezing and unfreezing: the line names the mask and says both ways out, which work."""
    params = {"a": jnp.arange(4.0).reshape(2, 2), "b": jnp.ones((2, 2))}
    before, after = (track_gradient_dynamics(mask={name: name in mask for name in params}) for mask in masks)
    state = before.init(params)
    with pytest.raises(
        ValueError, match=r"'b'.* if mask has changed, init anew or keep the mask of tracking"
    ) as error:
        after.update(params, state)
    assert "\n" not in str(error.value)
    for transformation, kept in ((after, after.init(params)), (before, state)):
        _, new_state = transformation.update(params, kept)
        assert new_state.num_updates == 1


PER_EXAMPLE = {"kernel": jax.random.normal(jax.random.key(0), (5, 3, 4)), "b": jnp.ones((5, 4))}


def test_per_example_gradients_without_vmap_are_refused():
    """Their first axis looks like one of each layer; a bias becomes a layer."""
    transformation = track_gradient_dynamics()
    state = transformation.init(jax.tree.map(lambda g: g[0], PER_EXAMPLE))
    with pytest.raises(ValueError, match=r"'b', of shape \(5, 4\),.*jax.vmap"):
        transformation.update(PER_EXAMPLE, state)


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
    grads = nested(scale=1e-4)
    optimizer = optax.chain(track_gradient_dynamics(), optax_gradnorm.gan(), track_gradient_dynamics())
    _, state = jax.jit(optimizer.update)(grads, optimizer.init(grads))
    before, behind = gradient_dynamics(state, 0), gradient_dynamics(state, 1)
    gan_state = state[1]
    np.testing.assert_allclose(before.global_std, gan_state.sigma, rtol=1e-6)
    np.testing.assert_allclose(behind.global_std, gan_state.sigma * gan_state.multiplier, rtol=1e-5)
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
        assert dynamics.num_updates == count
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


def test_tree_map_params_leaves_the_statistics_alone():
    """The statistics have no axes that a parameter's partition spec could speak of."""
    params = nested()
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
    grads = nested()
    transformation = track_gradient_dynamics()
    state = transformation.init(grads)
    with jax.transfer_guard_device_to_host("disallow_explicit"):
        _, state = jax.jit(transformation.update)(grads, state)
        jaxpr = str(jax.make_jaxpr(transformation.update)(grads, state))
    assert "callback" not in jaxpr
