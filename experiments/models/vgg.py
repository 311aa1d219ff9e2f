"""VGG-16 for small images, with and without BatchNorm.

Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", 2014,
arXiv 1409.1556, configuration D, with one linear layer in place of three as is usual for 32x32 images.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.models.layers import BatchNorm, conv

# Features of the convolutions between two max-poolings.
GROUPS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG(nnx.Module):
    """Thirteen 3x3 convolutions in five groups, each followed by max-pooling, and a linear layer."""

    def __init__(
        self,
        *,
        use_batch_norm: bool,
        num_classes: int,
        channels: int,
        image_size: int,
        dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
          use_batch_norm: BatchNorm between convolution and activation; otherwise convolutions have a bias.
          image_size: height and width of the images, a multiple of 32.
          dtype: of the computation; parameters and statistics are float32.
          rngs: stream 'params' initialises the parameters.
        """
        if image_size < 32 or image_size % 32:
            raise ValueError(f"image_size must be a multiple of 32 for VGG-16, got {image_size}")
        self.convs = nnx.List()
        self.norms = nnx.List()
        for features in (features for group in GROUPS for features in group):
            self.convs.append(
                conv(channels, features, 3, use_bias=not use_batch_norm, dtype=dtype, rngs=rngs)
            )
            if use_batch_norm:
                self.norms.append(BatchNorm(features, dtype=dtype, rngs=rngs))
            channels = features
        self.to_logits = nnx.Linear(channels * (image_size // 32) ** 2, num_classes, dtype=dtype, rngs=rngs)

    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = images
        layer = 0
        for group in GROUPS:
            for _ in group:
                x = self.convs[layer](x)
                if self.norms:
                    x = self.norms[layer](x, train=train)
                x = nnx.relu(x)
                layer += 1
            x = nnx.max_pool(x, (2, 2), strides=(2, 2))
        return self.to_logits(x.reshape(x.shape[0], -1)).astype(jnp.float32)
