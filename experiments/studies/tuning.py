"""What studies share that give every method the same grid of learning rates and let validation choose."""

import collections
import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from experiments.records import RunRecord
from experiments.report.cells import Cell, make_cells
from experiments.report.tables import format_score, markdown_table
from experiments.run import Run

TUNING_SEED = 100  # never a reported one

Setting = tuple[str, ...]


def make_tuning_runs(
    settings: Iterable[Run], grid: Mapping[str, Sequence[float]], **changes: Any
) -> list[Run]:
    """Every setting with every learning rate of its optimizer's grid, on a seed that is not reported.

    Args:
      settings: one run of each; its learning rate and seed do not matter.
      grid: learning rates by optimizer.
      **changes: what else is not as in the reported runs, such as epochs and what is evaluated on.
    """
    changes |= {"seed": TUNING_SEED}
    return [
        dataclasses.replace(run, learning_rate=rate, **changes)
        for run in settings
        for rate in grid[run.optimizer]
    ]


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
      cells: of the tuning runs, one seed each.
      setting: what has a learning rate of its own, such as (optimizer, method).
      score: see `Cell.values`. A diverged run, or one without the score, is never chosen before another.

    Returns:
      By setting, where all tuning runs have ended.
    """
    return {
        key: max(grid, key=lambda cell: (_score(cell, score), -cell.run.learning_rate)).run.learning_rate
        for key, grid in _by_setting(cells, setting).items()
        if all(cell.ended for cell in grid)
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
    for key, grid in grids.items():
        rates = tuple(cell.run.learning_rate for cell in grid)
        table = tables.setdefault(rates, [[*headings, *(f"{rate:g}" for rate in rates)]])
        table.append([*key, *(_entry(cell, score, chosen.get(key)) for cell in grid)])
    parts = [markdown_table(table, left=len(headings)) for table in tables.values()]
    if at_the_edge := _at_the_edge(grids, chosen):
        parts.append(
            "The best learning rate lies at the edge of the grid, so a better one may lie outside, which weakens "
            "every comparison with these: "
            f"{', '.join(at_the_edge)}."
        )
    return "\n\n".join(parts)


def _by_setting(cells: Iterable[Cell], setting: Callable[[Run], Setting]) -> dict[Setting, list[Cell]]:
    grids: dict[Setting, list[Cell]] = collections.defaultdict(list)
    for cell in cells:
        grids[setting(cell.run)].append(cell)
    return grids


def _score(cell: Cell, score: str) -> float:
    return -math.inf if cell.diverged else max(cell.values(score).values(), default=-math.inf)


def _entry(cell: Cell, score: str, chosen: float | None) -> str:
    text = format_score(cell, score) + (" diverged" if cell.diverged else "")
    return f"**{text}**" if chosen == cell.run.learning_rate else text


def _at_the_edge(grids: Mapping[Setting, list[Cell]], chosen: Mapping[Setting, float]) -> list[str]:
    edges = {}
    for key, grid in grids.items():
        rates = [cell.run.learning_rate for cell in grid]
        edges[key] = (min(rates), max(rates))
    return [" ".join(key) for key, rate in chosen.items() if rate in edges[key]]
