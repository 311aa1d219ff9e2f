"""Mean, standard deviation and norm of gradients: any floating dtype, any scale, whole or sharded."""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from optax_gradnorm._arguments import PyTree
from optax_gradnorm._layers import Layer, Resolver, layer_size, varying_axes, without_replicated

# XLA on CPU has fast kernels for plain sums of at least this many elements.
MANY = 2**15


class Moments(NamedTuple):
    """Mean and population standard deviation, the averaged axes kept as 1."""

    mean: jax.Array  # float32 or complex64 (float64 or complex128)
    std: jax.Array  # real


class Measured(NamedTuple):
    """Statistics of one leaf: of one layer, or of each in a stack."""

    mean: jax.Array
    std: jax.Array
    size: int  # elements over which each runs, on all devices
    stacked_axis_names: tuple[str, ...]  # mesh axes along which other layers lie


def statistics_dtype(dtype) -> jnp.dtype:
    """float64 for double precision, float32 for everything else."""
    is_double = jnp.finfo(jax.dtypes.canonicalize_dtype(dtype)).bits == 64
    return jnp.dtype(jnp.float64 if is_double else jnp.float32)


def measure(leaves: Sequence[Any], layers: Sequence[Layer | None]) -> list[Measured | None]:
    """Mean and standard deviation of every layer, over all its shards; `None` for what is no layer.

    They are those of the formula at every scale: no square overflows or vanishes, equal elements give
    exactly their value and 0, and a mean far above the deviation costs no precision.
    """
    present = [
        (gradient, without_replicated(layer, gradient))
        for gradient, layer in zip(leaves, layers, strict=True)
        if layer is not None
    ]
    moments = iter(_moments_of_all(present))
    measured = (
        Measured(*next(moments), layer_size(gradient, layer), layer.stacked_axis_names)
        for gradient, layer in present
    )
    return [None if layer is None else next(measured) for layer in layers]


def map_measured(f: Callable[[Any, Measured], Any], tree: PyTree, resolve: Resolver) -> PyTree:
    """Applies `f(leaf, measured)` to the layers of a tree; other leaves pass through."""
    leaves, structure = jax.tree.flatten(tree)
    measured = measure(leaves, resolve(tree))
    mapped = [leaf if m is None else f(leaf, m) for leaf, m in zip(leaves, measured, strict=True)]
    return jax.tree.unflatten(structure, mapped)


def _moments_of_all(present: list[tuple[jax.Array, Layer]]) -> list[Moments]:
    """On GPUs, those of layers of one type together: one kernel does the scalar arithmetic of all of them."""
    groups: dict[Any, list[int]] = {}
    for index, (gradient, layer) in enumerate(present):
        kind = jax.typeof(gradient), layer.axes, layer.axis_names
        groups.setdefault(kind, []).append(index)

    def one_by_one(gradients: list[jax.Array]) -> list[Moments]:
        return [
            _moments((g,), layer.axes, layer.axis_names)[0]
            for g, (_, layer) in zip(gradients, present, strict=True)
        ]

    def together(gradients: list[jax.Array]) -> list[Moments]:
        found = {}
        for (_, *over), indices in groups.items():
            found |= zip(indices, _moments(tuple(gradients[i] for i in indices), *over), strict=True)
        return [found[index] for index in range(len(present))]

    gradients = [gradient for gradient, _ in present]
    # Outside jit every shape is compiled once, whatever the tree.
    if len(groups) == len(present) or not any(isinstance(g, jax.core.Tracer) for g in gradients):
        return one_by_one(gradients)
    return lax.platform_dependent(gradients, cuda=together, rocm=together, default=one_by_one)


# Layers of the same shape are traced once.
@functools.partial(jax.jit, static_argnums=(1, 2))
def _moments(
    gradients: tuple[jax.Array, ...], axes: tuple[int, ...], axis_names: tuple[str, ...]
) -> list[Moments]:
    """Moments of gradients of one type."""
    # XLA must not know the zeros of a frozen layer: it would rearrange what follows into 0 * inf.
    gradients = tuple(lax.optimization_barrier(g) for g in gradients)
    kind = jax.typeof(gradients[0])
    dtype = statistics_dtype(kind.dtype)

    def careful(*gradients):
        return _careful_moments([g.astype(dtype) for g in gradients], axes, axis_names)

    if jnp.iscomplexobj(gradients[0]):
        parts = careful(*[g.real for g in gradients]), careful(*[g.imag for g in gradients])
        return [_of_complex(real, imag) for real, imag in zip(*parts, strict=True)]
    is_sharded = bool(axis_names) or any(kind.sharding.spec)
    if len(gradients) > 1 or kind.dtype != jnp.float32 or _size(kind, axes) < MANY or is_sharded:
        return careful(*gradients)
    # On accelerators a branch would wait for the host.
    plain = functools.partial(_plain_moments, axes, careful)
    return lax.platform_dependent(*gradients, cpu=plain, default=careful)


def _of_complex(real: Moments, imag: Moments) -> Moments:
    unit = power_of_two(jnp.maximum(real.std, imag.std))
    squares = jnp.square(real.std * (1 / unit)) + jnp.square(imag.std * (1 / unit))
    return Moments(lax.complex(real.mean, imag.mean), _sqrt(squares) * unit)


def _plain_moments(axes: tuple[int, ...], careful, x: jax.Array) -> list[Moments]:
    """Textbook moments, which XLA on CPU reads three times as fast, unless they lose digits."""
    mean, square = jnp.mean(x, axes, keepdims=True), jnp.mean(jnp.square(x), axes, keepdims=True)
    variance = square - jnp.square(mean)
    is_sound = (square < 1e25) & (variance > 1e-25) & (jnp.square(mean) <= variance)
    return lax.cond(jnp.all(is_sound), lambda _: [Moments(mean, _sqrt(variance))], careful, x)


def _careful_moments(
    arrays: list[jax.Array], axes: tuple[int, ...], axis_names: tuple[str, ...]
) -> list[Moments]:
    """Magnitude and rough mean, then mean and square about that mean in units of that magnitude.

    That is two reads where XLA fuses reductions of one operand, and four on CPU, where it does not. One
    reduction with several operands would save reads and lose 2 % accuracy, since XLA on CPU adds the elements
    of such a one by one. The statistics of several arrays lie along a leading axis.
    """
    reduce = functools.partial(_reduce, axes)
    share = 1 / (_size(arrays[0], axes) * (lax.axis_size(axis_names) if axis_names else 1))
    # The result does not depend on where and in what unit one counts.
    fixed = [lax.stop_gradient(x) for x in arrays]
    largest = reduce(jnp.max, [jnp.abs(y) for y in fixed])
    # Divided before the sum, which may overflow otherwise.
    rough = reduce(jnp.sum, [y * share for y in fixed])
    if axis_names:
        largest, rough = lax.pmax(largest, axis_names), lax.psum(rough, axis_names)
    # If the rough mean reaches the magnitude, use the magnitude: equal elements then give exactly 0.
    origin = jnp.where(jnp.abs(rough) >= (1 - 2.0**-12) * largest, lax.sign(rough) * largest, rough)

    unit = power_of_two(largest)
    per_unit = 1 / unit
    scalars = _for_each(arrays, per_unit), _for_each(arrays, origin * per_unit)
    if len(arrays) > 1:
        # From one vector, a kernel would read the distances of many layers, and another their squares.
        scalars = lax.optimization_barrier(scalars)
    distances = [x * scale - start for x, scale, start in zip(arrays, *scalars, strict=True)]
    sums = [reduce(jnp.mean, distances), reduce(jnp.mean, [jnp.square(d) for d in distances])]
    mean, square = lax.pmean(sums, axis_names) if axis_names else sums
    variance = jnp.maximum(square - jnp.square(mean), 0)
    moments = Moments(origin + mean * unit, _sqrt(variance) * unit)
    return [Moments(*each) for each in zip(*(_for_each(arrays, field) for field in moments), strict=True)]


def _reduce(axes: tuple[int, ...], function: Callable[..., jax.Array], arrays: list[jax.Array]) -> jax.Array:
    """Reduces an array, or each of several by a kernel of its own and then what is left of all by one."""
    if len(arrays) == 1:
        return function(arrays[0], axes, keepdims=True)
    shape = arrays[0].shape
    # Rows that are long enough leave little to the last kernel.
    first = next((axis for axis in reversed(axes) if shape[axis] >= 32), axes[-1:])
    rest = jnp.stack([function(x, first, keepdims=True) for x in arrays])
    return function(rest, tuple(axis + 1 for axis in axes), keepdims=True)


def _for_each(arrays: list[jax.Array], statistic: jax.Array) -> list[jax.Array]:
    """The statistic of each array."""
    return [statistic] if len(arrays) == 1 else list(statistic)


def subtract(gradient: jax.Array, mean: jax.Array, factor: jax.Array) -> jax.Array:
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


def global_std(found: Sequence[Measured], dtype) -> jax.Array:
    """Standard deviation of all layers, each about its own mean: sqrt(sum_l n_l std_l^2 / sum_l n_l).

    Layers that lie on different devices are counted on all of them, so the result is the same everywhere.
    """
    total = sum(
        m.size * m.std.size * (lax.axis_size(m.stacked_axis_names) if m.stacked_axis_names else 1)
        for m in found
    )
    norms = []
    for names in dict.fromkeys(m.stacked_axis_names for m in found):
        group = [m for m in found if m.stacked_axis_names == names]
        stacks = [m for m in group if m.std.size > 1]
        arrays = [m.std.astype(dtype) for m in stacks]
        weights = [np.asarray(m.size / total, dtype) for m in stacks]
        # All single layers in one array: fewer operations to compile.
        if singles := [m for m in group if m.std.size == 1]:
            arrays.append(jnp.concatenate([m.std.astype(dtype).reshape(1) for m in singles]))
            weights.append(np.asarray([m.size / total for m in singles], dtype))
        local = norm(arrays, weights)
        norms.append(_norm_over_devices(local, names) if names else local)
    if not norms:
        return jnp.zeros((), dtype)
    return norms[0] if len(norms) == 1 else norm(norms)


def zero_statistic(leaf: jax.Array, layer: Layer, dtype) -> jax.Array:
    """Zeros of the JAX type of a statistic of this leaf: shape of its stacked axes, on the same devices."""
    shape, sharding = leaf.shape[: layer.stacked_axes], jax.typeof(leaf).sharding
    zero = jnp.zeros(shape, dtype)
    if any(sharding.spec):
        own = NamedSharding(sharding.mesh, P(*sharding.spec[: layer.stacked_axes]))
        zero = jnp.zeros_like(jax.ShapeDtypeStruct(shape, dtype, sharding=own))
    return _varying(zero, varying_axes(leaf) - {*layer.axis_names})


def zero_global(leaves: Sequence[jax.Array], layers: Sequence[Layer | None], dtype) -> jax.Array:
    """A zero of the JAX type of `global_std`, which differs only over mesh axes that nobody named."""
    unnamed = set()
    for leaf, layer in zip(leaves, layers, strict=True):
        if layer is not None:
            unnamed |= varying_axes(leaf) - {*layer.axis_names, *layer.stacked_axis_names}
    return _varying(jnp.zeros((), dtype), unnamed)


def _varying(zero: jax.Array, names: Iterable[str]) -> jax.Array:
    """A zero that JAX takes to differ over these mesh axes."""
    return zero + sum((0 * lax.axis_index(name)).astype(zero.dtype) for name in sorted(names))


def check_varies_as(before: jax.Array, after: jax.Array, what: str) -> None:
    """Refuses a statistic that differs between devices for a state that does not.

    Raises:
      ValueError: it does; the message names the mesh axes and the arguments.
    """
    if more := varying_axes(after) - varying_axes(before):
        raise ValueError(
            f"{what} differs between devices along {', '.join(sorted(more))}, but the state from init does not: "
            "average data-parallel gradients first (lax.pmean), name mesh axes that shard a layer in axis_name, "
            "those that index separate layers in stacked_axis_name"
        )


def _norm_over_devices(local: jax.Array, axis_names: tuple[str, ...]) -> jax.Array:
    unit = power_of_two(lax.pmax(lax.stop_gradient(local), axis_names))
    return unit * _sqrt(lax.psum(jnp.square(local * (1 / unit)), axis_names))


def _size(x: Any, axes: tuple[int, ...]) -> int:
    return math.prod(x.shape[axis] for axis in axes)


@jax.custom_jvp
def _sqrt(x: jax.Array) -> jax.Array:
    """Square root whose derivative at 0 is 0, so that no constant layer's derivative is NaN."""
    return jnp.sqrt(x)


@_sqrt.defjvp
def _sqrt_jvp(primals, tangents):
    root = _sqrt(*primals)
    return root, jnp.where(root > 0, 0.5 / jnp.where(root > 0, root, 1), 0) * tangents[0]
