"""Where the pool does its jobs."""

import os
from typing import NamedTuple

import pytest

from experiments import hosts, machine
from experiments.data import DataError
from experiments.files import FileError
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


def damaged(job, tell):
    raise DataError(f"{job.name}: record 7 does not decode")


class Failures(Results):
    def failed(self, job, message, worker, is_file_error):
        self.found.append((message, is_file_error))


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_damaged_data_is_not_read_again(monkeypatch, backend):
    monkeypatch.setattr(machine, "backend", lambda: backend)
    listener = Failures()
    pool.run_all([Job("a"), Job("b")], damaged, listener, workers=1)
    # In worker processes the message comes over a pipe.
    assert listener.found == [(f"{name}: record 7 does not decode", True) for name in "ab"]


def test_what_breaks_on_one_of_several_hosts_ends_all(monkeypatch):
    """Else this host would go on with the next job, and the others wait in the middle of this one."""
    monkeypatch.setattr(machine, "backend", lambda: "gpu")
    monkeypatch.setattr(hosts, "count", lambda: 2)
    with pytest.raises(FileError, match="record 7"):
        pool.run_all([Job("a"), Job("b")], damaged, Failures())


def test_hosts_with_other_data_are_refused(monkeypatch):
    monkeypatch.setattr(hosts, "count", lambda: 2)
    monkeypatch.setattr(hosts, "_gather", lambda value: [value, {**value, "labels": 8}])
    with pytest.raises(hosts.HostError, match=r"the data of host 1 is not that of host 0: .*8"):
        hosts.check_same("the data", {"labels": 7})
