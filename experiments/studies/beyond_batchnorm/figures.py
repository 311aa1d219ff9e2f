"""The figures of `beyond_batchnorm`: each writes a file, and returns the Markdown that shows it.

Where nothing was measured, nothing is written and the Markdown is empty.
"""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from experiments.report import names, style
from experiments.studies.beyond_batchnorm import claims, trainings
from experiments.studies.beyond_batchnorm.plan import PARAMETRIC, RESIDUALS
from experiments.studies.beyond_batchnorm.results import Results


def _panels(columns: int, rows: int = 1, *, width: float = 3.2, height: float = 2.8, **options):
    size = (max(width * columns, 4.5), height * rows)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


LINES = "Lines: geometric means over seeds; bands: lowest to highest seed."


def _save(figure: Figure, folder: Path, name: str, caption: str, explanation: str) -> str:
    style.save(figure, folder / f"{name}.svg")
    return f"![{caption}]({name}.svg)\n\n{explanation}"


def _line(axes: Any, rows: np.ndarray, label: str, color: Any, every: int = 1) -> None:
    """Geometric mean over seeds along the layers, and a band from the lowest to the highest seed."""
    layers = np.arange(1, rows.shape[1] + 1)[every - 1 :: every]
    rows = rows[:, every - 1 :: every]
    axes.plot(layers, np.exp(np.log(rows).mean(axis=0)), color=color, linewidth=1.4, label=label)
    axes.fill_between(layers, rows.min(axis=0), rows.max(axis=0), color=color, alpha=0.15, linewidth=0)


def draw_activation_growth(results: Results, folder: Path) -> str:
    """Claim 1, laid out as Figure 2: variance along the blocks, and both fits to each stage with their R^2."""
    growth = claims.activation_growth(results)
    found = results.initializations(results.size.residual, list(growth))
    if not found:
        return ""
    with mpl.rc_context(style.STYLE):
        columns = min(len(found), 4)
        figure, axes = _panels(columns, -(-len(found) // columns), sharex=True, height=2.3)
        for axis, (normalizer, initialization) in zip(axes.flat, found.items(), strict=False):
            variances = np.exp(initialization.statistics["log_variance"])
            start = variances.shape[1] - sum(stage.shape[1] for stage in initialization.stages())
            for number, stage in enumerate(initialization.stages(), start=1):
                blocks = np.arange(start, start + stage.shape[1])
                # A stage begins with a smaller variance: no line leads there from the stage before it.
                rows = variances[:, blocks]
                axis.plot(
                    blocks + 1, rows.mean(axis=0), "o", color=style.BLUE, markersize=2.5, label="measured"
                )
                axis.fill_between(
                    blocks + 1, rows.min(axis=0), rows.max(axis=0), color=style.BLUE, alpha=0.15, linewidth=0
                )
                axis.text(
                    blocks.mean() + 1,
                    0.02,
                    f"stage {number}",
                    ha="center",
                    fontsize=7,
                    color=style.GRAY,
                    transform=axis.get_xaxis_transform(),
                )
                fits = claims.fit_curves(np.exp(stage).mean(axis=0))
                for (label, fitted), line, color in zip(
                    fits.items(), ("--", ":"), (style.VERMILION, style.GREEN), strict=True
                ):
                    axis.plot(blocks + 1, fitted, line, color=color, linewidth=1.3, label=f"{label} fit")
                start += stage.shape[1]
            axis.set_title(names.normalizer(normalizer))
            g = growth[normalizer]
            told = f"$R^2$ linear {g.linear:.3f}\n$R^2$ exponential {g.exponential:.3f}"
            axis.text(0.03, 0.95, told, fontsize=7, va="top", transform=axis.transAxes)
            axis.set_ylim(bottom=0, top=1.25 * axis.get_ylim()[1])
        for axis in axes[-1]:
            axis.set_xlabel("residual block")
        figure.suptitle("Claim 1: with activation normalizers the variance grows along a line")
        for axis in axes[:, 0]:
            axis.set_ylabel("activation variance")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles[:3], labels[:3], loc="outside lower center", ncols=3, frameon=False)
        return _save(figure, folder, "claim1", "Activation variance along a residual network", LINES)


def draw_parametric_growth(results: Results, folder: Path) -> str:
    """Claim 2, laid out as Figure 3: log variance along the blocks, one panel for each kind of block."""
    found = {
        residual: results.initializations(results.size.residual, PARAMETRIC, residual)
        for residual in RESIDUALS
    }
    if not any(found.values()):
        return ""
    titles = {
        "": "standard",
        ":skip_init": "SkipInit",
        ":nonlinearity_on_residual": "non-linearity on\nthe residual branch",
        ":skip_init:nonlinearity_on_residual": "non-linearity on the\nresidual branch, SkipInit",
    }
    with mpl.rc_context(style.STYLE):
        figure, axes = _panels(len(titles), sharey=True, width=2.6)
        for axis, (residual, title) in zip(axes[0], titles.items(), strict=True):
            axis.set_title(title)
            axis.set_xlabel("input layer and blocks")
            axis.set_yscale("log")
            for normalizer, initialization in found[residual].items():
                variances = np.exp(initialization.statistics["log_variance"])
                _line(axis, variances, names.normalizer(normalizer), style.NORMALIZER_COLORS[normalizer])
        axes[0, 0].set_ylabel("activation variance")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
        figure.suptitle("Claim 2: with parametric normalizers the variance explodes")
        return _save(figure, folder, "claim2", "Activation variance under parametric normalizers", LINES)


def draw_rank_and_similarity(results: Results, folder: Path) -> str:
    """Claim 3, laid out as Figure 6: stable rank against sqrt(width / group size); similarity by layer."""
    fit = claims.rank_fit(results)
    similarities = {network: claims.similarities(results, network) for network in results.size.grouped}
    shown = {names.model(network): by_size for network, by_size in similarities.items() if by_size}
    if fit is None and not shown:
        return ""
    with mpl.rc_context(style.STYLE):
        figure, axes = _panels(1 + len(shown), width=3.6)
        axis = axes[0, 0]
        if fit is None:
            axis.set_visible(False)
        else:
            deviations = fit.ranks.std(axis=0, ddof=1)
            axis.errorbar(fit.roots, fit.ranks.mean(axis=0), deviations, fmt="o", color=style.BLUE)
            line = fit.slope * fit.roots + fit.intercept
            axis.plot(
                fit.roots, line, "--", color=style.VERMILION, label=f"linear fit, $R^2$ = {fit.r_squared:.3f}"
            )
            axis.legend()
        axis.set(
            xlabel=r"$\sqrt{\mathrm{width} / \mathrm{group\ size}}$",
            ylabel="stable rank",
            title="(a) 30 layers",
        )
        for axis, letter, (network, by_size) in zip(axes[0, 1:], "bc", shown.items(), strict=False):
            colors = mpl.colormaps["viridis"](np.linspace(0, 0.9, len(by_size)))
            for color, (group_size, similarity) in zip(colors, by_size.items(), strict=True):
                axis.plot(np.arange(1, len(similarity) + 1), similarity, color=color, label=str(group_size))
            axis.set(
                xlabel="layer or block",
                ylabel="cosine similarity",
                title=f"({letter}) {network}",
                ylim=(0, 1.02),
            )
            axis.legend(title="group size", fontsize=7, title_fontsize=7, ncols=2)
        return _save(
            figure,
            folder,
            "claim3",
            "Stable rank and cosine similarity against group size",
            "(a): mean and sample standard deviation over seeds; (b) and (c): means over seeds.",
        )


def draw_explosion(results: Results, folder: Path) -> str:
    """Claim 4, laid out as Figures 8, 16 and 17: gradient norm by layer, a row for each batch size."""
    found = claims.explosions(results)
    if not found:
        return ""
    networks = list(dict.fromkeys(network for network, _ in found))
    batch_sizes = list(dict.fromkeys(batch_size for _, batch_size in found))
    with mpl.rc_context(style.STYLE):
        figure, axes = _panels(len(networks), len(batch_sizes), sharex="col", height=2.5)
        for (network, batch_size), explosion in found.items():
            axis = axes[batch_sizes.index(batch_size), networks.index(network)]
            for normalizer, norms in explosion.norms.items():
                # The two convolutions of a residual block differ: the second ones alone make a line.
                every = 2 if network == results.size.residual else 1
                _line(
                    axis,
                    np.exp(norms),
                    names.normalizer(normalizer),
                    style.NORMALIZER_COLORS[normalizer],
                    every,
                )
            axis.set_title(f"{names.model(network)}, batch {batch_size}")
            axis.set_yscale("log")
            style.label_narrow_log_axis(axis.yaxis)
        for axis, network in zip(axes[-1], networks, strict=True):
            every_second = network == results.size.residual
            axis.set_xlabel("every second convolution" if every_second else "convolution")
        for axis in axes[:, 0]:
            axis.set_ylabel("gradient norm")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
        return _save(figure, folder, "claim4", "Gradient norm by layer", LINES)


def draw_speed(results: Results, folder: Path) -> str:
    """Figure 5: mean training accuracy against cosine similarity at initialisation."""
    speeds = {network: trainings.speed(results, network) for network in results.size.trained}
    found = {network: speed for network, speed in speeds.items() if speed.normalizers}
    if not found:
        return ""
    with mpl.rc_context(style.STYLE):
        figure, axes = _panels(len(found), width=4.4, height=3.4)
        for axis, (network, speed) in zip(axes[0], found.items(), strict=True):
            points = list(zip(speed.similarity, speed.accuracy, strict=True))
            width, height = np.ptp(points, axis=0)
            for name, (x, y) in zip(speed.normalizers, points, strict=True):
                color = style.NORMALIZER_COLORS.get(name, style.GRAY)
                axis.plot(x, y, "o", color=color)
                # To the left of its point, unless another point is in the way.
                hidden = any(0 < x - a < 0.45 * width and abs(y - b) < 0.05 * height for a, b in points)
                side, offset = ("left", 6) if hidden else ("right", -6)
                axis.annotate(
                    names.normalizer(name),
                    (x, y),
                    (offset, 0),
                    textcoords="offset points",
                    ha=side,
                    va="center",
                    fontsize=7,
                    color=color,
                )
            axis.margins(x=0.55, y=0.12)
            axis.set(
                title=names.model(network),
                xlabel="cosine similarity at initialisation",
                ylabel="mean training accuracy",
            )
        return _save(
            figure,
            folder,
            "figure5",
            "Speed of training against similarity at initialisation",
            "Means over seeds; the training accuracy is the mean over all epochs too.",
        )


def draw_first_steps(results: Results, folder: Path) -> str:
    """Figure 7: gradient norm against the inverse product of the deviations ahead, and the correlations."""
    found = trainings.first_steps(results)
    if found is None:
        return ""
    with mpl.rc_context(style.STYLE):
        figure, axes = _panels(2, width=3.8, height=3)
        left, right = axes[0]
        layers = found.norms.shape[2]
        colors = mpl.colormaps["viridis"](np.linspace(0, 0.9, layers))
        for layer in range(layers):
            products, norms = found.products[0, :, layer], found.norms[0, :, layer]
            first = slice(found.transient)
            left.plot(products[first], norms[first], ".", color="#BBBBBB", markersize=2)
            rest = slice(found.transient, None)
            left.plot(
                products[rest], norms[rest], ".", color=colors[layer], markersize=3, label=str(layer + 1)
            )
        left.set(
            xlabel="inverse product of the deviations ahead",
            ylabel="gradient norm",
            xscale="log",
            yscale="log",
            title=f"one seed, every step (grey: the first {found.transient})",
        )
        style.label_narrow_log_axis(left.xaxis)
        style.label_narrow_log_axis(left.yaxis)
        left.legend(title="layer", fontsize=7, title_fontsize=7, ncols=2, markerscale=2)
        places = np.arange(1, layers + 1)
        for start, label, line, color in (
            (0, "all steps", "o-", style.BLUE),
            (found.transient, f"without the first {found.transient}", "s--", style.VERMILION),
        ):
            correlations = found.correlations(start)
            right.plot(places, correlations.T, ".", color=color, alpha=0.35, markersize=3)
            right.plot(places, correlations.mean(axis=0), line, color=color, markersize=4, label=label)
        right.axhspan(0.6, 0.9, color=style.ORANGE, alpha=0.2, linewidth=0, label="the paper's range")
        right.set(xlabel="layer", ylabel="correlation over steps", ylim=(-1.05, 1.05), title="by layer")
        right.legend(fontsize=7)
        return _save(
            figure,
            folder,
            "figure7",
            "Gradient norm and the deviations of the layers ahead",
            "Right: lines are means over seeds, faint dots one seed each.",
        )


def draw_tradeoff(results: Results, folder: Path) -> str:
    """Figure 9: similarity and growth of the gradient against group size."""
    found = trainings.tradeoff(results)
    if found is None:
        return ""
    with mpl.rc_context(style.STYLE):
        figure, axes = _panels(2, width=3.6, sharex=True)
        rows = (
            (found.similarity, "cosine similarity", "Similarity (paper: lower trains faster)", style.BLUE),
            (
                found.rate,
                "growth of the gradient per layer",
                "Growth (paper: lower is more stable)",
                style.VERMILION,
            ),
        )
        for axis, (values, label, title, color) in zip(axes[0], rows, strict=True):
            deviations = values.std(axis=1, ddof=1)
            axis.errorbar(found.group_sizes, values.mean(axis=1), deviations, fmt="o-", color=color)
            axis.set_xscale("log", base=2)
            axis.set(xlabel="group size", ylabel=label, title=title)
        return _save(
            figure,
            folder,
            "figure9",
            "Similarity and growth of the gradient against group size",
            "Means and sample standard deviations over seeds.",
        )


def draw_optimizer_input(results: Results, folder: Path) -> str:
    """Beyond the paper: size of each layer's gradient behind each method."""
    found = trainings.optimizer_inputs(results)
    if not found:
        return ""
    with mpl.rc_context(style.STYLE):
        figure, axes = _panels(len(found), width=2.6, sharey=True)
        for axis, ((network, normalizer), sizes) in zip(axes[0], found.items(), strict=True):
            title = f"{names.model(network)}\n{names.normalizer(normalizer)}"
            for method, rows in sizes.items():
                color, dashes = style.METHOD_STYLES[method]
                _line(axis, 10.0**rows, names.METHODS[method], color)
                axis.lines[-1].set(linestyle=dashes, zorder=3 if method == "baseline" else 2)
            axis.set(title=title, xlabel="kernel", yscale="log")
        axes[0, 0].set_ylabel("root mean square\nof the gradient")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
        return _save(figure, folder, "beyond", "Gradients as the optimizer gets them", LINES)
