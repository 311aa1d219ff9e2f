"""Residual networks: the CIFAR family with 6n+2 layers, and the bottleneck networks made for ImageNet.

He et al., "Deep Residual Learning for Image Recognition", 2015, arXiv 1512.03385, sections 4.1 and 4.2.
Convolutions start He-normal (fan-in) and have no bias; BatchNorm has momentum 0.9 and epsilon 1e-5.
"""

import abc
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.models.layers import BatchNorm, conv

Shortcut = Literal["projection", "none"]


class Projection(nnx.Module):
    """Shortcut for a block that changes the shape: a 1x1 convolution and BatchNorm (option B)."""

    def __init__(self, in_features: int, out_features: int, strides: int, *, dtype, rngs: nnx.Rngs):
        self.conv = conv(in_features, out_features, 1, strides, dtype=dtype, rngs=rngs)
        self.norm = BatchNorm(out_features, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return self.norm(self.conv(x), train=train)


class Block(nnx.Module):
    """A residual block: relu(branch(x) + shortcut(x)), or relu(branch(x)) in a plain network."""

    def __init__(
        self, in_features: int, out_features: int, strides: int, *, shortcut: Shortcut, dtype, rngs: nnx.Rngs
    ):
        self.plain = shortcut == "none"
        changes_shape = strides != 1 or in_features != out_features
        self.projection = (
            Projection(in_features, out_features, strides, dtype=dtype, rngs=rngs)
            if shortcut == "projection" and changes_shape
            else None
        )

    @abc.abstractmethod
    def branch(self, x: jax.Array, *, train: bool) -> jax.Array:
        """The residual branch, before the addition; each kind of block has its own."""

    def shortcut(self, x: jax.Array, *, train: bool) -> jax.Array:
        """What is added to the branch: the identity, or the projection where the shape changes."""
        if self.plain:
            raise ValueError("a block of a plain network has no shortcut")
        return x if self.projection is None else self.projection(x, train=train)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = self.branch(x, train=train)
        if not self.plain:
            y = y + self.shortcut(x, train=train)
        return nnx.relu(y)


class BasicBlock(Block):
    """Two 3x3 convolutions."""

    expansion = 1

    def __init__(
        self, in_features: int, features: int, strides: int, *, shortcut: Shortcut, dtype, rngs: nnx.Rngs
    ):
        self.conv1 = conv(in_features, features, 3, strides, dtype=dtype, rngs=rngs)
        self.norm1 = BatchNorm(features, dtype=dtype, rngs=rngs)
        self.conv2 = conv(features, features, 3, dtype=dtype, rngs=rngs)
        self.norm2 = BatchNorm(features, dtype=dtype, rngs=rngs)
        super().__init__(in_features, features, strides, shortcut=shortcut, dtype=dtype, rngs=rngs)

    def branch(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = nnx.relu(self.norm1(self.conv1(x), train=train))
        return self.norm2(self.conv2(x), train=train)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def scale_gradient(x: jax.Array, factor: float) -> jax.Array:
    """The array as it is, to the bit; in the backward pass its gradient is multiplied by the factor."""
    del factor
    return x


# A forward-mode rule: JAX transposes it, so that every mode of differentiation works.
@scale_gradient.defjvp
def _scale_gradient_jvp(factor, primals, tangents):
    (x,), (x_dot,) = primals, tangents
    return x, factor * x_dot


class OverlapBlock(BasicBlock):
    """A basic block in which the gradient that leaves the shortcut, for the block's input, is multiplied by 1.5.

    That is how Yun, "Mitigating Gradient Overlap in Deep Residual Networks", 2024, arXiv 2410.21564, equation 31,
    simulates gradient overlap. A projection's own weights get their gradient as it is.
    """

    amplification = 1.5

    def shortcut(self, x: jax.Array, *, train: bool) -> jax.Array:
        return super().shortcut(scale_gradient(x, self.amplification), train=train)


class BottleneckBlock(Block):
    """1x1, 3x3 (which has the stride) and 1x1 convolutions; four times as many features leave it."""

    expansion = 4

    def __init__(
        self, in_features: int, features: int, strides: int, *, shortcut: Shortcut, dtype, rngs: nnx.Rngs
    ):
        out_features = features * self.expansion
        self.conv1 = conv(in_features, features, 1, dtype=dtype, rngs=rngs)
        self.norm1 = BatchNorm(features, dtype=dtype, rngs=rngs)
        self.conv2 = conv(features, features, 3, strides, dtype=dtype, rngs=rngs)
        self.norm2 = BatchNorm(features, dtype=dtype, rngs=rngs)
        self.conv3 = conv(features, out_features, 1, dtype=dtype, rngs=rngs)
        self.norm3 = BatchNorm(out_features, dtype=dtype, rngs=rngs)
        super().__init__(in_features, out_features, strides, shortcut=shortcut, dtype=dtype, rngs=rngs)

    def branch(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = nnx.relu(self.norm1(self.conv1(x), train=train))
        x = nnx.relu(self.norm2(self.conv2(x), train=train))
        return self.norm3(self.conv3(x), train=train)


class ResNet(nnx.Module):
    """Stem, stages of residual blocks, mean over the image, linear layer.

    Attributes:
      stages: `stages[s][b]` is a block, with methods `branch` and `shortcut`; every stage but the first
        halves the image.
      to_logits: the linear layer. (Named so that the names of layers sort in the network's order.)
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[BottleneckBlock],
        blocks_per_stage: tuple[int, ...],
        features_per_stage: tuple[int, ...],
        *,
        shortcut: Shortcut,
        small_stem: bool,
        num_classes: int,
        channels: int,
        dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
          features_per_stage: width of each stage; a bottleneck block gives four times as many.
          shortcut: of blocks that change the shape; 'none' drops every skip connection.
          small_stem: a 3x3 convolution, for small images, in place of 7x7 with stride 2 and max-pooling.
          dtype: of the computation; parameters and statistics are float32.
          rngs: stream 'params' initialises the parameters.
        """
        self.small_stem = small_stem
        width = features_per_stage[0]
        kernel_size, strides = (3, 1) if small_stem else (7, 2)
        self.conv = conv(channels, width, kernel_size, strides, dtype=dtype, rngs=rngs)
        self.norm = BatchNorm(width, dtype=dtype, rngs=rngs)
        self.stages = nnx.List()
        for stage, (depth, features) in enumerate(zip(blocks_per_stage, features_per_stage, strict=True)):
            blocks = nnx.List()
            for i in range(depth):
                strides = 2 if stage > 0 and i == 0 else 1
                blocks.append(block(width, features, strides, shortcut=shortcut, dtype=dtype, rngs=rngs))
                width = features * block.expansion
            self.stages.append(blocks)
        self.to_logits = nnx.Linear(width, num_classes, dtype=dtype, rngs=rngs)

    @property
    def blocks(self) -> list[Block]:
        """All blocks, from the images to the logits."""
        return [block for stage in self.stages for block in stage]

    def stem(self, images: jax.Array, *, train: bool) -> jax.Array:
        """What the first block gets."""
        x = nnx.relu(self.norm(self.conv(images), train=train))
        if self.small_stem:
            return x
        padding = ((1, 1), (1, 1))
        return nnx.max_pool(x, (3, 3), strides=(2, 2), padding=padding)  # pyright: ignore[reportArgumentType]

    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = self.stem(images, train=train)
        for block in self.blocks:
            x = block(x, train=train)
        return self.to_logits(jnp.mean(x, axis=(1, 2))).astype(jnp.float32)


def cifar_resnet(
    depth: int,
    *,
    block: type[BasicBlock] = BasicBlock,
    shortcut: Shortcut = "projection",
    image_size: int,
    **options,
) -> ResNet:
    """The CIFAR network with `depth` = 6n+2 layers: n basic blocks of 16, of 32 and of 64 features."""
    del image_size  # Any: the last layer sees the mean over the image.
    n, rest = divmod(depth - 2, 6)
    if n < 1 or rest:
        raise ValueError(f"depth must be 6n+2 (8, 14, 20, ...), got {depth}")
    return ResNet(block, (n, n, n), (16, 32, 64), shortcut=shortcut, small_stem=True, **options)


def bottleneck_resnet(depth: int, *, image_size: int, **options) -> ResNet:
    """ResNet-50 or ResNet-101, with stride 2 in the 3x3 convolution of a block as is usual today."""
    del image_size
    depths = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
    if depth not in depths:
        raise ValueError(f"depth must be one of {', '.join(map(str, depths))}, got {depth}")
    return ResNet(
        BottleneckBlock,
        depths[depth],
        (64, 128, 256, 512),
        shortcut="projection",
        small_stem=False,
        **options,
    )
