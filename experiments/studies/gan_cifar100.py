"""GAN on CIFAR-100: AdamW with and without it, beside the other methods.

    python -m experiments reproduce gan_cifar100 --preset cpu

Expected: test accuracy of the baseline about 0.13, on a part of the images; 85 core-minutes by the records.

After Yun, "Insights from Gradient Dynamics: Gradient Autoscaled Normalization", 2025, arXiv 2509.03677.

Crop and flip, 300 epochs, batch 256, learning rate 1e-3 with 5 warm-up epochs and then x 0.75 every 30 epochs,
weight decay 5e-5: the settings of the author's public code of the same month. The paper's accuracies did not
reach us, so there is no column of its numbers.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.records import RunRecord
from experiments.report.contrasts import SMOOTHNESS
from experiments.run import Run
from experiments.studies.comparison import Question, write_grid_report
from experiments.studies.grid import METHODS, Size, grid
from experiments.studies.study import Study, settings_table

SIZES = {
    "cpu": Size(
        models=("resnet20",),
        methods=METHODS,
        epochs=10,
        batch_sizes=(50,),
        seeds=(0, 1, 2, 3, 4),
        train_examples=4_000,
        test_examples=1_000,
    ),
    "full": Size(
        models=("resnet56", "vgg16_bn", "resnet20"),
        methods=METHODS,
        epochs=300,
        batch_sizes=(256,),
        seeds=(0, 1, 2),
    ),
}
SIZES["smoke"] = SIZES["cpu"].small()
FULL_EPOCHS = SIZES["full"].epochs

NOTES = """\
The paper says that GAN "maintained or improved accuracy, particularly on ResNets", with VGG comparable to AdamW; its
numbers did not reach us. A constant multiplier cancels in Adam (up to its epsilon), so under AdamW GAN acts through
its centring and through changes of its multiplier over time. The multiplier's formula is this project's own."""


QUESTION = Question(
    setting="CIFAR-100, AdamW",
    axes=("model", "method"),
    sources={"gan": "Yun 2025, arXiv 2509.03677: it is kept"},
    headline={"method": "gan", "model": "resnet20"},
    forest=("gan", "znorm", "centralization"),
    scores=(SMOOTHNESS,),
)


def base_run(size: Size, **settings: Any) -> Run:
    """The first run by the paper's protocol; warm-up and steps shrink with the number of epochs."""
    return size.run(
        "cifar100",
        optimizer="adamw",
        learning_rate=1e-3,
        schedule="step",
        warmup_epochs=5 * size.epochs / FULL_EPOCHS,
        step_epochs=max(1, 30 * size.epochs // FULL_EPOCHS),
        step_factor=0.75,
        weight_decay=5e-5,
        augment="crop_flip",
        **settings,
    )


def make_runs(preset: str, records: Sequence[RunRecord]) -> list[Run]:
    """Every model, method and seed."""
    del records
    size = SIZES[preset]
    return grid(base_run(size), seed=size.seeds, model=size.models, method=size.methods)


def make_report(preset: str, records: Sequence[RunRecord], folder: Path) -> None:
    """Writes report.md and one figure of learning curves."""
    write_grid_report(
        folder,
        "AdamW with gradient normalization on CIFAR-100",
        make_runs(preset, records),
        records,
        question=QUESTION,
        settings=settings_table(preset, SIZES),
        notes=NOTES,
        figures="optimizer",
        panels="model",
    )


STUDY = Study(
    name="gan_cifar100",
    title="AdamW on CIFAR-100 with every method (Yun 2025, arXiv 2509.03677)",
    runs=make_runs,
    report=make_report,
)
