"""Every method against the baseline: accuracy, and the speed at which the training loss falls."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.records import RunRecord
from experiments.report.cells import ROUNDING, Cell, t_interval
from experiments.report.tables import markdown_table

# The smallest effects of interest, fixed in PROTOCOL.md.
ENDPOINTS = {"test accuracy": 0.01, "log training loss": 0.02}
LEVEL, POWER = 0.05, 0.8

CONTRASTS_NOTES = f"""\
Differences to the baseline, paired by seed, with 95 % Student t-intervals. Log training loss: mean over the epochs
of the logarithm of the training loss, so that less is faster. Holm: p-values of both endpoints' families, each
adjusted over its methods. Detectable: the smallest difference that these seeds find with 80 % power. **Shown**: Holm
rejects 0 at {LEVEL}; **too small to count**: the interval lies within
{" and ".join(f"± {effect:g} ({name})" for name, effect in ENDPOINTS.items())}; else it **cannot be told**."""


def log_training_loss(record: RunRecord) -> float:
    """Mean over the epochs of the logarithm of the training loss; NaN if the run diverged."""
    losses = [epoch.train_loss for epoch in record.epochs]
    finished = record.status == "finished" and min(losses) > 0
    return statistics.fmean(map(math.log, losses)) if finished else math.nan


def contrasts_table(cells: Sequence[Cell]) -> str:
    """Markdown table of both endpoints; nothing without a baseline.

    Args:
      cells: of one model, one for every method.
    """
    baseline = next((cell for cell in cells if cell.run.method == "baseline"), None)
    others = [cell for cell in cells if cell.run.method != "baseline"]
    if baseline is None or not others:
        return ""
    table = [["endpoint", "method", "difference [95 % interval]", "Holm's p", "detectable", "word"]]
    for endpoint, effect in ENDPOINTS.items():
        found = [_differences(cell, baseline, endpoint) for cell in others]
        adjusted = holm([p_value(differences) for differences in found])
        for cell, differences, p in zip(others, found, adjusted, strict=True):
            table.append([endpoint, cell.run.method, *_describe(differences, p, effect)])
    return markdown_table(table, left=2)


def _differences(cell: Cell, baseline: Cell, endpoint: str) -> list[float]:
    """Of the seeds that both have."""
    seeds = sorted(cell.ended.keys() & baseline.ended.keys())
    if endpoint == "test accuracy":
        values = [cell.accuracies[seed] - baseline.accuracies[seed] for seed in seeds]
    else:
        values = [log_training_loss(cell.ended[s]) - log_training_loss(baseline.ended[s]) for s in seeds]
    return [value for value in values if math.isfinite(value)]


def p_value(differences: Sequence[float]) -> float:
    """Two-sided, of Student's t-test that their mean is 0; NaN where they do not differ or are too few."""
    from scipy import stats

    if len(differences) < 2 or statistics.stdev(differences) == 0:
        return math.nan
    t = statistics.fmean(differences) / statistics.stdev(differences) * math.sqrt(len(differences))
    return float(2 * stats.t.sf(abs(t), len(differences) - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (1979); NaN stays, and counts in the family."""
    order = sorted(range(len(p_values)), key=lambda i: (math.isnan(p_values[i]), p_values[i]))
    adjusted, largest = [math.nan] * len(p_values), 0.0
    for rank, i in enumerate(order):
        if not math.isnan(p_values[i]):
            largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
            adjusted[i] = largest
    return adjusted


def smallest_detectable(differences: Sequence[float]) -> float:
    """Smallest mean difference that a two-sided t-test at 5 % finds with 80 % power; NaN with too few."""
    from scipy import optimize, stats

    n = len(differences)
    if n < 2:
        return math.nan
    # Given the standard deviation that the seeds happen to show, the power is normal: SciPy's noncentral t has NaNs.
    shown = np.sqrt(stats.chi2.ppf((np.arange(10_000) + 0.5) / 10_000, n - 1) / (n - 1))
    needed = stats.t.ppf(1 - LEVEL / 2, n - 1) * shown

    def lacking(effect: float) -> float:
        return POWER - float(np.mean(stats.norm.cdf(effect - needed) + stats.norm.cdf(-effect - needed)))

    effect: Any = optimize.brentq(lacking, 0, needed.max() + 10)
    return effect * statistics.stdev(differences) / math.sqrt(n)


def _describe(differences: Sequence[float], p: float, effect: float) -> list[str]:
    mean, half = t_interval(differences)
    if math.isnan(half):
        return ["-" if math.isnan(mean) else f"{mean:+.4f} [too few seeds]", "-", "-", "cannot be told"]
    word = "cannot be told"
    if p < LEVEL:
        word = "shown"
    elif half >= ROUNDING and abs(mean) + half <= effect:  # Seeds that agree tell nothing.
        word = "too small to count"
    interval = f"{mean:+.4f} [{mean - half:+.4f}, {mean + half:+.4f}]"
    return [interval, "-" if math.isnan(p) else f"{p:.3f}", f"{smallest_detectable(differences):.4f}", word]
