"""Residual networks with any normalizer, and two ways to keep their activations from growing.

Lubana, Dick and Tanaka, "Beyond BatchNorm", 2021, arXiv 2106.05956, Appendix A and Figure 3: the CIFAR family of He
et al. 2015, arXiv 1512.03385, twice as wide, and with a 3x3 convolution as shortcut where shapes change.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.models.signal_propagation.normalizers import ConvLayer, Normalization

RESIDUALS = ("skip_init", "nonlinearity_on_residual")


class NormalizedBlock(nnx.Module):
    """Two layers and a shortcut: activate(branch + shortcut).

    With 'skip_init' a learned gain, which starts at 0, multiplies the branch; with 'nonlinearity_on_residual' the
    branch is activated and nothing follows the addition: gain * activate(branch) + shortcut.
    """

    def __init__(self, in_features: int, features: int, strides: int, *, residual: frozenset[str], **options):
        self.activate_branch = "nonlinearity_on_residual" in residual
        self.layer1 = ConvLayer(in_features, features, strides, **options)
        self.layer2 = ConvLayer(features, features, 1, **options)
        self.gain = nnx.Param(jnp.zeros(())) if "skip_init" in residual else None
        changes_shape = strides != 1 or in_features != features
        self.projection = ConvLayer(in_features, features, strides, **options) if changes_shape else None

    def shortcut(self, x: jax.Array, *, train: bool) -> jax.Array:
        """What is added to the branch."""
        return x if self.projection is None else self.projection.normalized(x, train=train)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        activate = self.layer2.norm.activate
        branch = self.layer2.normalized(self.layer1(x, train=train), train=train)
        if self.activate_branch:
            branch = activate(branch, train=train)
        if self.gain is not None:
            branch = branch * self.gain[...]
        total = branch + self.shortcut(x, train=train)
        return total if self.activate_branch else activate(total, train=train)


class NormalizedResNet(nnx.Module):
    """First layer, three stages of residual blocks, mean over the image, linear layer.

    Attributes:
      input_layer: the first layer.
      stages: `stages[s][b]` is a block; every stage but the first halves the image.
      to_logits: the linear layer.
    """

    def __init__(
        self,
        depth: int,
        width: int,
        *,
        residual: frozenset[str],
        num_classes: int,
        channels: int,
        dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
        normalization: Normalization,
    ):
        """Builds the network.

        Args:
          depth: 6n+2 layers, for n blocks in each stage.
          width: features of the first stage; the paper's network has 32.
          residual: which of `RESIDUALS` its blocks have, see `NormalizedBlock`.
          dtype: of the convolutions; parameters, statistics and normalizers are float32.
          rngs: stream 'params' initialises the parameters.
          normalization: of every layer.
        """
        blocks, rest = divmod(depth - 2, 6)
        if blocks < 1 or rest:
            raise ValueError(f"depth must be 6n+2 (8, 14, 20, ...), got {depth}")
        options = {"normalization": normalization, "dtype": dtype, "rngs": rngs}
        self.input_layer = ConvLayer(channels, width, 1, **options)
        self.stages = nnx.List()
        features = width
        for stage in range(3):
            members = nnx.List()
            for block in range(blocks):
                strides = 2 if stage > 0 and block == 0 else 1
                in_features, features = features, width * 2**stage
                members.append(NormalizedBlock(in_features, features, strides, residual=residual, **options))
            self.stages.append(members)
        self.to_logits = nnx.Linear(features, num_classes, dtype=dtype, rngs=rngs)

    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = self.input_layer(images, train=train)
        for stage in self.stages:
            for block in stage:
                x = block(x, train=train)
        return self.to_logits(jnp.mean(x, axis=(1, 2))).astype(jnp.float32)
