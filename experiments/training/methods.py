"""What happens to the gradients: a method's name and an optimizer's name make an optax transformation."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optax_gradnorm
from experiments import models
from experiments.models.axes import feature_axis, stacked_axes
from experiments.run import Run

CLIPPING_THRESHOLD = 0.1

METHODS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "baseline": optax.identity,
    "centralization": partial(
        optax_gradnorm.centralize, feature_axis=feature_axis, stacked_axes=stacked_axes
    ),
    # GAN with a constant multiplier: what is left of it when the multiplier does nothing.
    "layer_centralization": partial(
        optax_gradnorm.gan, autoscale=lambda sigma, first: jnp.ones_like(sigma), stacked_axes=stacked_axes
    ),
    "clipping": partial(optax.clip_by_global_norm, CLIPPING_THRESHOLD),
    "clipping_1": partial(optax.clip_by_global_norm, 1.0),
    "clipping_value": partial(optax.clip, CLIPPING_THRESHOLD),
    "znorm": partial(optax_gradnorm.znorm, stacked_axes=stacked_axes),
    "gan": partial(optax_gradnorm.gan, stacked_axes=stacked_axes),
}


def make_optimizer(run: Run, steps_per_epoch: int) -> optax.GradientTransformation:
    """Chains the run's method and optimizer: the method sees the raw gradients.

    With `run.dynamics` the state also holds the statistics of the raw gradients.

    Args:
      run: names the method and the optimizer, and says their options.
      steps_per_epoch: updates per epoch, at least 1; schedules count updates.

    Returns:
      A transformation of gradients into parameter updates. Its `update` needs the parameters.

    Raises:
      ValueError: the optimizer does not know the model's stacked blocks for layers of their own.
    """
    if run.optimizer in ONE_RATIO_PER_LEAF and models.has_stacked_blocks(run.model):
        raise ValueError(
            f"optimizer must not be {run.optimizer} with {run.model}: it takes one trust ratio for all stacked "
            f"blocks; choose {run.model.removesuffix('_stacked')}"
        )
    parts = [
        METHODS[run.method](),
        OPTIMIZERS[run.optimizer](make_schedule(run, steps_per_epoch), run.weight_decay),
    ]
    if run.dynamics:
        parts.insert(0, optax_gradnorm.track_gradient_dynamics(stacked_axes=stacked_axes))
    return optax.chain(*parts)


def make_schedule(run: Run, steps_per_epoch: int) -> optax.Schedule:
    """Linear warm-up from zero, then the run's schedule, which starts to count after the warm-up.

    Args:
      run: names the schedule and says its options.
      steps_per_epoch: updates per epoch, at least 1.

    Returns:
      A function from the number of updates done, int32, to the learning rate, a scalar.
    """
    warmup_steps = round(run.warmup_epochs * steps_per_epoch)
    schedule = SCHEDULES[run.schedule](run, steps_per_epoch)
    if warmup_steps == 0:
        return schedule
    warmup = optax.linear_schedule(0.0, run.learning_rate, warmup_steps)
    return optax.join_schedules([warmup, schedule], [warmup_steps])


def _constant(run: Run, steps_per_epoch: int) -> optax.Schedule:
    del steps_per_epoch
    return optax.constant_schedule(run.learning_rate)


def _cosine(run: Run, steps_per_epoch: int) -> optax.Schedule:
    epochs = run.epochs if run.steps is None else run.steps / steps_per_epoch
    steps = round((epochs - run.warmup_epochs) * steps_per_epoch)
    return optax.cosine_decay_schedule(run.learning_rate, max(steps, 1))


def _step(run: Run, steps_per_epoch: int) -> optax.Schedule:
    interval = run.step_epochs * steps_per_epoch

    def schedule(count):
        # Whole numbers: Optax's staircase divides floats, and under jit some steps come out one too low.
        drops = jnp.asarray(count) // interval
        return run.learning_rate * run.step_factor ** drops.astype(jnp.float32)

    return schedule


SCHEDULES: dict[str, Callable[[Run, int], optax.Schedule]] = {
    "constant": _constant,
    "cosine": _cosine,
    "step": _step,
}


def decayed(params: Any) -> Any:
    """Mask of what weight decay shrinks, the leaves that the methods take for layers: no biases and no norms."""
    layers = set(optax_gradnorm.layers(params, stacked_axes=stacked_axes))
    names = optax_gradnorm.layer_names(params)
    return jax.tree.unflatten(jax.tree.structure(params), [name in layers for name in names])


def _decoupled(
    preconditioner: optax.GradientTransformation, schedule: optax.Schedule, weight_decay: float
) -> optax.GradientTransformation:
    """Update `-learning_rate * (preconditioned gradient + weight_decay * parameter)`."""
    parts = [preconditioner]
    if weight_decay > 0:
        parts.append(optax.add_decayed_weights(weight_decay, decayed))
    return optax.chain(*parts, optax.scale_by_learning_rate(schedule))


def _sgdm(schedule: optax.Schedule, weight_decay: float) -> optax.GradientTransformation:
    return _decoupled(optax.trace(decay=0.9), schedule, weight_decay)


def _adam(schedule: optax.Schedule, weight_decay: float) -> optax.GradientTransformation:
    return _decoupled(optax.scale_by_adam(), schedule, weight_decay)


def _rmsprop(schedule: optax.Schedule, weight_decay: float) -> optax.GradientTransformation:
    return _decoupled(optax.scale_by_rms(decay=0.9), schedule, weight_decay)


def _lars(schedule: optax.Schedule, weight_decay: float) -> optax.GradientTransformation:
    # Its own definition: weight decay comes before the trust ratio, so that the ratio sees it.
    return optax.lars(schedule, weight_decay, weight_decay_mask=decayed, trust_ratio_mask=decayed)


def _lamb(schedule: optax.Schedule, weight_decay: float) -> optax.GradientTransformation:
    # As in LARS, weight decay comes before the trust ratio.
    return optax.lamb(schedule, weight_decay=weight_decay, mask=decayed)


OPTIMIZERS: dict[str, Callable[[optax.Schedule, float], optax.GradientTransformation]] = {
    "sgdm": _sgdm,
    "adam": _adam,
    "adamw": _adam,  # weight decay is decoupled in Adam too, so the two names agree
    "rmsprop": _rmsprop,
    "lars": _lars,
    "lamb": _lamb,
}
ONE_RATIO_PER_LEAF = ("lars", "lamb")
