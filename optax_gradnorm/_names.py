"""Paths of leaves: their parts, the names on them, and the boxes that leave no trace."""

import re
from collections import Counter
from typing import Any

import jax
from jax.tree_util import DictKey, FlattenedIndexKey, SequenceKey, keystr, tree_flatten_with_path

PyTree = Any


def layer_names(tree: PyTree) -> list[str]:
    """Names every leaf of a tree by its path.

    Args:
      tree: parameters, gradients or per-layer statistics in any container: an `nnx.State` (of
        variables or of plain arrays), nested or flattened dictionaries, an Equinox module, lists.

    Returns:
      One name per leaf, in the order of `jax.tree.leaves(tree)`, its parts joined by slashes; a bare leaf
      has the empty name. A box around one array (`nnx.Param`, `linen.Partitioned`, Haliax's `NamedArray`)
      leaves no trace, so the names of an `nnx.Optimizer`'s parameters and of its gradients are the same. Names
      are unique: where two paths would join to the same name, they are spelled as JAX does. The statistics
      that `gradient_dynamics` returns give the names of the layers alone, without biases.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax_gradnorm
      >>> params = {"conv": {"kernel": jnp.ones((3, 3, 1, 8))}, "dense": [jnp.ones((8, 2))]}
      >>> optax_gradnorm.layer_names(params)
      ['conv/kernel', 'dense/0']
    """
    paths = leaf_paths(tree)
    names = [name_of(path) for path in paths]
    counts = Counter(names)
    spelled = [keystr(path) for path in paths]
    unique = [short if counts[short] == 1 else long for short, long in zip(names, spelled, strict=True)]
    return unique if len(set(unique)) == len(unique) else spelled


def leaf_paths(tree: PyTree) -> list[tuple]:
    """The path of every leaf, without boxes."""
    paths = []
    for path, node in tree_flatten_with_path(tree, is_leaf=is_box)[0]:
        content = unbox(node)
        is_open = content is node  # a leaf, or a box that holds not exactly one thing
        inside = [rest for rest, _ in tree_flatten_with_path(node)[0]] if is_open else leaf_paths(content)
        paths += [(*path, *rest) for rest in inside]
    return paths


def leaf_parts(tree: PyTree) -> list[tuple[str, ...]]:
    """The path of every leaf as strings, which are the same in every container."""
    return [path_parts(path) for path in leaf_paths(tree)]


def path_parts(path: tuple) -> tuple[str, ...]:
    """The steps of a path as strings, the same in every container."""
    return tuple(_step(key) for key in path)


def name_of(path: tuple) -> str:
    return "/".join(path_parts(path))


def names_on(path: tuple) -> list[str]:
    """The names on a path: joined keys in their parts ('key/bias', 'key.bias'), without indices of lists."""
    names = []
    for key in path:
        if isinstance(key, FlattenedIndexKey):
            names.append("")  # Some child of a node that does not say its children's names.
        elif not isinstance(key, SequenceKey):
            names += [part for part in re.split(r"[/.]", _step(key)) if part and not part.isdecimal()]
    return names


def _step(key: Any) -> str:
    if isinstance(key, DictKey) and isinstance(key.key, tuple):
        return "/".join(map(str, key.key))
    return keystr((key,), simple=True)


def is_box(node: Any) -> bool:
    """Whether this is a box: what Flax puts around an array, or a node that holds one array and nothing else.

    A node that names its content (as Equinox modules do) is a box only if it speaks as an array itself.
    """
    if isinstance(node, dict | list | tuple) or jax.tree_util.all_leaves([node]):
        return False
    if _is_of_flax(node):
        return True
    children = _children(node)
    if len(children) != 1 or not jax.tree_util.all_leaves([children[0][1]]):
        return False
    (path, _), kind = children[0], type(node)
    return isinstance(path[0], FlattenedIndexKey) or (hasattr(kind, "dtype") and hasattr(kind, "ndim"))


def unbox(node: Any) -> Any:
    """What is in a box; any other node is returned as it is."""
    if not is_box(node):
        return node
    children = _children(node)
    return unbox(children[0][1]) if len(children) == 1 else node


def without_boxes(tree: PyTree) -> PyTree:
    """Takes arrays out of their boxes, whose metadata speak of parameters."""
    return jax.tree.map(
        lambda node: node if unbox(node) is node else without_boxes(unbox(node)), tree, is_leaf=is_box
    )


def _is_of_flax(node: Any) -> bool:
    # By name, so that the library does not import Flax.
    return any(
        base.__name__ in ("Variable", "AxisMetadata") and base.__module__.startswith("flax.")
        for base in type(node).__mro__
    )


def _children(node: Any) -> list[tuple[tuple, Any]]:
    return tree_flatten_with_path(node, is_leaf=lambda child: child is not node)[0]
