"""Networks without skip connections, with any normalizer.

Lubana, Dick and Tanaka, "Beyond BatchNorm", 2021, arXiv 2106.05956, Appendix A (10 and 20 layers) and Section 4 (30
layers of one width). Every layer is a 3x3 convolution, a normalizer and its activation.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.models.signal_propagation.normalizers import ConvLayer, Normalization

# Features, in units of the width, and stride of each layer.
CNN10 = ((1, 1), (1, 2), (2, 1), (2, 2), (4, 1), (4, 2), (8, 1), (8, 2), (8, 1), (8, 1))
CNN20 = (
    *((1, 1), (1, 1), (1, 1), (1, 2)),
    *((2, 1), (2, 1), (2, 1), (2, 2)),
    *((4, 1), (4, 1), (4, 1), (4, 2)),
    *((4, 1), (4, 1), (4, 1), (4, 2)),
    *((8, 1), (8, 1), (8, 1), (8, 1)),
)
UNIFORM30 = ((1, 1),) * 30
SHAPES = {"cnn10": CNN10, "cnn20": CNN20, "uniform30": UNIFORM30}


class PlainNetwork(nnx.Module):
    """Layers one after another, mean over the image, linear layer.

    Attributes:
      layers: each a convolution with normalizer and activation.
      to_logits: the linear layer.
    """

    def __init__(
        self,
        shape: tuple[tuple[int, int], ...],
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
          shape: for each layer, how many times the width it has as features, and its stride.
          width: features of the first layer; the paper's networks have 64.
          normalization: of every layer.
          dtype: of the convolutions; parameters, statistics and normalizers are float32.
          rngs: stream 'params' initialises the parameters.
        """
        self.layers = nnx.List()
        for multiple, strides in shape:
            features = multiple * width
            self.layers.append(
                ConvLayer(channels, features, strides, normalization=normalization, dtype=dtype, rngs=rngs)
            )
            channels = features
        self.to_logits = nnx.Linear(channels, num_classes, dtype=dtype, rngs=rngs)

    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = images
        for layer in self.layers:
            x = layer(x, train=train)
        return self.to_logits(jnp.mean(x, axis=(1, 2))).astype(jnp.float32)
