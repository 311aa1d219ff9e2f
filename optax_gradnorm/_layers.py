"""What counts as a layer: masks, stacked leaves, mesh axes, and layer names."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

PyTree = Any
Mask = PyTree | Callable[[PyTree], PyTree] | None
StackedAxes = int | PyTree | Callable[[PyTree], PyTree] | None
AxisName = str | tuple[str, ...] | PyTree | Callable[[PyTree], PyTree] | None


class Layer(NamedTuple):
    """How the statistics of one eligible leaf are taken."""

    stacked_axes: int
    axis_names: tuple[str, ...]

    def own_axes(self, ndim: int) -> tuple[int, ...]:
        """Axes of the leaf that lie inside one layer."""
        return tuple(range(self.stacked_axes, ndim))


Resolver = Callable[[PyTree], list[Layer | None]]


def layer_resolver(mask: Mask, stacked_axes: StackedAxes, axis_name: AxisName) -> Resolver:
    """Builds the function that says, for each leaf of a tree, whether it is a layer.

    Args:
      mask: booleans, a prefix of the tree or a function of it; `None` takes every leaf with more than
        one dimension of its own.
      stacked_axes: number of leading axes that index separate layers; `None` is 0.
      axis_name: mesh axes over which a leaf is sharded.

    Returns:
      A function from a tree to one `Layer`, or `None` for a leaf that passes through, per leaf.

    Raises:
      TypeError, ValueError: an argument is wrong. What depends on the tree is raised by the returned
        function, which transformations call in `init`.
    """
    stacked_axes = 0 if stacked_axes is None else stacked_axes
    # A bare value is checked now; pytrees and functions have to wait for the tree.
    checks = [(mask, _check_mask), (stacked_axes, _check_stacked_axes), (axis_name, _check_axis_names)]
    for option, check in checks:
        if not _is_function(option) and jax.tree_util.all_leaves([option]):
            check(option)

    def resolve(tree: PyTree) -> list[Layer | None]:
        paths_and_leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
        count = len(paths_and_leaves)
        if not any(hasattr(leaf, "shape") for _, leaf in paths_and_leaves):
            return [None] * count  # optax.tree_map_params calls `init` with a placeholder for the whole tree.
        masks = [None] * count if mask is None else _per_leaf("mask", mask, tree)
        stacks = _per_leaf("stacked_axes", stacked_axes, tree)
        names = _per_leaf("axis_name", axis_name, tree, is_leaf=_is_axis_name)
        return [
            _resolve_leaf(
                path,
                leaf,
                None if m is None else _check_mask(m),
                _check_stacked_axes(s),
                _check_axis_names(n),
            )
            for (path, leaf), m, s, n in zip(paths_and_leaves, masks, stacks, names, strict=True)
        ]

    return resolve


def layer_names(tree: PyTree) -> list[str]:
    """Names every leaf of a tree by its path.

    Args:
      tree: parameters, gradients or per-layer statistics in any container: an `nnx.State` (of
        variables or of plain arrays), Flax linen or Haiku dictionaries, an Equinox module, lists.

    Returns:
      One name per leaf, in the order of `jax.tree.leaves(tree)`, its parts joined by slashes. The box
      that Flax puts around an array (`nnx.Param`, `linen.Partitioned`) leaves no trace, so the names of
      an `nnx.Optimizer`'s parameters and of its gradients are the same. The statistics that
      `gradient_dynamics` returns give the names of the layers alone, without biases.

    Raises:
      Nothing: a bare leaf has the empty name.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax_gradnorm
      >>> params = {"conv": {"kernel": jnp.ones((3, 3, 1, 8))}, "dense": [jnp.ones((8, 2))]}
      >>> optax_gradnorm.layer_names(params)
      ['conv/kernel', 'dense/0']
    """
    names = []
    for path, node in jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_flax_box)[0]:
        names += [_name(path)] * len(jax.tree.leaves(node))
    return names


def _name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _is_flax_box(node: Any) -> bool:
    # By name, so that the library does not import Flax.
    return any(
        base.__name__ in ("Variable", "AxisMetadata") and base.__module__.startswith("flax.")
        for base in type(node).__mro__
    )


def _is_function(option: Any) -> bool:
    # An Equinox module of booleans is callable too, but it is a tree and not a leaf.
    return callable(option) and jax.tree_util.all_leaves([option])


def _is_axis_name(node: Any) -> bool:
    return node is None or (isinstance(node, tuple) and all(isinstance(name, str) for name in node))


def _per_leaf(argument: str, option: Any, tree: PyTree, is_leaf=None) -> list[Any]:
    """Broadcasts an option, a function of the tree or a prefix of it, to one value per leaf."""
    if _is_function(option):
        option = option(tree)
    try:
        broadcast = jax.tree.map(
            lambda value, subtree: [value] * len(jax.tree.leaves(subtree)), option, tree, is_leaf=is_leaf
        )
    except (ValueError, TypeError) as error:
        # JAX says on several lines where they differ, and calls the option the "tree_map tree".
        reason = " ".join(str(error).split()).replace("tree_map tree", argument)
        raise ValueError(
            f"{argument} must have the structure of the gradients, or a prefix of it: {reason}"
        ) from None
    return jax.tree.leaves(broadcast, is_leaf=is_leaf)


def check_integer(argument: str, value: Any) -> int:
    """Returns a static integer, NumPy's and concrete scalars of JAX included."""
    if isinstance(value, jax.core.Tracer):
        raise TypeError(
            f"{argument} must be a Python integer, got the traced {value}; "
            "under optax.inject_hyperparams name it in static_args"
        )
    number = value.item() if isinstance(value, jax.Array | np.ndarray) and value.ndim == 0 else value
    if isinstance(number, bool | np.bool_) or not isinstance(number, int | np.integer):
        raise TypeError(f"{argument} must be an integer, got {value!r}")
    return int(number)


def _check_mask(value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"mask must hold booleans, got {value!r}")
    return bool(value)


def _check_stacked_axes(value: Any) -> int:
    value = check_integer("stacked_axes", value)
    if value < 0:
        raise ValueError(f"stacked_axes must not be negative, got {value}")
    return value


def _check_axis_names(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        return (value,)
    if _is_axis_name(value):
        return value
    raise TypeError(f"axis_name must hold mesh axis names, got {value!r}")


def _resolve_leaf(path, leaf, mask: bool | None, stacked_axes: int, axis_names: tuple[str, ...]):
    shape = getattr(leaf, "shape", ())
    dtype = getattr(leaf, "dtype", None)
    if mask and stacked_axes > len(shape):
        raise ValueError(f"stacked_axes is {stacked_axes} for {_name(path)!r}, whose shape is {shape}")
    eligible = len(shape) - stacked_axes > 1 if mask is None else mask
    if not eligible or dtype is None or 0 in shape or not jnp.issubdtype(dtype, jnp.inexact):
        return None
    return Layer(stacked_axes, axis_names)
