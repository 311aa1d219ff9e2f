"""What a run leaves on disk while it is under way: files of its own, on which resuming rests.

A folder of records holds, per run, `NAME.json` (the record), for runs with `dynamics` also
`NAME.dynamics.npz` (statistics of the gradients), and, while the run is under way or where it was asked for,
`NAME.npz` (the checkpoint), or of a state divided among devices or hosts the folder `NAME.checkpoint`. A folder of
measurements holds a `NAME.json` for each. All are replaced whole, so that a process killed at any moment, or a full
disk, leaves the last complete file.

What was published of a folder lies beside it (see `lines`). Those who read a whole folder get both; where both have
the same run, the folder's own, unless it has not ended.
"""

import dataclasses
import functools
import glob
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from experiments.files import NpzError, read_bytes, read_npz, write_whole
from experiments.records import lines, schema, typed
from experiments.records.dynamics import GradientDynamics
from experiments.records.schema import ENDED, MeasurementRecord, RecordError, RunRecord
from experiments.records.sharded import latest_epoch, remove_unfinished
from experiments.run import Run

# Bytes of the statistics of a run: of 500 layers in 10,000 epochs they take a quarter.
MOST_DYNAMICS = 2**28
REMEDY = "remove it to start the run again"
Content = TypeVar("Content")


def write_record(out: str | Path, record: RunRecord) -> Path:
    """Writes a record, in place of an older one.

    Args:
      out: folder of the records, made if missing.

    Returns:
      The record's file.

    Raises:
      FileError: the file cannot be written; an older record is left as it was.
    """
    fields = schema.run_to_fields(record)
    epochs = ",\n".join("  " + schema.to_json(epoch) for epoch in fields.pop("epochs"))
    lines = [f'"{name}": {schema.to_json(value)}' for name, value in fields.items()]
    lines.append(f'"epochs": [\n{epochs}\n]' if epochs else '"epochs": []')
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    return write_whole(_record_path(out, record.run), lambda file: file.write(text.encode()))


def read_record(out: str | Path, run: Run) -> RunRecord | None:
    """Reads the record of a run.

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
        raise RecordError(f"cannot read {path}: it is the record of another run; {REMEDY}")
    return record


def find_record(run: str | Path, out: str | Path | None = None) -> tuple[Path, RunRecord]:
    """Finds the record of a run that is named as people do.

    Args:
      run: the record's file, or with `out` the run's name.

    Returns:
      The folder of the record, and the record.

    Raises:
      RecordError: there is none, or it is damaged or of another format.
    """
    path = Path(run) if out is None else Path(out) / f"{run}.json"
    if path.suffix != ".json":  # it may be a checkpoint, which nobody should be told to remove
        raise RecordError(f"{path} is no record: their names end in .json")
    try:
        return path.parent, _read(path)
    except FileNotFoundError:
        raise RecordError(f"there is no record {path}") from None


def read_records(out: str | Path) -> list[RunRecord]:
    """Reads all records of a folder and what was published of it, by name of the run.

    Raises:
      RecordError: there is neither, or a record is damaged or of another format.
    """
    if not exists(out):
        raise RecordError(f"there is no folder {out}")
    found = lines.read_runs(out)
    for record in read_working_records(out):
        if record.status in ENDED or record.run.name not in found:
            found[record.run.name] = record
    return [found[name] for name in sorted(found)]


def read_working_records(out: str | Path) -> list[RunRecord]:
    """Reads the records of a folder alone, by name of the run; none if there is no folder.

    Raises:
      RecordError: a record is damaged or of another format.
    """
    return _read_folder(out, _read)


def exists(out: str | Path) -> bool:
    """Whether there is such a folder of records or of measurements, or what was published of one."""
    return Path(out).is_dir() or lines.runs_file(out).exists()


def write_dynamics(out: str | Path, run: Run, dynamics: GradientDynamics) -> None:
    """Writes the statistics of a run's gradients, in place of older ones.

    Args:
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

    Returns:
      The statistics of the record's epochs, or `None` if there are none (of all of them).

    Raises:
      RecordError: the file is damaged.
    """
    path = _dynamics_path(out, record.run)
    arrays = _read_arrays(path, most=MOST_DYNAMICS)
    if arrays is None:
        dynamics = lines.read_dynamics(out, record.run.name).get(record.run.name)
        if dynamics is None:
            return None
    else:
        with schema.naming(path, REMEDY):
            dynamics = schema.dynamics_from_arrays(arrays)
    # A kill may have left one epoch more than the record has, but never one less.
    return dynamics.first(len(record.epochs)) if len(dynamics.std) >= len(record.epochs) else None


def write_measurement(out: str | Path, record: MeasurementRecord) -> None:
    """Writes what was measured, in place of an older file.

    Args:
      out: folder of the measurements, made if missing.

    Raises:
      FileError: the file cannot be written; an older one is left as it was.
    """
    fields = schema.measurement_to_fields(record)
    lines = ",\n".join(f'"{name}": {schema.to_json(value)}' for name, value in fields.items())
    write_whole(Path(out) / f"{record.name}.json", lambda file: file.write(f"{{\n{lines}\n}}\n".encode()))


def read_measurements(out: str | Path) -> dict[str, MeasurementRecord]:
    """Reads all measurements of a folder and what was published of it, by name; none if there is neither.

    NaN and infinities come back as the strings 'nan', 'inf' and '-inf', which `float` reads.

    Raises:
      RecordError: a file is damaged or of another format.
    """
    return lines.read_measurements(out) | read_working_measurements(out)


def read_working_measurements(out: str | Path) -> dict[str, MeasurementRecord]:
    """Reads the measurements of a folder alone, by name; none if there is no folder.

    Raises:
      RecordError: a file is damaged or of another format.
    """
    return {record.name: record for record in _read_folder(out, _read_measurement)}


def write_checkpoint(out: str | Path, run: Run, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a run's checkpoint, in place of an older one.

    Args:
      arrays: by name; NumPy's own dtypes.

    Raises:
      FileError: the file cannot be written; an older checkpoint is left as it was.
    """
    write_whole(_checkpoint_path(out, run), lambda file: np.savez(file, allow_pickle=False, **arrays))


def read_checkpoint(
    out: str | Path, run: Run, like: Mapping[str, Any] | None = None
) -> dict[str, np.ndarray] | None:
    """Reads a run's checkpoint.

    Args:
      like: by name, what has the shapes and dtypes of the arrays wanted; by default all are read, whatever they are.

    Returns:
      The arrays by name, or `None` if there is no checkpoint.

    Raises:
      RecordError: the file is damaged or too large for the memory, or as `check_fits`.
    """
    if like is None:
        return _read_arrays(_checkpoint_path(out, run))
    check = functools.partial(check_fits, run, like)
    return _read_arrays(_checkpoint_path(out, run), list(like), check=check)


def check_fits(run: Run, like: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Refuses a checkpoint of another network, before its arrays take memory.

    Args:
      like: by name, such as 'params/linear/bias', what has the shapes and dtypes of the arrays wanted.
      found: the same of the checkpoint. Parts, such as 'opt_state', of which `like` has nothing may be anything.

    Raises:
      RecordError: an array differs, or is in one of the two alone.
    """
    parts = {name.partition("/")[0] for name in like}
    for name in sorted(like.keys() | {name for name in found if name.partition("/")[0] in parts}):
        one, other = like.get(name), found.get(name)
        if one is None or other is None or (tuple(one.shape), one.dtype) != (tuple(other.shape), other.dtype):
            raise RecordError(
                f"the checkpoint of {run.name} is of another model or optimizer: see {name!r}; "
                f"remove {run.name}.npz, or the folder {run.name}.checkpoint, to start the run again"
            )


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
    return record.status in ENDED


def remove_checkpoint(out: str | Path, run: Run, *kinds: Literal["file", "folder"]) -> None:
    """Removes a run's checkpoint, if there is one: its file, its folder of checkpoints by Orbax, by default both."""
    if not kinds or "file" in kinds:
        _checkpoint_path(out, run).unlink(missing_ok=True)
    if not kinds or "folder" in kinds:
        shutil.rmtree(sharded_checkpoint(out, run), ignore_errors=True)


def remove_leftovers(out: str | Path, run: Run) -> None:
    """Removes what a process that was killed while it wrote left half-written."""
    for path in Path(out).glob(f".{glob.escape(run.name)}.*"):
        path.unlink(missing_ok=True)
    remove_unfinished(sharded_checkpoint(out, run))


def _record_path(out: str | Path, run: Run) -> Path:
    return Path(out) / f"{run.name}.json"


def _checkpoint_path(out: str | Path, run: Run) -> Path:
    return Path(out) / f"{run.name}.npz"


def _dynamics_path(out: str | Path, run: Run) -> Path:
    return Path(out) / f"{run.name}.dynamics.npz"


def _read(path: Path) -> RunRecord:
    with schema.naming(path, REMEDY):
        record = schema.run_from_fields(typed.parse(read_bytes(path)))
        if record.run.name != path.stem:
            raise ValueError(f"it is the record of another run, {record.run.name}")
        return record


def _read_measurement(path: Path) -> MeasurementRecord:
    with schema.naming(path, "remove it to measure again"):
        record = schema.measurement_from_fields(typed.parse(read_bytes(path)))
        if record.name != path.stem:
            raise ValueError(f"it is the measurement {record.name!r}")
        return record


def _read_folder(out: str | Path, read: Callable[[Path], Content]) -> list[Content]:
    """What the .json files of a folder hold, by name of the file."""
    found = []
    for path in sorted(Path(out).glob("*.json")):
        try:
            found.append(read(path))
        except FileNotFoundError:
            raise RecordError(f"cannot read {path}: it was removed while its folder was read") from None
    return found


def _read_arrays(path: Path, *wanted, **limits) -> dict[str, np.ndarray] | None:
    try:
        return read_npz(path, *wanted, **limits)
    except FileNotFoundError:
        return None
    except NpzError as error:
        raise RecordError(f"cannot read {path}: {error}; {REMEDY}") from error
