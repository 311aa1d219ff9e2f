"""Whether what was measured at initialisation bears out each of the four claims."""

import dataclasses
import itertools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import optimize, stats

from experiments.studies.beyond_batchnorm.plan import (
    COMPARED,
    GAUSSIAN,
    UNIFORM_WIDTH,
    grouped_name,
    model_name,
    uniform_name,
)
from experiments.studies.beyond_batchnorm.results import Results

EXPLODES = 1.5  # Growth per block above which the variance counts as exploding.
STABLE = 1.2  # Growth per block below which it counts as stable.
NO_GROWTH = 1.05  # Growth per block below which there is none to fit.
GOOD_FIT = 0.95


# Claim 1: activation normalizers let the variance grow linearly.


@dataclasses.dataclass(frozen=True)
class Growth:
    """How the variance grows along the blocks of a stage, averaged over stages and seeds.

    Attributes:
      slope: of the linear fit, per block.
      linear: R^2 of the linear fit.
      exponential: R^2 of the exponential fit, on the same scale.
      factor: by which an exponential fit grows per block.
    """

    slope: float
    linear: float
    exponential: float
    factor: float

    @property
    def kind(self) -> str:
        """'none', 'linear' or 'exponential', by the better fit."""
        if self.factor < NO_GROWTH:
            return "none"
        return "linear" if self.linear >= self.exponential else "exponential"


def r_squared(values: np.ndarray, fitted: np.ndarray) -> float:
    """Share of the variance that a fit explains."""
    total = np.sum((values - values.mean()) ** 2)
    return float(1 - np.sum((values - fitted) ** 2) / total) if total > 0 else float("nan")


def exponential(block: np.ndarray, log_start: float, rate: float) -> np.ndarray:
    """exp(log_start + rate * block)."""
    return np.exp(log_start + rate * block)


def fit_parameters(variances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least-squares fits a + b i and exp(a + b i) to the variances of blocks i = 0, 1, ...: (b, a) and (a, b)."""
    blocks = np.arange(len(variances))
    line = np.polyfit(blocks, variances, 1)
    rate, log_start = np.polyfit(blocks, np.log(variances), 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optimize.OptimizeWarning)  # a perfect fit has no covariance
        parameters, _ = optimize.curve_fit(exponential, blocks, variances, p0=(log_start, rate), maxfev=5000)
    return line, parameters


def fit_curves(variances: np.ndarray) -> dict[str, np.ndarray]:
    """Both fits at every block, 'linear' and 'exponential'."""
    blocks = np.arange(len(variances))
    line, parameters = fit_parameters(variances)
    return {"linear": np.polyval(line, blocks), "exponential": exponential(blocks, *parameters)}


def fit_growth(variances: np.ndarray) -> Growth:
    """How the variances of the blocks of one stage grow."""
    line, parameters = fit_parameters(variances)
    curves = fit_curves(variances)
    return Growth(
        slope=float(line[0]),
        linear=r_squared(variances, curves["linear"]),
        exponential=r_squared(variances, curves["exponential"]),
        factor=float(np.exp(parameters[1])),
    )


def activation_growth(results: Results) -> dict[str, Growth]:
    """Claim 1: growth under every activation normalizer, in the residual network."""
    size, found = results.size, {}
    for normalizer, measured in results.initializations(size.residual, size.activation_normalizers).items():
        fits = [fit_growth(np.exp(row)) for stage in measured.stages() for row in stage]
        means = np.mean([dataclasses.astuple(fit) for fit in fits], axis=0)
        found[normalizer] = Growth(*map(float, means))
    return found


# Claim 2: parametric normalizers let it grow exponentially, unless the block is another.


@dataclasses.dataclass(frozen=True)
class Factor:
    """Growth per block of the variance under a parametric normalizer.

    Attributes:
      mean: geometric mean over stages and seeds.
      lowest: of the seeds.
      highest: of the seeds.
      explodes: whether the claim says that it does.
    """

    mean: float
    lowest: float
    highest: float
    explodes: bool

    @property
    def holds(self) -> bool:
        """Whether it does what the claim says."""
        return self.mean > EXPLODES if self.explodes else self.mean < STABLE


# By normalizer and block: Figure 3. Its third panel has SkipInit in the code of its authors and none as printed.
PREDICTED_EXPLOSION = {
    ("weight_norm", ""): True,
    ("weight_norm", ":skip_init"): True,
    ("weight_norm", ":nonlinearity_on_residual"): False,
    ("weight_norm", ":skip_init:nonlinearity_on_residual"): False,
    ("scaled_ws", ""): True,
    ("scaled_ws", ":skip_init"): False,
    ("scaled_ws", ":nonlinearity_on_residual"): False,
    ("scaled_ws", ":skip_init:nonlinearity_on_residual"): False,
}


def parametric_growth(results: Results) -> dict[tuple[str, str], Factor]:
    """Claim 2: growth under both parametric normalizers with every kind of block."""
    found = {}
    for (normalizer, residual), predicted in PREDICTED_EXPLOSION.items():
        measured = results.initialization(model_name(results.size.residual, normalizer, residual))
        if measured is not None:
            rates = [np.polyfit(np.arange(stage.shape[1]), stage.T, 1)[0] for stage in measured.stages()]
            by_seed = np.exp(np.mean(rates, axis=0))
            mean = float(np.exp(np.mean(rates)))
            found[normalizer, residual] = Factor(mean, float(by_seed.min()), float(by_seed.max()), predicted)
    return found


# Claim 3: stable rank is linear in sqrt(width / group size).


@dataclasses.dataclass(frozen=True)
class RankFit:
    """Stable rank before the linear layer of the uniform network, against sqrt(width / group size).

    Attributes:
      roots: sqrt(width / group size).
      ranks: [seeds, group sizes].
      slope: of the fit to the means.
      intercept: of the fit.
      r_squared: of the fit.
    """

    roots: np.ndarray
    ranks: np.ndarray
    slope: float
    intercept: float
    r_squared: float

    @property
    def holds(self) -> bool:
        """Whether the fit is good and rises."""
        return self.r_squared >= GOOD_FIT and self.slope > 0


def rank_fit(results: Results) -> RankFit | None:
    """Claim 3: fits the means over seeds by a line."""
    sizes, ranks = [], []
    for group_size in results.size.group_sizes:
        initialization = results.initialization(uniform_name(group_size), dataset=GAUSSIAN)
        if initialization is not None:
            sizes.append(group_size)
            ranks.append(initialization.statistics["stable_rank"][:, -1])
    if len(sizes) < 3:
        return None
    roots = np.sqrt(UNIFORM_WIDTH / np.array(sizes))
    means = np.mean(ranks, axis=1)
    slope, intercept = np.polyfit(roots, means, 1)
    fit = r_squared(means, slope * roots + intercept)
    return RankFit(roots, np.array(ranks).T, float(slope), float(intercept), fit)


def similarities(results: Results, network: str) -> dict[int, np.ndarray]:
    """Cosine similarity in every unit, mean over seeds, by group size."""
    found = {}
    for group_size in results.size.group_sizes_of(network):
        initialization = results.initialization(grouped_name(network, group_size))
        if initialization is not None:
            found[group_size] = initialization.statistics["cosine_similarity"].mean(axis=0)
    return found


def last_similarities(results: Results, network: str) -> dict[int, float]:
    """The same before the linear layer."""
    return {size: float(by_unit[-1]) for size, by_unit in similarities(results, network).items()}


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's; NaN with fewer than three values."""
    if len(x) < 3:
        return float("nan")
    found: Any = stats.spearmanr(x, y)
    return float(found.statistic)


# Claim 4: gradients explode in this order: InstanceNorm, BatchNorm, GroupNorm, LayerNorm.


@dataclasses.dataclass(frozen=True)
class Explosion:
    """Gradient norms of one network and batch size, for each of `COMPARED`.

    Attributes:
      norms: by normalizer, logarithms [seeds, convolutions].
      early: by normalizer, mean logarithm over the first quarter of the convolutions, [seeds].
    """

    norms: Mapping[str, np.ndarray]
    early: Mapping[str, np.ndarray]

    @property
    def holds(self) -> bool | None:
        """Whether the means over seeds come in the order claimed."""
        if set(self.early) != set(COMPARED):
            return None
        return not self.broken

    @property
    def broken(self) -> list[tuple[str, str]]:
        """Where the means over seeds do not come in the order claimed: the first should be the larger one."""
        return [
            (first, second)
            for first, second in itertools.pairwise(COMPARED)
            if self.early[first].mean() < self.early[second].mean()
        ]

    def seeds_in_order(self, first: str, second: str) -> str:
        """In how many seeds the first one's gradients are the larger ones."""
        larger = self.early[first] >= self.early[second]
        return f"{larger.sum()} of {larger.size}"


def explosions(results: Results) -> dict[tuple[str, int], Explosion]:
    """Claim 4: gradient norms by network and batch size, where they were measured."""
    found = {}
    for network in results.size.networks:
        for batch_size, small in ((results.size.batch_size, False), (16, True)):
            measured = results.initializations(network, COMPARED, small=small)
            norms = {name: some.statistics["log_gradient_norm"] for name, some in measured.items()}
            early = {name: rows[:, : max(rows.shape[1] // 4, 1)].mean(axis=1) for name, rows in norms.items()}
            if norms:
                found[network, batch_size] = Explosion(norms, early)
    return found


INEQUALITIES = (("instance", "harmonic"), ("instance", "batch"), ("batch", "group"), ("instance", "group"))


def inequalities(results: Results, network: str) -> dict[tuple[str, str], tuple[float, float]]:
    """Mean 1/variance under the first normalizer against the second, for the same pre-activations.

    Returns:
      For each of `INEQUALITIES`, in the network with BatchNorm, the share of layers and seeds in which the first
      is at least the second, and the geometric mean of their ratio.
    """
    initialization = results.initialization(model_name(network, "batch_norm"))
    if initialization is None:
        return {}
    found = {}
    for first, second in INEQUALITIES:
        logs = [initialization.statistics[f"log_amplification_{name}"] for name in (first, second)]
        difference = logs[0] - logs[1]
        found[first, second] = float(np.mean(difference >= -1e-4)), float(np.exp(difference.mean()))
    return found
