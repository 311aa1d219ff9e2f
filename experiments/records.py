"""A run's record and checkpoint on disk. Nothing else in the project knows what these files look like.

A folder of records holds, per run, `NAME.json` (the record), for runs with `dynamics` also
`NAME.dynamics.npz` (statistics of the gradients), and, while the run is under way or where it was asked for,
`NAME.npz` (the checkpoint), or of a state divided among devices or hosts the folder `NAME.checkpoint`. A folder
of measurements holds a `NAME.json` for each. All are replaced whole, so that a process killed at any moment, or
a full disk, leaves the last complete file.
"""

import contextlib
import dataclasses
import glob
import json
import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.files import FileError, NpzError, read_npz, write_whole
from experiments.run import Run
from experiments.sharded_checkpoints import latest_epoch
from experiments.statistics import GradientDynamics

SCHEMA = 1
STATUSES = ("running", "finished", "diverged", "failed")
REMEDY = "remove it to start the run again"


class RecordError(FileError):
    """A record or a checkpoint cannot be read or written. The message is one line and names the file."""


@dataclasses.dataclass(frozen=True)
class EpochMetrics:
    """What one epoch measured.

    Attributes:
      epoch: its number, from 1.
      train_loss: mean of the training objective (label smoothing included) over the epoch's steps.
      train_accuracy: share of the epoch's training images, as augmented, that were classified rightly
        before the step they took part in; for masks, of their pixels.
      test_loss: mean over the test images of the loss, without label smoothing, after the epoch. A loss of
        masks is here that of each image alone, while in training its overlap is that of a batch.
      test_accuracy: share of the test images, or of the masks' pixels, classified rightly after the epoch.
      nonfinite_steps: steps whose loss or gradient had a NaN or an infinity.
      seconds: wall time of training and evaluation, without compilation and without writing files.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    nonfinite_steps: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """What is known of one run.

    Attributes:
      run: its configuration.
      status: 'running' (also: was killed, and will go on), 'finished', 'diverged' (the loss or a parameter
        became NaN or infinite, and the run ended there) or 'failed'.
      message: why it failed.
      parameters: number of trained parameters.
      data: 'train_images' and 'test_images' (how many), 'image_shape' [height, width, channels],
        'num_classes', and 'mean' and 'std' per channel where 255 counts as 1.
      environment: as `machine.describe_environment` gives it where the run started.
      resumed: one entry per restart: 'after_epoch', and what had changed in the environment.
      compile_seconds: time to compile the training epoch and the evaluation, in the last start.
      epochs: one entry per finished epoch.
      scores: of the finished run's network on the test images, from `experiments.training.metrics`: with two classes
        'accuracy', 'roc_auc' and 'f1'; with masks 'dice', 'iou', 'tversky', 'hausdorff' and more; else none.
    """

    run: Run
    status: str = "running"
    message: str = ""
    parameters: int = 0
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    environment: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    resumed: tuple[Mapping[str, Any], ...] = ()
    compile_seconds: float = 0.0
    epochs: tuple[EpochMetrics, ...] = ()
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.status not in STATUSES:
            raise ValueError(f"unknown status {self.status!r}; choose from {', '.join(STATUSES)}")


def write_record(out: str | Path, record: RunRecord) -> Path:
    """Writes a record, in place of an older one.

    Args:
      out: folder of the records, made if missing.
      record: what to write.

    Returns:
      The record's file.

    Raises:
      FileError: the file cannot be written; an older record is left as it was.
    """
    fields = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    fields = {"schema": SCHEMA, **fields, "run": dataclasses.asdict(record.run)}
    epochs = ",\n".join("  " + _to_json(dataclasses.asdict(epoch)) for epoch in fields.pop("epochs"))
    lines = [f'"{name}": {_to_json(value)}' for name, value in fields.items()]
    lines.append(f'"epochs": [\n{epochs}\n]' if epochs else '"epochs": []')
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    return write_whole(_record_path(out, record.run), lambda file: file.write(text.encode()))


def read_record(out: str | Path, run: Run) -> RunRecord | None:
    """Reads the record of a run.

    Args:
      out: folder of the records.
      run: the run.

    Returns:
      Its record, or `None` if it has none.

    Raises:
      RecordError: the record is damaged, of another format, or of another run.
    """
    path = _record_path(out, run)
    try:
        record = _read(path)
    except FileNotFoundError:
        return None
    if record.run != run:
        raise RecordError(f"{path} is the record of another run; {REMEDY}")
    return record


def find_record(run: str | Path, out: str | Path | None = None) -> tuple[Path, RunRecord]:
    """Finds the record of a run that is named as people do.

    Args:
      run: the record's file, or with `out` the run's name.
      out: folder of the records.

    Returns:
      The folder of the record, and the record.

    Raises:
      RecordError: there is none, or it is damaged or of another format.
    """
    path = Path(run) if out is None else Path(out) / f"{run}.json"
    try:
        return path.parent, _read(path)
    except FileNotFoundError:
        raise RecordError(f"there is no record {path}") from None


def read_records(out: str | Path) -> list[RunRecord]:
    """Reads all records of a folder, by name of the run.

    Raises:
      RecordError: there is no such folder, or a record is damaged or of another format.
    """
    if not Path(out).is_dir():
        raise RecordError(f"there is no folder {out}")
    return [_read(path) for path in sorted(Path(out).glob("*.json"))]


def write_dynamics(out: str | Path, run: Run, dynamics: GradientDynamics) -> None:
    """Writes the statistics of a run's gradients, in place of older ones.

    Args:
      out: folder of the records.
      run: the run.
      dynamics: of all its epochs so far.

    Raises:
      FileError: the file cannot be written; an older one is left as it was.
    """
    arrays = {field.name: getattr(dynamics, field.name) for field in dataclasses.fields(dynamics)}
    arrays["layers"] = np.array(dynamics.layers, dtype=np.str_)
    write_whole(
        _dynamics_path(out, run), lambda file: np.savez_compressed(file, allow_pickle=False, **arrays)
    )


def read_dynamics(out: str | Path, record: RunRecord) -> GradientDynamics | None:
    """Reads the statistics of a run's gradients.

    Args:
      out: folder of the records.
      record: the run's record.

    Returns:
      The statistics of the record's epochs, or `None` if there are none (of all of them).

    Raises:
      RecordError: the file is damaged.
    """
    path = _dynamics_path(out, record.run)
    arrays = _read_arrays(path)
    if arrays is None:
        return None
    try:
        layers = tuple(arrays.pop("layers").tolist())
        dynamics = GradientDynamics(layers=layers, **arrays)
    except (KeyError, TypeError, ValueError) as error:
        raise RecordError(f"cannot read {path}: {error}; {REMEDY}") from error
    # A kill may have left one epoch more than the record has, but never one less.
    return dynamics.first(len(record.epochs)) if len(dynamics.std) >= len(record.epochs) else None


@dataclasses.dataclass(frozen=True)
class MeasurementRecord:
    """What was measured once, other than by training.

    Attributes:
      name: unique in its folder.
      arguments: of the measuring function.
      values: what it returned: nested mappings and sequences of numbers and strings.
      environment: as `machine.describe_environment` gives it.
      seconds: wall time.
    """

    name: str
    arguments: Mapping[str, Any]
    values: Mapping[str, Any]
    environment: Mapping[str, Any]
    seconds: float


def write_measurement(out: str | Path, record: MeasurementRecord) -> None:
    """Writes what was measured, in place of an older file.

    Args:
      out: folder of the measurements, made if missing.
      record: what to write.

    Raises:
      FileError: the file cannot be written; an older one is left as it was.
    """
    fields = {"schema": SCHEMA, **dataclasses.asdict(record)}
    lines = ",\n".join(f'"{name}": {_to_json(value)}' for name, value in fields.items())
    write_whole(Path(out) / f"{record.name}.json", lambda file: file.write(f"{{\n{lines}\n}}\n".encode()))


def read_measurements(out: str | Path) -> dict[str, MeasurementRecord]:
    """Reads all measurements of a folder, by name; none if there is no folder.

    NaN and infinities come back as the strings 'nan', 'inf' and '-inf', which `float` reads.

    Raises:
      RecordError: a file is damaged or of another format.
    """
    return {path.stem: _read_measurement(path) for path in sorted(Path(out).glob("*.json"))}


def write_checkpoint(out: str | Path, run: Run, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a run's checkpoint, in place of an older one.

    Args:
      out: folder of the records.
      run: the run.
      arrays: by name; NumPy's own dtypes.

    Raises:
      FileError: the file cannot be written; an older checkpoint is left as it was.
    """
    write_whole(_checkpoint_path(out, run), lambda file: np.savez(file, allow_pickle=False, **arrays))


def read_checkpoint(out: str | Path, run: Run) -> dict[str, np.ndarray] | None:
    """Reads a run's checkpoint.

    Returns:
      The arrays by name, or `None` if there is no checkpoint.

    Raises:
      RecordError: the file is damaged.
    """
    return _read_arrays(_checkpoint_path(out, run))


def has_checkpoint(out: str | Path, run: Run) -> bool:
    """Whether there is a checkpoint of the run."""
    return _checkpoint_path(out, run).exists() or latest_epoch(sharded_checkpoint(out, run)) is not None


def sharded_checkpoint(out: str | Path, run: Run) -> Path:
    """The folder of a run's checkpoints by Orbax: of a state that is divided among devices or hosts."""
    return Path(out) / f"{run.name}.checkpoint"


def has_ended(out: str | Path, record: RunRecord, keep_checkpoint: bool = False) -> bool:
    """Whether there is nothing left to train; with `keep_checkpoint` a finished run also needs its checkpoint."""
    if record.status == "finished":
        return not keep_checkpoint or has_checkpoint(out, record.run)
    return record.status == "diverged"


def remove_checkpoint(out: str | Path, run: Run) -> None:
    """Removes a run's checkpoint, if there is one."""
    _checkpoint_path(out, run).unlink(missing_ok=True)
    shutil.rmtree(sharded_checkpoint(out, run), ignore_errors=True)


def remove_leftovers(out: str | Path, run: Run) -> None:
    """Removes what a process that was killed while it wrote left half-written."""
    for path in Path(out).glob(f".{glob.escape(run.name)}.*"):
        path.unlink(missing_ok=True)


def _record_path(out: str | Path, run: Run) -> Path:
    return Path(out) / f"{run.name}.json"


def _checkpoint_path(out: str | Path, run: Run) -> Path:
    return Path(out) / f"{run.name}.npz"


def _dynamics_path(out: str | Path, run: Run) -> Path:
    return Path(out) / f"{run.name}.dynamics.npz"


def _to_json(value: Any) -> str:
    return json.dumps(_encode(value), allow_nan=False)


def _encode(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become 'nan', 'inf' and '-inf', which `float` reads."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(item) for item in value]
    return value


@contextlib.contextmanager
def _naming(path: Path, remedy: str) -> Iterator[None]:
    """Makes a `RecordError` of whatever a damaged or foreign file raises."""
    try:
        yield
    except FileNotFoundError:
        raise
    except KeyError as error:
        raise RecordError(f"cannot read {path}: it has no {error}; {remedy}") from error
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise RecordError(f"cannot read {path}: {error}; {remedy}") from error


def _read_json(path: Path) -> dict[str, Any]:
    """What a file of this version holds, without the version."""
    content = json.loads(path.read_bytes())
    schema = content.pop("schema")
    if schema != SCHEMA:
        raise ValueError(f"its schema is {schema!r}, this version reads {SCHEMA}")
    return content


def _read_measurement(path: Path) -> MeasurementRecord:
    with _naming(path, "remove it to measure again"):
        record = MeasurementRecord(**_read_json(path))
        if record.name != path.stem:
            raise ValueError(f"it is the measurement {record.name!r}")
        return record


def _read(path: Path) -> RunRecord:
    with _naming(path, REMEDY):
        content = _read_json(path)
        content["run"] = Run(**content["run"])
        content["epochs"] = tuple(_decode_epoch(**epoch) for epoch in content["epochs"])
        content["resumed"] = tuple(content["resumed"])
        # Records of before there were scores have none.
        content["scores"] = {name: float(score) for name, score in content.get("scores", {}).items()}
        record = RunRecord(**content)
        if [epoch.epoch for epoch in record.epochs] != list(range(1, len(record.epochs) + 1)):
            raise ValueError("its epochs are not 1, 2, 3, ...")
        return record


def _read_arrays(path: Path) -> dict[str, np.ndarray] | None:
    try:
        return read_npz(path)
    except FileNotFoundError:
        return None
    except NpzError as error:
        raise RecordError(f"cannot read {path}: {error}; {REMEDY}") from error


def _decode_epoch(*, epoch: int, nonfinite_steps: int, **floats: float | str) -> EpochMetrics:
    metrics = {name: float(value) for name, value in floats.items()}
    return EpochMetrics(epoch=int(epoch), nonfinite_steps=int(nonfinite_steps), **metrics)
