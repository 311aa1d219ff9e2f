"""What a layer is: the default rule, masks, stacked leaves."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import optax

from optax_gradnorm._arguments import (
    BY_DEFAULT,
    AxisName,
    FeatureAxis,
    Mask,
    Option,
    StackedAxes,
    check_feature_axis,
    check_mask,
    check_stacked_axes,
    is_axis_name,
    is_feature_axis,
    is_frozen,
    names_checker,
    per_leaf,
)
from optax_gradnorm._mesh import sharding_names, varying_axes
from optax_gradnorm._names import PyTree, layer_names, leaf_paths, name_of, names_on, path_parts


class Layer(NamedTuple):
    """How the statistics of one eligible leaf are taken.

    Attributes:
      stacked_axes: how many leading axes index separate layers.
      axes: axes of the leaf over which its statistics run.
      axis_names: mesh axes over which these axes are sharded.
      stacked_axis_names: mesh axes that index separate layers.
    """

    stacked_axes: int
    axes: tuple[int, ...]
    axis_names: tuple[str, ...]
    stacked_axis_names: tuple[str, ...]


Resolver = Callable[[PyTree], list[Layer | None]]


def layer_resolver(
    mask: Mask,
    stacked_axes: StackedAxes,
    axis_name: AxisName,
    stacked_axis_name: AxisName,
    feature_axis: FeatureAxis = (),
) -> Resolver:
    """Builds the function that says, for each leaf of a tree, whether it is a layer.

    Args:
      mask: booleans, a prefix of the tree or a function of it; `None` is the default rule.
      stacked_axes: number of leading axes that index separate layers; `None` is 0.
      axis_name: mesh axes over which a layer is sharded.
      stacked_axis_name: mesh axes that index separate layers.
      feature_axis: axes of a layer that keep statistics of their own.

    Returns:
      A function from a tree to one `Layer`, or `None` for a leaf that passes through, per leaf.

    Raises:
      TypeError, ValueError: an argument is wrong. What depends on the tree is raised by the returned
        function, which transformations call in `init`.
    """
    options = {
        "mask": Option(BY_DEFAULT if mask is None else mask, check_mask),
        "stacked_axes": Option(0 if stacked_axes is None else stacked_axes, check_stacked_axes),
        "axis_name": Option(axis_name, names_checker("axis_name"), is_axis_name),
        "stacked_axis_name": Option(stacked_axis_name, names_checker("stacked_axis_name"), is_axis_name),
        "feature_axis": Option(feature_axis, check_feature_axis, is_feature_axis),
    }
    # A bare value is checked now; pytrees and functions have to wait for the tree.
    bare = {argument: option.check(option.value) for argument, option in options.items() if option.is_bare}
    _check_disjoint(bare.get("axis_name", ()), bare.get("stacked_axis_name", ()))

    def resolve(tree: PyTree) -> list[Layer | None]:
        leaves = jax.tree.leaves(tree)
        if not any(hasattr(leaf, "shape") for leaf in leaves):
            # Only Python numbers, or the placeholder with which optax.tree_map_params calls `init`.
            return [None] * len(leaves)
        values = [
            [option.check(value) for value in per_leaf(argument, option.value, tree, option.is_leaf)]
            for argument, option in options.items()
        ]
        return [_resolve_leaf(*leaf) for leaf in zip(leaf_paths(tree), leaves, *values, strict=True)]

    return resolve


def resolve_at_init(
    resolve: Resolver, params: PyTree, mask: Mask, *, stacklevel: int = 3
) -> list[Layer | None]:
    """Resolves the layers of the parameters, and warns if the default rule finds none.

    Args:
      resolve: says which leaves are layers.
      params: those that `init` is called with.
      mask: that of the user, who has said it if there is one.
      stacklevel: of the line that called `init`, as `warnings.warn` counts; 3 if `init` itself calls this.
    """
    layers = resolve(params)
    floating = [leaf for leaf in jax.tree.leaves(params) if _is_floating(leaf)]
    if mask is None and floating and not any(layers):
        several = list(dict.fromkeys(leaf.shape for leaf in floating))
        shapes = ", ".join([*map(str, several[:4]), *(["..."] if len(several) > 4 else [])])
        warnings.warn(
            f"no leaf is a layer, so gradients of these shapes pass through: none of {len(floating)} leaves (of "
            f"shape {shapes}) has more than one axis longer than 1 besides its stacked_axes; use mask to say which "
            "are layers",
            stacklevel=stacklevel,
        )
    return layers


def layers(tree: PyTree, *, mask: Mask = None, stacked_axes: StackedAxes = None) -> list[str]:
    """Names the leaves that the transformations take for layers; all others pass through them unchanged.

    Args:
      tree: parameters or gradients.
      mask: as given to the transformation, see `znorm`.
      stacked_axes: as given to the transformation.

    Returns:
      Names as `layer_names` gives them.

    Raises:
      ValueError, TypeError: as the transformation's `init`.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax_gradnorm
      >>> params = {"embed": jnp.ones((9, 4)), "out": {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)}}
      >>> optax_gradnorm.layers(params)
      ['embed', 'out/kernel']
      >>> optax_gradnorm.layers(params, mask=optax_gradnorm.exclude("embed"))
      ['out/kernel']
    """
    resolved = layer_resolver(mask, stacked_axes, None, None)(tree)
    return [name for name, layer in zip(layer_names(tree), resolved, strict=True) if layer is not None]


def exclude(*names: str) -> Callable[[PyTree], PyTree]:
    """A mask: the default rule, without the leaves that have one of these names on their path.

    Args:
      names: parts of paths, such as 'embedding' or 'head', of modules or of leaves; or whole names, as
        `layers` gives them. A joined key, such as 'encoder.linear.weight', is found by each of its parts too.

    Returns:
      A function of a tree, to be given as `mask` to this library's functions (what it leaves to the default
      rule is no boolean, as `optax.masked` wants). When it meets a tree in which a name occurs nowhere, it
      raises a ValueError, so that a misspelt name is noticed. The names of frozen leaves, which are `None`,
      count; where there is an `optax.MaskedNode`, which may stand for a subtree, every name is accepted.

    Raises:
      TypeError: a name is not a string, or there is none.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax_gradnorm
      >>> transform = optax_gradnorm.znorm(mask=optax_gradnorm.exclude("embedding", "head"))
    """
    if not names or not all(isinstance(name, str) for name in names):
        raise TypeError(f"exclude needs one name or more, all strings, got {names!r}")

    def mask(tree: PyTree) -> PyTree:
        found = [_spellings(path) for path in leaf_paths(tree)]
        nodes = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_frozen)[0]
        there = set().union(*found, *(_spellings(path) for path, node in nodes if node is None))
        if not any(isinstance(node, optax.MaskedNode) for _, node in nodes):
            for name in names:
                if name not in there:
                    raise ValueError(f"exclude({name!r}): no leaf has that name on its path")
        excluded = [BY_DEFAULT if own.isdisjoint(names) else False for own in found]
        return jax.tree.unflatten(jax.tree.structure(tree), excluded)

    return mask


def _spellings(path: tuple) -> set[str]:
    """All that a leaf may be called by: names and steps on its path, and the whole."""
    return {*names_on(path), *path_parts(path), name_of(path), jax.tree_util.keystr(path)} - {""}


def _is_floating(leaf: Any) -> bool:
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.inexact)


def _is_layer_by_default(path: tuple, shape: tuple[int, ...], shards: Callable[[], tuple[str, ...]]) -> bool:
    """More than one axis longer than 1, and a last name on its path that is not 'bias'.

    Args:
      path: of the leaf.
      shape: its shape, or that of its shard, without stacked axes.
      shards: gives the mesh axes over which it is a shard.

    Raises:
      ValueError: a shard may be a row of a weight or a part of a bias, and a symbolic size may be 1: the rule
        speaks of the whole, and of numbers.
    """
    if len(shape) < 2 or names_on(path)[-1:] == ["bias"]:
        return False
    long_axes = sum(at_least(size, 2) for size in shape)
    if long_axes > 1:
        return True
    if sum(size != 1 for size in shape) > 1:
        raise ValueError(
            f"mask must say whether {name_of(path)!r} is a layer: a symbolic size in its shape {shape} may be 1"
        )
    if (names := shards()) and long_axes + len(names) > 1:
        raise ValueError(
            f"mask must say whether {name_of(path)!r} is a layer: the shape {shape} of its shard over "
            f"{', '.join(names)} does not tell"
        )
    return False


def at_least(size: Any, bound: int) -> bool:
    """Whether a size is at least this; of a symbolic one, whatever it stands for."""
    return jax.core.max_dim(size, bound) == size


def _check_disjoint(
    axis_names: tuple[str, ...], stacked_axis_names: tuple[str, ...], where: str = ""
) -> None:
    if both := set(axis_names) & set(stacked_axis_names):
        raise ValueError(f"axis_name and stacked_axis_name both name {min(both)!r}{where}")


def _is_weak_scalar(leaf: Any) -> bool:
    """Whether this is an array without dimensions that is weakly typed, as Python numbers are inside `jit`."""
    return leaf.ndim == 0 and getattr(leaf, "weak_type", False)


def _resolve_leaf(
    path: tuple,
    leaf: Any,
    mask: Any,
    stacked_axes: int,
    axis_names: tuple[str, ...],
    stacked_axis_names: tuple[str, ...],
    feature_axes: tuple[int, ...],
) -> Layer | None:
    shape = getattr(leaf, "shape", ())
    if mask is not BY_DEFAULT and mask and stacked_axes > len(shape):
        raise ValueError(f"stacked_axes is {stacked_axes} for {name_of(path)!r}, whose shape is {shape}")
    if not _is_floating(leaf) or 0 in shape or _is_weak_scalar(leaf):
        return None

    def shards() -> tuple[str, ...]:
        named = sharding_names(leaf, axis_names)
        # A mesh axis that shards feature axes is not to be named.
        unnamed = varying_axes(leaf) - {*axis_names, *stacked_axis_names} if feature_axes else ()
        return (*named, *sorted(unnamed))

    if mask is BY_DEFAULT:
        mask = _is_layer_by_default(path, shape[stacked_axes:], shards)
    if not mask:
        return None
    _check_disjoint(axis_names, stacked_axis_names, f" for {name_of(path)!r}")
    own = range(stacked_axes, len(shape))
    for axis in feature_axes:
        if not -len(own) <= axis < len(own):
            raise ValueError(
                f"feature_axis is {axis} for {name_of(path)!r}, a layer of {len(own)} dimensions"
            )
    features = {own[axis] for axis in feature_axes}
    axes = tuple(axis for axis in own if axis not in features)
    if len(own) > 1 and not axes:
        raise ValueError(
            f"feature_axis {feature_axes} takes all axes of {name_of(path)!r}, a layer of shape "
            f"{shape[stacked_axes:]}: none is left to average over"
        )
    return Layer(stacked_axes, axes, axis_names, stacked_axis_names)
