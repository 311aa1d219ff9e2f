"""Many runs: those that have ended are skipped, the others are trained by the pool and go on where they were."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from experiments import hosts
from experiments.files import FileError
from experiments.jobs import pool
from experiments.options import DEFAULTS, Options
from experiments.records import (
    RunRecord,
    has_ended,
    read_dynamics,
    read_published,
    read_record,
    write_record,
)
from experiments.run import Run

Kind = Literal["skipped", "started", "epoch", "retried", "finished", "diverged", "failed"]
_ENDINGS: dict[str, Kind] = {"finished": "finished", "diverged": "diverged", "failed": "failed"}


@dataclasses.dataclass(frozen=True)
class Event:
    """Something that happened to one run of a sweep.

    Attributes:
      kind: 'skipped' (it had ended before this sweep), 'started', 'epoch', 'retried' (its worker died, it
        starts again), or how it ended: 'finished', 'diverged', 'failed'.
      run: the run it happened to.
      record: the run's record so far, where there is one.
      message: why it was retried or failed.
      worker: process id of the worker that has the run.
    """

    kind: Kind
    run: Run
    record: RunRecord | None = None
    message: str = ""
    worker: int | None = None


OnEvent = Callable[[Event], None]


def sweep(
    runs: Sequence[Run],
    out: Path,
    options: Options = DEFAULTS,
    on_event: OnEvent | None = None,
) -> list[RunRecord]:
    """Makes all runs that have not ended yet, the first seed of every setting before the second.

    `pool.run_all` says where they are made, and what becomes of a run whose worker dies or raises: at last it
    is marked failed. Called again after an interruption, ended runs are skipped, failed ones tried again, and
    the others go on after their last epoch.

    Args:
      runs: what to train; runs of the same name are made once.
      out: folder of the records; what was published of it counts as made.
      options: how runs are made. Several devices train in this process, as do several hosts, which all call this
        with the same runs. Where checkpoints are kept, finished runs without one are made again.
      on_event: called in this process with every `Event`.

    Returns:
      One record per run, in the order of `runs`.
    """
    devices = hosts.device_count(options.devices)
    progress = _Progress(Path(out), options.keep_checkpoints, on_event or (lambda event: None))
    waiting = [run for run in sorted(dict.fromkeys(runs), key=lambda run: run.seed) if progress.add(run)]
    trainer = _Trainer(Path(out), options, devices)
    pool.run_all(waiting, trainer, progress, workers=options.workers, devices=devices)
    return [progress.records[run.name] for run in runs]


class _Progress:
    """The records of the runs that ended; makes an `Event` of whatever the pool tells."""

    def __init__(self, out: Path, keep_checkpoints: bool, on_event: OnEvent):
        self.out = out
        self.keep_checkpoints = keep_checkpoints
        self.notify = on_event
        self.published = hosts.on_first(read_published, out)
        self.records: dict[str, RunRecord] = {}

    def add(self, run: Run) -> bool:
        """Whether the run is still to be made."""
        try:
            record = hosts.on_first(read_record, self.out, run) or self.published.get(run.name)
            is_ended = record is not None and hosts.on_first(self._is_ended, record)
        except FileError as error:
            self.failed(run, str(error), None, is_file_error=True)
            return False
        if record is None or not is_ended:
            return True
        self.records[run.name] = record
        self.notify(Event("skipped", run, record))
        return False

    def _is_ended(self, record: RunRecord) -> bool:
        """Whether nothing is left to train; damaged statistics are told now, not when all others have trained."""
        if not has_ended(self.out, record, self.keep_checkpoints):
            return False
        if record.run.dynamics:
            read_dynamics(self.out, record)
        return True

    def started(self, job: Run, worker: int) -> None:
        self.notify(Event("started", job, worker=worker))

    def told(self, job: Run, news: RunRecord, worker: int) -> None:
        self.notify(Event("epoch", job, news, worker=worker))

    def ended(self, job: Run, result: RunRecord, worker: int) -> None:
        self.records[job.name] = result
        self.notify(Event(_ENDINGS[result.status], job, result, worker=worker))

    def retried(self, job: Run, message: str, worker: int) -> None:
        self.notify(Event("retried", job, message=message, worker=worker))

    def failed(self, job: Run, message: str, worker: int | None, is_file_error: bool) -> None:
        record = RunRecord(run=job, status="failed", message=message)
        if not is_file_error:  # what cannot be read is left for the user to judge
            try:
                known = hosts.on_first(read_record, self.out, job)
                record = dataclasses.replace(known or record, status="failed", message=message)
                hosts.on_first(write_record, self.out, record)
            except (FileError, OSError) as error:
                message = f"{message}; its record could not be written: {error}"
        self.records[job.name] = record
        self.notify(Event("failed", job, record, message, worker))


class _Trainer:
    """Trains runs one by one and keeps the last data set, so that it is loaded once."""

    def __init__(self, out: Path, options: Options, devices: int):
        self.out = out
        self.options = options
        self.devices = devices
        self.loaded: tuple[str, Any] | None = None

    def __call__(self, run: Run, on_epoch: Callable[[Any], None]) -> RunRecord:
        # Imported in the training process, after it was pinned to its core.
        from experiments import data, training

        options = self.options
        if self.loaded is None or self.loaded[0] != run.dataset:
            self.loaded = None  # frees the old one before the new one comes
            loaded = hosts.in_turn(data.load, run.dataset, options.data_dir, options.reading)
            self.loaded = (run.dataset, loaded)
        return training.train(
            run,
            data.select(self.loaded[1], run),
            out=self.out,
            on_epoch=on_epoch,
            devices=self.devices,
            shard_params=options.devices.shard_params,
            keep_checkpoint=options.keep_checkpoints,
        )
