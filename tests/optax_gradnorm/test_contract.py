"""One contract for every transformation: what it does to each dtype and each kind of leaf."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_gradnorm

from . import reference
from .tables import LEAVES, description, each_transformation, first_update, gaussian

DTYPES = [jnp.float16, jnp.bfloat16, jnp.float32, jnp.complex64]


def weights(dtype):
    return gaussian(7, 5, mean=0.5, dtype=dtype)


def identical(left, right):
    left, right = jax.tree.leaves(left), jax.tree.leaves(right)
    return len(left) == len(right) and all(
        a.dtype == b.dtype and a.shape == b.shape and np.asarray(a).tobytes() == np.asarray(b).tobytes()
        for a, b in zip(left, right, strict=True)
    )


@functools.cache
def contract(factory, dtype):
    """One compiled update of a tree with every kind of leaf beside ordinary weights."""
    transformation = factory()
    grads = {"weights": weights(dtype)} | {kind: leaf(dtype) for kind, leaf in LEAVES.items()}
    state = transformation.init(grads)
    return grads, state, *jax.jit(transformation.update)(grads, state)


each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)


@each_dtype
@pytest.mark.parametrize("kind", LEAVES)
@each_transformation
def test_contract_of_a_leaf(factory, kind, dtype):
    grads, _, updates, _ = contract(factory, dtype)
    if kind == "constant" and factory is not optax_gradnorm.track_gradient_dynamics:
        assert identical(updates[kind], jnp.zeros_like(grads[kind]))
    else:
        assert jax.tree.structure(updates[kind]) == jax.tree.structure(grads[kind])
        assert identical(updates[kind], grads[kind])


@each_dtype
@each_transformation
def test_contract_of_the_tree(factory, dtype):
    grads, state, updates, new_state = contract(factory, dtype)
    assert description(updates) == description(grads)
    assert description(new_state) == description(state)
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves((updates, new_state)))
    expected, _ = reference.first_updates(factory.__name__, [grads["weights"], grads["constant"]])
    bound = 2e-6 + float(jnp.finfo(dtype).eps)
    assert reference.error(updates["weights"], expected) <= bound


@each_transformation
def test_trees_without_layers(factory):
    transformation = factory()
    for grads in ({}, [], None, {"a": None}, {"bias": jnp.ones(3)}, optax.MaskedNode(), jnp.ones(())):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="no leaf is a layer")
            state = transformation.init(grads)
        updates, new_state = jax.jit(transformation.update)(grads, state)
        assert jax.tree.structure(updates) == jax.tree.structure(grads)
        assert identical(updates, grads)
        assert description(new_state) == description(state)
        assert all(np.isfinite(leaf) for leaf in jax.tree.leaves(new_state))
        assert getattr(new_state, "global_std", 0) == 0


@each_transformation
def test_a_bare_array_is_a_tree(factory):
    transformation = factory()
    bare, _ = transformation.update(weights(jnp.float32), transformation.init(weights(jnp.float32)))
    inside = {"weights": weights(jnp.float32)}
    wrapped, _ = transformation.update(inside, transformation.init(inside))
    assert identical(bare, wrapped["weights"])


@each_transformation
def test_integer_and_float0_leaves_pass_through(factory):
    """As `jax.grad(..., allow_int=True)` gives them."""
    params = {
        "kernel": weights(jnp.float32),
        "table": jnp.arange(6).reshape(2, 3),
        "flag": jnp.ones((2, 2), bool),
    }
    grads = jax.grad(lambda p: jnp.sum(p["kernel"] ** 2), allow_int=True)(params)
    assert grads["table"].dtype == jax.dtypes.float0
    transformation = factory()
    state = transformation.init(params)
    updates, _ = transformation.update(grads, state)
    assert updates["table"] is grads["table"]
    assert updates["flag"] is grads["flag"]
    expected, _ = transformation.update({"kernel": grads["kernel"]}, state)
    assert identical(updates["kernel"], expected["kernel"])
    updates, _ = jax.jit(transformation.update)(params, state)
    assert identical(updates["table"], params["table"])
    assert identical(updates["flag"], params["flag"])


@each_transformation
def test_numpy_leaves(factory):
    transformation = factory()
    grads = {"kernel": np.asarray(weights(jnp.float32)), "bias": np.ones(3, np.float32)}
    updates, _ = transformation.update(grads, transformation.init(grads))
    expected, _ = transformation.update(jax.tree.map(jnp.asarray, grads), transformation.init(grads))
    assert identical(updates, expected)


CONSTANTS = [1.0, -1.0, 0.1, 1 / 3, 1e-30, -7e-31, 3.3e37, 3e38, 123456.789, 5.877472e-39]


CONSTANT_SHAPES = [(1, 1), (3, 7), (13, 77), (31, 33), (1, 1021), (3, 3, 37, 61), (100_003, 3)]


@pytest.mark.parametrize(
    ("factory", "options"),
    [
        (optax_gradnorm.znorm, {}),
        (optax_gradnorm.znorm, {"eps": 0.0}),
        (optax_gradnorm.gan, {}),
        (optax_gradnorm.centralize, {"feature_axis": ()}),  # so that each layer is one unit
    ],
    ids=["znorm", "znorm without eps", "gan", "centralize"],
)
def test_constant_layers_give_exactly_zero(factory, options):
    """Whatever the order in which XLA adds equal numbers of that many."""
    update = first_update(factory, mask=True, **options)
    for value in CONSTANTS:
        updates, _ = update([jnp.full(shape, value, jnp.float32) for shape in CONSTANT_SHAPES])
        for u in updates:
            # A unit of one weight passes through `centralize`.
            is_unit = u.size == 1 and factory is optax_gradnorm.centralize
            assert is_unit or not np.any(np.asarray(u)), (value, u.shape)


@pytest.mark.parametrize(("shape", "stacked_axes"), [((64, 64), 0), ((4, 8, 8), 0), ((4, 64, 64), 1)])
@each_transformation
def test_layers_that_the_compiler_knows_to_be_constant(factory, shape, stacked_axes):
    """Such as the zeros of a frozen or unused layer: XLA rearranges the arithmetic of what it knows."""
    transformation = factory(stacked_axes=stacked_axes)
    live = gaussian(*shape)

    def update(live, constants):
        return transformation.update([live, *constants], transformation.init([live, *constants]))

    def constants():
        return [jnp.full(shape, value, jnp.float32) for value in (0.0, 1.0, 1e30, 1e-25, 1e-37, 3e38)]

    expected = jax.jit(update)(live, constants())
    found = jax.jit(lambda live: update(live, constants()))(live)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_bad_number_stays_in_its_layer(bad):
    good = {"a": weights(jnp.float32), "bias": jnp.ones(3), "c": weights(jnp.bfloat16)}
    grads = {**good, "b": weights(jnp.float32).at[2, 3].set(bad)}
    for factory in (optax_gradnorm.znorm, optax_gradnorm.centralize):
        update = jax.jit(factory().update)
        updates, _ = update(grads, optax.EmptyState())
        alone, _ = update(good, optax.EmptyState())
        assert identical({k: updates[k] for k in good}, alone)
        finite = np.isfinite(np.asarray(updates["b"]))
        if factory is optax_gradnorm.znorm:
            assert not finite.any()
        else:
            assert not finite[:, 3].any()
            assert finite[:, [0, 1, 2, 4]].all()
    stack = jnp.stack([grads["a"], grads["b"], grads["a"]])
    finite = np.isfinite(np.asarray(first_update(optax_gradnorm.znorm, stacked_axes=1)(stack)[0]))
    assert finite[[0, 2]].all()
    assert not finite[1].any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_gan_recovers_from_a_bad_step(bad):
    gan = optax_gradnorm.gan()
    update = jax.jit(gan.update)
    good = {"a": weights(jnp.float32), "b": 3 * weights(jnp.float32), "bias": jnp.ones(2)}
    worse = {**good, "a": good["a"].at[0, 0].set(bad)}
    fresh_updates, fresh_state = update(good, gan.init(good))

    # At the first step: nothing is remembered.
    updates, state = update(worse, gan.init(good))
    assert float(state.first_sigma) == 0
    assert not np.isfinite(float(state.sigma))
    assert identical(updates["bias"], good["bias"])
    updates, state = update(good, state)
    assert identical((updates, state), (fresh_updates, fresh_state))

    # Later: the first deviation stays.
    _, state = update(worse, state)
    assert identical(state.first_sigma, fresh_state.first_sigma)
    updates, state = update(good, state)
    assert identical((updates, state), (fresh_updates, fresh_state))


def test_gan_does_not_remember_an_overflow():
    """The modulus of complex64 may exceed what float32 holds, though both of its parts are finite."""
    gan = optax_gradnorm.gan()
    good = weights(jnp.complex64)
    huge = jnp.where(jnp.arange(35).reshape(7, 5) % 2 == 0, 3e38, -3e38) * jnp.asarray(1 + 1j, jnp.complex64)
    _, state = gan.update(huge, gan.init(huge))
    assert not np.isfinite(float(state.sigma))
    assert float(state.first_sigma) == 0
    assert identical(gan.update(good, state), gan.update(good, gan.init(good)))


def test_gan_with_an_all_zero_first_step():
    gan = optax_gradnorm.gan()
    update = jax.jit(gan.update)
    good = {"a": weights(jnp.float32)}
    zero = jax.tree.map(jnp.zeros_like, good)
    updates, state = update(zero, gan.init(good))
    assert not np.any(np.asarray(updates["a"]))
    assert float(state.first_sigma) == 0
    assert np.isfinite(jax.tree.leaves(state)).all()
    assert identical(update(good, state), update(good, gan.init(good)))
    # An all-zero step later changes nothing that is remembered.
    _, state = update(good, state)
    updates, later = update(zero, state)
    assert not np.any(np.asarray(updates["a"]))
    assert identical(later.first_sigma, state.first_sigma)


def test_masks():
    grads = {
        "a": {"kernel": weights(jnp.float32), "bias": jnp.arange(3.0)},
        "b": {"kernel": weights(jnp.float32)},
    }
    normal = {"a": {"kernel": True, "bias": False}, "b": {"kernel": True}}
    expected, _ = first_update(optax_gradnorm.znorm)(grads)
    for mask in (
        normal,
        lambda tree: normal,
        jax.tree.map(np.bool_, normal),
        lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree),
    ):
        assert identical(first_update(optax_gradnorm.znorm, mask=mask)(grads)[0], expected)

    updates = first_update(optax_gradnorm.znorm, mask={"a": True, "b": False})(grads)[0]
    assert reference.error(updates["a"]["bias"], reference.znorm(grads["a"]["bias"])) <= 2e-6
    assert identical(updates["a"]["kernel"], expected["a"]["kernel"])
    assert identical(updates["b"], grads["b"])

    for mask in (False, {"a": False, "b": False}):
        assert identical(first_update(optax_gradnorm.znorm, mask=mask)(grads)[0], grads)
    updates = first_update(optax_gradnorm.gan, mask=True)(grads)[0]
    for u, e in zip(jax.tree.leaves(updates), reference.gan(jax.tree.leaves(grads)), strict=True):
        assert reference.error(u, e) <= 2e-6


def test_masked_scalar_is_a_layer_of_one_element():
    for factory in (optax_gradnorm.znorm, optax_gradnorm.gan):
        transformation = factory(mask=True)
        scalar = jnp.asarray(3.0, jnp.float32)
        update, _ = transformation.update(scalar, transformation.init(scalar))
        assert float(update) == 0
