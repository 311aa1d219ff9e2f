"""Mean and standard deviation of gradients: any floating dtype, any scale, whole or sharded."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from optax_gradnorm._layers import Layer


class Centered(NamedTuple):
    """A layer about its mean, in units of a power of two, so that no square overflows or vanishes.

    With `g` the layer: `values * unit = g - mean`, `std * unit` its population standard deviation.
    """

    values: jax.Array  # shape of the leaf, float32 or complex64 (float64 or complex128)
    mean: jax.Array  # shape of the leaf with the averaged axes kept as 1, in units of `unit`
    std: jax.Array  # as `mean`, real
    unit: jax.Array  # as `mean`, real


def statistics_dtype(dtype) -> jnp.dtype:
    """float64 for double precision, float32 for everything else."""
    return jnp.dtype(jnp.float64 if jnp.finfo(dtype).bits == 64 else jnp.float32)


def center(gradient: jax.Array, axes: tuple[int, ...], axis_names: tuple[str, ...] = ()) -> Centered:
    """Mean and standard deviation over `axes`, and over the mesh axes that shard them.

    Elements are first counted from the number nearest to zero in their range: 0 if their signs differ. So
    equal elements give exactly 0, and a mean far above the deviation costs no precision. Plain reductions:
    several in one multi-operand reduction would save reads and lose 2 % accuracy, since XLA on CPU adds
    the elements of such a one by one.
    """
    # XLA must not know the zeros of a frozen layer: it would rearrange what follows into 0 * inf.
    gradient = lax.optimization_barrier(gradient)
    dtype = statistics_dtype(gradient.dtype)
    if jnp.iscomplexobj(gradient):
        gradient = gradient.astype(jnp.complex128 if dtype == jnp.float64 else jnp.complex64)
        real_origin, real_largest = _origin_and_largest(gradient.real, axes, axis_names)
        imag_origin, imag_largest = _origin_and_largest(gradient.imag, axes, axis_names)
        origin = lax.complex(real_origin, imag_origin)
        largest = jnp.maximum(real_largest, imag_largest)
    else:
        gradient = gradient.astype(dtype)
        origin, largest = _origin_and_largest(gradient, axes, axis_names)

    unit = power_of_two(largest)
    # A product, not a quotient: XLA would rather store quotients than compute them twice.
    per_unit = (1 / unit).astype(gradient.dtype)
    scaled = (gradient - origin) * per_unit

    mean = _mean(scaled, axes, axis_names)
    values = scaled - mean
    std = _sqrt(_mean(_squared_magnitude(values), axes, axis_names))
    return Centered(values, mean + origin * per_unit, std, unit)


def power_of_two(magnitude: jax.Array) -> jax.Array:
    """A power of two near a magnitude, in whose units nothing of that size overflows; scaling by it is exact.

    Its reciprocal is never subnormal: XLA multiplies by reciprocals, and takes subnormal numbers for 0.
    """
    info = jnp.finfo(magnitude.dtype)
    magnitude = lax.stop_gradient(magnitude)  # The result does not depend on in what unit one counts.
    unit = lax.reduce_precision(0.5 * magnitude, info.nexp, 0)  # no mantissa bits
    return jnp.minimum(jnp.maximum(unit, 2.0**info.minexp), 2.0**-info.minexp)


def global_std(layers: Sequence[tuple[Centered, Layer]], dtype) -> jax.Array:
    """Standard deviation of all layers, each about its own mean: sqrt(sum_l n_l std_l^2 / sum_l n_l)."""
    if not layers:
        return jnp.zeros((), dtype)
    stds = [(c.std * c.unit).astype(dtype).ravel() for c, _ in layers]
    weights = [layer_size(c.values, layer) for c, layer in layers]
    total = sum(weight * std.size for weight, std in zip(weights, stds, strict=True))
    unit = power_of_two(jnp.max(jnp.stack([jnp.max(std) for std in stds])))
    per_unit = 1 / unit
    variance = sum(
        weight / total * jnp.sum(jnp.square(std * per_unit))
        for weight, std in zip(weights, stds, strict=True)
    )
    return unit * _sqrt(variance)


def layer_size(values: jax.Array, layer: Layer) -> int:
    """Number of elements of one layer, counted over all shards."""
    size = lax.axis_size(layer.axis_names) if layer.axis_names else 1
    for axis in layer.own_axes(values.ndim):
        size *= values.shape[axis]
    return size


@jax.custom_jvp
def _sqrt(x: jax.Array) -> jax.Array:
    """Square root whose derivative at 0 is 0, so that no constant layer's derivative is NaN."""
    return jnp.sqrt(x)


@_sqrt.defjvp
def _sqrt_jvp(primals, tangents):
    root = _sqrt(*primals)
    return root, jnp.where(root > 0, 0.5 / jnp.where(root > 0, root, 1), 0) * tangents[0]


def _origin_and_largest(
    x: jax.Array, axes: tuple[int, ...], axis_names: tuple[str, ...]
) -> tuple[jax.Array, jax.Array]:
    """The number nearest to zero between the extremes of `x`, and its largest magnitude."""
    x = lax.stop_gradient(x)  # The result does not depend on where one counts from.
    low, high = jnp.min(x, axes, keepdims=True), jnp.max(x, axes, keepdims=True)
    if axis_names:
        low, high = lax.pmin(low, axis_names), lax.pmax(high, axis_names)
    return jnp.minimum(jnp.maximum(low, 0), high), jnp.maximum(high, -low)


def _squared_magnitude(x: jax.Array) -> jax.Array:
    return jnp.square(x.real) + jnp.square(x.imag) if jnp.iscomplexobj(x) else jnp.square(x)


def _mean(x: jax.Array, axes: tuple[int, ...], axis_names: tuple[str, ...]) -> jax.Array:
    mean = jnp.mean(x, axes, keepdims=True)
    return lax.pmean(mean, axis_names) if axis_names else mean
