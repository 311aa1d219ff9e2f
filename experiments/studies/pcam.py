"""Tumour detection in PatchCamelyon: every method with SGDM and Adam.

    python -m experiments reproduce pcam --preset cpu

Expected: test accuracy of the baseline about 0.78; 193 core-minutes by the records.

After Yun, "ZNorm: Z-Score Gradient Normalization", 2024, arXiv 2408.01215, which reports an accuracy of 0.917 of
ZNorm with ResNet-101. Its learning rate, batch size, epochs, augmentation, initialisation and seeds did not reach
us: this protocol is our own. Every method gets the same grid of learning rates; one seed that is not reported chooses
by accuracy on patches that are neither trained on nor tested, and the test patches are used for the reported seeds
alone. Patches have no natural orientation, so they are flipped and turned.
"""

from collections.abc import Sequence
from pathlib import Path

from experiments.records import RunRecord
from experiments.report.cells import make_cells
from experiments.report.contrasts import ONE_POINT, Endpoint
from experiments.report.pages import describe_images
from experiments.run import Run
from experiments.studies.comparison import Question, write_grid_report
from experiments.studies.grid import METHODS, Size, grid, rates_of
from experiments.studies.medical import PAPER, SEEDS_ALONE
from experiments.studies.study import Study, settings_table
from experiments.studies.tuning import Tuning

SCORES = (
    Endpoint("roc_auc", "area under the ROC curve", "points", ONE_POINT),
    Endpoint("f1", "F1", "points", ONE_POINT),
)
CLAIMED = {"method": "znorm", "optimizer": "adam"}  # the paper's accuracy is of these, as far as it says
PAPER_ACCURACY = 0.917


def paper_accuracy(run: Run) -> float | None:
    """What the paper printed."""
    return PAPER_ACCURACY if all(getattr(run, field) == value for field, value in CLAIMED.items()) else None


QUESTION = Question(
    setting="PatchCamelyon, tuned rates",
    sources={"znorm": "Yun 2024, arXiv 2408.01215"},
    paper=paper_accuracy,
    headline=CLAIMED,
    forest=("znorm", "gan", "centralization"),
    scores=SCORES,
)

SIZES = {
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
SIZES["smoke"] = SIZES["cpu"].small()
GRID = {
    "sgdm": (0.0001, 0.0003, 0.001, 0.01, 0.03, 0.1, 0.3),
    "adam": (0.0001, 0.0003, 0.001, 0.003, 0.01),
}

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


def make_runs(preset: str, records: Sequence[RunRecord]) -> list[Run]:
    """The tuning runs, and the reported runs whose tuning has ended."""
    return [*_tuning(preset).runs(), *_reported_runs(preset, records)]


def _tuning(preset: str) -> Tuning:
    size = SIZES[preset]
    grids = rates_of(preset, GRID)
    base = size.run(learning_rate=1.0, augment="flip_rotate")
    # Validation images take the place of the test images.
    if _validation_split(size) == "train":
        validation = {"validation_examples": size.validation_examples}
    else:
        name = f"{size.dataset}:{_validation_split(size)}"
        validation = {"dataset": name, "test_examples": size.validation_examples}
    return Tuning(
        grid(base, model=size.models, optimizer=grids, method=size.methods),
        grids,
        changes={"epochs": size.tuning_epochs, **validation},
    )


def _validation_split(size: Size) -> str:
    """Where the patches come from that learning rates are chosen by: the centres have no split for it."""
    return "train" if size.dataset == "pcam32" else "validation"


def _reported_runs(preset: str, records: Sequence[RunRecord]) -> list[Run]:
    return _tuning(preset).reported(records, SIZES[preset].seeds)


def make_report(preset: str, records: Sequence[RunRecord], folder: Path) -> None:
    """Writes report.md and one figure of learning curves."""
    size = SIZES[preset]
    reported = _reported_runs(preset, records)
    images = describe_images(make_cells(reported, records).values(), "patches")
    write_grid_report(
        folder,
        "Tumour detection in PatchCamelyon",
        reported,
        records,
        question=QUESTION,
        settings=settings_table(preset, SIZES, of_paper=False),
        notes=f"- Data: {images}.\n\n{NOTES.format(chosen_by=CHOSEN_BY[_validation_split(size)])}",
        tuning=_tuning(preset),
    )


STUDY = Study(
    name="pcam",
    title="Tumour detection in PatchCamelyon with every method (Yun 2024, arXiv 2408.01215)",
    runs=make_runs,
    report=make_report,
    undecided=(
        "2,000 patches of 32 x 32 pixels, rates by one tuning seed; all patches, two tuning seeds and a rate that "
        "falls to 0 would tell"
    ),
)
