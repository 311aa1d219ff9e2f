"""Cells: runs that differ in the seed alone, and intervals of their differences to a baseline."""

import collections
import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

from experiments.records import RunRecord
from experiments.run import Run

# With fewer, an interval tells how a network came out, not how a method does.
FEWEST_SEEDS = 3


# Differences of equal accuracies come out unequal in their last digits.
ROUNDING = 1e-9


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

    @property
    def accuracies(self) -> dict[int, float]:
        """Accuracy after the last epoch, by seed."""
        return {seed: record.epochs[-1].test_accuracy for seed, record in self.ended.items()}

    def values(self, score: str) -> dict[int, float]:
        """'accuracy', or a score of the finished runs (a diverged run has none), by seed."""
        if score == "accuracy":
            return self.accuracies
        return {seed: record.scores[score] for seed, record in self.ended.items() if score in record.scores}

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


def paired_difference(cell: Cell, baseline: Cell, score: str = "accuracy") -> tuple[float, float, int]:
    """Mean difference of the accuracies or another score, paired by seed, and its 95 % t-interval.

    Args:
      cell: the method's runs.
      baseline: the baseline's runs.
      score: see `Cell.values`.

    Returns:
      The mean difference, half the width of its interval (NaN with fewer than two seeds), and the number
      of seeds that both have.
    """
    ours, theirs = cell.values(score), baseline.values(score)
    differences = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    return *t_interval(differences), len(differences)


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % Student t-interval; NaN where there are too few values."""
    from scipy import stats

    mean, std = mean_and_std(values)
    n = len(values)
    return mean, float(stats.t.ppf(0.975, n - 1)) * std / math.sqrt(n) if n > 1 else math.nan


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a table.

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
    labels: Callable[[Run], tuple[str, ...]],
    paper: Callable[[Run], tuple[float | None, float | None]] = lambda run: (None, None),
) -> list[Row]:
    """One row per cell, beside the baseline whose labels are the same but for the method.

    Args:
      cells: of all methods.
      labels: of a run's row; the last one is the method.
      paper: accuracy and loss that the paper printed, where it did.
    """
    cells = list(cells)
    baselines = {labels(c.run)[:-1]: c for c in cells if c.run.method == "baseline"}
    rows = []
    for cell in cells:
        own = labels(cell.run)
        baseline = None if cell.run.method == "baseline" else baselines.get(own[:-1])
        rows.append(Row(own, cell, baseline, *paper(cell.run)))
    return rows


def leaves_out_zero(row: Row, score: str = "accuracy") -> bool | None:
    """Whether the interval of the difference to the baseline leaves out 0; `None` with too few seeds."""
    if row.baseline is None:
        return None
    mean, half, n = paired_difference(row.cell, row.baseline, score)
    return None if n < FEWEST_SEEDS else half >= ROUNDING and abs(mean) > half
