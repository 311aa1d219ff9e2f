"""Arguments of the transformations: one value for all leaves, a pytree, or a function of the tree."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.core
import numpy as np
import optax

from optax_gradnorm._names import PyTree, path_parts

Mask = PyTree | Callable[[PyTree], PyTree] | None
StackedAxes = int | PyTree | Callable[[PyTree], PyTree] | None
AxisName = str | tuple[str, ...] | PyTree | Callable[[PyTree], PyTree] | None
FeatureAxis = int | tuple[int, ...] | PyTree | Callable[[PyTree], PyTree]

# Stands for a mask's boolean where the default rule decides.
BY_DEFAULT = object()


class Option(NamedTuple):
    """An argument that holds one value for each leaf."""

    value: Any
    check: Callable[[Any], Any]  # of one value, which it returns in its own form
    is_leaf: Callable[[Any], bool] | None = None  # what is one value though it is a container

    @property
    def is_bare(self) -> bool:
        """Whether it is one value for all leaves, so that it can be checked before there is a tree."""
        return not is_function(self.value) and jax.tree_util.all_leaves([self.value], is_leaf=self.is_leaf)


def is_function(option: Any) -> bool:
    # An Equinox module of booleans is callable too, but it is a tree, not a function.
    return callable(option) and jax.tree_util.all_leaves([option])


def is_axis_name(node: Any) -> bool:
    return node is None or (_is_plain_tuple(node) and all(isinstance(name, str) for name in node))


def is_feature_axis(node: Any) -> bool:
    return _is_plain_tuple(node)


def _is_plain_tuple(node: Any) -> bool:
    # A NamedTuple holds one value for each of its fields; it is not itself a value.
    return isinstance(node, tuple) and not hasattr(node, "_fields")


def is_frozen(node: Any) -> bool:
    """Whether this stands in a tree in place of what is not trained, a leaf or a subtree."""
    return node is None or isinstance(node, optax.MaskedNode)


def per_leaf(argument: str, option: Any, tree: PyTree, is_leaf: Callable[[Any], bool] | None) -> list[Any]:
    """Broadcasts an option, a function of the tree or a prefix of it, to one value per leaf."""
    if is_function(option):
        option = option(tree)
    option = _prune(option, tree, is_leaf)
    try:
        broadcast = jax.tree.map(
            lambda value, subtree: [value] * len(jax.tree.leaves(subtree)), option, tree, is_leaf=is_leaf
        )
    except (ValueError, TypeError):
        raise ValueError(
            f"{argument} must have the structure of the gradients, or a prefix of it: "
            f"{_difference(option, tree, is_leaf)}"
        ) from None
    return jax.tree.leaves(broadcast, is_leaf=is_leaf)


def _prune(option: PyTree, tree: PyTree, is_leaf: Callable[[Any], bool] | None) -> PyTree:
    """Drops from an option what it says of frozen parts of a tree."""
    nodes = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_frozen)[0]
    frozen = {path: node for path, node in nodes if is_frozen(node)}
    if not frozen:
        return option
    return jax.tree_util.tree_map_with_path(
        lambda path, value: frozen.get(path, value),
        option,
        is_leaf=lambda path, node: path in frozen or (is_leaf is not None and is_leaf(node)),
        is_leaf_takes_path=True,
    )


def _difference(option: PyTree, tree: PyTree, is_leaf: Callable[[Any], bool] | None) -> str:
    """Where an option is not a prefix of a tree, in words."""

    def paths(tree, is_leaf):
        return [
            path_parts(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)[0]
        ]

    given, wanted = paths(option, is_leaf), paths(tree, None)
    kinds = type(option).__name__, type(tree).__name__
    if kinds[0] != kinds[1]:
        return f"it is a {kinds[0]}, they are a {kinds[1]}"
    for start in given:
        if not any(path[: len(start)] == start for path in wanted):
            return f"there is no {'/'.join(start)!r}"
    for path in wanted:
        if not any(path[: len(start)] == start for start in given):
            return f"it says nothing of {'/'.join(path)!r}"
    return f"it is {jax.tree.structure(option)}, they are {jax.tree.structure(tree)}"


def check_integer(argument: str, value: Any) -> int:
    """Returns a static integer, NumPy's and concrete scalars of JAX included."""
    if isinstance(value, jax.core.Tracer):
        raise TypeError(
            f"{argument} must be a Python integer, got the traced {value}; "
            "under optax.inject_hyperparams name it in static_args"
        )
    number = _item(value)
    if isinstance(number, bool | np.bool_) or not isinstance(number, int | np.integer):
        raise TypeError(f"{argument} must be an integer, got {value!r}")
    return int(number)


def _item(value: Any) -> Any:
    """The Python number in an array without dimensions."""
    is_array = isinstance(value, jax.Array | np.ndarray) and not isinstance(value, jax.core.Tracer)
    return value.item() if is_array and value.ndim == 0 else value


def check_mask(value: Any) -> Any:
    value = value if value is BY_DEFAULT else _item(value)
    if value is not BY_DEFAULT and not isinstance(value, bool | np.bool_):
        raise TypeError(f"mask must hold booleans, got {value!r}")
    return value


def check_stacked_axes(value: Any) -> int:
    value = check_integer("stacked_axes", value)
    if value < 0:
        raise ValueError(f"stacked_axes must not be negative, got {value}")
    return value


def names_checker(argument: str) -> Callable[[Any], tuple[str, ...]]:
    def check(value: Any) -> tuple[str, ...]:
        if value is None:
            return ()
        if isinstance(value, str):
            return (value,)
        if is_axis_name(value):
            return value
        raise TypeError(f"{argument} must hold mesh axis names, got {value!r}")

    return check


def check_feature_axis(value: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple):
        return (check_integer("feature_axis", value),)
    try:
        return tuple(check_integer("feature_axis", axis) for axis in value)
    except TypeError:
        raise TypeError(f"feature_axis must hold integers, got {value!r}") from None


def check_state(state: Any, kind: type, transformation: str) -> None:
    if not isinstance(state, kind):
        raise TypeError(
            f"state must be the {kind.__name__} that {transformation}'s init gives, got {type(state).__name__}"
        )
