"""When does ZNorm help: in short trainings, with few images, or neither? Fixed before its runs.

    python -m experiments reproduce steps_and_images --preset cpu

The preset `cpu` trains on 45 million images, about 50 core-hours; on a CPU core a run of 390 steps takes four
minutes, one of 1,950 steps twenty.

`experiments/results/steps_and_images/PROTOCOL.md` holds the questions, the contrasts and the rules. In short:
ResNet-20 on CIFAR-10 without augmentation, batch 128, a warm-up over a tenth of the steps and a cosine to 0. In each
cell, which is a number of steps, a number of images and an optimizer, every method's rate is tuned by itself: half
decades that grow at their edges, then a quarter decade on either side of the best, by two unreported seeds.
"""

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from experiments.records import RunRecord
from experiments.report import names
from experiments.report.cells import Cell, make_cells, make_rows
from experiments.report.findings import Finding
from experiments.report.pages import describe_protocol, describe_waiting, write_report
from experiments.run import Run
from experiments.studies.grid import Question, compare_methods
from experiments.studies.steps_and_images.plan import (
    PARTS,
    SIZES,
    TUNING_SEEDS,
    Part,
    make_runs,
    named_runs,
    reported_runs,
    setting,
    tuning_runs,
)
from experiments.studies.study import Study, settings_table
from experiments.studies.tuning import tuning_table

HEADINGS = ("images", "steps", "optimizer", "method")


def make_report(preset: str, records: Sequence[RunRecord], folder: Path) -> None:
    """Writes report.md and findings.json, part by part as far as they have begun."""
    begun = set(make_runs(preset, records))
    everything: list[Cell] = []
    findings: list[Finding] = []
    results: list[str] = []
    method: list[str] = []
    for part in PARTS[preset]:
        runs = [run for run in reported_runs(preset, part, records) if run in begun]
        tuning = [run for run in tuning_runs(preset, part, records) if run in begun]
        cells, tuned = make_cells(runs, records), make_cells(tuning, records)
        everything += [*tuned.values(), *cells.values()]
        if cells:
            found, sections = _report_part(part, list(cells.values()))
            findings += found
            results += sections
        if tuned:
            method += [
                f"Tuning of part {part.name}: validation accuracy of every learning rate, in percent, seeds "
                f"{', '.join(map(str, TUNING_SEEDS))}.",
                tuning_table(HEADINGS, tuned.values(), setting),
            ]
    write_report(
        folder,
        "When does ZNorm help: few steps, or few images?",
        everything,
        findings,
        settings=settings_table(preset, SIZES[preset], SIZES["full"], of_paper=False),
        results=results or ["The tuning of the first part has not ended."],
        method=[
            "- Questions, endpoints and analysis were fixed before the runs: [PROTOCOL.md](../PROTOCOL.md).",
            *method,
        ],
    )


def _report_part(part: Part, cells: Sequence[Cell]) -> tuple[list[Finding], list[str]]:
    """Findings and Markdown of every cell of a part; nothing is compared before all its runs have ended."""
    findings: list[Finding] = []
    sections = [f"### Part {part.name}"]
    if waiting := describe_waiting(cells):
        return findings, [*sections, waiting]
    by_cell: dict[tuple[str, ...], list[Cell]] = {}
    for cell in cells:
        by_cell.setdefault(_labels(cell.run)[:-1], []).append(cell)
    for labels, of_cell in by_cell.items():
        chosen = list(_best_of_each_method(of_cell))
        question = Question(
            setting="CIFAR-10, ResNet-20, tuned rates",
            headline=lambda run: run.method == "znorm",
            forest=lambda run: run.method in ("znorm", "centralization"),
        )
        answers = compare_methods(make_rows(chosen, _labels), question)
        findings += answers.findings
        sections += [
            f"{', '.join(labels)} ({describe_protocol(of_cell[0].run)}):",
            *answers.tables(("images", "steps", "optimizer", "method")),
        ]
        if len(chosen) < len(of_cell):
            sections += ["Test accuracy of every rate:", tuning_table(HEADINGS, of_cell, setting)]
    return findings, sections


def _best_of_each_method(cells: Iterable[Cell]) -> Iterable[Cell]:
    """Where a method has several rates, that of the highest mean accuracy over its seeds; the lower of equal ones."""
    by_method: dict[str, list[Cell]] = {}
    for cell in cells:
        by_method.setdefault(cell.run.method, []).append(cell)
    for some in by_method.values():
        yield max(some, key=lambda cell: (_mean_accuracy(cell), -cell.run.learning_rate))


def _mean_accuracy(cell: Cell) -> float:
    return statistics.fmean(cell.values("accuracy").values())


def _labels(run: Run) -> tuple[str, ...]:
    return (
        f"{run.train_examples:,} images",
        f"{run.steps:,} steps",
        names.OPTIMIZERS[run.optimizer],
        names.METHODS[run.method],
    )


STUDY = Study(
    name="steps_and_images",
    title="When does ZNorm help: few steps, few images? Fixed before its runs (see its PROTOCOL.md)",
    runs=make_runs,
    report=make_report,
    named=named_runs,
)
