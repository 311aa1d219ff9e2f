"""What a run left on disk, taken up again: its checkpoint, its statistics, and the data it was made on."""

import dataclasses
import functools
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx

from experiments import hosts, machine, records
from experiments.data import Dataset
from experiments.records import RecordError, RunRecord, sharded
from experiments.records.dynamics import GradientDynamics
from experiments.run import Run
from experiments.training import layout
from experiments.training.state import create_model, split_model

State = TypeVar("State")


def describe_data(dataset: Dataset) -> dict[str, Any]:
    """What a record keeps of the data; see `RunRecord.data`."""
    return {
        "train_images": len(dataset.train_images),
        "test_images": len(dataset.test_images),
        "image_shape": list(dataset.train_images.shape[1:]),
        "num_classes": dataset.num_classes,
        "mean": dataset.mean.tolist(),
        "std": dataset.std.tolist(),
        **({"damaged": dataset.damaged} if dataset.damaged else {}),
        "labels_checksum": zlib.crc32(
            dataset.test_labels.tobytes(), zlib.crc32(dataset.train_labels.tobytes())
        ),
        "images_checksum": dataset.images_checksum,
    }


def check_same_data(record: RunRecord, dataset: Dataset, out: str | Path) -> None:
    """Epochs on other data under the same name are neither continued nor thrown away.

    Raises:
      RecordError: the record has epochs on other data. One of before images had a checksum is taken as it is,
        and a line on standard error says so.
    """
    before, now = record.data, describe_data(dataset)
    changes = [
        f"{name} was {before[name]}, is {now[name]}"
        for name in now
        if name in before and not _agree(before[name], now[name])
    ]
    if record.epochs and changes:
        name = record.run.name
        raise RecordError(
            f"run {name} in {out} was made on other data ({'; '.join(changes)}): "
            f"choose another --out, or remove {name}.json to start the run again"
        )
    if record.epochs and "images_checksum" not in before and hosts.is_first():
        print(
            f"the record of {record.run.name} has no checksum of its images: whether they are still the same "
            f"was not checked",
            file=sys.stderr,
        )


def check_same_on_hosts(run: Run, dataset: Dataset) -> None:
    """Hosts may have copies of the data of their own, and each was given a command of its own."""
    data = hosts.in_turn(describe_data, dataset)  # It reads images of streamed sets.
    hosts.check_same("the run", run.name)
    # Without means, whose last digit may depend on the machine.
    hosts.check_same("the data", {name: data[name] for name in data if name not in ("mean", "std")})


def _agree(before: Any, now: Any) -> bool:
    """Floats nearly, because the last digit of a mean may depend on the machine."""
    is_near = np.allclose if isinstance(now, list) else np.array_equal
    return np.shape(before) == np.shape(now) and is_near(before, now)


def from_checkpoint(
    record: RunRecord | None, state: State, out: str | Path
) -> tuple[RunRecord, State, GradientDynamics | None] | None:
    """What there was after the last checkpoint, or `None` if the run has to start at the beginning.

    Args:
      record: the run's, where it has one.
      state: lies on the devices, as that of the checkpoint then does.
    """
    if record is None:
        return None
    run, folder = record.run, records.sharded_checkpoint(out, record.run)
    like = by_name(state)
    arrays = hosts.in_turn(records.read_checkpoint, out, run, {"epoch": np.array(0), **like})
    epoch = hosts.on_first(sharded.latest_epoch, folder)
    if epoch is not None and (arrays is None or epoch > int(arrays["epoch"])):
        check = functools.partial(records.check_fits, run, like)
        arrays = {"epoch": np.array(epoch), **sharded.read(folder, epoch, like, check=check)}
    if arrays is None:
        return None
    epochs = int(arrays["epoch"])
    if epochs > len(record.epochs):  # the record was removed, or is not the one of this checkpoint
        return None
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    state = layout.put(from_arrays(state, arrays), shardings)
    record = dataclasses.replace(record, status="running", message="", epochs=record.epochs[:epochs])
    dynamics = hosts.on_first(records.read_dynamics, out, record) if run.dynamics else None
    if record.run.dynamics and dynamics is None:  # the file was removed
        return None
    return record, state, dynamics


def read_arrays(
    out: str | Path, run: Run, like: Mapping[str, Any] | None = None
) -> dict[str, np.ndarray] | None:
    """A run's last checkpoint, whole on this host, however it was written; `None` if there is none.

    Args:
      like: by name, what has the shapes and dtypes of the arrays wanted; by default all are read.
    """
    wanted = None if like is None else {"epoch": np.array(0), **like}
    check = None if like is None else functools.partial(records.check_fits, run, like)
    arrays, folder = records.read_checkpoint(out, run, wanted), records.sharded_checkpoint(out, run)
    epoch = sharded.latest_epoch(folder)
    if epoch is None or (arrays is not None and int(arrays.get("epoch", 0)) >= epoch):
        return arrays
    return {"epoch": np.array(epoch), **sharded.read(folder, epoch, check=check)}


def load_model(run: Run, *, out: str | Path) -> nnx.Module:
    """Builds the model of a finished run that kept its checkpoint.

    Returns:
      The trained model, to be called as `model(images, train=False)`; its record's `data` has the mean and
      standard deviation by which to normalise images.

    Raises:
      RecordError: the run has no record, has not finished or kept no checkpoint, or a file is damaged.
    """
    record = records.read_record(out, run)
    if record is None:
        raise RecordError(f"there is no record of the run {run.name} in {out}")
    if record.status != "finished":
        raise RecordError(f"run {run.name} in {out} has not finished: its status is {record.status!r}")
    data = record.data
    # Shapes alone: initial values would be computed, layer by layer, to be thrown away.
    model = nnx.eval_shape(lambda: create_model(run, data["image_shape"], data["num_classes"]))
    graphdef, params, batch_stats = split_model(model)
    state = {"params": params, "batch_stats": batch_stats}
    arrays = read_arrays(out, run, by_name(state))
    if arrays is None:
        raise RecordError(f"run {run.name} has no checkpoint in {out}: train it with --keep-checkpoints")
    state = from_arrays(state, arrays)
    return nnx.merge(graphdef, state["params"], state["batch_stats"])


class Checkpoints:
    """Writes a run's checkpoints: one file, or where the state is divided among devices or hosts, by Orbax."""

    def __init__(self, out: str | Path, run: Run, *, divided: bool):
        self.out, self.run = out, run
        self._writer = sharded.Writer(records.sharded_checkpoint(out, run)) if divided else None

    def write(self, state: Any, epoch: int) -> None:
        """Writes the state after some epochs; by Orbax it is whole by the next call, or the end of the context."""
        if self._writer is None:
            records.write_checkpoint(self.out, self.run, to_arrays(state, epoch))
        else:
            self._writer.write(by_name(state), epoch)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, *_) -> None:
        """Waits until the last checkpoint is whole; but not for a host that may have gone."""
        if self._writer is not None and (kind is None or hosts.count() == 1):
            self._writer.close()


def note_environment(record: RunRecord, devices: int) -> RunRecord:
    """The record with this environment, or with what of it has changed since the run was begun."""
    environment = machine.describe_environment(devices)
    if not record.epochs:
        return dataclasses.replace(record, environment=environment)
    before = {"hosts": 1, **record.environment}  # Records of before there were several have no number.
    changes = {key: value for key, value in environment.items() if before.get(key) != value}
    restart = {"after_epoch": len(record.epochs), **changes}
    return dataclasses.replace(record, resumed=(*record.resumed, restart))


def to_arrays(state: Any, epoch: int) -> dict[str, np.ndarray]:
    """A checkpoint: every array of the state by its path, and the number of epochs done."""
    return {"epoch": np.array(epoch), **by_name(jax.device_get(state))}


def by_name(state: Any) -> dict[str, Any]:
    """Every array of the state by its path."""
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]}


def from_arrays(tree: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """The tree with its arrays taken from a checkpoint, which has one for each."""
    return jax.tree_util.tree_map_with_path(lambda path, _: arrays[_name(path)], tree)


def _name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
