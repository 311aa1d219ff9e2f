"""How the parameters of the models are laid out: which leading axes count blocks, and which axes are features.

The transformations of gradients take these functions as their arguments. All other models' parameters have no
stacked axes, and their features last.
"""

from typing import Any

import jax

import optax_gradnorm

STACKED = "stacked_encoder"
SINGLE = "encoder"
SPLIT_INTO_HEADS = ("query/kernel", "key/kernel", "value/kernel")


def stacked_axes(tree: Any) -> Any:
    """Number of leading axes that count blocks, for every leaf of a tree of parameters."""
    return _by_name(tree, lambda name: int(STACKED in name.split("/")))


def feature_axis(tree: Any) -> Any:
    """Axes of the output units, for every leaf: heads and their features in kernels of queries, keys and values."""
    return _by_name(tree, lambda name: (-2, -1) if name.endswith(SPLIT_INTO_HEADS) else -1)


def names_in_stack(name: str, count: int) -> list[str]:
    """Names that the layers of a stacked leaf would have in the network whose blocks are not stacked."""
    parts = name.split("/")
    return ["/".join(f"{SINGLE}/{i}" if part == STACKED else part for part in parts) for i in range(count)]


def _by_name(tree: Any, choose) -> Any:
    names = optax_gradnorm.layer_names(tree)
    return jax.tree.unflatten(jax.tree.structure(tree), [choose(name) for name in names])
