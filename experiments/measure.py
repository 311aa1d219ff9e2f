"""Measurements that are not training runs: each made once, on CPU by worker processes with one core each."""

import dataclasses
import multiprocessing
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from experiments import machine, records


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
    """Those that have no file yet.

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

    One that raises, or whose process dies, is tried once more; the others go on.

    Args:
      measurements: what to measure.
      out: folder of the measurements.
      context: passed to every measurement.
      workers: worker processes on CPU; by default one per core that this process may use. On an accelerator
        measurements are made one after another in this process.
      on_event: gets one line per event.

    Returns:
      Why measurements failed, by name; empty if all were made.

    Raises:
      RecordError: a file is damaged.
    """
    missing = find_missing(measurements, out)
    failures: dict[str, str] = {}
    done = len(measurements) - len(missing)

    def note(name: str, error: BaseException | None, seconds: float) -> None:
        nonlocal done
        if error is None:
            done += 1
            failures.pop(name, None)
            on_event(f"[{done}/{len(measurements)}] measured {name} ({seconds:.0f} s)")
        else:
            failures[name] = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
            on_event(f"[{done}/{len(measurements)}] failed {name}: {failures[name]}")

    def attempt(some: Sequence[Measurement]) -> None:
        if machine.backend() == "cpu":
            _measure_in_workers(some, out, context, workers or len(machine.usable_cores()), note)
        else:
            _measure_here(some, out, context, note)

    if missing:
        attempt(missing)
    # A process that dies takes the measurements of the others with it, so now each has its own.
    for measurement in [m for m in missing if m.name in failures]:
        attempt([measurement])
    return failures


Note = Callable[[str, BaseException | None, float], None]


def _measure_here(measurements: Sequence[Measurement], out: Path, context: Context, note: Note) -> None:
    for measurement in measurements:
        try:
            note(measurement.name, None, _measure_one(measurement, out, context))
        except Exception as error:  # one broken measurement must not end the others
            note(measurement.name, error, 0)


def _measure_in_workers(
    measurements: Sequence[Measurement], out: Path, context: Context, workers: int, note: Note
) -> None:
    # Fresh interpreters: the affinity must be set before JAX starts its threads.
    spawn = multiprocessing.get_context("spawn")
    count = min(workers, len(measurements))
    cores = spawn.Queue()
    for index in range(count):
        cores.put(machine.usable_cores()[index % len(machine.usable_cores())])
    with machine.compilation_cache() as cache:
        pool = ProcessPoolExecutor(count, spawn, _start_worker, (cores, cache))
        try:
            futures: dict[Future[float], str] = {
                pool.submit(_measure_one, measurement, out, context): measurement.name
                for measurement in measurements
            }
            for future in as_completed(futures):
                error = future.exception()
                note(futures[future], error, 0 if error else future.result())
        except BaseException:  # such as Ctrl-C: nothing is waited for
            for process in multiprocessing.active_children():
                process.kill()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def _start_worker(cores, cache: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends its workers
    threading.Thread(target=machine.exit_with_parent, daemon=True).start()
    machine.pin(cores.get())
    machine.use_compilation_cache(cache)


def _measure_one(measurement: Measurement, out: Path, context: Context) -> float:
    """Measures and writes; returns the seconds it took."""
    started = time.perf_counter()
    values = measurement.function(context, **measurement.arguments)
    seconds = round(time.perf_counter() - started, 2)
    environment = machine.describe_environment()
    record = records.MeasurementRecord(measurement.name, measurement.arguments, values, environment, seconds)
    records.write_measurement(out, record)
    return seconds
