"""Tables against independently computed numbers, from records made by hand."""

import math

import numpy as np
import pytest

from experiments import report
from experiments.config import Run
from experiments.records import EpochMetrics, RunRecord
from experiments.studies import load_studies, overlap_table1


def make_record(run, accuracy, loss=0.5, status="finished", nonfinite_steps=0):
    epochs = tuple(
        EpochMetrics(e + 1, loss, accuracy, loss, accuracy - 0.1 * (run.epochs - 1 - e), nonfinite_steps, 1.0)
        for e in range(run.epochs)
    )
    return RunRecord(run=run, status=status, epochs=epochs)


def make_run(method, seed, **changes):
    fields = {"dataset": "digits", "model": "resnet8", "optimizer": "sgdm", "learning_rate": 0.01}
    return Run(**{**fields, "epochs": 2, "batch_size": 50, "method": method, "seed": seed, **changes})


BASELINE = [0.5, 0.6, 0.55]
ZNORM = [0.7, 0.65, 0.8]


@pytest.fixture
def cells():
    records = [make_record(make_run("baseline", s), a) for s, a in enumerate(BASELINE)]
    # In another order than the baseline's: pairs are found by seed.
    records += [make_record(make_run("znorm", s), ZNORM[s]) for s in (2, 0, 1)]
    runs = [record.run for record in records]
    return {cell.run.method: cell for cell in report.make_cells(runs, records).values()}


def test_mean_deviation_and_paired_interval(cells):
    differences = np.subtract(ZNORM, BASELINE)
    # 4.302653 is the 97.5 % quantile of Student's t with 2 degrees of freedom.
    half = 4.302653 * differences.std(ddof=1) / math.sqrt(3)
    mean, got_half, n = report.paired_difference(cells["znorm"], cells["baseline"])
    np.testing.assert_allclose([mean, got_half, n], [differences.mean(), half, 3], rtol=1e-6)

    table = report.results_table(["method"], [report.Row(("znorm",), cells["znorm"], cells["baseline"])])
    assert f"{np.mean(ZNORM):.4f} ± {np.std(ZNORM, ddof=1):.4f}" in table
    low, high = differences.mean() - half, differences.mean() + half
    assert f"{differences.mean():+.4f} [{low:+.4f}, {high:+.4f}]" in table


def test_the_last_epoch_counts_and_not_the_best():
    run = make_run("baseline", 0)
    record = make_record(run, 0.4)
    best_first = RunRecord(
        run=run,
        status="finished",
        epochs=(record.epochs[0].__class__(1, 1, 1, 1, 0.9, 0, 1), record.epochs[1]),
    )
    (cell,) = report.make_cells([run], [best_first]).values()
    assert cell.accuracies == {0: 0.4}


def test_unfinished_and_failed_runs_do_not_count_and_are_told(cells):
    runs = [make_run("gan", seed) for seed in range(4)]
    records = [
        make_record(runs[0], 0.5),
        make_record(runs[1], 0.9, status="running"),
        RunRecord(run=runs[2], status="failed", message="no memory left"),
    ]
    (cell,) = report.make_cells(runs, records).values()
    assert cell.accuracies == {0: 0.5}
    assert "no memory left" in report.remarks(cell)
    assert "3" in report.describe_completeness([cell])


def test_diverged_runs_show():
    runs = [make_run("znorm", seed) for seed in (0, 1)]
    records = [make_record(runs[0], 0.5), make_record(runs[1], 0.1, math.nan, "diverged", nonfinite_steps=7)]
    (cell,) = report.make_cells(runs, records).values()
    table = report.results_table(["method"], [report.Row(("znorm",), cell)])
    assert "diverged" in table
    assert "14" in [column.strip() for column in table.splitlines()[-1].split("|")]
    assert f"{0.3:.4f}" in table


def test_tuning_takes_the_best_validation_accuracy_and_names_tuned_runs():
    runs = load_studies()["overlap_table1"].runs("smoke", [])
    tuning = [run for run in runs if run.validation_examples]
    records = [make_record(run, 0.9 if run.learning_rate == 0.03 else 0.2) for run in tuning]
    chosen = overlap_table1.choose_learning_rates("smoke", records)
    for (_, optimizer, _), learning_rate in chosen.items():
        if optimizer == "sgdm":
            assert learning_rate == 0.03
    later = load_studies()["overlap_table1"].runs("smoke", records)
    tuned = set(later) - set(runs)
    assert {run.seed for run in tuned} == {0, 1}
    assert {run.validation_examples for run in tuned} == {0}
    assert not {run.seed for run in tuned} & {run.seed for run in tuning}


@pytest.mark.parametrize("name", list(load_studies()))
def test_a_partial_report_says_what_is_missing(name, tmp_path):
    study = load_studies()[name]
    runs = study.runs("smoke", [])
    study.report("smoke", [make_record(run, 0.25) for run in runs[:2]], tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "0.2500" in text
    assert f"{len(runs) - 2} of {len(runs)} runs" in text
    assert "educed" in text.splitlines()[0] + text.splitlines()[2]


def test_full_preset_of_table_1_is_the_papers_protocol():
    runs = [run for run in load_studies()["overlap_table1"].runs("full", []) if not run.validation_examples]
    assert {run.model for run in runs} == {"resnet56", "resnet110", "resnet152"}
    assert {(run.epochs, run.batch_size, run.augment, run.dataset) for run in runs} == {
        (100, 256, "none", "cifar10")
    }
    assert {(run.optimizer, run.learning_rate) for run in runs} == {("sgdm", 0.01), ("adam", 0.001)}
