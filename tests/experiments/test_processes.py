"""The tests' own processes leave nothing behind, however they end."""

import gc
import subprocess
import sys
import time

import pytest

from . import processes

# The grandchild keeps the pipes open, as a worker does.
SCRIPT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep({seconds})
"""


def is_alive(group: int) -> bool:
    """Whether a group of processes has members that run; one that has ended may wait to be noticed."""
    states = subprocess.run(["ps", "-eo", "pgid=,state="], capture_output=True, text=True, check=True).stdout
    return any(line.split()[0] == str(group) and line.split()[1] != "Z" for line in states.splitlines())


@pytest.mark.parametrize("seconds", [600, 0], ids=["both hang", "the child leaves a process behind"])
def test_a_timeout_ends_the_child_with_all_it_started_and_closes_its_pipes(seconds):
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(seconds=seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    began = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired):
        processes.finish(process, timeout=2)
    assert time.monotonic() - began < 60
    assert process.stdout.closed
    assert process.stderr.closed
    deadline = time.monotonic() + 20
    while is_alive(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(process.pid)
    del process
    gc.collect()  # an open pipe would be a warning, which is an error


def test_what_a_test_started_and_forgot_is_ended():
    process = processes.start("list")
    processes.end_all()
    assert process.returncode is not None
    assert process.stdout.closed
    assert not is_alive(process.pid)
    assert not processes.STARTED


def test_a_command_that_takes_too_long_is_ended(tmp_path, monkeypatch):
    started, start = [], processes.start
    monkeypatch.setattr(
        processes, "start", lambda *args, **kw: started.append(start(*args, **kw)) or started[0]
    )
    with pytest.raises(subprocess.TimeoutExpired):
        processes.run("compare", "--out", tmp_path, timeout=0.2)
    (process,) = started
    assert process.returncode is not None
    assert not is_alive(process.pid)
