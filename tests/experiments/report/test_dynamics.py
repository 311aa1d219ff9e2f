"""Trends and figures from statistics made by hand, with the gaps that real runs have."""

import dataclasses
import math

import numpy as np
import pytest

from experiments import records
from experiments.records import EpochMetrics, RunRecord
from experiments.report import dynamics
from experiments.run import Run
from experiments.statistics import GradientDynamics
from experiments.studies.gradient_dynamics import observations, trends

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


def find(*stds, steps=200):
    """What the report says of VGG and the baseline, from one run per array [epochs, layers]."""
    runs = [trends.summarize(make_dynamics(std)) for std in stds]
    found = observations.make_findings({("vgg16_bn", "baseline"): runs}, {"vgg16_bn": steps})
    return {"falls": found[0], "layers part": found[1]}


def test_layers_that_rise_in_one_run_and_fall_in_another_are_no_run_with_both():
    epochs = np.arange(1.0, 9.0)[:, None]
    rising, falling = np.hstack([epochs] * 4), np.hstack([1 / epochs] * 4)
    both = np.hstack([rising[:, :3], falling[:, :1]])
    parts = find(rising, falling)["layers part"]
    assert (parts.verdict, "in 0 of 2 runs" in parts.measured) == ("cannot be told", True)
    assert "cannot be told in 200 steps of the paper's 58,500" in parts.note
    assert find(both, rising, falling)["layers part"].verdict == "cannot be told"
    assert find(both, both)["layers part"].verdict == "shown"
    # Only about as many steps as the paper has can say that it does not happen.
    assert find(rising, falling, steps=58_500)["layers part"].verdict == "contradicted"


def test_a_global_deviation_falls_by_how_much_its_last_epoch_is_below_the_first():
    falling = 1 / np.arange(1.0, 11.0)[:, None]
    # It falls to a half by way of a peak: no trend, but a fall.
    hump = np.array([1.0, 2, 3, 4, 5, 4, 3, 2, 1, 0.5])[:, None]
    found = find(hump, 1.1 * hump**1.1, 0.9 * hump**0.9)["falls"]
    logs = np.log(0.5) * np.array([1, 1.1, 0.9])
    half = 4.302653 * logs.std(ddof=1) / math.sqrt(3)
    np.testing.assert_allclose(found.interval, np.exp(logs.mean() + np.array([-half, half])), rtol=1e-4)
    assert found.effect == pytest.approx(0.5)
    assert found.verdict == "shown"
    assert "a trend in 0 of 3 runs" in found.measured
    rising = [1 / falling, (1 / falling) ** 1.1, (1 / falling) ** 0.9]
    assert find(*rising)["falls"].verdict == "cannot be told"
    assert find(*rising, steps=58_500)["falls"].verdict == "contradicted"


def test_a_fall_that_the_first_epoch_alone_makes_shows_in_the_table():
    # Without the first epoch tau is -18 / 36, of which the test is not sure.
    first = np.array([20.0, 9, 3, 8, 2, 7, 6, 5, 4, 1])[:, None]
    assert trends.find_trends(make_dynamics(first)).overall.direction == -1
    assert trends.find_trends(make_dynamics(first), start=2).overall.direction == 0
    table = trends.trend_table({("vgg16_bn", "baseline"): [trends.summarize(make_dynamics(first))] * 2})
    everything, later = ([c.strip() for c in line.split("|")] for line in table.splitlines()[2:])
    assert everything[8:10] == ["2 of 2", "0 of 2"]
    assert later[8:10] == ["0 of 2", "0 of 2"]
