"""Contrasts: each method against the baseline of the same setting, with what decides whether they differ."""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence

from experiments.report import intervals, names
from experiments.report.cells import Cell, Row, paired_difference
from experiments.report.findings import (
    FEW_SEEDS,
    HARM_SHOWN,
    HARMS,
    HELPS,
    SHOWN,
    WITHIN,
    Finding,
    compare_with_paper,
    decide,
    decide_by_protocol,
    spell,
)
from experiments.report.intervals import FEWEST_SEEDS, Interval
from experiments.run import Run


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """What methods are compared by.

    Attributes:
      score: name for `Cell.values`.
      title: for people.
      unit: 'points': hundredths, as of accuracy in percent; 'ratio': the score is a logarithm; else plain.
      smallest: smallest difference of interest, in the score's own scale.
      more_is_better: else less is.
      verb: what a method that is better does to it, for a claim.
    """

    score: str
    title: str
    unit: str
    smallest: float
    more_is_better: bool = True
    verb: str = "raises"

    def convert(self, value: float) -> float:
        """A score or a difference, as it is printed."""
        return 100 * value if self.unit == "points" else math.exp(value) if self.unit == "ratio" else value

    def convert_size(self, size: float) -> float:
        """The size of a difference, as it is printed: of a ratio by how many percent it differs from 1."""
        return 100 * (math.exp(size) - 1) if self.unit == "ratio" else self.convert(size)

    def write(self, value: float) -> str:
        """A difference for people."""
        value = self.convert(value)
        return {"points": f"{value:+.1f}", "ratio": f"{value:.3f}"}.get(self.unit, f"{value:+.2f}")

    def write_interval(self, interval: Interval) -> str:
        """A mean difference with its interval, for people."""
        if interval.n == 0:
            return "-"
        if not interval.is_known:
            return f"{self.write(interval.mean)} [{'one seed' if interval.n == 1 else 'seeds agree'}]"
        return f"{self.write(interval.mean)} {self.write_ends(interval)}"

    def write_ends(self, interval: Interval) -> str:
        """The ends of an interval that is known."""
        return f"[{self.write(interval.low)}, {self.write(interval.high)}]"


# One point and 5 % are our own choice, where no paper printed an effect.
ONE_POINT = 0.01
FIVE_PERCENT = math.log(1.05)
ACCURACY = Endpoint("final_accuracy", "test accuracy", "points", ONE_POINT)
FINAL_LOSS = Endpoint("log_final_loss", "final training loss", "ratio", FIVE_PERCENT, False, "lowers")
SPEED = Endpoint(
    "mean_log_loss", "training loss over all epochs", "ratio", FIVE_PERCENT, False, "lowers (trains faster)"
)
SMOOTHNESS = Endpoint(
    "log_roughness", "roughness of the training loss", "ratio", math.log(1.1), False, "lowers (smoother)"
)
LATE_LOSS = Endpoint(
    "log_late_loss", "training loss of the last 20 epochs", "ratio", FIVE_PERCENT, False, "lowers"
)
LOWEST_LOSS = Endpoint("log_lowest_loss", "lowest training loss", "ratio", FIVE_PERCENT, False, "lowers")


@dataclasses.dataclass(frozen=True)
class Contrast:
    """A method against the baseline.

    Attributes:
      row: the method's.
      endpoint: what is compared.
      interval: of the difference, paired by seed.
      pooled: the interval with the variance pooled over the family's cells; not paired. It decides nothing.
      p: of no difference, adjusted by Holm over the family.
      pooled_p: the same of the pooled interval.
      smallest: smallest difference of interest.
      paper: difference that the paper printed.
      by_protocol: whether the study's own report uses the words of its protocol.
    """

    row: Row
    endpoint: Endpoint
    interval: Interval
    pooled: Interval
    p: float
    pooled_p: float
    smallest: float
    paper: float | None
    by_protocol: bool

    @property
    def cells(self) -> tuple[Cell, Cell]:
        """The method's and the baseline's."""
        assert self.row.baseline is not None
        return self.row.cell, self.row.baseline

    @property
    def by_seed(self) -> dict[int, float]:
        """The difference of every seed that both cells have, in the order of the seeds."""
        ours, theirs = (cell.values(self.endpoint.score) for cell in self.cells)
        return {seed: ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())}

    @property
    def detectable(self) -> float:
        """Smallest detectable difference, in the endpoint's own scale."""
        return intervals.smallest_detectable(self.interval)

    @property
    def verdict(self) -> str:
        """The word that all studies share: see `findings.decide`."""
        return self._decide(self.interval, self.p, own=False)

    @property
    def own_verdict(self) -> str:
        """The word of the study's own report, where a protocol fixed these: see `findings.decide_by_protocol`."""
        return self._decide(self.interval, self.p, own=self.by_protocol)

    def _decide(self, interval: Interval, p: float, *, own: bool) -> str:
        better = self.endpoint.more_is_better
        if own:
            return decide_by_protocol(
                interval, p=p, smallest=self.smallest, more_is_better=better, paper=self.paper
            )
        return decide(interval, p=p, smallest=self.common_smallest, more_is_better=better)

    @property
    def common_smallest(self) -> float:
        """The smallest difference of interest beside other studies: a protocol may ask for less, not for more."""
        return min(self.smallest, self.endpoint.smallest)

    @property
    def note(self) -> str:
        """What the verdict alone does not say."""
        parts = self._few_seeds()
        if self.verdict in (HELPS, HARMS) and self.interval.within(self.common_smallest):
            parts.append(WITHIN)
        return "; ".join(parts + self._further(own=False))

    @property
    def own_note(self) -> str:
        """The same in the study's own report."""
        if not self.by_protocol:
            return self.note
        parts = self._few_seeds()
        if self.own_verdict in (SHOWN, HARM_SHOWN) and self.interval.within(self.smallest):
            parts.append("too small to count")
        if self.paper is not None and self.interval.excludes(self.paper):
            larger = self.interval.mean > self.paper
            parts.append(f"{'above' if larger else 'below'} the paper's effect")
        return "; ".join(parts + self._further(own=True))

    def _few_seeds(self) -> list[str]:
        return [] if self.interval.n >= FEWEST_SEEDS else [FEW_SEEDS]

    def _further(self, *, own: bool) -> list[str]:
        parts = []
        pooled = self._decide(self.pooled, self.pooled_p, own=own)
        # Without the sign of harm, which both intervals share.
        pooled = SHOWN if pooled == HARM_SHOWN else pooled
        word = self.own_verdict if own else self.verdict
        if self.interval.is_known and pooled != (SHOWN if word == HARM_SHOWN else word):
            parts.append(f"by the pooled interval {pooled}")
        if self.other_rate:
            theirs = self.row.baseline and self.row.baseline.run.learning_rate
            parts.append(f"at its own rate {self.row.cell.run.learning_rate:g}, not {theirs:g}")
        if self.row.cell.diverged or (self.row.baseline and self.row.baseline.diverged):
            parts.append("with diverged runs")
        return parts

    @property
    def other_rate(self) -> bool:
        """Whether a ratio of training losses compares learning rates too."""
        ours, theirs = self.row.cell.run, self.row.baseline and self.row.baseline.run
        return (
            self.endpoint.unit == "ratio"
            and theirs is not None
            and ours.learning_rate != theirs.learning_rate
        )

    @property
    def word(self) -> str:
        """The verdict and the note, for a table of the study's own report."""
        excludes = self.interval.n >= FEWEST_SEEDS and self.interval.excludes(0.0)
        word = spell(self.own_verdict, corrected=excludes)
        return f"{word}; {self.own_note}" if self.own_note else word

    @property
    def ends(self) -> tuple[float, float] | None:
        """The ends of the interval, as they are printed; `None` where there is none."""
        if not self.interval.is_known:
            return None
        return self.endpoint.convert(self.interval.low), self.endpoint.convert(self.interval.high)

    @property
    def printed_paper(self) -> float | None:
        """The paper's effect, as it is printed."""
        return None if self.paper is None else self.endpoint.convert(self.paper)

    @property
    def holds_paper(self) -> str:
        """Whether the interval holds the paper's effect; empty where one of the two is not known."""
        return compare_with_paper(self.ends, self.printed_paper, self.endpoint.unit)

    @property
    def runs(self) -> str:
        """Which runs are compared, as one short word."""
        names_of_runs = sorted(record.run.name for cell in self.cells for record in cell.ended.values())
        return hashlib.sha256(" ".join(names_of_runs).encode()).hexdigest()[:8]


def make_contrasts(
    rows: Sequence[Row],
    endpoint: Endpoint,
    *,
    paper: Callable[[Run], float | None] | None = None,
    smallest: Callable[[Run], float] | None = None,
    described: Collection[str] = (),
    by_protocol: bool = False,
    one_family: bool = False,
) -> list[Contrast]:
    """One contrast per row that has a baseline; a family is the rows whose labels differ in the method alone.

    Args:
      paper: difference to the baseline that the paper printed for a run's row.
      smallest: smallest difference of interest; by default the endpoint's.
      described: methods that are no part of the family: their p-values stay as they are.
      by_protocol: see `Contrast`.
      one_family: all rows are one family.
    """
    families: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        families.setdefault(() if one_family else row.labels[:-1], []).append(row)
    found = {}
    for family in families.values():
        compared = [row for row in family if row.baseline is not None]
        # Each once, also where rows share one, and where what is compared with has no row of its own.
        once = {id(c): c for c in [*(row.cell for row in family), *(row.baseline for row in compared)] if c}
        cells = [list(cell.values(endpoint.score).values()) for cell in once.values()]
        outside = [row.cell.run.method in described for row in compared]
        paired = [_difference(row, endpoint) for row in compared]
        pooled = [_pooled(row, endpoint, cells) for row in compared]
        adjusted, pooled_adjusted = _adjust(paired, outside), _adjust(pooled, outside)
        for i, row in enumerate(compared):
            run = row.cell.run
            found[row] = Contrast(
                row,
                endpoint,
                paired[i],
                pooled[i],
                adjusted[i],
                pooled_adjusted[i],
                smallest=endpoint.smallest if smallest is None else smallest(run),
                paper=None if paper is None else paper(run),
                by_protocol=by_protocol,
            )
    return [found[row] for row in rows if row in found]


def _adjust(found: Sequence[Interval], outside: Sequence[bool]) -> list[float]:
    """p-values, those of the family adjusted; those outside of it stay as they are."""
    adjusted = intervals.holm([math.nan if o else i.p for i, o in zip(found, outside, strict=True)])
    return [i.p if o else p for i, o, p in zip(found, outside, adjusted, strict=True)]


def _pooled(row: Row, endpoint: Endpoint, cells: Sequence[Sequence[float]]) -> Interval:
    assert row.baseline is not None
    ours, theirs = (list(cell.values(endpoint.score).values()) for cell in (row.cell, row.baseline))
    return intervals.pooled(ours, theirs, cells)


def _difference(row: Row, endpoint: Endpoint) -> Interval:
    assert row.baseline is not None
    return paired_difference(row.cell, row.baseline, endpoint.score)


def make_findings(
    contrasts: Sequence[Contrast],
    *,
    setting: str,
    sources: Mapping[str, str] | None = None,
    headline: Mapping[str, str] | None = None,
    forest: Collection[str] = (),
    versus: str = "baseline",
    own: bool = False,
) -> list[Finding]:
    """One finding per contrast whose runs have ended.

    Args:
      setting: what all rows have in common, such as 'CIFAR-10'.
      sources: by method, who claims it; a question of ours where there is none.
      headline: what the fields of the runs are that the table of all studies names; None names none.
      forest: methods that the forest plot draws.
      versus: the method that the others are compared with.
      own: in the words of the study's own report, where a protocol fixed these.
    """
    found = []
    for contrast in contrasts:
        if not contrast.interval.n:
            continue
        endpoint, run, interval = contrast.endpoint, contrast.row.cell.run, contrast.interval
        method = names.METHODS[run.method]
        where = ", ".join(part for part in (setting, *contrast.row.labels[:-1]) if part)
        known = interval.is_known
        against = "" if versus == "baseline" else f" against {names.METHODS[versus]}"
        found.append(
            Finding(
                claim=f"{method} {endpoint.verb} {endpoint.title}{against}: {where}",
                source=(sources or {}).get(run.method, ""),
                measured=_measured(endpoint, interval),
                interval=contrast.ends,
                verdict=contrast.own_verdict if own else contrast.verdict,
                note=contrast.own_note if own else contrast.note,
                effect=endpoint.convert(interval.mean),
                paper=contrast.printed_paper,
                unit=endpoint.unit,
                detectable=endpoint.convert_size(contrast.detectable) if known else None,
                group=where,
                label=method,
                other_rate=contrast.other_rate,
                runs=contrast.runs,
                question=f"{endpoint.title[:1].upper()}{endpoint.title[1:]} against the {names.METHODS[versus]}",
                headline=headline is not None and all(getattr(run, f) == v for f, v in headline.items()),
                forest=run.method in forest,
            )
        )
    return found


def _measured(endpoint: Endpoint, interval: Interval) -> str:
    text = endpoint.write_interval(interval)
    return f"x {text}" if endpoint.unit == "ratio" else f"{text} {endpoint.unit}"
