"""How much the choice of GAN's multiplier can matter, from deviations that were recorded."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np

import optax_gradnorm
from experiments.records.dynamics import GradientDynamics
from experiments.report import names
from experiments.report.findings import Finding, judge
from experiments.report.markdown import markdown_table

LIBRARYS = "s / (1 + s)"
# Shapes of GAN's multiplier, which rises with the global deviation s from 0 to 1; the library's is the first.
SHAPES: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    LIBRARYS: lambda s: s / (1 + s),
    "tanh(s)": np.tanh,
    "1 - exp(-s)": lambda s: -np.expm1(-s),
    "s / sqrt(1 + s^2)": lambda s: s / np.hypot(1, s),
}
ADAM_STEPS = 1_000  # that its second moment remembers: 1 / (1 - 0.999)
LITTLE = 1.1  # two multipliers whose changes differ by less do the same

MULTIPLIER_NOTES = """\
GAN's multiplier is computed from the global deviations s that the GAN runs recorded, means over each epoch's steps;
no network was trained with a shape or an exponent other than the library's. With the exponent, which the article
describes as fixed at the first iteration, a shape f gives f(s) ^ p, p = 1 / (1 - ln f(s_1)), s_1 of the first epoch;
without it, f(s). A constant factor cancels in Adam, so what counts is by how much a multiplier changes among the
steps that Adam's second moment remembers; last column: the largest such ratio."""

# A shape, and whether the exponent is on.
Multiplier = tuple[str, bool]


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
) -> dict[str, dict[Multiplier, Change]]:
    """How every multiplier would have changed in the GAN runs.

    Args:
      recorded: statistics of runs by network and method.
      epochs_in_memory: how many epochs Adam's second moment remembers.

    Returns:
      The changes by network, shape and whether the exponent is on.
    """
    found: dict[str, dict[Multiplier, Change]] = {}
    for (model, method), runs in recorded.items():
        curves = (run.global_std.astype(np.float64) for run in runs)
        deviations = [curve for curve in curves if np.all(np.isfinite(curve) & (curve > 0))]
        if method == "gan" and deviations:
            found[model] = {}
            for shape in SHAPES:
                for exponent in (True, False):
                    curves = np.array([_log_multiplier(shape, exponent, s) for s in deviations])
                    within = [_largest_change(curve, epochs_in_memory) for curve in curves]
                    means = (curves[:, 0].mean(), curves[:, -1].mean(), np.mean(within))
                    found[model][shape, exponent] = Change(*(float(np.exp(mean)) for mean in means))
    return found


def _log_multiplier(shape: str, exponent: bool, deviations: np.ndarray) -> np.ndarray:
    """Logarithm of a multiplier along a run, from its deviations by epoch."""
    if (shape, exponent) == (LIBRARYS, True):  # what the runs were trained with
        librarys = optax_gradnorm.default_autoscale(jnp.asarray(deviations), jnp.asarray(deviations[0]))
        return np.log(np.asarray(librarys))
    curve = np.log(SHAPES[shape](deviations))
    return curve / (1 - curve[0]) if exponent else curve


def _largest_change(curve: np.ndarray, epochs: int) -> float:
    """The largest difference between two values of a curve that are at most so many epochs apart."""
    windows = [curve[start : start + epochs + 1] for start in range(max(1, len(curve) - epochs))]
    return max(float(np.ptp(window)) for window in windows)


def multipliers_matter(changes: Mapping[str, Mapping[Multiplier, Change]]) -> list[Finding]:
    """Findings for every network: whether shape and exponent matter, each by itself."""
    found = []
    for model, by_name in changes.items():
        on, off = ([by_name[shape, exponent].within for shape in SHAPES] for exponent in (True, False))
        found += [
            matters_little(
                model,
                "Given the exponent, the shape of GAN's multiplier matters little",
                [on],
                f"with it four shapes change by {span(on)} within {ADAM_STEPS:,} steps",
            ),
            matters_little(
                model,
                "Whether GAN's multiplier has the exponent matters little",
                list(zip(on, off, strict=True)),
                f"the same shapes change by {span(on)} within {ADAM_STEPS:,} steps with it, by {span(off)} without",
            ),
        ]
    return found


def matters_little(
    model: str, question: str, groups: Sequence[Sequence[float]], measured: str, note: str = ""
) -> Finding:
    """A finding: whether the changes within every group differ by little, 10 %."""
    return Finding(
        claim=f"{question} in front of Adam: {names.model(model)}",
        source="",
        measured=measured,
        interval=None,
        verdict=judge(all(max(group) / min(group) <= LITTLE for group in groups)),
        note=note,
        label=names.model(model),
        question=question,
    )


def span(changes: Sequence[float]) -> str:
    return f"x {min(changes):.2f} to x {max(changes):.2f}"


def multipliers_table(changes: Mapping[str, Mapping[Multiplier, Change]]) -> str:
    """Markdown: each multiplier in the first and the last epoch, and how it changes."""
    headings = ["network", "shape", "exponent", "first epoch", "last epoch", "last / first"]
    rows = [[*headings, f"most in {ADAM_STEPS:,} steps"]]
    rows += [
        [
            names.model(model),
            f"{shape} (the library's)" if shape == LIBRARYS else shape,
            "on" if exponent else "off",
            f"{change.first:.3g}",
            f"{change.last:.3g}",
            f"x {change.last / change.first:.2f}",
            f"x {change.within:.2f}",
        ]
        for model, by_name in changes.items()
        for (shape, exponent), change in by_name.items()
    ]
    return markdown_table(rows, left=3) if len(rows) > 1 else "No GAN run has recorded its gradients."
