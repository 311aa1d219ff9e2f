"""What `cifar10_confirm` trains, preset by preset."""

import dataclasses
from collections.abc import Sequence

from experiments.records import RunRecord
from experiments.report.cells import make_cells
from experiments.run import Run
from experiments.studies.overlap_table1 import OPTIMIZERS
from experiments.studies.study import Size, default_learning_rate, grid, with_seeds
from experiments.studies.tuning import extend_grids, make_tuning_runs, tune

METHODS = ("baseline", "centralization", "clipping", "znorm", "gan")
IN_THE_PAPER = ("baseline", "centralization", "clipping", "znorm")
TUNING_SEEDS = (100, 101)  # none of them is reported
WARMUP_EPOCHS = 0.5


SIZES = {
    "smoke": Size(
        models=("resnet8",),
        methods=("baseline", "znorm"),
        epochs=2,
        batch_sizes=(50,),
        seeds=(0, 1),
        train_examples=500,
        test_examples=200,
        schedules=("cosine",),
        tuning_epochs=1,
        validation_examples=100,
        tuning_examples=200,
    ),
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
# The paper's regime: many epochs on few images, so that the training loss runs towards 0.
REGIMES = {
    "smoke": dataclasses.replace(
        SIZES["smoke"], methods=("baseline", "znorm"), epochs=3, train_examples=200, seeds=(0, 1)
    ),
    "cpu": dataclasses.replace(
        SIZES["cpu"], methods=IN_THE_PAPER, epochs=30, train_examples=10_000, seeds=(0, 1, 2)
    ),
    "full": dataclasses.replace(SIZES["full"], methods=IN_THE_PAPER, epochs=100),
}
# Half decades; ZNorm makes gradients larger and clipping smaller, which Adam does not see and SGDM does.
GRID = {
    "sgdm": (0.01, 0.03, 0.1, 0.3),
    "clipping sgdm": (0.3, 1.0, 3.0, 10.0),
    "znorm sgdm": (3e-5, 1e-4, 3e-4, 1e-3),
    "gan sgdm": (0.03, 0.1, 0.3, 1.0),
    "adam": (0.001, 0.003, 0.01, 0.03),
}
SMOKE_GRID = {"sgdm": (0.01, 0.03, 0.1), "znorm sgdm": (1e-4, 3e-4, 1e-3), "adam": (0.001, 0.003, 0.01)}
GRIDS = {"smoke": SMOKE_GRID, "cpu": GRID, "full": GRID}


def make_runs(preset: str, records: Sequence[RunRecord]) -> list[Run]:
    """The tuning; when all of it has ended the tuned runs too; and when these have, those in the paper's regime."""
    size = SIZES[preset]
    tuning, tuned = tuning_runs(preset, records), tuned_runs(preset, records)
    if len(tuned) < len(_settings(preset)) * len(size.seeds):
        return tuning
    if any(cell.missing for cell in make_cells(tuned, records).values()):
        return [*tuning, *tuned]
    return [*tuning, *tuned, *regime_runs(preset)]


def _settings(preset: str) -> list[Run]:
    """One run of every schedule, model, optimizer and method, with a learning rate that is to be tuned."""
    size = SIZES[preset]
    return grid(
        size.run("cifar10", learning_rate=1.0, warmup_epochs=WARMUP_EPOCHS),
        schedule=size.schedules,
        model=size.models,
        optimizer=OPTIMIZERS,
        method=size.methods,
    )


def tuning_runs(preset: str, records: Sequence[RunRecord]) -> list[Run]:
    """Every setting with every rate of its grid, which grows at its edges."""
    size = SIZES[preset]
    runs = make_tuning_runs(
        _settings(preset),
        GRIDS[preset],
        TUNING_SEEDS,
        epochs=size.tuning_epochs,
        train_examples=size.tuning_examples,
        # Validation images take the place of the test images.
        validation_examples=size.validation_examples,
        test_examples=None,
    )
    return extend_grids(runs, records, setting)


def tuned_runs(preset: str, records: Sequence[RunRecord]) -> list[Run]:
    """Arm A, as far as the tuning has ended."""
    tuned = tune(_settings(preset), tuning_runs(preset, records), records, setting)
    return with_seeds(tuned, SIZES[preset].seeds)


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


def setting(run: Run) -> tuple[str, str, str, str]:
    """What has a learning rate of its own."""
    return run.schedule, run.model, run.optimizer, run.method
