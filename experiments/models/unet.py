"""U-Net: an encoder, a decoder, and a skip connection between them at every resolution.

Ronneberger, Fischer and Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation", 2015, arXiv
1505.04597. As is usual since, convolutions are padded, so that the mask has the size of the image, and each is
followed by a normalizer. Kernels start He-normal (fan-in), as in the paper.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.models.layers import conv
from experiments.models.signal_propagation.normalizers import ConvLayer, Normalization

LEVELS = 4


class DoubleConv(nnx.Module):
    """Two 3x3 convolutions, each with normalizer and activation."""

    def __init__(self, in_features: int, features: int, **options):
        self.layer1 = ConvLayer(in_features, features, 1, **options)
        self.layer2 = ConvLayer(features, features, 1, **options)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return self.layer2(self.layer1(x, train=train), train=train)


class UpConv(nnx.Module):
    """A transposed 2x2 convolution of stride 2: every pixel becomes a square of four.

    The squares do not overlap, so that it is one matrix product, which is fast everywhere.
    """

    def __init__(self, in_features: int, features: int, *, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs):
        # Each output pixel depends on one input pixel, so the four positions do not count in the fan-in.
        initialize = nnx.initializers.he_normal(batch_axis=(0, 1))
        self.kernel = nnx.Param(initialize(rngs.params(), (2, 2, in_features, features)))
        self.bias = nnx.Param(jnp.zeros(features))
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        n, height, width, _ = x.shape
        squares = jnp.einsum("nhwi,abio->nhawbo", x.astype(self.dtype), self.kernel[...].astype(self.dtype))
        y = squares.reshape(n, 2 * height, 2 * width, -1).astype(jnp.float32)
        return y + self.bias[...].reshape(1, 1, 1, -1)


class UNet(nnx.Module):
    """Four levels down by max-pooling, four levels up, and a 1x1 convolution to one logit per pixel.

    Attributes:
      encoder: `encoder[i]` is a `DoubleConv` of width * 2**i features; the last one is the bottom.
      ups: `UpConv`s, from the bottom to the top.
      decoder: `DoubleConv`s, each after the `UpConv` of its place.
      to_logits: the 1x1 convolution.
    """

    def __init__(
        self,
        width: int,
        *,
        normalization: Normalization,
        num_classes: int,
        channels: int,
        dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
          width: features of the first level; the paper's network has 64.
          normalization: of every 3x3 convolution.
          num_classes: at most 2, background and object: there is one logit, that of the object.
          dtype: of the convolutions; parameters, statistics and normalizers are float32.
          rngs: stream 'params' initialises the parameters.
        """
        if num_classes > 2:
            raise ValueError(
                f"a U-Net tells one kind of object from the background, got {num_classes} classes"
            )
        options = {"normalization": normalization, "dtype": dtype, "rngs": rngs}
        features = [width * 2**level for level in range(LEVELS + 1)]
        self.encoder = nnx.List(
            DoubleConv(before, after, **options)
            for before, after in zip([channels, *features], features, strict=False)
        )
        self.ups = nnx.List()
        self.decoder = nnx.List()
        for level in reversed(range(LEVELS)):
            self.ups.append(UpConv(features[level + 1], features[level], dtype=dtype, rngs=rngs))
            self.decoder.append(DoubleConv(2 * features[level], features[level], **options))
        self.to_logits = conv(width, 1, 1, use_bias=True, dtype=dtype, rngs=rngs)

    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Logits, float32 [n, height, width, 1], of images [n, height, width, channels] of any size."""
        *encoder, bottom = self.encoder
        x = images
        skips = []
        for block in encoder:
            x = block(x, train=train)
            skips.append(x)
            # Padding an odd size at its end keeps the last row; the decoder crops to the original size.
            x = nnx.max_pool(x, (2, 2), strides=(2, 2), padding="SAME")
        x = bottom(x, train=train)
        for up, block in zip(self.ups, self.decoder, strict=True):
            skip = skips.pop()
            _, height, width, _ = skip.shape
            x = block(jnp.concatenate([skip, up(x)[:, :height, :width]], axis=-1), train=train)
        return self.to_logits(x).astype(jnp.float32)
