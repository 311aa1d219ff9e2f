"""What the gradients do while networks train: trends per layer and globally, and ZNorm's amplification.

After Yun, "Insights from Gradient Dynamics: Gradient Autoscaled Normalization", 2025, arXiv 2509.03677, which
observes that the standard deviation of some layers' gradients rises and that of others falls, that the global
one falls consistently, and that dividing by the small ones amplifies, especially in VGG.

CIFAR-100 with crop and flip, AdamW with learning rate 1e-3 and weight decay 5e-5, 5 of 300 epochs warm-up and then
x 0.75 every 30 epochs: the settings of the author's public code of the same month. The raw gradients are recorded,
in front of the method.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import dynamics, report
from experiments.config import Run
from experiments.records import GradientDynamics, RunRecord
from experiments.studies import Size, Study

METHODS = ("baseline", "znorm", "gan")

SIZES = {
    "smoke": Size(
        models=("resnet8",),
        methods=METHODS,
        epochs=6,
        batch_sizes=(50,),
        seeds=(0, 1),
        train_examples=100,
        test_examples=100,
    ),
    "cpu": Size(
        models=("resnet20", "resnet56", "vgg16_bn"),
        methods=METHODS,
        epochs=10,
        batch_sizes=(50,),
        seeds=(0, 1, 2),
        train_examples=1_000,
        test_examples=500,
    ),
    "full": Size(
        models=("resnet20", "resnet56", "vgg16_bn"),
        methods=METHODS,
        epochs=300,
        batch_sizes=(256,),
        seeds=(0, 1, 2),
    ),
}
# On a CPU, VGG-16 costs about eight times as much per image as ResNet-20.
SMALLER: dict[tuple[str, str], dict[str, Any]] = {("cpu", "vgg16_bn"): {"train_examples": 500}}
FULL_EPOCHS = SIZES["full"].epochs

SIGNIFICANCE = 0.05
# Without any trend 2.5 % of the layers would rise and 2.5 % fall; a share above twice that is called seen.
SEEN_SHARE = SIGNIFICANCE

NOTES = f"""\
Trend: Kendall's tau between the epochs and the standard deviation (the Mann-Kendall test), two-sided,
p < {SIGNIFICANCE}. Shares are means over seeds. Without a trend, {SIGNIFICANCE / 2:.1%} of the layers would be called
rising and as many falling; and since epochs depend on the epochs before them, trends show more easily than the
level says. A curve that falls and then rises shows none; the first epoch holds the warm-up. Epochs with a
vanished or non-finite gradient do not count, and fewer than five epochs can show no trend."""

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
class Summary:
    """One run's gradients in a few numbers.

    Attributes:
      layers: trend of each layer's standard deviation, by name.
      overall: trend of the global standard deviation.
      change: global standard deviation of the last epoch over that of the first.
      peak: largest amplification of any step; `None` if no gradient was positive and finite.
      typical: median amplification over layers and epochs.
      growth: amplification in the last epoch over that in the first, geometric mean over the layers.
      vanished: share of layers and epochs with a step whose gradient was zero or constant.
    """

    layers: Mapping[str, Trend]
    overall: Trend
    change: float
    peak: Peak | None
    typical: float
    growth: float
    vanished: float

    def share(self, direction: int) -> float:
        """Share of the layers that rise (1) or fall (-1) significantly."""
        return float(np.mean([trend.direction == direction for trend in self.layers.values()]))


def make_runs(preset: str, records: Sequence[RunRecord]) -> list[Run]:
    """Every model, method and seed; warm-up and steps shrink with the number of epochs."""
    del records
    size = SIZES[preset]
    runs = [
        Run(
            dataset="cifar100",
            model=model,
            method=method,
            optimizer="adamw",
            learning_rate=1e-3,
            epochs=size.epochs,
            batch_size=size.batch_sizes[0],
            seed=seed,
            schedule="step",
            warmup_epochs=5 * size.epochs / FULL_EPOCHS,
            step_epochs=max(1, 30 * size.epochs // FULL_EPOCHS),
            step_factor=0.75,
            weight_decay=5e-5,
            augment="crop_flip",
            train_examples=size.train_examples,
            test_examples=size.test_examples,
            dynamics=True,
        )
        for seed in size.seeds
        for model in size.models
        for method in size.methods
    ]
    return [dataclasses.replace(run, **SMALLER.get((preset, run.model), {})) for run in runs]


def find_trend(series: np.ndarray) -> Trend:
    """Mann-Kendall test of a series of positive numbers; others are left out."""
    from scipy import stats

    epochs = np.flatnonzero(np.isfinite(series) & (series > 0))
    if len(epochs) < 2 or np.ptp(series[epochs]) == 0:
        return Trend(math.nan, math.nan)
    result: Any = stats.kendalltau(epochs, series[epochs])
    return Trend(float(result.statistic), float(result.pvalue))


def summarize(recorded: GradientDynamics) -> Summary:
    """Reduces one run's statistics to trends, amplification and change.

    Args:
      recorded: statistics of at least one epoch.
    """
    factors = dynamics.amplification(recorded.smallest_std)
    peak = None
    if np.isfinite(factors).any():
        epoch, layer = np.unravel_index(np.nanargmax(factors), factors.shape)
        peak = Peak(float(factors[epoch, layer]), recorded.layers[layer], int(epoch) + 1)
    typical = dynamics.amplification(recorded.std)
    total = recorded.global_std.astype(np.float64)
    return Summary(
        layers={
            layer: find_trend(series) for layer, series in zip(recorded.layers, recorded.std.T, strict=True)
        },
        overall=find_trend(recorded.global_std),
        change=float(total[-1] / total[0]) if total[0] > 0 else math.nan,
        peak=peak,
        typical=float(np.nanmedian(typical)) if np.isfinite(typical).any() else math.nan,
        growth=_geometric_mean(typical[-1] / typical[0]),
        vanished=float(np.mean(recorded.smallest_std == 0)),
    )


Settings = Mapping[tuple[str, str], Sequence[Summary]]


def make_report(preset: str, records: Sequence[RunRecord], folder: Path) -> None:
    """Writes report.md and a figure of the global standard deviation; dynamics.md has the layers."""
    cells = report.make_cells(make_runs(preset, records), records)
    recorded = {
        (cell.run.model, cell.run.method): dynamics.read_all(folder / "records", cell.ended.values())
        for cell in cells.values()
    }
    summaries = {setting: [summarize(seed) for seed in seeds] for setting, seeds in recorded.items()}

    models = dict.fromkeys(model for model, _ in recorded)
    panels = {name: {method: recorded[name, method] for method in METHODS} for name in models}
    dynamics.draw_global(folder / "global_std", "Standard deviation of all layers together", panels)
    baselines = {cell.run.model: cell for cell in cells.values() if cell.run.method == "baseline"}
    rows = [
        report.Row(
            (c.run.model, c.run.method), c, None if c.run.method == "baseline" else baselines[c.run.model]
        )
        for c in cells.values()
    ]
    protocols = dict.fromkeys(
        f"- Protocol of {cell.run.model}: {report.describe_protocol(cell.run)}." for cell in cells.values()
    )
    missing = sum(len(cell.ended) for cell in cells.values()) - sum(map(len, recorded.values()))
    sections = [
        "\n".join(protocols),
        *([f"**{missing} runs have a record but no gradient statistics.**"] if missing else []),
        "## The paper's observations",
        describe_observations(summaries),
        "## Trends",
        NOTES,
        trend_table(summaries),
        "![Global standard deviation over epochs, per method](global_std.svg)",
        "## Which layers rise and which fall",
        layer_table(summaries),
        "## ZNorm's amplification",
        AMPLIFICATION_NOTES,
        amplification_table(summaries),
        "Heat maps of all layers and the amplification of each: [dynamics.md](dynamics.md).",
        "## Accuracy",
        report.results_table(("model", "method"), rows),
    ]
    heading = SIZES[preset].heading("Gradient dynamics on CIFAR-100", preset, SIZES["full"])
    for (name, model), changes in SMALLER.items():
        if name == preset:
            heading += f"; {model}: " + ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in changes.items())
    report.write_report(folder, heading, list(cells.values()), sections)


def describe_observations(settings: Settings) -> str:
    """Says of each of the paper's observations where it was seen and where not, from the summaries alone."""
    lines = ["Yun 2025, arXiv 2509.03677, observes three things. In these runs:", ""]
    measured = {setting: runs for setting, runs in settings.items() if runs}
    if not measured:
        return "No run has ended with gradient statistics, so nothing can be said yet."

    lines.append("1. The standard deviation of some layers' gradients rises, that of others falls:")
    for (model, method), runs in measured.items():
        rising, falling = (np.mean([run.share(direction) for run in runs]) for direction in (1, -1))
        rises, falls = rising > SEEN_SHARE, falling > SEEN_SHARE
        verdict = (
            "**seen**"
            if rises and falls
            else "**partly seen**, layers only rise"
            if rises
            else "**partly seen**, layers only fall"
            if falls
            else "**not seen**"
        )
        lines.append(f"   - {model}, {method}: {verdict} ({rising:.0%} rise, {falling:.0%} fall).")

    lines.append("2. The global standard deviation falls consistently:")
    for (model, method), runs in measured.items():
        falls = sum(run.overall.direction == -1 for run in runs)
        rises = sum(run.overall.direction == 1 for run in runs)
        verdict = "**seen**" if falls == len(runs) else "**partly seen**" if falls else "**not seen**"
        lines.append(
            f"   - {model}, {method}: {verdict} (falls in {falls} of {len(runs)} runs, rises in {rises})."
        )

    lines.append("3. ZNorm amplifies layers with a small standard deviation, especially in VGG:")
    for method in dict.fromkeys(method for _, method in measured):
        largest = {
            model: peak_factor(runs)
            for (model, m), runs in measured.items()
            if m == method and not math.isnan(peak_factor(runs))
        }
        vgg = {model: factor for model, factor in largest.items() if model.startswith("vgg")}
        others = {model: factor for model, factor in largest.items() if model not in vgg}
        numbers = ", ".join(f"{model} {factor:.2g}" for model, factor in largest.items())
        if not vgg or not others:
            verdict = "**not tested**, which needs VGG and a ResNet"
        else:
            verdict = "**seen**" if min(vgg.values()) > max(others.values()) else "**not seen**"
        lines.append(
            f"   - {method}: {verdict} (largest factor, geometric mean over seeds: {numbers or 'none'})."
        )
    return "\n".join(lines)


def peak_factor(runs: Sequence[Summary]) -> float:
    """Largest amplification, geometric mean over the runs; NaN if there is none."""
    return _geometric_mean(np.array([run.peak.factor for run in runs if run.peak is not None]))


def trend_table(settings: Settings) -> str:
    """Share of the layers that rise and fall, and the trend of the global standard deviation."""
    headings = ["model", "method", "runs", "layers", "rise", "fall", "no trend"]
    headings += ["global falls", "global rises", "global tau", "global last / first"]
    table = [headings]
    for (model, method), runs in settings.items():
        if not runs:
            table.append([model, method, "0", *["-"] * 8])
            continue
        rising, falling = (np.mean([run.share(direction) for run in runs]) for direction in (1, -1))
        taus = [run.overall.tau for run in runs if not math.isnan(run.overall.tau)]
        changes = [run.change for run in runs if math.isfinite(run.change)]
        table.append(
            [
                model,
                method,
                str(len(runs)),
                str(len(runs[0].layers)),
                f"{rising:.0%}",
                f"{falling:.0%}",
                f"{1 - rising - falling:.0%}",
                f"{sum(run.overall.direction == -1 for run in runs)} of {len(runs)}",
                f"{sum(run.overall.direction == 1 for run in runs)} of {len(runs)}",
                _mean_and_range(taus, "+.2f"),
                _mean_and_range(changes, ".2f"),
            ]
        )
    return report.markdown_table(table, left=2)


def layer_table(settings: Settings) -> str:
    """Names of the layers that rise or fall significantly in every run."""
    table = [["model", "method", "rise in every run", "fall in every run"]]
    for (model, method), runs in settings.items():
        cells = []
        for direction in (1, -1):
            names = [
                dynamics.short_name(layer)
                for layer in (runs[0].layers if runs else ())
                if all(run.layers[layer].direction == direction for run in runs)
            ]
            cells.append(", ".join(names) or "-")
        table.append([model, method, *cells])
    return report.markdown_table(table, left=4)


def amplification_table(settings: Settings) -> str:
    """Where ZNorm amplifies most, and by how much."""
    table = [
        [
            "model",
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
            table.append([model, method, *["-"] * 7])
            continue
        peak = max(peaks, key=lambda peak: peak.factor)
        typical = float(np.median([run.typical for run in runs if math.isfinite(run.typical)]))
        table.append(
            [
                model,
                method,
                dynamics.short_name(peak.layer),
                str(peak.epoch),
                f"{peak.factor:.3g}",
                f"{typical:.3g}",
                f"{peak.factor / typical:.2g}",
                _mean_and_range([run.growth for run in runs if math.isfinite(run.growth)], ".2f"),
                f"{np.mean([run.vanished for run in runs]):.1%}",
            ]
        )
    return report.markdown_table(table, left=3)


def _geometric_mean(values: np.ndarray) -> float:
    """Of those that are finite; NaN if none is."""
    finite = values[np.isfinite(values)]
    return float(np.exp(np.mean(np.log(finite)))) if finite.size else math.nan


def _mean_and_range(values: Sequence[float], spec: str) -> str:
    if not values:
        return "-"
    return f"{np.mean(values):{spec}} [{min(values):{spec}}, {max(values):{spec}}]"


STUDY = Study(
    name="gradient_dynamics",
    title="Standard deviations of gradients per layer and epoch (Yun 2025, arXiv 2509.03677)",
    runs=make_runs,
    report=make_report,
)
