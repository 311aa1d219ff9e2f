"""Tuning: every method gets the same grid of learning rates, and the score of unreported runs chooses."""

import dataclasses
import math
import statistics
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.records import RunRecord
from experiments.report import names
from experiments.report.cells import Cell, make_cells, without_seed
from experiments.report.markdown import markdown_table
from experiments.report.tables import format_score
from experiments.run import Run
from experiments.studies.grid import with_seeds

TUNING_SEED = 100  # never a reported one
TUNING_SEEDS = (100, 101)
MOST_EXTENSIONS = 4

Rates = Mapping[Run, Sequence[float]]  # by setting


@dataclasses.dataclass(frozen=True)
class Tuning:
    """Which learning rates are tried for every setting, and which one is taken.

    The best rate is the one of the highest score, the mean over the seeds; of two equal ones the lower. A rate with
    a diverged run, or without the score, is never chosen before another.

    Attributes:
      settings: one run of each row; its learning rate and seed do not matter.
      grid: learning rates by method behind an optimizer, as 'znorm sgdm', or by optimizer for all methods.
      axes: the fields in which the settings differ, which name them in a table.
      seeds: none of the reported ones.
      changes: what else is not as in the reported runs, such as epochs and what is evaluated on; or a function of the
        setting that gives it.
      extend: whether a grid whose best rate is its lowest or highest grows there by half a decade at a time, at most
        `MOST_EXTENSIONS` times.
      refine: whether a quarter of a decade on either side of the best rate is tried then.
      score: that chooses; see `Cell.values`.
      is_grid: whether the rates are a grid, beyond whose edges a better one may lie; else they are candidates, of
        which the highest score wins, also with a diverged run.
    """

    settings: Sequence[Run]
    grid: Mapping[str, Sequence[float]]
    axes: Sequence[str] = ("model", "optimizer", "method")
    seeds: Sequence[int] = (TUNING_SEED,)
    changes: Mapping[str, Any] | Callable[[Run], Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    extend: bool = False
    refine: bool = False
    score: str = "accuracy"
    is_grid: bool = True

    def runs(self, records: Iterable[RunRecord] = ()) -> list[Run]:
        """Every setting with every learning rate that can be named already.

        Args:
          records: what was made, of these and of other runs; a grid grows when all of its runs have ended.
        """
        return [
            run
            for setting, rates in self._rates(list(records)).items()
            for rate in rates
            for run in with_seeds([self._at(setting, rate)], self.seeds)
        ]

    def tuned(self, records: Iterable[RunRecord]) -> list[Run]:
        """The settings whose runs have ended, with the learning rate that these choose."""
        found = self.best(records)
        return [
            dataclasses.replace(setting, learning_rate=found[setting].run.learning_rate)
            for setting in self.settings
            if setting in found
        ]

    def best(self, records: Iterable[RunRecord]) -> dict[Run, Cell]:
        """By setting whose runs have ended, those with the best learning rate."""
        return self._best(self._by_setting(records))

    def reported(self, records: Iterable[RunRecord], seeds: Sequence[int]) -> list[Run]:
        """The tuned settings with every seed."""
        return with_seeds(self.tuned(records), seeds)

    def cells(self, records: Iterable[RunRecord]) -> list[Cell]:
        """A cell of every setting and learning rate, in their order."""
        return [cell for cells in self._by_setting(records).values() for cell in cells]

    def table(self, records: Iterable[RunRecord]) -> str:
        """Markdown tables of the score of every learning rate, the best one bold; one table per grid."""
        found = self._by_setting(records)
        best = self._best(found)
        tables: dict[tuple[float, ...], list[list[str]]] = {}
        for setting, cells in found.items():
            rates = tuple(cell.run.learning_rate for cell in cells)
            table = tables.setdefault(rates, [[*names.headings(self.axes), *(f"{rate:g}" for rate in rates)]])
            entries = (self._entry(cell, best.get(setting)) for cell in cells)
            table.append([*names.labels(setting, self.axes), *entries])
        parts = [markdown_table(table, left=len(self.axes)) for table in tables.values()]
        if self.is_grid and (edges := _edges(found, best)):
            settings = (" ".join(str(getattr(setting, field)) for field in self.axes) for setting in edges)
            parts.append(
                "The best learning rate lies at the edge of the grid, so a better one may lie outside, which weakens "
                f"every comparison with these: {', '.join(settings)}."
            )
        return "\n\n".join(parts)

    def peaks(self, records: Iterable[RunRecord]) -> "dict[Run, Peak]":
        """How far a finer grid could go beyond the best rates, over the logarithm of the rate.

        Returns:
          By setting, where the best rate has a neighbour without a diverged run on either side.
        """
        found = self._by_setting(records)
        peaks = {}
        for setting, best in self._best(found).items():
            place = found[setting].index(best)
            near = found[setting][place - 1 : place + 2] if place else []
            scores = [_score(cell, self.score) for cell in near]
            if len(near) == 3 and all(map(math.isfinite, scores)) and scores[1] > min(scores):
                x = np.log10([cell.run.learning_rate for cell in near])
                a, b, c = np.polyfit(x - x[1], scores, 2)
                peaks[setting] = Peak(
                    best.run.learning_rate,
                    float(10 ** (x[1] - b / (2 * a))),
                    float(c - b**2 / (4 * a) - scores[1]),
                )
        return peaks

    def drops(self, records: Iterable[RunRecord]) -> dict[Run, float]:
        """By setting, by how much the score falls from the best rate to the lower of its neighbours in the grid."""
        found = self._by_setting(records)
        drops = {}
        for setting, best in self._best(found).items():
            place = found[setting].index(best)
            beside = found[setting][max(0, place - 1) : place + 2]
            drops[setting] = _score(best, self.score) - min(_score(cell, self.score) for cell in beside)
        return drops

    def _by_setting(self, records: Iterable[RunRecord]) -> dict[Run, list[Cell]]:
        records = list(records)
        return self._cells(self._rates(records), records)

    def _at(self, setting: Run, rate: float) -> Run:
        changes = self.changes(setting) if callable(self.changes) else self.changes
        return dataclasses.replace(setting, learning_rate=rate, **changes)

    def _rates(self, records: Sequence[RunRecord]) -> Rates:
        rates = {
            setting: sorted(
                self.grid.get(f"{setting.method} {setting.optimizer}") or self.grid[setting.optimizer]
            )
            for setting in self.settings
        }
        for _ in range(MOST_EXTENSIONS if self.extend else 0):
            found = self._cells(rates, records)
            edges = _edges(found, self._best(found))
            for setting, step in edges.items():
                edge = max(rates[setting]) if step > 0 else min(rates[setting])
                rates[setting] = sorted([*rates[setting], half_a_decade(edge, step)])
            if not edges:
                break
        if self.refine:
            for setting, cell in self._best(self._cells(rates, records)).items():
                beside = [quarter_decades(cell.run.learning_rate, step) for step in (-1, 1)]
                rates[setting] = sorted([*rates[setting], *beside])
        return rates

    def _cells(self, rates: Rates, records: Sequence[RunRecord]) -> dict[Run, list[Cell]]:
        keys = {
            setting: [without_seed(self._at(setting, rate)) for rate in some]
            for setting, some in rates.items()
        }
        cells = make_cells(with_seeds([key for some in keys.values() for key in some], self.seeds), records)
        return {setting: [cells[key] for key in some] for setting, some in keys.items()}

    def _best(self, found: Mapping[Run, Sequence[Cell]]) -> dict[Run, Cell]:
        best = {
            setting: best_cell(cells, self.score, diverged_lose=self.is_grid)
            for setting, cells in found.items()
        }
        return {setting: cell for setting, cell in best.items() if cell is not None}

    def _entry(self, cell: Cell, best: Cell | None) -> str:
        text = format_score(cell, self.score) + (" diverged" if cell.diverged else "")
        return f"**{text}**" if cell is best else text


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


def best_cell(cells: Collection[Cell], score: str, *, diverged_lose: bool = True) -> Cell | None:
    """The cell of the learning rate that `Tuning` takes; `None` before all runs have ended."""
    if any(cell.missing for cell in cells):
        return None
    return max(
        cells,
        key=lambda cell: (_score(cell, score, diverged_lose=diverged_lose), -cell.run.learning_rate),
    )


def half_a_decade(rate: float, steps: int) -> float:
    """The rate so many steps further on the ladder ..., 0.1, 0.3, 1, 3, ..."""
    return quarter_decades(rate, 2 * steps)


def quarter_decades(rate: float, steps: int) -> float:
    """The rate so many steps further on the ladder ..., 0.1, 0.18, 0.3, 0.55, 1, ..."""
    decade, rung = divmod(round(4 * math.log10(rate)) + steps, 4)
    return float(f"{(1, 1.8, 3, 5.5)[rung]}e{decade}")


def _score(cell: Cell, score: str, *, diverged_lose: bool = True) -> float:
    values = cell.values(score).values()
    if not values or (cell.diverged and diverged_lose):
        return -math.inf
    return round(statistics.fmean(values), 9)  # Equal means of other numbers differ in their last bits.


def _edges(found: Mapping[Run, Sequence[Cell]], best: Mapping[Run, Cell]) -> dict[Run, int]:
    """The settings whose best rate is the highest (1) or the lowest (-1) of the grid."""
    places = {
        setting: (found[setting].index(cell), len(found[setting]) - 1) for setting, cell in best.items()
    }
    return {
        setting: 1 if place == last else -1 for setting, (place, last) in places.items() if place in (0, last)
    }
