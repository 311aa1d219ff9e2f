"""What a run left on disk, taken up again: its checkpoint, its statistics, and the data it was made on."""

import dataclasses
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from experiments import machine, records
from experiments.data import Dataset
from experiments.records import RecordError, RunRecord
from experiments.run import Run
from experiments.statistics import GradientDynamics

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
    }


def check_same_data(record: RunRecord, dataset: Dataset, out: str | Path) -> None:
    """Epochs on other data under the same name are neither continued nor thrown away."""
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


def _agree(before: Any, now: Any) -> bool:
    """Floats nearly, because the last digit of a mean may depend on the machine."""
    is_near = np.allclose if isinstance(now, list) else np.array_equal
    return np.shape(before) == np.shape(now) and is_near(before, now)


def from_checkpoint(
    record: RunRecord | None, state: State, out: str | Path
) -> tuple[RunRecord, State, GradientDynamics | None] | None:
    """What there was after the last checkpoint, or `None` if the run has to start at the beginning."""
    arrays = None if record is None else records.read_checkpoint(out, record.run)
    if record is None or arrays is None:
        return None
    epochs = int(_take("epoch", np.array(0), arrays, record.run))
    if epochs > len(record.epochs):  # the record was removed, or is not the one of this checkpoint
        return None
    state = from_arrays(state, arrays, record.run)
    record = dataclasses.replace(record, status="running", message="", epochs=record.epochs[:epochs])
    dynamics = records.read_dynamics(out, record) if record.run.dynamics else None
    if record.run.dynamics and dynamics is None:  # the file was removed
        return None
    return record, state, dynamics


def note_environment(record: RunRecord, devices: int) -> RunRecord:
    """The record with this environment, or with what of it has changed since the run was begun."""
    environment = machine.describe_environment(devices)
    if not record.epochs:
        return dataclasses.replace(record, environment=environment)
    changes = {key: value for key, value in environment.items() if record.environment.get(key) != value}
    restart = {"after_epoch": len(record.epochs), **changes}
    return dataclasses.replace(record, resumed=(*record.resumed, restart))


def to_arrays(state: Any, epoch: int) -> dict[str, np.ndarray]:
    """A checkpoint: every array of the state by its path, and the number of epochs done."""
    leaves = jax.tree_util.tree_flatten_with_path(jax.device_get(state))[0]
    return {"epoch": np.array(epoch), **{_name(path): leaf for path, leaf in leaves}}


def from_arrays(tree: Any, arrays: Mapping[str, np.ndarray], run: Run, prefix: str = "") -> Any:
    """The tree with its arrays taken from a checkpoint."""

    def take(path, leaf):
        return _take(prefix + _name(path), leaf, arrays, run)

    return jax.tree_util.tree_map_with_path(take, tree)


def _take(name: str, like: Any, arrays: Mapping[str, np.ndarray], run: Run) -> np.ndarray:
    """An array of a checkpoint, which must have the shape and dtype of another."""
    if name not in arrays or arrays[name].shape != like.shape or arrays[name].dtype != like.dtype:
        raise RecordError(
            f"the checkpoint of {run.name} is of another model or optimizer: see {name!r}; "
            f"remove {run.name}.npz to start the run again"
        )
    return arrays[name]


def _name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
