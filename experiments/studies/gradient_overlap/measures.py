"""Gradient overlap in the blocks of a ResNet or of its plain twin.

Yun, "Mitigating Gradient Overlap in Deep Residual Networks with Gradient Normalization for Improved
Non-Convex Optimization", 2024, arXiv 2410.21564, section 3.

`measure` walks backwards through a network and records for every block the operator norm of its branch, how
the gradients of branch and shortcut add up, and for the network how tight the paper's bounds are.

BatchNorm normalises by the batch's statistics, as in a training step: its Jacobian ties the images of a batch
together, and operator norms are those of the whole batch.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments import data, records, training
from experiments.data import Dataset
from experiments.data.augment import normalize
from experiments.jobs.measure import Context
from experiments.models.resnet import Block, ResNet
from experiments.run import Run
from experiments.training.state import init_state
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


def measure_initialization(
    context: Context, *, model: str, seed: int, batch_size: int, iterations: int
) -> Mapping[str, Any]:
    """Measures a network as training starts with it.

    Args:
      model: one of `experiments.models.MODELS`, a ResNet or its plain twin.
      seed: of the initialisation and of the batch.
      batch_size: images of the batch, taken from the training images.
      iterations: of the power iteration.

    Returns:
      The fields of `NetworkOverlap`, 'blocks' by name of the measure.
    """
    run = Run("cifar10", model, "baseline", "sgdm", 0.1, 1, 1, seed)
    dataset = data.load(run.dataset, context.data_dir)
    graphdef, state = init_state(run, dataset, optax.identity())
    network = nnx.merge(graphdef, state.params, state.batch_stats)
    return _measure_on_batch(network, dataset, seed, batch_size, iterations)


def measure_trained(
    context: Context, *, run: Mapping[str, Any], batch_size: int, iterations: int
) -> Mapping[str, Any]:
    """Measures the network of a finished run, on the same batch as its initialisation.

    Args:
      context: names the folders of the data and of the records.
      run: the fields of the `Run`.
      batch_size: as for `measure_initialization`.

    Returns:
      As `measure_initialization`; only 'diverged' for a run that diverged.
    """
    trained = Run(**run)
    record = records.read_record(context.records_folder, trained)
    if record is not None and record.status == "diverged":
        return {"diverged": True}
    network = training.load_model(trained, out=context.records_folder)
    dataset = data.load(trained.dataset, context.data_dir)
    return _measure_on_batch(network, dataset, trained.seed, batch_size, iterations)


def _measure_on_batch(network, dataset: Dataset, seed: int, batch_size: int, iterations: int):
    chosen = np.random.default_rng(seed).choice(len(dataset.train_images), batch_size, replace=False)
    images = normalize(jnp.asarray(dataset.train_images[chosen]), dataset.mean, dataset.std)
    measured = measure(network, images, jnp.asarray(dataset.train_labels[chosen]), iterations=iterations)
    names = [field.name for field in dataclasses.fields(BlockOverlap)]
    blocks = {name: [float(f"{getattr(block, name):.6g}") for block in measured.blocks] for name in names}
    return dataclasses.asdict(measured) | {"blocks": blocks}


class Network:
    """What was measured of one network in one state, over seeds.

    Attributes:
      seeds: their number.
      growth: norm of the gradient at the first block's input over that at the last one's output, [seeds],
        decimal logarithm.
      growth_by_seed: the same, by the seed as the record's name has it.
      bound: of the growth, likewise (Lemma 2.1, in a plain network 2.2).
      plain_bound: what the branches alone would allow, likewise (Lemma 2.2).
      blocks: the fields of `BlockOverlap`, [seeds, blocks] each.
    """

    def __init__(self, measured: Sequence[records.MeasurementRecord]):
        values = [record.values for record in measured]
        self.seeds = len(values)
        self.growth, self.bound, self.plain_bound = (
            np.array([float(v[name]) - float(v["log_output_gradient"]) for v in values]) / np.log(10)
            for name in ("log_input_gradient", "log_residual_bound", "log_plain_bound")
        )
        seeds = (record.name.rpartition("-s")[2] for record in measured)
        self.growth_by_seed = dict(zip(seeds, self.growth.tolist(), strict=True))
        self.blocks: dict[str, np.ndarray] = {
            name: np.array([[float(x) for x in v["blocks"][name]] for v in values])
            for name in values[0]["blocks"]
        }

    @property
    def num_blocks(self) -> int:
        return self.blocks["alpha"].shape[1]

    @property
    def is_plain(self) -> bool:
        return not self.blocks["shortcut_alpha"].any()

    @property
    def slack(self) -> np.ndarray:
        """Seed by seed, bound over measured growth, the geometric mean over the blocks."""
        return 10 ** ((self.bound - self.growth) / self.num_blocks)


Networks = Mapping[tuple[str, str], Network]


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
