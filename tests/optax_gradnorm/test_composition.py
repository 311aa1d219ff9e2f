"""Inside optax: chains, wrappers, and where a state has to travel."""

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

FACTORIES = {
    "znorm": optax_gradnorm.znorm,
    "gan": optax_gradnorm.gan,
    "centralize": optax_gradnorm.centralize,
}
each_factory = pytest.mark.parametrize("factory", FACTORIES.values(), ids=FACTORIES)


@functools.cache
def params():
    generator = np.random.default_rng(0)
    return {
        "kernel": jnp.asarray(generator.standard_normal((6, 4)), jnp.float32),
        "bias": jnp.asarray(generator.standard_normal(4), jnp.float32),
    }


@functools.cache
def gradients(seed=1):
    generator = np.random.default_rng(seed)
    return jax.tree.map(lambda p: jnp.asarray(generator.standard_normal(p.shape) + 0.3, p.dtype), params())


@pytest.fixture
def standard_promotion():
    """For wrappers of optax, which are not written for strict promotion."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def standard(optimizer):
    """The same for one member of a chain, so that ours stays under strict promotion."""

    def update(updates, state, params=None):
        with jax.numpy_dtype_promotion("standard"):
            return optimizer.update(updates, state, params)

    return optax.GradientTransformation(optimizer.init, update)


def assert_close(left, right, tolerance=2e-6):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.abs(a - b).max(initial=0) <= tolerance * max(1, np.abs(b).max(initial=0))


def same_kind(left, right):
    return jax.tree.structure(left) == jax.tree.structure(right) and all(
        (a.shape, a.dtype, a.weak_type) == (b.shape, b.dtype, b.weak_type)
        for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    )


def transformed(factory, grads):
    """The first update of the transformation alone."""
    transformation = factory()
    return jax.jit(lambda g: transformation.update(g, transformation.init(g))[0])(grads)


OPTIMIZERS = {
    "sgd with momentum": lambda: optax.sgd(0.1, momentum=0.9),
    "adam": lambda: optax.adam(0.1),
    "adamw": lambda: optax.adamw(0.1),
    "rmsprop": lambda: optax.rmsprop(0.1),
    "lars": lambda: optax.lars(0.1),
    "lamb": lambda: optax.lamb(0.1),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@each_factory
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
        assert same_kind(before, states)
    assert update._cache_size() == 1
    assert same_kind(optax.apply_updates(params(), updates), params())


@each_factory
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
@each_factory
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


@each_factory
def test_inject_learning_rate_around_a_chain(factory):
    @optax.inject_hyperparams
    def optimizer(learning_rate):
        return optax.chain(factory(), optax.sgd(learning_rate))

    tx = optimizer(learning_rate=0.5)
    updates, _ = jax.jit(tx.update)(gradients(), tx.init(params()), params())
    assert_close(updates, jax.tree.map(lambda u: -0.5 * u, transformed(factory, gradients())))


@each_factory
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


@each_factory
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
@each_factory
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


def optimizer_with(factory):
    return optax.chain(factory(), standard(optax.adam(0.1)))


@each_factory
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


@each_factory
def test_donated_state_and_gradients(factory):
    optimizer = optimizer_with(factory)
    expected = jax.jit(optimizer.update)(gradients(), optimizer.init(params()))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(state, grads):
        updates, state = optimizer.update(grads, state)
        return state, updates

    state = optimizer.init(params())
    result, updates = update(state, jax.tree.map(jnp.copy, gradients()))
    # What the update does not read (last step's sigma and scale) jit leaves alone.
    used = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim > 0]
    used += [part.first_sigma for part in state if isinstance(part, optax_gradnorm.GanState)]
    assert all(leaf.is_deleted() for leaf in used)
    assert_close((updates, result), expected, 1e-5)
    result, _ = update(result, jax.tree.map(jnp.copy, gradients(2)))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result))


@each_factory
def test_state_does_not_alias_parameters(factory):
    own = {id(leaf) for leaf in jax.tree.leaves(params())}
    leaves = jax.tree.leaves(factory().init(params()))
    assert not own & {id(leaf) for leaf in leaves}
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)


@each_factory
def test_pickle(factory):
    optimizer = optimizer_with(factory)
    update = jax.jit(optimizer.update)
    _, state = update(gradients(1), optimizer.init(params()))
    restored = pickle.loads(pickle.dumps(state))
    assert same_kind(jax.tree.map(jnp.asarray, restored), state)
    assert_close(update(gradients(2), restored), update(gradients(2), state), 0)


@each_factory
def test_orbax(factory, tmp_path):
    optimizer = optimizer_with(factory)
    update = jax.jit(optimizer.update)
    _, state = update(gradients(1), optimizer.init(params()))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", jax.eval_shape(optimizer.init, params()))
    assert same_kind(restored, state)
    assert_close(restored, state, 0)
    assert_close(update(gradients(2), restored), update(gradients(2), state), 0)


@each_factory
def test_tree_map_params(factory):
    """Optax tells the parameters in a state from the rest: a GAN state has none."""
    optimizer = optimizer_with(factory)
    state = optimizer.init(params())
    marked = optax.tree_map_params(
        optimizer, lambda p: "parameter", state, transform_non_params=lambda _: "other"
    )
    assert jax.tree.structure(marked) == jax.tree.structure(state)
    counts = [jax.tree.leaves(marked).count(mark) for mark in ("parameter", "other")]
    assert counts == [4, 4 if factory is optax_gradnorm.gan else 1]


@each_factory
def test_vmap(factory):
    """One update per member of an ensemble."""
    transformation = factory()
    members = [gradients(seed) for seed in (1, 2, 3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    states = jax.vmap(transformation.init)(stacked)
    updates, _ = jax.jit(jax.vmap(transformation.update))(stacked, states)
    for i, member in enumerate(members):
        assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], updates), transformed(factory, member))


@each_factory
def test_eval_shape(factory):
    transformation = factory()
    shapes = jax.eval_shape(lambda p: transformation.update(p, transformation.init(p)), params())
    actual = transformation.update(params(), transformation.init(params()))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), shapes) == jax.tree.map(
        lambda x: (x.shape, x.dtype), actual
    )


@each_factory
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


@each_factory
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


@each_factory
@pytest.mark.parametrize("differentiate", [jax.jacrev, jax.jacfwd])
def test_derivative_where_every_layer_is_constant_is_finite(factory, differentiate):
    transformation = factory()
    jacobian = differentiate(lambda g: transformation.update([g], transformation.init([g]))[0][0])
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
