"""What the protocol asks of the three networks together: differences of effects, two claims, and the answer."""

import dataclasses
import statistics
from collections.abc import Sequence

from experiments.report import intervals, names
from experiments.report.cells import Cell, paired_difference
from experiments.report.contrasts import ACCURACY, ONE_POINT, Contrast
from experiments.report.findings import HARMS, HELPS, NO_DIFFERENCE, UNTOLD, Finding, decide, judge
from experiments.report.intervals import Interval
from experiments.report.markdown import escape, markdown_table
from experiments.report.tables import format_number
from experiments.studies.steps_and_images.answer import LARGER, SMALLER

TRAINS = 0.2  # test accuracy, twice that of chance: below it a network has not trained

NEEDS_SKIPS = "ZNorm needs skip connections"
MENDS_OVERLAP = "ZNorm mends the harm that gradient overlap does"


@dataclasses.dataclass(frozen=True)
class Effects:
    """ZNorm minus the baseline in each network.

    Attributes:
      residual: in the ResNet.
      plain: in its twin without skip connections.
      overlap: in its twin with the gradients that leave the shortcuts multiplied by 1.5.
    """

    residual: Contrast
    plain: Contrast
    overlap: Contrast


@dataclasses.dataclass(frozen=True)
class Difference:
    """Between two networks, of the baseline's accuracy or of ZNorm's effect on it.

    Attributes:
      name: what is subtracted from what.
      interval: of the difference.
      p: of no difference, adjusted by Holm over the three.
      cells: whose accuracies are in it.
      is_of_effects: whether it is the difference of two effects of ZNorm.
    """

    name: str
    interval: Interval
    p: float
    cells: Sequence[Cell]
    is_of_effects: bool

    @property
    def word(self) -> str:
        """What the protocol calls it."""
        word = decide(self.interval, p=self.p, smallest=ONE_POINT)
        return {HELPS: LARGER, HARMS: SMALLER}.get(word, word) if self.is_of_effects else word


def compare_networks(effects: Effects) -> tuple[Difference, Difference, Difference]:
    """Of ZNorm's effect with and without skip connections, and of the baseline and that effect with and without 1.5.

    The first is not paired: without projections a seed gives other initial weights.
    """
    residual, plain, overlap = (
        names.model(c.row.cell.run.model) for c in (effects.residual, effects.plain, effects.overlap)
    )
    _, residual_baseline = effects.residual.cells
    _, overlap_baseline = effects.overlap.cells
    seeds = sorted(effects.overlap.by_seed.keys() & effects.residual.by_seed.keys())
    found = [
        intervals.welch(list(effects.residual.by_seed.values()), list(effects.plain.by_seed.values())),
        paired_difference(overlap_baseline, residual_baseline, ACCURACY.score),
        intervals.paired(*([c.by_seed[seed] for seed in seeds] for c in (effects.overlap, effects.residual))),
    ]
    of_skips, of_baseline, of_mending = intervals.holm([interval.p for interval in found])
    return (
        Difference(
            f"ZNorm's effect in {residual} minus that in {plain}",
            found[0],
            of_skips,
            (*effects.residual.cells, *effects.plain.cells),
            is_of_effects=True,
        ),
        Difference(
            f"baseline in {overlap} minus that in {residual}",
            found[1],
            of_baseline,
            (overlap_baseline, residual_baseline),
            is_of_effects=False,
        ),
        Difference(
            f"ZNorm's effect in {overlap} minus that in {residual}",
            found[2],
            of_mending,
            (*effects.overlap.cells, *effects.residual.cells),
            is_of_effects=True,
        ),
    )


def differences_table(differences: Sequence[Difference]) -> str:
    """A Markdown table of the three."""
    rows = [["contrast", "difference, points [95 %]", "p (Holm)", "verdict"]]
    for d in differences:
        rows.append([d.name, ACCURACY.write_interval(d.interval), format_number(d.p, ".2g"), d.word])
    return markdown_table(rows, aligned_left=(True, False, False, True))


def needs_skips(effects: Effects) -> bool | None:
    """Whether ZNorm needs skip connections, by the protocol's rule; `None` where it cannot be told."""
    with_skips, without = effects.residual.verdict, effects.plain.verdict
    of_skips, _, _ = compare_networks(effects)
    accuracies = [statistics.fmean(cell.values(ACCURACY.score).values()) for cell in effects.plain.cells]
    if max(accuracies) < TRAINS:
        return None
    if without == HELPS or of_skips.word in (SMALLER, NO_DIFFERENCE):
        return False
    if (with_skips, of_skips.word) == (HELPS, LARGER) and without in (HARMS, NO_DIFFERENCE):
        return True
    return None


def mends_overlap(effects: Effects) -> bool | None:
    """Whether amplified gradients harm and ZNorm mends it, by the protocol's rule; `None` where it cannot be told."""
    _, of_baseline, of_mending = compare_networks(effects)
    if of_baseline.word in (HELPS, NO_DIFFERENCE) or of_mending.word in (SMALLER, NO_DIFFERENCE):
        return False
    return True if (of_baseline.word, of_mending.word) == (HARMS, LARGER) else None


def judge_claims(effects: Effects) -> list[Finding]:
    """The two claims that the rules decide."""
    of_skips, of_baseline, of_mending = (
        ACCURACY.write_interval(d.interval) for d in compare_networks(effects)
    )
    with_skips, without = (ACCURACY.write_interval(c.interval) for c in (effects.residual, effects.plain))
    run = effects.residual.row.cell.run
    where = f"CIFAR-10, SGDM, tuned rates, {names.label(run, 'steps')}, {names.model(run.model)}"
    claims = (
        (
            NEEDS_SKIPS,
            "Yun 2024, arXiv 2408.01215",
            f"its effect {with_skips} with them, {without} without, difference {of_skips} points",
            needs_skips(effects),
        ),
        (
            MENDS_OVERLAP,
            "Yun 2024, arXiv 2410.21564",
            f"shortcut gradients x 1.5 change the baseline by {of_baseline}, ZNorm's effect by {of_mending} points",
            mends_overlap(effects),
        ),
    )
    return [
        Finding(
            claim=f"{claim}: {where}",
            source=source,
            measured=measured,
            interval=None,
            verdict=judge(holds),
            group=where,
            label="ZNorm",
            question=claim,
            headline=True,
        )
        for claim, source, measured, holds in claims
    ]


def answer(effects: Effects) -> str:
    """Both claims with their words and numbers, in Markdown."""
    sentences = []
    for finding in judge_claims(effects):
        verb = "" if finding.verdict == UNTOLD else "is "
        sentences.append(f"**That {finding.question} {verb}{finding.verdict}**: {escape(finding.measured)}.")
    return " ".join([*sentences, "Behind SGDM, every network and method at its own tuned rate."])
