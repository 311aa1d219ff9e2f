"""The main job: every method behind every optimizer, with seeds, on one data set and one model."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from experiments.records import RunRecord
from experiments.report.cells import Cell, Row, make_cells, make_rows, mean_and_std
from experiments.report.curves import add_learning_curves
from experiments.report.pages import describe_protocol, write_report
from experiments.report.tables import format_difference, format_number, format_score, remarks, results_table
from experiments.run import RESIZED_CROP, Run

METHODS = ("baseline", "centralization", "clipping", "znorm", "gan")
OPTIMIZERS = ("sgdm", "adam")

# One for all methods, so that the methods are compared and not their tuning.
LEARNING_RATES = {"sgdm": 0.01, "adam": 0.001, "adamw": 0.001, "rmsprop": 0.001, "lars": 1.0, "lamb": 0.01}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What `python -m experiments compare` trains: one run per method, optimizer and seed."""

    dataset: str
    model: str
    methods: tuple[str, ...]
    optimizers: tuple[str, ...]
    seeds: tuple[int, ...]
    epochs: int
    batch_size: int
    learning_rate: float | None
    train_examples: int | None = None

    @property
    def runs(self) -> list[Run]:
        """All runs, one seed after the other."""
        return [
            Run(
                dataset=self.dataset,
                model=self.model,
                method=method,
                optimizer=optimizer,
                learning_rate=self.learning_rate or LEARNING_RATES[optimizer],
                epochs=self.epochs,
                batch_size=self.batch_size,
                seed=seed,
                train_examples=self.train_examples,
                augment=RESIZED_CROP if self.dataset.startswith("jpeg:") else "none",
            )
            for seed in self.seeds
            for optimizer in self.optimizers
            for method in self.methods
        ]


def make_table_rows(comparison: Comparison, records: Sequence[RunRecord]) -> list[Row]:
    """One row per optimizer and method; a method's baseline has the same optimizer."""
    cells = make_cells(comparison.runs, records).values()
    return make_rows(cells, lambda run: (run.optimizer, run.method))


def terminal_table(rows: Sequence[Row]) -> Table:
    """The table for the terminal: 80 columns."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("optimizer", overflow="fold")
    table.add_column("method", overflow="fold")
    for heading in ("test accuracy", "train loss", "vs baseline [95 %]"):
        table.add_column(heading, justify="right", overflow="fold")
    for i, row in enumerate(rows):
        table.add_row(
            *row.labels,
            format_score(row.cell),
            format_number(mean_and_std(row.cell.losses)[0], ".2e"),
            escape(format_difference(row)),
            end_section=i + 1 < len(rows) and rows[i + 1].labels[0] != row.labels[0],
        )
    return table


def terminal_remarks(rows: Sequence[Row]) -> list[str]:
    """What the table does not show: runs that diverged, are missing or failed."""
    return [f"{' '.join(row.labels)}: {text}" for row in rows if (text := remarks(row.cell))]


def write(comparison: Comparison, records: Sequence[RunRecord], folder: Path) -> list[Row]:
    """Writes report.md and the figure of the learning curves into a folder.

    Args:
      comparison: what was to be trained.
      records: what was trained.
      folder: where to.

    Returns:
      The rows of the table.
    """
    rows = make_table_rows(comparison, records)
    panels: dict[str, list[Cell]] = {}
    for row in rows:
        panels.setdefault(row.labels[0], []).append(row.cell)
    title = f"{comparison.model} on {comparison.dataset.partition(':')[0]}"
    figure = add_learning_curves(folder, "learning_curves", title, panels)
    protocol = f"Protocol of every row: {describe_protocol(comparison.runs[0])}."
    table = results_table(("optimizer", "method"), rows)
    write_report(folder, f"Comparison: {title}", [row.cell for row in rows], [protocol, table, figure])
    return rows
