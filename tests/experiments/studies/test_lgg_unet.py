"""The study lgg_unet: which rate is chosen, what its report says of records, and masks from slices to figure."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from flax import nnx
from matplotlib.image import imread
from PIL import Image

import optax_gradnorm
from experiments import data, models
from experiments.jobs.measure import Context, measure
from experiments.records import (
    EpochMetrics,
    RecordError,
    RunRecord,
    read_measurements,
    write_checkpoint,
    write_record,
)
from experiments.report.findings import read_findings
from experiments.studies import lgg_unet
from experiments.studies.lgg_unet.masks import choose_slices, from_png, measure_masks, to_png
from experiments.training.metrics import SegmentationScores

SCORES = ("f1", "dice", "iou", "tversky", "hausdorff", "hausdorff95", "one_empty")


def record(run, scores, status="finished"):
    ended = 1 if status == "diverged" else run.epochs
    epochs = tuple(EpochMetrics(n, 0.5, 0.9, 0.6, 0.9, 0, 2.0) for n in range(1, ended + 1))
    return RunRecord(run, status, epochs=epochs, scores=scores)


def tuned(preset, f1):
    """Records of the tuning runs with an F1, or `None` for diverged, by method and learning rate."""
    records = []
    for run in lgg_unet.make_runs(preset, []):
        value = f1(run)
        records.append(record(run, {}, "diverged") if value is None else record(run, {"f1": value}))
    return records


def setting(run):
    return run.optimizer, run.method


def test_nothing_is_reported_before_the_tuning_of_a_method_has_ended():
    tuning = lgg_unet.make_runs("cpu", [])
    assert len(tuning) == 5 * 4
    assert {run.seed for run in tuning} == {100}
    assert all(run.validation_examples for run in tuning)
    records = tuned("cpu", lambda run: run.learning_rate)
    assert lgg_unet.make_runs("cpu", records[:3]) == tuning
    runs = lgg_unet.make_runs("cpu", records[:5])
    assert runs[:20] == tuning
    assert [(run.method, run.seed, run.learning_rate) for run in runs[20:]] == [
        ("baseline", seed, 0.01) for seed in range(5)
    ]
    everything = lgg_unet.make_runs("cpu", records)
    assert len(everything) == 20 + 5 * 5
    assert len({run.name for run in everything}) == len(everything)
    assert not any(run.validation_examples for run in everything[20:])


def test_the_best_rate_is_chosen_the_lower_of_equals_and_never_one_that_diverged():
    values = {
        "baseline": {0.0003: 0.2, 0.001: 0.7, 0.003: 0.7, 0.01: 0.1},
        "centralization": {0.0003: 0.0, 0.001: 0.0, 0.003: None, 0.01: None},
        "clipping": {0.0003: None, 0.001: None, 0.003: None, 0.01: 0.0},
        "znorm": {0.0003: 0.1, 0.001: 0.2, 0.003: 0.3, 0.01: 0.4},
        "gan": {0.0003: 0.9, 0.001: 0.2, 0.003: 0.3, 0.01: 0.4},
    }
    records = tuned("cpu", lambda run: values[run.method][run.learning_rate])
    study = lgg_unet.make_tuning("cpu")
    assert {setting.method: cell.run.learning_rate for setting, cell in study.best(records).items()} == {
        "baseline": 0.001,
        "centralization": 0.0003,
        "clipping": 0.01,
        "znorm": 0.01,
        "gan": 0.0003,
    }
    table = study.table(records)
    assert [re.split(r"\s*\|\s*", line)[1:-1] for line in table.splitlines()[2:4]] == [
        ["Adam", "baseline", "20.0", "**70.0**", "70.0", "10.0"],
        ["Adam", "centralization", "**0.0**", "0.0", "- diverged", "- diverged"],
    ]
    assert table.endswith("with these: adam centralization, adam clipping, adam znorm, adam gan.")


def test_the_report_says_of_every_score_what_the_records_hold(tmp_path):
    """ZNorm is better in F1 by 0.1 +- 0.01, worse in distance, and the same in the rest."""
    rng = np.random.default_rng(0)
    tuning = tuned("cpu", lambda run: -run.learning_rate)
    records = list(tuning)
    for run in lgg_unet.make_runs("cpu", tuning)[20:]:
        noise = rng.normal(scale=0.01)
        scores = dict.fromkeys(SCORES, 0.5 + 0.1 * run.seed)
        if run.method == "znorm":
            scores |= {"f1": scores["f1"] + 0.1 + noise, "hausdorff": scores["hausdorff"] + 3 + noise}
        if run.method == "gan" and run.seed == 4:
            records.append(record(run, {}, "diverged"))
        else:
            records.append(record(run, scores))
    lgg_unet.make_report("cpu", records, tmp_path)
    text = (tmp_path / "report.md").read_text()
    found = {
        (finding.question.split(" against")[0], finding.label): finding
        for finding in read_findings(tmp_path / "findings.json")
    }
    assert found["F1", "ZNorm"].verdict == "helps"
    assert found["Hausdorff", "ZNorm"].verdict == "harms"
    assert found["Tversky", "ZNorm"].verdict == "cannot be told"
    assert found["F1", "ZNorm"].source == "Yun 2024, arXiv 2408.01215"
    assert found["F1", "clipping by norm"].verdict == "cannot be told"
    assert "All 45 runs have ended." in text
    assert "curves.svg" in text
    assert text.splitlines()[0] == "# LGG MRI segmentation with a U-Net"
    assert re.search(r"dataset +\| LGG MRI \(64\) +\| LGG MRI ", text)
    assert re.search(r"0\.917 .*PatchCamelyon .*ResNet-101 .*not stated", text)
    assert re.search(r"0\.812 .*CIFAR-10 .*ResNet-56 .*not stated", text)
    lines = [re.split(r"\s*\|\s*", line)[1:-1] for line in text.splitlines() if line.startswith("|")]
    baseline, znorm, gan = ([line for line in lines if line[0] == m] for m in ("baseline", "ZNorm", "GAN"))
    assert baseline[0][1] == "70.0 ± 15.8"
    assert gan[0][1] == "65.0 ± 12.9"
    assert gan[0][-1] == "1 of 5 diverged"
    assert gan[1][1].startswith("+0.0 [seeds agree]")
    found = [100 * (r.scores["f1"] - 0.5 - 0.1 * r.run.seed) for r in records[20:] if r.run.method == "znorm"]
    half = 2.776445 * np.std(found, ddof=1) / np.sqrt(5)  # Student's t for four degrees of freedom
    mean = np.mean(found)
    assert znorm[1][1].startswith(f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]")


def test_nothing_is_told_of_a_method_most_of_whose_runs_diverged(tmp_path):
    tuning = tuned("cpu", lambda run: run.learning_rate)
    reported = [
        record(run, {}, "diverged")
        if run.method == "znorm" and run.seed > 1
        else record(run, dict.fromkeys(SCORES, 0.2 + 0.5 * (run.method == "znorm") + 0.001 * run.seed))
        for run in lgg_unet.make_runs("cpu", tuning)[20:]
    ]
    lgg_unet.make_report("cpu", [*tuning, *reported], tmp_path)
    (znorm,) = (
        finding
        for finding in read_findings(tmp_path / "findings.json")
        if finding.label == "ZNorm" and finding.question.startswith("F1")
    )
    assert znorm.verdict == "cannot be told"
    assert "fewer than 3 seeds" in znorm.note


def test_two_seeds_tell_nothing_of_a_method(tmp_path):
    """However large a difference is."""
    tuning = tuned("smoke", lambda run: run.learning_rate)
    reported = [
        record(run, dict.fromkeys(SCORES, 0.2 + 0.5 * (run.method == "znorm") + 0.001 * run.seed))
        for run in lgg_unet.make_runs("smoke", tuning)[4:]
    ]
    lgg_unet.make_report("smoke", [*tuning, *reported], tmp_path)
    found = read_findings(tmp_path / "findings.json")
    assert {finding.verdict for finding in found} == {"cannot be told"}


def test_the_report_counts_the_images_of_the_records(tmp_path):
    tuning = tuned("smoke", lambda run: run.learning_rate)
    images = {"train_images": 1234, "test_images": 56, "image_shape": [32, 48, 3]}
    reported = [
        dataclasses.replace(record(run, dict.fromkeys(SCORES, 0.2)), data=images)
        for run in lgg_unet.make_runs("smoke", tuning)[4:]
    ]
    lgg_unet.make_report("smoke", [*tuning, *reported], tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "- Data: 1,234 training and 56 test slices of 32 x 48 pixels." in text


def test_a_report_of_nothing_says_so(tmp_path):
    lgg_unet.make_report("smoke", [], tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "4 of 4 runs are missing" in text
    assert "Nothing can be said yet" in text
    assert "No masks were measured yet." in text


def test_slices_are_chosen_by_true_masks_from_small_to_large_and_one_without():
    masks = np.zeros((12, 6, 6), np.uint8)
    for i, area in enumerate((0, 5, 36, 9, 0, 2, 7, 3, 8, 4, 6, 1)):
        masks[i].flat[:area] = 1
    chosen = choose_slices(masks)
    assert masks[chosen].sum(axis=(1, 2)).tolist() == [3, 5, 8, 36, 0]
    assert choose_slices(masks[:1]) == [0]
    assert choose_slices(masks[1:2]) == [0]


def test_pictures_survive_as_text():
    pixels = np.random.default_rng(1).integers(0, 256, (9, 7), np.uint8)
    np.testing.assert_array_equal(from_png(to_png(pixels)), pixels)


@pytest.fixture
def slices(tmp_path):
    """A folder of four patients with three slices each: a bright disc is the tumour; every third has none."""
    rng = np.random.default_rng(2)
    rows, columns = np.indices((32, 32))
    for patient in range(4):
        folder = tmp_path / "data" / "kaggle_3m" / f"TCGA_{patient}"
        folder.mkdir(parents=True)
        for number in range(3):
            mask = np.hypot(rows - 16, columns - 8 - 4 * patient) < 3 * number
            image = rng.integers(0, 60, (32, 32, 3)) + 120 * mask[..., None]
            Image.fromarray(image.astype(np.uint8)).save(folder / f"s_{number}.tif")
            Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"s_{number}_mask.tif")
    return tmp_path / "data"


def write_network(run, dataset, out):
    """Weights from NumPy in place of trained ones, which would have to be compiled."""
    options = {"num_classes": 1, "channels": 3, "image_size": 32}
    model = nnx.eval_shape(lambda: models.create(run.model, rngs=nnx.Rngs(0), **options))
    random = np.random.default_rng(run.seed)
    arrays = {"epoch": np.array(run.epochs)}
    for prefix, kind in (("params", nnx.Param), ("batch_stats", nnx.BatchStat)):
        state = nnx.to_pure_dict(nnx.state(model, kind))
        for name, leaf in zip(optax_gradnorm.layer_names(state), jax.tree.leaves(state), strict=True):
            values = random.normal(size=leaf.shape) if leaf.ndim > 1 else np.ones(leaf.shape)
            arrays[f"{prefix}/{name}"] = values.astype(leaf.dtype)
    write_checkpoint(out, run, arrays)
    trained_on = {"train_images": 9, "test_images": 3, "image_shape": [32, 32, 3], "num_classes": 1}
    trained_on |= {"mean": dataset.mean.tolist(), "std": dataset.std.tolist()}
    write_record(out, dataclasses.replace(record(run, dict.fromkeys(SCORES, 0.5)), data=trained_on))


def test_masks_are_measured_from_the_tuned_network_and_drawn_from_records_alone(
    slices, tmp_path, monkeypatch
):
    size = dataclasses.replace(lgg_unet.SIZES["smoke"], train_examples=None, test_examples=None)
    monkeypatch.setitem(lgg_unet.SIZES, "smoke", size)
    records = tuned("smoke", lambda run: run.learning_rate)
    baseline, znorm = (r for r in lgg_unet.make_runs("smoke", records)[4:] if r.seed == 0)
    folder = tmp_path / "out"
    for tuning in records:
        write_record(folder / "records", tuning)
    dataset = data.select(data.load(baseline.dataset, slices), baseline)
    write_network(dataclasses.replace(baseline, dynamics=True), dataset, folder / "records")
    write_record(folder / "records", record(znorm, {}, "diverged"))
    # Trained too, and first by name, but not what the tuning chose.
    other = dataclasses.replace(baseline, learning_rate=0.001)
    write_record(folder / "records", record(other, dict.fromkeys(SCORES, 0.9)))

    context = Context(slices, folder / "records")
    failures = measure(
        lgg_unet.make_measurements("smoke"),
        out=folder / "measurements",
        context=context,
        workers=1,
        on_event=lambda line: None,
    )
    assert failures == {}
    measured = {name: r.values for name, r in read_measurements(folder / "measurements").items()}
    assert measured["masks-adam-znorm"] == {"status": "diverged", "learning_rate": 0.003}
    true = [from_png(text) > 0 for text in measured["slices"]["masks"]]
    known = {mask.tobytes() for mask in dataset.test_labels > 0}
    assert {mask.tobytes() for mask in true} <= known
    assert not true[-1].any()
    found = measured["masks-adam-baseline"]
    assert found["learning_rate"] == 0.003
    for text, mask, dice in zip(found["masks"], true, found["dice"], strict=True):
        scores = SegmentationScores()
        scores.update(from_png(text)[None] / 255, mask[None])
        assert dice == pytest.approx(scores.compute()["dice"], abs=1e-4)

    lgg_unet.make_report("smoke", records, folder)
    text = (folder / "report.md").read_text()
    assert "masks.png" in text
    assert "Missing:" not in text
    # Green where the true mask is: the second column of the figure.
    picture = imread(folder / "masks.png")[..., :3]
    column = picture[:, picture.shape[1] // 4 : picture.shape[1] // 2]
    is_green = (column[..., 1] - column[..., 0] > 0.15) & (column[..., 1] - column[..., 2] > 0.05)
    assert is_green.sum() > 500
    assert not is_green[-column.shape[0] // len(true) :].any()

    # Tuned again, with another outcome: what was measured is of a run that is not reported any more.
    records = tuned(
        "smoke", lambda run: -run.learning_rate if run.method == "baseline" else run.learning_rate
    )
    lgg_unet.make_report("smoke", records, folder)
    text = (folder / "report.md").read_text()
    expected = "Missing: baseline with adam, measured at learning rate 0.003 and not at the chosen 0.001 "
    assert expected + "(remove measurements/masks-adam-baseline.json" in text


def test_a_failed_run_is_not_measured_for_good(slices, tmp_path):
    records = tuned("smoke", lambda run: run.learning_rate)
    run = next(r for r in lgg_unet.make_runs("smoke", records)[4:] if r.seed == 0)
    write_record(tmp_path, RunRecord(run, "failed", message="killed"))
    (wanted,) = [m for m in lgg_unet.make_measurements("smoke") if m.name == "masks-adam-baseline"]
    context = Context(slices, tmp_path)
    with pytest.raises(RecordError, match="no tuned run of baseline and adam has ended"):
        measure_masks(context, **wanted.arguments)
    for tuning in records:
        write_record(tmp_path, tuning)
    with pytest.raises(RecordError, match="no tuned run of baseline and adam has ended"):
        measure_masks(context, **wanted.arguments)
