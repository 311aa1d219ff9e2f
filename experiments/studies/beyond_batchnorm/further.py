"""What was measured beside the four claims: Figures 10 and 15, batch sizes, and the exponent of claim 3."""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
from scipy import stats

from experiments.studies.beyond_batchnorm.claims import r_squared, rank_fit
from experiments.studies.beyond_batchnorm.plan import COMPARED
from experiments.studies.beyond_batchnorm.results import Results

EXPONENTS = (0.25, 0.4, 0.5, 0.6, 0.67, 0.75, 1.0)
VANISHES = 0.9  # growth of the variance per layer below which it counts as vanishing
EXPLODES = 1.1
SAME_GROWTH = 0.02  # the change of the gradients' growth per layer that counts as one
PREDICTED_DEVIATION = math.sqrt((math.pi - 1) / math.pi)  # of pre-activations, by the paper's proof
FINE = np.round(np.arange(0.1, 1.51, 0.01), 2)


@dataclasses.dataclass(frozen=True)
class ExponentFits:
    """Fits of stable rank = a + b (width / group size)^exponent to the means over seeds.

    Attributes:
      r_squared: by exponent, least squares without weights.
      chi_squared: by exponent, of the fit weighted by the seeds' own errors.
      freedom: degrees of freedom: group sizes less two.
      best: the exponent of the smallest chi-squared.
    """

    r_squared: Mapping[float, float]
    chi_squared: Mapping[float, float]
    freedom: int
    best: float

    def p(self, exponent: float) -> float:
        """How often the seeds' errors alone give as bad a fit."""
        return float(stats.chi2.sf(self.chi_squared[exponent], self.freedom))

    def fits(self, exponent: float) -> bool:
        """Whether the seeds' own errors allow the fit."""
        return self.p(exponent) >= 0.05

    def describe(self, exponent: float) -> str:
        """The fit in numbers."""
        return (
            f"R^2 = {self.r_squared[exponent]:.3f}, chi-squared = {self.chi_squared[exponent]:.0f} with "
            f"{self.freedom} degrees of freedom"
        )


def fit_exponents(results: Results) -> ExponentFits | None:
    """Claim 3 with other exponents than 1/2; `None` with too few group sizes or seeds."""
    fit = rank_fit(results)
    if fit is None or len(fit.ranks) < 2 or len(fit.roots) < 4:
        return None
    means = fit.ranks.mean(axis=0)
    errors = fit.ranks.std(axis=0, ddof=1) / np.sqrt(len(fit.ranks))
    ratios = fit.roots**2

    def chi_squared(exponent: float) -> float:
        x = ratios**exponent
        line = np.polyfit(x, means, 1, w=1 / errors)
        return float(np.sum(((means - np.polyval(line, x)) / errors) ** 2))

    def unweighted(exponent: float) -> float:
        x = ratios**exponent
        return r_squared(means, np.polyval(np.polyfit(x, means, 1), x))

    return ExponentFits(
        r_squared={e: unweighted(e) for e in EXPONENTS},
        chi_squared={e: chi_squared(e) for e in EXPONENTS},
        freedom=len(means) - 2,
        best=float(min(FINE, key=chi_squared)),
    )


def layer_growth(results: Results, network: str) -> dict[str, np.ndarray]:
    """Figure 10: by normalizer, the factor by which the activation variance grows per layer, [seeds]."""
    found = {}
    for normalizer, measured in results.initializations(network, results.size.normalizers).items():
        logs = measured.statistics["log_variance"]
        found[normalizer] = np.exp(np.polyfit(np.arange(logs.shape[1]), logs.T, 1)[0])
    return found


def preactivation_deviation(results: Results, network: str) -> dict[str, float]:
    """By normalizer, the deviation of the convolutions' outputs, geometric mean over layers and seeds."""
    return {
        normalizer: float(np.exp(measured.statistics["log_std"].mean()))
        for normalizer, measured in results.initializations(network, results.size.normalizers).items()
    }


def similarities_before_the_last_layer(results: Results) -> dict[str, dict[str, np.ndarray]]:
    """Figure 15: by network and normalizer, the cosine similarity of the activations, [seeds]."""
    found = {
        network: {
            normalizer: measured.similarity
            for normalizer, measured in results.initializations(network, results.size.normalizers).items()
        }
        for network in results.size.networks
    }
    return {network: by_normalizer for network, by_normalizer in found.items() if by_normalizer}


@dataclasses.dataclass(frozen=True)
class BatchRatio:
    """Gradients of one network at batch 16 and at the larger batch.

    Attributes:
      growth: factor per layer on the way back, at the larger batch and at 16.
      norm: norm at batch 16 over that at the larger batch, geometric mean over layers and seeds.
    """

    growth: tuple[float, float]
    norm: float


def batch_ratios(results: Results) -> dict[tuple[str, str], BatchRatio]:
    """By network and normalizer of claim 4."""
    found = {}
    for network in results.size.networks:
        larger, small = (results.initializations(network, COMPARED, small=small) for small in (False, True))
        for normalizer in (name for name in larger if name in small):
            logs = [some[normalizer].statistics["log_gradient_norm"] for some in (larger, small)]
            growth = [float(np.exp(-np.polyfit(np.arange(n.shape[1]), n.T, 1)[0].mean())) for n in logs]
            norm = float(np.exp(logs[1].mean() - logs[0].mean()))
            found[network, normalizer] = BatchRatio((growth[0], growth[1]), norm)
    return found
