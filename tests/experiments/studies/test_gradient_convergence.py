"""The rules that were fixed before the runs, on made-up records."""

import dataclasses
import itertools
import math

import numpy as np

from experiments.records import EpochMetrics, RunRecord
from experiments.report.cells import Cell
from experiments.report.findings import read_findings
from experiments.studies.gradient_convergence import STUDY, _multipliers
from experiments.studies.gradient_convergence.leads import describe_floor, describe_spikes
from experiments.studies.multipliers import SHAPES, Change


def make_record(run, losses):
    epochs = tuple(EpochMetrics(e, loss, 0.5, 1.0, 0.1, 0, 1.0) for e, loss in enumerate(losses, start=1))
    return RunRecord(run=run, status="finished", epochs=epochs)


def play(slowdown=lambda method: 0.0, noise=0.001):
    """Records of all runs, whose loss falls, a little up and down; seeds differ by `noise` in size and roughness."""
    records = []
    for run in STUDY.runs("cpu", []):
        size = noise * [0, 1, -1][run.seed] * (1 if run.method == "baseline" else -1)
        losses = [
            2.0 * math.exp((slowdown(run.method) - 0.1) * e + size) * (1 + 0.01 * math.exp(size) * (-1) ** e)
            for e in range(run.epochs)
        ]
        records.append(make_record(run, losses))
    return records


def instability(records, folder):
    STUDY.report("cpu", records, folder)
    text = (folder / "report.md").read_text()
    lines = text.splitlines()
    (first,) = (i for i, line in enumerate(lines) if line.startswith("| Training becomes unstable"))
    # Further answers to the same question have no heading.
    others = itertools.takewhile(lambda line: line.split("|")[1].isspace(), lines[first + 1 :])
    return " ".join(" ".join([lines[first], *others]).split())


def test_a_final_loss_that_is_higher_in_every_seed_is_instability(tmp_path):
    line = instability(play(lambda method: 0.01 * (method == "znorm")), tmp_path)
    assert "| **shown** | 1 of 2 | ZNorm |" in line
    assert "| **contradicted** | 1 of 2 | GAN |" in line


def test_seeds_that_agree_refute_instability_and_seeds_that_disagree_tell_nothing(tmp_path):
    assert "| **contradicted** | 2 of 2 |" in instability(play(), tmp_path / "agree")
    assert "| **cannot be told** | 2 of 2 |" in instability(play(noise=0.2), tmp_path / "disagree")


def test_a_spike_is_a_loss_of_more_than_ten_times_its_lowest_before():
    (run, *_) = STUDY.runs("cpu", [])
    falling, leaping, rising_less = (100, 1, 0.01), (1, 0.1, 0.5, 1.01), (1, 9.9, 0.1)
    cell = Cell(
        run, {i: make_record(run, losses) for i, losses in enumerate((falling, leaping, rising_less))}
    )
    assert "does: baseline 1 of 3." in describe_spikes([cell])


def test_the_lowest_loss_is_compared_seed_by_seed():
    runs = {run.method: run for run in STUDY.runs("cpu", []) if run.seed == 0}
    losses = {"baseline": [(4.0, 0.1, 3.0), (4.0, 0.2, 2.0), (4.0, 0.3, 1.0)]}
    losses["znorm"] = [(4.0, 1.0, 1.5), (4.0, 2.1, 2.2), (4.0, 2.9, 3.0)]
    cells = [
        Cell(runs[method], {seed: make_record(runs[method], some) for seed, some in enumerate(by_seed)})
        for method, by_seed in losses.items()
    ]
    ratios = np.log([1.0 / 0.1, 2.1 / 0.2, 2.9 / 0.3])
    half = 4.302653 * ratios.std(ddof=1) / math.sqrt(3)
    ends = [f"{math.exp(ratios.mean() + d):.3g}" for d in (0, -half, half)]
    text = describe_floor(cells)
    assert f"ZNorm 1 to 2.9, x {ends[0]} [{ends[1]}, {ends[2]}] of the baseline's" in text
    assert "baseline 0.1 to 0.3, then, after 30% of the epochs, highest 1 to 3;" in text


def test_its_own_report_keeps_the_protocols_words_and_the_common_table_gets_the_common_ones(tmp_path):
    records = []
    for record in play(noise=0.001):
        better = 0.02 * (record.run.method == "znorm") + 0.0001 * record.run.seed * len(record.run.method)
        epochs = tuple(dataclasses.replace(epoch, test_accuracy=0.1 - better) for epoch in record.epochs)
        records.append(dataclasses.replace(record, epochs=epochs))
    STUDY.report("cpu", records, tmp_path)
    report = (tmp_path / "report.md").read_text()
    words = " ".join(report.split())
    assert "For test accuracy against the baseline, harm is shown for ZNorm (-2.0); GAN (" in words
    assert "| **harm shown** | 1 of 2 | ZNorm -2.0 | | | **too small to count** | 1 of 2 | GAN" in words
    assert "could be passed and not failed" in report
    found = {
        finding.label: finding.verdict
        for finding in read_findings(tmp_path)
        if finding.question.startswith("Test accuracy")
    }
    assert found == {"ZNorm": "harms", "GAN": "no difference that counts"}


def test_the_protocols_rule_holds_the_librarys_multiplier_against_shapes_without_its_exponent():
    shapes = list(SHAPES)
    changes = {
        (shape, exponent): Change(1.0, 1.0, 1.5 if exponent else 2.0)
        for shape in shapes
        for exponent in (0, 1)
    }
    protocols, shape, exponent = _multipliers({"resnet20": changes})
    assert [f.verdict for f in (protocols, shape, exponent)] == ["contradicted", "shown", "contradicted"]
    assert "x 1.50 to x 2.00" in protocols.measured
    alike = {key: Change(1.0, 1.0, 1.5) for key in changes}
    assert {finding.verdict for finding in _multipliers({"resnet20": alike})} == {"shown"}
