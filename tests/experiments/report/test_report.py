"""Tables against independently computed numbers, from records made by hand."""

import dataclasses
import math
import resource

import numpy as np
import pytest

from experiments.files import FileError
from experiments.records import EpochMetrics, RunRecord
from experiments.report import names, style
from experiments.report.cells import (
    Row,
    best_accuracy,
    epochs_until,
    final_accuracy,
    log_final_loss,
    log_roughness,
    make_cells,
    make_rows,
    mean_log_loss,
    paired_difference,
)
from experiments.report.contrasts import ACCURACY, ONE_POINT, Endpoint, make_contrasts
from experiments.report.curves import draw_learning_curves
from experiments.report.pages import (
    describe_completeness,
    describe_processors,
    describe_protocol,
    write_page,
)
from experiments.report.tables import remarks, results_table, scores_table, training_table
from experiments.studies import load_study
from experiments.studies.tuning import best_cell

from .made import make_record, make_run

METHODS = ("baseline", "znorm")
BASELINE = [0.5, 0.6, 0.55]
ZNORM = [0.7, 0.65, 0.8]


@pytest.fixture
def cells():
    records = [make_record(make_run("baseline", s), a) for s, a in enumerate(BASELINE)]
    # In another order than the baseline's: pairs are found by seed.
    records += [make_record(make_run("znorm", s), ZNORM[s]) for s in (2, 0, 1)]
    runs = [record.run for record in records]
    return {cell.run.method: cell for cell in make_cells(runs, records).values()}


def test_mean_deviation_and_paired_interval(cells):
    differences = np.subtract(ZNORM, BASELINE)
    # 4.302653 is the 97.5 % quantile of Student's t with 2 degrees of freedom.
    half = 4.302653 * differences.std(ddof=1) / math.sqrt(3)
    found = paired_difference(cells["znorm"], cells["baseline"])
    mean = differences.mean()
    np.testing.assert_allclose(
        [found.mean, found.low, found.high], [mean, mean - half, mean + half], rtol=1e-6
    )
    assert found.n == 3

    rows = make_rows(cells.values(), ["method"])
    table = results_table(["method"], rows, make_contrasts(rows, ACCURACY))
    assert f"{100 * np.mean(ZNORM):.1f} ± {100 * np.std(ZNORM, ddof=1):.1f}" in table
    low, high = 100 * (mean - half), 100 * (mean + half)
    assert f"{100 * mean:+.1f} [{low:+.1f}, {high:+.1f}]" in table


def test_a_method_without_its_baseline_is_not_compared(cells):
    def compare(*methods):
        rows = make_rows([cells[m] for m in methods], ["optimizer", "method"])
        return [c.row.cell.run.method for c in make_contrasts(rows, ACCURACY)]

    assert compare("znorm", "baseline") == ["znorm"]
    assert compare("znorm") == []


def test_the_endpoints_of_a_run():
    run = make_run("znorm", 0, epochs=5, schedule="constant")
    losses, accuracies = (4.0, 2.0, 1.0, 0.5, 0.25), (0.1, 0.9, 0.3, 0.5, 0.4)
    epochs = tuple(
        EpochMetrics(e, loss, 0.5, 0.5, accuracy, 0, 1.0)
        for e, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True), 1)
    )
    record = RunRecord(run, "finished", epochs=epochs)
    assert final_accuracy(record) == pytest.approx(0.4)  # of 0.3, 0.5, 0.4
    falling = dataclasses.replace(record, run=dataclasses.replace(run, schedule="cosine"))
    assert final_accuracy(falling) == 0.4
    # Where a run diverged its network counts as it is.
    assert final_accuracy(dataclasses.replace(record, status="diverged")) == 0.4
    assert final_accuracy(dataclasses.replace(record, epochs=epochs[:2])) == pytest.approx(0.5)
    assert best_accuracy(record) == 0.9
    assert log_final_loss(record) == pytest.approx(math.log(0.25))
    assert mean_log_loss(record) == pytest.approx(0.0)  # 2, 1, 0, -1, -2 times log 2
    assert log_roughness(record) is None  # the loss halves in every epoch: an even fall has no roughness
    bent = dataclasses.replace(record, epochs=(*epochs[:2], dataclasses.replace(epochs[2], train_loss=2.0)))
    assert log_roughness(bent) == pytest.approx(
        math.log(math.log(2))
    )  # 2, 1, 1 times log 2 bends by one log 2
    assert log_roughness(dataclasses.replace(record, epochs=epochs[:2])) is None
    assert log_final_loss(dataclasses.replace(record, status="diverged")) is None
    assert [epochs_until(record, loss) for loss in (5, 1.0, 0.9, 0.1)] == [1, 3, 4, None]


def test_a_run_in_two_tables_is_counted_once(cells):
    twice = [cells["baseline"], cells["znorm"], cells["baseline"]]
    assert describe_completeness(twice) == "All 6 runs have ended."


def test_a_diverged_run_is_never_chosen():
    """Its network may happen to be right more often than that of a run with sound parameters."""
    runs = {rate: make_run("baseline", 0, learning_rate=rate) for rate in (0.1, 1.0)}
    records = [make_record(runs[0.1], 0.4), make_record(runs[1.0], 0.45, math.inf, "diverged")]
    cells = make_cells(runs.values(), records).values()
    best = best_cell(cells, "accuracy")
    assert best
    assert best.run.learning_rate == 0.1


def test_runs_of_a_seed_on_two_kinds_of_processor_are_told():
    def made(method, seed, kind, resumed=(), **changes):
        run = make_run(method, seed, train_examples=2_000, **changes)
        environment = {"backend": "cpu", "device_kind": "cpu", "cpu_model": kind}
        record = make_record(run, 0.5)
        return dataclasses.replace(record, environment=environment, resumed=resumed)

    def told(*records):
        return describe_processors(make_cells([record.run for record in records], records).values())

    # Whole seeds on another kind are as they should be.
    same = [made(m, s, "one" if s else "other", learning_rate=0.1 * s + 0.1) for m in METHODS for s in (0, 1)]
    assert told(*same) == ""
    moved = [made("baseline", 0, "one"), made("znorm", 0, "other", learning_rate=0.001)]
    assert (
        "**Runs of one seed are of several kinds of processor**: ResNet-8, SGDM, 2,000 images, 2 epochs: seed 0 "
        "(one; other)."
    ) in told(*moved)
    resumed = [
        made("baseline", 3, "one"),
        made("znorm", 3, "one", ({"after_epoch": 1, "cpu_model": "other"},)),
    ]
    assert "seed 3 (one; one, then other)." in told(*resumed)
    again = [made("baseline", 1, "one"), made("znorm", 1, "other", learning_rate=0.001)]
    assert "2,000 images, 2 epochs: seeds 0, 1 (one; other)." in told(*moved, *again)
    # Other cells have seeds of their own.
    assert told(made("baseline", 0, "one"), made("znorm", 0, "other", steps=7)) == ""


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path):
    page = tmp_path / "report.md"
    write_page(page, ["old"])
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3, limit[1]))  # as on a full disk
    try:
        with pytest.raises(FileError, match=r"cannot write .*report.md"):
            write_page(page, ["much longer"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert page.read_text() == "old\n"


def test_the_last_epoch_counts_and_not_the_best():
    run = make_run("baseline", 0)
    record = make_record(run, 0.4)
    best_first = RunRecord(
        run=run,
        status="finished",
        epochs=(record.epochs[0].__class__(1, 1, 1, 1, 0.9, 0, 1), record.epochs[1]),
    )
    (cell,) = make_cells([run], [best_first]).values()
    assert cell.values("final_accuracy") == {0: 0.4}


def test_unfinished_and_failed_runs_do_not_count_and_are_told(cells):
    runs = [make_run("gan", seed) for seed in range(4)]
    records = [
        make_record(runs[0], 0.5),
        make_record(runs[1], 0.9, status="running"),
        RunRecord(run=runs[2], status="failed", message="no memory left"),
    ]
    (cell,) = make_cells(runs, records).values()
    assert cell.values("final_accuracy") == {0: 0.5}
    assert "no memory left" in remarks(cell)
    assert "3" in describe_completeness([cell])


def test_diverged_runs_show():
    runs = [make_run("znorm", seed) for seed in (0, 1)]
    records = [make_record(runs[0], 0.5), make_record(runs[1], 0.1, math.nan, "diverged", nonfinite_steps=7)]
    (cell,) = make_cells(runs, records).values()
    table = results_table(["method"], [Row(("znorm",), cell)])
    assert "diverged" in table
    assert "30.0 ± 28.3" in table
    training = training_table(["method"], [Row(("znorm",), cell)])
    assert "14" in [column.strip() for column in training.splitlines()[-1].split("|")]


def test_tuning_takes_the_best_validation_accuracy_and_names_tuned_runs():
    runs = load_study("overlap_table1").runs("smoke", [])
    tuning = [run for run in runs if run.validation_examples]
    records = [make_record(run, 0.9 if run.learning_rate == 0.03 else 0.2) for run in tuning]
    later = load_study("overlap_table1").runs("smoke", records)
    tuned = set(later) - set(runs)
    assert {run.learning_rate for run in tuned if run.optimizer == "sgdm"} == {0.03}
    assert {run.seed for run in tuned} == {0, 1}
    assert {run.validation_examples for run in tuned} == {0}
    assert not {run.seed for run in tuned} & {run.seed for run in tuning}


def test_other_scores_are_paired_by_seed_and_a_diverged_run_has_none():
    auc = {"baseline": {0: 0.7, 1: 0.8, 2: 0.6}, "znorm": {2: 0.9, 0: 0.75}}
    records = [
        dataclasses.replace(make_record(make_run(method, seed), 0.5), scores={"roc_auc": score})
        for method, by_seed in auc.items()
        for seed, score in by_seed.items()
    ]
    records.append(make_record(make_run("znorm", 1), 0.1, math.nan, "diverged"))
    cells = make_cells([record.run for record in records], records)
    baseline, znorm = cells.values()
    differences = np.array([0.75 - 0.7, 0.9 - 0.6])
    # 12.706205 is the 97.5 % quantile of Student's t with 1 degree of freedom.
    half = 12.706205 * differences.std(ddof=1) / math.sqrt(2)
    found = paired_difference(znorm, baseline, "roc_auc")
    assert (found.mean, found.high, found.n) == pytest.approx((0.175, 0.175 + half, 2), rel=1e-6)
    rows = make_rows([baseline, znorm], ["method"])
    auc = make_contrasts(rows, Endpoint("roc_auc", "ROC-AUC", "points", ONE_POINT))
    table = scores_table(["method"], rows, [auc]).splitlines()
    fields = [[field.strip() for field in line.strip("|").split("|")] for line in table]
    assert fields[0] == ["method", "ROC-AUC", "ROC-AUC vs baseline [95 %]"]
    assert fields[2] == ["baseline", "70.0 ± 10.0", ""]
    low, high = 17.5 - 100 * half, 17.5 + 100 * half
    assert fields[3] == ["ZNorm", "82.5 ± 10.6", f"+17.5 [{low:+.1f}, {high:+.1f}]"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "all training images, all test images"),
        ({"train_examples": 2000, "test_examples": 500}, "2,000 training images, 500 test images"),
        ({"validation_examples": 5000}, "all training images, 5,000 of them held out for validation"),
        # The subset is taken from what is left: see `experiments.data.select`.
        (
            {"validation_examples": 500, "train_examples": 2000},
            "2,000 training images, 500 others held out for validation",
        ),
        ({"dataset": "pcam:validation", "test_examples": 9}, "all training images, 9 validation images"),
        ({"validation_examples": 120, "loss": "tversky"}, "all training images, at most 120 of them held"),
    ],
)
def test_the_protocol_says_which_images_are_held_out(changes, words):
    assert words in describe_protocol(make_run("baseline", 0, **changes))


def test_the_difference_to_the_baseline_is_paired_by_seed(tmp_path):
    accuracies = {"baseline": [0.5, 0.6, 0.8], "znorm": [0.51, 0.63, 0.82]}
    runs = [make_run(method, seed, epochs=1) for method in accuracies for seed in range(3)]
    found = [
        RunRecord(
            run,
            "finished",
            epochs=(EpochMetrics(1, 1.0, 0.5, 1.0, accuracies[run.method][run.seed], 0, 1.0),),
        )
        for run in runs
    ]
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "save", lambda figure, path: drawn.append(figure))
        panels = {"sgdm": list(make_cells(runs, found).values())}
        draw_learning_curves(tmp_path / "curves", "", panels)
        draw_learning_curves(tmp_path / "curves", "", {"sgdm": panels["sgdm"][1:]})
    both, alone = drawn
    assert (len(both.axes), len(alone.axes)) == (3, 2)
    _, (mean,) = both.axes[1].lines[-1].get_data()
    assert mean == pytest.approx(0.02)
    (band,) = both.axes[1].collections
    ends = band.get_paths()[0].vertices[:, 1]
    half = 4.302653 * 0.01 / math.sqrt(3)
    assert (ends.min(), ends.max()) == pytest.approx((0.02 - half, 0.02 + half), rel=1e-4)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.48, 0.66, {"0.5", "0.6"}),
        (0.26, 1.8, {"0.5", "1"}),
        (0.5, 20, {"0.5", "1", "2", "5", "10", "20"}),
    ],
)
def test_a_narrow_loss_axis_has_plain_numbers(tmp_path, low, high, expected):
    losses = np.geomspace(low, high, 5)
    epochs = tuple(EpochMetrics(e, loss, 0.5, 0.5, 0.5, 0, 1.0) for e, loss in enumerate(losses, 1))
    run = make_run("baseline", 0, epochs=5)
    cells = make_cells([run], [RunRecord(run, "finished", epochs=epochs)])
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "save", lambda figure, path: drawn.append(figure))
        draw_learning_curves(tmp_path / "curves", "", {"sgdm": list(cells.values())})
    (figure,) = drawn
    figure.canvas.draw()
    axis = figure.axes[1].yaxis
    labels = (*axis.get_ticklabels(), *axis.get_ticklabels(minor=True))
    shown = {label.get_text() for label in labels} - {""}
    assert expected <= shown
    assert len(shown) >= 3
    assert not any("$" in text for text in shown)


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        ("cifar10", "CIFAR-10"),
        ("stream:patch_camelyon", "PatchCamelyon"),
        ("jpeg:imagenet2012", "ImageNet, JPEGs"),
        ("jpeg:my_birds:64", "my_birds, JPEGs at 64 x 64 pixels"),
        ("lgg:64", "LGG MRI (64)"),
        ("arrays", "arrays"),
    ],
)
def test_data_sets_have_names_for_people(dataset, words):
    assert names.dataset(dataset) == words
