"""The rules that were fixed before the runs, on made-up records."""

import dataclasses
import itertools
import math

import numpy as np
import pytest

from experiments.records import EpochMetrics, RunRecord
from experiments.records.dynamics import GradientDynamics
from experiments.report.cells import Cell
from experiments.report.findings import read_findings
from experiments.studies.gradient_convergence import STUDY
from experiments.studies.gradient_convergence.leads import describe_floor, describe_spikes
from experiments.studies.gradient_convergence.multipliers import SHAPES, changes_along, multipliers_matter


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


def deviations(*seeds):
    layers = np.ones((len(seeds[0]), 1), np.float32)
    return [
        GradientDynamics(("conv",), np.array([9]), layers, layers, layers, np.float32(global_std))
        for global_std in seeds
    ]


def test_multipliers_change_as_their_formulas_say():
    recorded = {("resnet20", "gan"): deviations([0.4, 0.2, 0.1]), ("resnet20", "znorm"): deviations([1.0])}
    changes = changes_along(recorded, epochs_in_memory=1)["resnet20"]
    power = 1 / (1 - math.log(0.4 / 1.4))
    powers = {shape: 1 / (1 - math.log(f(0.4))) for shape, f in SHAPES.items()}
    assert powers["s / (1 + s)"] == power
    expected = {
        (shape, exponent): [f(s) ** (powers[shape] if exponent else 1) for s in (0.4, 0.2, 0.1)]
        for shape, f in SHAPES.items()
        for exponent in (True, False)
    }
    assert changes.keys() == expected.keys()
    for name, (first, second, last) in expected.items():
        change = changes[name]
        assert [change.first, change.last] == pytest.approx([first, last], rel=1e-5)
        # Adam remembers one epoch: of the three values, neighbours alone count.
        assert change.within == pytest.approx(max(first / second, second / last), rel=1e-5)
    # Without the exponent all change about twofold, with it by less: more than a tenth apart.
    protocols, shape, exponent = multipliers_matter({"resnet20": changes})
    assert [f.verdict for f in (protocols, shape, exponent)] == ["contradicted", "shown", "contradicted"]
    on, off = ([changes[s, e].within for s in SHAPES] for e in (True, False))
    assert f"x {min(on):.2f} to x {max(on):.2f} within 1,000 steps with it" in exponent.measured
    assert exponent.measured.endswith(f"by x {min(off):.2f} to x {max(off):.2f} without")
    # The protocol's four: the library's, with its exponent, and the three others without.
    among = [on[0], *off[1:]]
    assert f"x {min(among):.2f} to x {max(among):.2f}" in protocols.measured


def test_shapes_that_change_otherwise_would_contradict_that_they_matter_little():
    """Where deviations pass 1, the shapes bend at other places: 1 - exp(-s) is all but 1 where s / (1 + s) is 0.8."""
    changes = changes_along({("resnet20", "gan"): deviations([4.0, 0.2, 0.1])}, epochs_in_memory=1)
    _, shape, _ = multipliers_matter(changes)
    assert shape.verdict == "contradicted"


def test_multipliers_of_gradients_that_stay_the_same_are_all_alike():
    recorded = {("resnet20", "gan"): deviations([0.3] * 5, [0.2] * 5)}
    changes = changes_along(recorded, epochs_in_memory=25)
    assert {round(change.within, 6) for change in changes["resnet20"].values()} == {1.0}
    assert {finding.verdict for finding in multipliers_matter(changes)} == {"shown"}
    # A gradient that vanished has no multiplier whose change could be told.
    assert not changes_along({("resnet20", "gan"): deviations([0.3, 0.0])}, 1)
