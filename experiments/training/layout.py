"""How training lies on the devices, of one host or of several: the batch divided, the state whole or divided."""

import math
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from experiments.data import Dataset
from experiments.run import Run
from experiments.training.methods import make_optimizer
from experiments.training.state import TrainState, init_state


class Setup(NamedTuple):
    """What the programs of a run are made of.

    Attributes:
      run: says what to train.
      dataset: the images to train on and to evaluate on, as `experiments.data.select` gives them.
      graphdef: of the model.
      optimizer: the chain that `make_optimizer` gives.
      mesh: of the devices that share each batch.
      shardings: a `TrainState` with a `NamedSharding` in place of every leaf.
    """

    run: Run
    dataset: Dataset
    graphdef: nnx.GraphDef
    optimizer: optax.GradientTransformation
    mesh: Mesh
    shardings: TrainState


def set_up(
    run: Run, dataset: Dataset, devices: int = 1, shard_params: bool = False
) -> tuple[Setup, TrainState]:
    """Makes a run ready to compile.

    Args:
      devices: how many share each batch.
      shard_params: as for `lay_out`.

    Returns:
      The setup, and the state before the first step, on the devices.

    Raises:
      ValueError: there are not so many devices, or the model is unknown or does not take such images.
    """
    mesh = make_mesh(devices)
    optimizer = make_optimizer(run, steps_per_epoch=len(dataset.train_images) // run.batch_size)
    graphdef, state = init_state(run, dataset, optimizer)
    shardings = lay_out(state, mesh, shard_params)
    return Setup(run, dataset, graphdef, optimizer, mesh, shardings), put(state, shardings)


def make_mesh(devices: int) -> Mesh:
    """Mesh of the first devices, with the single axis 'batch'.

    Raises:
      ValueError: there are not so many.
    """
    if not 1 <= devices <= jax.device_count():
        raise ValueError(f"devices must be from 1 to the {jax.device_count()} there are, got {devices}")
    return jax.make_mesh((devices,), ("batch",), (AxisType.Auto,), devices=jax.devices()[:devices])


def check_fits(run: Run, dataset: Dataset, devices: int) -> None:
    """The run fits the data and the devices.

    Raises:
      ValueError: it does not; one line says why.
    """
    make_mesh(devices)
    count = len(dataset.train_images)
    if run.batch_size > count:
        raise ValueError(f"batch_size is {run.batch_size}, but there are only {count} training images")
    if run.batch_size % devices:
        raise ValueError(f"batch_size is {run.batch_size}, which {devices} devices cannot share equally")
    if run.steps is not None and run.epochs != (begun := math.ceil(run.steps / (count // run.batch_size))):
        raise ValueError(
            f"epochs must be {begun} with steps={run.steps}, {count // run.batch_size} in an epoch, got {run.epochs}"
        )
    if len(dataset.test_images) == 0:
        raise ValueError(f"dataset {dataset.name} has no test images")


def lay_out(state: TrainState, mesh: Mesh, shard_params: bool) -> TrainState:
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
