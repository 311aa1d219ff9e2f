"""What gradients do as the training loss goes to 0, and whether ZNorm becomes unstable there.

    python -m experiments reproduce gradient_convergence --preset cpu

Expected: test accuracy of the baseline about 0.10, training loss about 0.01; 9 runs of 22 core-minutes on an AMD
EPYC of the third generation. Each run uses one core.

`experiments/results/gradient_convergence/PROTOCOL.md` holds the questions and the analysis, fixed before the runs:
few images that are not augmented, many epochs at a constant learning rate, and the raw gradients recorded.

After Yun, "Insights from Gradient Dynamics: Gradient Autoscaled Normalization", 2025, arXiv 2509.03677 (layers rise
and fall, the global standard deviation falls), and Yun, 2024, arXiv 2408.01215 (ZNorm is unstable near convergence).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.records import RunRecord
from experiments.report import dynamics, names
from experiments.report.cells import Row, make_cells
from experiments.report.contrasts import FINAL_LOSS, SMOOTHNESS, Contrast
from experiments.report.curves import add_learning_curves
from experiments.report.findings import LEVEL, Finding, judge
from experiments.report.pages import describe_protocol, write_report
from experiments.run import Run
from experiments.studies.comparison import Answers, Question, compare_methods
from experiments.studies.gradient_convergence.leads import describe_leads
from experiments.studies.grid import NORMALIZERS, Size, grid
from experiments.studies.multipliers import (
    ADAM_STEPS,
    MULTIPLIER_NOTES,
    SHAPES,
    Change,
    Multiplier,
    changes_along,
    matters_little,
    multipliers_matter,
    multipliers_table,
    span,
)
from experiments.studies.observations import count_steps, trend_findings
from experiments.studies.study import Study, settings_table
from experiments.studies.trends import (
    AMPLIFICATION_NOTES,
    NOTES,
    amplification_table,
    summarize,
    trend_table,
)

SIZES = {
    "cpu": Size(
        models=("resnet20",),
        methods=NORMALIZERS,
        epochs=100,
        batch_sizes=(50,),
        seeds=(0, 1, 2),
        train_examples=2_000,
        test_examples=500,
    ),
    "full": Size(
        models=("resnet20", "resnet56", "vgg16_bn"),
        methods=NORMALIZERS,
        epochs=300,
        batch_sizes=(256,),
        seeds=(0, 1, 2),
    ),
}
SIZES["smoke"] = SIZES["cpu"].small(epochs=6, train_examples=100, test_examples=100)
QUESTION = Question(
    setting="CIFAR-100, AdamW, to convergence",
    axes=("model", "method"),
    scores=(SMOOTHNESS,),
    by_protocol=True,
)
COULD_NOT_FAIL = """\
Two rules of the protocol could be passed and not failed. That the global deviation falls: in so few steps a rise
would have been called "cannot be told". That some layers rise while others fall: so are layers that all go one way.
Beside the other studies ([findings](../../../../docs/findings.md)) both are told by rules that can fail, those of
`gan_cifar100`, from the second epoch on."""
SHAPE_AND_EXPONENT = """\
The protocol held the library's multiplier, which has the exponent, against three shapes without it. Where these four
differ, it can be the exponent and not the shape: the two questions that tell them apart were asked after the runs.
Each is contradicted where two multipliers differ by more than 10 % in how they change."""
UNSTABLE = "Yun 2024, arXiv 2408.01215, of ZNorm"


def make_runs(preset: str, records: Sequence[RunRecord]) -> list[Run]:
    """Every model, method and seed."""
    del records
    size = SIZES[preset]
    base = size.run("cifar100", optimizer="adamw", learning_rate=1e-3, weight_decay=5e-5, dynamics=True)
    return grid(base, seed=size.seeds, model=size.models, method=size.methods)


def make_report(preset: str, records: Sequence[RunRecord], folder: Path) -> None:
    """Writes report.md and learning curves; dynamics.md has the layers."""
    cells = make_cells(make_runs(preset, records), records)
    recorded = {
        (cell.run.model, cell.run.method): dynamics.read_all(folder / "records", cell.ended.values())
        for cell in cells.values()
    }
    summaries = {setting: [summarize(run) for run in runs] for setting, runs in recorded.items()}
    steps = {cell.run.model: count_steps(cell.run) for cell in cells.values()}
    answers = compare_methods(cells.values(), QUESTION)
    run = next(iter(cells))
    changes = changes_along(recorded, max(1, ADAM_STEPS * run.epochs // count_steps(run)))
    panels = {
        names.model(model): [cell for cell in cells.values() if cell.run.model == model] for model in steps
    }
    options = {"headline": ("resnet20", "baseline"), "regime": f"{run.epochs} epochs"}
    findings, own_findings = (
        [
            *_instability(answers),
            *trend_findings(summaries, steps, by_protocol=own, **options),
            *_multipliers(changes),
            *(answers.own_findings if own else answers.findings),
        ]
        for own in (False, True)
    )
    write_report(
        folder,
        "What gradients do as the training loss goes to 0",
        list(cells.values()),
        findings,
        own_findings=own_findings,
        settings=settings_table(preset, SIZES, of_paper=False),
        results=[
            *answers.tables(),
            add_learning_curves(
                folder, "curves", f"CIFAR-100, AdamW, {len(SIZES[preset].seeds)} seeds", panels
            ),
            describe_leads(list(cells.values())),
            "### Gradients",
            trend_table(summaries),
            "Factors by which ZNorm multiplies a layer's gradient, or would:",
            amplification_table(summaries),
            "Deviations of all layers: [dynamics.md](dynamics.md).",
            "### GAN's multiplier",
            multipliers_table(changes),
        ],
        method=[
            "- Questions, endpoints and analysis were fixed before the runs: [PROTOCOL.md](../PROTOCOL.md). "
            "The published runs are a second start of all: [DEVIATIONS.md](../DEVIATIONS.md).\n"
            + "\n".join(f"- Protocol: {words}." for words in dict.fromkeys(map(describe_protocol, cells))),
            COULD_NOT_FAIL,
            NOTES,
            AMPLIFICATION_NOTES,
            MULTIPLIER_NOTES,
            SHAPE_AND_EXPONENT,
        ],
    )


def _multipliers(changes: Mapping[str, Mapping[Multiplier, Change]]) -> list[Finding]:
    """By the protocol's rule, and whether shape and exponent matter, each by itself."""
    found = []
    for model, by_name in changes.items():
        # The library's multiplier, and the other shapes without the exponent that it has.
        (librarys, *_), (_, *others) = (
            [by_name[shape, exponent].within for shape in SHAPES] for exponent in (True, False)
        )
        protocols = [librarys, *others]
        found.append(
            matters_little(
                model,
                "Which multiplier GAN has matters little",
                [protocols],
                f"they change by {span(protocols)} within {ADAM_STEPS:,} steps",
                "the library's has the exponent, the three others do not",
            )
        )
    return [*found, *multipliers_matter(changes)]


def _instability(answers: Answers) -> list[Finding]:
    """Whether training is rougher or ends higher than the baseline's, by the protocol's rule."""
    by_row: dict[Row, list[Contrast]] = {}
    for endpoint in (SMOOTHNESS, FINAL_LOSS):
        for contrast in answers.contrasts[endpoint.score]:
            by_row.setdefault(contrast.row, []).append(contrast)
    return [_judge_instability(*both) for both in by_row.values() if all(c.interval.is_known for c in both)]


def _judge_instability(rough: Contrast, final: Contrast) -> Finding:
    both = (rough, final)
    holds = None
    if any(c.p <= LEVEL and c.interval.mean > 0 for c in both):
        holds = True
    elif all(c.interval.high < c.smallest for c in both):
        holds = False
    run = rough.row.cell.run
    return Finding(
        claim=f"{names.METHODS[run.method]} becomes unstable near convergence: {names.model(run.model)}",
        source=UNSTABLE if run.method == "znorm" else "",
        measured=", ".join(f"{c.endpoint.title} x {c.endpoint.write_interval(c.interval)}" for c in both),
        interval=None,
        verdict=judge(holds),
        group=f"{QUESTION.setting}, {names.model(run.model)}",
        label=names.METHODS[run.method],
        question="Training becomes unstable near convergence",
        headline=run.method == "znorm" and run.model == "resnet20",
    )


STUDY = Study(
    name="gradient_convergence",
    title="What gradients do as the training loss goes to 0",
    runs=make_runs,
    report=make_report,
)
