"""The analysis that was fixed before the runs, on made-up records."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest

from experiments.records import EpochMetrics, RecordError, RunRecord
from experiments.report.contrasts import ACCURACY
from experiments.report.findings import VERDICTS
from experiments.studies.cifar10_confirm import STUDY, analysis, make_runs
from experiments.studies.cifar10_confirm.analysis import REGIME, TUNED


def ended(run, accuracy, loss=0.5):
    epochs = tuple(
        EpochMetrics(e, loss * (1.1 + run.epochs - e), 0.5, 1.0, accuracy - 0.01 * (run.epochs - e), 0, 1.0)
        for e in range(1, run.epochs + 1)
    )
    return RunRecord(run=run, status="finished", epochs=epochs)


def play(preset, effect=lambda run: 0.0, loss=lambda run: 0.5):
    """All records of a study; methods' accuracies differ by `effect`, seeds by a little noise."""
    records = []
    while new := [r for r in make_runs(preset, records) if r not in {record.run for record in records}]:
        for run in new:
            if run.validation_examples:
                records.append(ended(run, 1 - abs(math.log10(run.learning_rate / 0.03)) / 10))
            else:
                noise = 0.001 * (((3 * run.seed + 5 * len(run.method) * (run.seed + 1)) % 7) - 3)
                records.append(ended(run, 0.7 + effect(run) + noise, loss(run) * math.exp(noise)))
    return records


@pytest.fixture(scope="module")
def records():
    gains = {("znorm", "adam"): 0.05, ("gan", "sgdm"): -0.1}
    return play(
        "cpu",
        lambda run: gains.get((run.method, run.optimizer), 0.0),
        lambda run: 0.4 if (run.method, run.optimizer) == ("znorm", "adam") else 0.5,
    )


def contrast(arms, name, versus, method, optimizer, score="final_accuracy"):
    (arm,) = (arm for arm in arms if arm.name == name)
    (found,) = (
        c
        for c in arm.comparisons[versus].contrasts[score]
        if (c.row.cell.run.method, c.row.cell.run.optimizer) == (method, optimizer)
    )
    return found


def test_families_endpoints_and_verdicts_are_those_of_the_protocol(records):
    arms = analysis.analyse("cpu", records)
    tuned, regime = arms
    assert list(tuned.comparisons) == ["baseline", "clipping", "centralization"]
    assert list(regime.comparisons) == ["baseline"]

    found = contrast(arms, TUNED, "baseline", "znorm", "adam")
    by_method = {
        method: np.array(
            [
                r.epochs[-1].test_accuracy
                for r in sorted(records, key=lambda r: r.run.seed)
                if r.run.schedule == "cosine"
                and not r.run.validation_examples
                and (r.run.method, r.run.optimizer) == (method, "adam")
            ]
        )
        for method in ("baseline", "clipping", "znorm", "gan", "centralization")
    }
    difference = by_method["znorm"] - by_method["baseline"]
    half = 2.776445 * difference.std(ddof=1) / math.sqrt(5)
    np.testing.assert_allclose(
        [found.interval.low, found.interval.high], difference.mean() + np.array([-half, half]), 1e-5
    )
    # 20 degrees of freedom: 2.085963.
    pooled = 2.085963 * math.sqrt(np.mean([a.var(ddof=1) for a in by_method.values()]) * 2 / 5)
    np.testing.assert_allclose(found.pooled.high - found.pooled.low, 2 * pooled, rtol=1e-5)
    assert found.paper == pytest.approx(0.0099)
    assert found.smallest == pytest.approx(0.0099)
    # Three contrasts in the family; clipping against the baseline is none.
    assert found.p == pytest.approx(3 * found.interval.p)
    clipping = contrast(arms, TUNED, "baseline", "clipping", "adam")
    assert math.isnan(clipping.p) if not clipping.interval.is_known else clipping.p == clipping.interval.p
    assert clipping.paper is None
    assert contrast(arms, TUNED, "clipping", "znorm", "sgdm").paper == pytest.approx(0.0298)
    assert contrast(arms, TUNED, "clipping", "centralization", "sgdm").paper == pytest.approx(-0.0219)
    # Mean of the last three epochs where the rate is constant, 0.01 apart.
    cell = contrast(arms, REGIME, "baseline", "znorm", "sgdm").row.cell
    record = cell.ended[0]
    assert cell.values("final_accuracy")[0] == pytest.approx(record.epochs[-1].test_accuracy - 0.01)

    assert (found.verdict, found.own_verdict) == ("helps", "shown")
    assert contrast(arms, TUNED, "baseline", "gan", "sgdm").word.startswith("harm shown")
    outcomes = analysis.claims_table(tuned)
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in outcomes.splitlines()[2:]
        if line[:1] == "|"
    ]
    told = {(row[0], "Adam" if "Adam" in row[1] else "SGDM"): row[2] for row in rows}
    assert told["1. ZNorm improves accuracy", "Adam"] == "**shown**"
    assert told["1. ZNorm improves accuracy", "SGDM"] == "**fails**"
    assert told["2. ZNorm is better than clipping", "Adam"] == "**shown**"
    assert told["3. ZNorm accelerates training", "Adam"] == "**shown**"
    assert told["4. GAN keeps the accuracy", "SGDM"] == "**fails**"
    assert told["4. GAN keeps the accuracy", "Adam"] == "**shown**"
    sgdm, adam = analysis.read_together(arms)[:2]
    assert "no gain is shown in either" in sgdm
    assert f"{ACCURACY.write_interval(found.interval)} points where every method's rate is tuned" in adam
    assert adam.endswith("the gain is in both, which the protocol reads as one of the method.")


def test_a_gain_in_one_arm_is_measured_and_its_cause_is_not(records):
    """The protocol's reading of a gain at the shared rate alone is named as one."""
    gains = [r for r in records if r.run.schedule == "constant" and r.run.method == "znorm"]
    raised = {r.run: dataclasses.replace(r, epochs=tuple(more(e) for e in r.epochs)) for r in gains}
    arms = analysis.analyse("cpu", [raised.get(r.run, r) for r in records])
    sgdm, _, caveat = analysis.read_together(arms)
    assert "in the paper's regime alone, which the protocol reads as one of the learning rate" in sgdm
    assert "no contrast of this study says which of them makes the gain" in caveat
    assert analysis.read_together([]) == []


def more(epoch):
    return dataclasses.replace(epoch, test_accuracy=epoch.test_accuracy + 0.1)


def test_a_loss_within_the_protocols_six_points_is_kept_by_it_and_harm_in_the_common_table(tmp_path):
    """Claim 4 could not fail on it: its own report says so."""
    losing = play("cpu", lambda run: -0.03 if (run.method, run.optimizer) == ("gan", "sgdm") else 0.0)
    arms = analysis.analyse("cpu", losing)
    claims = analysis.claims_table(arms[0])
    (row,) = (line for line in claims.splitlines() if "4. GAN" in line and "SGDM" in line)
    assert "**shown**" in row
    assert "Claim 4 could hardly fail with SGDM" in claims
    assert contrast(arms, TUNED, "baseline", "gan", "sgdm").verdict == "harms"


def test_how_coarse_the_grid_is_stands_beside_the_answer(records, tmp_path):
    analysis.make_report("cpu", records, tmp_path)
    head = (tmp_path / "report.md").read_text().split("## Results")[0]
    # All methods' validation accuracies peak at 0.03 by the same distance to either side, in half decades.
    assert re.search(r"baseline with SGDM \+0\.0 points at 0\.0\d+ instead of the chosen 0\.03", head)


def test_the_report_and_its_findings(records, tmp_path):
    analysis.make_report("cpu", records, tmp_path / "cifar10_confirm" / "cpu")
    folder = tmp_path / "cifar10_confirm" / "cpu"
    text = (folder / "report.md").read_text()
    assert text.splitlines()[0] == "# Does ZNorm, GAN or centralization help on CIFAR-10?"
    assert "Smallest detectable differences" in text.split("## Results")[0]
    assert "never" in text or "first epoch with at most" in text
    findings = json.loads((folder / "findings.json").read_text())
    assert {f["verdict"] for f in findings} <= set(VERDICTS)
    # Against the baseline 4 + 3 and against clipping 3 contrasts, two optimizers, accuracy and speed.
    assert len(findings) == 2 * 2 * (4 + 3 + 3)
    first = (folder / "findings.json").read_bytes()
    analysis.make_report("cpu", list(reversed(records)), folder)
    assert (folder / "findings.json").read_bytes() == first


def test_nothing_is_compared_before_all_runs_of_an_arm_have_ended(records, tmp_path):
    reported = [r for r in records if r.run.schedule == "cosine" and not r.run.validation_examples]
    analysis.make_report("cpu", [r for r in records if r != reported[0]], tmp_path)
    assert not json.loads((tmp_path / "findings.json").read_text())
    text = (tmp_path / "report.md").read_text()
    assert f"{len(reported) - 1} of {len(reported)} runs have ended" in text
    assert not list(tmp_path.glob("*.svg"))


def test_records_of_two_protocols_are_not_mixed(records):
    other = ended(dataclasses.replace(records[0].run, epochs=7), 0.5)
    with pytest.raises(
        RecordError, match=r"of no run that the protocol of cifar10_confirm, preset cpu"
    ) as error:
        STUDY.check_records("cpu", [*records, other])
    assert other.run.name in str(error.value)
    assert "\n" not in str(error.value)
    # Records of a later stage are of this protocol, though an earlier one's are missing.
    STUDY.check_records(
        "cpu", [r for r in records if not r.run.validation_examples and r.run.schedule != "cosine"]
    )


def test_a_diverged_cell_is_named_in_the_head(records, tmp_path):
    broken = []
    for record in records:
        run = record.run
        if (run.method, run.optimizer, run.seed, run.schedule) == ("gan", "adam", 0, "cosine"):
            record = dataclasses.replace(record, status="diverged")
        broken.append(record)
    analysis.make_report("cpu", broken, tmp_path)
    head = (tmp_path / "report.md").read_text().split("## Results")[0]
    assert "With diverged runs: ResNet-20, Adam, GAN (1 of 5)" in head


def test_seeds_on_another_kind_of_processor_are_told_apart_and_their_times_are_not_compared(
    records, tmp_path
):
    def on(record):
        is_cpu = record.run.validation_examples or (record.run.schedule == "cosine" and record.run.seed < 2)
        device = (
            {"backend": "cpu", "device_kind": "cpu", "cpu_model": "EPYC"}
            if is_cpu
            else {"device_kind": "H100"}
        )
        return dataclasses.replace(record, environment=device)

    tuned, regime = analysis.analyse("cpu", [on(record) for record in records])
    contrasts = tuned.comparisons["baseline"].contrasts["final_accuracy"]
    table = analysis.processors_table(contrasts)
    assert "| EPYC: seeds 0, 1 |" in re.sub(" +", " ", table)
    (row,) = (line for line in table.splitlines() if "ZNorm" in line and "Adam" in line)
    znorm = contrast([tuned], TUNED, "baseline", "znorm", "adam").row
    ours, theirs = (cell.values("final_accuracy") for cell in (znorm.cell, znorm.baseline))
    for place, seeds in ((-3, (0, 1)), (-2, (2, 3, 4))):
        mean = np.mean([ours[seed] - theirs[seed] for seed in seeds])
        assert float(row.split("|")[place]) == pytest.approx(100 * mean, abs=0.05)
    # Arm B is all on one kind.
    assert not analysis.processors_table(regime.comparisons["baseline"].contrasts["final_accuracy"])
    analysis.make_report("cpu", [on(record) for record in records], tmp_path)
    text = (tmp_path / "report.md").read_text()
    of_tuned, _ = text.split("### Rates tuned")[1].split("### The paper's regime")
    assert "s/epoch" not in of_tuned
    assert "device: 1 x EPYC; 1 x H100" in text


def test_nothing_is_said_before_the_runs(tmp_path):
    analysis.make_report("cpu", [], tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "Nothing can be said yet" in text
    assert "These runs have not begun" in text
