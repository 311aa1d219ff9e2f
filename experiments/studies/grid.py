"""How large a preset is, and the grid of runs that a size and some fields' values give."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self

from experiments.run import DEFAULT_LEARNING_RATES, Run

# What most studies compare: the optimizer alone, and four methods in front of it.
METHODS = ("baseline", "centralization", "clipping", "znorm", "gan")
NORMALIZERS = ("baseline", "znorm", "gan")
ZNORM_ALONE = ("baseline", "znorm")


@dataclasses.dataclass(frozen=True)
class Size:
    """How large a preset is; what the other settings are is the study's own.

    Attributes:
      models: trained networks.
      methods: what is done to the gradients.
      epochs: passes over the training images.
      batch_sizes: images per step.
      seeds: of the reported runs.
      train_examples: subset of the training images, class-balanced or of few patients; None takes all.
      test_examples: the same of the test images; None takes all.
      tuning_epochs: of the runs that choose a learning rate.
      validation_examples: training images that these runs hold out and choose by.
      tuning_examples: what else these runs train on; None takes all that are left, 0 as many as the reported runs.
      dataset: where it differs between presets.
      optimizers: where they differ between presets.
      schedules: of the learning rate, where they differ between presets.
    """

    models: tuple[str, ...]
    methods: tuple[str, ...]
    epochs: int
    batch_sizes: tuple[int, ...]
    seeds: tuple[int, ...]
    train_examples: int | None = None
    test_examples: int | None = None
    tuning_epochs: int = 0
    validation_examples: int = 0
    tuning_examples: int | None = 0
    dataset: str = ""
    optimizers: tuple[str, ...] = ()
    schedules: tuple[str, ...] = ()

    def small(self, **changes: Any) -> Self:
        """The same in seconds, for tests: the smallest networks, two seeds, two epochs, a few hundred images.

        Args:
          **changes: fields of which a study needs something else.
        """
        fields: dict[str, Any] = {
            "models": tuple(dict.fromkeys(map(_smallest, self.models))),
            "methods": tuple(method for method in self.methods if method in NORMALIZERS),
            "epochs": 2,
            "batch_sizes": (50,),
            "seeds": (0, 1),
            "train_examples": 500,
            "test_examples": 200,
        }
        if self.tuning_epochs:
            fields |= {"tuning_epochs": 1, "validation_examples": 100}
        if self.tuning_examples:
            fields["tuning_examples"] = 200
        return dataclasses.replace(self, **{**fields, **changes})

    def run(self, dataset: str = "", **settings: Any) -> Run:
        """The first run of this size, from which `grid` makes the others.

        Args:
          dataset: its name; by default the size's own.
          **settings: further fields of the run, in place of the baseline with SGDM.
        """
        fields = {
            "dataset": dataset or self.dataset,
            "model": self.models[0],
            "method": self.methods[0],
            "optimizer": "sgdm",
            "learning_rate": DEFAULT_LEARNING_RATES["sgdm"],
            "epochs": self.epochs,
            "batch_size": self.batch_sizes[0],
            "seed": self.seeds[0],
            "train_examples": self.train_examples,
            "test_examples": self.test_examples,
        }
        return Run(**{**fields, **settings})


def _smallest(model: str) -> str:
    """The network of eight layers of the same family, where it has one."""
    return re.sub(r"^(resnet|plain)\d+$", r"\g<1>8", model)


def rates_of(preset: str, grid: dict[str, tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
    """A grid of learning rates; for the preset smoke two from the middle of each."""
    if preset != "smoke":
        return grid
    return {key: rates[len(rates) // 2 - 1 :][:2] for key, rates in grid.items()}


def grid(base: Run, **axes: Iterable[Any] | Callable[[Run], Any]) -> list[Run]:
    """Every combination of some fields' values, the last field fastest.

    Args:
      base: has the other fields.
      **axes: by field of `Run`, the values it takes; or a function of the run, for a field that follows from those
        before it, such as `learning_rate=default_learning_rate` after `optimizer=("sgdm", "adam")`.
    """
    runs = [base]
    for field, values in axes.items():
        runs = [
            dataclasses.replace(run, **{field: value})
            for run in runs
            for value in ([values(run)] if callable(values) else values)
        ]
    return runs


def with_seeds(runs: Iterable[Run], seeds: Sequence[int]) -> list[Run]:
    """Every run with every seed, the seed fastest."""
    return [dataclasses.replace(run, seed=seed) for run in runs for seed in seeds]


def default_learning_rate(run: Run) -> float:
    """That of the run's optimizer, where none is tuned."""
    return DEFAULT_LEARNING_RATES[run.optimizer]
