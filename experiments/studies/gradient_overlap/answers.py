"""What was measured of gradient overlap, in sentences and as findings."""

import math
from collections.abc import Mapping

import numpy as np

from experiments.report import intervals, names
from experiments.report.findings import LEVEL, Finding, judge
from experiments.report.intervals import FEWEST_SEEDS, Interval
from experiments.studies.gradient_overlap.measures import Network, Networks

SOURCE = "Yun 2024, arXiv 2410.21564"
ORTHOGONAL = 0.1
ALIGNED = 0.5
PAPER_AMPLIFICATION = math.log(1.5)  # of its simulation, equation 31


def describe(networks: Networks, states: Mapping[str, str]) -> str:
    """The bound, how tight it is, and how growth compares with plain twins, in sentences.

    Args:
      networks: by model and state.
      states: their names for people.
    """
    if not networks:
        return "Nothing was measured yet."
    everything = list(networks.values())
    lines = [
        f"- The bound holds in all {sum(n.seeds for n in everything)} networks, as it must: "
        "it is a theorem (Lemma 2.1; Lemma 2.2 without shortcuts). It does not say how tight it is."
    ]
    residual = {key: n for key, n in networks.items() if not n.is_plain}
    plain = {key: n for key, n in networks.items() if n.is_plain}
    for kind, some in (("residual", residual), ("plain", plain)):
        if some:
            slack = np.concatenate([n.slack for n in some.values()])
            lines.append(
                f"- How tight: in {kind} networks the bound is too large by a factor of {np.median(slack):.2f} per "
                f"block, from {slack.min():.2f} to {slack.max():.2f}."
            )
    if residual:
        beyond = sum(int(np.sum(n.growth > n.plain_bound)) for n in residual.values())
        seeds = sum(n.seeds for n in residual.values())
        lines.append(
            f"- In {beyond} of {seeds} residual networks the gradient grows beyond prod(alpha), the bound without "
            "shortcuts."
        )
    lines += _compare_growth(networks, states)
    return "\n".join(lines)


def _compare_growth(networks: Networks, states: Mapping[str, str]) -> list[str]:
    """How a residual network's gradient grows beside its plain twin's, state by state, paired by seed."""
    lines = []
    for state, words in states.items():
        pairs = [
            (model, networks[model, state], networks[twin, state])
            for model, twin in ((m, m.replace("resnet", "plain")) for m, s in networks if s == state)
            if model != twin and (twin, state) in networks
        ]
        if pairs:
            told = [_compare_one_growth(model, r, p) for model, r, p in pairs]
            lines.append(f"- Growth of the gradient, {words}: {'; '.join(told)}.")
    return lines


def _growth_difference(residual: Network, plain: Network) -> Interval:
    """Differences of the decimal logarithms, residual - plain, paired by seed."""
    seeds = [seed for seed in residual.growth_by_seed if seed in plain.growth_by_seed]
    return intervals.paired(
        [residual.growth_by_seed[seed] for seed in seeds], [plain.growth_by_seed[seed] for seed in seeds]
    )


def _compare_one_growth(model: str, residual: Network, plain: Network) -> str:
    """Medians with and without skip connections, and the interval of the paired difference of their logarithms."""
    medians = f"{10 ** np.median(residual.growth):.3g} against {10 ** np.median(plain.growth):.3g}"
    difference = _growth_difference(residual, plain)
    if difference.n < FEWEST_SEEDS or not difference.is_known:
        return f"{names.model(model)} {medians} in its plain twin (too few seeds for an interval)"
    word = "smaller" if difference.mean < 0 else "larger"
    return (
        f"{names.model(model)} **{word if difference.excludes_zero else 'cannot be told'}**, {medians} in its plain "
        f"twin, difference of log10 {difference.mean:+.2f} [{difference.low:+.2f}, {difference.high:+.2f}]"
    )


def overlap_findings(networks: Networks, states: Mapping[str, str]) -> list[Finding]:
    """Whether the sum of both paths is longer, whether the paths are aligned, and whether shortcuts add growth."""
    found = []
    for state, words in states.items():
        for (model, s), network in networks.items():
            if s != state or network.is_plain:
                continue
            where = f"{names.model(model)}, {words}"
            # A seed counts with its blocks together, so that seeds are what varies.
            amplification = np.log(network.blocks["amplification"]).mean(axis=1)
            interval = intervals.of_mean(amplification.tolist())
            low, high = math.exp(interval.low), math.exp(interval.high)
            found.append(
                Finding(
                    claim=f"The gradients of both paths add up to a longer one: {where}",
                    source=SOURCE,
                    measured=f"x {math.exp(interval.mean):.2f} [{low:.2f}, {high:.2f}]",
                    interval=(low, high) if interval.is_known else None,
                    verdict=judge(_is_longer(interval)),
                    note=f"longer in {np.mean(network.blocks['amplification'] > 1):.0%} of the blocks",
                    effect=math.exp(interval.mean),
                    paper=math.exp(PAPER_AMPLIFICATION),
                    unit="ratio",
                    detectable=100 * (math.exp(intervals.smallest_detectable(interval)) - 1)
                    if interval.is_known
                    else None,
                    label=where,
                    question="The sum of both paths is longer than the shortcut's gradient",
                    headline=(model, state) == ("resnet56", "initialisation"),
                )
            )
    for state, words in states.items():
        some = [n for (_, s), n in networks.items() if s == state and not n.is_plain]
        if some:
            cosine = np.concatenate([n.blocks["cosine"].ravel() for n in some])
            orthogonal = float(np.mean(np.abs(cosine) < ORTHOGONAL))
            found.append(
                Finding(
                    claim=f"The gradients of branch and shortcut point the same way: ResNets, {words}",
                    source=f"{SOURCE}, equation 31",
                    measured=(
                        f"median cosine {np.median(cosine):+.3f}; absolute value below {ORTHOGONAL} in "
                        f"{orthogonal:.0%} of the blocks"
                    ),
                    interval=None,
                    verdict=judge(bool(np.median(cosine) > ALIGNED)),
                    note=f"would be shown by a median cosine above {ALIGNED}",
                    label=words,
                    question="The two paths' gradients are aligned, as the simulation takes them to be",
                    headline=state == "initialisation",
                )
            )
    return [*found, *_growth_findings(networks, states)]


def _is_longer(interval: Interval) -> bool | None:
    """Whether the logarithm of the amplification is above 0; `None` where that cannot be told."""
    told = interval.n >= FEWEST_SEEDS and interval.is_known and interval.p <= LEVEL
    return interval.mean > 0 if told else None


def _growth_findings(networks: Networks, states: Mapping[str, str]) -> list[Finding]:
    """Whether a gradient grows more through a residual network than through its plain twin."""
    found = []
    for (model, state), residual in networks.items():
        plain = networks.get((model.replace("resnet", "plain"), state))
        if residual.is_plain or plain is None:
            continue
        difference = _growth_difference(residual, plain)
        where = f"{names.model(model)}, {states[state]}"
        if not difference.is_known:
            continue
        found.append(
            Finding(
                claim=f"Shortcuts make the gradient grow more than in the plain twin: {where}",
                source=SOURCE,
                measured=(
                    f"log10 of the growth {difference.mean:+.2f} [{difference.low:+.2f}, {difference.high:+.2f}]"
                ),
                interval=(difference.low, difference.high),
                verdict=judge(None if not difference.excludes_zero else difference.mean > 0),
                effect=difference.mean,
                unit="log10",
                detectable=intervals.smallest_detectable(difference),
                label=where,
                question="The gradient grows more with shortcuts than without",
                note="the plain twin hardly trains" if state != "initialisation" else "",
            )
        )
    return found
