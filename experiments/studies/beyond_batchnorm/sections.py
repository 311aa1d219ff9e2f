"""The sections of the report of `beyond_batchnorm`: for each claim its findings and its text."""

import itertools
import math
from pathlib import Path

import numpy as np

from experiments.report import names
from experiments.report.findings import Finding, judge
from experiments.report.markdown import markdown_table
from experiments.report.tables import format_number
from experiments.studies.beyond_batchnorm import claims, figures, trainings
from experiments.studies.beyond_batchnorm.further import EXPONENTS, fit_exponents
from experiments.studies.beyond_batchnorm.plan import (
    COMPARED,
    PARAMETRIC,
    RESIDUALS,
    SIZES,
    model_name,
)
from experiments.studies.beyond_batchnorm.results import Results, Section, claim

BLOCKS = {
    "": "standard",
    ":skip_init": "SkipInit",
    ":nonlinearity_on_residual": "non-linearity on the residual branch",
    ":skip_init:nonlinearity_on_residual": "both",
}


def describe_claim1(results: Results, folder: Path) -> Section:
    """Claim 1: activation normalizers let the variance grow linearly."""
    growth = claims.activation_growth(results)
    table = [["normalizer", "slope per block", "R^2 linear", "R^2 exponential", "growth per block", "growth"]]
    for name, g in growth.items():
        numbers = [f"{g.slope:.3f}", f"{g.linear:.3f}", f"{g.exponential:.3f}", f"{g.factor:.3f}"]
        table.append([names.normalizer(name), *numbers, g.kind])
    kinds = {
        k: [names.normalizer(name) for name, g in growth.items() if g.kind == k]
        for k in ("linear", "none", "exponential")
    }
    holds = not kinds["exponential"] if growth else None
    measured = ""
    if growth:
        measured = f"at most x {max(g.factor for g in growth.values()):.2f} per block; " + "; ".join(
            f"{k}: {', '.join(some)}" for k, some in kinds.items() if some
        )
    found = claim(
        "Activation normalizers let the variance grow linearly at most",
        holds,
        measured,
        label="claim 1",
        note="would be refuted by a normalizer whose variance an exponential fits better",
    )
    shown = {name: results.initialization(model_name(results.size.residual, name)) for name in growth}
    r_squared = {name: {"linear": g.linear, "exponential": g.exponential} for name, g in growth.items()}
    measured_networks = {k: v for k, v in shown.items() if v}
    figure = figures.draw_activation_growth(folder, measured_networks, r_squared) if growth else ""
    text = f"""\
## Claim 1: activation normalizers ({names.model(results.size.residual)})

Fits to the blocks of each stage, both by least squares on the variance itself; means over stages and seeds. A
variance that grows by less than {claims.NO_GROWTH} per block does not grow; otherwise the better fit decides.

{markdown_table(table)}

{figure}"""
    return [found], text


def describe_claim2(results: Results, folder: Path) -> Section:
    """Claim 2 and Figure 3: parametric normalizers let it grow exponentially, unless the block is another."""
    growth = claims.parametric_growth(results)
    table = [["normalizer", "block", "growth per block", "lowest, highest seed", "claimed", "verdict"]]
    for (normalizer, residual), factor in growth.items():
        claimed = {True: "explodes", False: "does not", None: "-"}[factor.explodes]
        numbers = [f"{factor.mean:.3f}", f"{factor.lowest:.3f}, {factor.highest:.3f}"]
        judged = "" if factor.explodes is None else f"**{judge(factor.holds)}**"
        table.append([names.normalizer(normalizer), BLOCKS[residual], *numbers, claimed, judged])
    standard = {n: growth[n, ""] for n in PARAMETRIC if (n, "") in growth}
    explode = all(factor.holds for factor in standard.values()) if len(standard) == 2 else None
    factors = ", ".join(
        f"x {factor.mean:.2f} per block ({names.normalizer(n)})" for n, factor in standard.items()
    )
    found = [
        claim(
            "Parametric normalizers let the variance grow exponentially in standard blocks",
            explode,
            factors,
            label="claim 2",
            note=f"predicted x 2; would be refuted by growth below {claims.EXPLODES}",
        ),
        *(_figure3(growth, residual, label, sentence) for residual, label, sentence in FIGURE3),
    ]
    shown = {
        (n, r): i
        for n in PARAMETRIC
        for r in RESIDUALS
        if (i := results.initialization(model_name(results.size.residual, n, r))) is not None
    }
    figure = figures.draw_parametric_growth(folder, shown) if shown else ""
    text = f"""\
## Claim 2: parametric normalizers ({names.model(results.size.residual)})

Exponential fits to the blocks of each stage, mean over stages and seeds. A block that grows by more than
{claims.EXPLODES} explodes, one below {claims.STABLE} does not. The claim's proof also gives 2 for the non-linearity
on the residual branch, whose branch keeps the variance as well; the authors' code can have SkipInit there: "both".

{markdown_table(table, left=2)}

{figure}"""
    return found, text


# (block, label, claim): of Figure 3 c the caption as printed, and as the authors' code has it.
FIGURE3 = (
    (":skip_init", "figure 3 b", "SkipInit stops the growth under scaled weight standardization alone"),
    (
        ":nonlinearity_on_residual",
        "figure 3 c as printed",
        "The non-linearity on the branch, without SkipInit, stops the growth under both",
    ),
    (
        ":skip_init:nonlinearity_on_residual",
        "figure 3 c as in the code",
        "The non-linearity on the branch, with SkipInit, stops the growth under both",
    ),
)


def _figure3(growth, residual: str, label: str, sentence: str) -> Finding:
    cells = {n: growth[n, residual] for n in PARAMETRIC if (n, residual) in growth}
    holds = None
    if len(cells) == 2:
        holds = all(bool(factor.holds) for factor in cells.values())
    measured = ", ".join(
        f"x {factor.mean:.3f} per block ({names.normalizer(n)})" for n, factor in cells.items()
    )
    return claim(
        sentence, holds, measured, label=label, note=f"would be refuted by growth above {claims.STABLE}"
    )


def describe_claim3(results: Results, folder: Path) -> Section:
    """Claim 3: stable rank is linear in sqrt(width / group size)."""
    size = results.size
    fit = claims.rank_fit(results)
    exponents = fit_exponents(results)
    found = [
        claim(
            "The stable rank is a line in sqrt(width / group size)",
            exponents.fits(0.5) if exponents else None,
            exponents.describe(0.5) if exponents else "",
            label="claim 3 as a line",
            note="would be refuted where the seeds' own errors reject the line (chi-squared, 5 %)",
        ),
        claim(
            "The stable rank grows at least as sqrt(width / group size)",
            exponents.best >= 0.5 if exponents else None,
            f"exponent {exponents.best:.2f} fits best" if exponents else "",
            label="claim 3 as a bound",
            note="would be refuted by a best exponent below 0.5",
        ),
    ]
    similarities = {
        names.model(size.deep): claims.similarities(results, size.deep, size.group_sizes),
        names.model(size.residual): claims.similarities(results, size.residual, size.residual_group_sizes),
    }
    sizes = list(size.group_sizes)
    table = [["group size", *map(str, sizes)]]
    if fit is not None:
        mean, std = fit.ranks.mean(axis=0), fit.ranks.std(axis=0, ddof=1)
        table.append(["stable rank", *(f"{m:.2f} ± {s:.2f}" for m, s in zip(mean, std, strict=True))])
    for network, by_size in similarities.items():
        if by_size:
            last = {g: float(row[-1]) for g, row in by_size.items()}
            table.append([f"similarity, {network}", *(format_number(last.get(g), ".3f") for g in sizes)])
            order = claims.rank_correlation(list(last), list(last.values()))
            found.append(
                claim(
                    f"Activations are more alike the larger the group: {network}",
                    order > 0.8,
                    f"rank correlation {order:.2f}",
                    label=f"figure 6, {network}",
                    note="would be refuted by a rank correlation of 0.8 or less",
                )
            )
    powers = [["exponent", *(f"{e:.2f}" for e in EXPONENTS)]]
    if exponents:
        powers += [
            ["R^2", *(f"{exponents.r_squared[e]:.3f}" for e in EXPONENTS)],
            ["chi-squared", *(f"{exponents.chi_squared[e]:.1f}" for e in EXPONENTS)],
            ["p", *(f"{exponents.p(e):.2g}" for e in EXPONENTS)],
        ]
    figure = figures.draw_rank_and_similarity(folder, fit, similarities)
    text = f"""\
## Claim 3: group size

Stable rank before the linear layer of 30 layers of width 64 with Gaussian images of {size.gaussian_size} x
{size.gaussian_size} pixels, mean ± deviation over seeds; cosine similarity before the linear layer on CIFAR-100.

{markdown_table(table)}

Fits a + b (width / group size)^exponent to the means. R^2 is above {claims.GOOD_FIT} for every exponent here, so that
it could refute none; the seeds' own errors can (chi-squared with two degrees of freedom fewer than group sizes).

{markdown_table(powers)}

{figure}"""
    return found, text


def describe_claim4(results: Results, folder: Path) -> Section:
    """Claim 4 and Figure 8: gradients explode in this order: InstanceNorm, BatchNorm, GroupNorm, LayerNorm."""
    size = results.size
    networks = (*size.plain, size.residual)
    explosions = {}
    for network in networks:
        for batch_size, small in ((size.batch_size, False), (16, True)):
            explosion = claims.explosion(results, network, small=small)
            if explosion.norms:
                explosions[names.model(network), batch_size] = explosion
    pairs = list(itertools.pairwise(COMPARED))
    table = [
        [
            "network",
            "batch",
            *map(names.normalizer, COMPARED),
            *(_inequality(*pair) for pair in pairs),
            "order",
        ]
    ]
    for (network, batch_size), explosion in explosions.items():
        if explosion.holds is not None:
            norms = [f"{math.exp(explosion.early[name].mean()):.3g}" for name in COMPARED]
            seeds = [explosion.seeds_in_order(a, b) for a, b in pairs]
            table.append([network, str(batch_size), *norms, *seeds, f"**{judge(explosion.holds)}**"])
    judged = [explosion.holds for explosion in explosions.values() if explosion.holds is not None]
    broken = [
        f"{_inequality(*inequality)} in {network}"
        for (network, _), explosion in explosions.items()
        if explosion.holds is False
        for inequality in explosion.broken
    ]
    measured = ""
    if judged:
        measured = f"the order is met in {sum(judged)} of {len(judged)} networks and batch sizes"
        measured += f"; not met: {', '.join(dict.fromkeys(broken))}" if broken else ""
    found = claim(
        "Early gradients explode in the order InstanceNorm, BatchNorm, GroupNorm, LayerNorm",
        all(judged) if judged else None,
        measured,
        label="claim 4 with figure 8",
        note="would be refuted by one network in which the means over seeds are in another order",
    )
    means = [["network", *(f"{a} >= {b}" for a, b in claims.INEQUALITIES)]]
    for network in networks:
        inequalities = claims.inequalities(results, network)
        if inequalities:
            means.append(
                [
                    names.model(network),
                    *(f"{share:.0%}, ratio {ratio:.2f}" for share, ratio in inequalities.values()),
                ]
            )
    figure = figures.draw_explosion(folder, explosions) if explosions else ""
    text = f"""\
## Claim 4: gradient explosion

Norm of the loss's gradient by the convolutions' outputs: geometric mean over the first quarter of the convolutions
and over seeds, and in how many seeds each inequality holds.

{markdown_table(table, left=2)}

The arithmetic-harmonic inequality on the pre-activations measured with BatchNorm: mean of 1 / variance over images
and channels ("instance"), groups, or channels of the batch; "harmonic" is 1 over the mean of the images' variances,
which the proof takes for 1 over the batch's variance. Share of layers and seeds that meet it, and geometric mean of
the ratio.

{markdown_table(means)}

{figure}"""
    return [found], text


def _inequality(first: str, second: str) -> str:
    return f"{names.normalizer(first)} >= {names.normalizer(second)}"


def describe_figures5_7_9(results: Results, folder: Path) -> Section:
    """Figures 5, 7 and 9: similarity and speed, gradient norms in the first steps, group size."""
    found, parts = [], ["## Figures 5, 7 and 9"]
    speeds = {n: s for n in results.size.trained if len((s := trainings.speed(results, n)).normalizers) > 0}
    for network, speed in speeds.items():
        without = speed.correlation(without=("instance_norm",))
        with_all = speed.correlation()
        tests = [name for name, falls in without.falls.items() if falls]
        # One of two correlations alone, or only without one normalizer, decides nothing.
        holds = None
        if not math.isnan(without.pearson):
            holds = True if len(tests) == 2 and all(with_all.falls.values()) else None if tests else False
        found.append(
            claim(
                f"Similarity at initialisation predicts the speed of training: {names.model(network)}",
                holds,
                f"without InstanceNorm, as in the paper: {without}; with it: {with_all}",
                label="figure 5",
                note="would be shown by both correlations significant with InstanceNorm and without, refuted by none",
            )
        )
    if speeds:
        parts.append(figures.draw_speed(folder, {names.model(n): s for n, s in speeds.items()}))
    steps = trainings.first_steps(results)
    if steps is not None:
        start = steps.transient
        everything, later = (steps.correlations(first).mean(axis=0) for first in (0, start))
        enough, later_enough = (bool(np.all(means >= 0.6)) for means in (everything, later))
        found.append(
            claim(
                "Gradient norms follow the inverse product of the deviations ahead in the first "
                f"{steps.norms.shape[1]} steps: {names.model(results.size.followed)}",
                None if enough and not later_enough else enough,
                f"correlation {_describe_means(everything)}, without the first {start} steps "
                f"{_describe_means(later)} (paper: 0.6 to 0.9)",
                label="figure 7",
                note=(
                    f"batch {results.size.training_batch_size}; full: {names.model(SIZES['full'].followed)}, "
                    f"batch {SIZES['full'].training_batch_size}; would be refuted by a layer below 0.6"
                ),
            )
        )
        parts.append(figures.draw_first_steps(folder, steps))
    tradeoff = trainings.tradeoff(results)
    if tradeoff is not None:
        similarity, rate = tradeoff.similarity.mean(axis=1), tradeoff.rate.mean(axis=1)
        found.append(
            claim(
                "A larger group raises similarity and lowers the gradient's growth: "
                f"{names.model(results.size.deep)}",
                tradeoff.holds,
                f"from group size {tradeoff.group_sizes[0]} to {tradeoff.group_sizes[-1]} similarity "
                f"{similarity[0]:.2f} to {similarity[-1]:.2f}, growth per layer {rate[0]:.2f} to {rate[-1]:.2f}",
                label="figure 9",
                note="the paper takes similarity for slowness; refuted by a rank correlation within 0.8 of 0",
            )
        )
        parts.append(figures.draw_tradeoff(folder, tradeoff))
    return found, "\n\n".join(parts)


def _describe_means(correlations: np.ndarray) -> str:
    enough = int(np.sum(correlations >= 0.6))
    return (
        f"{correlations.min():.2f} to {correlations.max():.2f} by layer, at least 0.6 in {enough} of "
        f"{len(correlations)} layers"
    )
