"""The section of the report on Figures 10 and 15 and on the batch size."""

import math

import numpy as np

from experiments.report import names
from experiments.report.markdown import markdown_table
from experiments.studies.beyond_batchnorm import further
from experiments.studies.beyond_batchnorm.results import Results, Section, claim

VANISHES = 0.9  # growth of the variance per layer below which it counts as vanishing
EXPLODES = 1.1
SAME_GROWTH = 0.02  # of the growth of gradients per layer
PREDICTED_DEVIATION = math.sqrt((math.pi - 1) / math.pi)


def describe_further(results: Results) -> Section:
    """Figures 10 and 15, LayerNorm's similarity, and what the batch size changes."""
    size = results.size
    found, parts = [], ["## Figures 10 and 15, and the batch size"]

    growth = further.layer_growth(results, size.deep)
    if growth:
        means = {normalizer: float(factors.mean()) for normalizer, factors in growth.items()}
        vanishing = [f"{names.normalizer(n)} x {m:.3f}" for n, m in means.items() if m < VANISHES]
        exploding = [f"{names.normalizer(n)} x {m:.3f}" for n, m in means.items() if m > EXPLODES]
        others = [m for m in means.values() if VANISHES <= m <= EXPLODES]
        found.append(
            claim(
                "Most normalizers keep the variance from exploding and vanishing without shortcuts: "
                f"{names.model(size.deep)}",
                len(others) > len(means) / 2,
                f"per layer x {min(others):.3f} to {max(others):.3f} in {len(others)} of {len(means)}; "
                f"vanishing: {', '.join(vanishing) or 'none'}; exploding: {', '.join(exploding) or 'none'}"
                if others
                else "in none",
                label="figure 10",
                note=f"would be refuted by half of them or more outside {VANISHES} to {EXPLODES}",
            )
        )
        deviations = further.preactivation_deviation(results, size.deep)
        table = [
            [
                "normalizer",
                "growth of the variance per layer",
                "lowest, highest seed",
                "pre-activation deviation",
            ]
        ]
        for normalizer, factors in growth.items():
            ends = f"{factors.min():.3f}, {factors.max():.3f}"
            table.append(
                [names.normalizer(normalizer), f"{factors.mean():.3f}", ends, f"{deviations[normalizer]:.3f}"]
            )
        parts += [
            f"Figure 10, {names.model(size.deep)}; the paper's proof of a pre-activation deviation is "
            f"sqrt((pi - 1) / pi) = {PREDICTED_DEVIATION:.3f}:",
            markdown_table(table),
        ]

    similar = {
        n: s
        for n in (*size.plain, size.residual)
        if (s := further.similarity_before_the_last_layer(results, n))
    }
    if similar:
        normalizers = list(dict.fromkeys(name for by_name in similar.values() for name in by_name))
        table = [["normalizer", *map(names.model, similar)]]
        for normalizer in normalizers:
            cells = [by_name.get(normalizer) for by_name in similar.values()]
            table.append(
                [names.normalizer(normalizer), *("-" if c is None else f"{c.mean():.3f}" for c in cells)]
            )
        most = {
            n: max(by_name, key=lambda k, b=by_name: float(b[k].mean())) for n, by_name in similar.items()
        }
        times = sum(normalizer == "layer_norm" for normalizer in most.values())
        found.append(
            claim(
                "LayerNorm's activations are the most alike",
                times == len(most),
                f"in {times} of {len(most)} networks; most alike: "
                + ", ".join(f"{names.normalizer(most[n])} in {names.model(n)}" for n in most),
                label="figure 15",
                note="would be refuted by one network in which another normalizer's are more alike",
            )
        )
        parts += [
            "Figure 15, cosine similarity before the linear layer, means over seeds:",
            markdown_table(table),
        ]

    table = [
        [
            "network",
            "normalizer",
            f"growth per layer, batch {size.batch_size}",
            "batch 16",
            "norm at 16 / larger",
        ]
    ]
    changes, ratios = [], []
    for network in (*size.plain, size.residual):
        for normalizer, ratio in further.batch_ratios(results, network).items():
            table.append(
                [
                    names.model(network),
                    names.normalizer(normalizer),
                    *(f"{g:.4f}" for g in ratio.growth),
                    f"{ratio.norm:.2f}",
                ]
            )
            changes.append(abs(ratio.growth[1] / ratio.growth[0] - 1))
            ratios.append(ratio.norm)
    if changes:
        expected = math.sqrt(size.batch_size / 16)
        found.append(
            claim(
                "The growth of gradients per layer does not depend on the batch size",
                max(changes) < SAME_GROWTH,
                f"it changes by at most {max(changes):.1%} from batch {size.batch_size} to 16; norms change by "
                f"x {np.min(ratios):.2f} to {np.max(ratios):.2f}, sqrt({size.batch_size} / 16) = {expected:.2f}",
                label="batch size",
                note=f"would be refuted by a change of {SAME_GROWTH:.0%}",
                source="",
            )
        )
        parts += ["Gradients by batch size:", markdown_table(table, left=2)]
    return found, "\n\n".join(parts)
