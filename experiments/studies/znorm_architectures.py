"""Where ZNorm helps: a ResNet, its twin without skip connections, and VGG with and without BatchNorm.

Yun, "ZNorm: Z-Score Gradient Normalization Accelerating Skip-Connected Network Training without Architectural
Modification", 2024, arXiv 2408.01215, is meant for networks with skip connections and predicts a failure without.
Un-augmented CIFAR-10 in the protocol of Yun 2024, arXiv 2410.21564: 100 epochs, batch 256.
"""

from collections.abc import Sequence
from pathlib import Path

from experiments.records import RunRecord
from experiments.run import Run
from experiments.studies.grid import write_grid_report
from experiments.studies.study import Size, Study

METHODS = ("baseline", "znorm")
LEARNING_RATES = {"sgdm": 0.01, "adam": 0.001, "rmsprop": 0.001}

SIZES = {
    "smoke": Size(
        models=("resnet8", "plain8"),
        methods=METHODS,
        epochs=2,
        batch_sizes=(50,),
        seeds=(0, 1),
        train_examples=500,
        test_examples=200,
    ),
    "cpu": Size(
        models=("resnet20", "plain20"),
        methods=METHODS,
        epochs=8,
        batch_sizes=(50,),
        seeds=(0, 1, 2, 3, 4),
        train_examples=2_000,
        test_examples=1_000,
    ),
    "full": Size(
        models=("resnet56", "plain56", "vgg16", "vgg16_bn"),
        methods=METHODS,
        epochs=100,
        batch_sizes=(256,),
        seeds=(0, 1, 2),
    ),
}

NOTES = """\
A network `plainN` is the ResNet of depth N without skip connections. The ZNorm paper's summary reports
a test accuracy of 0.812 for ResNet-56 with ZNorm on CIFAR-10, without naming optimizer, learning rate or epochs, so
that the number belongs to no single row. Every learning rate is the same for both methods and was not tuned."""


def make_runs(preset: str, records: Sequence[RunRecord]) -> list[Run]:
    """Every model, optimizer, method and seed."""
    del records
    size = SIZES[preset]
    return [
        Run(
            dataset="cifar10",
            model=model,
            method=method,
            optimizer=optimizer,
            learning_rate=learning_rate,
            epochs=size.epochs,
            batch_size=size.batch_sizes[0],
            seed=seed,
            train_examples=size.train_examples,
            test_examples=size.test_examples,
        )
        for seed in size.seeds
        for model in size.models
        for optimizer, learning_rate in LEARNING_RATES.items()
        for method in size.methods
    ]


def make_report(preset: str, records: Sequence[RunRecord], folder: Path) -> None:
    """Writes report.md and one figure of learning curves per model."""
    write_grid_report(
        folder,
        SIZES[preset].heading("ZNorm with and without skip connections on CIFAR-10", preset, SIZES["full"]),
        make_runs(preset, records),
        records,
        headings=("model", "optimizer", "method"),
        labels=lambda run: (run.model, run.optimizer, run.method),
        figure=lambda run: run.model,
        panel=lambda run: run.optimizer,
        notes=NOTES,
    )


STUDY = Study(
    name="znorm_architectures",
    title="ZNorm on a ResNet, its plain twin and VGG-16 (Yun 2024, arXiv 2408.01215)",
    runs=make_runs,
    report=make_report,
)
