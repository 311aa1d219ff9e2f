"""Tumour detection in PatchCamelyon: every method behind SGDM and Adam.

After Yun, "ZNorm: Z-Score Gradient Normalization", 2024, arXiv 2408.01215, which reports an accuracy of 0.917 of
ZNorm with ResNet-101. Its learning rate, batch size, epochs, augmentation, initialisation and seeds did not reach
us: this protocol is our own, the same for every method. Learning rates are those of `overlap_table1`'s shared
protocol; patches have no natural orientation, so they are flipped and turned.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from experiments.config import Run
from experiments.records import RunRecord
from experiments.studies import Size, Study, make_heading
from experiments.studies._grid import write_grid_report
from experiments.studies.overlap_table1 import SHARED_LEARNING_RATES

METHODS = ("baseline", "centralization", "clipping", "znorm", "gan")
SCORES = {"ROC-AUC": "roc_auc", "F1": "f1"}
PAPER_ACCURACY = 0.917


@dataclasses.dataclass(frozen=True)
class PatchSize(Size):
    """How large a preset is.

    Attributes:
      dataset: whole patches or their centres.
    """

    dataset: str = "pcam32"


SIZES = {
    "smoke": PatchSize(
        models=("resnet8",),
        methods=("baseline", "znorm", "gan"),
        epochs=2,
        batch_sizes=(50,),
        seeds=(0, 1),
        train_examples=500,
        test_examples=200,
    ),
    "cpu": PatchSize(
        models=("resnet20",),
        methods=METHODS,
        epochs=8,
        batch_sizes=(50,),
        seeds=(0, 1, 2),
        train_examples=2_000,
        test_examples=2_000,
    ),
    "full": PatchSize(
        models=("resnet101",),
        methods=METHODS,
        epochs=20,
        batch_sizes=(256,),
        seeds=(0, 1, 2),
        dataset="stream:patch_camelyon",
    ),
}

NOTES = """\
- Paper accuracy: of ZNorm, with ResNet-101 on whole patches of 96 x 96 pixels. Its epochs, batch, learning rate,
  augmentation and seeds did not reach us, nor with certainty its optimizer: it stands beside Adam, the only one that
  is named. It is comparable to the preset full at most; `pcam32` holds the central 32 x 32 pixels alone.

ROC-AUC and F1 (of the class tumour, at probability 0.5) are those of the network after the last epoch; a run that
diverged has none. Learning rates were not tuned."""


def make_runs(preset: str, records: Sequence[RunRecord]) -> list[Run]:
    """Every optimizer, method and seed."""
    del records
    size = SIZES[preset]
    return [
        Run(
            dataset=size.dataset,
            model=model,
            method=method,
            optimizer=optimizer,
            learning_rate=learning_rate,
            epochs=size.epochs,
            batch_size=size.batch_sizes[0],
            seed=seed,
            augment="flip_rotate",
            train_examples=size.train_examples,
            test_examples=size.test_examples,
        )
        for seed in size.seeds
        for model in size.models
        for optimizer, learning_rate in SHARED_LEARNING_RATES.items()
        for method in size.methods
    ]


def make_report(preset: str, records: Sequence[RunRecord], folder: Path) -> None:
    """Writes report.md and one figure of learning curves."""
    write_grid_report(
        folder,
        make_heading("Tumour detection in PatchCamelyon", preset, SIZES[preset], SIZES["full"]),
        make_runs(preset, records),
        records,
        headings=("model", "optimizer", "method"),
        labels=lambda run: (run.model, run.optimizer, run.method),
        figure=lambda run: run.model,
        panel=lambda run: run.optimizer,
        notes=NOTES,
        scores=SCORES,
        paper_accuracy=_paper_accuracy,
    )


def _paper_accuracy(run: Run) -> float | None:
    return PAPER_ACCURACY if (run.method, run.optimizer) == ("znorm", "adam") else None


STUDY = Study(
    name="pcam",
    title="tumour detection in PatchCamelyon with every method (Yun 2024, arXiv 2408.01215)",
    runs=make_runs,
    report=make_report,
)
