"""Inside optax: chains and wrappers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_gradnorm

from . import reference
from .chains import assert_close, standard, transformed
from .tables import description, each_normalizer, each_transformation, gradients, params

OPTIMIZERS = {
    "sgd with momentum": lambda: optax.sgd(0.1, momentum=0.9),
    "adam": lambda: optax.adam(0.1),
    "adamw": lambda: optax.adamw(0.1),
    "rmsprop": lambda: optax.rmsprop(0.1),
    "lars": lambda: optax.lars(0.1),
    "lamb": lambda: optax.lamb(0.1),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@each_normalizer
def test_chain(factory, optimizer):
    """Two steps of the chain are those of the optimizer on transformed gradients, compiled once."""
    alone, transformation = standard(optimizer()), factory()
    chain = optax.chain(transformation, alone)

    @jax.jit
    def update(grads, chain_state, inner_state, alone_state):
        inner, inner_state = transformation.update(grads, inner_state)
        expected, alone_state = alone.update(inner, alone_state, params())
        updates, chain_state = chain.update(grads, chain_state, params())
        return (updates, expected), (chain_state, inner_state, alone_state)

    states = chain.init(params()), transformation.init(params()), alone.init(params())
    for seed in (1, 2):
        before = states
        (updates, expected), states = update(gradients(seed), *states)
        assert_close(updates, expected, 1e-5)
        assert description(before) == description(states)
    assert update._cache_size() == 1
    assert description(optax.apply_updates(params(), updates)) == description(params())


@each_transformation
def test_second_update_is_not_traced(factory):
    traces = []

    def counting(tree):
        traces.append(1)
        return jax.tree.map(lambda leaf: leaf.ndim > 1, tree)

    transformation = factory(mask=counting)
    state = transformation.init(params())
    update = jax.jit(transformation.update)
    traces.clear()
    for seed in (1, 2, 3):
        _, state = update(gradients(seed), state)
    assert len(traces) == 1
    assert update._cache_size() == 1


@pytest.mark.usefixtures("standard_promotion")
@each_normalizer
def test_multi_steps(factory):
    """Two half batches give the update of the whole one."""
    optimizer = optax.MultiSteps(optax.chain(factory(), optax.sgd(0.1)), every_k_schedule=2)
    state = optimizer.init(params())
    update = jax.jit(optimizer.update)
    updates, state = update(gradients(1), state, params())
    assert_close(updates, jax.tree.map(jnp.zeros_like, updates))
    updates, state = update(gradients(2), state, params())
    mean = jax.tree.map(lambda a, b: (a + b) / 2, gradients(1), gradients(2))
    assert_close(updates, jax.tree.map(lambda u: -0.1 * u, transformed(factory, mean)), 1e-5)
    assert update._cache_size() == 1


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_inject_eps(jit):
    """Nothing but eps is numeric, so nothing else has to be named."""
    znorm = optax.inject_hyperparams(optax_gradnorm.znorm)(eps=0.5)
    state = znorm.init(params())
    assert set(state.hyperparams) == {"eps"}
    update = jax.jit(znorm.update) if jit else znorm.update
    for eps in (0.5, 2.0):
        state.hyperparams["eps"] = jnp.asarray(eps, jnp.float32)
        updates, state = update(gradients(), state, params())
        assert reference.error(updates["kernel"], reference.znorm(gradients()["kernel"], eps)) <= 2e-6
    if jit:
        assert update._cache_size() <= 2


def test_inject_an_eps_schedule():
    znorm = optax.inject_hyperparams(optax_gradnorm.znorm)(eps=optax.linear_schedule(1.0, 0.0, 2))
    state = znorm.init(params())
    update = jax.jit(znorm.update)
    for eps in (1.0, 0.5, 0.0):
        updates, state = update(gradients(), state, params())
        assert reference.error(updates["kernel"], reference.znorm(gradients()["kernel"], eps)) <= 2e-6


def test_inject_other_arguments_as_static():
    """Optax traces every number and calls every function as a schedule, unless static_args names it."""
    factories = {
        "stacked_axes": lambda: optax.inject_hyperparams(optax_gradnorm.znorm, "stacked_axes")(
            stacked_axes=0
        ),
        "mask": lambda: optax.inject_hyperparams(optax_gradnorm.znorm, "mask")(
            mask=lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree)
        ),
        "autoscale": lambda: optax.inject_hyperparams(optax_gradnorm.gan, "autoscale")(),
        "feature_axis": lambda: optax.inject_hyperparams(optax_gradnorm.centralize, "feature_axis")(),
    }
    plain = {"autoscale": optax_gradnorm.gan, "feature_axis": optax_gradnorm.centralize}
    for name, factory in factories.items():
        injected = factory()
        updates, _ = jax.jit(injected.update)(gradients(), injected.init(params()), params())
        assert_close(updates, transformed(plain.get(name, optax_gradnorm.znorm), gradients()))


def test_inject_says_what_to_name():
    for factory, argument in (
        (functools.partial(optax_gradnorm.znorm, stacked_axes=0), "stacked_axes"),
        (optax_gradnorm.centralize, "feature_axis"),
    ):
        injected = optax.inject_hyperparams(factory)()
        with pytest.raises(TypeError, match=f"{argument} must be a Python integer.*static_args"):
            jax.jit(injected.update)(gradients(), injected.init(params()), params())


@each_normalizer
def test_inject_learning_rate_around_a_chain(factory):
    @optax.inject_hyperparams
    def optimizer(learning_rate):
        return optax.chain(factory(), optax.sgd(learning_rate))

    tx = optimizer(learning_rate=0.5)
    updates, _ = jax.jit(tx.update)(gradients(), tx.init(params()), params())
    assert_close(updates, jax.tree.map(lambda u: -0.5 * u, transformed(factory, gradients())))


@each_normalizer
def test_masked(factory):
    tree = {"a": params()["kernel"], "b": params()["kernel"], "bias": params()["bias"]}
    masked = optax.masked(factory(), {"a": True, "b": False, "bias": True})
    updates, _ = jax.jit(masked.update)(tree, masked.init(tree))
    expected = {**tree, "a": transformed(factory, tree["a"])}
    assert_close(updates, expected)


def test_masked_with_trees_as_arguments():
    """The arguments describe the whole tree; what is masked out of it does not matter."""
    tree = {"a": jnp.stack([params()["kernel"]] * 2), "b": params()["kernel"]}
    znorm = optax_gradnorm.znorm(
        stacked_axes={"a": 1, "b": 0}, mask={"a": True, "b": True}, axis_name={"a": None, "b": None}
    )
    for mask in ({"a": True, "b": False}, {"a": False, "b": True}):
        masked = optax.masked(znorm, mask)
        updates, _ = masked.update(tree, masked.init(tree))
        if mask["a"]:
            assert_close(updates["a"][1], transformed(optax_gradnorm.znorm, tree["b"]))
            assert_close(updates["b"], tree["b"])
        else:
            assert_close(updates["b"], transformed(optax_gradnorm.znorm, tree["b"]))
            assert_close(updates["a"], tree["a"])


@each_normalizer
def test_partition(factory):
    tree = {"encoder": params(), "head": params()}
    grads = {"encoder": gradients(1), "head": gradients(2)}
    optimizer = optax.partition(
        {"normalized": optax.chain(factory(), optax.sgd(1.0)), "plain": optax.sgd(1.0)},
        {"encoder": "normalized", "head": "plain"},
    )
    updates, _ = jax.jit(optimizer.update)(grads, optimizer.init(tree), tree)
    expected = {"encoder": transformed(factory, grads["encoder"]), "head": grads["head"]}
    assert_close(updates, jax.tree.map(jnp.negative, expected))


@pytest.mark.usefixtures("standard_promotion")
@each_normalizer
def test_apply_if_finite(factory):
    """A step with a NaN is skipped whole, and leaves no trace in the state."""
    optimizer = optax.apply_if_finite(optax.chain(factory(), optax.adam(0.1)), max_consecutive_errors=3)
    update = jax.jit(optimizer.update)
    _, good = update(gradients(1), optimizer.init(params()), params())
    bad = {**gradients(2), "kernel": gradients(2)["kernel"].at[0, 0].set(jnp.nan)}
    updates, after_bad = update(bad, good, params())
    assert_close(updates, jax.tree.map(jnp.zeros_like, updates), 0)
    assert_close(after_bad.inner_state, good.inner_state, 0)
    assert int(after_bad.total_notfinite) == 1
    updates, _ = update(gradients(3), after_bad, params())
    expected, _ = update(gradients(3), good, params())
    assert_close(updates, expected, 0)


@each_normalizer
def test_extra_arguments_reach_what_follows(factory):
    """Polyak's step size takes the loss as an argument of `update`; the transformation takes none."""
    chain = optax.chain(factory(), standard(optax.polyak_sgd()))
    state = chain.init(params())
    update = jax.jit(lambda grads, state, value: chain.update(grads, state, params(), value=value))
    half, _ = update(gradients(), state, 0.5)
    whole, _ = update(gradients(), state, 1.0)
    assert_close(jax.tree.map(lambda u: 2 * u, half), whole)
    assert update._cache_size() == 1


@pytest.mark.parametrize("averaged", [None, 0], ids=["layer", "unit"])
def test_training_ends_where_the_gradient_is_constant(averaged):
    """Under SGD the mean of a layer's weights (of a unit's, if centralized) stays; all else reaches its goal."""
    factories = (
        [optax_gradnorm.znorm, optax_gradnorm.gan] if averaged is None else [optax_gradnorm.centralize]
    )
    goal = {"bias": jnp.array([1.0, -1.0, 2.0]), "kernel": jnp.array([[3.0, -2.0], [1.0, 4.0], [0.5, 0.0]])}
    start = jax.tree.map(jnp.zeros_like, goal)

    def loss(weights):
        return sum(jnp.sum((w - g) ** 2) for w, g in zip(weights.values(), goal.values(), strict=True))

    for factory in factories:
        optimizer = optax.chain(factory(), optax.sgd(optax.exponential_decay(0.2, 1, 0.99)))

        def step(carry, _, optimizer=optimizer):
            weights, state = carry
            with jax.numpy_dtype_promotion("standard"):
                updates, state = optimizer.update(jax.grad(loss)(weights), state, weights)
            return (optax.apply_updates(weights, updates), state), None

        (weights, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), length=1000)
        kernel = np.asarray(goal["kernel"])
        expected = {"bias": goal["bias"], "kernel": kernel - kernel.mean(averaged, keepdims=True)}
        assert_close(weights, expected, 1e-2)


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("per_example", [True, False])
def test_in_front_of_a_differentially_private_aggregation(per_example):
    """As the guide says it: every example by itself, or else all of them are one layer."""
    znorm = optax_gradnorm.znorm()
    first = optax.GradientTransformation(
        jax.vmap(znorm.init, in_axes=None, axis_size=3),
        lambda updates, state, params=None: jax.vmap(znorm.update)(updates, state),
    )
    aggregate = optax.contrib.differentially_private_aggregate(1.0, 0.0, 0)
    optimizer = optax.chain(first if per_example else znorm, aggregate)
    examples = [gradients(seed) for seed in (1, 2, 3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *examples)
    updates, _ = optimizer.update(stacked, optimizer.init(params()), params())

    def clipped(grads):
        normalized = {"kernel": reference.znorm(grads["kernel"]), "bias": reference.exact(grads["bias"])}
        norm = np.sqrt(sum(np.sum(leaf**2) for leaf in normalized.values()))
        return jax.tree.map(lambda leaf: leaf / max(norm, 1), normalized)

    expected = jax.tree.map(lambda *leaves: sum(leaves) / 3, *map(clipped, examples))
    errors = [reference.error(updates[name], expected[name]) for name in expected]
    assert max(errors) <= 1e-6 if per_example else max(errors) > 1e-3
