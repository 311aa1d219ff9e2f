"""What git holds of runs and measurements: files of one line each, sorted by name, the same bytes whoever wrote them.

Beside a folder `records` lie `records.jsonl`, one line per ended run, and `records.dynamics.jsonl`, the statistics of
the gradients of those that have them; beside a folder `measurements` lies `measurements.jsonl`. A line holds all
there is to know of its run, the environment included, and has its keys sorted.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from experiments.files import read_bytes, write_whole
from experiments.records import schema, typed
from experiments.records.dynamics import GradientDynamics
from experiments.records.schema import MeasurementRecord, RunRecord

REMEDY = "put back the committed file, or remove the line and publish again"
Content = TypeVar("Content")


def runs_file(folder: str | Path) -> Path:
    """The file of the runs of a folder of records."""
    return Path(folder).with_name(f"{Path(folder).name}.jsonl")


def dynamics_file(folder: str | Path) -> Path:
    """The file of the statistics of their gradients."""
    return Path(folder).with_name(f"{Path(folder).name}.dynamics.jsonl")


def measurements_file(folder: str | Path) -> Path:
    """The file of the measurements of a folder of measurements."""
    return Path(folder).with_name(f"{Path(folder).name}.jsonl")


def read_runs(folder: str | Path) -> dict[str, RunRecord]:
    """The published records beside a folder, by name of the run; none if there is no file.

    Raises:
      RecordError: a line is damaged or of another format; names file and line.
    """
    return _read(runs_file(folder), _decode_run)


def read_measurements(folder: str | Path) -> dict[str, MeasurementRecord]:
    """The published measurements beside a folder, by name; none if there is no file.

    Raises:
      RecordError: a line is damaged or of another format; names file and line.
    """
    return _read(measurements_file(folder), schema.measurement_from_fields)


def read_dynamics(folder: str | Path, name: str | None = None) -> dict[str, GradientDynamics]:
    """The published statistics beside a folder of records, by name of the run; with `name` of that run alone.

    Raises:
      RecordError: a line is damaged or of another format; names file and line.
    """
    return _read(dynamics_file(folder), schema.dynamics_from_fields, name)


def write_runs(folder: str | Path, runs: Mapping[str, RunRecord]) -> Path:
    """Writes the file of the runs, whole, in place of an older one; its lines hold their names too."""
    fields = {name: {"name": name, **schema.run_to_fields(record)} for name, record in runs.items()}
    return _write(runs_file(folder), fields)


def write_measurements(folder: str | Path, measurements: Mapping[str, MeasurementRecord]) -> Path:
    """Writes the file of the measurements, whole, in place of an older one."""
    fields = {name: schema.measurement_to_fields(record) for name, record in measurements.items()}
    return _write(measurements_file(folder), fields)


def write_dynamics(folder: str | Path, dynamics: Mapping[str, GradientDynamics]) -> Path:
    """Writes the file of the statistics, whole, in place of an older one."""
    fields = {name: schema.dynamics_to_fields(name, statistics) for name, statistics in dynamics.items()}
    return _write(dynamics_file(folder), fields)


def _write(path: Path, lines: Mapping[str, Mapping[str, Any]]) -> Path:
    text = "".join(schema.to_json(lines[name], sort_keys=True) + "\n" for name in sorted(lines))
    return write_whole(path, lambda file: file.write(text.encode()))


def _read(
    path: Path, decode: Callable[[dict[str, Any]], Content], only: str | None = None
) -> dict[str, Content]:
    """What the lines of a file hold, by name; with `only` that of one name."""
    found: dict[str, Content] = {}
    with schema.naming(path, REMEDY):
        try:
            lines = read_bytes(path).splitlines()
        except (FileNotFoundError, NotADirectoryError):
            return found
        if not lines:
            raise ValueError("it is empty")
    for number, line in enumerate(lines, 1):
        # One that was cut off may lack its name.
        if only is not None and only.encode() not in line and line.endswith(b"}"):
            continue
        with schema.naming(f"line {number} of {path}", REMEDY):
            content = typed.decode(Mapping[str, Any], typed.parse(line))
            name = typed.decode(str, content["name"], "name")
            if name in found:
                raise ValueError(f"{name!r} stands in an earlier line too")
            found[name] = decode(content)
    return found


def _decode_run(content: dict[str, Any]) -> RunRecord:
    name = content.pop("name")
    record = schema.run_from_fields(content)
    if record.run.name != name:
        raise ValueError(f"it is called {name!r}, but its run is {record.run.name!r}")
    return record
