"""The sections of the report of `beyond_batchnorm`: for each claim its verdicts, one line each, and its text."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.records import RunRecord
from experiments.report.cells import Cell, make_cells, make_rows
from experiments.report.curves import add_learning_curves
from experiments.report.pages import describe_protocol
from experiments.report.tables import format_number, markdown_table, results_table
from experiments.studies.beyond_batchnorm import claims, figures, trainings
from experiments.studies.beyond_batchnorm.plan import (
    COMPARED,
    LEARNING_RATES,
    METHODS,
    PARAMETRIC,
    RESIDUALS,
    SIZES,
    WEIGHT_DECAY,
    ZNORM_LEARNING_RATE,
    Size,
    family,
    make_run,
    model_name,
    rescue_runs,
)
from experiments.studies.beyond_batchnorm.results import Results, describe_network, verdict

BLOCKS = {
    "": "standard",
    ":skip_init": "SkipInit",
    ":nonlinearity_on_residual": "non-linearity on the residual branch",
    ":skip_init:nonlinearity_on_residual": "both",
}


Section = tuple[list[str], str]


def describe_claim1(results: Results, folder: Path) -> Section:
    """Claim 1: activation normalizers let the variance grow linearly."""
    growth = claims.activation_growth(results)
    table = [["normalizer", "slope per block", "R^2 linear", "R^2 exponential", "growth per block", "growth"]]
    for name, g in growth.items():
        numbers = [f"{g.slope:.3f}", f"{g.linear:.3f}", f"{g.exponential:.3f}", f"{g.factor:.3f}"]
        table.append([name, *numbers, g.kind])
    kinds = {
        k: [name for name, g in growth.items() if g.kind == k] for k in ("linear", "none", "exponential")
    }
    holds = not kinds["exponential"] if growth else None
    line = f"Claim 1, no exponential growth of the variance under activation normalizers: {verdict(holds)}"
    if growth:
        line += "".join(f"; {k}: {', '.join(names)}" for k, names in kinds.items() if names)
        line += f"; at most {max(g.factor for g in growth.values()):.2f} per block."
    shown = {name: results.initialization(model_name(results.size.residual, name)) for name in growth}
    figure = figures.draw_activation_growth(folder, {k: v for k, v in shown.items() if v}) if growth else ""
    text = f"""\
## Claim 1: activation normalizers ({describe_network(results.size.residual)})

Fits to the blocks of each stage, both by least squares on the variance itself; means over stages and seeds. A
variance that grows by less than {claims.NO_GROWTH} per block does not grow; otherwise the better fit decides.

{markdown_table(table)}

{figure}"""
    return [line], text


def describe_claim2(results: Results, folder: Path) -> Section:
    """Claim 2 and Figure 3: parametric normalizers let it grow exponentially, unless the block is another."""
    growth = claims.parametric_growth(results)
    table = [["normalizer", "block", "growth per block", "lowest, highest seed", "claimed", "verdict"]]
    for (normalizer, residual), factor in growth.items():
        claimed = {True: "explodes", False: "does not", None: "-"}[factor.explodes]
        numbers = [f"{factor.mean:.3f}", f"{factor.lowest:.3f}, {factor.highest:.3f}"]
        judged = "" if factor.explodes is None else verdict(factor.holds)
        table.append([normalizer, BLOCKS[residual], *numbers, claimed, judged])
    standard = {n: growth[n, ""] for n in PARAMETRIC if (n, "") in growth}
    changed = {(n, r): factor for (n, r), factor in growth.items() if r != "" and factor.holds is not None}
    explode = all(factor.holds for factor in standard.values()) if len(standard) == 2 else None
    as_claimed = all(factor.holds for factor in changed.values()) if len(changed) == 4 else None
    lines = [
        f"Claim 2, variance grows exponentially in standard blocks under parametric normalizers: {verdict(explode)}",
        f"Figure 3, what changed blocks do about it: {verdict(as_claimed)}",
    ]
    if standard:
        factors = ", ".join(f"{factor.mean:.2f} ({n})" for n, factor in standard.items())
        lines[0] += f"; by {factors} per block, 2 predicted."
    if changed:
        failed = ", ".join(f"{BLOCKS[r]} with {n}" for (n, r), factor in changed.items() if not factor.holds)
        held = sum(bool(factor.holds) for factor in changed.values())
        lines[1] += f"; {held} of {len(changed)} cells are as claimed" + (
            f"; not: {failed}." if failed else "."
        )
    shown = {
        (n, r): i
        for n in PARAMETRIC
        for r in RESIDUALS
        if (i := results.initialization(model_name(results.size.residual, n, r))) is not None
    }
    figure = figures.draw_parametric_growth(folder, shown) if shown else ""
    text = f"""\
## Claim 2: parametric normalizers ({describe_network(results.size.residual)})

Exponential fits to the blocks of each stage, mean over stages and seeds. A block that grows by more than
{claims.EXPLODES} explodes, one below {claims.STABLE} does not. The claim's proof also gives 2 for the non-linearity
on the residual branch, whose branch keeps the variance as well; the authors' code can have SkipInit there: "both".

{markdown_table(table, left=2)}

{figure}"""
    return lines, text


def describe_claim3(results: Results, folder: Path) -> Section:
    """Claim 3: stable rank is linear in sqrt(width / group size)."""
    size = results.size
    fit = claims.rank_fit(results)
    line = (
        f"Claim 3, stable rank is linear in sqrt(width / group size): {verdict(fit.holds if fit else None)}"
    )
    if fit is not None:
        line += f"; R^2 = {fit.r_squared:.3f}, slope {fit.slope:.2f}."
    similarities = {
        describe_network(size.deep): claims.similarities(results, size.deep, size.group_sizes),
        describe_network(size.residual): claims.similarities(
            results, size.residual, size.residual_group_sizes
        ),
    }
    sizes = list(size.group_sizes)
    table = [["group size", *map(str, sizes)]]
    if fit is not None:
        mean, std = fit.ranks.mean(axis=0), fit.ranks.std(axis=0, ddof=1)
        table.append(["stable rank", *(f"{m:.2f} ± {s:.2f}" for m, s in zip(mean, std, strict=True))])
    lines = [line]
    for network, by_size in similarities.items():
        if by_size:
            last = {g: float(row[-1]) for g, row in by_size.items()}
            table.append([f"similarity, {network}", *(format_number(last.get(g), ".3f") for g in sizes)])
            order = claims.rank_correlation(list(last), list(last.values()))
            lines.append(
                f"Claim 3, similarity rises with group size in {network}: {verdict(order > 0.8)}; "
                f"rank correlation {order:.2f}."
            )
    figure = figures.draw_rank_and_similarity(folder, fit, similarities)
    text = f"""\
## Claim 3: group size

Stable rank before the linear layer of 30 layers of width 64 with Gaussian images of {size.gaussian_size} x
{size.gaussian_size} pixels, mean ± deviation over seeds; cosine similarity before the linear layer on CIFAR-100.

{markdown_table(table)}

{figure}"""
    return lines, text


def describe_claim4(results: Results, folder: Path) -> Section:
    """Claim 4 and Figure 8: gradients explode in this order: InstanceNorm, BatchNorm, GroupNorm, LayerNorm."""
    size = results.size
    networks = (*size.plain, size.residual)
    found = {}
    for network in networks:
        for batch_size, small in ((size.batch_size, False), (16, True)):
            explosion = claims.explosion(results, network, small=small)
            if explosion.norms:
                found[describe_network(network), batch_size] = explosion
    pairs = list(itertools.pairwise(COMPARED))
    table = [["network", "batch", *COMPARED, *(f"{a} >= {b}" for a, b in pairs), "order"]]
    for (network, batch_size), explosion in found.items():
        if explosion.holds is not None:
            norms = [f"{math.exp(explosion.early[name].mean()):.3g}" for name in COMPARED]
            seeds = [explosion.seeds_in_order(a, b) for a, b in pairs]
            table.append([network, str(batch_size), *norms, *seeds, verdict(explosion.holds)])
    judged = [explosion.holds for explosion in found.values() if explosion.holds is not None]
    broken = [
        f"{inequality} in {network}"
        for (network, _), explosion in found.items()
        if explosion.holds is False
        for inequality in explosion.broken
    ]
    line = (
        "Claim 4 with figure 8, early gradients in the order InstanceNorm, BatchNorm, GroupNorm, LayerNorm: "
        f"{verdict(all(judged) if judged else None)}"
    )
    if judged:
        line += f"; the order is met in {sum(judged)} of {len(judged)} networks and batch sizes"
        line += f"; not met: {', '.join(dict.fromkeys(broken))}." if broken else "."
    means = [["network", *(f"{a} >= {b}" for a, b in claims.INEQUALITIES)]]
    for network in networks:
        inequalities = claims.inequalities(results, network)
        if inequalities:
            means.append(
                [
                    describe_network(network),
                    *(f"{share:.0%}, ratio {ratio:.2f}" for share, ratio in inequalities.values()),
                ]
            )
    figure = figures.draw_explosion(folder, found) if found else ""
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
    return [line], text


def describe_figures5_7_9(results: Results, folder: Path) -> Section:
    """Figures 5, 7 and 9: similarity and speed, gradient norms in the first steps, group size."""
    lines, parts = [], ["## Figures 5, 7 and 9"]
    speeds = {n: s for n in results.size.trained if len((s := trainings.speed(results, n)).normalizers) > 0}
    for network, speed in speeds.items():
        without = speed.correlation(without=("instance_norm",))
        with_all = speed.correlation()
        tests = [name for name, falls in without.falls.items() if falls]
        if len(tests) == 1:
            answer = f"**undecided**, significant by {tests[0]} correlation alone"
        else:
            answer = verdict(None if math.isnan(without.pearson) else bool(tests))
        if tests and not any(with_all.falls.values()):
            answer += " and only without InstanceNorm"
        lines.append(
            f"Figure 5, similarity at initialisation predicts speed in {describe_network(network)}: {answer}; "
            f"without InstanceNorm, as in the paper: {without}; with it: {with_all}."
        )
    if speeds:
        parts.append(figures.draw_speed(folder, {describe_network(n): s for n, s in speeds.items()}))
    steps = trainings.first_steps(results)
    if steps is not None:
        start = steps.transient
        everything, later = (steps.correlations(first).mean(axis=0) for first in (0, start))
        enough, later_enough = (bool(np.all(means >= 0.6)) for means in (everything, later))
        answer = verdict(enough)
        if enough and not later_enough:
            answer = f"**undecided**, resting on the first {start} steps"
        lines.append(
            f"Figure 7, gradient norm follows the inverse product of the deviations ahead in the first "
            f"{steps.norms.shape[1]} steps of {describe_network(results.size.followed)} at batch "
            f"{results.size.training_batch_size} (full: {describe_network(SIZES['full'].followed)}, batch "
            f"{SIZES['full'].training_batch_size}): {answer}; correlation {_describe_means(everything)}, without the "
            f"first {start} steps {_describe_means(later)} (paper: 0.6 to 0.9)."
        )
        parts.append(figures.draw_first_steps(folder, steps))
    tradeoff = trainings.tradeoff(results)
    if tradeoff is not None:
        similarity, rate = tradeoff.similarity.mean(axis=1), tradeoff.rate.mean(axis=1)
        lines.append(
            "Figure 9, a larger group size raises similarity, which the paper takes for slowness (see figure 5), and "
            f"lowers the gradient's growth in {describe_network(results.size.deep)}: {verdict(tradeoff.holds)}; "
            f"from group size {tradeoff.group_sizes[0]} to {tradeoff.group_sizes[-1]} the similarity goes "
            f"from {similarity[0]:.2f} to {similarity[-1]:.2f}, and the gradient's growth per layer "
            f"from {rate[0]:.2f} to {rate[-1]:.2f}."
        )
        parts.append(figures.draw_tradeoff(folder, tradeoff))
    return lines, "\n\n".join(parts)


def _describe_means(correlations: np.ndarray) -> str:
    enough = int(np.sum(correlations >= 0.6))
    return (
        f"{correlations.min():.2f} to {correlations.max():.2f} by layer, at least 0.6 in {enough} of "
        f"{len(correlations)} layers"
    )


def describe_beyond(results: Results, records: Sequence[RunRecord], folder: Path) -> Section:
    """Beyond the paper: ZNorm and GAN with the normalizers that fail."""
    size = results.size
    cells = make_cells(rescue_runs(size), records)
    lines = []
    inputs = {}
    spreads = [["network", "normalizer", *METHODS]]
    for network, failing in size.rescued:
        for normalizer in (failing, "batch_norm"):
            sizes = trainings.optimizer_input(results, network, normalizer)
            if sizes:
                inputs[f"{describe_network(network)}\n{normalizer}"] = sizes
                spreads.append(
                    [
                        describe_network(network),
                        normalizer,
                        *(f"{trainings.spread(rows):.2f}" for rows in sizes.values()),
                    ]
                )
        lines.append(_rescue_line(results, network, failing))
    if len(spreads) > 1:
        ranges = {m: [float(row[2 + i]) for row in spreads[1:]] for i, m in enumerate(METHODS)}
        lines.append(
            "Beyond the paper, gradients the optimizer sees, deviation of log10 over layers: "
            + ", ".join(f"{m} {min(v):.2f} to {max(v):.2f}" for m, v in ranges.items())
            + ": ZNorm makes every layer's the same, GAN rescales all layers alike."
        )
    rows = make_rows(cells.values(), lambda run: (run.model, run.method))
    by_model: dict[str, list[Cell]] = {}
    for cell in cells.values():
        by_model.setdefault(cell.run.model, []).append(cell)
    # Runs that all diverged have no curve, and their losses of up to 1e9 would flatten all others.
    diverged = [
        m for m, some in by_model.items() if all(c.ended and c.diverged == len(c.ended) for c in some)
    ]
    panels = {m.replace(":", "\n"): some for m, some in by_model.items() if m not in diverged}
    left_out = f"Not drawn, since every run diverged: {', '.join(diverged)}." if diverged else ""
    protocols = "\n".join(
        f"- {protocol}." for protocol in dict.fromkeys(describe_protocol(c.run) for c in cells.values())
    )
    text = f"""\
## Beyond the paper: ZNorm and GAN behind the normalizers that fail

{protocols}

{results_table(("model", "method"), rows)}

{_rescue_notes(size)}

{add_learning_curves(folder, "beyond_curves", "Trainings behind each method", panels)} {left_out}

Deviation over layers of log10 of the root mean square of each kernel's gradient at initialisation:

{markdown_table(spreads, left=2)}

{figures.draw_optimizer_input(folder, inputs) if inputs else ""}"""
    return lines, text


def _rescue_notes(size: Size) -> str:
    """What the trainings can tell and what not, and where their learning rates come from."""
    rates, steps = [], []
    for network, _ in size.rescued:
        run = make_run(size, network, "batch_norm", "baseline", 0)
        rate = LEARNING_RATES[family(network)]
        rates.append(
            f"{run.learning_rate:.4g} = {rate:g} * {run.batch_size} / 256 in {describe_network(network)}"
        )
        if run.train_examples is not None:
            steps.append(f"{run.epochs * run.train_examples // run.batch_size:,}")
    length = f"{' and '.join(dict.fromkeys(steps))} steps long" if steps else f"{size.epochs} epochs long"
    return f"""\
One learning rate for each method, tuned for none here, and trainings {length}: another rate may rescue what these
do not. Baseline and GAN have the paper's, scaled with the batch ({"; ".join(rates)}), although GAN's multiplier is
below 1 and shrinks the gradients; ZNorm has {ZNORM_LEARNING_RATE:g}, which tuning behind SGD with momentum found
best in another study, on CIFAR-10. The weight decay of {WEIGHT_DECAY:g} is added behind the momentum of 0.9, where
the paper's 0.0001 is added in front of it, which in the long run multiplies it by 1 / (1 - 0.9) = 10: the two are
equally strong."""


def _rescue_line(results: Results, network: str, failing: str) -> str:
    found = trainings.rescue(results, network, failing)
    start = f"Beyond the paper, {failing} in {describe_network(network)}"
    if found is None:
        return f"{start}: not measured."
    if not found.is_told:
        answer = "cannot be told to train or not, since BatchNorm has hardly learnt either"
    elif found.trains("baseline"):
        answer = "does not fail in these trainings"
    else:
        rescuers = [method for method in METHODS if found.trains(method)]
        answer = f"is rescued by {' and '.join(rescuers)}" if rescuers else "is rescued by neither"
        answer += " at these learning rates"
    reached = [
        f"{method} {accuracy:.1%}"
        + (f" ({found.diverged[method]} diverged)" if found.diverged[method] else "")
        for method, accuracy in found.accuracies.items()
    ]
    return (
        f"{start} **{answer}**: last training accuracy {', '.join(reached)}; batch_norm {found.reference:.1%}; "
        "half-way from guessing to that counts as trained."
    )
