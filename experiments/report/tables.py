"""Markdown tables of cells, and how their numbers are written."""

import math
from collections.abc import Iterable, Mapping, Sequence

from experiments.report.cells import (
    ROUNDING,
    Cell,
    Row,
    leaves_out_zero,
    mean_and_std,
    paired_difference,
)


def results_table(headings: Sequence[str], rows: Sequence[Row]) -> str:
    """A Markdown table of accuracies, losses and speed, beside the paper's numbers if there are any.

    Args:
      headings: of the rows' labels.
      rows: one per cell.
    """
    columns = {
        "learning rate": lambda row: f"{row.cell.run.learning_rate:g}",
        "seeds": lambda row: str(len(row.cell.ended)),
        "test accuracy": lambda row: format_score(row.cell),
        "paper accuracy": lambda row: format_number(row.paper_accuracy, ".4f"),
        "vs baseline [95 % interval]": format_difference,
        "training loss": lambda row: format_number(mean_and_std(row.cell.losses)[0], ".2e"),
        "paper loss": lambda row: format_number(row.paper_loss, ".1e"),
        "s/epoch": lambda row: format_number(row.cell.seconds_per_epoch, ".2f"),
        "non-finite steps": lambda row: str(row.cell.nonfinite_steps),
        "remarks": lambda row: remarks(row.cell),
    }
    if all(row.paper_accuracy is None for row in rows):
        del columns["paper accuracy"]
    if all(row.paper_loss is None for row in rows):
        del columns["paper loss"]
    lines = [[*row.labels, *(column(row) for column in columns.values())] for row in rows]
    return markdown_table([[*headings, *columns], *lines], left=len(headings))


def scores_table(headings: Sequence[str], rows: Sequence[Row], scores: Mapping[str, str]) -> str:
    """A Markdown table of the finished networks' scores, each with its difference to the baseline.

    Args:
      headings: of the rows' labels.
      rows: one per cell.
      scores: headings of the columns, and names in `RunRecord.scores`.
    """
    columns = [column for heading in scores for column in (heading, "vs baseline [95 % interval]")]
    lines = [[*headings, *columns]]
    for row in rows:
        cells = [
            text
            for score in scores.values()
            for text in (format_score(row.cell, score), format_difference(row, score))
        ]
        lines.append([*row.labels, *cells])
    return markdown_table(lines, left=len(headings))


def format_score(cell: Cell, score: str = "accuracy") -> str:
    """Mean ± standard deviation, or the mean alone of a single seed."""
    mean, std = mean_and_std(list(cell.values(score).values()))
    if math.isnan(mean):
        return "-"
    return f"{mean:.4f}" if math.isnan(std) else f"{mean:.4f} ± {std:.4f}"


def format_difference(row: Row, score: str = "accuracy") -> str:
    """Mean difference to the baseline with its interval."""
    if row.cell.run.method == "baseline":
        return ""
    if row.baseline is None:
        return "-"
    mean, half, n = paired_difference(row.cell, row.baseline, score)
    if n == 0:
        return "-"
    if math.isnan(half):
        return f"{mean:+.4f} [one seed]"
    pairs = "" if n == len(row.cell.values(score)) else f" ({n} seeds)"
    interval = "seeds agree" if half < ROUNDING else f"{mean - half:+.4f}, {mean + half:+.4f}"
    return f"{mean:+.4f} [{interval}]{pairs}"


def describe_chance(rows: Iterable[Row], scores: Sequence[str] = ("accuracy",)) -> str:
    """How many intervals leave out 0, and how many would by chance; nothing where no seeds suffice."""
    rows = list(rows)
    found = [leaves_out_zero(row, score) for row in rows for score in scores]
    told = [answer for answer in found if answer is not None]
    if not told:
        return ""
    return (
        f"Intervals of 95 % that leave out 0: {sum(told)} of {len(told)}. If no method changed anything, about "
        f"{len(told) / 20:.1f} would by chance alone."
    )


def format_number(value: float | None, spec: str) -> str:
    """The number, or a dash where there is none."""
    return "-" if value is None or math.isnan(value) else format(value, spec)


def remarks(cell: Cell) -> str:
    """What the numbers alone do not say: diverged, missing and failed runs."""
    parts = []
    if cell.diverged:
        parts.append(f"{cell.diverged} of {len(cell.ended)} diverged")
    if cell.missing:
        parts.append(f"{cell.missing} missing")
    parts += [f"failed: {message}" for message in dict.fromkeys(cell.messages)]
    return "; ".join(parts).replace("|", "/")


def markdown_table(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Lays out a Markdown table, readable as plain text too.

    Args:
      rows: the headings and then the rows.
      left: how many columns are aligned to the left; the others are aligned to the right.
    """
    widths = [max(3, *(len(cell) for cell in column)) for column in zip(*rows, strict=True)]
    lines = [
        "| "
        + " | ".join(
            f"{cell:{'<' if i < left else '>'}{w}}"
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        + " |"
        for row in rows
    ]
    rule = (
        "|" + "|".join("-" * (w + 2) if i < left else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    )
    return "\n".join([lines[0], rule, *lines[1:]])
