"""What the summaries say of the GAN paper's three observations, as findings."""

import dataclasses
import math
from collections.abc import Mapping

from experiments.report import intervals, names
from experiments.report.findings import SHOWN, TOO_SMALL, UNTOLD, Finding, judge
from experiments.studies.gradient_dynamics.trends import (
    SEEN_SHARE,
    Settings,
    change_interval,
    count_trends,
    format_ratio,
    peak_factor,
)

SOURCE = "Yun 2025, arXiv 2509.03677"
PAPER_STEPS = 58_500  # 300 epochs of 195 steps
# A run of fewer steps than this share of the paper's cannot contradict what it observes by its end.
ENOUGH = 0.5
NO_CHANGE = 0.05  # of the ratio of last over first epoch


def make_findings(settings: Settings, steps: Mapping[str, int]) -> list[Finding]:
    """One finding for every network and observation.

    Args:
      settings: summaries by network and method.
      steps: how long each network trained.
    """
    measured = {setting: runs for setting, runs in settings.items() if runs}
    trends = trend_findings(settings, steps, headline=("resnet56", "baseline"))
    return [*trends, *_amplifies(measured, steps)]


def trend_findings(
    settings: Settings, steps: Mapping[str, int], *, headline: tuple[str, str], regime: str = ""
) -> list[Finding]:
    """The same of the observations that are of one network by itself.

    Args:
      settings: summaries by network and method.
      steps: how long each network trained.
      headline: whose findings stand in README's table.
      regime: what tells these runs from another study's of the same network, for the claim.
    """
    found = []
    for observe in (_falls, _part):
        for setting, runs in settings.items():
            if runs:
                finding = observe(setting, runs, steps[setting[0]])
                claim = f"{finding.claim}, {regime}" if regime else finding.claim
                found.append(dataclasses.replace(finding, claim=claim, headline=setting == headline))
    return found


def _falls(setting: tuple[str, str], runs, steps: int) -> Finding:
    """The global deviation falls: its last over its first epoch, and how often that is a trend."""
    everything, _ = count_trends(runs)
    interval = change_interval(everything.runs)
    falls = sum(everything.overall(-1))
    told = f"falling as a trend in {falls} of {len(runs)} runs"
    size = math.log(1 + NO_CHANGE)
    if interval.is_known and interval.high < 0:
        verdict = TOO_SMALL if interval.within(size) else SHOWN
    elif interval.is_known and interval.low > 0:
        # It rises so far: it may yet fall in the many steps that are not here.
        verdict = judge(False if steps >= ENOUGH * PAPER_STEPS else None)
    else:
        verdict = TOO_SMALL if interval.within(size) else UNTOLD
    known = interval.is_known
    return Finding(
        claim=f"The global deviation of the gradients falls: {_where(setting)}",
        source=SOURCE,
        measured=f"last / first epoch {format_ratio(interval)}, {told}",
        interval=(math.exp(interval.low), math.exp(interval.high)) if known else None,
        verdict=verdict,
        note=_short(steps) if verdict != SHOWN else "",
        effect=math.exp(interval.mean) if interval.n else None,
        unit="ratio",
        detectable=100 * (math.exp(intervals.smallest_detectable(interval)) - 1) if known else None,
        label=_where(setting),
        question="The global deviation falls from the first epoch to the last",
    )


def _part(setting: tuple[str, str], runs, steps: int) -> Finding:
    """Some layers rise while others fall, in one run."""
    everything, later = count_trends(runs)
    seen, seen_later = sum(everything.parted), sum(later.parted)
    holds = True if min(seen, seen_later) == len(runs) else None
    if holds is None and steps >= ENOUGH * PAPER_STEPS and not seen:
        holds = False
    return Finding(
        claim=f"Some layers' deviations rise while others' fall: {_where(setting)}",
        source=SOURCE,
        measured=(
            f"more than {SEEN_SHARE:.0%} of the layers each way in {seen} of {len(runs)} runs, "
            f"from epoch {later.start} in {seen_later}"
        ),
        interval=None,
        verdict=judge(holds),
        note=_short(steps) if holds is None else "",
        label=_where(setting),
        question="Some layers rise while others fall",
    )


def _amplifies(measured: Settings, steps: Mapping[str, int]) -> list[Finding]:
    """ZNorm's largest amplification is larger in VGG than in the ResNets."""
    found = []
    for method in dict.fromkeys(method for _, method in measured):
        largest = {model: peak_factor(runs) for (model, m), runs in measured.items() if m == method}
        largest = {model: factor for model, factor in largest.items() if not math.isnan(factor)}
        vgg = [factor for model, factor in largest.items() if model.startswith("vgg")]
        others = [factor for model, factor in largest.items() if not model.startswith("vgg")]
        holds = min(vgg) > max(others) if vgg and others else None
        numbers = ", ".join(f"{names.model(model)} {factor:,.0f}" for model, factor in largest.items())
        short = _short(max(steps.values())) if holds is False else ""
        found.append(
            Finding(
                claim=f"ZNorm amplifies small gradients most in VGG: gradients of {names.METHODS[method]}",
                source=SOURCE,
                measured=f"largest factor, geometric mean over seeds: {numbers or 'none'}",
                interval=None,
                verdict=judge(None if holds is False and short else holds),
                note=short or ("" if vgg and others else "this needs VGG and a ResNet"),
                label=names.METHODS[method],
                question="ZNorm amplifies most in VGG",
                headline=method == "baseline",
            )
        )
    return found


def _short(steps: int) -> str:
    return (
        ""
        if steps >= ENOUGH * PAPER_STEPS
        else f"cannot be told in {steps:,} steps of the paper's {PAPER_STEPS:,}"
    )


def _where(setting: tuple[str, str]) -> str:
    return f"{names.model(setting[0])}, {names.METHODS[setting[1]]}"
