"""Where ZNorm helps: a ResNet, its twin without skip connections, and VGG with and without BatchNorm.

    python -m experiments reproduce znorm_architectures --preset cpu

Expected: test accuracy of the baseline 0.33 to 0.36, on a part of the images; 92 core-minutes by the records.

Yun, "ZNorm: Z-Score Gradient Normalization Accelerating Skip-Connected Network Training without Architectural
Modification", 2024, arXiv 2408.01215, is meant for networks with skip connections and predicts a failure without.
Un-augmented CIFAR-10 in the protocol of Yun 2024, arXiv 2410.21564: 100 epochs, batch 256. With tuned
rates the study `skips` asks the same.
"""

from collections.abc import Sequence
from pathlib import Path

from experiments.records import RunRecord
from experiments.run import Run
from experiments.studies.comparison import Question, write_grid_report
from experiments.studies.grid import ZNORM_ALONE, Size, default_learning_rate, grid
from experiments.studies.overlap_table1 import paper_effect
from experiments.studies.study import Study, settings_table

OPTIMIZERS = ("sgdm", "adam", "rmsprop")

SIZES = {
    "cpu": Size(
        models=("resnet20", "plain20"),
        methods=ZNORM_ALONE,
        epochs=8,
        batch_sizes=(50,),
        seeds=(0, 1, 2, 3, 4),
        train_examples=2_000,
        test_examples=1_000,
    ),
    "full": Size(
        models=("resnet56", "plain56", "vgg16", "vgg16_bn"),
        methods=ZNORM_ALONE,
        epochs=100,
        batch_sizes=(256,),
        seeds=(0, 1, 2),
    ),
}

SIZES["smoke"] = SIZES["cpu"].small()

NOTES = """\
A network `plainN` is the ResNet of depth N without skip connections. The ZNorm paper's summary reports
a test accuracy of 0.812 for ResNet-56 with ZNorm on CIFAR-10, without naming optimizer, learning rate or epochs, so
that the number belongs to no single row. Every learning rate is the same for both methods and was not tuned."""


def paper_effect_with_shortcuts(run: Run) -> float | None:
    """What the paper's table has of residual networks; it has no others."""
    return paper_effect(run) if run.model.startswith("resnet") else None


QUESTION = Question(
    setting="CIFAR-10, one rate for both methods",
    sources={"znorm": "Yun 2024, arXiv 2408.01215"},
    paper_effect=paper_effect_with_shortcuts,
    forest=("znorm",),
)


def make_runs(preset: str, records: Sequence[RunRecord]) -> list[Run]:
    """Every model, optimizer, method and seed."""
    del records
    size = SIZES[preset]
    return grid(
        size.run("cifar10"),
        seed=size.seeds,
        model=size.models,
        optimizer=OPTIMIZERS,
        learning_rate=default_learning_rate,
        method=size.methods,
    )


def make_report(preset: str, records: Sequence[RunRecord], folder: Path) -> None:
    """Writes report.md and one figure of learning curves per model."""
    write_grid_report(
        folder,
        "ZNorm with and without skip connections on CIFAR-10",
        make_runs(preset, records),
        records,
        question=QUESTION,
        settings=settings_table(preset, SIZES),
        notes=NOTES,
    )


STUDY = Study(
    name="znorm_architectures",
    title="ZNorm on a ResNet, its plain twin and VGG-16 (Yun 2024, arXiv 2408.01215)",
    runs=make_runs,
    report=make_report,
    undecided="2,000 images and one rate for both methods; `skips` asks the same with tuned rates and all images",
)
