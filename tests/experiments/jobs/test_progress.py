"""What a sweep says while it runs, event by event, on a terminal and elsewhere."""

import dataclasses
import io
import re

import pytest
from rich.console import Console

from experiments.jobs import progress
from experiments.jobs.progress import Progress
from experiments.jobs.sweep import Event
from experiments.records import EpochMetrics, RunRecord
from experiments.run import Run

RUN = Run("cifar10", "resnet20", "centralization", "sgdm", 0.001, 4, 128, 0)
RUNS = [dataclasses.replace(RUN, seed=seed) for seed in range(12)]
TUNING = [dataclasses.replace(RUN, validation_examples=100, learning_rate=rate) for rate in (0.1, 0.01)]


def record(run: Run, accuracy: float, epochs: int = 4, status: str = "finished") -> RunRecord:
    metrics = [EpochMetrics(i, 1.5, 0.5, 1.5, accuracy, 0, 1.0) for i in range(1, epochs + 1)]
    return RunRecord(run, status, epochs=tuple(metrics))


@pytest.fixture
def clock(monkeypatch):
    """The time that passes, in seconds."""
    seconds = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: seconds[0])

    def wait(duration):
        seconds[0] += duration

    return wait


@pytest.fixture
def lines(capsys):
    """What was printed since it was last asked."""
    return lambda: capsys.readouterr().out.splitlines()


@pytest.fixture
def plain():
    return lambda: Progress("study", Console(file=io.StringIO()))


def test_every_line_says_where_the_sweep_stands(clock, lines, plain):
    shown = plain()
    shown.add(RUNS[:3])
    shown(Event("skipped", RUNS[0], record(RUNS[0], 0.625)))
    shown(Event("started", RUNS[1]))
    assert lines() == [
        "[1/3, 0 run, 2 left, best 62.5%] skipped centralization sgdm 0.001 s0 62.5%",
        "[1/3, 1 run, 1 left, best 62.5%] started centralization sgdm 0.001 s1",
    ]
    clock(20)
    shown(Event("epoch", RUNS[1], record(RUNS[1], 0.25, 1, "running")))
    lines()
    clock(5)
    shown(Event("epoch", RUNS[1], record(RUNS[1], 0.375, 2, "running")))
    assert lines() == []  # so soon after the last one
    clock(15)
    shown(Event("epoch", RUNS[1], record(RUNS[1], 0.5, 3, "running")))
    # Five epochs are left, and three took 40 seconds.
    assert lines() == ["[1/3, 1 run, 1 left (1:07), best 62.5%] epoch 3/4 centralization sgdm 0.001 s1 50.0%"]
    shown(Event("retried", RUNS[1], message="its worker died"))
    shown(Event("started", RUNS[1]))
    shown(Event("finished", RUNS[1], record(RUNS[1], 0.75)))
    shown(Event("diverged", RUNS[2], record(RUNS[2], 0.875, 2, "diverged")))
    assert lines() == [
        "[1/3, 0 run, 2 left (1:07), best 62.5%] retried centralization sgdm 0.001 s1: its worker died",
        "[1/3, 1 run, 1 left (1:07), best 62.5%] started centralization sgdm 0.001 s1",
        "[2/3, 0 run, 1 left (0:53), best 75.0%] finished centralization sgdm 0.001 s1 75.0%",
        "[3/3, 0 run, 0 left (0:00), best 75.0%] diverged 2/4 centralization sgdm 0.001 s2 87.5%",
    ]


def test_lines_of_short_names_fit_into_80_columns(clock, lines, plain):
    runs = [dataclasses.replace(run, method="znorm", optimizer="adam") for run in RUNS]
    shown = plain()
    shown.add(runs)
    for run in runs:
        shown(Event("started", run))
        clock(11)
        shown(Event("epoch", run, record(run, 0.5, 1, "running")))
        shown(Event("finished", run, record(run, 0.5)))
    printed = lines()
    assert len(printed) > 2 * len(runs)
    assert max(map(len, printed)) <= 80


def test_models_are_named_where_they_differ(lines, plain):
    shown = plain()
    shown.add([RUN, dataclasses.replace(RUN, model="vgg16")])
    shown(Event("started", RUN))
    assert lines() == ["[0/2, 1 run, 1 left] started resnet20 centralization sgdm 0.001 s0"]


def test_runs_that_become_known_later_are_counted_with_the_others(lines, plain):
    shown = plain()
    shown.add(RUNS[:2])
    for run in RUNS[:2]:
        shown(Event("finished", run, record(run, 0.5)))
    shown.add(RUNS[2:5])
    shown(Event("started", RUNS[2]))
    assert [line.partition(",")[0] for line in lines()] == ["[1/2", "[2/2", "[2/5"]


def test_validation_accuracy_is_never_the_best_beside_test_accuracy(lines, plain):
    shown = plain()
    shown.add([*TUNING, *RUNS])
    for run, accuracy in zip(TUNING, (0.875, 0.75), strict=True):
        shown(Event("finished", run, record(run, accuracy)))
    shown(Event("finished", RUNS[0], record(RUNS[0], 0.5)))
    bests = [line[line.index("best") : line.index("]")] for line in lines()]
    assert bests == ["best val 87.5%", "best val 87.5%", "best 50.0%"]


@pytest.fixture
def frame():
    """What a terminal of 80 columns shows, line by line, while something is under way and at the end."""
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)

    def shown() -> list[str]:
        text = console.file.getvalue()
        console.file.seek(0)
        console.file.truncate()
        return [line.rstrip() for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", text).splitlines()]

    return console, shown


def test_every_line_of_the_display_stands_alone(clock, frame):
    console, shown = frame
    with Progress("study", console) as display:
        display.add([*TUNING, *RUNS[:3]])
        display(Event("finished", TUNING[0], record(TUNING[0], 0.875)))
        display(Event("finished", RUNS[0], record(RUNS[0], 0.5)))
        display(Event("started", RUNS[1]))
        display(Event("started", RUNS[2]))
        clock(20)
        display(Event("epoch", RUNS[2], record(RUNS[2], 0.25, 1, "running")))
        shown()
        display.live.refresh()
        assert shown()[-5:] == [
            "study: 2 done, 2 running, 1 left, 3:40 to go",
            "best so far: test accuracy 50.00% resnet20 centralization sgdm lr 0.001 seed 0",
            "all runs                                     ━━━━╸       9/20",
            "resnet20 centralization sgdm lr 0.001 seed 1              0/4 compiling",
            "resnet20 centralization sgdm lr 0.001 seed 2 ━━╸          1/4 loss 1.5, 25.00%",
        ]
        for run in RUNS[1:3]:
            display(Event("finished", run, record(run, 0.25)))
        display(Event("finished", TUNING[1], record(TUNING[1], 0.875)))
    # The frame of the end has no row for what has ended.
    assert shown()[-3:] == [
        "study: 5 done, 0 running, 0 left, 0:00 to go",
        "best so far: test accuracy 50.00% resnet20 centralization sgdm lr 0.001 seed 0",
        "all runs ━━━━━━━━━━━ 20/20",
    ]


def test_long_names_are_cut_and_numbers_are_not(clock, frame):
    console, shown = frame
    run = dataclasses.replace(RUN, model="resnet56w32:scaled_ws:skip_init", learning_rate=0.0123456)
    with Progress("study", console) as display:
        display.add([run])
        display(Event("started", run))
        display(Event("epoch", run, record(run, 0.25, 1, "running")))
        shown()
        display.live.refresh()
        (line,) = [line for line in shown() if line.startswith("resnet56w32:")]
    assert len(line) <= 80
    assert line.endswith("1/4 loss 1.5, 25.00%")
