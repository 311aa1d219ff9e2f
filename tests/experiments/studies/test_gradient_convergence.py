"""The rules that were fixed before the runs, on made-up records."""

import math

import numpy as np
import pytest

from experiments.records import EpochMetrics, RunRecord
from experiments.report.cells import Cell
from experiments.statistics import GradientDynamics
from experiments.studies.gradient_convergence import STUDY, describe_spikes
from experiments.studies.gradient_convergence.multipliers import changes_along, multipliers_matter


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
    (line,) = (line for line in text.splitlines() if line.startswith("- Training becomes unstable"))
    return line


def test_a_final_loss_that_is_higher_in_every_seed_is_instability(tmp_path):
    line = instability(play(lambda method: 0.01 * (method == "znorm")), tmp_path)
    assert "**shown** in 1 of 2 (ZNorm)" in line
    assert "**contradicted** in 1 of 2 (GAN)" in line


def test_seeds_that_agree_refute_instability_and_seeds_that_disagree_tell_nothing(tmp_path):
    assert "**contradicted** in 2 of 2" in instability(play(), tmp_path / "agree")
    assert "**cannot be told** in 2 of 2" in instability(play(noise=0.2), tmp_path / "disagree")


def test_a_spike_is_a_loss_of_more_than_ten_times_its_lowest_before():
    (run, *_) = STUDY.runs("cpu", [])
    falling, leaping, rising_less = (100, 1, 0.01), (1, 0.1, 0.5, 1.01), (1, 9.9, 0.1)
    cell = Cell(
        run, {i: make_record(run, losses) for i, losses in enumerate((falling, leaping, rising_less))}
    )
    assert "does: baseline 1 of 3." in describe_spikes([cell])


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
    expected = {
        "the library's": [(s / (1 + s)) ** power for s in (0.4, 0.2, 0.1)],
        "tanh(s)": [math.tanh(s) for s in (0.4, 0.2, 0.1)],
        "1 - exp(-s)": [1 - math.exp(-s) for s in (0.4, 0.2, 0.1)],
        "s / sqrt(1 + s^2)": [s / math.sqrt(1 + s * s) for s in (0.4, 0.2, 0.1)],
    }
    assert changes.keys() == expected.keys()
    for name, (first, second, last) in expected.items():
        change = changes[name]
        assert [change.first, change.last] == pytest.approx([first, last], rel=1e-5)
        # Adam remembers one epoch: of the three values, neighbours alone count.
        assert change.within == pytest.approx(max(first / second, second / last), rel=1e-5)
    # Those that are about s change twofold, the library's by less: more than a tenth apart.
    (finding,) = multipliers_matter({"resnet20": changes})
    assert finding.verdict == "contradicted"


def test_multipliers_of_gradients_that_stay_the_same_are_all_alike():
    recorded = {("resnet20", "gan"): deviations([0.3] * 5, [0.2] * 5)}
    changes = changes_along(recorded, epochs_in_memory=25)
    assert {round(change.within, 6) for change in changes["resnet20"].values()} == {1.0}
    (finding,) = multipliers_matter(changes)
    assert finding.verdict == "shown"
    # A gradient that vanished has no multiplier whose change could be told.
    assert not changes_along({("resnet20", "gan"): deviations([0.3, 0.0])}, 1)
