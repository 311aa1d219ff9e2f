"""The study imagenet: what is trained when, its report; and JPEGs trained on as a user does."""

import dataclasses
import json
import os
from pathlib import Path

import pytest

from experiments import data
from experiments.records import EpochMetrics, RunRecord
from experiments.studies import imagenet

from ..data.jpegs import write_folder
from ..data.test_jpeg import cut_off
from ..processes import run

# Behind one optimizer in one batch the best rate of each method, in the middle of its grid.
BEST = {"baseline": 1.0, "znorm": 0.001, "gan": 1.0}


def record(trained, accuracy):
    epochs = tuple(
        EpochMetrics(i + 1, 2.0, accuracy, 2.0, accuracy, 0, 1.0) for i in range(min(2, trained.epochs))
    )
    scores = {"top_1": accuracy, "top_5": min(1.0, accuracy + 0.2)}
    return RunRecord(run=trained, status="finished", epochs=epochs, scores=scores)


def accuracy_of(trained):
    best = BEST[trained.method] if trained.optimizer == "sgdm" else 10.0
    return 0.7 if trained.learning_rate == pytest.approx(best) else 0.5


def test_full_tunes_every_row_alike_and_trains_it_with_what_was_chosen():
    tuning = imagenet.make_runs("full", [])
    rows = {(r.optimizer, r.batch_size, r.method): [] for r in tuning}
    assert len(rows) == 2 * 4 * 3
    for trained in tuning:
        rows[trained.optimizer, trained.batch_size, trained.method].append(trained.learning_rate)
    assert {len(set(rates)) for rates in rows.values()} == {3}
    assert all(r.validation_examples == 50_000 and r.epochs == 10 for r in tuning)
    assert {r.seed for r in tuning} == {100, 101}

    records = [record(r, accuracy_of(r)) for r in tuning]
    reported = [r for r in imagenet.make_runs("full", records) if not r.validation_examples]
    assert len(reported) == 24 * 3
    for trained in reported:
        assert trained.learning_rate == (BEST[trained.method] if trained.optimizer == "sgdm" else 10.0)
        assert (trained.model, trained.dataset) == ("resnet50", "jpeg:imagenet2012:224")
        assert (trained.epochs, trained.warmup_epochs, trained.schedule) == (90, 5.0, "cosine")
        assert (trained.dtype, trained.label_smoothing) == ("bfloat16", 0.1)
        assert trained.augment == "resized_crop"
    # The best rate at the edge of its grid: one more is tried.
    at_the_edge = [record(r, r.learning_rate / 100) for r in tuning]
    more = imagenet.make_runs("full", at_the_edge)
    assert {r.learning_rate for r in more if r.method == "znorm" and r.optimizer == "sgdm"} > {0.01}


def test_the_report_has_top_5(tmp_path):
    records = [record(r, accuracy_of(r)) for r in imagenet.make_runs("smoke", [])]
    records += [record(r, 0.5 + 0.01 * r.seed) for r in imagenet.make_runs("smoke", records) if r.seed < 100]
    imagenet.make_report("smoke", records, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "top-5" in text
    assert text.count("70.5 ± 0.7") >= 6
    assert "random-resized crops and flips" in text
    assert (tmp_path / "curves_lars.svg").exists()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """JPEGs made of real CIFAR-10 if it is there, else of two photographs."""
    folder = tmp_path_factory.mktemp("data")
    known = os.environ.get("GRADNORM_DATA_DIR")
    if known and (Path(known) / "cifar10").exists():
        (folder / "cifar10").symlink_to(Path(known).resolve() / "cifar10")
        code, out, err = run("prepare", "cifar10_jpeg", "--data-dir", folder)
        assert code == 0, err
        assert "320 train, 80 test" in out
    else:
        counts = {f"{split}/{label}": n for split, n in (("train", 16), ("test", 4)) for label in range(10)}
        source = write_folder(folder / "photographs", counts)
        data.prepare("folder", folder, source=source, save_as="cifar10_jpeg")
    return folder


COMPARE = (
    "compare", "--dataset", "jpeg:cifar10_jpeg:32", "--methods", "znorm", "--optimizers", "lars", "--seeds", "0",
    "--epochs", "1", "--batch-size", "32",
)  # fmt: skip


def test_a_damaged_image_ends_a_comparison_with_one_line_or_is_left_out(data_dir, tmp_path):
    folder = tmp_path / "data" / "cifar10_jpeg" / "1.0.0"
    folder.mkdir(parents=True)
    for path in (data_dir / "cifar10_jpeg" / "1.0.0").iterdir():
        if path.suffix != ".npz":
            (folder / path.name).write_bytes(path.read_bytes())
    bad = cut_off(folder, 7, "test")
    command = (*COMPARE, "--data-dir", tmp_path / "data", "--out", tmp_path / "out")
    code, _, err = run(*command)
    assert code == 1
    lines = [line for line in err.splitlines() if line.startswith("failed: ")]
    assert len(lines) == 1
    assert f"{bad.name}, record 7 is damaged" in lines[0]
    code, out, err = run(*command, "--skip-damaged")
    assert code == 0, err
    assert "Report: " in out
    assert "jpeg:cifar10_jpeg:32: 1 damaged images are excluded" in err
    (path,) = (tmp_path / "out" / "records").glob("*.json")
    record = json.loads(path.read_text())
    assert record["data"]["damaged"] == 1
    assert record["scores"]["top_5"] >= record["scores"]["top_1"] > 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_study_in_small_as_its_docstring_says(data_dir, tmp_path, call, monkeypatch):
    """With real JPEGs and one seed: tuning, reported runs, the report; and what is lost is made again, no more."""
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")  # of the workers
    monkeypatch.setattr(imagenet, "TUNING_SEEDS", (100,))
    monkeypatch.setitem(imagenet.SIZES, "smoke", dataclasses.replace(imagenet.SIZES["smoke"], seeds=(0,)))
    command = ("reproduce", "imagenet", "--preset", "smoke", "--data-dir", data_dir, "--out", tmp_path)
    folder = tmp_path / "imagenet" / "smoke"
    code, _, err = call(*command, "--workers", "2")
    assert code == 0, err
    report = (folder / "report.md").read_text()
    assert "preset smoke" in report
    assert "top-5" in report
    for words in ("ZNorm", "GAN", "LARS", "SGDM"):
        assert words in report

    before = {path: path.read_bytes() for path in sorted((folder / "records").glob("*.json"))}
    assert len(before) == 2 * 2 * 3 + 2 * 3
    *_, lost = [path for path in before if "-s0-" in path.name]
    lost.unlink()
    code, _, err = call(*command, "--workers", "1")
    assert code == 0, err
    after = {path: path.read_bytes() for path in before}
    assert [path for path in before if after[path] != before[path]] == [lost]
    assert json.loads(after[lost])["scores"] == json.loads(before[lost])["scores"]
