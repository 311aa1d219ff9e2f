"""What `cifar10_confirm` trains, preset by preset."""

from collections.abc import Sequence

from experiments.records import RunRecord
from experiments.report.cells import make_cells
from experiments.run import Run
from experiments.studies.grid import METHODS, ZNORM_ALONE, Size, default_learning_rate, grid, rates_of
from experiments.studies.overlap_table1 import OPTIMIZERS
from experiments.studies.tuning import TUNING_SEEDS, Tuning

IN_THE_PAPER = ("baseline", "centralization", "clipping", "znorm")
WARMUP_EPOCHS = 0.5
AXES = ("model", "optimizer", "method")


SIZES = {
    "cpu": Size(
        models=("resnet20",),
        methods=METHODS,
        epochs=5,
        batch_sizes=(128,),
        seeds=(0, 1, 2, 3, 4),
        schedules=("cosine",),
        tuning_epochs=4,
        validation_examples=5_000,
        tuning_examples=12_500,
    ),
    "full": Size(
        models=("resnet56",),
        methods=METHODS,
        epochs=100,
        batch_sizes=(256,),
        seeds=(0, 1, 2, 3, 4),
        tuning_epochs=20,
        validation_examples=5_000,
        tuning_examples=None,
        schedules=("cosine", "constant"),
    ),
}
SIZES["smoke"] = SIZES["cpu"].small(methods=ZNORM_ALONE)
# The paper's regime: many epochs on few images, so that the training loss runs towards 0.
REGIMES = {
    "cpu": Size(
        models=("resnet20",),
        methods=IN_THE_PAPER,
        epochs=30,
        batch_sizes=(128,),
        seeds=(0, 1, 2),
        train_examples=10_000,
        schedules=("constant",),
    ),
    "full": Size(
        models=("resnet56",),
        methods=IN_THE_PAPER,
        epochs=100,
        batch_sizes=(256,),
        seeds=(0, 1, 2, 3, 4),
        schedules=("constant",),
    ),
}
REGIMES["smoke"] = REGIMES["cpu"].small(methods=ZNORM_ALONE, epochs=3, train_examples=200)
# Half decades; ZNorm makes gradients larger and clipping smaller, which Adam does not see and SGDM does.
GRID = {
    "sgdm": (0.01, 0.03, 0.1, 0.3),
    "clipping sgdm": (0.3, 1.0, 3.0, 10.0),
    "znorm sgdm": (3e-5, 1e-4, 3e-4, 1e-3),
    "gan sgdm": (0.03, 0.1, 0.3, 1.0),
    "adam": (0.001, 0.003, 0.01, 0.03),
}


def make_runs(preset: str, records: Sequence[RunRecord]) -> list[Run]:
    """The tuning; when all of it has ended the tuned runs too; and when these have, those in the paper's regime."""
    size = SIZES[preset]
    tuning, tuned = make_tuning(preset), tuned_runs(preset, records)
    tried = tuning.runs(records)
    if len(tuned) < len(tuning.settings) * len(size.seeds):
        return tried
    if any(cell.missing for cell in make_cells(tuned, records).values()):
        return [*tried, *tuned]
    return [*tried, *tuned, *regime_runs(preset)]


def make_tuning(preset: str) -> Tuning:
    """Every schedule, model, optimizer and method with every rate of its grid, which grows at its edges."""
    size = SIZES[preset]
    settings = grid(
        size.run("cifar10", learning_rate=1.0, warmup_epochs=WARMUP_EPOCHS),
        schedule=size.schedules,
        model=size.models,
        optimizer=OPTIMIZERS,
        method=size.methods,
    )
    return Tuning(
        settings,
        rates_of(preset, GRID),
        ("schedule", *AXES),
        TUNING_SEEDS,
        changes={
            "epochs": size.tuning_epochs,
            "train_examples": size.tuning_examples,
            # Validation images take the place of the test images.
            "validation_examples": size.validation_examples,
            "test_examples": None,
        },
        extend=True,
    )


def tuned_runs(preset: str, records: Sequence[RunRecord]) -> list[Run]:
    """Arm A, as far as the tuning has ended."""
    return make_tuning(preset).reported(records, SIZES[preset].seeds)


def regime_runs(preset: str) -> list[Run]:
    """Arm B."""
    size = REGIMES[preset]
    return grid(
        size.run("cifar10"),
        model=size.models,
        optimizer=OPTIMIZERS,
        learning_rate=default_learning_rate,
        method=size.methods,
        seed=size.seeds,
    )
