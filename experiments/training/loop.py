"""Training of one run: epochs, records and checkpoints; a run that was killed goes on after its last checkpoint."""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

import optax_gradnorm
from experiments import hosts, records
from experiments.data import Dataset
from experiments.data.augment import normalize
from experiments.models import axes
from experiments.records import EpochMetrics, RunRecord
from experiments.records.dynamics import EPOCH_STATISTICS, GradientDynamics
from experiments.run import Run
from experiments.training import epoch as epoch_in_memory
from experiments.training import resuming, streamed, tasks
from experiments.training.layout import Setup, check_fits, set_up
from experiments.training.state import TrainState


def train(
    run: Run,
    dataset: Dataset,
    *,
    out: str | Path,
    on_epoch: Callable[[RunRecord], None] | None = None,
    devices: int = 1,
    shard_params: bool = False,
    keep_checkpoint: bool = False,
) -> RunRecord:
    """Makes a run, or what is left of it.

    After every epoch the record and then a checkpoint are written, and with `run.dynamics`, before them,
    the statistics of the gradients. A run that was killed goes on after its last checkpoint; a run that has
    ended is not made again. Equal runs give equal metrics, on CPU bit for bit, however often they were
    interrupted.

    Args:
      dataset: the images to train on and to evaluate on, as `experiments.data.select` gives them.
      on_epoch: called after each epoch with the record so far.
      devices: number of devices that share each batch; on several hosts, which all call this, all there are.
      shard_params: divides parameters and optimizer state among the devices; see `layout.lay_out`.
      keep_checkpoint: leaves the finished run's checkpoint, for `load_model`.

    Returns:
      The run's record, with status 'finished', or 'diverged' if a loss or a parameter became NaN or infinite.

    Raises:
      ValueError: the run does not fit the data or the devices.
      FileError: a record or a checkpoint cannot be read or written, or is of a run on other data.
      HostError: of several hosts one trains something else, or on other data.
    """
    resuming.check_same_on_hosts(run, dataset)
    record = hosts.on_first(records.read_record, out, run)
    if record is not None:
        resuming.check_same_data(record, dataset, out)
        if hosts.on_first(records.has_ended, out, record, keep_checkpoint):
            return record
    hosts.on_first(records.remove_leftovers, out, run)

    tasks.make_task(run, dataset)
    check_fits(run, dataset, devices)
    setup, state = set_up(run, dataset, devices, shard_params)
    resumed = resuming.from_checkpoint(record, state, out)
    if resumed is None:
        hosts.on_first(records.remove_checkpoint, out, run)
    record, state, dynamics = resumed or _start(run, dataset, state)
    record = resuming.note_environment(record, devices)

    if len(record.epochs) < run.epochs:
        started = time.perf_counter()
        run_epoch = _compile_epoch(setup, state)
        record = dataclasses.replace(record, compile_seconds=round(time.perf_counter() - started, 3))
        hosts.on_first(records.write_record, out, record)
        divided = shard_params or hosts.count() > 1
        with resuming.Checkpoints(out, run, divided=divided) as checkpoints:
            for epoch in range(len(record.epochs), run.epochs):
                state, metrics, statistics, finite = run_epoch(state, epoch)
                record = dataclasses.replace(record, epochs=(*record.epochs, metrics))
                if not finite:
                    record = dataclasses.replace(record, status="diverged")
                # In this order, each file may know one epoch more than the next, but never one less.
                if dynamics is not None:
                    dynamics = dynamics.append(statistics)
                    hosts.on_first(records.write_dynamics, out, run, dynamics)
                hosts.on_first(records.write_record, out, record)
                if record.status == "running":
                    checkpoints.write(state, epoch + 1)
                if on_epoch is not None:
                    on_epoch(record)
                if record.status == "diverged":
                    break
        # An older one of the other kind, of a start on other hosts or devices.
        hosts.on_first(records.remove_checkpoint, out, run, "file" if divided else "folder")

    if record.status == "running":
        # Before the checkpoint goes: a run killed here finds it again, and scores its network then.
        scores = _score(setup, state)
        record = dataclasses.replace(record, status="finished", scores=scores)
        hosts.on_first(records.write_record, out, record)
    if record.status == "diverged" or not keep_checkpoint:
        hosts.on_first(records.remove_checkpoint, out, run)
    return record


def _score(setup: Setup, state: TrainState) -> dict[str, float]:
    """Scores of the network on the test images, batch by batch."""
    dataset = setup.dataset
    task = tasks.make_task(setup.run, dataset)
    if task.new_scores is None:
        return {}

    def predict(state, images):
        model = nnx.merge(setup.graphdef, state.params, state.batch_stats)
        return task.outputs(model(normalize(images, dataset.mean, dataset.std), train=False))

    predict = jax.jit(predict, out_shardings=NamedSharding(setup.mesh, PartitionSpec()))
    scores = task.new_scores()
    start = 0
    for images, _labels, _is_image in streamed.test_batches(setup):
        # The labels of other hosts' images are in memory here too; padding comes last.
        labels = dataset.test_labels[start : start + len(images)]
        scores.update(jax.device_get(predict(state, images))[: len(labels)], labels)
        start += len(images)
    return scores.compute()


def _compile_epoch(
    setup: Setup, state: TrainState
) -> Callable[[TrainState, int], tuple[TrainState, EpochMetrics, Mapping[str, np.ndarray], bool]]:
    """Compiles training and evaluation, once for all epochs."""
    run, dataset = setup.run, setup.dataset
    train_epoch, evaluate = (streamed if dataset.is_streamed else epoch_in_memory).compile(setup, state)

    def run_epoch(state, epoch):
        started = time.perf_counter()
        state, measured = train_epoch(state, epoch)
        if run.evaluates(epoch + 1):
            measured |= evaluate(state)
        measured = jax.device_get(measured)
        if not _is_finite(measured) and "test_loss" not in measured:
            # The run ends here, and counts with what its network is worth now.
            measured |= jax.device_get(evaluate(state))
        was_evaluated = "test_loss" in measured
        correct = float(measured.get("test_correct", 0))
        metrics = EpochMetrics(
            epoch=epoch + 1,
            train_loss=_shortest(measured["train_loss"]),
            train_accuracy=float(measured["train_correct"]) / (steps_in(epoch) * run.batch_size),
            test_loss=_shortest(measured["test_loss"]) if was_evaluated else None,
            test_accuracy=correct / len(dataset.test_images) if was_evaluated else None,
            nonfinite_steps=int(measured["nonfinite_steps"]),
            seconds=round(time.perf_counter() - started, 4),
        )
        statistics = {name: measured[name] for name in EPOCH_STATISTICS if name in measured}
        return state, metrics, statistics, _is_finite(measured)

    def steps_in(epoch):
        return run.steps_in(epoch + 1, len(dataset.train_images))

    return run_epoch


def _is_finite(measured: Mapping[str, np.ndarray]) -> bool:
    """Whether an epoch left a sound network behind."""
    losses = measured["train_loss"] + measured.get("test_loss", 0.0)
    # On CPU a ReLU can turn NaN into 0, so that a finite loss alone does not show sound parameters.
    return math.isfinite(losses) and bool(measured["finite_params"])


def _shortest(value: np.ndarray) -> float:
    """The number with the fewest digits that is this float32: short in a record, and nothing is lost."""
    return float(str(np.float32(value)))


def _start(
    run: Run, dataset: Dataset, state: TrainState
) -> tuple[RunRecord, TrainState, GradientDynamics | None]:
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    dynamics = _no_dynamics(state) if run.dynamics else None
    return RunRecord(run, parameters=parameters, data=resuming.describe_data(dataset)), state, dynamics


def _no_dynamics(state: TrainState) -> GradientDynamics:
    """The layers, each block of a stack on its own, and statistics of no epoch."""
    std = optax_gradnorm.gradient_dynamics(state.opt_state).std
    leaves = zip(optax_gradnorm.layer_names(state.params), jax.tree.leaves(state.params), strict=True)
    sizes: dict[str, int] = {name: leaf.size for name, leaf in leaves}
    layers: dict[str, int] = {}
    for name, deviations in zip(optax_gradnorm.layer_names(std), jax.tree.leaves(std), strict=True):
        blocks: int = deviations.size
        names = [name] if blocks == 1 else axes.names_in_stack(name, blocks)
        layers |= dict.fromkeys(names, sizes[name] // blocks)
    per_layer = np.zeros((0, len(layers)), np.float32)
    return GradientDynamics(
        tuple(layers),
        np.array(list(layers.values()), np.int64),
        std=per_layer,
        smallest_std=per_layer,
        mean=per_layer,
        global_std=np.zeros(0, np.float32),
    )
