"""The same epoch and evaluation on a streamed set, which does not fit on the device: a few batches at a time."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from experiments.data.streaming import read_batches
from experiments.run import RESIZED_CROP
from experiments.training.epoch import (
    Measurements,
    draw_batches,
    evaluation_batches,
    make_measure,
    make_step,
    over_epoch,
)
from experiments.training.layout import Setup, rows_here
from experiments.training.state import TrainState

# At most this many batches are put on the devices at once, and no more than these bytes if one batch is not larger.
CHUNK_STEPS = 8
CHUNK_BYTES = 2**29


def compile(
    setup: Setup, state: TrainState
) -> tuple[
    Callable[[TrainState, int], tuple[TrainState, Measurements]], Callable[[TrainState], Measurements]
]:
    """Leaves the data where they are: a program trains on a few batches, and another evaluates on one.

    Args:
      setup: as `set_up` gives it; the labels of its data set are in memory.
      state: gives the shapes.

    Returns:
      What `epoch.compile` does: the batches, their order, their augmentation and the steps are the same.
    """
    return _compile_epoch(setup, state), _compile_evaluate(setup, state)


def _compile_epoch(setup: Setup, state: TrainState):
    run, dataset, mesh = setup.run, setup.dataset, setup.mesh
    step = make_step(setup)
    count = len(dataset.train_images)
    # The largest divisor of every epoch, so that all chunks share one program.
    steps = math.gcd(run.steps_in(1, count), run.steps_in(run.epochs, count))
    most = min(
        CHUNK_STEPS, max(1, CHUNK_BYTES // (run.batch_size * math.prod(dataset.train_images.shape[1:])))
    )
    chunk = max(divisor for divisor in range(1, most + 1) if steps % divisor == 0)
    replicated = NamedSharding(mesh, PartitionSpec())
    by_batch = NamedSharding(mesh, PartitionSpec(None, "batch"))
    rows = rows_here(NamedSharding(mesh, PartitionSpec("batch")), run.batch_size)

    @partial(jax.jit, static_argnums=2)
    def draw_order(seed, epoch, steps):
        indices, keys = draw_batches(run, count, seed, epoch, steps)
        return indices, jax.random.key_data(keys)

    def train_chunk(state, images, labels, keys):
        return lax.scan(step, state, (images, labels, jax.random.wrap_key_data(keys)))

    train_chunk = jax.jit(train_chunk, donate_argnums=0, out_shardings=(setup.shardings, replicated))
    measure_epoch = jax.jit(over_epoch, out_shardings=replicated)

    def read_chunks(epoch):
        steps = run.steps_in(epoch + 1, count)
        order, keys = jax.device_get(draw_order(np.uint32(run.seed), np.int32(epoch), steps))
        # The order is that of one host; each host reads what its own devices take.
        order = order[:, rows].ravel()
        chunk_size = chunk * len(rows)
        images: Any = dataset.train_images
        images = images.at_random(run.seed, epoch) if run.augment == RESIZED_CROP else images
        chunks = read_batches(images, order, chunk_size)
        for i, images in enumerate(chunks):
            labels = dataset.train_labels[order[i * chunk_size : (i + 1) * chunk_size]]
            batches = [to_devices(array, (chunk, run.batch_size)) for array in (images, labels)]
            yield *batches, keys[i * chunk : (i + 1) * chunk]

    def to_devices(array, shape):
        """Puts this host's part of a chunk, [chunk * rows, ...], where it belongs in that of all hosts."""
        part = array.reshape(chunk, len(rows), *array.shape[1:])
        return jax.make_array_from_process_local_data(by_batch, part, (*shape, *array.shape[1:]))

    def train_epoch(state, epoch):
        measured = []
        for images, labels, keys in read_chunks(epoch):
            state, of_chunk = compiled(state, images, labels, keys)
            measured.append(of_chunk)
            _keep_pace(measured)
        of_steps = jax.tree.map(lambda *chunks: np.concatenate(chunks), *jax.device_get(measured))
        return state, measure_epoch(state, of_steps)

    shape = (chunk, run.batch_size)
    images = jax.ShapeDtypeStruct((*shape, *dataset.train_images.shape[1:]), np.uint8, sharding=by_batch)
    labels = dataset.train_labels
    labels = jax.ShapeDtypeStruct((*shape, *labels.shape[1:]), labels.dtype, sharding=by_batch)
    keys = jax.eval_shape(lambda: jax.random.key_data(jax.random.split(jax.random.key(0), chunk)))
    compiled = train_chunk.lower(state, images, labels, keys).compile()
    return train_epoch


def _keep_pace(results: Sequence[Any]) -> None:
    """Keeps at most two results in flight: else ever more batches would wait in the device's memory."""
    if len(results) > 1:
        jax.block_until_ready(results[-2])


def _compile_evaluate(setup: Setup, state: TrainState):
    dataset = setup.dataset
    measure = jax.jit(make_measure(setup), out_shardings=NamedSharding(setup.mesh, PartitionSpec()))
    measure = measure.lower(state, *next(test_batches(setup))).compile()

    def evaluate(state):
        measured = []
        for batch in test_batches(setup):
            measured.append(measure(state, *batch))
            _keep_pace(measured)
        losses, correct = zip(*jax.device_get(measured), strict=True)
        return {"test_loss": np.float32(sum(losses) / len(dataset.test_images)), "test_correct": sum(correct)}

    return evaluate


def test_batches(setup: Setup) -> Iterator[tuple[jax.Array, jax.Array, jax.Array]]:
    """Test images and labels in batches of one size, on the devices, and which of them are not padding.

    All padding comes last. Each host reads what its own devices take.
    """
    dataset = setup.dataset
    count = len(dataset.test_images)
    batches, batch_size = evaluation_batches(setup)
    by_batch = NamedSharding(setup.mesh, PartitionSpec("batch"))
    rows = rows_here(by_batch, batch_size)
    places = np.arange(batches)[:, None] * batch_size + rows
    parts = read_batches(dataset.test_images, places[places < count], len(rows))
    nothing = np.zeros((0, *dataset.test_images.shape[1:]), np.uint8)
    for of_batch in places:
        taken = of_batch[of_batch < count]
        images = next(parts) if len(taken) else nothing
        batch = images, dataset.test_labels[taken], np.ones(len(taken), bool)
        padding = len(rows) - len(taken)
        padded = [np.pad(array, [(0, padding)] + [(0, 0)] * (array.ndim - 1)) for array in batch]
        shapes = [(batch_size, *array.shape[1:]) for array in padded]
        yield tuple(map(jax.make_array_from_process_local_data, [by_batch] * 3, padded, shapes))
