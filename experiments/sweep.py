"""Many runs: pinned worker processes on CPU, one after another on an accelerator; resumes."""

import collections
import contextlib
import dataclasses
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from experiments import machine
from experiments.files import FileError
from experiments.records import RunRecord, has_ended, read_record, write_record
from experiments.run import Run

if TYPE_CHECKING:
    from experiments.data import Dataset

ATTEMPTS = 2
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
    *,
    out: Path,
    data_dir: Path | None = None,
    workers: int | None = None,
    devices: int = 1,
    keep_checkpoints: bool = False,
    on_event: OnEvent | None = None,
) -> list[RunRecord]:
    """Makes all runs that have not ended yet, the first seed of every setting before the second.

    On CPU every worker process is pinned to one core and makes one run at a time: XLA uses several cores
    badly for small networks, and one thread gives the same bits on every machine load. On an accelerator,
    or with several devices, the runs are made one after another in this process.

    A run whose worker dies or raises is tried once more and then marked failed; the others go on. Called
    again after an interruption, ended runs are skipped, failed ones tried again, and the others go on
    after their last epoch.

    Args:
      runs: what to train; runs of the same name are made once.
      out: folder of the records.
      data_dir: folder of prepared data sets.
      workers: worker processes on CPU; by default one per core that this process may use.
      devices: devices that share each batch; more than one trains in this process.
      keep_checkpoints: leaves the checkpoints of finished runs, for `training.load_model`. Finished runs
        without one are made again.
      on_event: called in this process with every `Event`.

    Returns:
      One record per run, in the order of `runs`.
    """
    setup = _Setup(Path(out), data_dir, devices, keep_checkpoints)
    jobs = _Jobs(setup, on_event or (lambda event: None))
    for run in sorted(dict.fromkeys(runs), key=lambda run: run.seed):
        jobs.add(run)
    if jobs.waiting:
        with machine.compilation_cache() as cache:
            if devices == 1 and machine.backend() == "cpu":
                _train_in_workers(jobs, setup, workers or len(machine.usable_cores()), cache)
            else:
                _train_here(jobs, setup, cache)
    return [jobs.ended[run.name] for run in runs]


@dataclasses.dataclass(frozen=True)
class _Setup:
    """What every process that trains needs to know."""

    out: Path
    data_dir: Path | None
    devices: int
    keep_checkpoints: bool


class _Jobs:
    """The runs still to make, how often each was tried, and the records of those that ended."""

    def __init__(self, setup: _Setup, on_event: OnEvent):
        self.out = setup.out
        self.keep_checkpoints = setup.keep_checkpoints
        self.notify = on_event
        self.waiting: collections.deque[Run] = collections.deque()
        self.attempts: collections.Counter[str] = collections.Counter()
        self.ended: dict[str, RunRecord] = {}

    def add(self, run: Run) -> None:
        try:
            record = read_record(self.out, run)
        except FileError as error:
            self.fail(run, str(error), write=False)  # what cannot be read is left for the user to judge
            return
        if record is not None and has_ended(self.out, record, self.keep_checkpoints):
            self.ended[run.name] = record
            self.notify(Event("skipped", run, record))
        else:
            self.waiting.append(run)

    def start(self, worker: int) -> Run:
        run = self.waiting.popleft()
        self.attempts[run.name] += 1
        self.notify(Event("started", run, worker=worker))
        return run

    def epoch(self, run: Run, record: RunRecord, worker: int) -> None:
        self.notify(Event("epoch", run, record, worker=worker))

    def end(self, run: Run, record: RunRecord, worker: int) -> None:
        self.ended[run.name] = record
        self.notify(Event(_ENDINGS[record.status], run, record, worker=worker))

    def broke(self, run: Run, message: str, worker: int) -> None:
        if self.attempts[run.name] < ATTEMPTS:
            self.waiting.appendleft(run)
            self.notify(Event("retried", run, message=message, worker=worker))
        else:
            self.fail(run, message, worker=worker)

    def fail(self, run: Run, message: str, *, write: bool = True, worker: int | None = None) -> None:
        record = RunRecord(run=run, status="failed", message=message)
        if write:
            try:
                record = dataclasses.replace(
                    read_record(self.out, run) or record, status="failed", message=message
                )
                write_record(self.out, record)
            except FileError as error:
                message = f"{message}; its record could not be written: {error}"
        self.ended[run.name] = record
        self.notify(Event("failed", run, record, message, worker))


def _train_here(jobs: _Jobs, setup: _Setup, cache: str) -> None:
    """Makes the runs one after another in this process."""
    machine.use_compilation_cache(cache)
    trainer = _Trainer(setup)
    me = os.getpid()
    while jobs.waiting:
        run = jobs.start(me)
        try:
            record = trainer.train(run, lambda record, run=run: jobs.epoch(run, record, me))
        except FileError as error:
            jobs.fail(run, str(error), write=False, worker=me)
        except Exception as error:  # one broken run must not end the others
            jobs.broke(run, _describe(error), me)
        else:
            jobs.end(run, record, me)


def _train_in_workers(jobs: _Jobs, setup: _Setup, count: int, cache: str) -> None:
    """Makes the runs in worker processes, each with one core."""
    cores = machine.usable_cores()
    free = [cores[i % len(cores)] for i in range(min(count, len(jobs.waiting)))]
    workers: dict[Connection, _Worker] = {}
    try:
        while jobs.waiting or workers:
            while jobs.waiting and free:
                worker = _Worker(free.pop(0), setup, cache)
                workers[worker.connection] = worker
                worker.give(jobs)
            heard = wait(list(workers))
            for worker in [worker for connection, worker in workers.items() if connection in heard]:
                if not worker.listen(jobs):
                    del workers[worker.connection]
                    free.append(worker.core)
    finally:
        for worker in workers.values():
            worker.process.kill()
        for worker in workers.values():
            worker.process.join()


class _Worker:
    """One worker process, seen from the process that started it."""

    def __init__(self, core: int, setup: _Setup, cache: str):
        # A fresh interpreter: the affinity must be set before JAX starts its threads.
        context = multiprocessing.get_context("spawn")
        self.core = core
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, core, setup, cache), daemon=True)
        self.process.start()
        self.pid = self.process.pid or 0
        theirs.close()  # so that the worker's death closes the connection

    def give(self, jobs: _Jobs) -> None:
        self.run = jobs.start(self.pid)
        with contextlib.suppress(OSError):  # a worker that has just died is noticed in `listen`
            self.connection.send(self.run)

    def listen(self, jobs: _Jobs) -> bool:
        """Takes one message. Returns whether the worker goes on."""
        try:
            kind, content = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            jobs.broke(
                self.run, f"its worker process {self.pid} died: {_exit_reason(self.process)}", self.pid
            )
            return False
        if kind == "epoch":
            jobs.epoch(self.run, content, self.pid)
            return True
        if kind == "ended":
            jobs.end(self.run, content, self.pid)
            if jobs.waiting:
                self.give(jobs)
                return True
        elif kind == "unreadable":
            jobs.fail(self.run, content, write=False, worker=self.pid)
        else:
            jobs.broke(self.run, content, self.pid)
        self.connection.close()
        self.process.join()
        return False


def _work(connection: Connection, core: int, setup: _Setup, cache: str) -> None:
    """The worker process: trains what it is sent until there is no more, or its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends its workers
    threading.Thread(target=machine.exit_with_parent, daemon=True).start()
    machine.pin(core)
    machine.use_compilation_cache(cache)
    trainer = _Trainer(setup)
    while True:
        try:
            run = connection.recv()
        except EOFError:
            return
        try:
            record = trainer.train(run, lambda record: connection.send(("epoch", record)))
        except FileError as error:
            connection.send(("unreadable", str(error)))
            return
        except Exception as error:  # a fresh process tries once more
            connection.send(("broke", _describe(error)))
            return
        connection.send(("ended", record))


class _Trainer:
    """Trains runs one by one and keeps the last data set, so that it is loaded once."""

    def __init__(self, setup: _Setup):
        self.setup = setup
        self.loaded: tuple[str, Dataset] | None = None

    def train(self, run: Run, on_epoch: Callable[[RunRecord], None]) -> RunRecord:
        from experiments import data, training

        if self.loaded is None or self.loaded[0] != run.dataset:
            self.loaded = None  # frees the old one before the new one comes
            self.loaded = run.dataset, data.load(run.dataset, self.setup.data_dir)
        dataset = data.select(self.loaded[1], run)
        return training.train(
            run,
            dataset,
            out=self.setup.out,
            on_epoch=on_epoch,
            devices=self.setup.devices,
            keep_checkpoint=self.setup.keep_checkpoints,
        )


def _describe(error: Exception) -> str:
    """One line of at most 300 characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def _exit_reason(process: BaseProcess) -> str:
    code = process.exitcode
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"
