"""The rules that were fixed before the runs of `near_convergence`, on made-up training losses."""

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from experiments.records import EpochMetrics, RunRecord
from experiments.report.findings import read_findings
from experiments.studies.near_convergence import FLOOR, STUDY, UNSTABLE, adamw_runs


def make_record(run, late=0.0, bump=0.0, accuracy=0.1):
    """The loss falls and, as far as `bump` says, goes up and down; its logarithm ends higher by `late`."""
    wave = 0.01 * math.exp(bump)
    losses = [
        math.exp(-0.05 * e + wave * (-1) ** e + late * max(0, 2 * e / run.epochs - 1))
        for e in range(1, run.epochs + 1)
    ]
    epochs = tuple(
        EpochMetrics(e, loss, 0.5, None, accuracy if run.evaluates(e) else None, 0, 1.0)
        for e, loss in enumerate(losses, start=1)
    )
    return RunRecord(run, "finished", epochs=epochs)


def play(late=0.0, bump=0.0, spread=0.01, optimizer="adamw"):
    """Records of all runs of the protocol: ZNorm's losses beside the baseline's, seeds apart by `spread`."""
    records, named = [], set()
    while todo := [run for run in STUDY.runs("cpu", records) if run not in named]:
        named |= set(todo)
        for run in todo:
            chance = spread * ((run.seed * 7) % 5 - 2) * (1 if run.method == "znorm" else -1)
            ours = run.method == "znorm" and run.optimizer == optimizer
            # The middle of every grid is the best rate.
            best = (
                {"znorm": 2e-4, "baseline": 0.05}[run.method]
                if run.optimizer == "sgdm"
                else run.learning_rate
            )
            accuracy = 0.1 - 0.01 * abs(math.log(run.learning_rate / best)) + 0.001 * chance
            records.append(make_record(run, ours * late + chance, ours * bump + chance, accuracy))
    return records


def words(records, folder, optimizer="AdamW"):
    """The verdicts on the two claims."""
    STUDY.report("cpu", records, folder)
    found = {(f.question, f.label): f.verdict for f in read_findings(folder)}
    return found[UNSTABLE, optimizer], found[FLOOR, optimizer]


@pytest.mark.parametrize(
    ("late", "bump", "expected"),
    [
        (1.0, -0.5, ("contradicted", "shown")),  # the lead: smoother, with a floor
        (1.0, 0.5, ("shown", "shown")),
        (-1.0, 0.5, ("shown", "contradicted")),
        (0.0, 0.5, ("shown", "contradicted")),
    ],
)
def test_the_claims_follow_from_the_words(late, bump, expected, tmp_path):
    assert words(play(late, bump), tmp_path) == expected


def test_seeds_that_disagree_tell_nothing(tmp_path):
    assert words(play(0.1, 0.1, spread=1.0), tmp_path) == ("cannot be told", "cannot be told")


def test_what_is_the_same_is_neither_unstable_nor_has_a_floor(tmp_path):
    assert words(play(0.0, 0.0, spread=0.001), tmp_path) == ("contradicted", "contradicted")


def test_sgdm_is_tuned_and_told_apart_when_adamw_has_ended(tmp_path):
    first = STUDY.runs("cpu", [])
    assert first == adamw_runs("cpu")
    assert {run.seed for run in first} == {3, 4, 5, 6, 7}
    records = play(1.0, -0.5, optimizer="sgdm")
    assert set(STUDY.named("cpu", records)) == {record.run for record in records}
    reported = [r.run for r in records if r.run.optimizer == "sgdm" and not r.run.validation_examples]
    # Of 1e-4 and 3e-4, and of 0.03 and 0.1, the quarter of a decade between them is the best.
    assert {(run.method, run.learning_rate) for run in reported} == {("baseline", 0.055), ("znorm", 1.8e-4)}
    assert len(reported) == 10
    assert words(records, tmp_path / "all", "SGDM") == ("contradicted", "shown")
    adamw = [record for record in records if record.run.optimizer == "adamw"]
    STUDY.report("cpu", adamw, tmp_path / "adamw")
    assert {finding.label for finding in read_findings(tmp_path / "adamw")} == {"AdamW", "ZNorm"}
    assert "The tuning has not ended." in (tmp_path / "adamw/report.md").read_text()
    tuned_baseline = [r for r in records if r in adamw or r.run.method == "baseline"]
    STUDY.report("cpu", tuned_baseline, tmp_path / "half")
    assert {finding.label for finding in read_findings(tmp_path / "half")} == {"AdamW", "ZNorm"}
    assert "runs have ended. Nothing is compared" in (tmp_path / "half/report.md").read_text()
    STUDY.report("cpu", adamw[:-1], tmp_path / "few")
    assert read_findings(tmp_path / "few") == []
    assert "Its turn has not come." in (tmp_path / "few/report.md").read_text()


def test_the_three_losses_are_one_family_and_their_ratios_those_of_numpy(tmp_path):
    records = [record for record in play(0.03, 0.0, spread=0.02) if record.run.optimizer == "adamw"]
    STUDY.report("cpu", records, tmp_path)
    logs = {(r.run.method, r.run.seed): np.log([epoch.train_loss for epoch in r.epochs]) for r in records}
    endpoints = {
        "roughness of the training loss": lambda x: np.log(np.mean(np.diff(x, 2) ** 2)) / 2,
        "training loss of the last 20 epochs": lambda x: np.mean(x[-20:]),
        "lowest training loss": np.min,
    }
    rows = [line.split("|") for line in (tmp_path / "report.md").read_text().splitlines()]
    table = {row[1].strip(): [cell.strip() for cell in row[2:-1]] for row in rows if len(row) == 6}
    p_values = {}
    for name, endpoint in endpoints.items():
        differences = np.array(
            [endpoint(logs["znorm", s]) - endpoint(logs["baseline", s]) for s in range(3, 8)]
        )
        half = stats.t.ppf(0.975, 4) * differences.std(ddof=1) / 5**0.5
        mean, low, high = np.exp(differences.mean() + np.array([0, -half, half]))
        assert table[name][0] == f"{mean:.3f} [{low:.3f}, {high:.3f}]"
        p_values[name] = stats.ttest_1samp(differences, 0).pvalue
    largest = 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        largest = max(largest, min(1, (3 - rank) * p_values[name]))
        assert table[name][1] == f"{largest:.2g}"


def test_a_diverged_run_counts_with_its_accuracy_alone(tmp_path):
    records = play(1.0, -0.5)
    first = next(i for i, r in enumerate(records) if r.run.method == "znorm")
    broken = records[first]
    records[first] = dataclasses.replace(broken, status="diverged")
    STUDY.report("cpu", records, tmp_path)
    found = {(f.question, f.label): f for f in read_findings(tmp_path)}
    assert found[FLOOR, "AdamW"].verdict == "shown"
    text = (tmp_path / "report.md").read_text()
    assert "1 of 5 diverged" in text
    head = text.partition("## Results")[0]
    assert f"Diverged, with losses that do not count: ZNorm behind AdamW (seed {broken.run.seed})." in head


@pytest.mark.parametrize(
    ("method", "late", "bump", "untold"),
    [
        ("znorm", 0.0, -0.5, ("cannot be told", "cannot be told")),  # smoother and no floor where it survived
        ("baseline", 1.0, 0.5, ("cannot be told", "cannot be told")),
        ("znorm", 1.0, 0.5, ("shown", "shown")),
        ("baseline", -1.0, -0.5, ("contradicted", "contradicted")),
    ],
)
def test_what_diverged_is_not_called_the_better_one(method, late, bump, untold, tmp_path):
    records = play(late, bump, spread=0.001)
    broken = next(i for i, r in enumerate(records) if r.run.method == method and r.run.optimizer == "adamw")
    records[broken] = dataclasses.replace(records[broken], status="diverged")
    assert words(records, tmp_path) == untold


def test_the_report_describes_what_the_protocol_names(tmp_path):
    STUDY.report("cpu", play(1.0, -0.5, optimizer="sgdm"), tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "training loss over all epochs: ratio to baseline [95 %]" in text
    assert "final training loss: ratio to baseline [95 %]" in text
    assert "Runs in which it does: baseline 0 of 5; ZNorm 0 of 5." in text
    assert "gradients" not in text  # which are not recorded here
    # Behind SGDM the rates differ, and with them what a constant rate leaves of the loss.
    of_claims = {(f.question, f.label): f for f in read_findings(tmp_path) if f.question in (UNSTABLE, FLOOR)}
    assert {key: f.other_rate for key, f in of_claims.items()} == {
        (claim, name): name == "SGDM" for claim in (UNSTABLE, FLOOR) for name in ("AdamW", "SGDM")
    }
    assert of_claims[FLOOR, "SGDM"].note == "at its own rate 0.00018, not 0.055"
