"""Wrong arguments: one clear line that names the argument and the value, as early as possible."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_gradnorm

FACTORIES = [optax_gradnorm.znorm, optax_gradnorm.gan, optax_gradnorm.centralize]
GRADS = {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}


def check(error, argument, value):
    message = str(error.value)
    assert "\n" not in message
    assert argument in message
    assert value in message


each_factory = pytest.mark.parametrize("factory", FACTORIES, ids=lambda factory: factory.__name__)


@pytest.mark.parametrize(
    ("eps", "exception"),
    [
        (-1e-8, ValueError),
        (-1, ValueError),
        (float("nan"), ValueError),
        (np.float32(-0.5), ValueError),
        (np.asarray(-0.5), ValueError),
        (jnp.asarray(-0.5), ValueError),
        ("1e-8", TypeError),
        (None, TypeError),
        (1j, TypeError),
        (jnp.asarray(1j), TypeError),
        (True, TypeError),
        (np.asarray(True), TypeError),
        ([1e-8], TypeError),
        (lambda step: 1e-8, TypeError),
    ],
    ids=lambda value: value.__name__ if callable(value) else repr(value),
)
def test_eps(eps, exception):
    with pytest.raises(exception) as error:
        optax_gradnorm.znorm(eps)
    check(error, "eps", "" if callable(eps) else str(eps))


def test_eps_may_be_any_number():
    for eps in (0, 0.0, 1e-8, np.float32(1e-8), np.asarray(1e-8), jnp.asarray(1e-8), float("inf")):
        znorm = optax_gradnorm.znorm(eps)
        updates, _ = znorm.update(GRADS, znorm.init(GRADS))
        assert updates["kernel"].dtype == jnp.float32
    updates = jax.jit(lambda eps: optax_gradnorm.znorm(eps).update(GRADS, optax.EmptyState())[0])(1e-3)
    assert updates["kernel"].dtype == jnp.float32


@each_factory
@pytest.mark.parametrize(
    ("value", "exception"),
    [(-1, ValueError), (np.int32(-2), ValueError), (True, TypeError), (1.0, TypeError), ("1", TypeError)],
    ids=repr,
)
def test_stacked_axes_at_build(factory, value, exception):
    with pytest.raises(exception) as error:
        factory(stacked_axes=value)
    check(error, "stacked_axes", str(value))


@each_factory
@pytest.mark.parametrize(
    ("value", "exception", "shown"),
    [
        ({"kernel": -1, "bias": 0}, ValueError, "-1"),
        (lambda tree: -3, ValueError, "-3"),
        ({"kernel": 0.5, "bias": 0}, TypeError, "0.5"),
        ({"kernel": True, "bias": 0}, TypeError, "True"),
        ({"kernel": 0}, ValueError, "bias"),
        ({"kernel": 0, "other": 0}, ValueError, "other"),
        ([0, 0], ValueError, "list"),
    ],
    ids=["negative", "function", "float", "bool", "missing", "other", "list"],
)
def test_stacked_axes_at_init(factory, value, exception, shown):
    with pytest.raises(exception) as error:
        factory(stacked_axes=value).init(GRADS)
    check(error, "stacked_axes", shown)


@each_factory
def test_more_stacked_axes_than_a_masked_leaf_has(factory):
    with pytest.raises(ValueError, match=r"stacked_axes is 3 for 'kernel'.*\(4, 3\)") as error:
        factory(stacked_axes=3, mask={"kernel": True, "bias": False}).init(GRADS)
    check(error, "stacked_axes", "3")


@each_factory
@pytest.mark.parametrize(
    ("value", "exception", "shown"),
    [
        ({"kernel": True}, ValueError, "bias"),
        ({"kernel": True, "bias": True, "head": False}, ValueError, "head"),
        ([True, False], ValueError, "list"),
        ({"kernel": {"deeper": True}, "bias": False}, ValueError, "kernel"),
        (lambda tree: {"kernel": True}, ValueError, "bias"),
        ({"kernel": "yes", "bias": False}, TypeError, "yes"),
        ({"kernel": 1, "bias": False}, TypeError, "1"),
        (lambda tree: jax.tree.map(jnp.ones_like, tree), TypeError, "1."),
        ({"kernel": None, "bias": False}, ValueError, "kernel"),
    ],
    ids=["missing", "other", "list", "deeper", "function", "string", "integer", "array", "None"],
)
def test_mask_at_init(factory, value, exception, shown):
    with pytest.raises(exception) as error:
        factory(mask=value).init(GRADS)
    check(error, "mask", shown)


@each_factory
@pytest.mark.parametrize("value", ["kernel", 1, 0.5], ids=repr)
def test_mask_at_build(factory, value):
    with pytest.raises(TypeError) as error:
        factory(mask=value)
    check(error, "mask", str(value))


@each_factory
@pytest.mark.parametrize("value", [3, 0.5, True], ids=repr)
def test_axis_name_at_build(factory, value):
    with pytest.raises(TypeError) as error:
        factory(axis_name=value)
    check(error, "axis_name", str(value))


@each_factory
@pytest.mark.parametrize(
    ("value", "exception", "shown"),
    [
        ({"kernel": 3, "bias": None}, TypeError, "3"),
        ({"kernel": "data"}, ValueError, "bias"),
        (lambda tree: {"kernel": "data"}, ValueError, "bias"),
        (["data", "model"], ValueError, "list"),
    ],
    ids=["integer", "missing", "function", "list"],
)
def test_axis_name_at_init(factory, value, exception, shown):
    with pytest.raises(exception) as error:
        factory(axis_name=value).init(GRADS)
    check(error, "axis_name", shown)


@pytest.mark.parametrize("value", [1.0, True, "last", (0, 1.5), (True,)], ids=repr)
def test_feature_axis_at_build(value):
    with pytest.raises(TypeError) as error:
        optax_gradnorm.centralize(feature_axis=value)
    check(error, "feature_axis", repr(value))


@pytest.mark.parametrize(("value", "stacked_axes"), [(2, 0), (-3, 0), (5, 0), (1, 1)])
def test_feature_axis_out_of_range(value, stacked_axes):
    grads = {"kernel": jnp.ones((4, 3))}
    mask = {"kernel": True}
    with pytest.raises(ValueError, match="feature_axis") as error:
        optax_gradnorm.centralize(feature_axis=value, stacked_axes=stacked_axes, mask=mask).init(grads)
    check(error, "feature_axis", str(value))


def test_feature_axis_may_be_a_numpy_integer():
    centralize = optax_gradnorm.centralize(feature_axis=np.int64(0))
    updates, _ = centralize.update(GRADS, centralize.init(GRADS))
    assert not np.any(np.asarray(updates["kernel"]))


@pytest.mark.parametrize("value", [0.5, "default", (1, 2)], ids=repr)
def test_autoscale(value):
    with pytest.raises(TypeError) as error:
        optax_gradnorm.gan(autoscale=value)
    check(error, "autoscale", repr(value))


@each_factory
def test_options_are_keywords(factory):
    with pytest.raises(TypeError):
        factory(1e-8, None)


@each_factory
def test_unknown_mesh_axis(factory):
    transformation = factory(axis_name="nowhere")
    with pytest.raises(NameError, match="nowhere"):
        transformation.update(GRADS, transformation.init(GRADS))


@pytest.mark.parametrize(
    ("result", "shown"),
    [
        (jnp.ones(3), r"float32\[3\]"),
        (jnp.asarray(1j), r"complex64\[\]"),
        (jnp.asarray(True), r"bool\[\]"),
        (None, "None"),
        ("half", "half"),
    ],
    ids=["vector", "complex", "boolean", "nothing", "string"],
)
def test_what_autoscale_returns(result, shown):
    gan = optax_gradnorm.gan(autoscale=lambda sigma, first_sigma: result)
    with pytest.raises(TypeError, match=f"autoscale must return a real scalar, got .*{shown}"):
        gan.update(GRADS, gan.init(GRADS))


@each_factory
def test_one_axis_with_two_meanings_at_build(factory):
    with pytest.raises(ValueError, match="axis_name and stacked_axis_name both name 'x'"):
        factory(axis_name=("y", "x"), stacked_axis_name="x")


@each_factory
def test_numpy_gradients_in_double_precision(factory):
    """JAX takes them in single precision unless told otherwise, without a warning, as in Adam."""
    gradients = {"kernel": np.arange(12.0).reshape(3, 4)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        transformation = factory()
        updates, _ = transformation.update(gradients, transformation.init(gradients))
    assert updates["kernel"].dtype == jnp.float32


@pytest.mark.parametrize("name", ["gan", "track_gradient_dynamics"])
@pytest.mark.parametrize(
    "state", [optax.EmptyState(), (), None, {"sigma": 1.0}], ids=lambda s: type(s).__name__
)
def test_the_state_of_another_transformation(name, state):
    """As when a chain is rebuilt in another order, and its state is not."""
    transformation = getattr(optax_gradnorm, name)()
    with pytest.raises(TypeError, match=f"state must be the .* that {name}'s init gives, got") as error:
        transformation.update(GRADS, state)
    check(error, "state", type(state).__name__)
