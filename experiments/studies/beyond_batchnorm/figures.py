"""The figures of `beyond_batchnorm`, one per claim, from what `claims` and `trainings` computed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from experiments.report import style
from experiments.studies.beyond_batchnorm.claims import Explosion, RankFit, fit_curves
from experiments.studies.beyond_batchnorm.results import Initialization
from experiments.studies.beyond_batchnorm.trainings import FirstSteps, Speed, Tradeoff


def _panels(columns: int, rows: int = 1, *, width: float = 3.2, height: float = 2.8, **options):
    size = (max(width * columns, 4.5), height * rows)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


LINES = "Lines: means over seeds; bands: lowest to highest seed."


def _save(figure: Figure, folder: Path, name: str, caption: str, explanation: str) -> str:
    style.save(figure, folder / f"{name}.svg")
    return f"![{caption}]({name}.svg)\n\n{explanation}"


def _line(axes: Any, rows: np.ndarray, label: str, color: Any, **options) -> None:
    """Mean over seeds along the layers, and a band from the lowest to the highest seed."""
    layers = np.arange(1, rows.shape[1] + 1)
    axes.plot(layers, rows.mean(axis=0), color=color, linewidth=1.4, label=label, **options)
    axes.fill_between(layers, rows.min(axis=0), rows.max(axis=0), color=color, alpha=0.15, linewidth=0)


def draw_activation_growth(folder: Path, found: Mapping[str, Initialization]) -> str:
    """Claim 1, laid out as Figure 2: variance along the blocks, and both fits to each stage."""
    with mpl.rc_context(style.STYLE):
        columns = min(len(found), 4)
        figure, axes = _panels(columns, -(-len(found) // columns), sharex=True, height=2.3)
        for axis, (normalizer, initialization) in zip(axes.flat, found.items(), strict=False):
            variances = np.exp(initialization.statistics["log_variance"])
            _line(axis, variances, "measured", style.BLUE, marker="o", markersize=2.5)
            start = variances.shape[1] - sum(stage.shape[1] for stage in initialization.stages())
            for stage in initialization.stages():
                blocks = np.arange(start, start + stage.shape[1])
                fits = fit_curves(np.exp(stage).mean(axis=0))
                for (label, fitted), line, color in zip(
                    fits.items(), ("--", ":"), (style.VERMILION, style.GREEN), strict=True
                ):
                    axis.plot(blocks + 1, fitted, line, color=color, linewidth=1.3, label=f"{label} fit")
                start += stage.shape[1]
            axis.set_title(normalizer)
            axis.set_ylim(bottom=0)
        for axis in axes[-1]:
            axis.set_xlabel("input layer and blocks")
        for axis in axes[:, 0]:
            axis.set_ylabel("activation variance")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles[:3], labels[:3], loc="outside lower center", ncols=3)
        return _save(figure, folder, "claim1", "Activation variance along a residual network", LINES)


def draw_parametric_growth(folder: Path, found: Mapping[tuple[str, str], Initialization]) -> str:
    """Claim 2, laid out as Figure 3: log variance along the blocks, one panel for each kind of block."""
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
            for (normalizer, other), initialization in found.items():
                if other == residual:
                    logs = initialization.statistics["log_variance"] / np.log(10)
                    _line(axis, logs, normalizer, style.NORMALIZER_COLORS[normalizer])
        axes[0, 0].set_ylabel("log10 activation variance")
        axes[0, 0].legend()
        return _save(figure, folder, "claim2", "Activation variance under parametric normalizers", LINES)


def draw_rank_and_similarity(
    folder: Path, fit: RankFit | None, similarities: Mapping[str, Mapping[int, np.ndarray]]
) -> str:
    """Claim 3, laid out as Figure 6: stable rank against sqrt(width / group size); similarity by layer."""
    shown = {network: by_size for network, by_size in similarities.items() if by_size}
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


def draw_explosion(folder: Path, found: Mapping[tuple[str, int], Explosion]) -> str:
    """Claim 4, laid out as Figures 8, 16 and 17: gradient norm by layer, a row for each batch size."""
    networks = list(dict.fromkeys(network for network, _ in found))
    batch_sizes = list(dict.fromkeys(batch_size for _, batch_size in found))
    with mpl.rc_context(style.STYLE):
        figure, axes = _panels(len(networks), len(batch_sizes), sharex="col", height=2.5)
        for (network, batch_size), explosion in found.items():
            axis = axes[batch_sizes.index(batch_size), networks.index(network)]
            for normalizer, norms in explosion.norms.items():
                _line(axis, norms / np.log(10), normalizer, style.NORMALIZER_COLORS[normalizer])
            axis.set_title(f"{network}, batch {batch_size}")
        for axis in axes[-1]:
            axis.set_xlabel("convolution")
        for axis in axes[:, 0]:
            axis.set_ylabel("log10 gradient norm")
        axes[0, 0].legend()
        return _save(figure, folder, "claim4", "Gradient norm by layer", LINES)


def draw_speed(folder: Path, found: Mapping[str, Speed]) -> str:
    """Figure 5: mean training accuracy against cosine similarity at initialisation."""
    with mpl.rc_context(style.STYLE):
        figure, axes = _panels(len(found), width=4.4, height=3.4)
        for axis, (network, speed) in zip(axes[0], found.items(), strict=True):
            points = list(zip(speed.similarity, speed.accuracy, strict=True))
            width, height = np.ptp(points, axis=0)
            for name, (x, y) in zip(speed.normalizers, points, strict=True):
                color = style.NORMALIZER_COLORS.get(name, style.GRAY)
                axis.plot(x, y, "o", color=color)
                # To the left of its point, unless another point is in the way.
                hidden = any(0 < x - a < 0.25 * width and abs(y - b) < 0.05 * height for a, b in points)
                side, offset = ("left", 6) if hidden else ("right", -6)
                axis.annotate(
                    name,
                    (x, y),
                    (offset, 0),
                    textcoords="offset points",
                    ha=side,
                    va="center",
                    fontsize=7,
                    color=color,
                )
            axis.margins(x=0.35, y=0.12)
            axis.set(
                title=network, xlabel="cosine similarity at initialisation", ylabel="mean training accuracy"
            )
        return _save(
            figure,
            folder,
            "figure5",
            "Speed of training against similarity at initialisation",
            "Means over seeds; the training accuracy is the mean over all epochs too.",
        )


def draw_first_steps(folder: Path, found: FirstSteps) -> str:
    """Figure 7: gradient norm against the inverse product of the deviations ahead, and the correlations."""
    with mpl.rc_context(style.STYLE):
        figure, axes = _panels(2, width=3.8, height=3)
        left, right = axes[0]
        layers = found.norms.shape[2]
        colors = mpl.colormaps["viridis"](np.linspace(0, 0.9, layers))
        for layer in range(layers):
            left.plot(
                np.log10(found.products[0, :, layer]),
                np.log10(found.norms[0, :, layer]),
                ".",
                color=colors[layer],
                markersize=3,
                label=str(layer + 1),
            )
        left.set(
            xlabel="log10 inverse product of the deviations ahead",
            ylabel="log10 gradient norm",
            title="one seed, every step",
        )
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


def draw_tradeoff(folder: Path, found: Tradeoff) -> str:
    """Figure 9: similarity and growth of the gradient against group size."""
    with mpl.rc_context(style.STYLE):
        figure, axes = _panels(2, sharex=True)
        rows = (
            (found.similarity, "cosine similarity", "the paper: lower is faster", style.BLUE),
            (
                found.rate,
                "growth of the gradient per layer",
                "the paper: lower is more stable",
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


def draw_optimizer_input(folder: Path, found: Mapping[str, Mapping[str, np.ndarray]]) -> str:
    """Beyond the paper: size of each layer's gradient behind each method."""
    shown: Sequence[tuple[str, Mapping[str, np.ndarray]]] = [(k, v) for k, v in found.items() if v]
    with mpl.rc_context(style.STYLE):
        figure, axes = _panels(max(len(shown), 1), width=3.6)
        for axis, (title, sizes) in zip(axes[0], shown, strict=False):
            for method, rows in sizes.items():
                _line(axis, rows, method, style.METHOD_STYLES[method][0])
            axis.set(title=title, xlabel="kernel")
        axes[0, 0].set_ylabel("log10 root mean square\nof the gradient")
        axes[0, 0].legend()
        return _save(figure, folder, "beyond", "Gradients as the optimizer gets them", LINES)
