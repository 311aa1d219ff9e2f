"""Intervals of mean differences, and what a study of this size could have seen."""

import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import Any

# With fewer, an interval tells how a network came out, not how a method does.
FEWEST_SEEDS = 3
CONFIDENCE = 0.95
POWER = 0.8

# Differences of equal values come out unequal in their last digits.
ROUNDING = 1e-9


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean, its 95 % interval and the two-sided p-value of 0.

    Attributes:
      mean: of the values or differences.
      low: lower end; NaN with too few values or where the values agree to the last digit.
      high: upper end, likewise.
      p: of the test that the true mean is 0; NaN where there is no interval.
      n: how many values or pairs there are.
      deviation: sample standard deviation of one value; NaN with fewer than two.
    """

    mean: float
    low: float
    high: float
    p: float
    n: int
    deviation: float

    @property
    def is_known(self) -> bool:
        """Whether there is an interval."""
        return not math.isnan(self.low)

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside."""
        return self.excludes(0.0)

    def excludes(self, value: float) -> bool:
        """Whether a value lies outside; never where there is no interval."""
        return self.is_known and not self.low <= value <= self.high

    def within(self, size: float) -> bool:
        """Whether all of it lies from -size to size."""
        return self.is_known and -size <= self.low and self.high <= size


def of_mean(values: Sequence[float]) -> Interval:
    """Student's t-interval of a mean."""
    return paired(values, [0.0] * len(values))


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """Student's t-interval of the mean of ours - theirs, pair by pair.

    Args:
      ours: one value per seed.
      theirs: of the same seeds, in the same order.
    """
    from scipy import stats

    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    n = len(differences)
    mean = statistics.fmean(differences) if differences else math.nan
    deviation = statistics.stdev(differences) if n > 1 else math.nan
    if n < 2 or not deviation >= ROUNDING:
        return Interval(mean, math.nan, math.nan, math.nan, n, deviation)
    test: Any = stats.ttest_rel(ours, theirs)
    ends = test.confidence_interval(CONFIDENCE)
    return Interval(mean, float(ends.low), float(ends.high), float(test.pvalue), n, deviation)


def welch(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """Welch's t-interval of the difference of two means of independent values, whose variances may differ.

    Its deviation is NaN: there is none that both share.
    """
    from scipy import stats

    n = min(len(ours), len(theirs))
    mean = statistics.fmean(ours) - statistics.fmean(theirs) if n else math.nan
    if n < 2 or max(statistics.stdev(ours), statistics.stdev(theirs)) < ROUNDING:
        return Interval(mean, math.nan, math.nan, math.nan, n, math.nan)
    test: Any = stats.ttest_ind(ours, theirs, equal_var=False)
    ends = test.confidence_interval(CONFIDENCE)
    return Interval(mean, float(ends.low), float(ends.high), float(test.pvalue), n, math.nan)


def pooled(ours: Sequence[float], theirs: Sequence[float], cells: Sequence[Sequence[float]]) -> Interval:
    """95 % t-interval of the difference of two means, not paired, with one variance for all cells.

    Args:
      ours: one value per seed.
      cells: values of every cell whose variance counts, these two among them.

    Returns:
      The interval; there is none where no cell has two values or none varies.
    """
    from scipy import stats

    several = [cell for cell in cells if len(cell) > 1]
    freedom = sum(len(cell) - 1 for cell in several)
    n = min(len(ours), len(theirs))
    if not freedom or not n:
        return Interval(math.nan, math.nan, math.nan, math.nan, 0, math.nan)
    variance = sum((len(cell) - 1) * statistics.variance(cell) for cell in several) / freedom
    error = math.sqrt(variance * (1 / len(ours) + 1 / len(theirs)))
    mean = statistics.fmean(ours) - statistics.fmean(theirs)
    if error < ROUNDING:
        return Interval(mean, math.nan, math.nan, math.nan, n, 0.0)
    low, high = stats.t.interval(CONFIDENCE, freedom, loc=mean, scale=error)
    p = 2 * stats.t.sf(abs(mean) / error, freedom)
    return Interval(mean, float(low), float(high), float(p), n, math.sqrt(variance))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjustment of the p-values of one family; those that are NaN are no part of it."""
    told = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    adjusted, largest = list(p_values), 0.0
    for rank, (p, i) in enumerate(told):
        largest = max(largest, min(1.0, p * (len(told) - rank)))
        adjusted[i] = largest
    return adjusted


def smallest_detectable(interval: Interval) -> float:
    """The true mean at which a two-sided t-test of level 5 % finds a difference in 80 % of all repetitions.

    The deviation is taken to be the one that was observed; NaN where there is none.
    """
    from scipy import optimize, stats

    if not interval.is_known:
        return math.nan
    n = interval.n
    critical = stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)

    def lacking(noncentrality: float) -> float:
        # The other tail, of differences found with the wrong sign, adds nothing that shows.
        return float(stats.nct.sf(critical, n - 1, noncentrality)) - POWER

    root: Any = optimize.brentq(lacking, 0.0, 6 * critical)
    return float(root) * interval.deviation / math.sqrt(n)
