"""The forest plot: measured differences to the optimizer alone, of all studies, with their intervals."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.report import names, style
from experiments.report.findings import HARMS, HELPS, Finding

LINE = 0.2  # inches per row
WIDTH = 8.0  # inches; 100 pixels each on a web page


def draw(path: Path, findings: Mapping[str, Sequence[Finding]]) -> None:
    """Draws one line per finding, below the heading of its study and setting, with the paper's effect if it has one.

    Args:
      path: of the figure, which ends with .svg.
      findings: by study; of these, differences in points that belong into the plot.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    rows = _rows(findings)
    colors = {names.METHODS[method]: color for method, (color, _) in style.METHOD_STYLES.items()}
    with mpl.rc_context({**style.STYLE, "axes.grid": False}):
        figure = Figure(figsize=(WIDTH, LINE * len(rows) + 1.3), dpi=100)
        height = figure.get_figheight()
        axes = figure.add_axes((0.17, 0.85 / height, 0.41, LINE * len(rows) / height))
        axes.axvline(0, color=style.GRAY, linewidth=0.8)
        for place, row in enumerate(rows):
            # Beside the axes: names to the left, numbers and verdicts to the right.
            beside = {"transform": axes.get_yaxis_transform(), "va": "center", "clip_on": False}
            if isinstance(row, str):
                background = {"facecolor": "white", "linewidth": 0, "pad": 1}
                axes.text(-0.4, place, style.plain(row), weight="bold", bbox=background, **beside)
                continue
            assert row.interval is not None
            color = colors.get(row.label, style.GRAY)
            axes.plot(row.interval, (place, place), color=color, linewidth=1.6)
            assert row.effect is not None
            axes.plot(row.effect, place, "o", color=color, markersize=5)
            if row.paper is not None:
                axes.plot(row.paper, place, "D", color=style.BLACK, markerfacecolor="white", markersize=5)
            axes.text(-0.02, place, style.plain(row.label), ha="right", **beside)
            axes.text(1.02, place, style.plain(row.measured.removesuffix(" points")), **beside)
            weight = "bold" if row.verdict in (HELPS, HARMS) else "normal"
            axes.text(1.42, place, row.word, weight=weight, **beside)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_yticks([])
        axes.grid(axis="x", alpha=0.3)
        axes.set_xlabel("difference to the optimizer alone, points of accuracy or F1 (right: better)")
        for side in ("left", "right", "top"):
            axes.spines[side].set_visible(False)
        axes.text(
            1.02, -1.1, "here [95 %]", style="italic", transform=axes.get_yaxis_transform(), va="center"
        )
        axes.text(1.42, -1.1, "verdict", style="italic", transform=axes.get_yaxis_transform(), va="center")
        marks = [
            Line2D([], [], color=style.GRAY, marker="o", markersize=5, label="here, with its 95 % interval"),
            Line2D(
                [],
                [],
                color=style.BLACK,
                marker="D",
                markerfacecolor="white",
                linestyle="none",
                markersize=5,
                label="the paper's effect",
            ),
        ]
        figure.legend(handles=marks, loc="lower left", ncols=2, frameon=False)
        style.save(figure, path)


def _rows(findings: Mapping[str, Sequence[Finding]]) -> list[str | Finding]:
    """Headings, and the findings below them; those without a number or an interval have no place."""
    settings: dict[str, list[Finding]] = {}
    for study, some in findings.items():
        for finding in some:
            if finding.forest and finding.interval is not None and finding.effect is not None:
                settings.setdefault(f"{finding.group} ({study})", []).append(finding)
    return [row for heading, some in settings.items() for row in (heading, *some)]
