"""Notices a job that has not been heard of for long, because its process was stopped or is stuck."""

import dataclasses
import datetime
import os
import threading
import time
from collections.abc import Callable

# A job may be silent for many times as long as its last epoch took, and never less than five minutes. Before the
# first epoch has ended, which includes compilation, it is taken to take one minute.
TIMES = 15
LEAST_SECONDS = 300.0
UNKNOWN_SECONDS = 60.0
CHECK_SECONDS = 5.0


@dataclasses.dataclass
class _Job:
    worker: int
    heard: float
    last: float = UNKNOWN_SECONDS
    told: float = 0.0  # how long it had been silent when that was told


class Watch:
    """Context manager: a thread that tells of silent jobs, and again whenever a silence has doubled.

    Args:
      tell: gets the job's name and a line about it, in that thread.
    """

    def __init__(self, tell: Callable[[str, str], None]):
        self.tell = tell
        self._jobs: dict[str, _Job] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._checked = time.monotonic()
        self._now = 0.0  # without the time in which this process was stopped too

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self._stop.set()
        self._thread.join()

    def started(self, name: str, worker: int) -> None:
        """A process has taken the job."""
        with self._lock:
            self._jobs[name] = _Job(worker, self._now)

    def heard(self, name: str) -> None:
        """There was news of the job."""
        with self._lock:
            if job := self._jobs.get(name):
                job.last, job.heard, job.told = self._now - job.heard, self._now, 0.0

    def ended(self, name: str) -> None:
        """The job is no longer under way."""
        with self._lock:
            self._jobs.pop(name, None)

    def check(self) -> None:
        """Tells of the jobs that have been silent for too long."""
        silent = []
        with self._lock:
            elapsed, self._checked = time.monotonic() - self._checked, time.monotonic()
            self._now += min(elapsed, 2 * CHECK_SECONDS)
            for name, job in self._jobs.items():
                seconds = self._now - job.heard
                if seconds >= max(LEAST_SECONDS, TIMES * job.last, 2 * job.told):
                    job.told = seconds
                    silent.append((name, _describe(job.worker, seconds)))
        for name, line in silent:
            self.tell(name, line)

    def _run(self) -> None:
        while not self._stop.wait(CHECK_SECONDS):
            self.check()


def _describe(worker: int, seconds: float) -> str:
    silent = f"no word for {datetime.timedelta(seconds=round(seconds))} from process {worker}"
    if worker == os.getpid():
        return f"{silent}: it may be stuck; after Ctrl-C the same command goes on after the last checkpoint"
    return f"{silent}: it may be stopped or stuck; after `kill -9 {worker}` the run is tried again"
