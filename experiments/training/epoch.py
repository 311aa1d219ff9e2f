"""One step, one epoch and one evaluation, with the data set on the device.

A whole epoch is one compiled `lax.scan`.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

import optax_gradnorm
from experiments import models
from experiments.data.augment import augment_both, normalize
from experiments.run import RESIZED_CROP, Run
from experiments.training import tasks
from experiments.training.layout import Setup, put
from experiments.training.state import TrainState

EVALUATION_BATCH = 500


# In a batch: the activations of a U-Net have the size of its images.
EVALUATION_PIXELS = 500 * 96 * 96


Measurements = dict[str, Any]


def compile(
    setup: Setup, state: TrainState
) -> tuple[
    Callable[[TrainState, int], tuple[TrainState, Measurements]], Callable[[TrainState], Measurements]
]:
    """Puts the data on the devices; an epoch is one program, and evaluation another.

    Args:
      setup: as `set_up` gives it.
      state: gives the shapes.

    Returns:
      A function `(state, epoch) -> (state, measurements)` that trains for one epoch, counted from 0, and donates the
      state; and a function `(state) -> measurements` that evaluates. The measurements are those of
      `make_train_epoch` and `make_evaluate`.
    """
    run, dataset = setup.run, setup.dataset
    arrays = dataset.train_images, dataset.train_labels, dataset.test_images, dataset.test_labels
    *train_data, test_images, test_labels = put(arrays, NamedSharding(setup.mesh, PartitionSpec()))
    # The seed is an argument, so that a run with another seed finds its program in the compilation cache.
    seed = np.uint32(run.seed)
    lower = partial(make_train_epoch(setup).lower, state, *train_data, seed, np.int32(0))
    # The last epoch may be shorter.
    steps = [run.steps_in(epoch, len(dataset.train_images)) for epoch in (1, run.epochs)]
    programs = {n: lower(steps=n).compile() for n in set(steps)}
    evaluate = make_evaluate(setup).lower(state, test_images, test_labels).compile()

    def train_epoch(state, epoch):
        program = programs[steps[epoch + 1 == run.epochs]]
        return program(state, *train_data, seed, np.int32(epoch))

    return train_epoch, lambda state: evaluate(state, test_images, test_labels)


def make_train_epoch(setup: Setup):
    """Makes the jitted function that trains for one epoch.

    Args:
      setup: its data set gives mean and standard deviation, and the number of classes and of training images.

    Returns:
      A function `(state, images, labels, seed, epoch, steps) -> (state, measurements)`: it takes the training
      images, uint8 [n, height, width, channels], their labels, the seed, uint32, the number of epochs
      done, int32, and as a static int how many steps are taken, by default all, and donates the state. The
      measurements are scalars: 'train_loss' (float32), 'train_correct' (a sum of `Task.correct`),
      'nonfinite_steps' (int32), 'finite_params' (bool); with `run.dynamics` also the float32 statistics of
      `GradientDynamics` for this epoch, [layers] each and 'global_std' a scalar.
    """
    step = make_step(setup)
    replicated = NamedSharding(setup.mesh, PartitionSpec())

    def train_epoch(state, images, labels, seed, epoch, steps=None):
        def step_at(state, batch):
            indices, key = batch
            return step(state, (images[indices], labels[indices], key))

        state, measured = lax.scan(step_at, state, draw_batches(setup.run, len(images), seed, epoch, steps))
        return state, over_epoch(state, measured)

    return jax.jit(
        train_epoch,
        static_argnames="steps",
        donate_argnums=0,
        out_shardings=(setup.shardings, replicated),
    )


def draw_batches(
    run: Run, count: int, seed: jax.Array, epoch: jax.Array, steps: int | None = None
) -> tuple[jax.Array, jax.Array]:
    """Which images the epoch's batches hold, [steps, batch], and a key for what is left to chance in each.

    The first steps of a shorter epoch are those of a whole one.
    """
    whole = count // run.batch_size
    steps = whole if steps is None else steps
    order_key, step_keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), epoch))
    order = jax.random.permutation(order_key, count)[: steps * run.batch_size]
    return order.reshape(steps, run.batch_size), jax.random.split(step_keys, whole)[:steps]


def make_step(setup: Setup):
    """One step, as `lax.scan` wants it: from state and batch to state and measurements of the step."""
    run, dataset, graphdef, optimizer, mesh, shardings = setup
    task = tasks.make_task(run, dataset)
    by_batch = NamedSharding(mesh, PartitionSpec("batch"))
    # Random-resized crops were made when the images were decoded.
    augmentation = "none" if run.augment == RESIZED_CROP else run.augment

    def loss_and_outputs(params, batch_stats, images, labels, key):
        model = nnx.merge(graphdef, params, batch_stats)
        logits = models.logits_in_training(model, images, key)
        tasks.check_logits(logits.shape, dataset, run.model)
        return task.train_loss(logits, labels), (logits, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))

    def step(state, batch):
        images, labels, key = batch
        images = lax.with_sharding_constraint(images, by_batch)
        labels = lax.with_sharding_constraint(labels, by_batch)
        images, labels = augment_both(images, labels, key, augmentation)
        images = normalize(images, dataset.mean, dataset.std)
        (loss, (logits, batch_stats)), gradients = jax.value_and_grad(loss_and_outputs, has_aux=True)(
            state.params, state.batch_stats, images, labels, key
        )
        if mesh.size > 1:
            # Each device keeps its part of the sum over the batch: the rest of it is never gathered.
            gradients = lax.with_sharding_constraint(gradients, shardings.params)
        # Optax mixes Python floats with integer counters, which strict promotion refuses.
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        correct = jnp.sum(task.correct(logits, labels))
        measured = loss, correct, _all_finite((loss, gradients)), _gradient_statistics(run, opt_state)
        return TrainState(params, batch_stats, opt_state), measured

    return step


def over_epoch(state: TrainState, measured) -> dict[str, jax.Array]:
    """Measurements of an epoch from the state at its end and what its steps measured, [steps] each."""
    losses, correct, finite, statistics = measured
    return {
        "train_loss": jnp.mean(losses),
        "train_correct": jnp.sum(correct),
        "nonfinite_steps": jnp.sum(~finite),
        "finite_params": _all_finite(state.params),
        **_over_steps(statistics),
    }


def make_evaluate(setup: Setup):
    """Makes the jitted function that evaluates a model on all test images, each exactly once.

    Args:
      setup: its data set gives mean, standard deviation and the number of test images.

    Returns:
      A function `(state, images, labels) -> measurements` that takes the test images, uint8 [n, height,
      width, channels], and their labels. The measurements are scalars: 'test_loss' (float32, mean of
      `Task.test_losses`) and 'test_correct' (sum of `Task.correct`).
    """
    measure = make_measure(setup)
    count = len(setup.dataset.test_images)
    batches, batch_size = evaluation_batches(setup)
    padding = batches * batch_size - count
    by_batch = NamedSharding(setup.mesh, PartitionSpec(None, "batch"))

    def in_batches(array):
        padded = jnp.pad(array, [(0, padding)] + [(0, 0)] * (array.ndim - 1))
        return lax.with_sharding_constraint(padded.reshape(batches, batch_size, *array.shape[1:]), by_batch)

    def evaluate(state, images, labels):
        batched = jax.tree.map(in_batches, (images, labels, jnp.ones(count, bool)))
        losses, correct = lax.map(lambda batch: measure(state, *batch), batched)
        return {"test_loss": jnp.sum(losses) / count, "test_correct": jnp.sum(correct)}

    return jax.jit(evaluate, out_shardings=NamedSharding(setup.mesh, PartitionSpec()))


def make_measure(setup: Setup):
    """Sums of the loss and of what is right over those of a batch that are images and not padding."""
    dataset, graphdef = setup.dataset, setup.graphdef
    task = tasks.make_task(setup.run, dataset)

    def measure(state, images, labels, is_image):
        model = nnx.merge(graphdef, state.params, state.batch_stats)
        logits = model(normalize(images, dataset.mean, dataset.std), train=False)
        losses, correct = task.test_losses(logits, labels), task.correct(logits, labels)
        return jnp.sum(losses, where=is_image), jnp.sum(correct, where=is_image)

    return measure


def evaluation_batches(setup: Setup) -> tuple[int, int]:
    """How many batches the test images take, and their size: nearly equal, so that little is padded."""
    mesh = setup.mesh
    count, height, width, _ = setup.dataset.test_images.shape
    batches = math.ceil(count / min(EVALUATION_BATCH, max(1, EVALUATION_PIXELS // (height * width))))
    return batches, math.ceil(count / batches / mesh.size) * mesh.size


def _all_finite(tree: Any) -> jax.Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def _gradient_statistics(run: Run, opt_state: optax.OptState) -> dict[str, jax.Array]:
    """One step's statistics, [layers] each and the global one a scalar; nothing without `run.dynamics`."""
    if not run.dynamics:
        return {}
    step = optax_gradnorm.gradient_dynamics(opt_state)
    # Stacked blocks are layers of their own.
    std, mean = (
        jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(statistic)])
        for statistic in (step.std, step.mean)
    )
    return {"std": std, "mean": jnp.abs(mean), "global_std": step.global_std}


def _over_steps(statistics: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """One epoch's statistics from those of its steps."""
    if not statistics:
        return {}
    over_steps = {name: jnp.mean(steps, axis=0) for name, steps in statistics.items()}
    return over_steps | {"smallest_std": jnp.min(statistics["std"], axis=0)}
