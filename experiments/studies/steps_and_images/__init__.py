"""When does ZNorm help: in short trainings, with few images, or neither? Fixed before its runs.

    python -m experiments reproduce steps_and_images --preset cpu

The preset `cpu` trains on 45 million images. The 11 million of its first part took 23 core-hours by their records,
some of them on shared cores; alone on a core a run of 390 steps takes four minutes, one of 1,950 steps twenty.

`experiments/results/steps_and_images/PROTOCOL.md` holds the questions, the contrasts and the rules. In short:
ResNet-20 on CIFAR-10 without augmentation, batch 128, a warm-up over a tenth of the steps and a cosine to 0. In each
cell, which is a number of steps, a number of images and an optimizer, every method's rate is tuned by itself: half
decades that grow at their edges, then a quarter decade on either side of the best, by two unreported seeds.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from experiments.records import RunRecord
from experiments.report import names
from experiments.report.cells import Cell, make_cells
from experiments.report.contrasts import ACCURACY, Contrast
from experiments.report.findings import Finding
from experiments.report.pages import describe_diverged, describe_protocol, describe_waiting, write_report
from experiments.report.sentences import describe
from experiments.report.steps import tell
from experiments.studies.comparison import Question, compare_methods, describe_resolution
from experiments.studies.steps_and_images.answer import answer, dependences_table
from experiments.studies.steps_and_images.plan import (
    AXES,
    PARTS,
    SIZES,
    Part,
    make_runs,
    make_tuning,
    named_runs,
    reported_runs,
)
from experiments.studies.study import Study, settings_table
from experiments.studies.tuning import TUNING_SEEDS, best_cell

CANDIDATES = (
    "The rates are not tuned again: `cifar10_confirm` left two candidates for each method, and the one of the higher "
    "mean test accuracy counts, a choice that sees the test images. Test accuracy of both, in percent:"
)
QUESTION = Question(
    setting="CIFAR-10, {}, tuned rates",
    axes=AXES,
    headline={"method": "znorm"},
    forest=("znorm", "centralization"),
)


def make_report(preset: str, records: Sequence[RunRecord], folder: Path) -> None:
    """Writes report.md and findings.json, part by part as far as they have begun."""
    question = dataclasses.replace(
        QUESTION, setting=QUESTION.setting.format(names.model(SIZES[preset].model))
    )
    begun = set(make_runs(preset, records))
    everything: list[Cell] = []
    reported: list[Cell] = []
    compared: list[Part] = []
    findings: list[Finding] = []
    results: list[str] = []
    method: list[str] = []
    effects: dict[str, dict[tuple[int, int], Contrast]] = {}
    for part in PARTS[preset]:
        tuning = make_tuning(preset, part)
        runs = [run for run in reported_runs(preset, part, records) if run in begun]
        tried = tuning.cells(records)
        cells = make_cells(runs, records)
        if part.rates or not begun.issuperset(tuning.runs()):
            tried = []
        everything += [*tried, *cells.values()]
        reported += cells.values()
        if cells:
            unnamed = max(0, len(part.seeds) * len(tuning.settings) - len(runs))
            contrasts, found, sections = _report_part(part, list(cells.values()), question, unnamed)
            findings += found
            results += sections
            if contrasts:
                compared.append(part)
            if tried:
                differences = {", ".join(c.row.labels): (c.interval.mean, c.cells) for c in contrasts}
                results.append(describe_resolution(differences, tuning, records))
            for contrast in contrasts if part.optimizer == "sgdm" else ():
                run = contrast.row.cell.run
                effects.setdefault(run.method, {})[run.train_examples or 0, run.steps or 0] = contrast
            if part.rates:
                results += [CANDIDATES, tuning.table(records)]
        if any(cell.ended for cell in tried):
            method += [
                f"Tuning of part {part.name}: validation accuracy of every learning rate, in percent, seeds "
                f"{', '.join(map(str, TUNING_SEEDS))}.",
                tuning.table(records),
            ]
    if dependences := dependences_table(effects):
        results += ["### From cell to cell", dependences]
    in_short = "; ".join(f"{setting}: {words}" for setting, words in tell(findings).items())
    head = [answer(effects.get("znorm", {})) or in_short or describe(findings)]
    head.append(describe_diverged(reported, (*AXES, "learning_rate")))
    write_report(
        folder,
        "When does ZNorm help: few steps, or few images?",
        everything,
        findings,
        answer="\n\n".join(filter(None, head)),
        settings=settings_table(preset, SIZES, of_paper=False),
        results=[*results, _describe_turn(preset, compared)],
        method=[
            "- Questions, endpoints and analysis were fixed before the runs: [PROTOCOL.md](../PROTOCOL.md).",
            *method,
        ],
    )


def _describe_turn(preset: str, compared: Sequence[Part]) -> str:
    """Which parts are not compared yet; empty when all are."""
    waiting = list(dict.fromkeys(part.name for part in PARTS[preset] if part not in compared))
    if not waiting:
        return ""
    return f"Not compared yet, as their runs have not ended: part {', '.join(waiting)}."


def _report_part(
    part: Part, cells: Sequence[Cell], question: Question, unnamed: int
) -> tuple[list[Contrast], list[Finding], list[str]]:
    """Accuracies' contrasts, findings and Markdown of a part; nothing is compared before all its runs have ended."""
    contrasts: list[Contrast] = []
    findings: list[Finding] = []
    sections = [f"### Part {part.name}"]
    if waiting := describe_waiting(cells, unnamed):
        return contrasts, findings, [*sections, waiting]
    by_cell: dict[tuple[str, ...], dict[str, list[Cell]]] = {}
    for cell in cells:
        of_cell = by_cell.setdefault(names.labels(cell.run, AXES[:-1]), {})
        of_cell.setdefault(cell.run.method, []).append(cell)
    for labels, by_method in by_cell.items():
        # Of several rates the one of the highest mean accuracy over its seeds counts, with diverged runs or without.
        best = (best_cell(some, "accuracy", diverged_lose=False) for some in by_method.values())
        chosen = [cell for cell in best if cell]
        answers = compare_methods(chosen, question)
        contrasts += answers.contrasts[ACCURACY.score]
        findings += answers.findings
        sections += [f"{', '.join(labels)} ({describe_protocol(chosen[0].run)}):", *answers.tables()]
    return contrasts, findings, sections


STUDY = Study(
    name="steps_and_images",
    title="When does ZNorm help: few steps, few images? Fixed before its runs (see its PROTOCOL.md)",
    runs=make_runs,
    report=make_report,
    named=named_runs,
)
