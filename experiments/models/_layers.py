"""The layers all models are built from."""

import jax
from flax import nnx


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
        rngs=rngs,
    )


def batch_norm(features: int, *, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs) -> nnx.BatchNorm:
    """BatchNorm with momentum 0.9 and epsilon 1e-5; its running variance is the population variance."""
    return nnx.BatchNorm(features, momentum=0.9, epsilon=1e-5, dtype=dtype, rngs=rngs)
