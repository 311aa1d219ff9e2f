"""Wrong arguments: one clear line that names the argument and the value, as early as possible.

All transformations pass what they have in common to the same checks: every wrong value is given to `znorm`, and one
of each kind to the others.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_gradnorm

from .tables import each_but_znorm, each_normalizer, each_transformation, each_with_state

GRADS = {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}


def check(error, argument, value):
    message = str(error.value)
    assert "\n" not in message
    assert argument in message
    assert value in message


def refuses(factory, argument, value, exception, shown=None):
    """At once, or at `init` if `value` is a tree or a function of one."""
    shown = str(value) if shown is None else shown
    if isinstance(value, dict | list) or callable(value):
        transformation = factory(**{argument: value})
        with pytest.raises(exception) as error:
            transformation.init(GRADS)
    else:
        with pytest.raises(exception) as error:
            factory(**{argument: value})
    check(error, argument, shown)


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


# Argument, value, exception, and what the message shows if that is not the value itself.
WRONG = {
    "stacked_axes": [
        (-1, ValueError),
        (np.int32(-2), ValueError),
        (True, TypeError),
        (1.0, TypeError),
        ("1", TypeError),
        ({"kernel": -1, "bias": 0}, ValueError, "-1"),
        (lambda tree: -3, ValueError, "-3"),
        ({"kernel": 0.5, "bias": 0}, TypeError, "0.5"),
        ({"kernel": True, "bias": 0}, TypeError, "True"),
        ({"kernel": 0}, ValueError, "bias"),
        ({"kernel": 0, "other": 0}, ValueError, "other"),
        ([0, 0], ValueError, "list"),
    ],
    "mask": [
        ("kernel", TypeError),
        (1, TypeError),
        (0.5, TypeError),
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
    "axis_name": [
        (3, TypeError),
        (0.5, TypeError),
        (True, TypeError),
        ({"kernel": 3, "bias": None}, TypeError, "3"),
        ({"kernel": "data"}, ValueError, "bias"),
        (lambda tree: {"kernel": "data"}, ValueError, "bias"),
        (["data", "model"], ValueError, "list"),
    ],
}
WRONG["stacked_axis_name"] = WRONG["axis_name"]


@pytest.mark.parametrize(
    ("argument", "row"), [(argument, row) for argument, rows in WRONG.items() for row in range(len(rows))]
)
def test_wrong_arguments(argument, row):
    refuses(optax_gradnorm.znorm, argument, *WRONG[argument][row])


@pytest.mark.parametrize("argument", WRONG)
@each_but_znorm
def test_the_others_check_alike(factory, argument):
    """One value at once, and a tree when there is one to compare with."""
    value, tree = WRONG[argument][0], next(row for row in WRONG[argument] if isinstance(row[0], dict))
    refuses(factory, argument, *value)
    refuses(factory, argument, *tree)


@each_transformation
def test_more_stacked_axes_than_a_masked_leaf_has(factory):
    with pytest.raises(ValueError, match=r"stacked_axes is 3 for 'kernel'.*\(4, 3\)") as error:
        factory(stacked_axes=3, mask={"kernel": True, "bias": False}).init(GRADS)
    check(error, "stacked_axes", "3")


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


@each_transformation
def test_options_are_keywords(factory):
    with pytest.raises(TypeError):
        factory(1e-8, None)


@each_transformation
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


@each_transformation
def test_one_axis_with_two_meanings_at_build(factory):
    with pytest.raises(ValueError, match="axis_name and stacked_axis_name both name 'x'"):
        factory(axis_name=("y", "x"), stacked_axis_name="x")


@each_normalizer
def test_numpy_gradients_in_double_precision(factory):
    """JAX takes them in single precision unless told otherwise, without a warning, as in Adam."""
    gradients = {"kernel": np.arange(12.0).reshape(3, 4)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        transformation = factory()
        updates, _ = transformation.update(gradients, transformation.init(gradients))
    assert updates["kernel"].dtype == jnp.float32


@each_with_state
@pytest.mark.parametrize(
    "state", [optax.EmptyState(), (), None, {"sigma": 1.0}], ids=lambda s: type(s).__name__
)
def test_the_state_of_another_transformation(factory, state):
    """As when a chain is rebuilt in another order, and its state is not."""
    with pytest.raises(
        TypeError, match=f"state must be the .* that {factory.__name__}'s init gives"
    ) as error:
        factory().update(GRADS, state)
    check(error, "state", type(state).__name__)
