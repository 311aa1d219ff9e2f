"""The claims of `results/cifar10_confirm/PROTOCOL.md`, and how it reads the study's two arms together."""

import dataclasses
from collections.abc import Mapping, Sequence

from experiments.report import names
from experiments.report.cells import Cell
from experiments.report.contrasts import ACCURACY, SPEED, Contrast
from experiments.report.findings import LEVEL
from experiments.report.markdown import markdown_table
from experiments.studies.comparison import Answers

TUNED, REGIME = "rates tuned", "the paper's regime"
NOT_ISOLATED = """\
What was measured is the two differences. The arms differ in images, epochs, steps and schedule as well as in the
rate, so that no contrast of this study says which of them makes the gain in the paper's regime."""
COULD_NOT_FAIL = """\
Claim 4 could hardly fail with SGDM: the smallest effect of interest is 5.9 points there, so that a loss of [-5, -2]
points would have been kept. Beside the other studies ([findings](../../../../docs/findings.md)) one point counts."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """One arm of the study.

    Attributes:
      name: 'rates tuned' (arm A) or 'the paper's regime' (arm B).
      cells: that have begun.
      comparisons: by the method that others are compared with.
    """

    name: str
    cells: Sequence[Cell]
    comparisons: Mapping[str, Answers]


def claims_table(arm: Arm) -> str:
    """The protocol's five claims, judged by what would have failed them."""
    rows = [["claim", "setting", "outcome", "difference [95 %]"]]
    for claim, versus, method, endpoint in (
        ("1. ZNorm improves accuracy", "baseline", "znorm", ACCURACY),
        ("2. ZNorm is better than clipping", "clipping", "znorm", ACCURACY),
        ("2. ZNorm is better than centralization", "centralization", "znorm", ACCURACY),
        ("3. ZNorm accelerates training", "baseline", "znorm", SPEED),
        ("4. GAN keeps the accuracy", "baseline", "gan", ACCURACY),
        ("5. Centralization improves accuracy", "baseline", "centralization", ACCURACY),
    ):
        answers = arm.comparisons.get(versus)
        for contrast in answers.contrasts[endpoint.score] if answers else ():
            if contrast.row.cell.run.method == method and contrast.interval.is_known:
                where = ", ".join(contrast.row.labels[:-1])
                number = endpoint.write_interval(contrast.interval)
                rows.append([claim, where, outcome(claim[0], versus, contrast), number])
    return (
        f"{markdown_table(rows, left=4)}\n\n{COULD_NOT_FAIL}"
        if len(rows) > 1
        else "No claim can be judged yet."
    )


def outcome(claim: str, versus: str, contrast: Contrast) -> str:
    """Whether one of the protocol's claims, by its number, fails, is shown, or neither."""
    interval, rejected = contrast.interval, contrast.p <= LEVEL
    positive = rejected and interval.mean > 0
    if claim in "15":
        failed, shown = interval.high < contrast.smallest or interval.high < 0, positive
    elif claim == "2" and versus == "clipping":
        failed, shown = not positive, positive
    elif claim == "2":
        failed, shown = interval.high < 0, interval.low > 0
    elif claim == "3":
        failed, shown = interval.low > 0, interval.high < 0
    else:
        failed = interval.high < 0 and not interval.within(contrast.smallest)
        shown = interval.within(contrast.smallest)
    if failed:
        return "**fails**" + ("; a smaller gain is shown" if shown else "")
    return "**shown**" if shown else "cannot be told"


def read_together(arms: Sequence[Arm]) -> list[str]:
    """What the two arms say of ZNorm, as the protocol reads them: a sentence for each optimizer that both have."""
    found: dict[str, dict[str, list[Contrast]]] = {}
    for arm in arms:
        answers = arm.comparisons.get("baseline")
        for contrast in answers.contrasts[ACCURACY.score] if answers else ():
            run = contrast.row.cell.run
            if run.method == "znorm" and contrast.interval.is_known:
                found.setdefault(names.OPTIMIZERS[run.optimizer], {}).setdefault(arm.name, []).append(
                    contrast
                )
    words = {
        (
            False,
            True,
        ): "the gain is in the paper's regime alone, which the protocol reads as one of the learning rate",
        (True, True): "the gain is in both, which the protocol reads as one of the method",
        (
            True,
            False,
        ): "the gain is where tuned alone: the paper's regime as rebuilt does not show what it claims",
        (False, False): "no gain is shown in either",
    }
    lines = []
    for optimizer, by_arm in found.items():
        if len(by_arm) == len(arms):
            tuned, regime = (
                any(c.p <= LEVEL and c.interval.mean > 0 for c in by_arm[name]) for name in (TUNED, REGIME)
            )
            numbers = ", ".join(
                f"{' and '.join(ACCURACY.write_interval(c.interval) for c in by_arm[name])} points {where}"
                for name, where in ((TUNED, "where every method's rate is tuned"), (REGIME, f"in {REGIME}"))
            )
            lines.append(
                f"**ZNorm with {optimizer}**, test accuracy against the baseline: {numbers}; {words[tuned, regime]}."
            )
    return [*lines, NOT_ISOLATED] if lines else []
