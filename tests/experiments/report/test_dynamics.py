"""Trends and figures from statistics made by hand, with the gaps that real runs have."""

import dataclasses
import math

import numpy as np
import pytest

from experiments import records
from experiments.records import EpochMetrics, RunRecord
from experiments.records.dynamics import GradientDynamics
from experiments.report import dynamics
from experiments.run import Run
from experiments.studies import observations, trends

RUN = Run("digits", "resnet8", "znorm", "adam", 0.001, 6, 50, 0, dynamics=True)


def make_dynamics(std) -> GradientDynamics:
    std = np.asarray(std, np.float32)
    layers = tuple(f"stages/{i}/kernel" for i in range(std.shape[1]))
    sizes = np.full(len(layers), 9)
    return GradientDynamics(
        layers, sizes, std, std / 2, np.abs(std), np.sqrt(np.mean(std**2, axis=1, dtype=np.float32))
    )


def write(folder, run: Run, std, status="finished") -> RunRecord:
    epochs = tuple(EpochMetrics(e + 1, 1.0, 0.5, 1.0, 0.5, 0, 1.0) for e in range(len(std)))
    record = RunRecord(run, status, epochs=epochs)
    records.write_record(folder, record)
    records.write_dynamics(folder, run, make_dynamics(std))
    return record


def test_page_shows_every_setting_that_has_statistics(tmp_path):
    epochs = np.arange(1.0, 7.0)
    falling = np.stack([1 / epochs, 1e-3 * epochs], axis=1)
    gaps = falling.copy()
    gaps[2] = 0, math.nan
    found = [
        write(tmp_path, RUN, falling),
        write(tmp_path, dataclasses.replace(RUN, seed=1), gaps[:4], "diverged"),
        write(tmp_path, dataclasses.replace(RUN, method="gan"), np.zeros((6, 2))),
        write(tmp_path, dataclasses.replace(RUN, batch_size=25), falling),
        RunRecord(dataclasses.replace(RUN, dynamics=False), "finished"),
        RunRecord(dataclasses.replace(RUN, seed=2), "failed"),
    ]
    page = dynamics.write_page(tmp_path / "report", tmp_path, found)
    text = page.read_text()
    assert "digits, ResNet-8, Adam" in text
    # One figure with a column for each method, and one of another batch size.
    pictures = {path.name: path.read_text() for path in page.parent.glob("*.svg")}
    assert len(pictures) == 2
    assert all(name in text for name in pictures)


def test_nothing_to_draw_leaves_no_page(tmp_path):
    assert dynamics.write_page(tmp_path, tmp_path, [RunRecord(RUN, "running")]) is None
    assert not list(tmp_path.iterdir())


def test_mean_over_seeds_is_geometric_and_leaves_gaps_out():
    mean = dynamics.geometric_mean(
        [np.array([1.0, 0.0, 4.0]), np.array([4.0, 9.0, math.nan]), np.array([2.0])]
    )
    np.testing.assert_allclose(mean.filled(-1), [2.0, 9.0, 4.0])


def test_amplification_is_the_inverse_deviation_where_there_is_one():
    factors = dynamics.amplification(np.float32([0.5, 1e-10, 0.0, math.inf, math.nan]))
    np.testing.assert_allclose(factors, [2.0, 5e9, math.nan, math.nan, math.nan], rtol=1e-6)


@pytest.mark.parametrize(
    ("series", "tau", "direction"),
    [
        ([1, 2, 3, 4, 5, 6, 7, 8], 1.0, 1),
        ([8, 7, 6, 5, 4, 3, 2, 1], -1.0, -1),
        ([1, 3, 2, 4, 3.5, 2.5, 1.5, 3.2], 4 / 28, 0),
        ([1, 2, 0, 3, math.nan, 4, 5], 1.0, 1),
        ([1, 2, 3], 1.0, 0),
        ([2, 2, 2, 2, 2, 2], math.nan, 0),
    ],
)
def test_trends_against_pairs_counted_by_hand(series, tau, direction):
    trend = trends.find_trend(np.asarray(series, np.float32))
    assert trend.tau == pytest.approx(tau, nan_ok=True)
    assert trend.direction == direction


def test_summary_finds_the_peak_and_the_change():
    std = [[1.0, 0.1], [0.5, 0.2], [0.25, 0.0]]
    summary = trends.summarize(make_dynamics(std))
    assert (summary.peak.layer, summary.peak.epoch) == ("stages/1/kernel", 1)
    assert summary.peak.factor == pytest.approx(1 / 0.05)
    assert summary.trends.change == pytest.approx(0.25 / math.sqrt(1.01))
    assert summary.later.change == pytest.approx(0.25 / math.sqrt(0.29))
    assert summary.vanished == pytest.approx(1 / 6)
    assert summary.typical == pytest.approx(4.0)  # of 1, 2, 4, 5, 10


def find(*stds, steps=200, by_protocol=False):
    """What the report says of VGG and the baseline, from one run per array [epochs, layers]."""
    runs = [trends.summarize(make_dynamics(std)) for std in stds]
    settings = {("vgg16_bn", "baseline"): runs}
    options = {"headline": ("vgg16_bn", "baseline"), "by_protocol": by_protocol}
    found = observations.trend_findings(settings, {"vgg16_bn": steps}, **options)
    return {"falls": found[0], "layers part": found[1]}


def test_layers_that_rise_in_one_run_and_fall_in_another_are_no_run_with_both():
    epochs = np.arange(1.0, 9.0)[:, None]
    rising, falling = np.hstack([epochs] * 4), np.hstack([1 / epochs] * 4)
    both = np.hstack([rising[:, :3], falling[:, :1]])
    parts = find(rising, falling, falling)["layers part"]
    # In each run all layers go one way, which is the opposite and has its word, however few the steps are.
    assert (parts.verdict, "in 0 of 3 runs" in parts.measured) == ("contradicted", True)
    assert parts.note == "in 200 steps of the paper's 58,500"
    assert find(both, rising, falling)["layers part"].verdict == "cannot be told"
    assert find(both, both, both)["layers part"].verdict == "shown"
    # Where hardly a layer has a trend, nothing is told of them.
    still = np.ones((8, 4)) + 0.1 * np.array([1, -1, 1, 1, -1, -1, 1, -1])[:, None]
    assert find(still, rising, rising)["layers part"].verdict == "cannot be told"
    assert find(rising, falling, steps=58_500)["layers part"].note == ""


def test_a_protocols_rule_that_few_steps_could_only_pass_stays_as_it_was_fixed():
    epochs = np.arange(1.0, 9.0)[:, None]
    rising, falling = np.hstack([epochs] * 4), np.hstack([1 / epochs] * 4)
    for steps, verdict in ((200, "cannot be told"), (58_500, "contradicted")):
        found = find(rising, rising**1.1, rising**0.9, steps=steps, by_protocol=True)
        assert found["layers part"].verdict == verdict
        assert found["falls"].verdict == verdict
        assert bool(found["falls"].note) == (steps == 200)
    assert find(falling, falling**1.1, falling**0.9, by_protocol=True)["falls"].verdict == "shown"


def test_a_global_deviation_falls_by_how_much_its_last_epoch_is_below_the_first():
    falling = 1 / np.arange(1.0, 11.0)[:, None]
    # It falls to a half by way of a peak: no trend, but a fall.
    hump = np.array([1.0, 2, 3, 4, 5, 4, 3, 2, 1, 0.5])[:, None]
    found = find(hump, 1.1 * hump**1.1, 0.9 * hump**0.9, by_protocol=True)["falls"]
    logs = np.log(0.5) * np.array([1, 1.1, 0.9])
    half = 4.302653 * logs.std(ddof=1) / math.sqrt(3)
    np.testing.assert_allclose(found.interval, np.exp(logs.mean() + np.array([-half, half])), rtol=1e-4)
    assert found.effect == pytest.approx(0.5)
    assert found.verdict == "shown"
    assert "a trend in 0 of 3 runs" in found.measured
    rising = [1 / falling, (1 / falling) ** 1.1, (1 / falling) ** 0.9]
    assert find(*rising)["falls"].verdict == "contradicted"


def test_a_fall_in_the_first_epoch_alone_is_told_apart_from_one_after_it():
    """From the first epoch to the last it falls to a fifth, from the second on it rises by a half."""
    curve = np.array([5.0, 0.7, 0.8, 0.9, 1.0, 1.05])[:, None]
    found = find(curve, 1.1 * curve**1.1, 0.9 * curve**0.9)["falls"]
    logs = np.log(1.05 / 0.7) * np.array([1, 1.1, 0.9])
    half = 4.302653 * logs.std(ddof=1) / math.sqrt(3)
    np.testing.assert_allclose(found.interval, np.exp(logs.mean() + np.array([-half, half])), rtol=1e-4)
    assert (found.verdict, found.question) == ("contradicted", "The global deviation falls from epoch 2 on")
    assert found.measured.startswith("last epoch / epoch 2 1.50 [")
    assert ", last / first epoch 0.21 [" in found.measured
    flat = [np.array([5.0, 1.0, 1.2, 0.8, 1.0 + d])[:, None] for d in (0.01, 0.0, -0.01)]
    assert find(*flat)["falls"].verdict == "no difference that counts"


def test_a_fall_that_the_first_epoch_alone_makes_shows_in_the_table():
    # Without the first epoch tau is -18 / 36, of which the test is not sure.
    first = np.array([20.0, 9, 3, 8, 2, 7, 6, 5, 4, 1])[:, None]
    assert trends.find_trends(make_dynamics(first)).overall.direction == -1
    assert trends.find_trends(make_dynamics(first), start=2).overall.direction == 0
    table = trends.trend_table({("vgg16_bn", "baseline"): [trends.summarize(make_dynamics(first))] * 2})
    everything, later = ([c.strip() for c in line.split("|")] for line in table.splitlines()[2:])
    assert everything[8:10] == ["2 of 2", "0 of 2"]
    assert later[8:10] == ["0 of 2", "0 of 2"]
