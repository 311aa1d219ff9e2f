"""One command works in a folder at a time, in real processes."""

import contextlib
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.files import FileError
from experiments.jobs import lock
from experiments.jobs.lock import FolderLock
from experiments.records import EpochMetrics, RunRecord, write_record
from experiments.run import Run

from ..processes import finish, metrics, run, start, wait_for_epochs

ROOT = Path(__file__).parents[3]
HOLD = """
import sys
from pathlib import Path
from experiments.jobs.lock import FolderLock
with FolderLock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
MANY = """
import sys
from pathlib import Path
from experiments.files import FileError
from experiments.jobs.lock import FolderLock
folder, taken = Path(sys.argv[1]), 0
while taken < 150:
    try:
        with FolderLock(folder):
            (folder / "alone").touch(exist_ok=False)
            (folder / "alone").unlink()
            taken += 1
    except FileError as error:
        assert "is in use by" in str(error), error
"""


@contextlib.contextmanager
def holder(folder: Path):
    command = [sys.executable, "-c", HOLD, str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as process:
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_folder_is_one_process_s_until_it_ends(tmp_path):
    with holder(tmp_path) as process:
        with pytest.raises(FileError, match=rf"{tmp_path} is in use by process {process.pid} on this host"):
            FolderLock(tmp_path).__enter__()
        process.stdin.close()
        process.wait(timeout=60)
    assert not list(tmp_path.iterdir())
    with FolderLock(tmp_path), pytest.raises(FileError, match=f"process {os.getpid()} "):
        FolderLock(tmp_path).__enter__()
    assert not list(tmp_path.iterdir())


def test_one_command_at_a_time_publishes_into_a_folder(tmp_path, call):
    made = Run("digits", "resnet8", "baseline", "sgdm", 0.01, 1, 64, 0)
    epochs = (EpochMetrics(1, 1.0, 0.5, 1.0, 0.5, 0, 1.0),)
    write_record(tmp_path / "made/records", RunRecord(made, "finished", epochs=epochs))
    command = ("publish", "compare", "--from", tmp_path / "made", "--out", tmp_path / "out")
    target = tmp_path / "out/compare/cpu"
    target.mkdir(parents=True)
    with holder(target) as process:
        code, _, err = call(*command)
    assert (code, err.count("\n")) == (2, 1)
    assert f"is in use by process {process.pid} on this host" in err
    assert not (target / "records.jsonl").exists()
    assert call(*command)[0] == 0
    assert {path.name for path in target.iterdir()} == {"records.jsonl"}


def test_what_a_killed_process_left_is_taken_over(tmp_path):
    with holder(tmp_path) as process:
        process.kill()
        process.wait(timeout=60)
    assert str(process.pid) in (tmp_path / lock.NAME).read_text()
    with FolderLock(tmp_path):
        assert (tmp_path / lock.NAME).read_text() == f"process {os.getpid()} on {platform.node()}\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "process", "\x00" * 100, "process 1 on "])
def test_a_file_that_says_nothing_is_taken_over(tmp_path, text):
    (tmp_path / lock.NAME).write_text(text)
    with FolderLock(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_of_another_host_the_file_is_believed(tmp_path):
    path = tmp_path / lock.NAME
    path.write_text("process 12 on elsewhere\n")
    with pytest.raises(FileError, match=f"process 12 on host elsewhere; .* remove {path}"):
        FolderLock(tmp_path).__enter__()
    assert path.read_text() == "process 12 on elsewhere\n"
    path.unlink()  # as it says
    with FolderLock(tmp_path):
        pass


@pytest.mark.parametrize("name", [None, "flock"])
def test_without_locks_of_the_system_the_process_decides(tmp_path, monkeypatch, name):
    if name is None:
        monkeypatch.setattr(lock, "fcntl", None)
    else:
        monkeypatch.setattr(lock.fcntl, name, lambda *_: (_ for _ in ()).throw(OSError(37, "No locks")))
    with holder(tmp_path) as process:
        with pytest.raises(FileError, match=f"process {process.pid} on this host.*if it has ended, remove"):
            FolderLock(tmp_path).__enter__()
        process.kill()
        process.wait(timeout=60)
    with FolderLock(tmp_path):
        pass


def test_never_two_at_once_however_often_it_changes_hands(tmp_path):
    command = [sys.executable, "-c", MANY, str(tmp_path)]
    both = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        with process:
            _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err


def test_a_second_command_in_the_folder_is_refused_and_the_first_goes_on(tmp_path):
    command = (
        "compare", "--methods", "baseline", "--optimizers", "sgdm", "--seeds", "0", "--epochs", "200",
        "--train-examples", "100", "--batch-size", "50", "--workers", "1", "--out", tmp_path,
    )  # fmt: skip
    process = start(*command)
    try:
        wait_for_epochs(tmp_path / "records", 1, process)
        code, out, err = run(*command)
        assert code == 2, out
        (line,) = err.strip().splitlines()
        assert f"{tmp_path} is in use by process {process.pid} on this host" in line
        before = sum(map(len, metrics(tmp_path / "records").values()))
        wait_for_epochs(tmp_path / "records", min(before + 1, 200), process)
    finally:
        process.send_signal(signal.SIGKILL)
        finish(process, timeout=60)
