"""What is refused before anything is trained, and what is left where something fails afterwards."""

import dataclasses
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest

from experiments import __main__ as main
from experiments import records
from experiments.files import FileError
from experiments.jobs.measure import Measurement
from experiments.jobs.sweep import sweep
from experiments.options import Options
from experiments.preflight import UsageError, check_out
from experiments.records import RecordError
from experiments.records.dynamics import GradientDynamics
from experiments.report import pages
from experiments.reproduce import ReportError, render, reproduce
from experiments.run import Run
from experiments.studies.study import Study

from .processes import run
from .report.made import make_record

RUN = Run("digits", "resnet8", "baseline", "sgdm", 0.01, 2, 50, 0)
ONE_RUN = (
    "compare", "--methods", "baseline", "--optimizers", "sgdm", "--seeds", "0", "--epochs", "1",
    "--train-examples", "50", "--batch-size", "50", "--workers", "1",
)  # fmt: skip


def write_working(folder: Path, runs, **changes) -> Path:
    for each in runs:
        records.write_record(folder / "records", dataclasses.replace(make_record(each, 0.5), **changes))
    return folder


def test_a_comparison_in_a_folder_just_below_the_root_ends_with_its_report():
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        assert len(Path(folder).parents) == 2
        code, out, err = run(*ONE_RUN, "--out", folder)
        assert code == 0, err
        assert f"Report: {folder}/report.md" in out
        assert (Path(folder) / "report.md").read_text().startswith("# Every method")
        assert sorted(path.name for path in Path(folder).iterdir()) == [
            "learning_curves.svg",
            "records",
            "report.md",
        ]


@pytest.mark.parametrize("folder", ["/", "/tmp", ".", "/a/b/c"])
def test_only_published_reports_link_to_the_page_that_explains_them(folder):
    assert pages._how_to_read(Path(folder)) == "How to read this report: experiments/README.md."
    assert "(../../../README.md#" in pages._how_to_read(pages.EXPERIMENTS / "results" / "pcam" / "cpu")


def test_a_folder_that_cannot_take_all_files_is_refused(tmp_path):
    for name in ("report.md", "learning_curves.svg", "findings.json"):
        (tmp_path / name / "x").mkdir(parents=True)
        with pytest.raises(UsageError, match=rf"--out: {tmp_path / name} is a folder"):
            check_out(tmp_path)
        (tmp_path / name / "x").rmdir()
        (tmp_path / name).rmdir()
    (tmp_path / "records").write_text("")
    with pytest.raises(UsageError, match=rf"--out: cannot write to {tmp_path}: Not a directory"):
        check_out(tmp_path)
    with pytest.raises(UsageError, match=r"--out: cannot write to .*null"):
        check_out(tmp_path / "a\0b")
    with pytest.raises(UsageError, match=r"--out: cannot write to .*too long"):
        check_out(tmp_path / ("a" * 300))


def never(*_arguments):
    raise AssertionError("it is trained, measured or reported")


def make_study(report=never, **changes) -> Study:
    return Study("made", "a study", lambda preset, found: [RUN], report, **changes)


def test_damaged_measurements_are_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.reproduce.sweep", never)
    (tmp_path / "measurements").mkdir()
    (tmp_path / "measurements" / "norms.json").write_text("{")
    study = make_study(measurements=lambda preset: [Measurement("norms", never, {})])
    with pytest.raises(RecordError, match=r"norms\.json"):
        reproduce(study, "", tmp_path, Options())
    assert not (tmp_path / ".lock").exists()


def test_damaged_published_records_are_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.jobs.pool.run_all", never)
    (tmp_path / "records.jsonl").touch()
    with pytest.raises(RecordError, match=r"records\.jsonl: it is empty"):
        reproduce(make_study(), "", tmp_path, Options())


def test_damaged_statistics_of_a_run_that_has_ended_are_told_and_it_counts_as_failed(tmp_path):
    ones = np.ones((2, 2), np.float32)
    runs = [dataclasses.replace(RUN, seed=seed, dynamics=True) for seed in (0, 1)]
    write_working(tmp_path, runs)
    for each in runs:
        dynamics = GradientDynamics(("a", "b"), np.array([1, 2]), ones, ones, ones, ones[:, 0])
        records.write_dynamics(tmp_path / "records", each, dynamics)
    (tmp_path / "records" / f"{runs[1].name}.dynamics.npz").write_bytes(b"PK")
    events = []
    found = sweep(runs, tmp_path / "records", on_event=events.append)
    assert [event.kind for event in events] == ["skipped", "failed"]
    assert f"{runs[1].name}.dynamics.npz" in found[1].message
    # The record itself is left for the user to judge.
    assert records.read_record(tmp_path / "records", runs[1]).status == "finished"


def fail(error: Exception):
    def report(preset, found, folder):
        raise error

    return report


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KeyError("norm"), r"KeyError: 'norm' \("),
        (FileError("cannot write x.svg: No space left on device"), "cannot write x.svg: No space left"),
        (OverflowError("two\nlines"), "OverflowError: two "),
    ],
)
def test_a_report_that_fails_leaves_the_records_and_says_what_to_do(tmp_path, error, words):
    write_working(tmp_path, [RUN])
    before = {path: path.read_bytes() for path in (tmp_path / "records").iterdir()}
    with pytest.raises(ReportError, match=words) as raised:
        reproduce(make_study(fail(error)), "", tmp_path, Options())
    assert "\n" not in str(raised.value)
    assert "all records are kept, and the same command renders it again" in str(raised.value)
    assert {path: path.read_bytes() for path in (tmp_path / "records").iterdir()} == before
    made = []
    render(make_study(lambda preset, found, folder: made.append(found)), "", [], tmp_path)
    assert made == [[]]


@pytest.mark.parametrize(
    "change", [{"dataset": "cifar10"}, {"epochs": 3}, {"learning_rate": 0.1}, {"model": "resnet20"}]
)
def test_runs_of_two_comparisons_are_not_put_into_one_table(tmp_path, change, capsys):
    runs = [
        dataclasses.replace(RUN, seed=seed, method=method)
        for seed in (0, 1)
        for method in ("baseline", "gan")
    ]
    folder = write_working(tmp_path / "work", runs)
    main.publish("compare", source=folder, out=tmp_path / "out")
    assert "4 runs" in capsys.readouterr().out
    other = dataclasses.replace(RUN, seed=7, **change)
    write_working(folder, [other])
    before = (tmp_path / "out" / "compare" / "cpu" / "records.jsonl").read_bytes()
    with pytest.raises(
        RecordError, match=r"of no run that .* of compare, .* records of two protocols are not mixed"
    ):
        main.publish("compare", source=folder, out=tmp_path / "out")
    assert (tmp_path / "out" / "compare" / "cpu" / "records.jsonl").read_bytes() == before


def test_without_a_record_there_is_no_report(tmp_path):
    (tmp_path / "compare" / "cpu" / "records").mkdir(parents=True)
    code, _, err = run("report", "compare", "--out", tmp_path)
    assert code == 2
    assert err == f"error: there are no records in {tmp_path}/compare/cpu/records\n"


def test_a_record_under_another_name_is_not_called_unfinished(tmp_path):
    (path,) = (write_working(tmp_path, [RUN]) / "records").iterdir()
    copy = path.with_name("mine.json")
    copy.write_bytes(path.read_bytes())
    path.unlink()
    with pytest.raises(RecordError, match=f"mine.json: it is the record of another run, {RUN.name}"):
        main.predict(str(copy), tmp_path / "x.png", tmp_path / "x.json")
    content = json.loads(copy.read_text())
    content["run"]["model"] = "resnet20"
    path.write_text(json.dumps(content))
    with pytest.raises(RecordError, match=f"{path.name}: it is the record of another run, digits-resnet20-"):
        main.predict(path.stem, tmp_path / "x.png", tmp_path / "x.json", tmp_path / "records")
