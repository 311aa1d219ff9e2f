"""The main job: every method with every optimizer, with seeds, on one data set and one model."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from experiments.records import RunRecord
from experiments.report import names
from experiments.report.cells import Cell, Row, make_cells, make_rows, mean_and_std, paired_difference
from experiments.report.contrasts import ACCURACY
from experiments.report.curves import add_learning_curves
from experiments.report.pages import describe_protocol, write_report
from experiments.report.tables import format_number, format_score, remarks
from experiments.run import RESIZED_CROP, Run
from experiments.studies.comparison import Question, compare_methods
from experiments.studies.grid import Size, default_learning_rate, grid
from experiments.studies.study import Study

AXES = ("optimizer", "method")


def make_study(
    dataset: str,
    model: str,
    methods: Sequence[str],
    optimizers: Sequence[str],
    seeds: Sequence[int],
    epochs: int,
    batch_size: int,
    learning_rate: float | None = None,
    train_examples: int | None = None,
) -> Study:
    """The study that `python -m experiments compare` makes of its arguments: one run per method, optimizer and seed.

    It has one size, whatever the preset.
    """
    size = Size(
        models=(model,),
        methods=tuple(methods),
        epochs=epochs,
        batch_sizes=(batch_size,),
        seeds=tuple(seeds),
        train_examples=train_examples,
    )
    runs = grid(
        size.run(dataset, augment=RESIZED_CROP if dataset.startswith("jpeg:") else "none"),
        seed=size.seeds,
        optimizer=optimizers,
        learning_rate=default_learning_rate if learning_rate is None else (learning_rate,),
        method=size.methods,
    )
    return _study(lambda records: runs)


def study_of_records() -> Study:
    """The study of the runs that records hold, however they were asked for: publishes and reports them."""
    optimizers, methods = list(names.OPTIMIZERS), list(names.METHODS)
    study = _study(
        lambda records: sorted(
            (record.run for record in records),
            key=lambda run: (optimizers.index(run.optimizer), methods.index(run.method), run.seed),
        )
    )
    return dataclasses.replace(study, named=lambda preset, records: _of_first_command(records))


def _of_first_command(records: Sequence[RunRecord]) -> list[Run]:
    """The runs that one command can have asked for together with the first record's."""

    def shared(run: Run) -> Run:
        return dataclasses.replace(
            run, method="baseline", optimizer="sgdm", learning_rate=1.0, seed=0, dynamics=False
        )

    rates: dict[str, float] = {}
    for record in records:
        if shared(record.run) == shared(records[0].run):
            rates.setdefault(record.run.optimizer, record.run.learning_rate)
    return [
        record.run
        for record in records
        if shared(record.run) == shared(records[0].run)
        and record.run.learning_rate == rates[record.run.optimizer]
    ]


def _study(runs: Callable[[Sequence[RunRecord]], Sequence[Run]]) -> Study:
    return Study(
        name="compare",
        title="Every method with every optimizer on one data set",
        runs=lambda preset, records: list(runs(records)),
        report=lambda preset, records, folder: _write(runs(records), records, folder),
    )


def make_table_rows(runs: Sequence[Run], records: Sequence[RunRecord]) -> list[Row]:
    """One row per optimizer and method; a method's baseline has the same optimizer."""
    return make_rows(make_cells(runs, records).values(), AXES)


def terminal_table(rows: Sequence[Row]) -> Table:
    """The table for the terminal: 80 columns."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("optimizer", overflow="fold")
    table.add_column("method", overflow="fold")
    for heading in ("test accuracy, %", "vs baseline [95 %]", "train loss"):
        table.add_column(heading, justify="right", overflow="fold")
    for i, row in enumerate(rows):
        difference = ""
        if row.baseline is not None:
            difference = ACCURACY.write_interval(paired_difference(row.cell, row.baseline))
        table.add_row(
            *row.labels,
            format_score(row.cell, "final_accuracy"),
            escape(difference),
            format_number(mean_and_std(row.cell.losses)[0], ".2e"),
            end_section=i + 1 < len(rows) and rows[i + 1].labels[0] != row.labels[0],
        )
    return table


def terminal_remarks(rows: Sequence[Row]) -> list[str]:
    """What the table does not show: runs that diverged, are missing or failed."""
    return [f"{' '.join(row.labels)}: {text}" for row in rows if (text := remarks(row.cell))]


def _write(runs: Sequence[Run], records: Sequence[RunRecord], folder: Path) -> None:
    """Writes report.md and the figure of the learning curves."""
    cells = list(make_cells(runs, records).values())
    panels: dict[str, list[Cell]] = {}
    for cell in cells:
        panels.setdefault(names.OPTIMIZERS[cell.run.optimizer], []).append(cell)
    title = f"{names.model(runs[0].model)} on {names.dataset(runs[0].data_name)}"
    answers = compare_methods(cells, Question(setting=title, axes=AXES))
    figure_title = f"{title}, {len({run.seed for run in runs})} seeds"
    write_report(
        folder,
        f"Every method: {title}",
        cells,
        answers.findings,
        results=[
            *answers.tables(),
            add_learning_curves(folder, "learning_curves", figure_title, panels),
        ],
        method=[f"Protocol of every row: {describe_protocol(runs[0])}."],
        keep_findings=False,
    )
