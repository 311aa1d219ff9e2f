"""A study as a user meets it: a kill half-way, the same command again, the report, what is published of it."""

import json
import os
import re
import signal
import time

import numpy as np
import pytest

from experiments import __main__ as main

from ..data.prepared_folders import write_prepared
from ..processes import finish, metrics, run, start, wait_for_epochs

STUDY = "gan_cifar100", "--preset", "smoke"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Images that have the shape of CIFAR-100, six of each class; the real ones where they are at hand."""
    if folder := os.environ.get("GRADNORM_DATA_DIR"):
        return folder
    rng = np.random.default_rng(0)
    splits = {
        name: (rng.integers(0, 256, (count, 32, 32, 3), np.uint8), np.arange(count) % 100)
        for name, count in (("train", 600), ("test", 200))
    }
    folder = tmp_path_factory.mktemp("data")
    write_prepared(folder, splits, name="cifar100", version="3.0.2", num_classes=100)
    return folder


@pytest.mark.slow
def test_a_killed_study_goes_on_reports_from_its_records_and_is_published(data_dir, tmp_path, capsys):
    command = ("reproduce", *STUDY, "--data-dir", data_dir, "--out", tmp_path, "--workers", "2", "--dynamics")
    records = tmp_path / "gan_cifar100" / "smoke" / "records"
    process = start(*command)
    while not {"finished", "running"} <= {
        json.loads(p.read_text())["status"] for p in records.glob("*.json")
    }:
        wait_for_epochs(records, 1, process)
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    finish(process, timeout=30)
    stopped = {path.name: path.read_bytes() for path in records.glob("*.json")}
    ended = {name for name, text in stopped.items() if json.loads(text)["status"] == "finished"}

    # What has ended can be published while the rest is under way.
    publish = {"source": records.parent, "out": tmp_path / "published"}
    main.publish("gan_cifar100", "smoke", **publish)
    out = capsys.readouterr().out
    assert f"{len(ended)} runs" in out
    assert f"{len(stopped) - len(ended)} more have not ended" in out

    code, out, err = run(*command)
    assert code == 0, err
    after = {path.name: path.read_bytes() for path in records.glob("*.json")}
    assert {name: after[name] for name in ended} == {name: stopped[name] for name in ended}
    assert len(after) == 8
    assert {json.loads(text)["status"] for text in after.values()} == {"finished"}

    report = tmp_path / "gan_cifar100" / "smoke" / "report.md"
    first = report.read_text()
    assert "report.md" in out
    assert first.splitlines()[0] == "# AdamW with gradient normalization on CIFAR-100"
    assert "preset smoke" in first
    assert "All 8 runs have ended." in first
    last = [epochs[-1]["test_accuracy"] for name, epochs in metrics(records).items() if "-gan-" in name]
    assert f"{100 * sum(last) / 2:.1f} ±" in first

    for path in report.parent.glob("*.*"):
        path.unlink()
    main.report("gan_cifar100", out=tmp_path)
    assert report.read_text() == first
    assert "<svg" in (report.parent / "global_std.svg").read_text()
    page = (report.parent / "dynamics.md").read_text()
    sheets = re.findall(r"^!\[.*\]\((dynamics_.*)\)$", page, re.MULTILINE)
    assert sheets == sorted(path.name for path in report.parent.glob("dynamics_*.svg"))
    assert len(sheets) == 2  # of one network, all methods side by side: of many images and of few

    # A report of what was published is the same, byte by byte, and so are its figures.
    main.publish("gan_cifar100", "smoke", **publish)
    out = capsys.readouterr().out
    assert "8 runs" in out
    assert "not ended" not in out
    main.report("gan_cifar100", out=tmp_path / "published")
    published = tmp_path / "published" / "gan_cifar100" / "smoke"
    lines = {"records.jsonl", "records.dynamics.jsonl"}
    assert {path.name for path in published.iterdir()} - lines == {
        path.name for path in report.parent.glob("*.*")
    }
    for path in report.parent.glob("*.*"):
        assert (published / path.name).read_bytes() == path.read_bytes(), path.name
