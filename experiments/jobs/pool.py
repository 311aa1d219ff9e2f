"""One pool for runs and measurements: on CPU worker processes with one core each, elsewhere one job after another.

On an accelerator several processes share it where the user asks for them.
"""

import collections
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, Protocol, TypeVar

from experiments import hosts, machine
from experiments.files import FileError

ATTEMPTS = 2


class Named(Protocol):
    """Something to do once; it is sent to a worker process."""

    @property
    def name(self) -> str: ...


Job = TypeVar("Job", bound=Named)
JobTold = TypeVar("JobTold", bound=Named, contravariant=True)
# Does a job and returns its result; it reports progress by the function that it is given.
Work = Callable[[Job, Callable[[Any], None]], Any]


class Listener(Protocol[JobTold]):
    """Hears what becomes of every job, in the process that called `run_all`; `worker` is a process id."""

    def started(self, job: JobTold, worker: int) -> None:
        """A worker has taken the job."""

    def told(self, job: JobTold, news: Any, worker: int) -> None:
        """News from the work while it is under way."""

    def ended(self, job: JobTold, result: Any, worker: int) -> None:
        """The job is done."""

    def retried(self, job: JobTold, message: str, worker: int) -> None:
        """The work raised or its worker died; the job is tried again."""

    def failed(self, job: JobTold, message: str, worker: int, is_file_error: bool) -> None:
        """The job is not tried again: it was before, or a file is left for the user to judge."""


def run_all(
    jobs: Iterable[Job],
    work: Work[Job],
    listener: Listener[Job],
    *,
    workers: int | None = None,
    devices: int = 1,
) -> None:
    """Does all jobs, in their order as workers become free.

    On CPU every worker process is pinned to one core and does one job at a time: XLA uses several cores badly
    for small networks, and one thread gives the same bits on every machine load. On an accelerator the jobs are
    done one after another in this process or, where `workers` asks for several, in processes that share it:
    small networks leave most of it idle. With several devices they are done in this process too. On several
    hosts all do each job together, and what breaks on one ends all.

    A job whose worker dies or raises is tried once more, and then failed; the others go on. A `FileError` is
    not tried again. All processes share one compilation cache, and die with this one.

    Args:
      work: does a job; it is sent to the workers, each of which keeps its own copy.
      workers: worker processes; by default on CPU one per core that this process may use, elsewhere none.
      devices: devices that a job needs; more than one keeps the jobs in this process.
    """
    queue = _Queue(jobs, listener)
    if not queue.waiting:
        return
    with machine.compilation_cache() as cache:
        on_cpu = machine.backend() == "cpu"
        if devices == 1 and on_cpu:
            cores = machine.usable_cores()
            count = workers or len(cores)
            _run_in_workers(queue, work, [cores[i % len(cores)] for i in range(count)], cache)
        elif devices == 1 and workers is not None and workers > 1:
            _run_in_workers(queue, work, [None] * workers, cache)
        else:
            machine.use_compilation_cache(cache)
            _run_here(queue, work)


class _Queue(Generic[Job]):
    """The jobs still to do, and how often each was tried."""

    def __init__(self, jobs: Iterable[Job], listener: Listener[Job]):
        self.waiting: collections.deque[Job] = collections.deque(jobs)
        self.attempts: collections.Counter[str] = collections.Counter()
        self.listener = listener

    def start(self, worker: int) -> Job:
        job = self.waiting.popleft()
        self.attempts[job.name] += 1
        self.listener.started(job, worker)
        return job

    def broke(self, job: Job, message: str, worker: int) -> None:
        if self.attempts[job.name] < ATTEMPTS:
            self.waiting.appendleft(job)
            self.listener.retried(job, message, worker)
        else:
            self.listener.failed(job, message, worker, False)


def _run_here(queue: _Queue[Job], work: Work[Job]) -> None:
    """Does the jobs one after another in this process."""
    me = os.getpid()
    while queue.waiting:
        job = queue.start(me)
        try:
            result = work(job, lambda news, job=job: queue.listener.told(job, news, me))
        except Exception as error:  # one broken job must not end the others
            if hosts.count() > 1:
                raise  # The other hosts may be waiting in the middle of the job.
            if isinstance(error, FileError):
                queue.listener.failed(job, str(error), me, True)
            else:
                queue.broke(job, _describe(error), me)
        else:
            queue.listener.ended(job, result, me)


def _run_in_workers(queue: _Queue[Job], work: Work[Job], cores: Sequence[int | None], cache: str) -> None:
    """Does the jobs in worker processes, one for each core; one without a core may use all of them."""
    free = list(cores[: len(queue.waiting)])
    workers: dict[Connection, _Worker[Job]] = {}
    try:
        while queue.waiting or workers:
            while queue.waiting and free:
                worker = _Worker(free.pop(0), work, cache)
                workers[worker.connection] = worker
                worker.give(queue)
            heard = wait(list(workers))
            for worker in [worker for connection, worker in workers.items() if connection in heard]:
                if not worker.listen(queue):
                    del workers[worker.connection]
                    free.append(worker.core)
    finally:
        for worker in workers.values():
            worker.process.kill()
        for worker in workers.values():
            worker.process.join()


class _Worker(Generic[Job]):
    """One worker process, seen from the process that started it."""

    job: Job

    def __init__(self, core: int | None, work: Work[Job], cache: str):
        # A fresh interpreter: the affinity must be set before JAX starts its threads.
        context = multiprocessing.get_context("spawn")
        self.core = core
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, core, work, cache), daemon=True)
        self.process.start()
        self.pid = self.process.pid or 0
        theirs.close()  # so that the worker's death closes the connection

    def give(self, queue: _Queue[Job]) -> None:
        self.job = queue.start(self.pid)
        with contextlib.suppress(OSError):  # a worker that has just died is noticed in `listen`
            self.connection.send(self.job)

    def listen(self, queue: _Queue[Job]) -> bool:
        """Takes one message. Returns whether the worker goes on."""
        try:
            kind, content = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            message = f"its worker process {self.pid} died: {_exit_reason(self.process)}"
            queue.broke(self.job, message, self.pid)
            return False
        if kind == "told":
            queue.listener.told(self.job, content, self.pid)
            return True
        if kind == "ended":
            queue.listener.ended(self.job, content, self.pid)
            if queue.waiting:
                self.give(queue)
                return True
        elif kind == "file error":
            queue.listener.failed(self.job, content, self.pid, True)
        else:
            queue.broke(self.job, content, self.pid)
        self.connection.close()
        self.process.join()
        return False


def _serve(connection: Connection, core: int | None, work: Work, cache: str) -> None:
    """The worker process: does what it is sent until there is no more, or its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends its workers
    threading.Thread(target=machine.exit_with_parent, daemon=True).start()
    if core is not None:
        machine.pin(core)
        machine.use_onednn()
    machine.use_compilation_cache(cache)
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        try:
            result = work(job, lambda news: connection.send(("told", news)))
        except FileError as error:
            connection.send(("file error", str(error)))
            return
        except Exception as error:  # a fresh process tries once more
            connection.send(("broke", _describe(error)))
            return
        connection.send(("ended", result))


def _describe(error: Exception) -> str:
    """One line of at most 300 characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def _exit_reason(process: BaseProcess) -> str:
    code = process.exitcode
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"
