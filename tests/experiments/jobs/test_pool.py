"""Where the pool does its jobs."""

import os
from typing import NamedTuple

import pytest

from experiments import machine
from experiments.jobs import pool


class Job(NamedTuple):
    name: str


def where(job, tell):
    """The process that does the job, and the cores it may use."""
    del job, tell
    return os.getpid(), machine.usable_cores()


class Results:
    def __init__(self):
        self.found = []

    def started(self, job, worker): ...

    def ended(self, job, result, worker):
        self.found.append(result)

    def failed(self, job, message, worker, is_file_error):
        pytest.fail(message)

    told = retried = failed


@pytest.mark.parametrize("workers", [None, 1, 2])
def test_an_accelerator_is_shared_where_several_workers_are_asked_for(monkeypatch, workers):
    monkeypatch.setattr(machine, "backend", lambda: "gpu")
    listener = Results()
    pool.run_all([Job(f"job {i}") for i in range(3)], where, listener, workers=workers)
    assert len(listener.found) == 3
    processes = {process for process, _ in listener.found}
    assert (os.getpid() in processes) == (workers != 2)
    # Compilation for an accelerator uses all cores of its host.
    assert all(cores == machine.usable_cores() for _, cores in listener.found)
