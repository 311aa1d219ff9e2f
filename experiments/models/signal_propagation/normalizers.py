"""Ten normalizers of convolutional networks, and none, behind one interface.

The selection and its details follow Lubana, Dick and Tanaka, "Beyond BatchNorm: Towards a Unified Understanding of
Normalization in Deep Learning", 2021, arXiv 2106.05956, Table 1. Scales start at 1, shifts at 0, epsilon is 1e-5.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.models import layers
from experiments.models.conv import conv_by_patches, conv_general_dilated

EPSILON = 1e-5
MOMENTUM = 0.9
DEFAULT_GROUPS = 32
# ReLU of a standard normal variable has mean sqrt(1 / 2 pi) and standard deviation sqrt((pi - 1) / 2 pi).
RELU_MEAN = math.sqrt(1 / (2 * math.pi))
RELU_GAIN = math.sqrt(2 * math.pi / (math.pi - 1))


class Normalizer(nnx.Module):
    """What comes with a convolution: this one normalizes nothing, and ReLU is its activation.

    A network calls, in this order, `normalize_kernel` on the convolution's kernel, `normalize` on its output
    and `activate`; a residual network may add the shortcut before `activate`. Calling the module does the
    last two. Everything is computed in float32.

    Attributes:
      is_parametric: it normalizes kernels; such convolutions have a bias.
    """

    is_parametric = False

    def normalize_kernel(self, kernel: jax.Array) -> jax.Array:
        """Kernel [height, width, in, out] to convolve with."""
        return kernel

    def normalize(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Normalized pre-activations [n, height, width, features]."""
        del train
        return x

    def activate(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Activations of normalized pre-activations."""
        del train
        return nnx.relu(x)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return self.activate(self.normalize(x, train=train), train=train)


class NoNormalizer(Normalizer):
    """No normalization, and ReLU."""

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        del features, rngs


class BatchNorm(Normalizer):
    """Over images and pixels, for each channel; running statistics in evaluation."""

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        self.norm = layers.BatchNorm(features, dtype=jnp.float32, rngs=rngs)

    def normalize(self, x: jax.Array, *, train: bool) -> jax.Array:
        return self.norm(x, train=train)


class GroupNorm(Normalizer):
    """Over a group of channels and pixels, for each image: `groups` groups, or groups of `group_size`."""

    def __init__(
        self, features: int, *, groups: int | None = None, group_size: int | None = None, rngs: nnx.Rngs
    ):
        groups = count_groups("group_norm", features, groups, group_size)
        self.norm = nnx.GroupNorm(features, groups, epsilon=EPSILON, use_fast_variance=False, rngs=rngs)

    def normalize(self, x: jax.Array, *, train: bool) -> jax.Array:
        del train
        return self.norm(x)


class LayerNorm(GroupNorm):
    """Over channels and pixels, for each image: GroupNorm with one group."""

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        super().__init__(features, groups=1, rngs=rngs)


class InstanceNorm(GroupNorm):
    """Over pixels, for each image and channel: GroupNorm with groups of one channel."""

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        super().__init__(features, group_size=1, rngs=rngs)


class Affine(nnx.Module):
    """A learned scale and shift of each channel."""

    def __init__(self, features: int):
        self.scale = nnx.Param(jnp.ones(features))
        self.shift = nnx.Param(jnp.zeros(features))

    def __call__(self, x: jax.Array) -> jax.Array:
        return x * _by_channel(self.scale) + _by_channel(self.shift)


class BatchVariance(nnx.Module):
    """Variance of each channel over images and pixels: the batch's in training, else the running one."""

    def __init__(self, features: int):
        self.running = nnx.BatchStat(jnp.ones(features))

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        if not train:
            return _by_channel(self.running)
        variance = jnp.var(x, axis=(0, 1, 2), keepdims=True)
        self.running[...] = MOMENTUM * self.running[...] + (1 - MOMENTUM) * variance.reshape(-1)
        return variance


class FilterResponseNorm(Normalizer):
    """Divides by the root mean square over pixels; the threshold max(y, tau) is its activation."""

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        del rngs
        self.affine = Affine(features)
        self.threshold = nnx.Param(jnp.zeros(features))
        self.epsilon = nnx.Param(jnp.full((), EPSILON))

    def normalize(self, x: jax.Array, *, train: bool) -> jax.Array:
        del train
        mean_square = jnp.mean(jnp.square(x), axis=(1, 2), keepdims=True)
        return self.affine(x * jax.lax.rsqrt(mean_square + jnp.abs(self.epsilon[...])))

    def activate(self, x: jax.Array, *, train: bool) -> jax.Array:
        del train
        return jnp.maximum(x, _by_channel(self.threshold))


class VarianceNorm(Normalizer):
    """BatchNorm that does not subtract the mean."""

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        del rngs
        self.affine = Affine(features)
        self.variance = BatchVariance(features)

    def normalize(self, x: jax.Array, *, train: bool) -> jax.Array:
        return self.affine(x * jax.lax.rsqrt(self.variance(x, train=train) + EPSILON))


class EvoNormB0(Normalizer):
    """Divides by the larger of batch deviation and v x + instance deviation; all of it is the activation."""

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        del rngs
        self.affine = Affine(features)
        self.variance = BatchVariance(features)
        self.slope = nnx.Param(jnp.ones(features))

    def activate(self, x: jax.Array, *, train: bool) -> jax.Array:
        batch_std = jnp.sqrt(self.variance(x, train=train) + EPSILON)
        instance_std = jnp.sqrt(jnp.var(x, axis=(1, 2), keepdims=True) + EPSILON)
        return self.affine(x / jnp.maximum(batch_std, _by_channel(self.slope) * x + instance_std))


class EvoNormS0(Normalizer):
    """x sigmoid(v x) divided by the standard deviation of its group; all of it is the activation."""

    def __init__(
        self, features: int, *, groups: int | None = None, group_size: int | None = None, rngs: nnx.Rngs
    ):
        del rngs
        self.groups = count_groups("evonorm_s0", features, groups, group_size)
        self.affine = Affine(features)
        self.slope = nnx.Param(jnp.ones(features))

    def activate(self, x: jax.Array, *, train: bool) -> jax.Array:
        del train
        gated = x * nnx.sigmoid(_by_channel(self.slope) * x)
        grouped = x.reshape(*x.shape[:3], self.groups, -1)
        std = jnp.sqrt(jnp.var(grouped, axis=(1, 2, 4), keepdims=True) + EPSILON)
        return self.affine((gated.reshape(grouped.shape) / std).reshape(x.shape))


class WeightNorm(Normalizer):
    """Kernels of norm 1 for each filter, and a ReLU that keeps mean 0 and variance 1 (Arpit et al. 2016)."""

    is_parametric = True

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        del rngs
        self.scale = nnx.Param(jnp.ones(features))

    def normalize_kernel(self, kernel: jax.Array) -> jax.Array:
        norm = jnp.sqrt(jnp.sum(jnp.square(kernel), axis=(0, 1, 2), keepdims=True))
        return _by_channel(self.scale) * kernel / (norm + EPSILON)

    def activate(self, x: jax.Array, *, train: bool) -> jax.Array:
        del train
        return RELU_GAIN * (nnx.relu(x) - RELU_MEAN)


class ScaledWeightStandardization(Normalizer):
    """Kernels of mean 0 for each filter, scaled so that ReLU gives variance 1 (Brock et al. 2021)."""

    is_parametric = True

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        del rngs
        self.scale = nnx.Param(jnp.ones(features))

    def normalize_kernel(self, kernel: jax.Array) -> jax.Array:
        mean = jnp.mean(kernel, axis=(0, 1, 2), keepdims=True)
        std = jnp.std(kernel, axis=(0, 1, 2), keepdims=True)
        fan_in = math.prod(kernel.shape[:-1])
        gain = RELU_GAIN * fan_in**-0.5 * _by_channel(self.scale)
        return gain * (kernel - mean) / (std + EPSILON)


NORMALIZERS: dict[str, Callable[..., Normalizer]] = {
    "none": NoNormalizer,
    "batch_norm": BatchNorm,
    "layer_norm": LayerNorm,
    "instance_norm": InstanceNorm,
    "group_norm": GroupNorm,
    "frn": FilterResponseNorm,
    "variance_norm": VarianceNorm,
    "evonorm_b0": EvoNormB0,
    "evonorm_s0": EvoNormS0,
    "weight_norm": WeightNorm,
    "scaled_ws": ScaledWeightStandardization,
}
GROUPED = ("group_norm", "evonorm_s0")


@dataclasses.dataclass(frozen=True)
class Normalization:
    """A normalizer by name, to be made for any number of features.

    Attributes:
      name: one of `NORMALIZERS`.
      groups: number of groups, for those of `GROUPED`; 32 if neither this nor the size is given.
      group_size: channels in a group, in place of the number.

    Raises:
      ValueError: an unknown name, groups for a normalizer without groups, both number and size, or one that is
        no whole number.
    """

    name: str
    groups: int | None = None
    group_size: int | None = None

    def __post_init__(self):
        if self.name not in NORMALIZERS:
            raise ValueError(f"unknown normalizer {self.name!r}; choose from {', '.join(NORMALIZERS)}")
        has_groups = self.groups is not None or self.group_size is not None
        if has_groups and self.name not in GROUPED:
            raise ValueError(f"{self.name} has no groups; choose from {', '.join(GROUPED)}")
        if self.groups is not None and self.group_size is not None:
            raise ValueError(f"{self.name} takes a number of groups or a group size, not both")
        for field in ("groups", "group_size"):
            value = getattr(self, field)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise ValueError(f"{field} of {self.name} must be a whole number, not {value!r}")

    def make(self, features: int, *, rngs: nnx.Rngs) -> Normalizer:
        """Makes the normalizer for a layer; raises ValueError if its groups do not divide the features."""
        make = NORMALIZERS[self.name]
        if self.name in GROUPED:
            make = partial(make, groups=self.groups, group_size=self.group_size)
        return make(features, rngs=rngs)


def count_groups(name: str, features: int, groups: int | None, group_size: int | None) -> int:
    """Number of groups of `features` channels, by number or by size; 32 if neither is given.

    Raises:
      ValueError: they do not divide the channels equally; the message has the valid choices.
    """
    divisors = ", ".join(str(d) for d in range(1, features + 1) if features % d == 0)
    if group_size is not None:
        if group_size < 1 or features % group_size:
            raise ValueError(
                f"{name}: a group size of {group_size} does not divide {features} features; "
                f"choose from {divisors}"
            )
        return features // group_size
    groups = DEFAULT_GROUPS if groups is None else groups
    if groups < 1 or features % groups:
        raise ValueError(f"{name}: {groups} groups do not divide {features} features; choose from {divisors}")
    return groups


def _by_channel(variable: nnx.Variable[jax.Array]) -> jax.Array:
    return variable[...].reshape(1, 1, 1, -1)


class ConvLayer(nnx.Module):
    """A 3x3 convolution and its normalizer, with activation.

    Attributes:
      conv: the convolution.
      norm: the normalizer, which owns the activation.
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        strides: int,
        *,
        normalization: Normalization,
        dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.norm = normalization.make(features, rngs=rngs)
        self.conv = KernelConv(
            in_features, features, strides, use_bias=self.norm.is_parametric, dtype=dtype, rngs=rngs
        )

    def normalized(self, x: jax.Array, *, train: bool) -> jax.Array:
        """What the activation gets."""
        return self.norm.normalize(self.conv(x, self.norm.normalize_kernel), train=train)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return self.norm.activate(self.normalized(x, train=train), train=train)


class KernelConv(nnx.Module):
    """A 3x3 convolution, He-normal (fan-in), whose kernel may be changed on every call.

    Convolves in `dtype` and gives float32, in which normalizers have to compute.
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        strides: int,
        *,
        use_bias: bool,
        dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
    ):
        initial = nnx.initializers.he_normal()(rngs.params(), (3, 3, in_features, features))
        self.kernel = nnx.Param(initial)
        self.bias = nnx.Param(jnp.zeros(features)) if use_bias else None
        self.strides = (strides, strides)
        self.dtype = dtype

    def __call__(self, x: jax.Array, change_kernel: Callable[[jax.Array], jax.Array]) -> jax.Array:
        kernel = change_kernel(self.kernel[...]).astype(self.dtype)
        # XLA on CPU takes a hundred times as long as a matrix product to convolve to images of 2x2 pixels.
        is_tiny = jax.default_backend() == "cpu" and x.shape[1] <= 4
        convolve = conv_by_patches if is_tiny else conv_general_dilated
        y = convolve(x.astype(self.dtype), kernel, self.strides, ((1, 1), (1, 1))).astype(jnp.float32)
        return y if self.bias is None else y + _by_channel(self.bias)
