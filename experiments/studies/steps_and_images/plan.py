"""What `steps_and_images` trains, part by part in the protocol's order."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.records import RunRecord
from experiments.report.cells import make_cells
from experiments.run import Run
from experiments.studies.grid import METHODS, grid, rates_of
from experiments.studies.tuning import TUNING_SEEDS, Tuning

AXES = ("train_examples", "steps", "optimizer", "method")
THREE = ("baseline", "centralization", "znorm")
# Half decades; ZNorm makes gradients larger and clipping smaller, which Adam does not see and SGDM does.
GRID = {
    "sgdm": (0.03, 0.1, 0.3, 1.0),
    "clipping sgdm": (0.3, 1.0, 3.0, 10.0),
    "znorm sgdm": (1e-4, 3e-4, 1e-3, 3e-3),
    "gan sgdm": (0.03, 0.1, 0.3, 1.0),
    "adam": (0.001, 0.003, 0.01, 0.03),
}


@dataclasses.dataclass(frozen=True)
class Size:
    """What all parts of a preset share.

    Attributes:
      model: the trained network.
      batch_size: images per step.
      all_images: training images there are, of which tuning holds some out.
      test_examples: None takes all.
      validation_examples: training images that the tuning holds out and chooses by.
    """

    model: str
    batch_size: int
    all_images: int
    test_examples: int | None
    validation_examples: int


@dataclasses.dataclass(frozen=True)
class Part:
    """Cells that are made together.

    Attributes:
      name: its letter in the protocol.
      images: numbers of training images, equally many of each class.
      steps: numbers of updates.
      optimizer: of all its cells.
      methods: compared ones.
      seeds: of the reported runs.
      rates: learning rates by method and optimizer, where an earlier study chose them; else they are tuned.
    """

    name: str
    images: tuple[int, ...]
    steps: tuple[int, ...]
    optimizer: str
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    rates: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)


FIVE_SEEDS, TEN_SEEDS = tuple(range(5)), tuple(range(10))
# Beside arm A of `cifar10_confirm`, which chose among half decades: the best rate or one near it, and another that
# may be better.
RATES = {"baseline sgdm": (0.1, 0.3), "centralization sgdm": (0.1, 0.3), "znorm sgdm": (5.5e-4, 1e-3)}
CPU = (
    Part("a", (50_000, 2_000), (390,), "sgdm", METHODS, TEN_SEEDS),
    Part("b", (2_000,), (1_950,), "sgdm", THREE, FIVE_SEEDS),
    Part("c", (50_000,), (1_950,), "sgdm", THREE, FIVE_SEEDS, RATES),
    Part("d", (50_000, 2_000), (390,), "adam", ("baseline", "znorm"), TEN_SEEDS),
    Part("e", (50_000,), (195,), "sgdm", THREE, TEN_SEEDS),
    Part("e", (50_000,), (975,), "sgdm", THREE, FIVE_SEEDS),
)
SIZES = {
    "smoke": Size("resnet8", 50, all_images=1_000, test_examples=200, validation_examples=200),
    "cpu": Size("resnet20", 128, all_images=50_000, test_examples=None, validation_examples=5_000),
    "full": Size("resnet56", 128, all_images=50_000, test_examples=None, validation_examples=5_000),
}
PARTS = {
    "smoke": (
        Part("a", (1_000, 200), (6,), "sgdm", ("baseline", "znorm"), (0, 1)),
        Part("c", (1_000,), (25,), "sgdm", ("baseline", "znorm"), (0, 1), RATES),
    ),
    "cpu": CPU,
    "full": CPU,
}


def make_runs(preset: str, records: Sequence[RunRecord]) -> list[Run]:
    """The parts up to the first that has not ended: its tuning, and when that has ended its reported runs."""
    runs: list[Run] = []
    for part in PARTS[preset]:
        tuning, reported = make_tuning(preset, part), reported_runs(preset, part, records)
        of_part = list(dict.fromkeys([*tuning.runs(records), *reported]))  # the same where rates are known
        runs += of_part
        unnamed = len(reported) < len(part.seeds) * len(tuning.settings)
        if unnamed or any(cell.missing for cell in make_cells(of_part, records).values()):
            break
    return runs


def named_runs(preset: str, records: Sequence[RunRecord]) -> list[Run]:
    """All runs of the protocol, of which `make_runs` names those whose turn has come."""
    runs = (
        run
        for part in PARTS[preset]
        for run in (*make_tuning(preset, part).runs(records), *reported_runs(preset, part, records))
    )
    return list(dict.fromkeys(runs))


def make_tuning(preset: str, part: Part, models: Sequence[str] = (), axes: Sequence[str] = AXES) -> Tuning:
    """Every cell and method with every rate of its grid, which grows at its edges and then around its best rate.

    Where an earlier study chose the rates, these on the reported seeds.

    Args:
      models: trained networks; by default the preset's own.
      axes: the fields in which the settings differ.
    """
    size = SIZES[preset]
    base = Run(
        dataset="cifar10",
        model=size.model,
        method="baseline",
        optimizer=part.optimizer,
        learning_rate=1.0,
        epochs=1,
        batch_size=size.batch_size,
        seed=0,
        schedule="cosine",
        test_examples=size.test_examples,
        evaluated_epochs=1,
    )
    cells = [
        dataclasses.replace(base, **_length(size, images, steps))
        for steps in part.steps
        for images in part.images
    ]
    settings = [
        run for cell in cells for run in grid(cell, model=models or (size.model,), method=part.methods)
    ]
    if part.rates:
        return Tuning(settings, part.rates, axes, part.seeds, is_grid=False)

    def held_out(run: Run) -> dict[str, Any]:
        assert run.train_examples is not None
        assert run.steps is not None
        images = min(run.train_examples, size.all_images - size.validation_examples)
        # Validation images take the place of the test images.
        validation = {"validation_examples": size.validation_examples, "test_examples": None}
        return {**_length(size, images, run.steps), **validation}

    grids = rates_of(preset, GRID)
    return Tuning(settings, grids, axes, TUNING_SEEDS, changes=held_out, extend=True, refine=True)


def reported_runs(preset: str, part: Part, records: Sequence[RunRecord]) -> list[Run]:
    """As far as the tuning has ended."""
    tuning = make_tuning(preset, part)
    return tuning.runs() if part.rates else tuning.reported(records, part.seeds)


def _length(size: Size, images: int, steps: int) -> dict[str, int | float]:
    """The fields of a run of so many steps, a tenth of them warm-up."""
    in_epoch = images // size.batch_size
    return {
        "train_examples": images,
        "steps": steps,
        "epochs": math.ceil(steps / in_epoch),
        "warmup_epochs": round(steps / 10) / in_epoch,
    }
