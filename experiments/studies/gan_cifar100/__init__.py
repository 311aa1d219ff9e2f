"""GAN on CIFAR-100 in front of AdamW: accuracy, smoothness, and what the gradients do. Fixed before its runs.

    python -m experiments reproduce gan_cifar100 --preset cpu

The preset `cpu` trains on 10 to 16 million images in ResNet-20, 750,000 a run.

After Yun, "Insights from Gradient Dynamics: Gradient Autoscaled Normalization", 2025, arXiv 2509.03677.
`experiments/results/gan_cifar100/PROTOCOL.md` holds the questions, the contrasts and the rules. AdamW with the rate
0.001 and weight decay 5e-5, crop and flip: the settings of the author's public code of the same month. The raw
gradients are recorded, in front of the method.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from experiments.records import RunRecord
from experiments.report import dynamics, names
from experiments.report.cells import Cell, make_cells, make_rows
from experiments.report.contrasts import ACCURACY, SMOOTHNESS
from experiments.report.findings import Finding
from experiments.report.markdown import markdown_table
from experiments.report.pages import describe_protocol, describe_waiting, write_report
from experiments.report.tables import results_table
from experiments.studies.comparison import Answers, Question, compare_methods
from experiments.studies.gan_cifar100.amplification import amplification_findings, describe_factors
from experiments.studies.gan_cifar100.plan import SIZES, amplified_runs, compared_runs, make_runs, named_runs
from experiments.studies.multipliers import (
    ADAM_STEPS,
    MULTIPLIER_NOTES,
    changes_along,
    multipliers_matter,
    multipliers_table,
)
from experiments.studies.observations import RULES, SOURCE, count_steps, trend_findings
from experiments.studies.study import Study, settings_table
from experiments.studies.trends import (
    AMPLIFICATION_NOTES,
    NOTES,
    Settings,
    amplification_table,
    layer_table,
    summarize,
    trend_table,
)

AXES = ("model", "method")
QUESTION = Question(
    setting="CIFAR-100, AdamW",
    axes=AXES,
    headline={"method": "gan", "model": "resnet20"},
    forest=("gan", "znorm", "layer_centralization"),
    scores=(SMOOTHNESS,),
)
# What the article says of GAN against the optimizer alone; all other comparisons are questions of ours.
SOURCES = {ACCURACY.title: f"{SOURCE}: it is kept", SMOOTHNESS.title: SOURCE}
MULTIPLIER = ("layer_centralization", "gan")  # which differ in GAN's multiplier alone
MULTIPLIER_QUESTION = dataclasses.replace(QUESTION, versus=MULTIPLIER[0], headline=None, forest=())


def make_report(preset: str, records: Sequence[RunRecord], folder: Path) -> None:
    """Writes report.md, findings.json and a figure of the global standard deviation; dynamics.md has the layers."""
    compared = list(make_cells(compared_runs(preset, records), records).values())
    waiting = describe_waiting(compared)
    amplified = [] if waiting else list(make_cells(amplified_runs(preset), records).values())
    findings, results = ([], [waiting]) if waiting else _report_methods(compared, folder)
    if amplified:
        found, sections = _report_amplification(amplified, folder)
        findings += found
        results += ["### ZNorm's amplification in several networks", *sections]
    protocols = dict.fromkeys(describe_protocol(cell.run) for cell in [*compared, *amplified])
    write_report(
        folder,
        "AdamW with gradient normalization on CIFAR-100",
        [*compared, *amplified],
        findings,
        settings=settings_table(preset, SIZES),
        results=results,
        method=[
            "- Questions, endpoints and analysis were fixed before the runs: [PROTOCOL.md](../PROTOCOL.md).\n"
            + "\n".join(f"- Protocol: {words}." for words in protocols),
            RULES,
            NOTES,
            AMPLIFICATION_NOTES,
            MULTIPLIER_NOTES,
        ],
    )


def _report_methods(cells: Sequence[Cell], folder: Path) -> tuple[list[Finding], list[str]]:
    """Findings and Markdown of the compared methods, whose runs have all ended."""
    answers = compare_methods(cells, QUESTION)
    of_multiplier = compare_methods(
        [cell for cell in cells if cell.run.method in MULTIPLIER], MULTIPLIER_QUESTION
    )
    recorded = {
        (cell.run.model, cell.run.method): dynamics.read_all(folder / "records", _finished(cell))
        for cell in cells
    }
    summaries = _summarize(cells, folder)
    steps = {cell.run.model: count_steps(cell.run) for cell in cells}
    run = cells[0].run
    changes = changes_along(recorded, max(1, ADAM_STEPS * run.epochs // count_steps(run)))
    panels = {
        names.model(model): {method: runs for (name, method), runs in recorded.items() if name == model}
        for model in steps
    }
    title = f"Raw gradients of all layers together, CIFAR-100, AdamW, {len(cells[0].ended)} seeds"
    dynamics.draw_global(folder / "global_std.svg", title, panels)
    findings = [
        *map(_with_source, answers.findings),
        *of_multiplier.findings,
        *trend_findings(summaries, steps, headline=(run.model, "baseline")),
        *multipliers_matter(changes),
    ]
    sections = [
        *answers.tables(),
        "### GAN beside the centring alone",
        _multiplier_table(of_multiplier),
        "### Gradients",
        trend_table(summaries),
        "![Global standard deviation over epochs, per method](global_std.svg)\n\n"
        "Lines: geometric means over seeds; bands: lowest to highest seed. Runs that diverged are not drawn.",
        layer_table(summaries),
        "Deviations of all layers: [dynamics.md](dynamics.md).",
        "### GAN's multiplier",
        multipliers_table(changes),
    ]
    return findings, sections


def _with_source(finding: Finding) -> Finding:
    """The finding with who claims it: the article, of GAN's accuracy and smoothness alone."""
    endpoint = finding.question.removesuffix(" against the baseline").lower()
    source = SOURCES.get(endpoint, "") if finding.label == names.METHODS["gan"] else ""
    return dataclasses.replace(finding, source=source)


def _multiplier_table(answers: Answers) -> str:
    """Markdown: what GAN's multiplier does to every endpoint, network by network."""
    rows = [["network", "GAN against the centring alone", "difference or ratio [95 %]", "verdict"]]
    for contrasts in answers.contrasts.values():
        for c in contrasts:
            labels = names.labels(c.row.cell.run, AXES[:1])
            rows.append([*labels, c.endpoint.title, c.endpoint.write_interval(c.interval), c.word])
    return markdown_table(rows, aligned_left=(True, True, False, True))


def _report_amplification(cells: Sequence[Cell], folder: Path) -> tuple[list[Finding], list[str]]:
    """The same of the networks that are compared by what ZNorm would do to their gradients."""
    if waiting := describe_waiting(cells):
        return [], [waiting]
    summaries = _summarize(cells, folder)
    found = amplification_findings(summaries, count_steps(cells[0].run))
    return found, [
        describe_factors(found),
        amplification_table(summaries),
        "Accuracies, which are not compared:",
        results_table(names.headings(AXES), make_rows(cells, AXES)),
    ]


def _summarize(cells: Sequence[Cell], folder: Path) -> Settings:
    """Every run's gradients in a few numbers, by network and method."""
    return {
        (cell.run.model, cell.run.method): [
            summarize(run, cell.run.warmup_epochs)
            for run in dynamics.read_all(folder / "records", _finished(cell))
        ]
        for cell in cells
    }


def _finished(cell: Cell) -> list[RunRecord]:
    """Those whose gradients count: one that diverged has no last epoch to compare."""
    return [record for record in cell.ended.values() if record.status == "finished"]


STUDY = Study(
    name="gan_cifar100",
    title="GAN and AdamW on CIFAR-100, and what the gradients do (Yun 2025, arXiv 2509.03677; see its PROTOCOL.md)",
    runs=make_runs,
    report=make_report,
    named=named_runs,
)
