"""Whether ZNorm amplifies small gradients most in VGG, by the largest factors of runs of several networks."""

import math
from collections.abc import Mapping, Sequence

from experiments.report import intervals, names
from experiments.report.contrasts import Endpoint
from experiments.report.findings import LEVEL, Finding, judge
from experiments.report.intervals import FEWEST_SEEDS, Interval
from experiments.studies.observations import SOURCE, describe_length
from experiments.studies.trends import Settings, peak_factor

FACTOR = Endpoint("", "largest factor", "ratio", 0.0)
LARGEST = "vgg"  # the family that is said to be amplified most


def amplification_findings(settings: Settings, steps: int) -> list[Finding]:
    """For every method, whether the largest factor is larger in VGG than in each other network.

    Args:
      settings: summaries by network and method.
      steps: how long each network trained.
    """
    factors = {
        setting: [math.log(run.peak.factor) for run in runs if run.peak is not None]
        for setting, runs in settings.items()
    }
    found = {
        (method, model): intervals.welch(factors[vgg, method], values)
        for (model, method), values in factors.items()
        for vgg in dict.fromkeys(model for model, _ in factors if model.startswith(LARGEST))
        if not model.startswith(LARGEST)
    }
    adjusted = dict(zip(found, intervals.holm([i.p for i in found.values()]), strict=True))
    return [
        _judge(
            method,
            {model: peak_factor(runs) for (model, m), runs in settings.items() if m == method},
            {model: (i, adjusted[m, model]) for (m, model), i in found.items() if m == method},
            steps,
        )
        for method in dict.fromkeys(method for _, method in settings)
    ]


def _judge(
    method: str,
    largest: Mapping[str, float],
    compared: Mapping[str, tuple[Interval, float]],
    steps: int,
) -> Finding:
    """By the protocol's rule: above all others, or below one of them."""
    signs = [i.mean > 0 if i.n >= FEWEST_SEEDS and p <= LEVEL else None for i, p in compared.values()]
    holds = False if False in signs else True if signs and None not in signs else None
    ratios = [
        f"x {FACTOR.write_interval(interval)} of {names.model(model)}'s"
        for model, (interval, _) in compared.items()
    ]
    factors = [f"{names.model(model)} {factor:,.0f}" for model, factor in largest.items()]
    return Finding(
        claim=f"ZNorm amplifies small gradients most in VGG: gradients of {names.METHODS[method]}",
        source=SOURCE,
        measured="; ".join(
            [
                f"VGG's largest factor {' and '.join(ratios) or 'not compared'}",
                f"geometric means over seeds: {', '.join(factors) or 'none'}",
            ]
        ),
        interval=None,
        verdict=judge(holds),
        note=describe_length(steps) if compared else "this needs VGG and another network",
        label=names.METHODS[method],
        question="ZNorm amplifies most in VGG",
        headline=method == "baseline",
    )


def describe_factors(found: Sequence[Finding]) -> str:
    """Markdown of what was compared, a line for each method."""
    return "\n".join(f"- Gradients of {finding.label}: {finding.measured}." for finding in found)
