"""Cells: runs that differ in the seed alone, and intervals of their differences to a baseline."""

import collections
import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from experiments.records import RunRecord
from experiments.report import intervals, names
from experiments.report.intervals import Interval
from experiments.run import Run

# A constant learning rate leaves the accuracy of each epoch to chance.
LAST_EPOCHS = 3
LATE_EPOCHS = 20


def last_accuracy(record: RunRecord) -> float:
    """Accuracy after the last epoch, which every run evaluates."""
    return _accuracies(record)[-1]


def final_accuracy(record: RunRecord) -> float:
    """What an ended run counts with: where its rate is constant, the mean accuracy of the last three epochs.

    Where the run says how many it evaluates, the mean of these. Otherwise, and for a run that diverged, the accuracy
    after the last epoch.
    """
    if record.run.schedule != "constant" or record.status != "finished":
        return last_accuracy(record)
    return statistics.fmean(_accuracies(record)[-(record.run.evaluated_epochs or LAST_EPOCHS) :])


def best_accuracy(record: RunRecord) -> float:
    """Accuracy of the epoch that was best on the test images, which nobody knows beforehand."""
    return max(_accuracies(record))


def _accuracies(record: RunRecord) -> list[float]:
    """After every epoch that was evaluated."""
    return [epoch.test_accuracy for epoch in record.epochs if epoch.test_accuracy is not None]


def log_final_loss(record: RunRecord) -> float | None:
    """Logarithm of the last epoch's training loss; `None` if the run diverged or the loss is not above 0."""
    loss = record.epochs[-1].train_loss
    return math.log(loss) if record.status == "finished" and loss > 0 else None


def mean_log_loss(record: RunRecord) -> float | None:
    """Mean over the epochs of the logarithm of the training loss: the lower, the faster the training."""
    losses = [epoch.train_loss for epoch in record.epochs]
    if record.status != "finished" or min(losses) <= 0:
        return None
    return statistics.fmean(map(math.log, losses))


def log_roughness(record: RunRecord) -> float | None:
    """Logarithm of how much the training loss varies from epoch to epoch, beyond an even fall.

    That is the root mean square of the second differences of its logarithm over the epochs; `None` with fewer than
    three epochs, and where `mean_log_loss` is.
    """
    losses = [epoch.train_loss for epoch in record.epochs]
    if record.status != "finished" or len(losses) < 3 or min(losses) <= 0:
        return None
    bends = [
        math.log(a) - 2 * math.log(b) + math.log(c)
        for a, b, c in zip(losses, losses[1:], losses[2:], strict=False)
    ]
    size = statistics.fmean(bend**2 for bend in bends)
    return math.log(size) / 2 if size > 0 else None


def log_lowest_loss(record: RunRecord) -> float | None:
    """Logarithm of the training loss of the epoch in which it is lowest; `None` where `mean_log_loss` is."""
    losses = [epoch.train_loss for epoch in record.epochs]
    return None if mean_log_loss(record) is None else math.log(min(losses))


def log_late_loss(record: RunRecord) -> float | None:
    """Mean logarithm of the training loss of the last 20 epochs; `None` where `mean_log_loss` is."""
    late = [epoch.train_loss for epoch in record.epochs[-LATE_EPOCHS:]]
    return None if mean_log_loss(record) is None else statistics.fmean(map(math.log, late))


ENDPOINTS: Mapping[str, Callable[[RunRecord], float | None]] = {
    "accuracy": last_accuracy,
    "final_accuracy": final_accuracy,
    "best_accuracy": best_accuracy,
    "log_final_loss": log_final_loss,
    "mean_log_loss": mean_log_loss,
    "log_roughness": log_roughness,
    "log_lowest_loss": log_lowest_loss,
    "log_late_loss": log_late_loss,
}


def processor(record: RunRecord) -> str:
    """What a run was made on: the name of the accelerator, or of the CPU where the record has it.

    Of a run that went on somewhere else all kinds, in their order.
    """
    starts = [{**record.environment, **restart} for restart in ({}, *record.resumed)]
    return ", then ".join(dict.fromkeys(map(_kind, starts)))


def _kind(environment: Mapping[str, Any]) -> str:
    kind = str(environment.get("device_kind", "unknown"))
    return str(environment.get("cpu_model") or kind) if environment.get("backend") == "cpu" else kind


def epochs_until(record: RunRecord, loss: float) -> int | None:
    """The first epoch whose training loss is at most this; `None` if there is none."""
    return next((epoch.epoch for epoch in record.epochs if epoch.train_loss <= loss), None)


@dataclasses.dataclass(frozen=True)
class Cell:
    """What is known of the runs that differ in the seed alone.

    Attributes:
      run: one of them.
      ended: records of the finished and the diverged ones, by seed.
      missing: how many have not ended.
      messages: why runs failed.
    """

    run: Run
    ended: Mapping[int, RunRecord]
    missing: int = 0
    messages: tuple[str, ...] = ()

    def values(self, score: str) -> dict[int, float]:
        """One of `ENDPOINTS`, or a score of the finished runs, by seed; a run without the value is excluded."""
        endpoint = ENDPOINTS.get(score, lambda record: record.scores.get(score))
        found = {seed: endpoint(record) for seed, record in self.ended.items()}
        return {seed: value for seed, value in found.items() if value is not None}

    @property
    def losses(self) -> list[float]:
        """Training loss of the last epoch of the runs that did not diverge."""
        return [record.epochs[-1].train_loss for record in self.ended.values() if record.status == "finished"]

    @property
    def diverged(self) -> int:
        """How many runs' loss or parameters stopped being finite."""
        return sum(record.status == "diverged" for record in self.ended.values())

    @property
    def seconds_per_epoch(self) -> float:
        """Median over all epochs of all runs."""
        seconds = [epoch.seconds for record in self.ended.values() for epoch in record.epochs]
        return statistics.median(seconds) if seconds else math.nan

    @property
    def processors(self) -> dict[str, list[int]]:
        """The seeds that ran on each kind of processor."""
        kinds: dict[str, list[int]] = {}
        for seed, record in sorted(self.ended.items()):
            kinds.setdefault(processor(record), []).append(seed)
        return kinds

    @property
    def nonfinite_steps(self) -> int:
        """Steps with a non-finite loss or gradient, summed over all runs."""
        return sum(epoch.nonfinite_steps for record in self.ended.values() for epoch in record.epochs)


def make_cells(runs: Iterable[Run], records: Iterable[RunRecord]) -> dict[Run, Cell]:
    """Groups runs that differ in the seed alone.

    Args:
      runs: all that belong into the report, made or not.
      records: what was made; records of other runs are ignored.

    Returns:
      One cell per setting, by the run without its seed, in the order of `runs`.
    """
    # Recording the gradients changes no metric, so that a run with and one without it are the same here.
    ended_last = sorted(records, key=lambda record: record.status in ("finished", "diverged"))
    made = {dataclasses.replace(record.run, dynamics=False): record for record in ended_last}
    groups: dict[Run, list[Run]] = collections.defaultdict(list)
    for run in dict.fromkeys(runs):
        groups[without_seed(run)].append(run)
    cells = {}
    for key, members in groups.items():
        stripped = [dataclasses.replace(run, dynamics=False) for run in members]
        found = [made[run] for run in stripped if run in made]
        ended = {r.run.seed: r for r in found if r.status in ("finished", "diverged") and r.epochs}
        messages = tuple(r.message for r in found if r.status == "failed")
        cells[key] = Cell(members[0], ended, len(members) - len(ended), messages)
    return cells


def without_seed(run: Run) -> Run:
    """The run without its seed."""
    return dataclasses.replace(run, seed=0)


def mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; NaN where there are too few values."""
    mean = statistics.fmean(values) if values else math.nan
    return mean, statistics.stdev(values) if len(values) > 1 else math.nan


def paired_difference(cell: Cell, baseline: Cell, score: str = "final_accuracy") -> Interval:
    """Mean difference of an endpoint or a score, paired by seed.

    Args:
      score: see `Cell.values`.

    Returns:
      Its interval over the seeds that both have.
    """
    ours, theirs = cell.values(score), baseline.values(score)
    seeds = sorted(ours.keys() & theirs.keys())
    return intervals.paired([ours[seed] for seed in seeds], [theirs[seed] for seed in seeds])


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """One row of a table; a key of dictionaries, by identity.

    Attributes:
      labels: the first columns.
      cell: what was measured.
      baseline: what it is compared to; `None` for the baseline itself, and where it is missing.
      paper_accuracy: what the paper printed.
      paper_loss: what the paper printed.
    """

    labels: tuple[str, ...]
    cell: Cell
    baseline: Cell | None = None
    paper_accuracy: float | None = None
    paper_loss: float | None = None


def make_rows(
    cells: Iterable[Cell],
    axes: Sequence[str],
    paper: Callable[[Run], tuple[float | None, float | None]] = lambda run: (None, None),
    versus: str = "baseline",
) -> list[Row]:
    """One row per cell, beside the baseline whose labels are the same but for the method.

    Args:
      axes: the fields of a run that label its row, the method last.
      paper: accuracy and loss that the paper printed, where it did.
      versus: the method that takes the place of the baseline, with which this one is not compared then.
    """
    cells = list(cells)
    labels = [names.labels(cell.run, axes) for cell in cells]
    baselines = {own[:-1]: cell for own, cell in zip(labels, cells, strict=True) if cell.run.method == versus}
    rows = []
    for own, cell in zip(labels, cells, strict=True):
        baseline = None if cell.run.method in ("baseline", versus) else baselines.get(own[:-1])
        rows.append(Row(own, cell, baseline, *paper(cell.run)))
    return rows
