"""The gradient overlap paper's Figures 1 and 2, and the figures of what was measured.

Yun, "Mitigating Gradient Overlap in Deep Residual Networks with Gradient Normalization for Improved
Non-Convex Optimization", 2024, arXiv 2410.21564. The paper names no surface for its figures. Ours is a
bowl with ripples, so that the gradient vanishes in several places and points in all directions.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.report import names, style
from experiments.studies.gradient_overlap.measures import Networks

DOMAIN = (-3.0, 3.0)
SURFACE_TEXT = "sin(2 x1) cos(2 x2) + (x1² + x2²) / 4 on a square grid of 61 x 61 points from -3 to 3"
SURFACE = r"$Z = \sin(2 x_1)\,\cos(2 x_2) + (x_1^2 + x_2^2)/4$"
OVERLAP_FACTOR = 0.5
STATE_COLORS = (style.BLACK, style.VERMILION, style.BLUE)  # ZNorm is blue in all figures
PANELS = (
    "Original gradient $g$",
    f"Residual: $g + {OVERLAP_FACTOR} g$",
    "ZNorm of residual",
    "ZNorm of residual $-$ residual",
)
# The paper's caption of Figure 1 D: the difference of the lengths, and not the length of the difference.
LENGTH_DIFFERENCE = "Length of ZNorm of residual $-$ length of residual"


def gradient_fields(points: int = 61) -> tuple[np.ndarray, list[np.ndarray]]:
    """The four gradient fields of the paper's Figures 1 and 2 on a square grid.

    The overlap is simulated as in the paper's equation 31: the gradient plus half of itself. ZNorm
    (equation 32) takes the field, both components at all points of the grid, as the gradient of one
    layer. It does not depend on scale, so its panel would be the same for every overlap factor.

    Args:
      points: of the grid along each axis.

    Returns:
      The coordinates along each axis, [points], and for each of `PANELS` a field [points, points, 2], the
      first index along x2 as plotting functions want it.
    """
    # In float64 by hand: in float32 the last digits, and with them pixels, differ between kinds of processor.
    axis = np.linspace(*DOMAIN, points)
    x1, x2 = np.meshgrid(axis, axis)
    along_x1 = 2 * np.cos(2 * x1) * np.cos(2 * x2) + x1 / 2
    along_x2 = -2 * np.sin(2 * x1) * np.sin(2 * x2) + x2 / 2
    original = np.stack([along_x1, along_x2], axis=-1)
    residual = original + OVERLAP_FACTOR * original
    normalized = (residual - residual.mean()) / residual.std()
    return axis, [original, residual, normalized, normalized - residual]


def describe_fields() -> str:
    """What the panels show, with the numbers of the fields."""
    _, (_, residual, _, _) = gradient_fields()
    sigma = float(residual.std())
    return f"""\
Gradient fields of {SURFACE_TEXT}, our choice,
since the paper names none. The overlap is simulated as in the paper's equation 31, g + {OVERLAP_FACTOR} g. ZNorm
takes the whole field, both components at all points, as the gradient of one layer: one mean and one standard
deviation sigma for all arrows. It does not depend on scale, so that its panel is the same whatever the overlap:
it removes what the simulation adds, and any other scale with it.

Panel D of Figure 1 is what the paper's caption says, the difference of the two lengths. Panel H of Figure 2 is
another quantity, the difference of the two vectors: what ZNorm changes, (1 / sigma - 1) times the residual, but for
the small mean; for this surface sigma is {sigma:.2f}, which makes it {1 / sigma - 1:+.2f} times the residual."""


def draw_magnitudes(path: Path, points: int = 61) -> None:
    """Draws the length of each field's gradients as surfaces: the paper's Figure 1.

    Args:
      path: of the figure, which ends with .png or .svg.
      points: of the grid along each axis.
    """
    from matplotlib.figure import Figure

    axis, fields = gradient_fields(points)
    lengths = [np.linalg.norm(field, axis=-1) for field in fields[:3]]
    difference = lengths[2] - lengths[1]
    top = max(length.max() for length in lengths)
    limit = np.abs(difference).max()
    figure = Figure(figsize=(11, 9), dpi=150, layout="constrained")
    figure.suptitle(f"Length of the gradient of {SURFACE}")
    drawn = (
        *((panel, length, "viridis", 0, top) for panel, length in zip(PANELS[:3], lengths, strict=True)),
        (LENGTH_DIFFERENCE, difference, "PuOr", -limit, limit),
    )
    for index, (panel, values, colors, low, high) in enumerate(drawn):
        axes = figure.add_subplot(2, 2, index + 1, projection="3d")
        axes.plot_surface(
            *np.meshgrid(axis, axis), values, cmap=colors, vmin=low, vmax=high, linewidth=0, rasterized=True
        )
        axes.set_title(f"{'ABCD'[index]}. {panel}\nmean {values.mean():+.2f}")
        axes.set(xlabel="$x_1$", ylabel="$x_2$", zlabel="length", zlim=(low, high))
    style.save(figure, path)


def draw_directions(path: Path, points: int = 61) -> None:
    """Draws each field's directions over its lengths: the paper's Figure 2.

    Args:
      path: of the figure, which ends with .png or .svg.
      points: of the grid along each axis.
    """
    from matplotlib.figure import Figure

    axis, fields = gradient_fields(points)
    top = max(np.linalg.norm(field, axis=-1).max() for field in fields)
    every = max(points // 20, 1)
    figure = Figure(figsize=(10, 9), layout="constrained")
    figure.suptitle(f"Direction (arrows, all of one length) and length (color) of the gradient of {SURFACE}")
    grid = figure.subplots(2, 2, sharex=True, sharey=True)
    for index, (axes, panel, field) in enumerate(zip(grid.flat, PANELS, fields, strict=True)):
        length = np.linalg.norm(field, axis=-1)
        image = axes.pcolormesh(axis, axis, length, cmap="viridis", vmin=0, vmax=top, rasterized=True)
        directions = (field / np.maximum(length, 1e-12)[..., None])[::every, ::every]
        coarse = axis[::every]
        axes.quiver(
            coarse, coarse, directions[..., 0], directions[..., 1], color="white", scale=30, width=0.004
        )
        axes.set(title=f"{'EFGH'[index]}. {panel}", aspect="equal", xlabel="$x_1$", ylabel="$x_2$")
        axes.label_outer()
    figure.colorbar(image, ax=grid, label="length", shrink=0.7)
    style.save(figure, path)


def draw_bounds(path: Path, networks: Networks, states: Mapping[str, str]) -> None:
    """Draws for every network how the gradient grows on its way back, and how far its bound allows it to.

    Args:
      path: of the figure, which ends with .png or .svg.
      networks: by model and state.
      states: their names for people.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(model for model, _ in networks))
    rows: dict[str, list[str]] = {model: [s for s in states if (model, s) in networks] for model in models}
    # Each network has a line of its own, and a free one parts the models.
    tops = dict(zip(models, np.cumsum([0, *(len(some) + 1 for some in rows.values())]), strict=False))
    with mpl.rc_context({**style.STYLE, "axes.grid": False}):
        figure = Figure(
            figsize=(8, 1.4 + 0.22 * (len(networks) + len(models))), dpi=100, layout="constrained"
        )
        figure.suptitle("How much a gradient grows from the last block to the first, and how much it may")
        axes = figure.subplots()
        for (state, words), color in zip(states.items(), STATE_COLORS, strict=False):
            for model in models:
                if state not in rows[model]:
                    continue
                place, network = tops[model] + rows[model].index(state), networks[model, state]
                measured, bound = (10.0 ** np.asarray(v) for v in (network.growth, network.bound))
                axes.plot(measured, np.full(network.seeds, place), "o", color=color, markersize=4)
                axes.plot(bound, np.full(network.seeds, place), "|", color=color, markersize=10)
                axes.plot([np.median(measured), np.median(bound)], [place, place], color=color, linewidth=0.8)
            axes.plot([], [], color=color, label=words)
        first = networks[models[0], rows[models[0]][0]]
        for values, text in ((first.growth, "measured"), (first.bound, "bound")):
            axes.text(10.0 ** np.median(values), -0.55, text, ha="center", va="bottom", color=style.GRAY)
        blocks = {m: next(n for (o, _), n in networks.items() if o == m).num_blocks for m in models}
        ticks = [f"{names.model(model)}\n{blocks[model]} blocks" for model in models]
        axes.set_yticks([tops[m] + (len(some) - 1) / 2 for m, some in rows.items()], ticks)
        axes.set_ylim(max(tops.values()) + len(rows[models[-1]]), -1.6)
        axes.axvline(1, color=style.GRAY, linewidth=0.8)
        axes.set_xscale("log")
        axes.set_xlabel(
            "length of the gradient at the first block's input over that at the last block's output"
        )
        axes.grid(axis="x", alpha=0.3)
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
        style.save(figure, path)


def draw_blocks(path: Path, networks: Networks, states: Mapping[str, str]) -> None:
    """Draws alpha, cosine and amplification of the residual networks block by block.

    Args:
      path: of the figure, which ends with .png or .svg.
      networks: by model and state; plain ones stand in grey beside their residual twins' alpha.
      states: their names for people.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    measures = {
        "alpha": ("operator norm\nof the branch", 1),
        "cosine": ("cosine of branch\nand shortcut", 0),
        "amplification": ("length of the sum\nover the shortcut's", 1),
    }
    models = list(dict.fromkeys(model for (model, _), network in networks.items() if not network.is_plain))
    with mpl.rc_context(style.STYLE):
        figure = Figure(figsize=(max(2.6 * len(models), 5) + 0.6, 6.4), dpi=100, layout="constrained")
        figure.suptitle("Gradients of the two paths, block by block")
        grid = figure.subplots(len(measures), max(len(models), 1), sharex="col", sharey="row", squeeze=False)
        for row, (measure, (label, neutral)) in zip(grid, measures.items(), strict=True):
            row[0].set_ylabel(label)
            for axes, model in zip(row, models, strict=False):
                for (state, _), color in zip(states.items(), STATE_COLORS, strict=False):
                    plain = networks.get((model.replace("resnet", "plain"), state))
                    if plain is not None and measure == "alpha":
                        _draw_blocks(axes, plain.blocks[measure], "#BBBBBB", band=False)
                    if (model, state) in networks:
                        _draw_blocks(axes, networks[model, state].blocks[measure], color)
                if measure != "cosine":
                    axes.set_yscale("log")
                    style.label_narrow_log_axis(axes.yaxis)
                axes.axhline(neutral, color=style.GRAY, linewidth=0.8)
        for axes, model in zip(grid[0], models, strict=False):
            axes.set_title(names.model(model))
        for axes in grid[-1]:
            axes.set_xlabel("block, from the images to the logits")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        handles = [
            Line2D([], [], color=color, label=words)
            for words, color in zip(states.values(), STATE_COLORS, strict=False)
        ]
        handles.append(Line2D([], [], color="#BBBBBB", label="plain twins"))
        figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
        style.save(figure, path)


def _draw_blocks(axes: Any, values: np.ndarray, color: str, band: bool = True) -> None:
    """Median over seeds [seeds, blocks], and a band from the smallest to the largest."""
    block = np.arange(1, values.shape[1] + 1)
    axes.plot(block, np.median(values, axis=0), ".-", color=color, linewidth=1, markersize=3)
    if band:
        axes.fill_between(block, values.min(axis=0), values.max(axis=0), color=color, alpha=0.15, linewidth=0)
