"""A study as a user meets it: real images, a kill half-way, the same command again, the report."""

import json
import os
import signal

import pytest

from ..processes import metrics, run, start, wait_for_epochs

STUDY = "gan_cifar100", "--preset", "smoke"


@pytest.fixture(scope="module")
def data_dir():
    folder = os.environ.get("GRADNORM_DATA_DIR")
    if not folder:
        pytest.skip("GRADNORM_DATA_DIR names no folder of prepared data sets")
    return folder


def test_a_killed_study_goes_on_and_reports_from_its_records(data_dir, tmp_path):
    command = ("reproduce", *STUDY, "--data-dir", data_dir, "--out", tmp_path, "--workers", "2", "--dynamics")
    records = tmp_path / "gan_cifar100" / "smoke" / "records"
    process = start(*command)
    wait_for_epochs(records, 3, process)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    stopped = {path.name: path.read_bytes() for path in records.glob("*.json")}
    ended = {name for name, text in stopped.items() if json.loads(text)["status"] == "finished"}

    code, out, err = run(*command)
    assert code == 0, err
    after = {path.name: path.read_bytes() for path in records.glob("*.json")}
    assert {name: after[name] for name in ended} == {name: stopped[name] for name in ended}
    assert len(after) == 6
    assert {json.loads(text)["status"] for text in after.values()} == {"finished"}

    report = tmp_path / "gan_cifar100" / "smoke" / "report.md"
    first = report.read_text()
    assert "report.md" in out
    assert first.splitlines()[0] == "# AdamW with gradient normalization on CIFAR-100"
    assert "preset smoke" in first
    assert "All 6 runs have ended." in first
    last = [epochs[-1]["test_accuracy"] for name, epochs in metrics(records).items() if "-gan-" in name]
    assert f"{100 * sum(last) / 2:.1f} ±" in first

    for path in report.parent.glob("*.*"):
        path.unlink()
    code, _, err = run("report", "gan_cifar100", "--out", tmp_path)
    assert code == 0, err
    assert report.read_text() == first
    assert "<svg" in (report.parent / "curves_adamw.svg").read_text()
    page = (report.parent / "dynamics.md").read_text()
    assert page.count("2 seeds") == 3
    assert len(list(report.parent.glob("dynamics_*.svg"))) == 3
