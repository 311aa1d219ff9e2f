"""What decides each claim of `beyond_batchnorm`: one function each, `None` where nothing was measured."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from experiments.report import names
from experiments.studies.beyond_batchnorm import claims, further, trainings
from experiments.studies.beyond_batchnorm.plan import PARAMETRIC, SIZES
from experiments.studies.beyond_batchnorm.results import Results
from experiments.studies.grid import NORMALIZERS

ENOUGH = 0.6  # the lowest correlation of the paper's Figure 7


class Decision(NamedTuple):
    """Whether a claim holds, `None` where that cannot be told; the numbers, in words; what else is to be said."""

    holds: bool | None
    measured: str
    note: str = ""


def activation_growth(results: Results) -> Decision | None:
    """Under no activation normalizer does an exponential fit better."""
    growth = claims.activation_growth(results)
    if not growth:
        return None
    kinds = {
        kind: [names.normalizer(name) for name, g in growth.items() if g.kind == kind]
        for kind in ("linear", "none", "exponential")
    }
    words = [f"{kind}: {', '.join(some)}" for kind, some in kinds.items() if some]
    largest = max(g.factor for g in growth.values())
    return Decision(not kinds["exponential"], f"at most x {largest:.2f} per block; {'; '.join(words)}")


def parametric_growth(results: Results, block: str = "", digits: int = 3) -> Decision | None:
    """Both parametric normalizers do what Figure 3 says of one kind of block."""
    growth = claims.parametric_growth(results)
    factors = {n: growth[n, block] for n in PARAMETRIC if (n, block) in growth}
    words = [f"x {f.mean:.{digits}f} per block ({names.normalizer(n)})" for n, f in factors.items()]
    holds = all(f.holds for f in factors.values()) if len(factors) == len(PARAMETRIC) else None
    return Decision(holds, ", ".join(words)) if words else None


def rank_is_a_line(results: Results) -> Decision | None:
    """The seeds' own errors allow the exponent 1/2."""
    fits = further.fit_exponents(results)
    return fits and Decision(fits.fits(0.5), fits.describe(0.5))


def rank_is_bounded(results: Results) -> Decision | None:
    """The best exponent is at least 1/2."""
    fits = further.fit_exponents(results)
    return fits and Decision(fits.best >= 0.5, f"exponent {fits.best:.2f} fits best")


def similarity_rises(results: Results, network: str) -> Decision | None:
    """Similarity before the linear layer rises with the group size."""
    last = claims.last_similarities(results, network)
    order = claims.rank_correlation(list(last), list(last.values()))
    return Decision(order > 0.8, f"rank correlation {order:.2f}") if last else None


def explosion_order(results: Results) -> Decision | None:
    """In every network and with both batch sizes the means come in the order claimed."""
    explosions = claims.explosions(results)
    judged = [explosion.holds for explosion in explosions.values() if explosion.holds is not None]
    if not judged:
        return None
    broken = [
        f"{names.normalizer(first)} >= {names.normalizer(second)} in {names.model(network)}"
        for (network, _), explosion in explosions.items()
        if explosion.holds is False
        for first, second in explosion.broken
    ]
    measured = f"the order is met in {sum(judged)} of {len(judged)} networks and batch sizes"
    measured += f"; not met: {', '.join(dict.fromkeys(broken))}" if broken else ""
    return Decision(all(judged), measured)


def speed(results: Results, network: str) -> Decision | None:
    """Similarity at initialisation falls with the speed of training."""
    found = trainings.speed(results, network)
    if not found.normalizers:
        return None
    without, with_all = found.correlation(without=("instance_norm",)), found.correlation()
    tests = [name for name, falls in without.falls.items() if falls]
    # One of two correlations alone, or only without one normalizer, decides nothing.
    holds = None
    if not math.isnan(without.pearson):
        holds = True if len(tests) == 2 and all(with_all.falls.values()) else None if tests else False
    return Decision(holds, f"without InstanceNorm, as in the paper: {without}; with it: {with_all}")


def first_steps(results: Results) -> Decision | None:
    """The correlation is high in every layer, after the first transient too."""
    steps = trainings.first_steps(results)
    if steps is None:
        return None
    everything, later = (steps.correlations(start).mean(axis=0) for start in (0, steps.transient))
    enough, later_enough = (bool(np.all(means >= ENOUGH)) for means in (everything, later))
    size, full = results.size, SIZES["full"]
    return Decision(
        None if enough and not later_enough else enough,
        f"correlation {_by_layer(everything)}, without the first {steps.transient} steps {_by_layer(later)} "
        "(paper: 0.6 to 0.9)",
        f"batch {size.training_batch_size}; full: {names.model(full.followed)}, batch {full.training_batch_size}",
    )


def _by_layer(correlations: np.ndarray) -> str:
    enough = int(np.sum(correlations >= ENOUGH))
    return (
        f"{correlations.min():.2f} to {correlations.max():.2f} by layer, at least {ENOUGH} in {enough} of "
        f"{len(correlations)} layers"
    )


def tradeoff(results: Results) -> Decision | None:
    """Similarity rises with the group size, and the gradient's growth falls."""
    found = trainings.tradeoff(results)
    if found is None:
        return None
    similarity, rate = found.similarity.mean(axis=1), found.rate.mean(axis=1)
    return Decision(
        found.holds,
        f"from group size {found.group_sizes[0]} to {found.group_sizes[-1]} similarity "
        f"{similarity[0]:.2f} to {similarity[-1]:.2f}, growth per layer {rate[0]:.2f} to {rate[-1]:.2f}",
    )


def layer_growth(results: Results) -> Decision | None:
    """Under more than half of the normalizers the variance neither vanishes nor explodes."""
    growth = further.layer_growth(results, results.size.deep)
    if not growth:
        return None
    means = {normalizer: float(factors.mean()) for normalizer, factors in growth.items()}
    kept = [m for m in means.values() if further.VANISHES <= m <= further.EXPLODES]
    vanishing = _growing(means, -math.inf, further.VANISHES)
    exploding = _growing(means, further.EXPLODES, math.inf)
    measured = (
        f"per layer x {min(kept):.3f} to {max(kept):.3f} in {len(kept)} of {len(means)}; vanishing: {vanishing}; "
        f"exploding: {exploding}"
        if kept
        else "in none"
    )
    return Decision(len(kept) > len(means) / 2, measured)


def _growing(means: Mapping[str, float], low: float, high: float) -> str:
    """Those whose variance grows by more than `low` and less than `high`."""
    return ", ".join(f"{names.normalizer(n)} x {m:.3f}" for n, m in means.items() if low < m < high) or "none"


def most_alike(results: Results) -> Decision | None:
    """In every network LayerNorm's activations are the most alike."""
    most = {
        network: max(found, key=lambda normalizer, found=found: float(found[normalizer].mean()))
        for network, found in further.similarities_before_the_last_layer(results).items()
    }
    if not most:
        return None
    times = sum(normalizer == "layer_norm" for normalizer in most.values())
    words = [
        f"{names.normalizer(normalizer)} in {names.model(network)}" for network, normalizer in most.items()
    ]
    return Decision(times == len(most), f"in {times} of {len(most)} networks; most alike: {', '.join(words)}")


def batch_size(results: Results) -> Decision | None:
    """In every network and under every normalizer gradients grow alike with both batch sizes."""
    ratios = further.batch_ratios(results)
    if not ratios:
        return None
    change = max(abs(small / large - 1) for large, small in (ratio.growth for ratio in ratios.values()))
    norms = [ratio.norm for ratio in ratios.values()]
    size = results.size.batch_size
    return Decision(
        change < further.SAME_GROWTH,
        f"it changes by at most {change:.1%} from batch {size} to 16; norms change by x {min(norms):.2f} to "
        f"{max(norms):.2f}, sqrt({size} / 16) = {math.sqrt(size / 16):.2f}",
    )


def rescue(results: Results, network: str, normalizer: str) -> Decision | None:
    """ZNorm or GAN gets half-way from guessing to BatchNorm, where the optimizer alone does not."""
    found = trainings.rescue(results, network, normalizer)
    if found is None:
        return None
    rescuers = [names.METHODS[m] for m in NORMALIZERS if m != "baseline" and found.trains(m)]
    told = found.is_told and not found.trains("baseline")
    note = f"by {' and '.join(rescuers)}" if rescuers else "not at these rates, tuned for none of them"
    if not told:
        note = "it does not fail here" if found.is_told else "BatchNorm has hardly learnt either"
    reached = [
        f"{names.METHODS[method]} {accuracy:.1%}"
        + (f" ({found.diverged[method]} diverged)" if found.diverged[method] else "")
        for method, accuracy in found.accuracies.items()
    ]
    return Decision(
        # One rate for each method, tuned for none: that it does not train at it refutes nothing.
        True if told and rescuers else None,
        f"last training accuracy {', '.join(reached)}; BatchNorm {found.reference:.1%}",
        note,
    )


def same_sizes(results: Results) -> Decision | None:
    """Behind ZNorm the layers' gradients have one size in every network."""
    spreads = trainings.spreads(results)
    if not spreads:
        return None
    by_method = {method: [row[method] for row in spreads.values()] for method in NORMALIZERS}
    words = [f"{names.METHODS[m]} {min(some):.2f} to {max(some):.2f}" for m, some in by_method.items()]
    return Decision(
        max(by_method["znorm"]) < 0.005,  # 0.00 to two decimals
        f"deviation of log10 over layers: {', '.join(words)}",
    )
