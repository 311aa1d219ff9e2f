"""The tables of the report of `beyond_batchnorm`, and what it says of the trainings' rates."""

import itertools
import math

from experiments.report import names
from experiments.report.cells import make_cells, make_rows
from experiments.report.findings import judge
from experiments.report.markdown import markdown_table
from experiments.report.pages import describe_protocol
from experiments.report.tables import format_number, results_table
from experiments.studies.beyond_batchnorm import claims, further, trainings
from experiments.studies.beyond_batchnorm.plan import (
    COMPARED,
    LEARNING_RATES,
    WEIGHT_DECAY,
    ZNORM_LEARNING_RATE,
    family,
    make_run,
    rescue_runs,
)
from experiments.studies.beyond_batchnorm.results import Results
from experiments.studies.grid import NORMALIZERS

AXES = ("model", "method")
BLOCKS = {
    "": "standard",
    ":skip_init": "SkipInit",
    ":nonlinearity_on_residual": "non-linearity on the residual branch",
    ":skip_init:nonlinearity_on_residual": "both",
}


def activation_growth(results: Results) -> str:
    """Claim 1: both fits for every activation normalizer."""
    table = [["normalizer", "slope per block", "R^2 linear", "R^2 exponential", "growth per block", "growth"]]
    for name, g in claims.activation_growth(results).items():
        numbers = (f"{number:.3f}" for number in (g.slope, g.linear, g.exponential, g.factor))
        table.append([names.normalizer(name), *numbers, g.kind])
    return markdown_table(table)


def parametric_growth(results: Results) -> str:
    """Claim 2: growth under both parametric normalizers in every kind of block."""
    table = [["normalizer", "block", "growth per block", "lowest, highest seed", "claimed", "verdict"]]
    for (normalizer, residual), factor in claims.parametric_growth(results).items():
        claimed = "explodes" if factor.explodes else "does not"
        numbers = [f"{factor.mean:.3f}", f"{factor.lowest:.3f}, {factor.highest:.3f}"]
        judged = f"**{judge(factor.holds)}**"
        table.append([names.normalizer(normalizer), BLOCKS[residual], *numbers, claimed, judged])
    return markdown_table(table, left=2)


def group_sizes(results: Results) -> str:
    """Claim 3: stable rank and similarity by group size."""
    size, fit = results.size, claims.rank_fit(results)
    table = [["group size", *map(str, size.group_sizes)]]
    if fit is not None:
        mean, std = fit.ranks.mean(axis=0), fit.ranks.std(axis=0, ddof=1)
        table.append(["stable rank", *(f"{m:.2f} ± {s:.2f}" for m, s in zip(mean, std, strict=True))])
    for network in size.grouped:
        last = claims.last_similarities(results, network)
        if last:
            values = (format_number(last.get(g), ".3f") for g in size.group_sizes)
            table.append([f"similarity, {names.model(network)}", *values])
    return markdown_table(table)


def exponents(results: Results) -> str:
    """Claim 3 with other exponents than 1/2."""
    fits, exponents = further.fit_exponents(results), further.EXPONENTS
    table = [["exponent", *(f"{e:.2f}" for e in exponents)]]
    if fits:
        table += [
            ["R^2", *(f"{fits.r_squared[e]:.3f}" for e in exponents)],
            ["chi-squared", *(f"{fits.chi_squared[e]:.1f}" for e in exponents)],
            ["p", *(f"{fits.p(e):.2g}" for e in exponents)],
        ]
    return markdown_table(table)


def explosions(results: Results) -> str:
    """Claim 4: early gradients by network and batch size."""
    pairs = list(itertools.pairwise(COMPARED))
    normalizers = list(map(names.normalizer, COMPARED))
    inequalities = [f"{first} >= {second}" for first, second in itertools.pairwise(normalizers)]
    table = [["network", "batch", *normalizers, *inequalities, "order"]]
    for (network, batch_size), explosion in claims.explosions(results).items():
        if explosion.holds is not None:
            norms = [f"{math.exp(explosion.early[name].mean()):.3g}" for name in COMPARED]
            seeds = [explosion.seeds_in_order(*pair) for pair in pairs]
            judged = f"**{judge(explosion.holds)}**"
            table.append([names.model(network), str(batch_size), *norms, *seeds, judged])
    return markdown_table(table, left=2)


def inequalities(results: Results) -> str:
    """Claim 4: the inequality of its proof, network by network."""
    table = [["network", *(f"{a} >= {b}" for a, b in claims.INEQUALITIES)]]
    for network in results.size.networks:
        found = claims.inequalities(results, network)
        if found:
            cells = (f"{share:.0%}, ratio {ratio:.2f}" for share, ratio in found.values())
            table.append([names.model(network), *cells])
    return markdown_table(table)


def layer_growth(results: Results) -> str:
    """Figure 10: growth of the variance in the deep plain network."""
    deviations = further.preactivation_deviation(results, results.size.deep)
    headings = ["growth of the variance per layer", "lowest, highest seed", "pre-activation deviation"]
    table = [["normalizer", *headings]]
    for normalizer, factors in further.layer_growth(results, results.size.deep).items():
        ends = f"{factors.min():.3f}, {factors.max():.3f}"
        deviation = f"{deviations[normalizer]:.3f}"
        table.append([names.normalizer(normalizer), f"{factors.mean():.3f}", ends, deviation])
    return markdown_table(table)


def similarity(results: Results) -> str:
    """Figure 15: similarity by network."""
    found = further.similarities_before_the_last_layer(results)
    table = [["normalizer", *map(names.model, found)]]
    for normalizer in dict.fromkeys(name for by_name in found.values() for name in by_name):
        cells = (by_name.get(normalizer) for by_name in found.values())
        table.append(
            [names.normalizer(normalizer), *("-" if c is None else f"{c.mean():.3f}" for c in cells)]
        )
    return markdown_table(table)


def batch_sizes(results: Results) -> str:
    """Gradients at both batch sizes."""
    larger = f"growth per layer, batch {results.size.batch_size}"
    table = [["network", "normalizer", larger, "batch 16", "norm at 16 / larger"]]
    for (network, normalizer), ratio in further.batch_ratios(results).items():
        growth = (f"{g:.4f}" for g in ratio.growth)
        table.append([names.model(network), names.normalizer(normalizer), *growth, f"{ratio.norm:.2f}"])
    return markdown_table(table, left=2)


def rescues(results: Results) -> str:
    """Beyond the paper: how the trainings were made, and their accuracies."""
    cells = make_cells(rescue_runs(results.size), results.records)
    protocols = dict.fromkeys(describe_protocol(cell.run) for cell in cells.values())
    table = results_table(names.headings(AXES), make_rows(cells.values(), AXES))
    return "\n".join(f"- {protocol}." for protocol in protocols) + f"\n\n{table}"


def rescue_rates(results: Results) -> str:
    """What the trainings can tell and what not, and where their learning rates come from."""
    size = results.size
    rates, steps = [], []
    for network, _ in size.rescued:
        run = make_run(size, network, "batch_norm", "baseline", 0)
        rate = LEARNING_RATES[family(network)]
        rates.append(f"{run.learning_rate:.4g} = {rate:g} * {run.batch_size} / 256 in {names.model(network)}")
        if run.train_examples is not None:
            steps.append(f"{run.epochs * run.train_examples // run.batch_size:,}")
    length = f"{' and '.join(dict.fromkeys(steps))} steps long" if steps else f"{size.epochs} epochs long"
    return f"""\
One learning rate for each method, tuned for none here, and trainings {length}: another rate may rescue what these
do not. Baseline and GAN have the paper's, scaled with the batch ({"; ".join(rates)}), although GAN's multiplier is
below 1 and shrinks the gradients; ZNorm has {ZNORM_LEARNING_RATE:g}, which tuning with SGDM found
best in another study, on CIFAR-10. The weight decay of {WEIGHT_DECAY:g} is added behind the momentum of 0.9, where
the paper's 0.0001 is added in front of it, which in the long run multiplies it by 1 / (1 - 0.9) = 10: the two are
equally strong."""


def spreads(results: Results) -> str:
    """Beyond the paper: how unequal the layers' gradients are behind each method."""
    table = [["network", "normalizer", *NORMALIZERS]]
    for (network, normalizer), by_method in trainings.spreads(results).items():
        cells = (f"{by_method[method]:.2f}" for method in NORMALIZERS)
        table.append([names.model(network), names.normalizer(normalizer), *cells])
    return markdown_table(table, left=2)
