"""Learning curves, with a band over seeds."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from experiments.records import EpochMetrics
from experiments.report import intervals, names, style
from experiments.report.cells import Cell
from experiments.report.markdown import picture

Curve = Literal["test_accuracy", "test_loss"]


def describe_setting(cell: Cell, *parts: str) -> str:
    """A figure's title: data set, network, number of seeds and what else is the same in it."""
    run = cell.run
    base = names.dataset(run.data_name), names.model(run.model)
    return ", ".join([*base, *parts, f"{len(cell.ended) + cell.missing} seeds"])


def add_learning_curves(
    folder: Path,
    name: str,
    title: str,
    panels: Mapping[str, Sequence[Cell]],
    above: Curve = "test_accuracy",
) -> str:
    """Draws learning curves as NAME.svg; returns the Markdown that shows them."""
    draw_learning_curves(folder / f"{name}.svg", title, panels, above)
    words = f"{title}: {above.replace('_', ' ')} and training loss over epochs"
    return (
        f"{picture(words, f'{name}.svg')}\n\n"
        "Line: mean over seeds; band: lowest to highest seed; cross: a run diverged. Differences to the baseline "
        "are paired by seed; their band is the 95 % interval."
    )


def draw_learning_curves(
    path: Path, title: str, panels: Mapping[str, Sequence[Cell]], above: Curve = "test_accuracy"
) -> None:
    """Draws a metric of the test images, its difference to the baseline and training loss, one column per panel.

    A line is the mean over seeds, its band goes from the lowest to the highest seed, a cross marks the epoch in which
    a run diverged. Differences are paired by seed, and their band is the 95 % interval; they are drawn where a panel
    has one cell of the baseline.

    Args:
      path: of the figure, which ends with .svg.
      panels: the cells of each column, by the column's title.
      above: the metric, a field of `EpochMetrics`.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    baselines = {name: _baseline(cells) for name, cells in panels.items()}
    compared = any(baselines.values())
    with mpl.rc_context(style.STYLE):
        figure = Figure(
            figsize=(max(3.6 * len(panels), 5.4), 8.4 if compared else 6.2), dpi=150, layout="constrained"
        )
        # Tasks of one data set share their scale; a method that fails would flatten the panels of the others.
        axes = figure.subplots(3 if compared else 2, len(panels), sharex="col", squeeze=False)
        for column, (name, cells) in enumerate(panels.items()):
            upper, lower = axes[0, column], axes[-1, column]
            upper.set_title(style.plain(name))
            lower.set_yscale("log")
            lower.set_xlabel("epoch")
            lower.xaxis.get_major_locator().set_params(integer=True)
            lines = {}
            for cell in cells:
                if cell.ended:
                    lines[f"{names.METHODS[cell.run.method]} {cell.run.learning_rate:g}"] = draw_cell(
                        upper, cell, above
                    )
                    draw_cell(lower, cell, "train_loss")
            baseline = baselines[name]
            if baseline:
                axes[1, column].axhline(
                    0, color=style.METHOD_STYLES["baseline"][0], linestyle="--", linewidth=1
                )
                for cell in cells:
                    if cell is not baseline:
                        _draw_difference(axes[1, column], cell, baseline, above)
            elif compared:
                axes[1, column].axis("off")
            style.label_narrow_log_axis(lower.yaxis)
            if lines:
                options = {"fontsize": 7, "frameon": False, "ncols": 2, "title": "method, learning rate"}
                options["title_fontsize"] = 7
                lower.legend(
                    list(lines.values()),
                    list(lines),
                    loc="upper center",
                    bbox_to_anchor=(0.5, -0.2),
                    **options,
                )
        axes[0, 0].set_ylabel(above.replace("_", " "))
        if compared:
            axes[1, 0].set_ylabel(f"{above.replace('_', ' ')},\ndifference to the baseline")
        axes[-1, 0].set_ylabel("training loss")
        figure.suptitle(style.plain(title))
        style.save(figure, path)


def _baseline(cells: Sequence[Cell]) -> Cell | None:
    """What the others are compared with: the one cell of the baseline, if there is one and there are others."""
    found = [cell for cell in cells if cell.run.method == "baseline" and cell.ended]
    return found[0] if len(found) == 1 and len(cells) > 1 else None


def _draw_difference(axes, cell: Cell, baseline: Cell, metric: str) -> None:
    """The mean difference of each epoch that some seeds of both have reached, and its interval."""
    color, dashes = style.METHOD_STYLES[cell.run.method]
    seeds = [seed for seed in cell.ended if seed in baseline.ended]
    found = []
    for epoch in range(min(cell.run.epochs, baseline.run.epochs)):
        pairs = [
            tuple(_value(record.epochs[epoch], metric) for record in both)
            for both in ((cell.ended[seed], baseline.ended[seed]) for seed in seeds)
            if all(len(record.epochs) > epoch for record in both)
        ]
        pairs = [pair for pair in pairs if all(map(math.isfinite, pair))]
        if pairs:
            found.append((epoch + 1, intervals.paired(*zip(*pairs, strict=True))))
    epochs = [epoch for epoch, _ in found]
    axes.plot(epochs, [interval.mean for _, interval in found], dashes, color=color, linewidth=1.4)
    known = [(epoch, interval) for epoch, interval in found if interval.is_known]
    axes.fill_between(
        [epoch for epoch, _ in known],
        [interval.low for _, interval in known],
        [interval.high for _, interval in known],
        color=color,
        alpha=0.08,
        linewidth=0,
    )


def _value(epoch: EpochMetrics, metric: str) -> float:
    """NaN where the epoch was not evaluated."""
    value = getattr(epoch, metric)
    return math.nan if value is None else value


def draw_cell(axes, cell: Cell, metric: str):
    """Draws a metric of every epoch: mean and range over the seeds, crosses where one diverged. Returns the line."""
    color, dashes = style.METHOD_STYLES[cell.run.method]
    records = list(cell.ended.values())
    values = np.full((len(records), max(len(record.epochs) for record in records)), np.nan)
    for row, record in zip(values, records, strict=True):
        row[: len(record.epochs)] = [_value(epoch, metric) for epoch in record.epochs]
    values = np.ma.masked_invalid(values)
    epochs = np.arange(1, values.shape[1] + 1)
    if len(records) > 1:
        axes.fill_between(
            epochs, values.min(axis=0), values.max(axis=0), color=color, alpha=0.08, linewidth=0
        )
    (line,) = axes.plot(epochs, values.mean(axis=0), dashes, color=color, linewidth=1.4)
    for record in records:
        if record.status == "diverged":
            last = next((e for e in reversed(record.epochs) if math.isfinite(_value(e, metric))), None)
            if last is not None:
                axes.plot(last.epoch, getattr(last, metric), "x", color=color, markersize=7)
    return line
