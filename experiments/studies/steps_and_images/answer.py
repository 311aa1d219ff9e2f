"""What the protocol asks of several cells together: how an effect depends on steps and images, and the answer."""

import dataclasses
from collections.abc import Collection, Mapping

from experiments.report import intervals, names
from experiments.report.contrasts import ACCURACY, ONE_POINT, Contrast
from experiments.report.findings import HARMS, HELPS, LEVEL, NO_DIFFERENCE, UNTOLD
from experiments.report.intervals import Interval
from experiments.report.markdown import markdown_table
from experiments.report.tables import format_number

LARGER, SMALLER = "larger", "smaller"
_SMALL = "; by less than a point"
METHODS = ("znorm", "centralization")  # whose effects are compared between cells

Cell = tuple[int, int]  # images, steps
Effects = Mapping[Cell, Contrast]  # of one method behind SGDM
CORNERS = FEW_SHORT, FEW_LONG, MANY_SHORT, MANY_LONG = (
    (2_000, 390),
    (2_000, 1_950),
    (50_000, 390),
    (50_000, 1_950),
)
OF_STEPS = (FEW_SHORT, FEW_LONG), (MANY_SHORT, MANY_LONG)
OF_IMAGES = (FEW_SHORT, MANY_SHORT), (FEW_LONG, MANY_LONG)
PAIRS = (*OF_STEPS, *OF_IMAGES)


@dataclasses.dataclass(frozen=True)
class Dependence:
    """The effect in one cell minus that in another.

    Attributes:
      first: with fewer steps or fewer images.
      second: what it is compared with.
      interval: Welch's, of the difference of the two means over seeds.
      p: of no difference, adjusted by Holm over a method's four.
    """

    first: Cell
    second: Cell
    interval: Interval
    p: float

    @property
    def word(self) -> str:
        """What the protocol calls it."""
        if self.interval.is_known and self.p <= LEVEL:
            return LARGER if self.interval.mean > 0 else SMALLER
        return NO_DIFFERENCE if self.interval.within(ONE_POINT) else UNTOLD


def compare_cells(effects: Effects) -> list[Dependence]:
    """How an effect depends on steps, with few and with many images, and on images, in short and in long training."""
    found = [intervals.welch(*(list(effects[cell].by_seed.values()) for cell in pair)) for pair in PAIRS]
    adjusted = intervals.holm([interval.p for interval in found])
    return [Dependence(*pair, interval, p) for pair, interval, p in zip(PAIRS, found, adjusted, strict=True)]


def dependences_table(effects: Mapping[str, Effects]) -> str:
    """A Markdown table of both methods' dependences, by method; empty before all four cells have ended."""
    rows = [["method", "effect", "minus effect", "difference, points [95 %]", "p (Holm)", "the first is"]]
    for method in METHODS:
        if all(cell in effects.get(method, {}) for cell in CORNERS):
            for d in compare_cells(effects[method]):
                interval = ACCURACY.write_interval(d.interval)
                words = names.METHODS[method], *map(_describe, (d.first, d.second)), interval
                is_small = d.word in (LARGER, SMALLER) and d.interval.within(ONE_POINT)
                rows.append([*words, format_number(d.p, ".2g"), d.word + _SMALL * is_small])
    return markdown_table(rows, aligned_left=(True, True, True, False, False, True)) if rows[1:] else ""


def answer(effects: Effects) -> str:
    """When ZNorm helps behind SGDM, by the protocol's rules; empty before the four cells have ended."""
    if not all(cell in effects for cell in CORNERS):
        return ""
    words = {(d.first, d.second): d.word for d in compare_cells(effects)}
    helps = {cell for cell, contrast in effects.items() if contrast.verdict == HELPS}
    harms = {cell for cell, contrast in effects.items() if contrast.verdict == HARMS}

    def grows(pairs: tuple[tuple[Cell, Cell], ...]) -> bool:
        found = [words[pair] for pair in pairs]
        return LARGER in found and SMALLER not in found

    when = []
    if {FEW_SHORT, MANY_SHORT} <= helps and grows(OF_STEPS):
        when.append("in short training")
    if {FEW_SHORT, FEW_LONG} <= helps and grows(OF_IMAGES):
        when.append("with few images")
    if helps & set(CORNERS) == {FEW_SHORT}:
        when.append("with few steps and few images together alone")
    if when:
        is_small = all(effects[cell].interval.within(ONE_POINT) for cell in helps & set(CORNERS))
        verdict = f"helps {'by less than a point ' * is_small}{' and '.join(when)}"
        # The rule looks at the four cells alone, and another one may seem to say otherwise.
        if helps & set(CORNERS) == {FEW_SHORT} and (others := helps - set(CORNERS)):
            verdict += f"; it helps {_list(others)} too"
    elif not helps:
        verdict = "helps nowhere that was tried"
    else:
        verdict = f"helps {_list(helps)}; what makes it help cannot be told"
    if harms:
        verdict += f"; it harms {_list(harms)}"
    numbers = ", ".join(
        f"{ACCURACY.write_interval(effects[cell].interval)} with {_describe(cell)}" for cell in CORNERS
    )
    return (
        f"**Behind SGDM, tuned, ZNorm {verdict}**: {numbers} (points of test accuracy against the baseline)."
    )


def _describe(cell: Cell) -> str:
    return f"{cell[0]:,} images and {cell[1]:,} steps"


def _list(cells: Collection[Cell]) -> str:
    return " and ".join(f"with {_describe(cell)}" for cell in sorted(cells))
