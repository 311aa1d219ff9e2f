"""How training lies on the devices, of one host or of several: the batch divided, the state whole or divided."""

from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

if TYPE_CHECKING:
    from experiments.training.state import TrainState


def make_mesh(devices: int) -> Mesh:
    """Mesh of the first devices, with the single axis 'batch'.

    Raises:
      ValueError: there are not so many.
    """
    if not 1 <= devices <= jax.device_count():
        raise ValueError(f"devices must be from 1 to the {jax.device_count()} there are, got {devices}")
    return jax.make_mesh((devices,), ("batch",), (AxisType.Auto,), devices=jax.devices()[:devices])


def lay_out(state: "TrainState", mesh: Mesh, shard_params: bool) -> "TrainState":
    """Says where every leaf of the state lies.

    Args:
      state: gives the shapes.
      mesh: of the devices that share each batch.
      shard_params: divides every leaf of the parameters and of the optimizer's state along its largest axis that
        the devices can share equally; leaves without one, and running statistics, are whole on every device.

    Returns:
      A `NamedSharding` in place of every leaf.
    """
    replicated = NamedSharding(mesh, PartitionSpec())

    def divide(leaf):
        axes = [axis for axis, size in enumerate(leaf.shape) if size and size % mesh.size == 0]
        if not shard_params or not axes:
            return replicated
        largest = max(axes, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*[None] * largest, "batch"))

    return type(state)(
        params=jax.tree.map(divide, state.params),
        batch_stats=jax.tree.map(lambda _: replicated, state.batch_stats),
        opt_state=jax.tree.map(divide, state.opt_state),
    )


def put(tree: Any, shardings: Any) -> Any:
    """Puts arrays on the devices; every host has them whole and gives what its own devices hold.

    Args:
      tree: of arrays.
      shardings: one for each of them, or one for all.
    """
    if isinstance(shardings, NamedSharding):
        shardings = jax.tree.map(lambda _: shardings, tree)

    def put_leaf(leaf, sharding):
        if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
            return leaf
        if sharding.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(put_leaf, tree, shardings)


def rows_here(sharding: NamedSharding, count: int) -> np.ndarray:
    """Which of the rows that a sharding divides lie on this host's devices, in order."""
    parts = sharding.addressable_devices_indices_map((count,)).values()
    return np.unique(np.concatenate([np.arange(count)[part] for part in parts if part is not None]))
