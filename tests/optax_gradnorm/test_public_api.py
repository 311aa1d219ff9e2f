"""The public names: curated, documented, and with the signatures that users call."""

import dataclasses
import inspect
import re
import sys
import types

import jax
import jax.numpy as jnp
import optax
import optax.contrib
import pytest

import optax_gradnorm

from .tables import each_normalizer

FUNCTIONS = [name for name in optax_gradnorm.__all__ if inspect.isfunction(getattr(optax_gradnorm, name))]
CLASSES = [name for name in optax_gradnorm.__all__ if inspect.isclass(getattr(optax_gradnorm, name))]


def test_all_is_what_there_is():
    public = {
        name
        for name, value in vars(optax_gradnorm).items()
        if not name.startswith("_")
        and (name in optax_gradnorm.__all__ or not isinstance(value, types.ModuleType))
    }
    assert public == set(optax_gradnorm.__all__)
    assert list(optax_gradnorm.__all__) == sorted(optax_gradnorm.__all__)
    assert {"znorm", "gan", "centralize", "layer_names", "GanState", "default_autoscale"} <= public


def sections(docstring):
    return dict(
        re.findall(
            r"^(Args|Returns|Raises|Warns|Examples|References|Attributes):\n((?:^(?:  .*)?\n?)+)",
            docstring,
            re.M,
        )
    )


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_documented(name):
    function = getattr(optax_gradnorm, name)
    docstring = inspect.getdoc(function)
    first_line, blank, *_ = docstring.splitlines()
    assert first_line.endswith(".")
    assert not blank
    found = sections(docstring)
    assert {"Args", "Returns", "Examples"} <= set(found)
    assert ">>> " in found["Examples"]
    documented = re.findall(r"^  (\w+): ", found["Args"], re.M)
    assert documented == list(inspect.signature(function).parameters)
    annotations = inspect.signature(function)
    assert all(p.annotation is not inspect.Parameter.empty for p in annotations.parameters.values())
    assert annotations.return_annotation is not inspect.Signature.empty


@pytest.mark.parametrize("name", CLASSES)
def test_states_are_documented(name):
    state = getattr(optax_gradnorm, name)
    documented = re.findall(r"^  (\w+): ", sections(inspect.getdoc(state))["Attributes"], re.M)
    assert documented == list(state._fields)


@each_normalizer
def test_normalizers_cite_their_paper(factory):
    assert re.search(r"arxiv\.org/abs/\d{4}\.\d{5}", inspect.getdoc(factory))


def fields_of_optax():
    """Every field of every state of optax, core and contrib, with the classes that have it."""
    fields = {}
    modules = [module for name, module in sys.modules.items() if name.split(".")[0] == "optax"]
    for kind in {value for module in modules for value in vars(module).values() if inspect.isclass(value)}:
        names = getattr(kind, "_fields", ())
        if dataclasses.is_dataclass(kind):
            names = [field.name for field in dataclasses.fields(kind)]
        for name in names:
            fields.setdefault(name, set()).add(kind.__name__)
    return fields


@pytest.mark.parametrize("name", CLASSES)
def test_no_field_of_a_state_bears_the_name_of_one_of_optax(name):
    """`optax.tree.get` finds fields by name, and raises where two states have it."""
    theirs = fields_of_optax()
    assert "ReduceLROnPlateauState" in theirs["scale"]
    assert "ScaleByAdamState" in theirs["count"]
    own = getattr(optax_gradnorm, name)._fields
    assert own
    assert {field: theirs[field] for field in own if field in theirs} == {}


@pytest.mark.usefixtures("standard_promotion")
def test_a_plateau_behind_all_transformations_is_found_by_name():
    """As in optax's own example."""
    optimizer = optax.chain(
        optax_gradnorm.track_gradient_dynamics(),
        optax_gradnorm.gan(),
        optax.adam(1e-3),
        optax.contrib.reduce_on_plateau(patience=0, factor=0.5),
    )
    grads = params = {"kernel": jnp.arange(6.0).reshape(2, 3)}
    state = optimizer.init(params)
    for _ in range(3):
        _, state = jax.jit(optimizer.update)(grads, state, params, value=jnp.ones(()))
    assert optax.tree.get(state, "scale") < 1
    assert optax.tree.get(state, "multiplier") == state[1].multiplier
