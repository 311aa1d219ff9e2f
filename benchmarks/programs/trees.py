"""Gradients to compile updates for: shapes with shardings, no arrays."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import optax_gradnorm

LAYOUTS = ("replicated", "fsdp", "stacked")
WIDTH, VOCABULARY, BLOCKS = 2048, 50_304, 6


def gradients(shapes: list[tuple[int, ...]], mesh: Mesh, layout: str, dtype=jnp.float32) -> list[Any]:
    """Gradients of leaves of these shapes.

    Args:
      shapes: of the leaves.
      mesh: of all devices, with the single axis 'fsdp'.
      layout: 'replicated': whole on every device; 'fsdp': each leaf divided along its largest axis that the devices
        can share equally; 'stacked': that too, with leaves of one shape in a stack.
      dtype: of all leaves.
    """
    if layout == "stacked":
        shapes = [(shapes.count(shape), *shape) for shape in dict.fromkeys(shapes)]

    def place(shape: tuple[int, ...]) -> Any:
        own = range(int(layout == "stacked"), len(shape))
        axes = [axis for axis in own if shape[axis] % mesh.size == 0]
        spec: list[str | None] = [None] * len(shape)
        if layout != "replicated" and axes:
            spec[max(axes, key=lambda axis: shape[axis])] = "fsdp"
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*spec)))

    return [place(shape) for shape in shapes]


def transformer(
    mesh: Mesh, blocks: int = BLOCKS, *, stacked: bool = False, width: int = WIDTH
) -> dict[str, Any]:
    """Gradients of a transformer: eight leaves a block, or eight for all if stacked.

    Args:
      mesh: with the axes 'data', 'fsdp' and 'tensor'; weights are divided over the last two.
      blocks: how many.
      stacked: whether the blocks' leaves lie along a leading axis, as for a scan.
      width: of the residual stream.
    """

    def leaf(shape, *spec, lead=()):
        sharding = NamedSharding(mesh, P(*[None] * len(lead), *spec))
        return jax.ShapeDtypeStruct((*lead, *shape), jnp.float32, sharding=sharding)

    def block(lead=()):
        into, out = ("fsdp", "tensor"), ("tensor", "fsdp")
        square = (width, width)
        return {
            **{name: leaf(square, *into, lead=lead) for name in ("query", "key", "value")},
            "output": leaf(square, *out, lead=lead),
            "up": leaf((width, 4 * width), *into, lead=lead),
            "down": leaf((4 * width, width), *out, lead=lead),
            "attention_norm": leaf((width,), lead=lead),
            "mlp_norm": leaf((width,), lead=lead),
        }

    embedding = leaf((VOCABULARY, width), "tensor", "fsdp")
    if stacked:
        return {"embedding": embedding, "blocks": block((blocks,))}
    return {"embedding": embedding, **{f"block{i}": block() for i in range(blocks)}}


def stacked_blocks(tree: Any) -> Any:
    """The `stacked_axes` of a transformer whose blocks are stacked."""
    names = optax_gradnorm.layer_names(tree)
    return jax.tree.unflatten(jax.tree.structure(tree), [int(name.startswith("blocks/")) for name in names])
