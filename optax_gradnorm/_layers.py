"""What a layer is: the default rule, masks, stacked leaves, mesh axes, and layer names."""

import math
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from optax_gradnorm._arguments import (
    BY_DEFAULT,
    AxisName,
    FeatureAxis,
    Mask,
    PyTree,
    StackedAxes,
    check_feature_axis,
    check_mask,
    check_stacked_axes,
    is_axis_name,
    is_feature_axis,
    is_function,
    names_checker,
    path_part,
    per_leaf,
)


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
        "mask": (BY_DEFAULT if mask is None else mask, check_mask, None),
        "stacked_axes": (0 if stacked_axes is None else stacked_axes, check_stacked_axes, None),
        "axis_name": (axis_name, names_checker("axis_name"), is_axis_name),
        "stacked_axis_name": (stacked_axis_name, names_checker("stacked_axis_name"), is_axis_name),
        "feature_axis": (feature_axis, check_feature_axis, is_feature_axis),
    }
    # A bare value is checked now; pytrees and functions have to wait for the tree.
    for option, check, is_leaf in options.values():
        if not is_function(option) and jax.tree_util.all_leaves([option], is_leaf=is_leaf):
            check(option)

    def resolve(tree: PyTree) -> list[Layer | None]:
        leaves = jax.tree.leaves(tree)
        if not any(hasattr(leaf, "shape") for leaf in leaves):
            # Only Python numbers, or the placeholder with which optax.tree_map_params calls `init`.
            return [None] * len(leaves)
        values = [
            [check(value) for value in per_leaf(argument, option, tree, is_leaf)]
            for argument, (option, check, is_leaf) in options.items()
        ]
        return [_resolve_leaf(*leaf) for leaf in zip(_leaf_paths(tree), leaves, *values, strict=True)]

    return resolve


def resolve_at_init(resolve: Resolver, params: PyTree, mask: Mask) -> list[Layer | None]:
    """Resolves the layers of the parameters, and warns if the default rule finds none."""
    layers = resolve(params)
    floating = [leaf for leaf in jax.tree.leaves(params) if _is_floating(leaf)]
    if mask is None and floating and not any(layers):
        several = list(dict.fromkeys(leaf.shape for leaf in floating))
        shapes = ", ".join([*map(str, several[:4]), *(["..."] if len(several) > 4 else [])])
        warnings.warn(
            f"no leaf is a layer, so all gradients pass through: none of {len(floating)} leaves (of shape {shapes}) "
            "has more than one axis longer than 1 besides its stacked_axes; say with mask which are layers",
            stacklevel=3,
        )
    return layers


def map_layers(f: Callable[[Any, Layer], Any], tree: PyTree, resolve: Resolver) -> PyTree:
    """Applies `f(leaf, layer)` to the layers of a tree; other leaves pass through."""
    leaves, structure = jax.tree.flatten(tree)
    mapped = [
        leaf if layer is None else f(leaf, layer) for leaf, layer in zip(leaves, resolve(tree), strict=True)
    ]
    return jax.tree.unflatten(structure, mapped)


def layer_names(tree: PyTree) -> list[str]:
    """Names every leaf of a tree by its path.

    Args:
      tree: parameters, gradients or per-layer statistics in any container: an `nnx.State` (of
        variables or of plain arrays), Flax linen or Haiku dictionaries, an Equinox module, lists.

    Returns:
      One name per leaf, in the order of `jax.tree.leaves(tree)`, its parts joined by slashes; a bare leaf
      has the empty name. The box that Flax puts around an array (`nnx.Param`, `linen.Partitioned`) leaves
      no trace, so the names of an `nnx.Optimizer`'s parameters and of its gradients are the same. Names are
      unique: where two paths would join to the same name, both are spelled as JAX does. The statistics
      that `gradient_dynamics` returns give the names of the layers alone, without biases.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax_gradnorm
      >>> params = {"conv": {"kernel": jnp.ones((3, 3, 1, 8))}, "dense": [jnp.ones((8, 2))]}
      >>> optax_gradnorm.layer_names(params)
      ['conv/kernel', 'dense/0']
    """
    paths = _leaf_paths(tree)
    names = [_name(path) for path in paths]
    counts = Counter(names)
    return [
        name if counts[name] == 1 else jax.tree_util.keystr(path)
        for name, path in zip(names, paths, strict=True)
    ]


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
      names: parts of paths, such as 'embedding' or 'head': of modules or of leaves.

    Returns:
      A function of a tree, to be given as `mask` to this library's functions (what it leaves to the default
      rule is no boolean, as `optax.masked` wants). When it meets a tree in which a name occurs nowhere, it
      raises a ValueError, so that a misspelt name is noticed; frozen leaves, which are `None` or
      `optax.MaskedNode`, count as there.

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
        paths = [set(path) for path in path_parts(tree)]
        there = set().union(*paths, *_frozen_paths(tree))
        for name in names:
            if name not in there:
                raise ValueError(f"exclude({name!r}): no leaf has that name on its path")
        excluded = [False if path.intersection(names) else BY_DEFAULT for path in paths]
        return jax.tree.unflatten(jax.tree.structure(tree), excluded)

    return mask


def varying_axes(x: Any) -> frozenset[str]:
    """Mesh axes over which JAX knows a value to differ between devices; none where it does not keep track."""
    if not isinstance(x, jax.Array):
        return frozenset()
    kind: Any = jax.typeof(x)
    # The attribute has another name since jax 0.9.
    return kind.vma if hasattr(kind, "vma") else kind.manual_axis_type.varying


def without_replicated(layer: Layer, leaf: jax.Array) -> Layer:
    """Drops the mesh axes over which JAX knows the leaf to be replicated: it counts once."""
    return layer._replace(
        axis_names=_not_replicated(leaf, layer.axis_names),
        stacked_axis_names=_not_replicated(leaf, layer.stacked_axis_names),
    )


def _not_replicated(leaf: jax.Array, names: tuple[str, ...]) -> tuple[str, ...]:
    varying = varying_axes(leaf)
    # Where JAX does not track this (pmap, check_vma=False), even an axis's own index counts as replicated.
    return tuple(name for name in names if name in varying or name not in varying_axes(lax.axis_index(name)))


def _sharding_names(leaf: Any, names: tuple[str, ...]) -> tuple[str, ...]:
    """The mesh axes of these over which the leaf is a shard; none outside `shard_map` and `pmap`."""
    try:
        return _not_replicated(leaf, names)
    except NameError:  # There is no such axis here.
        return ()


def layer_size(leaf: jax.Array, layer: Layer) -> int:
    """Number of elements over which one statistic runs, counted over all shards."""
    size = math.prod(leaf.shape[axis] for axis in layer.axes)
    return size * lax.axis_size(layer.axis_names) if layer.axis_names else size


def is_flax_box(node: Any) -> bool:
    """Whether this is a box that Flax puts around an array."""
    # By name, so that the library does not import Flax.
    return any(
        base.__name__ in ("Variable", "AxisMetadata") and base.__module__.startswith("flax.")
        for base in type(node).__mro__
    )


def path_parts(tree: PyTree) -> list[tuple[str, ...]]:
    """The path of every leaf as strings, which are the same in every container."""
    return [tuple(path_part(key) for key in path) for path in _leaf_paths(tree)]


def _frozen_paths(tree: PyTree) -> list[tuple[str, ...]]:
    """Paths of what stands in a tree in place of leaves that are not trained."""

    def is_frozen(node):
        return node is None or isinstance(node, optax.MaskedNode)

    found = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_frozen)[0]
    return [tuple(path_part(key) for key in path) for path, node in found if is_frozen(node)]


def _leaf_paths(tree: PyTree) -> list[tuple]:
    """The path of every leaf, without Flax's boxes."""
    paths = []
    for path, node in jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_flax_box)[0]:
        inside = jax.tree_util.tree_flatten_with_path(node)[0]
        paths += [path if len(inside) == 1 else (*path, *rest) for rest, _ in inside]
    return paths


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _is_floating(leaf: Any) -> bool:
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.inexact)


def _is_layer_by_default(path: tuple, shape: tuple[int, ...]) -> bool:
    """More than one axis longer than 1, and not named 'bias'."""
    return sum(size > 1 for size in shape) > 1 and not (path and path_part(path[-1]) == "bias")


def _check_shape_tells(path: tuple, leaf: Any, shape: tuple[int, ...], axis_names: tuple[str, ...]) -> None:
    """Refuses a shard that may be a row of a weight or a part of a bias: the default rule speaks of the whole."""
    if len(shape) < 2 or (path and path_part(path[-1]) == "bias"):
        return
    shards = _sharding_names(leaf, axis_names)
    if shards and sum(size > 1 for size in shape) + len(shards) > 1:
        raise ValueError(
            f"mask must say whether {_name(path)!r} is a layer: the shape {shape} of its shard over "
            f"{', '.join(shards)} does not tell"
        )


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
        raise ValueError(f"stacked_axes is {stacked_axes} for {_name(path)!r}, whose shape is {shape}")
    if not _is_floating(leaf) or 0 in shape or _is_python_number(leaf):
        return None
    if mask is BY_DEFAULT:
        mask = _is_layer_by_default(path, shape[stacked_axes:])
        if not mask:
            _check_shape_tells(path, leaf, shape[stacked_axes:], axis_names)
    if not mask:
        return None
    if both := set(axis_names) & set(stacked_axis_names):
        raise ValueError(f"axis_name and stacked_axis_name both name {min(both)!r} for {_name(path)!r}")
    own = range(stacked_axes, len(shape))
    for axis in feature_axes:
        if not -len(own) <= axis < len(own):
            raise ValueError(f"feature_axis is {axis} for {_name(path)!r}, a layer of {len(own)} dimensions")
    features = {own[axis] for axis in feature_axes}
    axes = tuple(axis for axis in own if axis not in features)
    return Layer(stacked_axes, axes, axis_names, stacked_axis_names)


def _is_python_number(leaf: Any) -> bool:
    # Inside jit a Python number is an array without dimensions that is weakly typed.
    return leaf.ndim == 0 and getattr(leaf, "weak_type", False)
