"""Signal propagation: statistics of every layer's activations, and of the gradients by them.

`insert_probes` puts a probe around every convolution and around every unit (a layer of a plain network, a residual
block) of a network as it is; nothing of the network is written twice. `propagate` runs it forwards and backwards.
Everything that may grow exponentially with depth comes as a natural logarithm and is computed without overflow.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from experiments.models.resnet import Block
from experiments.models.signal_propagation.normalizers import DEFAULT_GROUPS, EPSILON, ConvLayer, KernelConv
from experiments.models.signal_propagation.residual import NormalizedBlock

CONVOLUTIONS = (KernelConv, nnx.Conv)
UNITS = (ConvLayer, NormalizedBlock, Block)
SHORTCUT = "projection"  # Not on the way from the images to the logits that layers are counted along.

Statistics = dict[str, jax.Array]


class LogGradientNorm(nnx.Variable):
    """Its value plays no part; its gradient is the log norm of the gradient that passes a probe."""


class Measured(nnx.Variable):
    """What a probe saw in the forward pass."""


class Probe(nnx.Module):
    """Stands in for a module: gives the same output and the same gradients, and measures both."""

    def __init__(self, module: nnx.Module, statistics: Callable[[jax.Array], Statistics]):
        self.module = module
        self.statistics = statistics
        self.log_gradient_norm = LogGradientNorm(jnp.zeros(()))

    def __call__(self, *args, **options) -> jax.Array:
        output = self.module(*args, **options)  # pyright: ignore[reportCallIssue]
        self.measured = Measured(self.statistics(jax.lax.stop_gradient(output)))
        return _pass_through(output, self.log_gradient_norm[...])


@jax.custom_vjp
def _pass_through(x: jax.Array, carrier: jax.Array) -> jax.Array:
    del carrier
    return x


# The gradient by the carrier is no derivative: it carries the norm out of the backward pass, where the gradient
# itself would take as much memory as the activations.
_pass_through.defvjp(lambda x, carrier: (x, None), lambda _, gradient: (gradient, log_norm(gradient)))


def activation_statistics(x: jax.Array) -> Statistics:
    """Statistics of activations [n, height, width, channels].

    Returns:
      'log_variance': variance over images and pixels, averaged over channels. 'cosine_similarity': mean over
      all pairs of images. 'stable_rank': trace over largest eigenvalue of the matrix of these similarities.
    """
    unit, scaled = _scale(x)
    variance = jnp.mean(jnp.var(scaled, axis=(0, 1, 2)))
    rows = scaled.reshape(len(x), -1)
    norms = jnp.linalg.norm(rows, axis=1, keepdims=True)
    rows = rows / jnp.where(norms > 0, norms, 1)
    similarities = jnp.matmul(rows, rows.T, precision="highest")
    n = len(x)
    trace = jnp.trace(similarities)
    return {
        "log_variance": jnp.log(variance) + 2 * jnp.log(unit),
        "cosine_similarity": (jnp.sum(similarities) - trace) / (n * (n - 1)),
        "stable_rank": trace / jnp.linalg.eigvalsh(similarities)[-1],
    }


def pre_activation_statistics(x: jax.Array) -> Statistics:
    """Statistics of pre-activations [n, height, width, channels].

    Returns:
      'log_std': standard deviation over images and pixels, averaged over channels. 'log_amplification_NAME':
      mean of 1 / variance, by which the normalizer NAME multiplies squared gradients: 'instance', 'group' (32
      groups, or the channels if they are fewer), 'layer' and 'batch'; 'harmonic' is 1 over the mean of the
      instances' variances, averaged over channels, which the arithmetic-harmonic inequality puts below 'instance'.
    """
    unit, scaled = _scale(x)
    epsilon = EPSILON / jnp.square(unit)  # As the normalizers add it to the variance before the scaling.
    n, height, width, channels = x.shape
    groups = DEFAULT_GROUPS if channels % DEFAULT_GROUPS == 0 else channels
    instance = jnp.var(scaled, axis=(1, 2))
    grouped = scaled.reshape(n, height, width, groups, -1)
    variances = {
        "instance": instance,
        "group": jnp.var(grouped, axis=(1, 2, 4)),
        "layer": jnp.var(scaled, axis=(1, 2, 3)),
        "batch": jnp.var(scaled, axis=(0, 1, 2)),
        "harmonic": jnp.mean(instance, axis=0),
    }
    amplifications = {
        f"log_amplification_{name}": jnp.log(jnp.mean(1 / (variance + epsilon))) - 2 * jnp.log(unit)
        for name, variance in variances.items()
    }
    std = jnp.mean(jnp.std(scaled, axis=(0, 1, 2)))
    return {"log_std": jnp.log(std) + jnp.log(unit), **amplifications}


def log_norm(x: jax.Array) -> jax.Array:
    """Natural logarithm of the Frobenius norm."""
    unit, scaled = _scale(x)
    return jnp.log(unit) + 0.5 * jnp.log(jnp.sum(jnp.square(scaled)))


def _scale(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A magnitude near the largest one, and the array in units of it."""
    # Its reciprocal, by which XLA multiplies, must not be subnormal, which XLA takes for 0.
    tiny = float(jnp.finfo(x.dtype).tiny)
    unit = jnp.clip(jnp.max(jnp.abs(x)), tiny, 1 / tiny)
    return unit, x / unit


@dataclasses.dataclass(frozen=True)
class ProbedModel:
    """A network with probes, split for use inside `jax.jit`.

    Attributes:
      graphdef: of the network.
      params: trained parameters.
      batch_stats: running statistics.
      carriers: of the gradients' norms.
      units: names of the units, from the images to the logits: their outputs are the activations.
      convolutions: names of the convolutions: their outputs are the pre-activations.
    """

    graphdef: Any
    params: Any
    batch_stats: Any
    carriers: Any
    units: tuple[str, ...]
    convolutions: tuple[str, ...]


def insert_probes(model: nnx.Module) -> ProbedModel:
    """Puts probes into a network, which is changed by that.

    Args:
      model: from `experiments.models.create`.

    Returns:
      The network with probes around its units and convolutions; those of shortcuts have none.
    """
    units: list[str] = []
    convolutions: list[str] = []
    _visit(model, (), units, convolutions, in_unit=False)
    graphdef, params, batch_stats, carriers = nnx.split(model, nnx.Param, nnx.BatchStat, LogGradientNorm)
    return ProbedModel(graphdef, params, batch_stats, carriers, tuple(units), tuple(convolutions))


def _visit(module: nnx.Module, path: tuple, units: list[str], convolutions: list[str], in_unit: bool) -> None:
    for key, child in list(nnx.iter_children(module)):
        if key == SHORTCUT or not isinstance(child, nnx.Module):
            continue
        child_path = (*path, key)
        name = "/".join(map(str, child_path))
        is_unit = isinstance(child, UNITS) and not in_unit
        _visit(child, child_path, units, convolutions, in_unit or is_unit)
        if is_unit:
            units.append(name)
            _replace(module, key, Probe(child, activation_statistics))
        elif isinstance(child, CONVOLUTIONS):
            convolutions.append(name)
            _replace(module, key, Probe(child, pre_activation_statistics))


def _replace(module: nnx.Module, key, child: nnx.Module) -> None:
    if isinstance(module, nnx.List):
        module[key] = child
    else:
        setattr(module, key, child)


def propagate(
    probed: ProbedModel, params: Any, batch_stats: Any, images: jax.Array, labels: jax.Array
) -> tuple[dict[str, Statistics], Any, Any]:
    """Runs a network in training mode on one batch, forwards and backwards through the mean cross-entropy.

    Args:
      images: normalised, [n, height, width, channels].
      labels: their classes, integers [n].

    Returns:
      Statistics by the name of the unit or convolution: those of `activation_statistics` or
      `pre_activation_statistics`, and 'log_gradient_norm', the Frobenius norm of the loss's gradient by its
      output; the gradient of the parameters; the running statistics after this batch.
    """

    def loss(params, carriers):
        model = nnx.merge(probed.graphdef, params, batch_stats, carriers, copy=True)
        logits = model(images, train=True)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.mean(losses), (nnx.state(model, Measured), nnx.state(model, nnx.BatchStat))

    (gradient, by_carriers), (measured, batch_stats) = jax.grad(loss, argnums=(0, 1), has_aux=True)(
        params, probed.carriers
    )
    measured, norms = _by_name(measured), _by_name(by_carriers)
    names = (*probed.units, *probed.convolutions)
    statistics = {name: {**measured[name], "log_gradient_norm": norms[name]} for name in names}
    return statistics, gradient, batch_stats


def _by_name(state: nnx.State) -> dict[str, Any]:
    """Values by the path of their probe, without the probes that contain it."""
    values = {}
    for path, variable in nnx.to_flat_state(state):
        name = "/".join(str(part) for part in path[:-1] if part != "module")
        values[name] = variable.get_value()
    return values
