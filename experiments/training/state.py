"""What training changes: made anew from a run, or read from its checkpoint."""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from experiments import models, records
from experiments.data import Dataset
from experiments.records import RecordError
from experiments.run import Run
from experiments.training import resuming


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


def load_model(run: Run, *, out: str | Path) -> nnx.Module:
    """Builds the model of a finished run that kept its checkpoint.

    Args:
      run: the run.
      out: folder of the records.

    Returns:
      The trained model, to be called as `model(images, train=False)`; its record's `data` has the mean and
      standard deviation by which to normalise images.

    Raises:
      RecordError: the run has no record, has not finished or kept no checkpoint, or a file is damaged.
    """
    record = records.read_record(out, run)
    if record is None or record.status != "finished":
        raise RecordError(f"run {run.name} has not finished in {out}")
    data = record.data
    # Shapes alone: initial values would be computed, layer by layer, to be thrown away.
    model = nnx.eval_shape(lambda: create_model(run, data["image_shape"], data["num_classes"]))
    graphdef, params, batch_stats = split_model(model)
    state = {"params": params, "batch_stats": batch_stats}
    arrays = resuming.read_arrays(out, run, resuming.by_name(state))
    if arrays is None:
        raise RecordError(f"run {run.name} has no checkpoint in {out}: train it with --keep-checkpoints")
    state = resuming.from_arrays(state, arrays)
    return nnx.merge(graphdef, state["params"], state["batch_stats"])


def init_state(
    run: Run, dataset: Dataset, optimizer: optax.GradientTransformation
) -> tuple[nnx.GraphDef, TrainState]:
    """Builds the model and everything that training changes.

    Args:
      run: names the model and its dtype, and gives the seed.
      dataset: gives the shape of the images and the number of classes.
      optimizer: the run's.

    Returns:
      The model's graph definition and the state before the first step.

    Raises:
      ValueError: the model is unknown or does not take such images.
    """
    model = create_model(run, dataset.train_images.shape[1:], dataset.num_classes)
    graphdef, params, batch_stats = split_model(model)
    return graphdef, TrainState(params, batch_stats, optimizer.init(params))


def create_model(run: Run, image_shape, num_classes: int) -> nnx.Module:
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
