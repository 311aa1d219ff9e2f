"""What `cifar10_confirm` trains, preset by preset."""

import dataclasses
from collections.abc import Sequence

from experiments.records import RunRecord
from experiments.report.cells import make_cells
from experiments.run import Run
from experiments.studies.overlap_table1 import SHARED_LEARNING_RATES
from experiments.studies.study import Size
from experiments.studies.tuning import extend_grids, make_tuning_runs, tune

METHODS = ("baseline", "centralization", "clipping", "znorm", "gan")
IN_THE_PAPER = ("baseline", "centralization", "clipping", "znorm")
TUNING_SEEDS = (100, 101)  # none of them is reported
WARMUP_EPOCHS = 0.5


@dataclasses.dataclass(frozen=True)
class ConfirmSize(Size):
    """How large a preset is.

    Attributes:
      schedules: of the tuned runs, each with learning rates of its own.
      tuning_examples: training images of the runs that choose a learning rate; None takes all that are left.
      regime_examples: training images in the paper's regime; None takes all.
      regime_epochs: passes over them.
      regime_seeds: of these runs.
    """

    schedules: tuple[str, ...] = ("cosine",)
    tuning_examples: int | None = None
    regime_examples: int | None = None
    regime_epochs: int = 0
    regime_seeds: tuple[int, ...] = ()


SIZES = {
    "smoke": ConfirmSize(
        models=("resnet8",),
        methods=("baseline", "znorm"),
        epochs=2,
        batch_sizes=(50,),
        seeds=(0, 1),
        train_examples=500,
        test_examples=200,
        tuning_epochs=1,
        validation_examples=100,
        tuning_examples=200,
        regime_examples=200,
        regime_epochs=3,
        regime_seeds=(0, 1),
    ),
    "cpu": ConfirmSize(
        models=("resnet20",),
        methods=METHODS,
        epochs=5,
        batch_sizes=(128,),
        seeds=(0, 1, 2, 3, 4),
        tuning_epochs=4,
        validation_examples=5_000,
        tuning_examples=12_500,
        regime_examples=10_000,
        regime_epochs=30,
        regime_seeds=(0, 1, 2),
    ),
    "full": ConfirmSize(
        models=("resnet56",),
        methods=METHODS,
        epochs=100,
        batch_sizes=(256,),
        seeds=(0, 1, 2, 3, 4),
        tuning_epochs=20,
        validation_examples=5_000,
        schedules=("cosine", "constant"),
        regime_epochs=100,
        regime_seeds=(0, 1, 2, 3, 4),
    ),
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
    return [
        Run(
            dataset="cifar10",
            model=model,
            method=method,
            optimizer=optimizer,
            learning_rate=1.0,
            epochs=size.epochs,
            batch_size=size.batch_sizes[0],
            seed=size.seeds[0],
            schedule=schedule,
            warmup_epochs=WARMUP_EPOCHS,
            train_examples=size.train_examples,
            test_examples=size.test_examples,
        )
        for schedule in size.schedules
        for model in size.models
        for optimizer in SHARED_LEARNING_RATES
        for method in size.methods
    ]


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
    return [dataclasses.replace(run, seed=seed) for run in tuned for seed in SIZES[preset].seeds]


def regime_runs(preset: str) -> list[Run]:
    """Arm B."""
    size = SIZES[preset]
    return [
        Run(
            dataset="cifar10",
            model=model,
            method=method,
            optimizer=optimizer,
            learning_rate=rate,
            epochs=size.regime_epochs,
            batch_size=size.batch_sizes[0],
            seed=seed,
            train_examples=size.regime_examples,
            test_examples=size.test_examples,
        )
        for model in size.models
        for optimizer, rate in SHARED_LEARNING_RATES.items()
        for method in size.methods
        if method in IN_THE_PAPER
        for seed in size.regime_seeds
    ]


def setting(run: Run) -> tuple[str, str, str, str]:
    """What has a learning rate of its own."""
    return run.schedule, run.model, run.optimizer, run.method
