"""Jobs that are not heard of: by a clock made by hand, and a worker process that is really stopped."""

import io
import os
import re
import signal
import time

import pytest
from rich.console import Console

from experiments.jobs import measure, silence
from experiments.jobs.measure import Context, Measurement
from experiments.jobs.progress import Progress
from experiments.jobs.silence import LEAST_SECONDS, TIMES, UNKNOWN_SECONDS, Watch
from experiments.jobs.sweep import Event, sweep
from experiments.options import Options
from experiments.run import Run

RUN = Run("digits", "resnet8", "znorm", "adam", 0.001, 3, 50, 0, train_examples=100, test_examples=50)


@pytest.fixture
def watched(monkeypatch):
    """A watch, a function that lets time pass, and what was told so far."""
    seconds, told = [1000.0], []
    monkeypatch.setattr(silence.time, "monotonic", lambda: seconds[0])
    watch = Watch(lambda name, line: told.append((name, line)))

    def wait(duration, step=5.0):
        for _ in range(round(duration / step)):
            seconds[0] += step
            watch.check()

    return watch, wait, told


def test_a_job_may_be_silent_for_many_times_its_last_epoch(watched):
    watch, wait, told = watched
    watch.started("a", 17)
    wait(TIMES * UNKNOWN_SECONDS - 10)  # it compiles
    assert not told
    watch.heard("a")
    for _ in range(3):
        wait(100)
        watch.heard("a")
    wait(TIMES * 100 - 10)
    assert not told
    wait(20)
    assert [name for name, _ in told] == ["a"]
    assert "no word for 0:25:00 from process 17" in told[0][1]
    assert "kill -9 17" in told[0][1]
    wait(TIMES * 100 - 30)
    assert len(told) == 1
    wait(30)  # twice as long
    assert len(told) == 2
    watch.heard("a")
    watch.ended("a")
    wait(100_000)
    assert len(told) == 2


def test_short_epochs_leave_five_minutes(watched):
    watch, wait, told = watched
    for name in "ab":
        watch.started(name, os.getpid())
        watch.heard(name)
        wait(5)
        watch.heard(name)
    wait(LEAST_SECONDS - 15)
    watch.heard("a")
    assert not told
    wait(20)
    assert [name for name, _ in told] == ["b"]
    assert "Ctrl-C" in told[0][1]


def test_time_in_which_all_were_stopped_does_not_count(watched):
    watch, wait, told = watched
    watch.started("a", 17)
    wait(36_000, step=36_000)
    assert not told


@pytest.fixture
def impatient(monkeypatch):
    for name, value in {"CHECK_SECONDS": 0.1, "LEAST_SECONDS": 1.0, "TIMES": 0.0}.items():
        monkeypatch.setattr(silence, name, value)


def pid_to_kill(line: str) -> int:
    return int(re.search(r"kill -9 (\d+)", line)[1])


@pytest.mark.usefixtures("impatient")
def test_a_stopped_worker_is_told_and_ended_as_the_line_says_is_made_again(tmp_path, capsys, monkeypatch):
    stopped: list[int] = []

    class Obedient(Progress):
        def __call__(self, event):
            super().__call__(event)
            if event.kind == "epoch" and not stopped:
                stopped.append(event.worker)
                os.kill(event.worker, signal.SIGSTOP)

        def _tell_silence(self, name, line):
            if stopped and pid_to_kill(line) == stopped[0]:  # else it compiles
                super()._tell_silence(name, line)
                os.kill(pid_to_kill(line), signal.SIGKILL)

    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    with Obedient("study", Console(file=io.StringIO())) as progress:
        progress.add([RUN])
        (record,) = sweep([RUN], tmp_path, Options(workers=1), progress)
    assert record.status == "finished"
    assert len(record.epochs) == 3
    text = capsys.readouterr().out
    (line, *_) = [line for line in text.splitlines() if "no word for" in line]
    assert str(stopped[0]) in line
    assert "znorm adam" in line
    assert "killed by SIGKILL" in text


def test_a_terminal_shows_the_line_above_the_display(monkeypatch):
    monkeypatch.setattr(silence, "CHECK_SECONDS", 0.02)
    monkeypatch.setattr(silence, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(silence, "TIMES", 0.0)
    console = Console(file=io.StringIO(), force_terminal=True, width=200)
    with Progress("study", console) as progress:
        progress.add([RUN])
        progress(Event("started", RUN, worker=17))
        deadline = time.monotonic() + 20
        while "silent: " not in console.file.getvalue() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert "silent: resnet8 znorm adam lr 0.001 seed 0: no word for 0:00:0" in console.file.getvalue()
    assert not progress.watch._thread.is_alive()


def sleep_until_killed(context, marker):
    if not os.path.exists(marker):
        open(marker, "w").close()
        signal.pause()
    return {"done": 1}


@pytest.mark.usefixtures("impatient")
def test_a_stuck_measurement_is_told(tmp_path):
    lines, killed = [], []

    def obey(line):
        lines.append(line)
        # Once: the next process is silent too while it starts.
        if "silent" in line and (tmp_path / "marker").exists() and not killed:
            killed.append(pid_to_kill(line))
            os.kill(killed[0], signal.SIGKILL)

    job = Measurement("stuck", sleep_until_killed, {"marker": str(tmp_path / "marker")})
    failures = measure.measure(
        [job], out=tmp_path / "out", context=Context(None, tmp_path), workers=1, on_event=obey
    )
    assert failures == {}
    assert any(
        re.match(r"\[0/1\] silent stuck: no word for 0:00:0\d from process \d+", line) for line in lines
    )
    assert "killed by SIGKILL" in "".join(lines)
