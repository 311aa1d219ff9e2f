"""What studies share that compare methods in one protocol."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from experiments.records import RunRecord
from experiments.report.cells import Cell, Row, make_cells, make_rows
from experiments.report.curves import add_learning_curves
from experiments.report.pages import describe_protocol, write_report
from experiments.report.tables import describe_chance, results_table, scores_table
from experiments.run import Run


def write_grid_report(
    folder: Path,
    heading: str,
    runs: Sequence[Run],
    records: Sequence[RunRecord],
    *,
    headings: Sequence[str],
    labels: Callable[[Run], tuple[str, ...]],
    figure: Callable[[Run], str],
    panel: Callable[[Run], str],
    notes: str,
    scores: Mapping[str, str] | None = None,
    paper_accuracy: Callable[[Run], float | None] = lambda run: None,
    describe: Callable[[Sequence[Row]], str] = lambda rows: "",
    tuning: Sequence[Cell] = (),
    tuning_table: str = "",
) -> None:
    """Writes report.md: accuracies, other scores if there are any, and learning curves per `figure`.

    Args:
      folder: where to.
      heading: first line of the report.
      runs: all runs of the study.
      records: what was made.
      headings: of the columns that `labels` gives.
      labels: of a run's row; the last one is the method.
      figure: name of the figure that a run belongs to.
      panel: title of the panel of that figure.
      notes: Markdown before the table.
      scores: columns of the second table and their names in `RunRecord.scores`.
      paper_accuracy: what the paper printed for a run's row, if anything.
      describe: Markdown of what the rows show, after the notes; without it, only how many differences by
        chance are to be expected.
      tuning: cells of the runs that chose the learning rates, if there are any.
      tuning_table: Markdown of what they chose.
    """
    cells = make_cells(runs, records)
    rows = make_rows(cells.values(), labels, lambda run: (paper_accuracy(run), None))
    figures: dict[str, dict[str, list[Cell]]] = {}
    for cell in cells.values():
        figures.setdefault(figure(cell.run), {}).setdefault(panel(cell.run), []).append(cell)
    protocols = dict.fromkeys(describe_protocol(run) for run in runs)
    found = describe(rows)
    sections = [
        "\n".join(f"- Protocol: {protocol}." for protocol in protocols),
        notes,
        found,
        results_table(headings, rows),
        "" if found else describe_chance(rows),
        scores_table(headings, rows, scores) if scores else "",
        *(add_learning_curves(folder, f"curves_{name}", name, panels) for name, panels in figures.items()),
    ]
    if tuning:
        protocol = describe_protocol(tuning[0].run)
        sections += [f"Tuning: accuracy for every learning rate ({protocol}).", tuning_table]
    write_report(folder, heading, [*tuning, *cells.values()], sections)
