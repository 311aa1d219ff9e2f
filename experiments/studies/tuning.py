"""What studies share that give every method the same grid of learning rates and let validation choose."""

import collections
import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.records import RunRecord
from experiments.report import names
from experiments.report.cells import Cell, make_cells
from experiments.report.markdown import markdown_table
from experiments.report.tables import format_score
from experiments.run import Run

TUNING_SEED = 100  # never a reported one
MOST_EXTENSIONS = 4

Setting = tuple[str, ...]


def make_tuning_runs(
    settings: Iterable[Run],
    grid: Mapping[str, Sequence[float]],
    seeds: Sequence[int] = (TUNING_SEED,),
    /,
    **changes: Any,
) -> list[Run]:
    """Every setting with every learning rate of its grid, on seeds that are not reported.

    Args:
      settings: one run of each; its learning rate and seed do not matter.
      grid: learning rates by method behind an optimizer, as 'znorm sgdm', or by optimizer for all methods.
      seeds: none of the reported ones.
      **changes: what else is not as in the reported runs, such as epochs and what is evaluated on.
    """
    return [
        dataclasses.replace(run, learning_rate=rate, seed=seed, **changes)
        for run in settings
        for rate in grid.get(f"{run.method} {run.optimizer}") or grid[run.optimizer]
        for seed in seeds
    ]


def extend_grids(
    tuning: Iterable[Run],
    records: Iterable[RunRecord],
    setting: Callable[[Run], Setting],
    score: str = "accuracy",
) -> list[Run]:
    """The tuning runs, and where a setting's best learning rate is the last of its grid, those with one more.

    The grid grows by half a decade at a time until the best rate has a worse one on either side, at most
    `MOST_EXTENSIONS` times.

    Args:
      tuning: as `make_tuning_runs` names them.
      records: what was made, of these and of other runs; a setting is extended when all of its runs have ended.
      setting: as for `choose_learning_rates`.
      score: the same.
    """
    runs, records = list(tuning), list(records)
    for _ in range(MOST_EXTENSIONS):
        cells = make_cells(runs, records).values()
        chosen = choose_learning_rates(cells, setting, score)
        at_the_edge = _at_the_edge(_by_setting(cells, setting), chosen)
        more = [
            dataclasses.replace(
                run, learning_rate=half_a_decade(run.learning_rate, at_the_edge[setting(run)])
            )
            for run in runs
            if setting(run) in at_the_edge and run.learning_rate == chosen[setting(run)]
        ]
        if not more:
            break
        runs += more
    return runs


def refine_grids(
    tuning: Iterable[Run],
    records: Iterable[RunRecord],
    setting: Callable[[Run], Setting],
    score: str = "accuracy",
) -> list[Run]:
    """The tuning runs, and a quarter of a decade on either side of a setting's best rate those with two more.

    Args:
      tuning: as `extend_grids` gives them.
      records: what was made, of these and of other runs; a setting is refined when all of its runs have ended, those
        by which its grid grew among them.
      setting: as for `choose_learning_rates`.
      score: the same.
    """
    runs, records = list(tuning), list(records)
    cells = make_cells(runs, records).values()
    chosen = choose_learning_rates(cells, setting, score)
    return runs + [
        dataclasses.replace(run, learning_rate=quarter_decades(run.learning_rate, step))
        for run in runs
        if run.learning_rate == chosen.get(setting(run))
        for step in (-1, 1)
    ]


def half_a_decade(rate: float, steps: int) -> float:
    """The rate so many steps further on the ladder ..., 0.1, 0.3, 1, 3, ..."""
    return quarter_decades(rate, 2 * steps)


def quarter_decades(rate: float, steps: int) -> float:
    """The rate so many steps further on the ladder ..., 0.1, 0.18, 0.3, 0.55, 1, ..."""
    decade, rung = divmod(round(4 * math.log10(rate)) + steps, 4)
    return float(f"{(1, 1.8, 3, 5.5)[rung]}e{decade}")


def tune(
    settings: Iterable[Run],
    tuning: Iterable[Run],
    records: Iterable[RunRecord],
    setting: Callable[[Run], Setting],
    score: str = "accuracy",
) -> list[Run]:
    """The settings whose tuning runs have ended, with the learning rate these choose.

    Args:
      settings: one run of each.
      tuning: as `make_tuning_runs` names them.
      records: what was made, of these and of other runs.
      setting: as for `choose_learning_rates`.
      score: the same.
    """
    chosen = choose_learning_rates(make_cells(tuning, records).values(), setting, score)
    return [
        dataclasses.replace(run, learning_rate=chosen[setting(run)])
        for run in settings
        if setting(run) in chosen
    ]


def choose_learning_rates(
    cells: Iterable[Cell], setting: Callable[[Run], Setting], score: str = "accuracy"
) -> dict[Setting, float]:
    """Learning rate with the highest score, the lower of two equal ones.

    Args:
      cells: of the tuning runs; where they have several seeds, their mean score counts.
      setting: what has a learning rate of its own, such as (optimizer, method).
      score: see `Cell.values`. A rate with a diverged run, or without the score, is never chosen before another.

    Returns:
      By setting, where all tuning runs have ended.
    """
    return {
        key: max(grid, key=lambda cell: (_score(cell, score), -cell.run.learning_rate)).run.learning_rate
        for key, grid in _by_setting(cells, setting).items()
        if not any(cell.missing for cell in grid)
    }


def tuning_table(
    headings: Sequence[str],
    cells: Iterable[Cell],
    setting: Callable[[Run], Setting],
    score: str = "accuracy",
) -> str:
    """Markdown tables of the score of every learning rate, the chosen one bold; one table per grid.

    Args:
      headings: of the parts of a setting.
      cells: of the tuning runs.
      setting: as for `choose_learning_rates`.
      score: that chooses.
    """
    cells = list(cells)
    chosen = choose_learning_rates(cells, setting, score)
    grids = _by_setting(cells, setting)
    tables: dict[tuple[float, ...], list[list[str]]] = {}
    for key, unsorted in grids.items():
        grid = sorted(unsorted, key=lambda cell: cell.run.learning_rate)
        rates = tuple(cell.run.learning_rate for cell in grid)
        table = tables.setdefault(rates, [[*headings, *(f"{rate:g}" for rate in rates)]])
        table.append([*map(_name, key), *(_entry(cell, score, chosen.get(key)) for cell in grid)])
    parts = [markdown_table(table, left=len(headings)) for table in tables.values()]
    if at_the_edge := _at_the_edge(grids, chosen):
        parts.append(
            "The best learning rate lies at the edge of the grid, so a better one may lie outside, which weakens "
            "every comparison with these: "
            f"{', '.join(map(' '.join, at_the_edge))}."
        )
    return "\n\n".join(parts)


@dataclasses.dataclass(frozen=True)
class Peak:
    """The top of a parabola through the score of a grid's best learning rate and its two neighbours.

    Attributes:
      chosen: the best rate of the grid.
      rate: where the parabola peaks.
      gain: by how much its top is above the best rate's score.
    """

    chosen: float
    rate: float
    gain: float


def find_peaks(
    cells: Iterable[Cell], setting: Callable[[Run], Setting], score: str = "accuracy"
) -> dict[Setting, Peak]:
    """How far a finer grid could go beyond the chosen rates, over the logarithm of the rate.

    Args:
      cells: of the tuning runs.
      setting: as for `choose_learning_rates`.
      score: that chooses.

    Returns:
      By setting, where the chosen rate has a neighbour without a diverged run on either side.
    """
    cells = list(cells)
    chosen = choose_learning_rates(cells, setting, score)
    peaks = {}
    for key, unsorted in _by_setting(cells, setting).items():
        grid = sorted(unsorted, key=lambda cell: cell.run.learning_rate)
        place = next((i for i, cell in enumerate(grid) if cell.run.learning_rate == chosen.get(key)), 0)
        near = grid[place - 1 : place + 2] if place else []
        scores = [_score(cell, score) for cell in near]
        if len(near) == 3 and all(map(math.isfinite, scores)) and scores[1] > min(scores):
            x = np.log10([cell.run.learning_rate for cell in near])
            a, b, c = np.polyfit(x - x[1], scores, 2)
            peaks[key] = Peak(
                near[1].run.learning_rate,
                float(10 ** (x[1] - b / (2 * a))),
                float(c - b**2 / (4 * a) - scores[1]),
            )
    return peaks


def _name(part: str) -> str:
    return names.METHODS.get(part) or names.OPTIMIZERS.get(part) or names.model(part)


def _by_setting(cells: Iterable[Cell], setting: Callable[[Run], Setting]) -> dict[Setting, list[Cell]]:
    grids: dict[Setting, list[Cell]] = collections.defaultdict(list)
    for cell in cells:
        grids[setting(cell.run)].append(cell)
    return grids


def _score(cell: Cell, score: str) -> float:
    values = cell.values(score).values()
    return statistics.fmean(values) if values and not cell.diverged else -math.inf


def _entry(cell: Cell, score: str, chosen: float | None) -> str:
    text = format_score(cell, score) + (" diverged" if cell.diverged else "")
    return f"**{text}**" if chosen == cell.run.learning_rate else text


def _at_the_edge(grids: Mapping[Setting, list[Cell]], chosen: Mapping[Setting, float]) -> dict[Setting, int]:
    """The settings whose chosen rate is the highest (1) or the lowest (-1) of the grid."""
    edges = {}
    for key, rate in chosen.items():
        rates = [cell.run.learning_rate for cell in grids[key]]
        if rate in (min(rates), max(rates)):
            edges[key] = 1 if rate == max(rates) else -1
    return edges
