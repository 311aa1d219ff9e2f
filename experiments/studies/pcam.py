"""Tumour detection in PatchCamelyon: every method with SGDM and Adam.

    python -m experiments reproduce pcam --preset cpu

Expected: test accuracy of the baseline about 0.78; 193 core-minutes by the records.

After Yun, "ZNorm: Z-Score Gradient Normalization", 2024, arXiv 2408.01215, which reports an accuracy of 0.917 of
ZNorm with ResNet-101. Its learning rate, batch size, epochs, augmentation, initialisation and seeds did not reach
us: this protocol is our own. Every method gets the same grid of learning rates; one seed that is not reported chooses
by accuracy on patches that are neither trained on nor tested, and the test patches are used for the reported seeds
alone. Patches have no natural orientation, so they are flipped and turned.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from experiments.records import RunRecord
from experiments.report import names
from experiments.report.cells import make_cells
from experiments.report.contrasts import ONE_POINT, Endpoint
from experiments.report.pages import describe_images
from experiments.run import Run
from experiments.studies.grid import Question, write_grid_report
from experiments.studies.medical import PAPER, SEEDS_ALONE
from experiments.studies.study import METHODS, Size, Study, grid, settings_table
from experiments.studies.tuning import make_tuning_runs, tune, tuning_table

SCORES = (
    Endpoint("roc_auc", "area under the ROC curve", "points", ONE_POINT),
    Endpoint("f1", "F1", "points", ONE_POINT),
)
QUESTION = Question(
    setting="PatchCamelyon, tuned rates",
    source=lambda run: "Yun 2024, arXiv 2408.01215" if run.method == "znorm" else "",
    headline=lambda run: (run.method, run.optimizer) == ("znorm", "adam"),
    forest=lambda run: run.method in ("znorm", "gan", "centralization"),
    scores=SCORES,
)
PAPER_ACCURACY = 0.917


SIZES = {
    "smoke": Size(
        models=("resnet8",),
        methods=("baseline", "znorm", "gan"),
        epochs=2,
        batch_sizes=(50,),
        seeds=(0, 1),
        train_examples=500,
        test_examples=200,
        tuning_epochs=1,
        validation_examples=100,
        dataset="pcam32",
    ),
    "cpu": Size(
        models=("resnet20",),
        methods=METHODS,
        epochs=8,
        batch_sizes=(50,),
        seeds=(0, 1, 2, 3, 4),
        train_examples=2_000,
        test_examples=2_000,
        tuning_epochs=5,
        validation_examples=500,
        dataset="pcam32",
    ),
    "full": Size(
        models=("resnet101",),
        methods=METHODS,
        epochs=20,
        batch_sizes=(256,),
        seeds=(0, 1, 2),
        tuning_epochs=4,
        validation_examples=20_000,
        dataset="stream:patch_camelyon",
    ),
}
GRID = {
    "sgdm": (0.0001, 0.0003, 0.001, 0.01, 0.03, 0.1, 0.3),
    "adam": (0.0001, 0.0003, 0.001, 0.003, 0.01),
}
GRIDS = {"smoke": {"sgdm": (0.01, 0.1), "adam": (0.001, 0.003)}, "cpu": GRID, "full": GRID}

CHOSEN_BY = {
    "train": "held-out training patches; these are of the same slides as the others, unlike the test patches",
    "validation": "patches of the published validation split; no two splits have patches of one slide",
}

NOTES = f"""\
The published set has 327,680 patches of 96 x 96 pixels: 262,144 to train on, 32,768 to choose by and 32,768 to test
on. `pcam32` holds the central 32 x 32 pixels, which decide the label, of some of them. The files do not say how
many patients the patches come from.

{SEEDS_ALONE}

ROC-AUC and F1 (of the class tumour, at probability 0.5) are those of the network after the last epoch; a run that
diverged has none. Every method's learning rate is the best of its optimizer's grid for one seed that is not reported,
by accuracy on {{chosen_by}}.

{PAPER}

0.917 is in the column "the paper, %", beside ZNorm and Adam; it is comparable to the preset full at most. 0.812 has
no number of ours beside it, because nothing here is trained on CIFAR-10: for that see the studies
`znorm_architectures` and `overlap_table1`."""


def _setting(run: Run) -> tuple[str, str, str]:
    return run.model, run.optimizer, run.method


def _labels(run: Run) -> tuple[str, str, str]:
    return names.model(run.model), names.OPTIMIZERS[run.optimizer], names.METHODS[run.method]


def make_runs(preset: str, records: Sequence[RunRecord]) -> list[Run]:
    """The tuning runs, and the reported runs whose tuning has ended."""
    return [*_tuning_runs(preset), *_reported_runs(preset, records)]


def _settings(preset: str) -> list[Run]:
    """One run of every network, optimizer and method, with a learning rate that is to be tuned."""
    size = SIZES[preset]
    return grid(
        size.run(learning_rate=1.0, augment="flip_rotate"),
        model=size.models,
        optimizer=GRIDS[preset],
        method=size.methods,
    )


def _validation_split(size: Size) -> str:
    """Where the patches come from that learning rates are chosen by: the centres have no split for it."""
    return "train" if size.dataset == "pcam32" else "validation"


def _tuning_runs(preset: str) -> list[Run]:
    size = SIZES[preset]
    # Validation images take the place of the test images.
    if _validation_split(size) == "train":
        validation = {"validation_examples": size.validation_examples}
    else:
        name = f"{size.dataset}:{_validation_split(size)}"
        validation = {"dataset": name, "test_examples": size.validation_examples}
    return make_tuning_runs(_settings(preset), GRIDS[preset], epochs=size.tuning_epochs, **validation)


def _reported_runs(preset: str, records: Sequence[RunRecord]) -> list[Run]:
    tuned = tune(_settings(preset), _tuning_runs(preset), records, _setting)
    return [dataclasses.replace(run, seed=seed) for seed in SIZES[preset].seeds for run in tuned]


def make_report(preset: str, records: Sequence[RunRecord], folder: Path) -> None:
    """Writes report.md and one figure of learning curves."""
    headings = ("network", "optimizer", "method")
    size = SIZES[preset]
    tuning = list(make_cells(_tuning_runs(preset), records).values())
    reported = _reported_runs(preset, records)
    images = describe_images(make_cells(reported, records).values(), "patches")
    write_grid_report(
        folder,
        "Tumour detection in PatchCamelyon",
        reported,
        records,
        settings=settings_table(preset, size, SIZES["full"], of_paper=False),
        question=QUESTION,
        headings=headings,
        labels=_labels,
        figure=lambda run: (
            run.model,
            f"PatchCamelyon, {names.model(run.model)}, {len(size.seeds)} seeds, tuned rates",
        ),
        panel=lambda run: names.OPTIMIZERS[run.optimizer],
        notes=f"- Data: {images}.\n\n{NOTES.format(chosen_by=CHOSEN_BY[_validation_split(size)])}",
        paper_accuracy=_paper_accuracy,
        tuning=tuning,
        tuning_table=tuning_table(headings, tuning, _setting),
    )


def _paper_accuracy(run: Run) -> float | None:
    return PAPER_ACCURACY if (run.method, run.optimizer) == ("znorm", "adam") else None


STUDY = Study(
    name="pcam",
    title="Tumour detection in PatchCamelyon with every method (Yun 2024, arXiv 2408.01215)",
    runs=make_runs,
    report=make_report,
)
