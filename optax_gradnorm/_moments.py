"""Mean, standard deviation and norm of gradients, any dtype, scale and sharding; and transformations by them."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import optax
from jax import lax

from optax_gradnorm._arguments import Mask
from optax_gradnorm._layers import Layer, Resolver, at_least, resolve_at_init
from optax_gradnorm._mesh import axis_size, not_replicated
from optax_gradnorm._names import PyTree

# XLA on CPU has fast kernels for plain sums of at least this many elements.
MANY = 2**15

Pair = tuple[jax.Array, jax.Array]


class Moments(NamedTuple):
    """Statistics of one leaf: of one layer, or of each in a stack."""

    mean: jax.Array  # float32 or complex64 (float64 or complex128), the averaged axes kept as 1
    std: jax.Array  # population standard deviation, real
    size: int  # elements over which each runs, on all devices
    stacked_axis_names: tuple[str, ...]  # mesh axes along which other layers lie


def statistics_dtype(dtype) -> jnp.dtype:
    """float64 for double precision, float32 for everything else."""
    is_double = jnp.finfo(jax.dtypes.canonicalize_dtype(dtype)).bits == 64
    return jnp.dtype(jnp.float64 if is_double else jnp.float32)


def per_layer(
    f: Callable[[jax.Array, Moments], jax.Array], resolve: Resolver, mask: Mask
) -> optax.GradientTransformation:
    """Builds the stateless transformation that puts `f(gradient, moments)` in place of every layer.

    Args:
      f: gives an array of the same shape and dtype.
      resolve: says which leaves are layers.
      mask: that of the user, with which `init` is not to warn that nothing is a layer.
    """

    def init_fn(params):
        resolve_at_init(resolve, params, mask)
        return optax.EmptyState()

    def update_fn(updates, state, params=None):
        del params
        leaves, structure = jax.tree.flatten(updates)
        found = zip(leaves, measure(leaves, resolve(updates)), strict=True)
        return structure.unflatten([g if moments is None else f(g, moments) for g, moments in found]), state

    return optax.GradientTransformation(init_fn, update_fn)


def measure(leaves: Sequence[Any], layers: Sequence[Layer | None]) -> list[Moments | None]:
    """Mean and standard deviation of every layer, over all its shards; `None` for what is no layer.

    They are those of the formula at every scale: no square overflows or vanishes, equal elements give
    exactly their value and 0, and a mean far above the deviation costs no precision.
    """
    found = {index: layer for index, layer in enumerate(layers) if layer is not None}
    over = {i: (layer.axes, not_replicated(leaves[i], layer.axis_names)) for i, layer in found.items()}
    pairs = _mean_and_std_of_all([leaves[i] for i in found], list(over.values()))
    moments: list[Moments | None] = [None] * len(leaves)
    for (i, layer), (mean, std) in zip(found.items(), pairs, strict=True):
        axes, axis_names = over[i]
        size = _size(leaves[i], axes) * axis_size(axis_names)
        moments[i] = Moments(mean, std, size, not_replicated(leaves[i], layer.stacked_axis_names))
    return moments


def _mean_and_std_of_all(
    gradients: list[jax.Array], over: list[tuple[tuple[int, ...], tuple[str, ...]]]
) -> list[Pair]:
    """Moments of each gradient over its axes and mesh axes; on GPUs, scalars of gradients of one type in one array.

    A GPU starts a kernel for every scalar operation, which takes as long as reading a small layer.
    """
    alike: dict[Any, list[int]] = {}
    for i, gradient in enumerate(gradients):
        alike.setdefault((jax.typeof(gradient), *over[i]), []).append(i)

    def one_by_one(gradients):
        return [_mean_and_std((g,), *own)[0] for g, own in zip(gradients, over, strict=True)]

    def together(gradients):
        pairs = {}
        for (_, *own), indices in alike.items():
            pairs |= zip(indices, _mean_and_std(tuple(gradients[i] for i in indices), *own), strict=True)
        return [pairs[i] for i in range(len(gradients))]

    # Outside jit each shape is compiled once, and not each tree.
    if len(alike) == len(gradients) or not any(isinstance(g, jax.core.Tracer) for g in gradients):
        return one_by_one(gradients)
    return lax.platform_dependent(gradients, cuda=together, rocm=together, default=one_by_one)


# Gradients of the same shape are traced once.
@functools.partial(jax.jit, static_argnums=(1, 2))
def _mean_and_std(
    gradients: tuple[jax.Array, ...], axes: tuple[int, ...], axis_names: tuple[str, ...]
) -> list[Pair]:
    """Moments of gradients of one type."""
    # XLA must not know the zeros of a frozen layer: it would rearrange what follows into 0 * inf.
    gradients = tuple(lax.optimization_barrier(g) for g in gradients)
    first = gradients[0]
    dtype = statistics_dtype(first.dtype)

    def careful(*gradients):
        return _careful([g.astype(dtype) for g in gradients], axes, axis_names)

    if jnp.iscomplexobj(first):
        parts = careful(*[g.real for g in gradients]), careful(*[g.imag for g in gradients])
        return [_of_complex(real, imag) for real, imag in zip(*parts, strict=True)]
    is_sharded = bool(axis_names) or any(jax.typeof(first).sharding.spec)
    is_small = not at_least(_size(first, axes), MANY)
    if len(gradients) > 1 or first.dtype != jnp.float32 or is_sharded or is_small:
        return careful(*gradients)
    # On accelerators a branch would wait for the host.
    return lax.platform_dependent(first, cpu=functools.partial(_plain, axes, careful), default=careful)


def _of_complex(real: Pair, imag: Pair) -> Pair:
    (real_mean, real_std), (imag_mean, imag_std) = real, imag
    unit = power_of_two(jnp.maximum(real_std, imag_std))
    squares = jnp.square(real_std * (1 / unit)) + jnp.square(imag_std * (1 / unit))
    return lax.complex(real_mean, imag_mean), _sqrt(squares) * unit


def _plain(axes: tuple[int, ...], careful, x: jax.Array) -> list[Pair]:
    """Textbook formulas, which XLA on CPU reads three times as fast, unless they lose digits."""
    mean, square = jnp.mean(x, axes, keepdims=True), jnp.mean(jnp.square(x), axes, keepdims=True)
    # The bounds keep NaN out of what is thrown away: inf - inf, and roots of negative numbers.
    variance = jnp.maximum(jnp.minimum(square, 1e30) - jnp.square(mean), 0)
    is_sound = (square < 1e25) & (variance > 1e-25) & (jnp.square(mean) <= variance)
    return lax.cond(jnp.all(is_sound), lambda _: [(mean, _sqrt(variance))], careful, x)


def _careful(arrays: list[jax.Array], axes: tuple[int, ...], axis_names: tuple[str, ...]) -> list[Pair]:
    """Magnitude and rough mean, then mean and square about that mean in units of that magnitude.

    That is two reads where XLA fuses reductions of one operand, and four on CPU, where it does not. One
    reduction with several operands would save reads and lose 2 % accuracy, since XLA on CPU adds the elements
    of such a one by one. Statistics of several arrays lie along a leading axis.
    """
    # One array is reduced at once; several along their rows, if long enough to leave little, and then together.
    rows = axes
    if len(arrays) > 1:
        long = [axis for axis in axes if at_least(arrays[0].shape[axis], 32)]
        rows = (long or list(axes))[-1:]
    share = 1 / (_size(arrays[0], axes) * axis_size(axis_names))
    parts = zip(*[_magnitude_and_sum(x, tuple(rows), share) for x in arrays], strict=True)
    largest, rough = (_join(f, part, axes) for f, part in zip((jnp.max, jnp.sum), parts, strict=True))
    if axis_names:
        largest, rough = lax.pmax(largest, axis_names), lax.psum(rough, axis_names)
    # If the rough mean reaches the magnitude, use the magnitude: equal elements then give exactly 0.
    origin = jnp.where(jnp.abs(rough) >= (1 - 2.0**-12) * largest, lax.sign(rough) * largest, rough)

    unit = power_of_two(largest)
    per_unit = 1 / unit
    scalars = _for_each(arrays, per_unit), _for_each(arrays, origin * per_unit)
    if len(arrays) > 1:
        # From one array of scalars, a kernel would read the distances of many layers, and another their squares.
        scalars = lax.optimization_barrier(scalars)
    each = zip(arrays, *scalars, strict=True)
    parts = zip(*[_mean_and_square(x, tuple(rows), scale, start) for x, scale, start in each], strict=True)
    sums = [_join(jnp.mean, part, axes) for part in parts]
    mean, square = lax.pmean(sums, axis_names) if axis_names else sums
    variance = jnp.maximum(square - jnp.square(mean), 0)
    mean, std = origin + mean * unit, _sqrt(variance) * unit
    return list(zip(_for_each(arrays, mean), _for_each(arrays, std), strict=True))


# Arrays of the same shape are traced once.
@functools.partial(jax.jit, static_argnums=1)
def _magnitude_and_sum(x: jax.Array, axes: tuple[int, ...], share: jax.typing.ArrayLike) -> Pair:
    """The largest magnitude, and the sum of the elements' shares in the mean, since their own may overflow."""
    y = lax.stop_gradient(x)  # The result does not depend on where and in what unit one counts.
    return jnp.max(jnp.abs(y), axes, keepdims=True), jnp.sum(y * share, axes, keepdims=True)


@functools.partial(jax.jit, static_argnums=1)
def _mean_and_square(x: jax.Array, axes: tuple[int, ...], scale: jax.Array, start: jax.Array) -> Pair:
    """Mean and mean square of the distances from a start."""
    distance = x * scale - start
    return jnp.mean(distance, axes, keepdims=True), jnp.mean(jnp.square(distance), axes, keepdims=True)


def _join(function: Callable[..., jax.Array], parts: Sequence[jax.Array], axes: tuple[int, ...]) -> jax.Array:
    """Reduces what is left of each of several arrays, which come to lie along a leading axis."""
    if len(parts) == 1:
        return parts[0]
    return function(jnp.stack(parts), tuple(axis + 1 for axis in axes), keepdims=True)


def _for_each(arrays: list[jax.Array], statistic: jax.Array) -> list[jax.Array]:
    """The statistic of each array."""
    return [statistic] if len(arrays) == 1 else list(statistic)


def standardize(gradient: jax.Array, mean: jax.Array, divisor: jax.Array) -> jax.Array:
    """`(gradient - mean) / divisor` in the dtype of the gradient; a divisor of 0 counts as 1."""
    return _quarters(gradient, mean, 4 / jnp.where(divisor == 0, 1, divisor))


def subtract(gradient: jax.Array, mean: jax.Array, scale: jax.typing.ArrayLike = 1) -> jax.Array:
    """`(gradient - mean) * scale` in the dtype of the gradient."""
    return _quarters(gradient, mean, 4 * jnp.asarray(scale))


def _quarters(gradient: jax.Array, mean: jax.Array, factor: jax.Array) -> jax.Array:
    """`(gradient - mean) / 4 * factor` in the dtype of the gradient.

    In quarters no difference overflows, and a factor of 4 / std is not subnormal (XLA takes those for 0).
    """
    gradient = jnp.asarray(gradient)
    quarter = 0.25 * gradient.astype(mean.dtype) - 0.25 * mean
    return (quarter * factor.astype(mean.dtype)).astype(gradient.dtype)


def power_of_two(magnitude: jax.Array) -> jax.Array:
    """A power of two near a magnitude, in whose units nothing of that size overflows; scaling by it is exact.

    Its reciprocal is never subnormal: XLA multiplies by reciprocals, and takes subnormal numbers for 0.
    """
    info = jnp.finfo(magnitude.dtype)
    magnitude = lax.stop_gradient(magnitude)  # The result does not depend on in what unit one counts.
    unit = lax.reduce_precision(0.5 * magnitude, info.nexp, 0)  # no mantissa bits
    return jnp.minimum(jnp.maximum(unit, 2.0**info.minexp), 2.0**-info.minexp)


def norm(arrays: Sequence[jax.Array], weights: Sequence[Any] | None = None) -> jax.Array:
    """Euclidean norm of all elements of real arrays of one dtype, whose squares neither overflow nor vanish.

    Args:
      arrays: the elements.
      weights: of their squares, a number or an array for each array; 1 by default.
    """
    unit = power_of_two(jnp.max(jnp.stack([jnp.max(jnp.abs(x), initial=0) for x in arrays])))
    per_unit = 1 / unit
    squares = [jnp.square(x * per_unit) for x in arrays]
    if weights is not None:
        # Only after squaring: XLA would merge the factors of a product into a subnormal number.
        squares = [square * weight for square, weight in zip(squares, weights, strict=True)]
    return unit * _sqrt(sum(jnp.sum(square) for square in squares))


def norm_of(tree: PyTree) -> jax.Array:
    """Euclidean norm of all elements of a pytree of real and complex arrays, in single precision or double."""
    leaves = [
        part
        for x in map(widen, jax.tree.leaves(tree))
        for part in ((x.real, x.imag) if jnp.iscomplexobj(x) else (x,))
    ]
    dtype = jnp.dtype(jnp.float64 if any(x.dtype == jnp.float64 for x in leaves) else jnp.float32)
    # As above, XLA must not see constant zeros.
    return norm(lax.optimization_barrier([x.astype(dtype) for x in leaves]))


def widen(x: jax.Array) -> jax.Array:
    """At least single precision."""
    dtype = statistics_dtype(x.dtype)
    if jnp.iscomplexobj(x):
        dtype = jnp.dtype(jnp.complex128 if dtype == jnp.float64 else jnp.complex64)
    return x.astype(dtype)


def global_std(found: Sequence[Moments], dtype) -> jax.Array:
    """Standard deviation of all layers, each about its own mean: sqrt(sum_l n_l std_l^2 / sum_l n_l).

    Layers that lie on different devices are counted on all of them, so the result is the same everywhere.
    """
    total = sum(m.size * m.std.size * axis_size(m.stacked_axis_names) for m in found)
    norms = []
    for names in dict.fromkeys(m.stacked_axis_names for m in found):
        group = [m for m in found if m.stacked_axis_names == names]
        stacks = [m for m in group if m.std.size != 1]
        arrays = [m.std.astype(dtype) for m in stacks]
        weights = [jnp.asarray(m.size / total, dtype) for m in stacks]
        # All single layers in one array: fewer operations to compile.
        if singles := [m for m in group if m.std.size == 1]:
            arrays.append(jnp.concatenate([m.std.astype(dtype).reshape(1) for m in singles]))
            weights.append(jnp.asarray([m.size / total for m in singles], dtype))
        local = norm(arrays, weights)
        norms.append(_norm_over_devices(local, names) if names else local)
    if not norms:
        return jnp.zeros((), dtype)
    return norms[0] if len(norms) == 1 else norm(norms)


def _norm_over_devices(local: jax.Array, axis_names: tuple[str, ...]) -> jax.Array:
    unit = power_of_two(lax.pmax(lax.stop_gradient(local), axis_names))
    return unit * _sqrt(lax.psum(jnp.square(local * (1 / unit)), axis_names))


def _size(x: jax.Array, axes: tuple[int, ...]) -> int:
    return math.prod(x.shape[axis] for axis in axes)


@jax.custom_jvp
def _sqrt(x: jax.Array) -> jax.Array:
    """Square root whose derivative at 0 is 0, so that no constant layer's derivative is NaN."""
    return jnp.sqrt(x)


@_sqrt.defjvp
def _sqrt_jvp(primals, tangents):
    root = _sqrt(*primals)
    return root, jnp.where(root > 0, 0.5 / jnp.where(root > 0, root, 1), 0) * tangents[0]
