"""The numbers of `beyond_batchnorm`, from what was measured, and whether they bear out each claim."""

import dataclasses
import itertools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import optimize, stats

from experiments.records import MeasurementRecord, RunRecord
from experiments.studies.beyond_batchnorm_plan import (
    COMPARED,
    DATASET,
    GAUSSIAN,
    METHODS,
    PARAMETRIC,
    RESIDUALS,
    Size,
    grouped_name,
    initialization_name,
    make_run,
    model_name,
    optimizer_input_name,
    uniform_name,
)

EXPLODES = 1.5  # Growth per block above which the variance counts as exploding.
STABLE = 1.2  # Growth per block below which it counts as stable.
NO_GROWTH = 1.05  # Growth per block below which there is none to fit.
GOOD_FIT = 0.95


@dataclasses.dataclass(frozen=True)
class Initialization:
    """A network at initialisation.

    Attributes:
      units: names of layers or blocks.
      convolutions: names of convolutions.
      statistics: by name, [seeds, units or convolutions].
    """

    units: Sequence[str]
    convolutions: Sequence[str]
    statistics: Mapping[str, np.ndarray]

    def stages(self) -> list[np.ndarray]:
        """Logarithm of the variance in the blocks of each stage of a residual network, [seeds, blocks]."""
        stage = np.array(
            [int(unit.split("/")[1]) if unit.startswith("stages/") else -1 for unit in self.units]
        )
        return [self.statistics["log_variance"][:, stage == s] for s in range(stage.max() + 1)]

    @property
    def similarity(self) -> np.ndarray:
        """Cosine similarity of the activations before the linear layer, by seed."""
        return self.statistics["cosine_similarity"][:, -1]


@dataclasses.dataclass(frozen=True)
class Results:
    """Everything that was measured and trained.

    Attributes:
      size: of the preset.
      measurements: by name.
      records: of the trainings.
    """

    size: Size
    measurements: Mapping[str, MeasurementRecord]
    records: Sequence[RunRecord]

    def initialization(
        self, model: str, *, small: bool = False, dataset: str = DATASET
    ) -> Initialization | None:
        """What was measured of a model at initialisation, if it was."""
        name = initialization_name(model, 16 if small else self.size.batch_size, dataset)
        if name not in self.measurements:
            return None
        values = dict(self.measurements[name].values)
        units, convolutions = values.pop("units"), values.pop("convolutions")
        return Initialization(units, convolutions, {key: to_array(rows) for key, rows in values.items()})

    def values(self, name: str) -> Mapping[str, Any] | None:
        """What another measurement gave, if it was made."""
        return self.measurements[name].values if name in self.measurements else None


def to_array(rows: Any) -> np.ndarray:
    """Numbers as they are in a file, where those that are not finite are strings."""
    return np.asarray(rows, dtype=object).astype(float)


def verdict(holds: bool | None) -> str:
    """In words; `None` where too little was measured."""
    return {True: "**holds**", False: "**does not hold**", None: "not measured"}[holds]


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
    found = {}
    for normalizer in results.size.activation_normalizers:
        initialization = results.initialization(model_name(results.size.residual, normalizer))
        if initialization is not None:
            fits = [fit_growth(np.exp(row)) for stage in initialization.stages() for row in stage]
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
      explodes: whether the claim says that it does; `None` where it says nothing.
    """

    mean: float
    lowest: float
    highest: float
    explodes: bool | None

    @property
    def holds(self) -> bool | None:
        """Whether it does what the claim says."""
        if self.explodes is None:
            return None
        return self.mean > EXPLODES if self.explodes else self.mean < STABLE


# (normalizer, block): Figure 3, for the six cells that the paper names.
PREDICTED_EXPLOSION = {
    ("weight_norm", ""): True,
    ("scaled_ws", ""): True,
    ("weight_norm", ":skip_init"): True,
    ("scaled_ws", ":skip_init"): False,
    ("weight_norm", ":nonlinearity_on_residual"): False,
    ("scaled_ws", ":nonlinearity_on_residual"): False,
}


def parametric_growth(results: Results) -> dict[tuple[str, str], Factor]:
    """Claim 2: growth under both parametric normalizers with every kind of block."""
    found = {}
    for normalizer, residual in itertools.product(PARAMETRIC, RESIDUALS):
        initialization = results.initialization(model_name(results.size.residual, normalizer, residual))
        if initialization is not None:
            rates = [
                np.polyfit(np.arange(stage.shape[1]), stage.T, 1)[0] for stage in initialization.stages()
            ]
            by_seed = np.exp(np.mean(rates, axis=0))
            mean = float(np.exp(np.mean(rates)))
            predicted = PREDICTED_EXPLOSION.get((normalizer, residual))
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
    roots = np.sqrt(64 / np.array(sizes))
    means = np.mean(ranks, axis=1)
    slope, intercept = np.polyfit(roots, means, 1)
    fit = r_squared(means, slope * roots + intercept)
    return RankFit(roots, np.array(ranks).T, float(slope), float(intercept), fit)


def similarities(results: Results, network: str, sizes: Sequence[int]) -> dict[int, np.ndarray]:
    """Cosine similarity in every unit, mean over seeds, by group size."""
    found = {}
    for group_size in sizes:
        initialization = results.initialization(grouped_name(network, group_size))
        if initialization is not None:
            found[group_size] = initialization.statistics["cosine_similarity"].mean(axis=0)
    return found


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
    def broken(self) -> list[str]:
        """Where the means over seeds do not come in the order claimed."""
        return [
            f"{first} >= {second}"
            for first, second in itertools.pairwise(COMPARED)
            if self.early[first].mean() < self.early[second].mean()
        ]

    def seeds_in_order(self, first: str, second: str) -> str:
        """In how many seeds the first one's gradients are the larger ones."""
        larger = self.early[first] >= self.early[second]
        return f"{larger.sum()} of {larger.size}"


def explosion(results: Results, network: str, *, small: bool) -> Explosion:
    """Claim 4: gradient norms in one network."""
    norms = {}
    for normalizer in COMPARED:
        initialization = results.initialization(model_name(network, normalizer), small=small)
        if initialization is not None:
            norms[normalizer] = initialization.statistics["log_gradient_norm"]
    early = {name: rows[:, : max(rows.shape[1] // 4, 1)].mean(axis=1) for name, rows in norms.items()}
    return Explosion(norms, early)


INEQUALITIES = (("instance", "harmonic"), ("instance", "batch"), ("batch", "group"), ("instance", "group"))


def inequalities(results: Results, network: str) -> dict[tuple[str, str], tuple[float, float]]:
    """Mean 1/variance under the first normalizer against the second, for the same pre-activations.

    Returns:
      For each of `INEQUALITIES` the share of layers and seeds in which the first is at least the second, and
      the geometric mean of their ratio; of the network with BatchNorm.
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
    """Over epochs; of a run that diverged, over those it had, the missing ones counting as 0."""
    return sum(epoch.train_accuracy for epoch in record.epochs) / record.run.epochs


def speed(results: Results, network: str) -> Speed:
    """Figure 5: one point per normalizer."""
    by_name = {record.run.name: record for record in results.records if record.epochs}
    rows = []
    for normalizer in results.size.normalizers:
        initialization = results.initialization(model_name(network, normalizer))
        runs = [
            make_run(results.size, network, normalizer, "baseline", s) for s in results.size.training_seeds
        ]
        accuracies = [mean_training_accuracy(by_name[run.name]) for run in runs if run.name in by_name]
        if initialization is not None and accuracies:
            rows.append((normalizer, initialization.similarity.mean(), np.mean(accuracies)))
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


def optimizer_input(results: Results, network: str, normalizer: str) -> dict[str, np.ndarray]:
    """By method, log10 of the root mean square of every kernel's gradient, [seeds, kernels]."""
    values = results.values(optimizer_input_name(network, normalizer))
    if values is None:
        return {}
    return {method: to_array(values[method]) / np.log(10) for method in METHODS}


def spread(sizes: np.ndarray) -> float:
    """Orders of magnitude between the layers: standard deviation of log10 over layers, mean over seeds."""
    return float(np.std(sizes, axis=1).mean())


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
    by_name = {record.run.name: record for record in results.records if record.epochs}

    def trained(normalizer: str, method: str) -> list[RunRecord]:
        runs = [make_run(results.size, network, normalizer, method, s) for s in results.size.training_seeds]
        return [by_name[run.name] for run in runs if run.name in by_name]

    found = {method: trained(failing, method) for method in METHODS}
    reference = trained("batch_norm", "baseline")
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


def describe_network(network: str) -> str:
    """A network in words."""
    width = network.split("w")[1]
    base = network.split("w")[0]
    kind = {"cnn10": "10 plain layers", "cnn20": "20 plain layers", "uniform30": "30 plain layers"}
    return f"{kind.get(base, base.replace('resnet', 'ResNet-'))}, width {width}"
