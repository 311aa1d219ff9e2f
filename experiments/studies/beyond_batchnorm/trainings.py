"""What the trainings show, beside what was measured at initialisation: Figures 5, 7 and 9, and beyond the paper."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from experiments.records import RunRecord
from experiments.studies.beyond_batchnorm.claims import rank_correlation
from experiments.studies.beyond_batchnorm.plan import (
    grouped_name,
    optimizer_input_name,
)
from experiments.studies.beyond_batchnorm.results import Results, to_array
from experiments.studies.grid import NORMALIZERS

# Figures 5, 7 and 9.


@dataclasses.dataclass(frozen=True)
class Correlation:
    """Pearson's and Spearman's correlation of so many points, each with its two-sided p-value."""

    points: int
    pearson: float
    pearson_p: float
    spearman: float
    spearman_p: float

    @property
    def falls(self) -> dict[str, bool]:
        """By whose correlation it is significantly negative."""
        return {
            "Pearson's": self.pearson < 0 and self.pearson_p < 0.05,
            "Spearman's": self.spearman < 0 and self.spearman_p < 0.05,
        }

    def __str__(self) -> str:
        return (
            f"Pearson {self.pearson:.2f} (p = {self.pearson_p:.3f}), "
            f"Spearman {self.spearman:.2f} (p = {self.spearman_p:.3f}), n = {self.points}"
        )


@dataclasses.dataclass(frozen=True)
class Speed:
    """Similarity at initialisation and speed of training, for each normalizer in one network.

    Attributes:
      normalizers: names.
      similarity: at initialisation, mean over seeds.
      accuracy: training accuracy, mean over epochs and seeds.
    """

    normalizers: Sequence[str]
    similarity: np.ndarray
    accuracy: np.ndarray

    def correlation(self, without: Sequence[str] = ()) -> "Correlation":
        """Over all normalizers but these; NaN with fewer than three."""
        kept = [i for i, name in enumerate(self.normalizers) if name not in without]
        if len(kept) < 3:
            return Correlation(len(kept), *[float("nan")] * 4)
        pearson: Any = stats.pearsonr(self.similarity[kept], self.accuracy[kept])
        spearman: Any = stats.spearmanr(self.similarity[kept], self.accuracy[kept])
        numbers = pearson.statistic, pearson.pvalue, spearman.statistic, spearman.pvalue
        return Correlation(len(kept), *map(float, numbers))


def mean_training_accuracy(record: RunRecord) -> float:
    """Over epochs; the epochs after a run diverged count as 0."""
    return sum(epoch.train_accuracy for epoch in record.epochs) / record.run.epochs


def speed(results: Results, network: str) -> Speed:
    """Figure 5: one point per normalizer."""
    rows = []
    for normalizer, measured in results.initializations(network, results.size.normalizers).items():
        accuracies = [mean_training_accuracy(record) for record in results.trainings(network, normalizer)]
        if accuracies:
            rows.append((normalizer, measured.similarity.mean(), np.mean(accuracies)))
    names, similarity, accuracy = zip(*rows, strict=True) if rows else ((), (), ())
    return Speed(names, np.array(similarity), np.array(accuracy))


@dataclasses.dataclass(frozen=True)
class FirstSteps:
    """Gradient norms and what the deviations of the later layers predict, in the first steps of training.

    Attributes:
      norms: [seeds, steps, layers].
      products: inverse product of the deviations of the layers ahead, the same shape.
    """

    norms: np.ndarray
    products: np.ndarray

    @property
    def transient(self) -> int:
        """How many steps count as the first transient: a third of them."""
        return self.norms.shape[1] // 3

    def correlations(self, start: int = 0) -> np.ndarray:
        """Over the steps from `start` on, [seeds, layers]."""
        seeds, _, layers = self.norms.shape
        return np.array(
            [
                [
                    np.corrcoef(self.norms[seed, start:, layer], self.products[seed, start:, layer])[0, 1]
                    for layer in range(layers)
                ]
                for seed in range(seeds)
            ]
        )


def first_steps(results: Results) -> FirstSteps | None:
    """Figure 7: for every layer but the last, which has none ahead."""
    values = results.values("first-steps")
    if values is None:
        return None
    norms = np.exp(to_array(values["unit_log_gradient_norm"]))[..., :-1]
    log_std = to_array(values["log_std"])
    ahead = np.cumsum(log_std[..., ::-1], axis=-1)[..., ::-1][..., 1:]  # of layers L+1, L+2, ...
    products = np.exp(-ahead)
    return FirstSteps(norms, products)


@dataclasses.dataclass(frozen=True)
class Tradeoff:
    """Speed and stability of GroupNorm against its group size, in the deep plain network.

    Attributes:
      group_sizes: channels in a group.
      similarity: at initialisation, [group sizes, seeds]: the lower, the faster.
      rate: factor by which the gradient norm grows from a layer to the one before, [group sizes, seeds].
    """

    group_sizes: Sequence[int]
    similarity: np.ndarray
    rate: np.ndarray

    @property
    def holds(self) -> bool:
        """Whether one rises and the other falls with the group size."""
        up = rank_correlation(self.group_sizes, self.similarity.mean(axis=1))
        down = rank_correlation(self.group_sizes, self.rate.mean(axis=1))
        return up > 0.8 and down < -0.8


def tradeoff(results: Results) -> Tradeoff | None:
    """Figure 9: an exponential is fitted to the gradient norms of the layers."""
    sizes, similarity, rates = [], [], []
    for group_size in results.size.group_sizes:
        initialization = results.initialization(grouped_name(results.size.deep, group_size))
        if initialization is not None:
            norms = initialization.statistics["log_gradient_norm"]
            slopes = np.polyfit(np.arange(norms.shape[1]), norms.T, 1)[0]
            sizes.append(group_size)
            similarity.append(initialization.similarity)
            rates.append(np.exp(-slopes))
    return Tradeoff(sizes, np.array(similarity), np.array(rates)) if len(sizes) > 2 else None


# Beyond the paper.


def optimizer_inputs(results: Results) -> dict[tuple[str, str], dict[str, np.ndarray]]:
    """By network and normalizer, by method, log10 of each kernel's root mean square gradient, [seeds, kernels]."""
    found = {}
    for network, failing in results.size.rescued:
        for normalizer in (failing, "batch_norm"):
            values = results.values(optimizer_input_name(network, normalizer))
            if values is not None:
                by_method = {method: to_array(values[method]) / np.log(10) for method in NORMALIZERS}
                found[network, normalizer] = by_method
    return found


def spreads(results: Results) -> dict[tuple[str, str], dict[str, float]]:
    """Orders of magnitude between the layers: standard deviation of log10 over layers, mean over seeds."""
    return {
        key: {method: float(np.std(sizes, axis=1).mean()) for method, sizes in by_method.items()}
        for key, by_method in optimizer_inputs(results).items()
    }


@dataclasses.dataclass(frozen=True)
class Rescue:
    """How far a normalizer that fails gets behind each method.

    Attributes:
      accuracies: by method, training accuracy of the last epoch, mean over seeds.
      reference: that of BatchNorm, without any method.
      chance: that of guessing.
      diverged: by method, how many seeds' loss stopped being finite.
    """

    accuracies: Mapping[str, float]
    reference: float
    chance: float
    diverged: Mapping[str, int]

    @property
    def is_told(self) -> bool:
        """Whether BatchNorm itself has learnt enough to compare with."""
        return self.reference > 2 * self.chance

    def trains(self, method: str) -> bool:
        """Whether it gets half-way from guessing to BatchNorm."""
        return self.accuracies[method] >= (self.chance + self.reference) / 2


def rescue(results: Results, network: str, failing: str) -> Rescue | None:
    """Beyond the paper: trainings of one normalizer; `None` if some method or BatchNorm has not been trained."""
    found = {method: results.trainings(network, failing, method) for method in NORMALIZERS}
    reference = results.trainings(network, "batch_norm")
    if not reference or not all(found.values()):
        return None
    return Rescue(
        {method: _last_training_accuracy(records) for method, records in found.items()},
        _last_training_accuracy(reference),
        1 / reference[0].data["num_classes"],
        {method: sum(r.status == "diverged" for r in records) for method, records in found.items()},
    )


def _last_training_accuracy(records: Sequence[RunRecord]) -> float:
    return float(np.mean([record.epochs[-1].train_accuracy for record in records]))
