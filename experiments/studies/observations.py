"""What recorded gradients say of two observations of the GAN paper, as findings."""

import dataclasses
import math
from collections.abc import Mapping

from experiments.report import intervals, names
from experiments.report.findings import CONTRADICTED, NO_DIFFERENCE, SHOWN, TOO_SMALL, UNTOLD, Finding, judge
from experiments.report.intervals import FEWEST_SEEDS, Interval
from experiments.run import Run
from experiments.studies.trends import (
    SEEN_SHARE,
    Settings,
    change_interval,
    count_trends,
    format_ratio,
)

SOURCE = "Yun 2025, arXiv 2509.03677"
FULL_IMAGES = 50_000  # of CIFAR-100
PAPER_STEPS = 58_500  # 300 epochs of 195 steps
# By a protocol's rule, a run of fewer steps than this share of the paper's cannot contradict what it observes.
ENOUGH = 0.5
NO_CHANGE = 0.05  # of the ratio of last over first epoch

RULES = f"""\
The global deviation falls, the first that applies: shown where the interval of the ratio of the last epoch to the
first behind the warm-up lies below 1, contradicted where it lies above 1, no difference that counts where all of it
is within {NO_CHANGE:.0%} of 1. Some layers rise while others fall: shown where more than {SEEN_SHARE:.0%} of the
layers do each in every run, with and without the first epoch; contradicted where in every run more than
{SEEN_SHARE:.0%} move one way from then on and no more than that the other, and no run has both. Of fewer than
{FEWEST_SEEDS} runs nothing is told. What few steps show or contradict is said of few steps."""


def trend_findings(
    settings: Settings,
    steps: Mapping[str, int],
    *,
    headline: tuple[str, str],
    regime: str = "",
    by_protocol: bool = False,
) -> list[Finding]:
    """A finding for every network, method and observation of its own gradients.

    Args:
      settings: summaries by network and method.
      steps: how long each network trained.
      headline: whose findings stand in README's table.
      regime: what tells these runs from another study's of the same network, for the claim.
      by_protocol: by the rule that `gradient_convergence` fixed, which few steps can only pass.
    """
    found = []
    for observe in (_falls, _part):
        for setting, runs in settings.items():
            if runs:
                finding = observe(setting, runs, steps[setting[0]], by_protocol)
                claim = f"{finding.claim}, {regime}" if regime else finding.claim
                found.append(dataclasses.replace(finding, claim=claim, headline=setting == headline))
    return found


def count_steps(run: Run) -> int:
    """Updates of a run on CIFAR-100."""
    return run.epochs * ((run.train_examples or FULL_IMAGES) // run.batch_size)


def _falls(setting: tuple[str, str], runs, steps: int, by_protocol: bool) -> Finding:
    """The global deviation falls: its last over its first epoch that counts, and how often that is a trend."""
    everything, later = count_trends(runs)
    tally = everything if by_protocol else later
    interval = change_interval(tally.runs)
    trend = f"falling as a trend in {sum(tally.overall(-1))} of {len(runs)} runs"
    whole = f"last / first epoch {format_ratio(change_interval(everything.runs))}"
    if by_protocol:
        verdict, since = _by_protocol(interval, steps), ""
        measured, note = f"{whole}, {trend}", _cannot(steps) if verdict != SHOWN else ""
    else:
        verdict, since, note = _either_way(interval), f" from epoch {later.start} on", describe_length(steps)
        measured = f"last epoch / epoch {later.start} {format_ratio(interval)}, {whole}; {trend}"
    known = interval.is_known
    return Finding(
        claim=f"The global deviation of the gradients falls{since}: {_where(setting)}",
        source=SOURCE,
        measured=measured,
        interval=(math.exp(interval.low), math.exp(interval.high)) if known else None,
        verdict=verdict,
        note=note,
        effect=math.exp(interval.mean) if interval.n else None,
        unit="ratio",
        detectable=100 * (math.exp(intervals.smallest_detectable(interval)) - 1) if known else None,
        label=_where(setting),
        question=f"The global deviation falls{since or ' from the first epoch to the last'}",
    )


def _either_way(interval: Interval) -> str:
    """The word for a fall, the first that applies; a rise contradicts it, however long the runs are."""
    if interval.n < FEWEST_SEEDS:
        return UNTOLD
    if interval.excludes_zero:
        return judge(interval.mean < 0)
    return NO_DIFFERENCE if interval.within(math.log(1 + NO_CHANGE)) else UNTOLD


def _by_protocol(interval: Interval, steps: int) -> str:
    """The word by the rule that was fixed for `gradient_convergence`: few steps show a fall, and no rise."""
    if interval.within(math.log(1 + NO_CHANGE)):
        return TOO_SMALL
    if interval.excludes_zero and interval.mean > 0:
        # It rises so far: it may yet fall in the many steps that are not here.
        return CONTRADICTED if steps >= ENOUGH * PAPER_STEPS else UNTOLD
    return SHOWN if interval.excludes_zero else UNTOLD


def _part(setting: tuple[str, str], runs, steps: int, by_protocol: bool) -> Finding:
    """Some layers rise while others fall, in one run."""
    everything, later = count_trends(runs)
    seen, seen_later = sum(everything.parted), sum(later.parted)
    one_way = sum(run.moves_one_way for run in later.runs)
    holds = True if min(seen, seen_later) == len(runs) else None
    if by_protocol:
        if holds is None and steps >= ENOUGH * PAPER_STEPS and not seen:
            holds = False
        note = _cannot(steps) if holds is None else ""
    else:
        if not seen and not seen_later and one_way == len(runs):
            holds = False
        if len(runs) < FEWEST_SEEDS:
            holds = None
        note = describe_length(steps)
    return Finding(
        claim=f"Some layers' deviations rise while others' fall: {_where(setting)}",
        source=SOURCE,
        measured=(
            f"more than {SEEN_SHARE:.0%} of the layers each way in {seen} of {len(runs)} runs, "
            f"from epoch {later.start} in {seen_later}"
            + ("" if by_protocol else f", one way alone in {one_way}")
        ),
        interval=None,
        verdict=judge(holds),
        note=note,
        label=_where(setting),
        question="Some layers rise while others fall",
    )


def describe_length(steps: int) -> str:
    """How many of the paper's steps were made; empty where they are about as many."""
    return "" if steps >= ENOUGH * PAPER_STEPS else f"in {steps:,} steps of the paper's {PAPER_STEPS:,}"


def _cannot(steps: int) -> str:
    return f"cannot be told {few}" if (few := describe_length(steps)) else ""


def _where(setting: tuple[str, str]) -> str:
    return f"{names.model(setting[0])}, {names.METHODS[setting[1]]}"
