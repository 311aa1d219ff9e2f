"""How much the choice of GAN's multiplier can matter, from deviations that were recorded."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np

import optax_gradnorm
from experiments.report import names
from experiments.report.findings import Finding, judge
from experiments.report.markdown import markdown_table
from experiments.statistics import GradientDynamics

# Multipliers of GAN, from the global deviations of a run's epochs and that of the first one.
MULTIPLIERS: Mapping[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "the library's": lambda s, first: np.asarray(
        optax_gradnorm.default_autoscale(jnp.asarray(s), jnp.asarray(first))
    ),
    "tanh(s)": lambda s, first: np.tanh(s),
    "1 - exp(-s)": lambda s, first: -np.expm1(-s),
    "s / sqrt(1 + s^2)": lambda s, first: s / np.hypot(1, s),
}
ADAM_STEPS = 1_000  # that its second moment remembers: 1 / (1 - 0.999)
LITTLE = 1.1  # two multipliers whose changes differ by less do the same

MULTIPLIER_NOTES = """\
GAN's multiplier is computed from the global deviations s that the GAN runs recorded, means over each epoch's steps;
no network was trained with the other three. A constant factor cancels in Adam, so what counts is by how much a
multiplier changes among the steps that Adam's second moment remembers; last column: the largest such ratio."""


@dataclasses.dataclass(frozen=True)
class Change:
    """How much one multiplier of GAN changes while networks train; geometric means over seeds.

    Attributes:
      first: its value in the first epoch.
      last: and in the last.
      within: the largest ratio between two epochs that Adam's second moment remembers together.
    """

    first: float
    last: float
    within: float


def changes_along(
    recorded: Mapping[tuple[str, str], Sequence[GradientDynamics]], epochs_in_memory: int
) -> dict[str, dict[str, Change]]:
    """How every multiplier would have changed in the GAN runs.

    Args:
      recorded: statistics of runs by network and method.
      epochs_in_memory: how many epochs Adam's second moment remembers.

    Returns:
      The changes by network and multiplier.
    """
    found: dict[str, dict[str, Change]] = {}
    for (model, method), runs in recorded.items():
        deviations = [run.global_std.astype(np.float64) for run in runs if np.all(run.global_std > 0)]
        if method == "gan" and deviations:
            found[model] = {}
            for name, multiplier in MULTIPLIERS.items():
                curves = np.log([multiplier(s, s[0]) for s in deviations])
                within = [_largest_change(curve, epochs_in_memory) for curve in curves]
                means = (curves[:, 0].mean(), curves[:, -1].mean(), np.mean(within))
                found[model][name] = Change(*(float(np.exp(mean)) for mean in means))
    return found


def _largest_change(curve: np.ndarray, epochs: int) -> float:
    """The largest difference between two values of a curve that are at most so many epochs apart."""
    windows = [curve[start : start + epochs + 1] for start in range(max(1, len(curve) - epochs))]
    return max(float(np.ptp(window)) for window in windows)


def multipliers_matter(changes: Mapping[str, Mapping[str, Change]]) -> list[Finding]:
    """A finding for every network: whether the multipliers' changes differ, by the protocol's rule."""
    findings = []
    for model, by_name in changes.items():
        within = [change.within for change in by_name.values()]
        findings.append(
            Finding(
                claim=f"Which multiplier GAN has matters little in front of Adam: {names.model(model)}",
                source="",
                measured=f"they change by x {min(within):.2f} to x {max(within):.2f} within {ADAM_STEPS:,} steps",
                interval=None,
                verdict=judge(max(within) / min(within) <= LITTLE),
                label=names.model(model),
                question="Which multiplier GAN has matters little",
            )
        )
    return findings


def multipliers_table(changes: Mapping[str, Mapping[str, Change]]) -> str:
    """Markdown: each multiplier in the first and the last epoch, and how it changes."""
    headings = ["network", "multiplier", "first epoch", "last epoch", "last / first"]
    rows = [[*headings, f"most in {ADAM_STEPS:,} steps"]]
    rows += [
        [
            names.model(model),
            name,
            f"{change.first:.3g}",
            f"{change.last:.3g}",
            f"x {change.last / change.first:.2f}",
            f"x {change.within:.2f}",
        ]
        for model, by_name in changes.items()
        for name, change in by_name.items()
    ]
    return markdown_table(rows, left=2) if len(rows) > 1 else "No GAN run has recorded its gradients."
