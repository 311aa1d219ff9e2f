"""The gradient overlap paper's Figures 1 and 2, and the figures of what was measured.

Yun, "Mitigating Gradient Overlap in Deep Residual Networks with Gradient Normalization for Improved
Non-Convex Optimization", 2024, arXiv 2410.21564. The paper names no surface for its figures. Ours is a
bowl with ripples, so that the gradient vanishes in several places and points in all directions.
"""

from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import optax_gradnorm
from experiments.report import style
from experiments.studies.gradient_overlap.measures import Networks

DOMAIN = (-3.0, 3.0)
SURFACE_TEXT = "sin(2 x1) cos(2 x2) + (x1² + x2²) / 4 on a square grid of 61 x 61 points from -3 to 3"
SURFACE = r"$Z = \sin(2 x_1)\,\cos(2 x_2) + (x_1^2 + x_2^2)/4$"
OVERLAP_FACTOR = 0.5
PANELS = (
    "Original gradient $g$",
    f"Residual: $g + {OVERLAP_FACTOR} g$",
    "ZNorm of residual",
    "ZNorm of residual $-$ residual",
)
# The paper's caption of Figure 1 D: the difference of the lengths, and not the length of the difference.
LENGTH_DIFFERENCE = "Length of ZNorm of residual $-$ length of residual"


def surface(x: jax.Array) -> jax.Array:
    """Height above the point x = (x1, x2)."""
    return jnp.sin(2 * x[0]) * jnp.cos(2 * x[1]) + jnp.sum(jnp.square(x)) / 4


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
    axis = jnp.linspace(*DOMAIN, points)
    grid = jnp.stack(jnp.meshgrid(axis, axis), axis=-1)
    original = jax.vmap(jax.vmap(jax.grad(surface)))(grid)
    residual = original + OVERLAP_FACTOR * original
    znorm = optax_gradnorm.znorm()
    normalized, _ = znorm.update(residual, znorm.init(residual))
    return np.asarray(axis), [np.asarray(f) for f in (original, residual, normalized, normalized - residual)]


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
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(model for model, _ in networks))
    rows: dict[str, list[str]] = {model: [s for s in states if (model, s) in networks] for model in models}
    # Each network has a line of its own, and a free one parts the models.
    tops = dict(zip(models, np.cumsum([0, *(len(some) + 1 for some in rows.values())]), strict=False))
    figure = Figure(figsize=(9, 1.8 + 0.24 * (len(networks) + len(models))), layout="constrained")
    figure.suptitle("Gradient at the first block's input over that at the last block's output, and its bound")
    axes = figure.subplots()
    for state_index, state in enumerate(states):
        places = [tops[m] + rows[m].index(s) for m, s in networks if s == state]
        some = [n for (_, s), n in networks.items() if s == state]
        color = f"C{state_index}"
        for place, network in zip(places, some, strict=True):
            axes.plot(network.growth, np.full(network.seeds, place), "o", color=color, markersize=5)
            axes.plot(network.bound, np.full(network.seeds, place), "|", color=color, markersize=11)
            ends = [np.median(network.growth), np.median(network.bound)]
            axes.plot(ends, [place, place], color=color, linewidth=0.8)
        axes.plot([], [], "o-", color=color, label=states[state])
    axes.plot([], [], "ko", linestyle="none", markersize=5, label="measured, one dot per seed")
    axes.plot([], [], "k|", linestyle="none", markersize=11, label="bound")
    ticks = [
        f"{model}\n({next(n for (m, _), n in networks.items() if m == model).num_blocks} blocks)"
        for model in models
    ]
    axes.set_yticks([tops[m] + (len(some) - 1) / 2 for m, some in rows.items()], ticks)
    axes.set_ylim(max(tops.values()) + len(rows[models[-1]]), -1)
    axes.axvline(0, color="gray", linewidth=0.8)
    axes.set_xlabel("growth, decimal logarithm (0: as long as at the output)")
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3)
    style.save(figure, path)


def draw_blocks(path: Path, networks: Networks, states: Mapping[str, str]) -> None:
    """Draws alpha, cosine and amplification block by block.

    Args:
      path: of the figure, which ends with .png or .svg.
      networks: by model and state.
      states: their names for people.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    measures = {
        "alpha": "alpha: operator norm\nof the branch",
        "cosine": "cosine between\nbranch and shortcut",
        "amplification": "amplification:\nsum over shortcut",
    }
    models = list(dict.fromkeys(model for model, _ in networks))
    figure = Figure(figsize=(max(2.6 * len(models), 7) + 1, 7.5), layout="constrained")
    figure.suptitle("Blocks from the images to the logits: median over seeds, band from smallest to largest")
    grid = figure.subplots(len(measures), len(models), sharex="col", sharey="row", squeeze=False)
    for row, (measure, label) in zip(grid, measures.items(), strict=True):
        row[0].set_ylabel(label)
        for axes, model in zip(row, models, strict=True):
            for index, state in enumerate(states):
                network = networks.get((model, state))
                if network is None:
                    continue
                values = network.blocks[measure]
                block = np.arange(1, values.shape[1] + 1)
                axes.plot(
                    block, np.median(values, axis=0), ".-", color=f"C{index}", linewidth=1, markersize=3
                )
                axes.fill_between(block, values.min(axis=0), values.max(axis=0), color=f"C{index}", alpha=0.2)
                if np.isnan(values).all():
                    axes.text(0.5, 0.5, "no shortcut", ha="center", transform=axes.transAxes, color="gray")
            if measure != "cosine":
                axes.set_yscale("log")
            axes.axhline({"alpha": 1, "cosine": 0, "amplification": 1}[measure], color="gray", linewidth=0.8)
            axes.grid(alpha=0.3)
    for axes, model in zip(grid[0], models, strict=True):
        axes.set_title(model)
    for axes in grid[-1]:
        axes.set_xlabel("block")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    handles = [Line2D([], [], color=f"C{i}", label=words) for i, words in enumerate(states.values())]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    style.save(figure, path)
