"""Markdown tables of cells, and how their numbers are written."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence

from experiments.report.cells import Cell, Row, mean_and_std
from experiments.report.contrasts import Contrast
from experiments.report.markdown import escape, markdown_table

# Scores that are shares, and printed in percent; others, such as distances, are not.
DECIMALS = {"hausdorff": 2, "hausdorff95": 2}


def results_table(
    headings: Sequence[str],
    rows: Sequence[Row],
    contrasts: Sequence[Contrast] = (),
    *,
    best_epoch: bool = False,
) -> str:
    """Accuracies in percent beside the paper's, if there are any, and the differences to the baseline.

    Args:
      contrasts: of the accuracy, for the rows that have one.
      best_epoch: also says what the epoch had that was best on the test images.
    """
    columns: dict[str, Callable[[Row], str]] = {
        "rate": lambda row: f"{row.cell.run.learning_rate:g}",
        "seeds": lambda row: str(len(row.cell.ended)),
        "test accuracy, %": lambda row: format_score(row.cell, "final_accuracy"),
        "the paper, %": lambda row: format_number(_percent(row.paper_accuracy), ".1f"),
        "vs baseline, points [95 %]": differences(contrasts),
        "verdict": column(contrasts, lambda contrast: contrast.word),
        # Reports in a protocol's words say it beside the verdict.
        "holds the paper's effect": column(contrasts, lambda c: "" if c.by_protocol else c.holds_paper),
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
    contrasts: Sequence[Sequence[Contrast]] = (),
    versus: str = "baseline",
) -> str:
    """Training losses, their ratios to the baseline's, and time where all runs were made on one kind of processor.

    Args:
      contrasts: of each endpoint of the training loss.
      versus: what the rows are compared with, for people.
    """
    several = any(row.cell.run.epochs > 1 for row in rows)
    columns: dict[str, Callable[[Row], str]] = {
        f"{'final' if several else 'mean'} training loss": lambda row: format_number(
            mean_and_std(row.cell.losses)[0], ".2e"
        ),
        "the paper": lambda row: format_number(row.paper_loss, ".1e"),
    }
    for some in contrasts:
        if some:
            columns[f"{some[0].endpoint.title}: ratio to {versus} [95 %]"] = differences(some)
    if len({kind for row in rows for kind in row.cell.processors}) == 1:  # else times compare processors
        columns["s/epoch"] = lambda row: format_number(row.cell.seconds_per_epoch, ".2f")
    columns["non-finite steps"] = lambda row: str(row.cell.nonfinite_steps)
    return row_table(headings, rows, columns, keep=("final training loss",))


def certainty_table(headings: Sequence[str], contrasts: Sequence[Contrast]) -> str:
    """What stands behind each verdict: adjusted p, the interval of the pooled variance, what could have been seen."""
    if not contrasts:
        return ""
    endpoint = contrasts[0].endpoint
    per_unit = {"points": "points", "ratio": "%"}.get(endpoint.unit, endpoint.unit)
    columns = {
        "the paper's effect": lambda c: "-" if c.paper is None else endpoint.write(c.paper),
        f"smallest of interest, {per_unit}": lambda c: f"{endpoint.convert_size(c.smallest):.3g}",
        f"smallest detectable, {per_unit}": lambda c: format_number(
            endpoint.convert_size(c.detectable), ".2g"
        ),
        "p (Holm)": lambda c: format_number(c.p, ".2g"),
        "pooled variance [95 %]": lambda c: endpoint.write_ends(c.pooled) if c.pooled.is_known else "-",
    }
    # What was measured may be the same by chance: Holm makes equal p-values of different ones.
    measured = tuple(columns)[2:]
    return contrasts_table(headings, contrasts, columns, keep=measured)


def contrasts_table(
    headings: Sequence[str],
    contrasts: Sequence[Contrast],
    columns: Mapping[str, Callable[[Contrast], str]],
    text: Sequence[str] = (),
    keep: Sequence[str] | None = None,
) -> str:
    """A table of contrasts, by default with all columns; see `row_table`."""
    written = {heading: column(contrasts, write) for heading, write in columns.items()}
    rows = [contrast.row for contrast in contrasts]
    return row_table(headings, rows, written, text=text, keep=tuple(columns) if keep is None else keep)


def scores_table(
    headings: Sequence[str], rows: Sequence[Row], contrasts: Sequence[Sequence[Contrast]]
) -> str:
    """Several scores of the finished networks, each with its difference to the baseline."""
    columns: dict[str, Callable[[Row], str]] = {}
    for some in contrasts:
        if some:
            add_score(columns, some)
    return row_table(headings, rows, columns, keep=tuple(columns))


def add_score(columns: dict[str, Callable[[Row], str]], contrasts: Sequence[Contrast]) -> None:
    """Adds a score and its difference to the columns of a table."""
    endpoint = contrasts[0].endpoint
    columns[endpoint.title] = lambda row: format_score(row.cell, endpoint.score)
    columns[f"{endpoint.title} vs baseline [95 %]"] = differences(contrasts)


def column(
    contrasts: Sequence[Contrast],
    write: Callable[[Contrast], str],
    missing: Callable[[Row], str] = lambda row: "",
) -> Callable[[Row], str]:
    """A table's column that says something about the contrast of each row.

    Args:
      contrasts: of some of the rows.
      missing: what it says of a row that has no contrast.
    """
    by_row = {contrast.row: contrast for contrast in contrasts}
    return lambda row: write(by_row[row]) if row in by_row else missing(row)


def differences(contrasts: Sequence[Contrast]) -> Callable[[Row], str]:
    """The column of mean differences with their intervals."""
    return column(contrasts, lambda c: c.endpoint.write_interval(c.interval), _no_difference)


def format_score(cell: Cell, score: str) -> str:
    """Mean ± standard deviation, or the mean alone of a single seed; shares in percent.

    A score that is a logarithm is written as the geometric mean of the values themselves.
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
