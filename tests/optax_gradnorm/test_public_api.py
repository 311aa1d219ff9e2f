"""The public names: curated, documented, and with the signatures that users call."""

import inspect
import re
import types

import pytest

import optax_gradnorm

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


@pytest.mark.parametrize("name", ["znorm", "gan", "centralize"])
def test_transformations_cite_their_paper(name):
    assert re.search(r"arxiv\.org/abs/\d{4}\.\d{5}", inspect.getdoc(getattr(optax_gradnorm, name)))
