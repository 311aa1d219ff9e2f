"""Markdown tables of cells, and how their numbers are written."""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from experiments.report.cells import Cell, Row, mean_and_std
from experiments.report.markdown import escape, markdown_table

if TYPE_CHECKING:
    from experiments.report.contrasts import Contrast

# Scores that are shares, and printed in percent; others, such as distances, are not.
DECIMALS = {"hausdorff": 2, "hausdorff95": 2}


def results_table(
    headings: Sequence[str],
    rows: Sequence[Row],
    contrasts: Sequence["Contrast"] = (),
    *,
    best_epoch: bool = False,
) -> str:
    """Accuracies in percent beside the paper's, if there are any, and the differences to the baseline.

    Args:
      headings: of the rows' labels.
      rows: one per cell.
      contrasts: of the accuracy, for the rows that have one.
      best_epoch: also says what the epoch had that was best on the test images.
    """
    by_row = {id(contrast.row): contrast for contrast in contrasts}

    def difference(row: Row) -> str:
        contrast = by_row.get(id(row))
        return contrast.endpoint.write_interval(contrast.interval) if contrast else _no_difference(row)

    def holds_paper(row: Row) -> str:
        contrast = by_row.get(id(row))
        # Reports in a protocol's words say it beside the verdict.
        return contrast.holds_paper if contrast and not contrast.by_protocol else ""

    columns: dict[str, Callable[[Row], str]] = {
        "rate": lambda row: f"{row.cell.run.learning_rate:g}",
        "seeds": lambda row: str(len(row.cell.ended)),
        "test accuracy, %": lambda row: format_score(row.cell, "final_accuracy"),
        "the paper, %": lambda row: format_number(_percent(row.paper_accuracy), ".1f"),
        "vs baseline, points [95 %]": difference,
        "verdict": lambda row: by_row[id(row)].word if id(row) in by_row else "",
        "holds the paper's effect": holds_paper,
        "best epoch, %": lambda row: format_score(row.cell, "best_accuracy"),
        "remarks": lambda row: remarks(row.cell),
    }
    if not contrasts:
        del columns["vs baseline, points [95 %]"], columns["verdict"]
    if not best_epoch:
        del columns["best epoch, %"]
    text = ("verdict", "holds the paper's effect", "remarks")
    return row_table(headings, rows, columns, text=text, tell=True, keep=_RESULTS)


def training_table(
    headings: Sequence[str],
    rows: Sequence[Row],
    contrasts: Sequence[Sequence["Contrast"]] = (),
    versus: str = "baseline",
) -> str:
    """Training losses, their ratios to the baseline's, and time where all runs were made on one kind of processor.

    Args:
      headings: of the rows' labels.
      rows: one per cell.
      contrasts: of each endpoint of the training loss.
      versus: what the rows are compared with, for people.
    """

    def of(some: Sequence["Contrast"]) -> Callable[[Row], str]:
        by_row = {id(contrast.row): contrast for contrast in some}

        def write(row: Row) -> str:
            contrast = by_row.get(id(row))
            return contrast.endpoint.write_interval(contrast.interval) if contrast else _no_difference(row)

        return write

    columns: dict[str, Callable[[Row], str]] = {
        "final training loss": lambda row: format_number(mean_and_std(row.cell.losses)[0], ".2e"),
        "the paper": lambda row: format_number(row.paper_loss, ".1e"),
    }
    for some in contrasts:
        if some:
            columns[f"{some[0].endpoint.title}: ratio to {versus} [95 %]"] = of(some)
    if len({kind for row in rows for kind in row.cell.processors}) == 1:  # else times compare processors
        columns["s/epoch"] = lambda row: format_number(row.cell.seconds_per_epoch, ".2f")
    columns["non-finite steps"] = lambda row: str(row.cell.nonfinite_steps)
    return row_table(headings, rows, columns)


def certainty_table(headings: Sequence[str], contrasts: Sequence["Contrast"]) -> str:
    """What stands behind each verdict: adjusted p, the interval of the pooled variance, what could have been seen."""
    if not contrasts:
        return ""
    by_row = {id(contrast.row): contrast for contrast in contrasts}
    endpoint = contrasts[0].endpoint
    per_unit = {"points": "points", "ratio": "%"}.get(endpoint.unit, endpoint.unit)

    def pooled(row: Row) -> str:
        interval = by_row[id(row)].pooled
        return endpoint.write_ends(interval) if interval.is_known else "-"

    def detectable(row: Row) -> str:
        return format_number(endpoint.convert_size(by_row[id(row)].detectable), ".2g")

    def paper(row: Row) -> str:
        effect = by_row[id(row)].paper
        return "-" if effect is None else endpoint.write(effect)

    columns: dict[str, Callable[[Row], str]] = {
        "the paper's effect": paper,
        f"smallest of interest, {per_unit}": lambda row: (
            f"{endpoint.convert_size(by_row[id(row)].smallest):.3g}"
        ),
        f"smallest detectable, {per_unit}": detectable,
        "p (Holm)": lambda row: format_number(by_row[id(row)].p, ".2g"),
        "pooled variance [95 %]": pooled,
    }
    return row_table(headings, [contrast.row for contrast in contrasts], columns)


def scores_table(
    headings: Sequence[str], rows: Sequence[Row], contrasts: Sequence[Sequence["Contrast"]]
) -> str:
    """Several scores of the finished networks, each with its difference to the baseline.

    Args:
      headings: of the rows' labels.
      rows: one per cell.
      contrasts: of each score.
    """
    columns: dict[str, Callable[[Row], str]] = {}
    for some in contrasts:
        if some:
            add_score(columns, some)
    return row_table(headings, rows, columns, keep=tuple(columns))


def add_score(columns: dict[str, Callable[[Row], str]], contrasts: Sequence["Contrast"]) -> None:
    """Adds a score and its difference to the columns of a table."""
    endpoint = contrasts[0].endpoint
    by_row = {id(contrast.row): contrast for contrast in contrasts}

    def difference(row: Row) -> str:
        contrast = by_row.get(id(row))
        return endpoint.write_interval(contrast.interval) if contrast else _no_difference(row)

    columns[endpoint.title] = lambda row: format_score(row.cell, endpoint.score)
    columns[f"{endpoint.title} vs baseline [95 %]"] = difference


def format_score(cell: Cell, score: str) -> str:
    """Mean ± standard deviation, or the mean alone of a single seed; shares in percent.

    Of a logarithm the geometric mean of what it is the logarithm of.
    """
    if score.startswith("log_"):
        values = list(cell.values(score).values())
        return f"{math.exp(statistics.fmean(values)):.3g}" if values else "-"
    scale, decimals = (1, DECIMALS[score]) if score in DECIMALS else (100, 1)
    mean, std = mean_and_std([scale * value for value in cell.values(score).values()])
    if math.isnan(mean):
        return "-"
    return f"{mean:.{decimals}f}" if math.isnan(std) else f"{mean:.{decimals}f} ± {std:.{decimals}f}"


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
    return "; ".join(parts)


def _no_difference(row: Row) -> str:
    return "" if row.cell.run.method == "baseline" else "-"


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


_RESULTS = ("test accuracy, %", "vs baseline, points [95 %]", "verdict")
# What may be the same in every row of a table without being worth a column.
_DROPPED_SILENTLY = ("", "-", "0")


def row_table(
    headings: Sequence[str],
    rows: Sequence[Row],
    columns: dict[str, Callable[[Row], str]],
    text: Sequence[str] = (),
    tell: bool = False,
    keep: Sequence[str] = (),
) -> str:
    """A table without the columns that are the same in every row.

    Args:
      headings: of the rows' labels.
      rows: one per cell.
      columns: what a row has in each, by heading.
      text: headings of columns of words, which are aligned to the left as labels are.
      tell: adds a sentence of what was the same in every row.
      keep: headings of columns that stay though they are the same in every row.
    """
    if not rows:
        return ""
    written: dict[str, list[str]] = {
        heading: [row.labels[i] for row in rows] for i, heading in enumerate(headings)
    }
    written |= {heading: [column(row) for row in rows] for heading, column in columns.items()}
    constant = {}
    if len(rows) > 1:
        constant = {h: cells[0] for h, cells in written.items() if len(set(cells)) == 1 and h not in keep}
    kept = {h: cells for h, cells in written.items() if h not in constant}
    told = [f"{h} {cell}" for h, cell in constant.items() if cell not in _DROPPED_SILENTLY]
    left = {*headings, *text}
    lines = [list(kept), *([cells[i] for cells in kept.values()] for i in range(len(rows)))]
    table = markdown_table(lines, aligned_left=[heading in left for heading in kept])
    return f"{table}\n\nThe same in every row: {escape(', '.join(told))}." if told and tell else table
