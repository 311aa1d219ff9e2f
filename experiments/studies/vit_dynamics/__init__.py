"""Gradients of a Vision Transformer under AdamW: which part of a block's rise and fall, and does a normalizer help?

    python -m experiments reproduce vit_dynamics --preset cpu

Expected: test accuracy about 0.17. A tuning run (36 of them) takes 6 core-minutes and a reported one (15) 27 on an
AMD EPYC of 2 GHz, or 14 on a newer one. The records hold 9.4 core-hours of both; the pilot, on a faster
machine, promised 4. Each run uses one core.

`experiments/results/vit_dynamics/PROTOCOL.md` holds the questions, the endpoints and the analysis, fixed before the
runs. CIFAR-100 with crop and flip, AdamW with weight decay 0.05, a warm-up and a cosine to 0. Every method gets the
same grid of learning rates, on seeds that are not reported, by accuracy on training images that are held out; where
the best rate is the last of its grid, the grid grows. The raw gradients of the reported runs are recorded, in front
of the method. Yun, arXiv 2509.03677, leaves Vision Transformers to future work.
"""

from collections.abc import Sequence
from pathlib import Path

from experiments.records import RunRecord
from experiments.report import dynamics, names
from experiments.report.cells import Cell, make_cells
from experiments.report.curves import add_learning_curves, describe_setting
from experiments.report.findings import Finding
from experiments.report.pages import describe_protocol, describe_waiting, write_report
from experiments.run import Run
from experiments.studies.comparison import Question, compare_methods
from experiments.studies.grid import NORMALIZERS, Size, grid, rates_of
from experiments.studies.study import Study, settings_table
from experiments.studies.tuning import TUNING_SEEDS, Tuning
from experiments.studies.vit_dynamics.parts import (
    PARTS_NOTES,
    block_table,
    describe_after_warmup,
    find_global,
    global_table,
    part_table,
)

METHODS = ("baseline", "centralization", "clipping_1", "znorm", "gan")
WARMUP = 1 / 8  # of the epochs
GRID = {"adamw": (3e-4, 1e-3, 3e-3)}
QUESTION = Question(
    setting="CIFAR-100, AdamW",
    axes=("model", "method"),
    smallest_speed=0.02,  # fixed in PROTOCOL.md, as is one point of accuracy
    headline={"method": "gan"},
    forest=("znorm", "gan", "centralization"),
    by_protocol=True,
)

DONE_OTHERWISE = {
    "cpu": """\
Deviations from the protocol: two earlier sets of these runs, neither of them complete, do not count. The first, on
an NVIDIA H200, had ended the tuning and four reported runs of clipping and ZNorm; the second, on a CPU with the
tuning of the first, six of clipping and ZNorm. No run of the baseline had ended, and nothing had been compared. The
records of both were lost. All runs were made again on CPUs, with the same seeds: those of the tuning, clipping and
ZNorm on one processor, those of the baseline, centralization and GAN on a faster one, so that seconds per epoch
cannot be compared and sums are rounded in other ways. They took 9.4 core-hours, not the 4 that the protocol
expects."""
}

SIZES = {
    "cpu": Size(
        models=("vit96_small_stacked",),
        methods=METHODS,
        epochs=8,
        batch_sizes=(50,),
        seeds=(0, 1, 2),
        train_examples=9_000,
        tuning_epochs=4,
        validation_examples=5_000,
        tuning_examples=3_600,
    ),
    "full": Size(
        models=("vit192_small_stacked",),
        methods=METHODS,
        epochs=100,
        batch_sizes=(128,),
        seeds=(0, 1, 2, 3, 4),
        tuning_epochs=20,
        validation_examples=5_000,
        tuning_examples=None,
    ),
}
SIZES["smoke"] = SIZES["cpu"].small(
    methods=NORMALIZERS,
    epochs=6,
    train_examples=100,
    test_examples=100,
    tuning_examples=100,
)


def make_runs(preset: str, records: Sequence[RunRecord]) -> list[Run]:
    """The tuning, and the reported runs of every method whose tuning has ended."""
    return [*_tuning(preset).runs(records), *_reported_runs(preset, records)]


def _tuning(preset: str) -> Tuning:
    size = SIZES[preset]
    base = size.run(
        "cifar100",
        optimizer="adamw",
        learning_rate=1.0,
        schedule="cosine",
        warmup_epochs=WARMUP * size.epochs,
        weight_decay=0.05,
        augment="crop_flip",
        dynamics=True,
    )
    return Tuning(
        grid(base, model=size.models, method=size.methods),
        rates_of(preset, GRID),
        QUESTION.axes,
        TUNING_SEEDS,
        changes={
            "epochs": size.tuning_epochs,
            "warmup_epochs": WARMUP * size.tuning_epochs,
            "train_examples": size.tuning_examples,
            # Validation images take the place of the test images.
            "validation_examples": size.validation_examples,
            "test_examples": None,
            "dynamics": False,
        },
        extend=preset != "smoke",
    )


def _reported_runs(preset: str, records: Sequence[RunRecord]) -> list[Run]:
    return _tuning(preset).reported(records, SIZES[preset].seeds)


def make_report(preset: str, records: Sequence[RunRecord], folder: Path) -> None:
    """Writes report.md, findings.json, the learning curves and a figure of the global standard deviation."""
    tuning = _tuning(preset)
    tried = tuning.cells(records)
    cells = make_cells(_reported_runs(preset, records), records)
    findings, own_findings, results = [], [], []
    for model in SIZES[preset].models:
        of_model = [cell for cell in cells.values() if cell.run.model == model]
        found, own, sections = _report_model(model, SIZES[preset].methods, of_model, folder)
        findings += found
        own_findings += own
        results += sections
    write_report(
        folder,
        "Gradients of a Vision Transformer on CIFAR-100",
        [*tried, *cells.values()],
        findings,
        own_findings=own_findings,
        settings=settings_table(preset, SIZES, of_paper=False),
        results=results,
        method=[
            "- Questions, endpoints and analysis were fixed before the runs: [PROTOCOL.md](../PROTOCOL.md).\n"
            + "\n".join(f"- Protocol: {p}." for p in dict.fromkeys(describe_protocol(run) for run in cells)),
            *([DONE_OTHERWISE[preset]] if preset in DONE_OTHERWISE else []),
            PARTS_NOTES,
            "Tuning: validation accuracy of every learning rate, in percent "
            f"({describe_protocol(tried[0].run)}; seeds {', '.join(map(str, TUNING_SEEDS))}).",
            tuning.table(records),
        ],
    )


def _report_model(
    model: str, methods: Sequence[str], cells: Sequence[Cell], folder: Path
) -> tuple[list[Finding], list[Finding], list[str]]:
    """Findings, the same in the protocol's words, and Markdown of everything about one network."""
    name = names.model(model)
    if len(cells) < len(methods):
        return (
            [],
            [],
            [f"{name} is not tuned for every method yet. Nothing is compared before all runs have ended."],
        )
    if waiting := describe_waiting(cells):
        return [], [], [waiting]
    recorded = {c.run.method: dynamics.read_all(folder / "records", c.ended.values()) for c in cells}
    recorded = {method: seeds for method, seeds in recorded.items() if seeds}
    answers = compare_methods(cells, QUESTION)
    figure = f"global_std_{model}"
    title = describe_setting(cells[0], "AdamW")
    dynamics.draw_global(folder / f"{figure}.svg", title, {"all layers together": recorded})
    sections = [
        f"### Accuracy and speed: {name}",
        *answers.tables(),
        add_learning_curves(folder, f"curves_{model}", title, {"AdamW": cells}),
        "### Gradients of all layers together",
        global_table(recorded),
        describe_after_warmup(recorded),
        f"![Global standard deviation over epochs, per method]({figure}.svg)",
        "### Gradients by kind of layer",
        part_table(recorded),
        "### The baseline's gradients from block to block",
        block_table(recorded.get("baseline", [])),
    ]
    findings = [*answers.findings, *find_global(name, recorded)]
    return findings, [*answers.own_findings, *find_global(name, recorded, own=True)], sections


STUDY = Study(
    name="vit_dynamics",
    title="Gradients of a Vision Transformer, part by part, and every method in front of AdamW (see its PROTOCOL.md)",
    runs=make_runs,
    report=make_report,
)
