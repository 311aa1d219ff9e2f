"""Trends of one run's gradient statistics, ZNorm's amplification, and the tables of both."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.records.dynamics import GradientDynamics
from experiments.report import dynamics, intervals, names
from experiments.report.intervals import Interval
from experiments.report.markdown import markdown_table

SIGNIFICANCE = 0.05


# Without any trend 2.5 % of the layers would rise and 2.5 % fall; a share above twice that is called seen.
SEEN_SHARE = SIGNIFICANCE


MOST_NAMES = 6  # Of layers in a cell of a table; of more it says how many.


NOTES = f"""\
Trend: Kendall's tau between the epochs and the standard deviation (the Mann-Kendall test), two-sided,
p < {SIGNIFICANCE}. Without a trend, {SIGNIFICANCE / 2:.1%} of the layers would be called rising and as many falling;
and since epochs depend on the epochs before them, trends show more easily than the level says. "Both": runs in
which more than {SEEN_SHARE:.0%} of the layers rise while more than {SEEN_SHARE:.0%} fall. A curve that falls and then
rises shows no trend. The first row of a setting takes all epochs, the second excludes the first and all that hold
warm-up, in which gradients change most; with fewer epochs the test is a little weaker too. Epochs with a vanished or
non-finite gradient do not count, and fewer than five epochs can show no trend. Means [ranges] over seeds. A trend
says whether a curve is monotone, "last / first" how far it falls: the ratio of its ends, geometric mean over seeds
with its 95 % interval."""


AMPLIFICATION_NOTES = """\
Factor 1/(sigma + eps) by which ZNorm multiplies a layer's gradient, or would under another method. Largest: of any
step of any seed, and where. Typical: median over layers and epochs, and over seeds. Vanished: share of layers and
epochs with a step whose gradient was constant, which ZNorm turns into 0; these count nowhere else. Last / first:
amplification of the last epoch over that of the first, geometric mean over layers; mean [range] over seeds."""


@dataclasses.dataclass(frozen=True)
class Trend:
    """Kendall's rank correlation of a series with time.

    Attributes:
      tau: from -1 (falls in every epoch) to 1 (rises in every epoch); NaN if the series is constant or short.
      p: of the two-sided test.
    """

    tau: float
    p: float

    @property
    def direction(self) -> int:
        """1 if it rises significantly, -1 if it falls, 0 otherwise."""
        return int(np.sign(self.tau)) if self.p < SIGNIFICANCE else 0


@dataclasses.dataclass(frozen=True)
class Peak:
    """Where ZNorm's amplification is largest in one run: its factor, the layer and the epoch (from 1)."""

    factor: float
    layer: str
    epoch: int


@dataclasses.dataclass(frozen=True)
class Trends:
    """Where one run's standard deviations go from some epoch on.

    Attributes:
      start: the first epoch that counts, from 1.
      layers: trend of each layer's standard deviation, by name.
      overall: trend of the global standard deviation.
      change: global standard deviation of the last epoch over that of the first one that counts.
    """

    start: int
    layers: Mapping[str, Trend]
    overall: Trend
    change: float

    def share(self, direction: int) -> float:
        """Share of the layers that rise (1) or fall (-1) significantly."""
        return float(np.mean([trend.direction == direction for trend in self.layers.values()]))

    @property
    def parts(self) -> bool:
        """Whether some layers rise while others fall, more of each than without any trend."""
        return self.share(1) > SEEN_SHARE and self.share(-1) > SEEN_SHARE

    @property
    def moves_one_way(self) -> bool:
        """Whether layers rise or fall, more than without any trend, and no more than that the other way."""
        return (self.share(1) > SEEN_SHARE) != (self.share(-1) > SEEN_SHARE)


@dataclasses.dataclass(frozen=True)
class Summary:
    """One run's gradients in a few numbers.

    Attributes:
      trends: over all epochs.
      later: over those behind the first and the warm-up.
      peak: largest amplification of any step; `None` if no gradient was positive and finite.
      typical: median amplification over layers and epochs.
      growth: amplification in the last epoch over that in the first, geometric mean over the layers.
      vanished: share of layers and epochs with a step whose gradient was zero or constant.
    """

    trends: Trends
    later: Trends
    peak: Peak | None
    typical: float
    growth: float
    vanished: float


@dataclasses.dataclass(frozen=True)
class Tally:
    """The runs of one setting, which differ in the seed alone, from some epoch on.

    Attributes:
      runs: the trends of each.
    """

    runs: Sequence[Trends]

    @property
    def start(self) -> int:
        """The first epoch that counts, from 1."""
        return self.runs[0].start

    @property
    def parted(self) -> list[bool]:
        """Whether, run by run, some layers rise while others fall."""
        return [run.parts for run in self.runs]

    def shares(self, direction: int) -> list[float]:
        """Share of the layers that rise (1) or fall (-1), of every run."""
        return [run.share(direction) for run in self.runs]

    def overall(self, direction: int) -> list[bool]:
        """Whether the global standard deviation rises (1) or falls (-1), run by run."""
        return [run.overall.direction == direction for run in self.runs]


def find_trend(series: np.ndarray) -> Trend:
    """Mann-Kendall test of a series of positive numbers; others are excluded."""
    from scipy import stats

    epochs = np.flatnonzero(np.isfinite(series) & (series > 0))
    if len(epochs) < 2 or np.ptp(series[epochs]) == 0:
        return Trend(math.nan, math.nan)
    result: Any = stats.kendalltau(epochs, series[epochs])
    return Trend(float(result.statistic), float(result.pvalue))


def find_trends(recorded: GradientDynamics, start: int = 1) -> Trends:
    """Trends of one run.

    Args:
      recorded: statistics of at least one epoch.
      start: the first epoch that counts, from 1.
    """
    layers = zip(recorded.layers, recorded.std[start - 1 :].T, strict=True)
    total = recorded.global_std[start - 1 :].astype(np.float64)
    return Trends(
        start=start,
        layers={layer: find_trend(series) for layer, series in layers},
        overall=find_trend(total),
        change=float(total[-1] / total[0]) if len(total) and total[0] > 0 else math.nan,
    )


def summarize(recorded: GradientDynamics, warmup_epochs: float = 1) -> Summary:
    """Reduces one run's statistics to trends and amplification.

    Args:
      recorded: statistics of at least one epoch.
      warmup_epochs: how long the learning rate rises, at least one; epochs that hold some of it do not count as
        later.
    """
    factors = dynamics.amplification(recorded.smallest_std)
    peak = None
    if np.isfinite(factors).any():
        epoch, layer = np.unravel_index(np.nanargmax(factors), factors.shape)
        peak = Peak(float(factors[epoch, layer]), recorded.layers[layer], int(epoch) + 1)
    typical = dynamics.amplification(recorded.std)
    return Summary(
        trends=find_trends(recorded),
        later=find_trends(recorded, start=max(1, math.ceil(warmup_epochs)) + 1),
        peak=peak,
        typical=float(np.nanmedian(typical)) if np.isfinite(typical).any() else math.nan,
        growth=_geometric_mean(typical[-1] / typical[0]),
        vanished=float(np.mean(recorded.smallest_std == 0)),
    )


Settings = Mapping[tuple[str, str], Sequence[Summary]]


def count_trends(runs: Sequence[Summary]) -> tuple[Tally, Tally]:
    """Trends of the runs of one setting: over all epochs, and over those behind the warm-up."""
    return Tally([run.trends for run in runs]), Tally([run.later for run in runs])


def peak_factor(runs: Sequence[Summary]) -> float:
    """Largest amplification, geometric mean over the runs; NaN if there is none."""
    return _geometric_mean(np.array([run.peak.factor for run in runs if run.peak is not None]))


def trend_table(settings: Settings) -> str:
    """Share of the layers that rise and fall, and the trend of the global standard deviation."""
    headings = ["network", "method", "epochs", "layers", "rise", "fall", "both"]
    headings += ["global falls", "global rises", "global tau", "global last / first [95 %]"]
    table = [headings]
    for (model, method), runs in settings.items():
        if not runs:
            table.append([names.model(model), names.METHODS[method], *["-"] * 9])
            continue
        for tally in count_trends(runs):
            table.append(
                [
                    names.model(model),
                    names.METHODS[method],
                    f"from {tally.start}",
                    str(len(tally.runs[0].layers)),
                    *(_mean_and_range(tally.shares(direction), ".0%") for direction in (1, -1)),
                    *(
                        f"{sum(seen)} of {len(runs)}"
                        for seen in (tally.parted, tally.overall(-1), tally.overall(1))
                    ),
                    _mean_and_range([run.overall.tau for run in tally.runs], "+.2f"),
                    format_ratio(change_interval(tally.runs)),
                ]
            )
    return markdown_table(table, left=3)


def change_interval(runs: Sequence[Trends]) -> Interval:
    """Logarithm of the global deviation's last over first epoch, mean over the runs."""
    changes = [math.log(run.change) for run in runs if math.isfinite(run.change) and run.change > 0]
    return intervals.of_mean(changes)


def format_ratio(interval: Interval) -> str:
    """The ratio that is e to the power of the mean, with its interval."""
    if not interval.n:
        return "-"
    ends = f" [{math.exp(interval.low):.2f}, {math.exp(interval.high):.2f}]" if interval.is_known else ""
    return f"{math.exp(interval.mean):.2f}{ends}"


def layer_table(settings: Settings) -> str:
    """Names of the layers that rise or fall significantly in every run, or how many they are."""
    table = [["network", "method", "epochs", "rise in every run", "fall in every run"]]
    for (model, method), runs in settings.items():
        for tally in count_trends(runs) if runs else ():
            cells = []
            for direction in (1, -1):
                moving = [
                    dynamics.short_name(layer)
                    for layer in tally.runs[0].layers
                    if all(run.layers[layer].direction == direction for run in tally.runs)
                ]
                few = len(moving) <= MOST_NAMES
                cells.append(
                    (", ".join(moving) or "-") if few else f"{len(moving)} of {len(tally.runs[0].layers)}"
                )
            table.append([names.model(model), names.METHODS[method], f"from {tally.start}", *cells])
    return markdown_table(table, left=5)


def amplification_table(settings: Settings) -> str:
    """Where ZNorm amplifies most, and by how much."""
    table = [
        [
            "network",
            "method",
            "layer",
            "epoch",
            "largest",
            "typical",
            "largest / typical",
            "last / first",
            "vanished",
        ]
    ]
    for (model, method), runs in settings.items():
        peaks = [run.peak for run in runs if run.peak is not None]
        if not peaks:
            table.append([names.model(model), names.METHODS[method], *["-"] * 7])
            continue
        peak = max(peaks, key=lambda peak: peak.factor)
        typical = float(np.median([run.typical for run in runs if math.isfinite(run.typical)]))
        table.append(
            [
                names.model(model),
                names.METHODS[method],
                dynamics.short_name(peak.layer),
                str(peak.epoch),
                f"{peak.factor:.3g}",
                f"{typical:.3g}",
                f"{peak.factor / typical:.2g}",
                _mean_and_range([run.growth for run in runs], ".2f"),
                f"{np.mean([run.vanished for run in runs]):.1%}",
            ]
        )
    return markdown_table(table, left=3)


def _geometric_mean(values: np.ndarray) -> float:
    """Geometric mean of the finite values; NaN if there is none."""
    finite = values[np.isfinite(values)]
    return float(np.exp(np.mean(np.log(finite)))) if finite.size else math.nan


def _mean_and_range(values: Sequence[float], spec: str) -> str:
    """Mean and range of the finite values."""
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return "-"
    return f"{np.mean(values):{spec}} [{min(values):{spec}}, {max(values):{spec}}]"
