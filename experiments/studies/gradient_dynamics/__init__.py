"""What the gradients do while networks train: trends per layer and globally, and ZNorm's amplification.

    python -m experiments reproduce gradient_dynamics --preset cpu

Expected: test accuracy of the baseline 0.03 to 0.05, after few steps; 92 core-minutes by the records.

After Yun, "Insights from Gradient Dynamics: Gradient Autoscaled Normalization", 2025, arXiv 2509.03677, which
observes that the standard deviation of some layers' gradients rises and that of others falls, that the global
one falls consistently, and that dividing by the small ones amplifies, especially in VGG.

CIFAR-100 with crop and flip, AdamW with learning rate 1e-3 and weight decay 5e-5, 5 of 300 epochs warm-up and then
x 0.75 every 30 epochs: the settings of the author's public code of the same month. The raw gradients are recorded,
in front of the method.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.records import RunRecord
from experiments.report import dynamics, names
from experiments.report.cells import make_cells, make_rows
from experiments.report.pages import describe_protocol, write_report
from experiments.report.tables import results_table
from experiments.run import Run
from experiments.studies.gan_cifar100 import base_run
from experiments.studies.gradient_dynamics.observations import RULES, dynamics_findings
from experiments.studies.gradient_dynamics.trends import (
    AMPLIFICATION_NOTES,
    NOTES,
    amplification_table,
    layer_table,
    summarize,
    trend_table,
)
from experiments.studies.grid import NORMALIZERS, Size, grid
from experiments.studies.study import Study, settings_table

SIZES = {
    "cpu": Size(
        models=("resnet20", "resnet56", "vgg16_bn"),
        methods=NORMALIZERS,
        epochs=10,
        batch_sizes=(50,),
        seeds=(0, 1, 2, 3, 4),
        train_examples=1_000,
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
SIZES["smoke"] = SIZES["cpu"].small(models=("resnet8",), epochs=6, train_examples=100, test_examples=100)
AXES = ("model", "method")
# On a CPU, VGG-16 costs about eight times as much per image as ResNet-20.
SMALLER: dict[tuple[str, str], dict[str, Any]] = {("cpu", "vgg16_bn"): {"train_examples": 500}}
FULL_IMAGES = 50_000  # of CIFAR-100


def make_runs(preset: str, records: Sequence[RunRecord]) -> list[Run]:
    """Every model, method and seed."""
    del records
    size = SIZES[preset]
    base = base_run(size, dynamics=True)
    runs = grid(base, seed=size.seeds, model=size.models, method=size.methods)
    return [dataclasses.replace(run, **SMALLER.get((preset, run.model), {})) for run in runs]


def make_report(preset: str, records: Sequence[RunRecord], folder: Path) -> None:
    """Writes report.md and a figure of the global standard deviation; dynamics.md has the layers."""
    cells = make_cells(make_runs(preset, records), records)
    recorded = {
        (cell.run.model, cell.run.method): dynamics.read_all(folder / "records", cell.ended.values())
        for cell in cells.values()
    }
    warmup = max(cell.run.warmup_epochs for cell in cells.values())
    summaries = {setting: [summarize(seed, warmup) for seed in seeds] for setting, seeds in recorded.items()}

    models = dict.fromkeys(model for model, _ in recorded)
    panels = {names.model(name): {m: recorded[name, m] for m in NORMALIZERS} for name in models}
    title = f"Raw gradients of all layers together, CIFAR-100, AdamW, {len(SIZES[preset].seeds)} seeds"
    dynamics.draw_global(folder / "global_std.svg", title, panels)
    rows = make_rows(cells.values(), AXES)
    protocols = dict.fromkeys(
        f"- Protocol of {names.model(cell.run.model)}: {describe_protocol(cell.run)}."
        for cell in cells.values()
    )
    missing = sum(len(cell.ended) for cell in cells.values()) - sum(map(len, recorded.values()))
    steps = {
        name: max(
            cell.run.epochs * (cell.run.train_examples or FULL_IMAGES) // cell.run.batch_size
            for cell in cells.values()
            if cell.run.model == name
        )
        for name in models
    }
    results = [
        *([f"**{missing} runs have a record but no gradient statistics.**"] if missing else []),
        trend_table(summaries),
        "![Global standard deviation over epochs, per method](global_std.svg)\n\n"
        "Lines: geometric means over seeds; bands: lowest to highest seed.",
        "### ZNorm's amplification",
        amplification_table(summaries),
        "Heat maps of all layers and the amplification of each: [dynamics.md](dynamics.md).",
        "### Layers that rise or fall in every run",
        layer_table(summaries),
        "### Accuracy",
        results_table(names.headings(AXES), rows),
    ]
    write_report(
        folder,
        "What gradients do during training on CIFAR-100",
        list(cells.values()),
        dynamics_findings(summaries, steps, _unequal(preset)),
        settings=settings_table(preset, SIZES),
        results=results,
        method=["\n".join(protocols), _describe_unequal(preset), RULES, NOTES, AMPLIFICATION_NOTES],
    )


def _unequal(preset: str) -> str:
    """Which network trained on fewer images than the others."""
    return "; ".join(
        f"{names.model(model)} trained on {changes['train_examples']:,} images, the others on "
        f"{SIZES[preset].train_examples:,}"
        for (name, model), changes in SMALLER.items()
        if name == preset
    )


def _describe_unequal(preset: str) -> str:
    unequal = _unequal(preset)
    return f"Between networks these numbers do not compare like with like: {unequal}." if unequal else ""


STUDY = Study(
    name="gradient_dynamics",
    title="Standard deviations of gradients per layer and epoch (Yun 2025, arXiv 2509.03677)",
    runs=make_runs,
    report=make_report,
)
