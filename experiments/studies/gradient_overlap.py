"""Gradient overlap in ResNets and their plain twins, and the paper's Figures 1 and 2.

Yun, "Mitigating Gradient Overlap in Deep Residual Networks with Gradient Normalization for Improved
Non-Convex Optimization", 2024, arXiv 2410.21564, section 3.

`measure` walks backwards through a network and records for every block the operator norm of its branch, how
the gradients of branch and shortcut add up, and for the network how tight the paper's bounds are.
`gradient_fields` and the two figures stand on a surface of our choice, since the paper names none.

BatchNorm normalises by the batch's statistics, as in a training step: its Jacobian ties the images of a batch
together, and operator norms are those of the whole batch.
"""

import dataclasses
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import optax_gradnorm
from experiments.models.resnet import Block, ResNet
from optax_gradnorm import overlap


@dataclasses.dataclass(frozen=True)
class BlockOverlap:
    """What one block does to the gradient of one batch.

    Attributes:
      alpha: operator norm of the branch's Jacobian.
      alpha_error: relative error of its estimate, see `overlap.OperatorNorm`.
      shortcut_alpha: operator norm of the shortcut's Jacobian: 1 for the identity, 0 in a plain network.
      gain: norm of the gradient at the block's input over that at its output.
      cosine: of the angle between the gradients through shortcut and branch; NaN in a plain network.
      amplification: norm of their sum over that of the shortcut's; NaN in a plain network.
    """

    alpha: float
    alpha_error: float
    shortcut_alpha: float
    gain: float
    cosine: float
    amplification: float


@dataclasses.dataclass(frozen=True)
class NetworkOverlap:
    """The gradient of one batch at the input of the first block, and its bounds; natural logarithms.

    Attributes:
      blocks: from the images to the logits.
      log_input_gradient: norm of the gradient at the input of the first block (the paper's x_0).
      log_output_gradient: norm of the gradient at the output of the last block (y_N).
      log_residual_bound: of Lemma 2.1, with each shortcut's operator norm in place of 1. In a plain network
        shortcuts count 0, which makes it the plain bound.
      log_plain_bound: of Lemma 2.2: bounds a plain network only.
    """

    blocks: tuple[BlockOverlap, ...]
    log_input_gradient: float
    log_output_gradient: float
    log_residual_bound: float
    log_plain_bound: float

    @property
    def slack(self) -> float:
        """Logarithm of the bound over the measured norm, per block; 0 where the bound is met."""
        return (self.log_residual_bound - self.log_input_gradient) / len(self.blocks)


def measure(model: ResNet, images: jax.Array, labels: jax.Array, *, iterations: int = 50) -> NetworkOverlap:
    """Measures gradient overlap in every block, for the mean cross-entropy of one batch.

    Args:
      model: a residual network or its plain twin; not changed.
      images: normalised images [n, height, width, channels].
      labels: their classes, integers [n].
      iterations: of the power iteration for each operator norm.

    Returns:
      The measurements.

    Raises:
      Nothing.
    """
    blocks = [nnx.split(block) for block in model.blocks]
    x = _stem(*nnx.split(model), images)
    inputs = []
    for graphdef, state in blocks:
        inputs.append(x)
        x = _output(graphdef, state, x)
    gradient = _output_gradient(*nnx.split(model.to_logits), x, labels)
    log_output_gradient = _log_norm(gradient)

    measured = []
    for index, ((graphdef, state), x) in reversed(list(enumerate(zip(blocks, inputs, strict=True)))):
        key = jax.random.fold_in(jax.random.key(0), index)
        gradient, block = _measure_block(graphdef, state, x, gradient, key, iterations)
        measured.append(BlockOverlap(**jax.tree.map(float, jax.device_get(block))))
    measured.reverse()

    bounds = overlap.gradient_bounds(
        jnp.asarray([block.alpha for block in measured]),
        1.0,
        shortcut_alphas=jnp.asarray([block.shortcut_alpha for block in measured]),
    )
    return NetworkOverlap(
        blocks=tuple(measured),
        log_input_gradient=_log_norm(gradient),
        log_output_gradient=log_output_gradient,
        log_residual_bound=float(bounds.log_residual) + log_output_gradient,
        log_plain_bound=float(bounds.log_plain) + log_output_gradient,
    )


# Blocks of one shape have equal graph definitions, so that each of these compiles once per shape.


@partial(jax.jit, static_argnums=0)
def _stem(graphdef, state, images):
    return nnx.merge(graphdef, state).stem(images, train=True)


@partial(jax.jit, static_argnums=0)
def _output(graphdef, state, x):
    return nnx.merge(graphdef, state)(x, train=True)


@partial(jax.jit, static_argnums=0)
def _output_gradient(graphdef, state, x, labels):
    def loss(x):
        logits = nnx.merge(graphdef, state)(jnp.mean(x, axis=(1, 2)))
        return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels).mean()

    return jax.grad(loss)(x)


@partial(jax.jit, static_argnums=(0, 5))
def _measure_block(graphdef, state, x, gradient, key, iterations):
    """The gradient at the block's input, given that at its output, and a `BlockOverlap` as dictionary."""

    def merged() -> Block:
        # A copy wherever it is differentiated: BatchNorm updates its statistics there.
        return nnx.merge(graphdef, state, copy=True)

    def branch(x):
        return merged().branch(x, train=True)

    def shortcut(x):
        return merged().shortcut(x, train=True)

    plain = merged().plain
    before_relu = branch(x) if plain else branch(x) + shortcut(x)
    (cotangent,) = jax.vjp(nnx.relu, before_relu)[1](gradient)
    if plain:
        alpha = overlap.operator_norm(branch, x, iterations=iterations, key=key)
        (total,) = jax.vjp(branch, x)[1](cotangent)
        shortcut_alpha, cosine, amplification = 0.0, jnp.nan, jnp.nan
    else:
        is_identity = merged().projection is None and before_relu.shape == x.shape
        measured = overlap.residual_overlap(
            branch,
            x,
            cotangent,
            shortcut=None if is_identity else shortcut,
            iterations=iterations,
            key=key,
        )
        alpha, total, shortcut_alpha = measured.alpha, measured.total, measured.shortcut_alpha.norm
        cosine, amplification = measured.cosine, measured.amplification
    return total, {
        "alpha": alpha.norm,
        "alpha_error": alpha.error,
        "shortcut_alpha": shortcut_alpha,
        "gain": jnp.exp(_log_norm_of(total) - _log_norm_of(gradient)),
        "cosine": cosine,
        "amplification": amplification,
    }


def _log_norm_of(x: jax.Array) -> jax.Array:
    largest = jnp.max(jnp.abs(x))
    return jnp.log(largest) + 0.5 * jnp.log(jnp.sum(jnp.square(x / largest)))


def _log_norm(x: jax.Array) -> float:
    return float(np.log(np.linalg.norm(np.asarray(x, np.float64))))


# Figures 1 and 2. The surface, its domain and its grid are ours: a bowl with ripples, so that the gradient
# vanishes in several places and points in all directions.

DOMAIN = (-3.0, 3.0)
SURFACE = r"$Z = \sin(2 x_1)\,\cos(2 x_2) + (x_1^2 + x_2^2)/4$"
OVERLAP_FACTOR = 0.5
PANELS = (
    "Original gradient $g$",
    f"Residual: $g + {OVERLAP_FACTOR} g$",
    "ZNorm of residual",
    "ZNorm of residual $-$ residual",
)


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


def draw_magnitudes(path: Path, points: int = 61) -> None:
    """Draws the length of each field's gradients as surfaces: the paper's Figure 1.

    Args:
      path: of the figure without suffix; writes .png and .svg.
      points: of the grid along each axis.
    """
    from matplotlib.figure import Figure

    axis, fields = gradient_fields(points)
    lengths = [np.linalg.norm(field, axis=-1) for field in fields]
    top = max(length.max() for length in lengths)
    figure = Figure(figsize=(11, 9), layout="constrained")
    figure.suptitle(f"Length of the gradient of {SURFACE}")
    for index, (panel, length) in enumerate(zip(PANELS, lengths, strict=True)):
        axes = figure.add_subplot(2, 2, index + 1, projection="3d")
        axes.plot_surface(*np.meshgrid(axis, axis), length, cmap="viridis", vmin=0, vmax=top, linewidth=0)
        axes.set_title(f"{'ABCD'[index]}. {panel}\nmean length {length.mean():.2f}")
        axes.set(xlabel="$x_1$", ylabel="$x_2$", zlabel="length", zlim=(0, top))
    _save(figure, path)


def draw_directions(path: Path, points: int = 61) -> None:
    """Draws each field's directions over its lengths: the paper's Figure 2.

    Args:
      path: of the figure without suffix; writes .png and .svg.
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
    _save(figure, path)


def _save(figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    for suffix in (".png", ".svg"):
        # No date in the file: the same figure is the same bytes.
        metadata = {"Date": None} if suffix == ".svg" else None
        figure.savefig(path.with_suffix(suffix), dpi=120, metadata=metadata)
