"""Mesh axes: along which a value differs between devices, and zeros of the right JAX type."""

from collections.abc import Collection, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P


def varying_axes(x: Any) -> frozenset[str]:
    """Mesh axes over which JAX knows a value to differ between devices; none where it does not keep track."""
    if not isinstance(x, jax.Array):
        return frozenset()
    kind: Any = jax.typeof(x)
    # The attribute has another name since jax 0.9.
    return kind.vma if hasattr(kind, "vma") else kind.manual_axis_type.varying


def not_replicated(leaf: jax.Array, names: tuple[str, ...]) -> tuple[str, ...]:
    """Drops the mesh axes over which JAX knows a leaf to be replicated: it counts once.

    Raises:
      NameError: there is no such axis here.
    """
    varying = varying_axes(leaf)
    # Where JAX does not track this (pmap, check_vma=False), even an axis's own index counts as replicated.
    return tuple(name for name in names if name in varying or name not in varying_axes(lax.axis_index(name)))


def sharding_names(leaf: Any, names: tuple[str, ...]) -> tuple[str, ...]:
    """The mesh axes of these over which the leaf is a shard; none outside `shard_map` and `pmap`."""
    try:
        return not_replicated(leaf, names)
    except NameError:
        return ()


def axis_size(names: tuple[str, ...]) -> int:
    """Number of devices along mesh axes, 1 along none."""
    return lax.axis_size(names) if names else 1


def zero_statistic(leaf: jax.Array, stacked_axes: int, axis_names: Iterable[str], dtype) -> jax.Array:
    """Zeros of the JAX type of a statistic of this leaf: shape of its stacked axes, on the same devices.

    Args:
      leaf: parameter or gradient.
      stacked_axes: how many leading axes index separate layers.
      axis_names: mesh axes over which a layer is sharded, so that its statistic is the same along them.
      dtype: of the zeros.
    """
    shape, sharding = leaf.shape[:stacked_axes], jax.typeof(leaf).sharding
    zero = jnp.zeros(shape, dtype)
    if any(sharding.spec):
        own = NamedSharding(sharding.mesh, P(*sharding.spec[:stacked_axes]))
        zero = jnp.zeros_like(jax.ShapeDtypeStruct(shape, dtype, sharding=own))
    return _varying(zero, varying_axes(leaf) - {*axis_names})


def zero_global(leaves: Iterable[tuple[jax.Array, Collection[str]]], dtype) -> jax.Array:
    """A zero of the JAX type of a statistic of these leaves together.

    It differs only over mesh axes that nobody named: each leaf comes with the names of those that were.
    """
    unnamed = set().union(*(varying_axes(leaf) - {*named} for leaf, named in leaves))
    return _varying(jnp.zeros((), dtype), unnamed)


def _varying(zero: jax.Array, names: Iterable[str]) -> jax.Array:
    """A zero that JAX takes to differ over these mesh axes."""
    return zero + sum((0 * lax.axis_index(name)).astype(zero.dtype) for name in sorted(names))


def check_varies_as(before: jax.Array, after: jax.Array, what: str) -> None:
    """Refuses a statistic that differs between devices for a state that does not.

    Raises:
      ValueError: it does; the message names the mesh axes and the arguments.
    """
    if more := varying_axes(after) - varying_axes(before):
        raise ValueError(
            f"{what} differs between devices along {', '.join(sorted(more))}, but the state from init does not: "
            "average data-parallel gradients first (lax.pmean), name mesh axes that shard a layer in axis_name, "
            "those that index separate layers in stacked_axis_name"
        )
