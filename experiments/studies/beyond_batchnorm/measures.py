"""What `beyond_batchnorm` measures: networks at initialisation, and gradients in the first steps of training."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import optax_gradnorm
from experiments import data, models
from experiments.data.augment import normalize
from experiments.jobs.measure import Context
from experiments.studies.beyond_batchnorm import probes
from experiments.training.methods import METHODS

GAUSSIAN = "gaussian"  # In place of a data set: independent standard normal pixels.
CIFAR_SIZE = 32
MEAN_AND_STD = np.full(3, 0.5)  # of each channel, as in the paper
DIGITS = 5  # Significant digits kept in the files.


def measure_initialization(
    context: Context,
    *,
    model: str,
    dataset: str,
    batch_size: int,
    batches: int,
    seeds: Sequence[int],
    backward: bool,
    image_size: int = CIFAR_SIZE,
) -> dict[str, Any]:
    """Statistics of every layer of a network that was never trained, in training mode.

    Args:
      dataset: CIFAR's training images without augmentation, or 'gaussian'.
      batches: per seed; statistics are averaged over them, logarithms as such.
      seeds: of the weights and of the choice of images.
      backward: also measures gradients, which takes three times as long.
      image_size: of Gaussian images.

    Returns:
      'units' and 'convolutions', names in the network's order, and for each statistic of
      `probes` a row per seed, with a value per unit or convolution.
    """
    images, labels, num_classes = _load(context, dataset, image_size)
    rows: dict[str, list] = {}
    names: dict[str, Any] = {}
    run = None
    for seed in seeds:
        probed = _create(model, images.shape[1:], num_classes, seed)
        # The first network's program serves all, which differ in their weights alone.
        run = run or jax.jit(partial(_statistics, probed, backward))
        results = [
            jax.device_get(run(probed.params, probed.batch_stats, *batch))
            for batch in _batches(images, labels, batch_size, batches, seed)
        ]
        for statistic in results[0]:
            mean = np.mean([result[statistic] for result in results], axis=0)
            rows.setdefault(statistic, []).append(_rounded(mean))
        names = {"units": list(probed.units), "convolutions": list(probed.convolutions)}
    return {**names, **rows}


def measure_first_steps(
    context: Context,
    *,
    model: str,
    dataset: str,
    batch_size: int,
    steps: int,
    learning_rate: float,
    seeds: Sequence[int],
) -> dict[str, Any]:
    """Gradient norms and pre-activation deviations of every layer in each of the first steps of training.

    Trains with SGD and momentum 0.9.

    Args:
      learning_rate: constant.
      seeds: of the weights and of the order of the images.

    Returns:
      'units' and 'convolutions', and per seed a row per step: 'unit_log_gradient_norm' with a value per unit
      and 'log_std' with a value per convolution.
    """
    images, labels, num_classes = _load(context, dataset, CIFAR_SIZE)
    optimizer = optax.sgd(learning_rate, momentum=0.9)
    rows: dict[str, list] = {"unit_log_gradient_norm": [], "log_std": []}
    names: dict[str, Any] = {}
    step = None
    for seed in seeds:
        probed = _create(model, images.shape[1:], num_classes, seed)
        step = step or jax.jit(partial(_train_step, probed, optimizer))
        params, batch_stats = probed.params, probed.batch_stats
        opt_state = optimizer.init(params)
        kept = []
        for batch in _batches(images, labels, batch_size, steps, seed):
            params, batch_stats, opt_state, statistics = step(params, batch_stats, opt_state, *batch)
            kept.append(jax.device_get(statistics))
        for name, of_seeds in rows.items():
            of_seeds.append([_rounded(statistics[name]) for statistics in kept])
        names = {"units": list(probed.units), "convolutions": list(probed.convolutions)}
    return {**names, **rows}


def measure_optimizer_input(
    context: Context,
    *,
    model: str,
    dataset: str,
    batch_size: int,
    methods: Sequence[str],
    seeds: Sequence[int],
) -> dict[str, Any]:
    """Size of every layer's gradient at initialisation, as the optimizer gets it behind each method.

    Args:
      methods: names in `experiments.run.METHODS`.
      seeds: of the weights and of the choice of images.

    Returns:
      'kernels', names in the network's order, and for each method a row per seed: the natural logarithm of
      the root mean square of each kernel's gradient.
    """
    images, labels, num_classes = _load(context, dataset, CIFAR_SIZE)
    values: dict[str, Any] = {method: [] for method in methods}
    run = None
    for seed in seeds:
        probed = _create(model, images.shape[1:], num_classes, seed)
        run = run or jax.jit(partial(_optimizer_input, probed, tuple(methods)))
        [batch] = _batches(images, labels, batch_size, 1, seed)
        for method, sizes in jax.device_get(run(probed.params, probed.batch_stats, *batch)).items():
            values[method].append(_rounded(sizes))
        values["kernels"] = _kernels(probed.params)
    return values


def _statistics(probed: probes.ProbedModel, backward: bool, params, batch_stats, images, labels):
    statistics, _, _ = probes.propagate(probed, params, batch_stats, images, labels)
    # The gradients kept are those by the convolutions' outputs, which come last.
    kept = {
        name: _stack(statistics, places, name)
        for places in (probed.units, probed.convolutions)
        for name in statistics[places[0]]
    }
    if not backward:  # What is not returned is not computed.
        del kept["log_gradient_norm"]
    return kept


def _train_step(probed: probes.ProbedModel, optimizer, params, batch_stats, opt_state, images, labels):
    statistics, gradient, batch_stats = probes.propagate(probed, params, batch_stats, images, labels)
    updates, opt_state = optimizer.update(gradient, opt_state, params)
    kept = {
        "unit_log_gradient_norm": _stack(statistics, probed.units, "log_gradient_norm"),
        "log_std": _stack(statistics, probed.convolutions, "log_std"),
    }
    return optax.apply_updates(params, updates), batch_stats, opt_state, kept


def _optimizer_input(probed: probes.ProbedModel, methods: Sequence[str], params, batch_stats, images, labels):
    _, gradient, _ = probes.propagate(probed, params, batch_stats, images, labels)
    sizes = {}
    for method in methods:
        transformation = METHODS[method]()
        updates, _ = transformation.update(gradient, transformation.init(params), params)
        kernels = [leaf for leaf in jax.tree.leaves(updates) if leaf.ndim > 1]
        sizes[method] = jnp.stack([probes.log_norm(leaf) - 0.5 * np.log(leaf.size) for leaf in kernels])
    return sizes


def _kernels(params) -> list[str]:
    named = zip(optax_gradnorm.layer_names(params), jax.tree.leaves(params), strict=True)
    return [name.replace("module/", "") for name, leaf in named if leaf.ndim > 1]


def _stack(statistics: dict[str, probes.Statistics], names: Sequence[str], key: str) -> jax.Array:
    return jnp.stack([statistics[name][key] for name in names])


def _load(context: Context, dataset: str, image_size: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Images as uint8, or none of the right shape where they are to be Gaussian; labels; number of classes."""
    if dataset == GAUSSIAN:
        return np.zeros((0, image_size, image_size, 3), np.uint8), np.zeros(0, np.int32), 10
    loaded = data.load(dataset, context.data_dir)
    return loaded.train_images, loaded.train_labels, loaded.num_classes


def _batches(
    images: np.ndarray, labels: np.ndarray, batch_size: int, batches: int, seed: int
) -> Iterator[tuple[jax.Array, jax.Array]]:
    """Batches of normalised images, in an order that the seed decides; Gaussian ones if there are no images."""
    random = np.random.RandomState(seed)  # Its numbers never change between versions.
    order = np.zeros(0, int)
    for _ in range(batches):
        if len(images) == 0:
            pixels = random.normal(size=(batch_size, *images.shape[1:]))
            yield jnp.asarray(pixels, jnp.float32), jnp.zeros(batch_size, jnp.int32)
            continue
        if len(order) < batch_size:
            order = random.permutation(len(images))
        chosen, order = order[:batch_size], order[batch_size:]
        yield normalize(jnp.asarray(images[chosen]), MEAN_AND_STD, MEAN_AND_STD), jnp.asarray(labels[chosen])


def _create(model: str, image_shape: Sequence[int], num_classes: int, seed: int) -> probes.ProbedModel:
    height, _, channels = image_shape
    network = models.create(
        model,
        num_classes=num_classes,
        channels=channels,
        image_size=height,
        rngs=nnx.Rngs(jax.random.key(seed, impl="rbg")),  # as in training
    )
    return probes.insert_probes(network)


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.{DIGITS}g}") for value in values]
