"""A study as a user meets it: prepared images, a kill half-way, the same command again, the report."""

import json
import os
import signal

import numpy as np
import pytest

from ..data.prepared_folders import write_prepared
from ..processes import metrics, run, start, wait_for_epochs

STUDY = "gan_cifar100", "--preset", "smoke"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Real images where there are some, else as many of noise."""
    if folder := os.environ.get("GRADNORM_DATA_DIR"):
        return folder
    folder = tmp_path_factory.mktemp("prepared")
    rng = np.random.default_rng(0)
    counts = {"train": 600, "test": 300}
    splits = {
        split: (rng.integers(0, 256, (count, 32, 32, 3), np.uint8), np.arange(count) % 100)
        for split, count in counts.items()
    }
    write_prepared(folder, splits, name="cifar100", version="3.0.2", num_classes=100)
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
    assert "reduced" in first.splitlines()[0]
    assert "All 6 runs have ended." in first
    last = [epochs[-1]["test_accuracy"] for name, epochs in metrics(records).items() if "-gan-" in name]
    assert f"{sum(last) / 2:.4f}" in first

    for path in report.parent.glob("*.*"):
        path.unlink()
    code, _, err = run("report", "gan_cifar100", "--out", tmp_path)
    assert code == 0, err
    assert report.read_text() == first
    assert (report.parent / "curves_adamw.png").read_bytes().startswith(b"\x89PNG")
    page = (report.parent / "dynamics.md").read_text()
    assert page.count("2 seeds") == 3
    assert len(list(report.parent.glob("dynamics_*.png"))) == 3
