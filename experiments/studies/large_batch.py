"""ZNorm and GAN in front of LARS and LAMB as the batch grows, which the ZNorm paper leaves open.

    python -m experiments reproduce large_batch --preset cpu

Expected: test accuracy of the baseline about 0.58; 302 core-minutes by the records.

Learning rates grow with the square root of the batch, as in You et al., "Large Batch Optimization for Deep
Learning: Training BERT in 76 minutes", 2020, arXiv 1904.00962, after a warm-up of 5 % of the epochs, then fall with
a cosine. Both optimizers rescale each layer's update, so a method's per-layer scale cancels up to weight decay,
momentum and Adam's epsilon; what is left of ZNorm is its centring and, under LARS, the weights of past steps.
"""

import math
from collections.abc import Sequence
from pathlib import Path

from experiments.records import RunRecord
from experiments.run import Run
from experiments.studies.comparison import Question, write_grid_report
from experiments.studies.grid import NORMALIZERS, Size, grid
from experiments.studies.study import Study, settings_table

# At batch 256. LARS multiplies by its trust coefficient of 0.001 too, so its learning rate is of another order.
LEARNING_RATES = {"lars": 2.0, "lamb": 0.005}
BASE_BATCH_SIZE = 256

SIZES = {
    "cpu": Size(
        models=("resnet20",),
        methods=NORMALIZERS,
        epochs=15,
        batch_sizes=(128, 512),
        seeds=(0, 1, 2),
        train_examples=5_000,
        test_examples=2_000,
    ),
    "full": Size(
        models=("resnet20",),
        methods=NORMALIZERS,
        epochs=100,
        batch_sizes=(256, 512, 1024, 2048, 4096),
        seeds=(0, 1, 2),
    ),
}

SIZES["smoke"] = SIZES["cpu"].small(batch_sizes=(50, 250))

NOTES = """\
No paper has numbers for this table. The learning rate is that of batch 256 times the square root of batch / 256, the
same for every method, and was not tuned. LARS and LAMB rescale every layer's update, so that most of what a
normalizer does to its scale cancels."""


QUESTION = Question(
    setting="CIFAR-10",
    axes=("model", "optimizer", "batch_size", "method"),
    forest=("znorm", "gan"),
)


def make_runs(preset: str, records: Sequence[RunRecord]) -> list[Run]:
    """Every optimizer, batch size, method and seed."""
    del records
    size = SIZES[preset]
    base = size.run(
        "cifar10",
        schedule="cosine",
        warmup_epochs=0.05 * size.epochs,
        weight_decay=1e-4,
        augment="crop_flip",
    )
    return grid(
        base,
        seed=size.seeds,
        model=size.models,
        optimizer=LEARNING_RATES,
        batch_size=size.batch_sizes,
        learning_rate=_scaled_learning_rate,
        method=size.methods,
    )


def _scaled_learning_rate(run: Run) -> float:
    return float(f"{LEARNING_RATES[run.optimizer] * math.sqrt(run.batch_size / BASE_BATCH_SIZE):.3g}")


def make_report(preset: str, records: Sequence[RunRecord], folder: Path) -> None:
    """Writes report.md and one figure of learning curves per optimizer."""
    write_grid_report(
        folder,
        "ZNorm and GAN with LARS and LAMB on CIFAR-10",
        make_runs(preset, records),
        records,
        question=QUESTION,
        settings=settings_table(preset, SIZES, of_paper=False),
        notes=NOTES,
        figures="optimizer",
        panels="batch_size",
    )


STUDY = Study(
    name="large_batch",
    title="ZNorm and GAN with LARS and LAMB as the batch grows",
    runs=make_runs,
    report=make_report,
    undecided="batches of up to 512 and one rate that was not tuned; batches of 1,024 to 4,096 would tell",
)
