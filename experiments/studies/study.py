"""What a study is: what to train for one table, how large each preset is, and how to report it."""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from experiments.jobs.measure import Measurement
from experiments.records import RecordError, RunRecord
from experiments.report import names
from experiments.report.markdown import markdown_table
from experiments.run import Run

PRESETS = ("smoke", "cpu", "full")
# What most studies compare: the optimizer alone, and four methods in front of it.
METHODS = ("baseline", "centralization", "clipping", "znorm", "gan")

# One per optimizer, for all methods: so that the methods are compared and not their tuning. Those of SGD with
# momentum and Adam are also the rates that studies call shared or not tuned.
DEFAULT_LEARNING_RATES = {
    "sgdm": 0.01,
    "adam": 0.001,
    "adamw": 0.001,
    "rmsprop": 0.001,
    "lars": 1.0,
    "lamb": 0.01,
}


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


def settings_table(preset: str, size: Any, full: Any, *, of_paper: bool = True) -> str:
    """A Markdown table: setting | here | full.

    Args:
      preset: its name.
      size: of the preset, a dataclass.
      full: of the preset 'full'.
      of_paper: whether that is a paper's protocol, as far as it is stated; else it is our own.
    """
    full_size = "preset full" + (" (the paper's protocol where stated)" if of_paper else "")
    rows = [["setting", f"here (preset {preset})", full_size]]
    for field in dataclasses.fields(size):
        mine, theirs = getattr(size, field.name), getattr(full, field.name)
        if not {mine, theirs} <= {0, (), ""}:
            rows.append([field.name.replace("_", " "), _words(mine), _words(theirs)])
    return markdown_table(rows, left=3)


def _words(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_words, value)) or "none"
    if isinstance(value, str):
        if value.partition(":")[0] in (*names.DATASETS, "stream", "jpeg"):
            return names.dataset(value)
        return (
            names.METHODS.get(value)
            or names.OPTIMIZERS.get(value)
            or names.dataset(names.normalizer(names.model(value)))
        )
    return "all" if value is None else f"{value:,}"


@dataclasses.dataclass(frozen=True)
class Study:
    """What to train for one table, and how to report it.

    Attributes:
      name: on the command line.
      title: one line for people.
      runs: from a preset's name and the records so far to all runs that can be named already. Later runs
        may depend on earlier ones' records, as tuned runs do on the tuning; asked again when the named
        ones have ended, it names more, until there are no more.
      report: writes report.md and figures into a folder, from the records and the preset's name; what was
        measured lies in the folder's `measurements`.
      measurements: from a preset's name to what is measured beside the runs, after they have ended.
      keep_checkpoints: whether the measurements need the trained models.
      named: all runs that the protocol names, where `runs` excludes those whose turn has not come.
    """

    name: str
    title: str
    runs: Callable[[str, Sequence[RunRecord]], list[Run]]
    report: Callable[[str, Sequence[RunRecord], Path], None]
    measurements: Callable[[str], Sequence[Measurement]] = lambda preset: ()
    keep_checkpoints: bool = False
    named: Callable[[str, Sequence[RunRecord]], Collection[Run]] | None = None

    def check_records(self, preset: str, records: Sequence[RunRecord]) -> None:
        """Every record is of a run that the protocol names: records of two protocols are not mixed.

        Raises:
          RecordError: one is not; the message names it.
        """
        runs = self.runs(preset, records) if self.named is None else self.named(preset, records)
        # Recording the gradients changes no metric.
        named = {dataclasses.replace(run, dynamics=False) for run in runs}
        for record in records:
            if dataclasses.replace(record.run, dynamics=False) not in named:
                raise RecordError(
                    f"the record {record.run.name} is of no run that the protocol of {self.name}, preset {preset}, "
                    "names; records of two protocols are not mixed: move it to another folder"
                )
