"""The study in one picture: what each method changed in both arms, and how the tuned networks learned."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.report import names, style
from experiments.report.cells import Cell
from experiments.report.contrasts import ACCURACY, SPEED, Contrast
from experiments.report.curves import draw_cell

WIDTH = 8.0  # inches
LINE = 0.2  # inches of a row
CURVES = 2.2  # inches of the learning curves

Contrasts = Mapping[str, Sequence[Contrast]]


def draw(path: Path, arms: Mapping[str, Contrasts], curves: Mapping[str, Sequence[Cell]]) -> None:
    """Draws the differences of accuracy and speed to the baseline, with the paper's effects, and learning curves.

    Args:
      path: of the figure, which ends with .svg.
      arms: by title, contrasts with the baseline by the endpoint's score.
      curves: by title, the cells of two panels whose test accuracy is drawn over the epochs.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    heights = [len(contrasts[ACCURACY.score]) * LINE + 0.2 for contrasts in arms.values()]
    with mpl.rc_context(style.STYLE):
        figure = Figure(figsize=(WIDTH, sum(heights) + CURVES + 2.6), dpi=100, layout="constrained")
        axes = figure.subplots(len(arms) + 1, 2, height_ratios=[*heights, CURVES])
        for (left, right), (title, contrasts) in zip(axes, arms.items(), strict=False):
            _draw_contrasts(left, contrasts[ACCURACY.score])
            _draw_contrasts(right, contrasts[SPEED.score])
            left.set_title(title, loc="left", weight="bold", fontsize=9)
            left.set_xlabel("test accuracy against the baseline,\npoints (right: better)")
            right.set_xlabel("training loss over all epochs,\nratio to the baseline (left: faster)")
            right.set_xscale("log")
            right.set_yticklabels([])
            style.label_narrow_log_axis(right.xaxis)
        for panel, (title, cells) in zip(axes[-1], curves.items(), strict=True):
            lines = [draw_cell(panel, cell, "test_accuracy") for cell in cells]
            rates = [f"{names.METHODS[cell.run.method]} {cell.run.learning_rate:g}" for cell in cells]
            panel.legend(
                lines, rates, fontsize=7, frameon=False, title="method, learning rate", title_fontsize=7
            )
            panel.set_title(title, loc="left", weight="bold", fontsize=9)
            panel.set_xlabel("epoch")
            panel.xaxis.get_major_locator().set_params(integer=True)
        axes[-1, 0].set_ylabel("test accuracy")
        figure.legend(handles=_marks(), loc="outside lower center", ncols=2, frameon=False)
        style.save(figure, path)


def _draw_contrasts(axes: Any, contrasts: Sequence[Contrast]) -> None:
    """A line for each, from above, with its interval and the paper's effect."""
    for place, contrast in enumerate(contrasts):
        convert = contrast.endpoint.convert
        color, _ = style.METHOD_STYLES[contrast.row.cell.run.method]
        interval = contrast.interval
        if interval.is_known:
            axes.plot(
                [convert(interval.low), convert(interval.high)], (place, place), color=color, linewidth=1.6
            )
        axes.plot(convert(interval.mean), place, "o", color=color, markersize=5)
        if contrast.paper is not None:
            axes.plot(convert(contrast.paper), place, **_PAPER)
    axes.axvline(contrasts[0].endpoint.convert(0.0), color=style.GRAY, linewidth=0.8)
    runs = [contrast.row.cell.run for contrast in contrasts]
    labels = [f"{names.OPTIMIZERS[run.optimizer]}: {names.METHODS[run.method]}" for run in runs]
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)


_PAPER: dict[str, Any] = {
    "marker": "D",
    "linestyle": "none",
    "color": style.BLACK,
    "markerfacecolor": "white",
    "markersize": 5,
}


def _marks() -> list[Any]:
    from matplotlib.lines import Line2D

    here = Line2D([], [], color=style.GRAY, marker="o", markersize=5, label="here, with its 95 % interval")
    return [here, Line2D([], [], **_PAPER, label="the paper's effect, ResNet-56, one run")]
