"""What training changes, made anew from a run."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from experiments import models
from experiments.data import Dataset
from experiments.run import Run


class TrainState(NamedTuple):
    """All that changes in training.

    Attributes:
      params: nested dictionaries of float32 arrays.
      batch_stats: running statistics of the normalizers, as the parameters.
      opt_state: of the chain that `make_optimizer` gives.
    """

    params: optax.Params
    batch_stats: optax.Params
    opt_state: optax.OptState


def init_state(
    run: Run, dataset: Dataset, optimizer: optax.GradientTransformation
) -> tuple[nnx.GraphDef, TrainState]:
    """Builds the model and everything that training changes.

    Args:
      run: names the model and its dtype, and gives the seed.
      dataset: gives the shape of the images and the number of classes.

    Returns:
      The model's graph definition and the state before the first step.

    Raises:
      ValueError: the model is unknown or does not take such images.
    """
    model = create_model(run, dataset.train_images.shape[1:], dataset.num_classes)
    graphdef, params, batch_stats = split_model(model)
    return graphdef, TrainState(params, batch_stats, optimizer.init(params))


def create_model(run: Run, image_shape, num_classes: int) -> nnx.Module:
    """The run's model before training, for images [height, width, channels]."""
    height, width, channels = image_shape
    if height != width and not models.takes_any_size(run.model):
        raise ValueError(f"images must be square for {run.model}, got {height} x {width}")
    # The rbg generator compiles ten times faster than the default, once per layer shape.
    key = jax.random.key(run.seed, impl="rbg")
    return models.create(
        run.model,
        num_classes=num_classes,
        channels=channels,
        image_size=height,
        rngs=nnx.Rngs(key),
        dtype=jnp.dtype(run.dtype),
    )


def split_model(model: nnx.Module):
    """The model as graph definition, parameters and running statistics."""
    graphdef, params, batch_stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)
