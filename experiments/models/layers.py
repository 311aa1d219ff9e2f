"""The layers all models are built from."""

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.models.conv import conv_general_dilated


def conv(
    in_features: int,
    out_features: int,
    kernel_size: int,
    strides: int = 1,
    *,
    use_bias: bool = False,
    dtype: jax.typing.DTypeLike,
    rngs: nnx.Rngs,
) -> nnx.Module:
    """A square convolution, He-normal (fan-in), padded by half the kernel on every side."""
    return nnx.Conv(
        in_features,
        out_features,
        (kernel_size, kernel_size),
        strides,
        padding=kernel_size // 2,
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=nnx.initializers.he_normal(),
        conv_general_dilated=conv_general_dilated,
        rngs=rngs,
    )


class BatchNorm(nnx.BatchNorm):
    """BatchNorm with momentum 0.9 and epsilon 1e-5; its running variance is the population variance.

    Whatever the dtype of the computation, it normalises in float32, where statistics have to be taken.
    """

    def __init__(self, features: int, *, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs):
        # The one-pass variance loses digits where a channel's mean is large, and is no faster here.
        super().__init__(
            features, momentum=0.9, epsilon=1e-5, use_fast_variance=False, dtype=jnp.float32, rngs=rngs
        )
        self.output_dtype = dtype

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:  # pyright: ignore[reportIncompatibleMethodOverride]
        y = super().__call__(x.astype(jnp.float32), use_running_average=not train)
        return y.astype(self.output_dtype)
