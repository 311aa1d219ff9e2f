"""Gradients of a Vision Transformer under AdamW: which part of a block's rise and fall, and does a normalizer help?

    python -m experiments reproduce vit_dynamics --preset cpu

Expected, from a pilot: test accuracy about 0.18; about 230 core-minutes (tuning 80, the reported runs 150), one core
for each run.

`experiments/results/vit_dynamics/PROTOCOL.md` holds the questions, the endpoints and the analysis, fixed before the
runs. CIFAR-100 with crop and flip, AdamW with weight decay 0.05, a warm-up and a cosine to 0. Every method gets the
same grid of learning rates, on seeds that are not reported, by accuracy on training images that are held out; where
the best rate is the last of its grid, the grid grows. The raw gradients of the reported runs are recorded, in front
of the method. Yun, arXiv 2509.03677, leaves Vision Transformers to future work.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from experiments.records import RunRecord
from experiments.report import dynamics
from experiments.report.cells import make_cells, make_rows
from experiments.report.curves import add_learning_curves
from experiments.report.pages import describe_protocol, write_report
from experiments.report.tables import results_table
from experiments.run import Run
from experiments.studies.study import Size, Study, make_heading
from experiments.studies.tuning import extend_grids, make_tuning_runs, tune, tuning_table
from experiments.studies.vit_dynamics.contrasts import CONTRASTS_NOTES, contrasts_table
from experiments.studies.vit_dynamics.parts import (
    PARTS_NOTES,
    block_table,
    describe_global,
    global_table,
    part_table,
)

METHODS = ("baseline", "centralization", "clipping_1", "znorm", "gan")
TUNING_SEEDS = (100, 101)  # none of them is reported
WARMUP = 1 / 8  # of the epochs
GRID = {"adamw": (3e-4, 1e-3, 3e-3)}
GRIDS = {"smoke": {"adamw": (3e-4, 1e-3)}, "cpu": GRID, "full": GRID}


@dataclasses.dataclass(frozen=True)
class VitSize(Size):
    """How large a preset is.

    Attributes:
      tuning_examples: training images of the runs that choose a learning rate; None takes all that are left.
      growing_grids: whether a grid grows where its best rate is the last.
    """

    tuning_examples: int | None = None
    growing_grids: bool = True


SIZES = {
    "smoke": VitSize(
        models=("vit96_small_stacked",),
        methods=("baseline", "znorm", "gan"),
        epochs=6,
        batch_sizes=(50,),
        seeds=(0, 1),
        train_examples=100,
        test_examples=100,
        tuning_epochs=1,
        validation_examples=100,
        tuning_examples=100,
        growing_grids=False,
    ),
    "cpu": VitSize(
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
    "full": VitSize(
        models=("vit192_small_stacked",),
        methods=METHODS,
        epochs=100,
        batch_sizes=(128,),
        seeds=(0, 1, 2, 3, 4),
        tuning_epochs=20,
        validation_examples=5_000,
    ),
}


def make_runs(preset: str, records: Sequence[RunRecord]) -> list[Run]:
    """The tuning, and the reported runs of every method whose tuning has ended."""
    return [*_tuning_runs(preset, records), *_reported_runs(preset, records)]


def _settings(preset: str) -> list[Run]:
    """One run of every model and method, with a learning rate that is to be tuned."""
    size = SIZES[preset]
    return [
        Run(
            dataset="cifar100",
            model=model,
            method=method,
            optimizer="adamw",
            learning_rate=1.0,
            epochs=size.epochs,
            batch_size=size.batch_sizes[0],
            seed=size.seeds[0],
            schedule="cosine",
            warmup_epochs=WARMUP * size.epochs,
            weight_decay=0.05,
            augment="crop_flip",
            train_examples=size.train_examples,
            test_examples=size.test_examples,
            dynamics=True,
        )
        for model in size.models
        for method in size.methods
    ]


def _tuning_runs(preset: str, records: Sequence[RunRecord]) -> list[Run]:
    size = SIZES[preset]
    runs = make_tuning_runs(
        _settings(preset),
        GRIDS[preset],
        TUNING_SEEDS,
        epochs=size.tuning_epochs,
        warmup_epochs=WARMUP * size.tuning_epochs,
        train_examples=size.tuning_examples,
        # Validation images take the place of the test images.
        validation_examples=size.validation_examples,
        test_examples=None,
        dynamics=False,
    )
    return extend_grids(runs, records, _setting) if size.growing_grids else runs


def _reported_runs(preset: str, records: Sequence[RunRecord]) -> list[Run]:
    tuned = tune(_settings(preset), _tuning_runs(preset, records), records, _setting)
    return [dataclasses.replace(run, seed=seed) for run in tuned for seed in SIZES[preset].seeds]


def _setting(run: Run) -> tuple[str, str]:
    return run.model, run.method


def make_report(preset: str, records: Sequence[RunRecord], folder: Path) -> None:
    """Writes report.md, the learning curves and a figure of the global standard deviation."""
    tuning = make_cells(_tuning_runs(preset, records), records)
    cells = make_cells(_reported_runs(preset, records), records)
    sections = [
        "- Questions, endpoints and analysis were fixed before the runs: [PROTOCOL.md](../PROTOCOL.md).",
        *(_report_model(model, cells.values(), folder) for model in SIZES[preset].models),
        "## Tuning: validation accuracy of every learning rate",
        f"Protocol: {describe_protocol(next(iter(tuning)))}; seeds {', '.join(map(str, TUNING_SEEDS))}.",
        tuning_table(("model", "method"), tuning.values(), _setting),
    ]
    heading = make_heading("Vision Transformers on CIFAR-100", preset, SIZES[preset], SIZES["full"])
    write_report(folder, heading, [*tuning.values(), *cells.values()], sections)


def _report_model(model: str, cells, folder: Path) -> str:
    """Markdown of everything about one network."""
    cells = [cell for cell in cells if cell.run.model == model and cell.ended]
    if not cells:
        return f"No reported run of {model} has ended yet."
    recorded = {c.run.method: dynamics.read_all(folder / "records", c.ended.values()) for c in cells}
    recorded = {method: seeds for method, seeds in recorded.items() if seeds}
    figure = f"global_std_{model}"
    dynamics.draw_global(folder / figure, "Standard deviation of all layers together", {model: recorded})
    sections = [
        f"## {model}",
        describe_global(recorded),
        f"Protocol: {describe_protocol(cells[0].run)}.",
        "### Accuracy and speed",
        results_table(("model", "method"), make_rows(cells, _setting)),
        CONTRASTS_NOTES,
        contrasts_table(cells),
        add_learning_curves(folder, f"curves_{model}", model, {"AdamW": cells}),
        "### Gradients of all layers together",
        global_table(recorded),
        f"![Global standard deviation over epochs, per method]({figure}.svg)",
        "### Gradients by kind of layer",
        PARTS_NOTES,
        part_table(recorded),
        "### The baseline's gradients from block to block",
        block_table(recorded.get("baseline", [])),
    ]
    return "\n\n".join(section for section in sections if section)


STUDY = Study(
    name="vit_dynamics",
    title="gradients of a Vision Transformer, part by part, and every method in front of AdamW (see its PROTOCOL.md)",
    runs=make_runs,
    report=make_report,
)
