"""Measurements that are not training runs: each made once, by the pool."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from experiments import machine, records
from experiments.jobs import pool
from experiments.jobs.silence import Watch


@dataclasses.dataclass(frozen=True)
class Context:
    """What a measurement may read.

    Attributes:
      data_dir: folder of the prepared data sets.
      records_folder: records and checkpoints of the study's runs, for `training.load_model`.
    """

    data_dir: Path | None
    records_folder: Path


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One thing to measure.

    Attributes:
      name: unique in its study; the name of its file.
      function: of a module (worker processes import it), called as `function(context, **arguments)`; returns
        nested mappings and sequences of numbers and strings.
      arguments: plain values.
    """

    name: str
    function: Callable[..., Mapping[str, Any]]
    arguments: Mapping[str, Any]


def find_missing(measurements: Sequence[Measurement], out: Path) -> list[Measurement]:
    """The measurements that have no file yet.

    Raises:
      RecordError: a file is damaged.
    """
    made = records.read_measurements(out)
    return [measurement for measurement in measurements if measurement.name not in made]


def measure(
    measurements: Sequence[Measurement],
    *,
    out: Path,
    context: Context,
    workers: int | None = None,
    on_event: Callable[[str], None] = print,
) -> dict[str, str]:
    """Makes the measurements that have no file yet.

    `pool.run_all` says where they are made; one that raises, or whose process dies, is tried once more.

    Args:
      workers: worker processes on CPU; by default one per core that this process may use.

    Returns:
      Why measurements failed, by name; empty if all were made.

    Raises:
      RecordError: a file is damaged.
    """
    missing = find_missing(measurements, out)
    progress = _Progress(len(measurements), len(measurements) - len(missing), on_event)
    with progress.watch:
        pool.run_all(missing, partial(_measure_one, out=out, context=context), progress, workers=workers)
    return progress.failures


class _Progress:
    """Counts what is measured, and keeps why something could not be."""

    def __init__(self, total: int, done: int, on_event: Callable[[str], None]):
        self.total = total
        self.done = done
        self.on_event = on_event
        self.failures: dict[str, str] = {}
        self.watch = Watch(lambda name, line: on_event(f"[{self.done}/{self.total}] silent {name}: {line}"))

    def started(self, job: Measurement, worker: int) -> None:
        """Prints nothing: measurements are many and short."""
        self.watch.started(job.name, worker)

    def told(self, job: Measurement, news: Any, worker: int) -> None:
        """Measurements report no progress."""

    def ended(self, job: Measurement, result: float, worker: int) -> None:
        self.watch.ended(job.name)
        self.done += 1
        self.on_event(f"[{self.done}/{self.total}] measured {job.name} ({result:.0f} s)")

    def retried(self, job: Measurement, message: str, worker: int) -> None:
        self.watch.ended(job.name)
        self.on_event(f"[{self.done}/{self.total}] failed {job.name}: {message}")

    def failed(self, job: Measurement, message: str, worker: int, is_file_error: bool) -> None:
        self.watch.ended(job.name)
        self.failures[job.name] = message
        self.on_event(f"[{self.done}/{self.total}] failed {job.name}: {message}")


def _measure_one(
    measurement: Measurement, tell: Callable[[Any], None], *, out: Path, context: Context
) -> float:
    """Measures and writes; returns the seconds it took."""
    del tell
    started = time.perf_counter()
    values = measurement.function(context, **measurement.arguments)
    seconds = round(time.perf_counter() - started, 2)
    environment = machine.describe_environment()
    record = records.MeasurementRecord(measurement.name, measurement.arguments, values, environment, seconds)
    records.write_measurement(out, record)
    return seconds
