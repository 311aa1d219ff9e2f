"""Parameters of Flax NNX and linen, Equinox and Haiku: the same updates and sensible names."""

import functools

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optax_gradnorm
from optax_gradnorm import layer_names

from . import reference
from .tables import each_normalizer, first_update


@pytest.fixture(autouse=True)
def standard_promotion():
    """The frameworks' layers and optax's optimizers are not written for strict promotion."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


INPUTS = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)


class NnxModel(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.stem = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.heads = nnx.List([nnx.Linear(4, 2, rngs=rngs), nnx.Linear(4, 6, rngs=rngs)])

    def __call__(self, x):
        x = nnx.relu(self.norm(self.stem(x)))
        return jnp.concatenate([head(x) for head in self.heads], -1)


def nnx_loss(model):
    return jnp.mean(model(INPUTS) ** 2)


def pure(state):
    return reference.as_pure(state)


def assert_updates(factory, updates, grads):
    """The updates are those of the same arrays in a bare list."""
    leaves, expected = jax.tree.leaves(updates), jax.tree.leaves(grads)
    expected, _ = first_update(factory)(expected)
    assert len(leaves) == len(expected)
    changed = [not np.array_equal(e, g) for e, g in zip(expected, jax.tree.leaves(grads), strict=True)]
    assert any(changed)
    assert not all(changed)
    for u, e in zip(leaves, expected, strict=True):
        assert reference.error(u, reference.exact(e)) <= 1e-5


@each_normalizer
def test_nnx_optimizer(factory):
    """An `nnx.Optimizer` initialises on a State of Params and updates with plain arrays."""
    model = NnxModel()
    optimizer = nnx.Optimizer(model, optax.chain(factory(), optax.sgd(1.0)), wrt=nnx.Param)
    traces = []

    @nnx.jit
    def step(model, optimizer):
        traces.append(1)
        grads = nnx.grad(nnx_loss)(model)
        optimizer.update(model, grads)
        return pure(grads)

    before = jax.tree.map(np.array, pure(nnx.state(model, nnx.Param)))
    grads = step(model, optimizer)
    after = pure(nnx.state(model, nnx.Param))
    assert_updates(factory, jax.tree.map(lambda b, a: b - np.asarray(a), before, after), grads)
    step(model, optimizer)
    assert len(traces) == 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(pure(nnx.state(model, nnx.Param))))


@each_normalizer
def test_nnx_optimizer_with_functions_of_the_tree(factory):
    """The same function has to fit the parameters at `init` and the gradients at `update`."""
    model = NnxModel()

    def only_heads(tree):
        names = layer_names(tree)
        mask = [name.startswith("heads") and name.endswith("kernel") for name in names]
        assert sum(mask) == 2
        return jax.tree.unflatten(jax.tree.structure(tree), mask)

    transformation = factory(mask=only_heads, stacked_axes=lambda tree: 0, axis_name=lambda tree: None)
    optimizer = nnx.Optimizer(model, optax.chain(transformation, optax.sgd(1.0)), wrt=nnx.Param)
    before = jax.tree.map(np.array, pure(nnx.state(model, nnx.Param)))
    grads = nnx.jit(nnx.grad(nnx_loss))(model)
    optimizer.update(model, grads)
    after = pure(nnx.state(model, nnx.Param))
    updates = jax.tree.map(lambda b, a: b - np.asarray(a), before, after)
    grads = pure(grads)
    assert np.allclose(updates["stem"]["kernel"], grads["stem"]["kernel"], atol=1e-6)
    assert_updates(factory, updates["heads"], grads["heads"])


@each_normalizer
def test_nnx_model_with_a_frozen_layer(factory):
    """Its gradient is a zero that the compiler knows."""

    class Model(nnx.Module):
        def __init__(self):
            self.frozen = nnx.Linear(16, 16, rngs=nnx.Rngs(0))
            self.live = nnx.Linear(16, 4, rngs=nnx.Rngs(1))

        def __call__(self, x):
            return self.live(jax.lax.stop_gradient(self.frozen(x)))

    model = Model()
    before = np.asarray(model.frozen.kernel[...])
    chain = optax.chain(factory(), optax_gradnorm.track_gradient_dynamics(), optax.adam(1e-2))
    optimizer = nnx.Optimizer(model, chain, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x):
        loss, grads = nnx.value_and_grad(lambda model: jnp.mean(model(x) ** 2))(model)
        with jax.numpy_dtype_promotion("standard"):
            optimizer.update(model, grads)
        return loss

    losses = [step(model, optimizer, jnp.ones((8, 16))) for _ in range(5)]
    assert losses[-1] < losses[0]
    np.testing.assert_array_equal(model.frozen.kernel[...], before)


def test_nnx_functional_loop():
    """Split once, then pure jit on the state's arrays."""
    graph, parameters, rest = nnx.split(NnxModel(), nnx.Param, ...)
    transformation = optax_gradnorm.gan()
    state = transformation.init(parameters)

    @jax.jit
    def step(parameters, rest, state):
        grads = jax.grad(lambda p: nnx_loss(nnx.merge(graph, p, rest, copy=True)))(parameters)
        updates, state = transformation.update(grads, state)
        return updates, grads, state

    updates, grads, state = step(parameters, rest, state)
    assert_updates(optax_gradnorm.gan, updates, grads)
    step(parameters, rest, state)
    assert step._cache_size() == 1


class LinenModel(nn.Module):
    @nn.compact
    def __call__(self, x):
        kernel_init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
        x = nn.relu(nn.Dense(4, name="stem", kernel_init=kernel_init)(x))
        return nn.Dense(2, name="head")(x)


@functools.cache
def linen_parameters_and_gradients():
    model = LinenModel()
    parameters = jax.jit(model.init)(jax.random.key(0), INPUTS)["params"]
    return parameters, jax.jit(jax.grad(lambda p: jnp.mean(model.apply({"params": p}, INPUTS) ** 2)))(
        parameters
    )


@each_normalizer
@pytest.mark.parametrize("boxed", [False, True], ids=["plain", "partitioned"])
def test_linen(factory, boxed):
    parameters, grads = linen_parameters_and_gradients()
    if not boxed:
        parameters, grads = nn.unbox(parameters), nn.unbox(grads)
    transformation = factory()
    updates, _ = jax.jit(transformation.update)(grads, transformation.init(parameters))
    assert jax.tree.structure(updates) == jax.tree.structure(parameters)
    assert_updates(factory, updates, grads)
    assert layer_names(parameters) == ["head/bias", "head/kernel", "stem/bias", "stem/kernel"]
    assert layer_names(grads) == layer_names(parameters)


def test_linen_scanned_layers():
    """Parameters stacked by `nn.scan` are layers of their own."""

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.tanh(nn.Dense(3)(x)), None

    blocks = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)()
    x = jnp.asarray(INPUTS)
    parameters = jax.jit(blocks.init)(jax.random.key(0), x, None)["params"]
    grads = jax.jit(jax.grad(lambda p: jnp.mean(blocks.apply({"params": p}, x, None)[0] ** 2)))(parameters)
    znorm = optax_gradnorm.znorm(stacked_axes=1)
    updates, _ = znorm.update(grads, znorm.init(parameters))
    kernels = grads["Dense_0"]["kernel"]
    assert kernels.shape == (3, 3, 3)
    for u, kernel in zip(updates["Dense_0"]["kernel"], kernels, strict=True):
        assert reference.error(u, reference.znorm(kernel)) <= 2e-6
    assert np.array_equal(updates["Dense_0"]["bias"], grads["Dense_0"]["bias"])


class EquinoxModel(eqx.Module):
    stem: eqx.nn.Linear
    head: eqx.nn.Linear
    slope: float
    name: str = eqx.field(static=True)

    def __call__(self, x):
        return self.head(jax.nn.leaky_relu(self.stem(x), self.slope))


@functools.cache
def equinox_model_and_gradients():
    keys = jax.random.split(jax.random.key(0))
    model = EquinoxModel(eqx.nn.Linear(3, 4, key=keys[0]), eqx.nn.Linear(4, 2, key=keys[1]), 0.1, "small")

    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(model):
        return jnp.mean(jax.vmap(model)(INPUTS) ** 2)

    return model, gradient(model)


@each_normalizer
def test_equinox(factory):
    model, grads = equinox_model_and_gradients()
    transformation = factory()
    state = transformation.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def update(grads, state):
        return transformation.update(grads, state)

    updates, _ = update(grads, state)
    assert_updates(factory, updates, grads)
    assert layer_names(eqx.filter(model, eqx.is_inexact_array)) == [
        "stem/weight",
        "stem/bias",
        "head/weight",
        "head/bias",
    ]
    assert isinstance(eqx.apply_updates(model, updates), EquinoxModel)


def test_equinox_mask_as_a_module_of_booleans():
    """A module may be callable and still be a tree of booleans."""
    model = eqx.nn.Linear(4, 3, key=jax.random.key(0))
    mask = jax.tree.map(lambda leaf: leaf.ndim == 2, model)
    assert callable(mask)
    znorm = optax_gradnorm.znorm(mask=mask)
    updates, _ = znorm.update(model, znorm.init(model))
    assert reference.error(updates.weight, reference.znorm(model.weight)) <= 2e-6
    assert np.array_equal(updates.bias, model.bias)


def test_equinox_centralize_keeps_output_units():
    """Equinox keeps output features first."""
    grads = eqx.nn.Conv2d(3, 4, 3, use_bias=False, key=jax.random.key(0))
    centralize = optax_gradnorm.centralize(feature_axis=0)
    updates, _ = centralize.update(grads, centralize.init(grads))
    assert np.abs(np.asarray(updates.weight).mean((1, 2, 3))).max() <= 1e-7


@functools.cache
def haiku_parameters_and_gradients():
    def forward(x):
        x = jax.nn.relu(hk.Linear(4, name="stem")(x))
        return hk.nets.MLP([5, 2], name="heads")(x)

    model = hk.without_apply_rng(hk.transform(forward))
    parameters = jax.jit(model.init)(jax.random.key(0), INPUTS)
    return parameters, jax.jit(jax.grad(lambda p: jnp.mean(model.apply(p, INPUTS) ** 2)))(parameters)


@each_normalizer
def test_haiku(factory):
    parameters, grads = haiku_parameters_and_gradients()
    transformation = factory()
    updates, _ = jax.jit(transformation.update)(grads, transformation.init(parameters))
    assert_updates(factory, updates, grads)
    assert layer_names(parameters) == [
        f"{module}/{parameter}"
        for module in ("heads/~/linear_0", "heads/~/linear_1", "stem")
        for parameter in ("b", "w")
    ]


def test_layer_names_of_nnx():
    """The same for a State of Params, of plain arrays, a pure dict, and what an optimizer makes of them."""
    names = [f"heads/{i}/{parameter}" for i in (0, 1) for parameter in ("bias", "kernel")]
    names += ["norm/bias", "norm/scale", "stem/bias", "stem/kernel"]
    parameters = nnx.state(NnxModel(), nnx.Param)
    assert layer_names(parameters) == names
    assert layer_names(pure(parameters)) == names
    assert layer_names(nnx.to_pure_dict(parameters)) == names
    seen = []

    def record(tree):
        seen.append(layer_names(tree))
        return True

    optimizer = nnx.Optimizer(model := NnxModel(), optax_gradnorm.znorm(mask=record), wrt=nnx.Param)
    grads = nnx.jit(nnx.grad(nnx_loss))(model)
    assert layer_names(grads) == names
    optimizer.update(model, grads)
    assert seen == [names, names]


def test_layer_names_of_plain_trees():
    array = jnp.ones((2, 2))
    tree = {
        "a": [array, (array, None)],
        "b": optax.MaskedNode(),
        "c": {"d": array},
        "value": {"value": array},
    }
    assert layer_names(tree) == ["a/0", "a/1/0", "c/d", "value/value"]
    assert layer_names(optax_gradnorm.GanState(array, array, array)) == ["first_sigma", "sigma", "multiplier"]
    assert layer_names(array) == [""]
    assert layer_names(None) == []
    assert len(layer_names(tree)) == len(jax.tree.leaves(tree))
    assert layer_names(jax.tree.map(lambda leaf: 0.5, tree)) == layer_names(tree)
