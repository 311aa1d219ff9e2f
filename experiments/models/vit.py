"""Vision Transformers: patches of an image as tokens, and blocks of attention and a perceptron that normalise first.

Dosovitskiy et al., "An Image is Worth 16x16 Words", 2020, arXiv 2010.11929, section 3.1; the smallest network for
224x224 images and stochastic depth as in Touvron et al., 2020, arXiv 2012.12877. Kernels of the blocks start
Glorot-uniform, biases 0; LayerNorm has epsilon 1e-6; GELU is exact.
"""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.models.conv import conv_general_dilated

Pooling = Literal["token", "mean"]


class LayerNorm(nnx.LayerNorm):
    """LayerNorm with epsilon 1e-6 that takes its statistics and normalises in float32, whatever it gets."""

    def __init__(self, features: int, *, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs):
        super().__init__(features, epsilon=1e-6, use_fast_variance=False, dtype=jnp.float32, rngs=rngs)
        self.output_dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().__call__(x.astype(jnp.float32)).astype(self.output_dtype)


class Embedding(nnx.Module):
    """Images as tokens: a convolution that sees each patch once, a class token, and what is learned of positions."""

    def __init__(
        self,
        patch: int,
        width: int,
        *,
        use_token: bool,
        image_size: int,
        channels: int,
        dtype,
        rngs: nnx.Rngs,
    ):
        self.patches = nnx.Conv(
            channels,
            width,
            (patch, patch),
            patch,
            padding="VALID",
            dtype=dtype,
            conv_general_dilated=conv_general_dilated,
            rngs=rngs,
        )
        self.class_token = nnx.Param(jnp.zeros((1, 1, width))) if use_token else None
        tokens = (image_size // patch) ** 2 + use_token
        self.position = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (1, tokens, width)))

    def __call__(self, images: jax.Array) -> jax.Array:
        x = self.patches(images)
        x = x.reshape(len(x), -1, x.shape[-1])
        if self.class_token is not None:
            token = jnp.broadcast_to(self.class_token[...].astype(x.dtype), (len(x), 1, x.shape[-1]))
            x = jnp.concatenate([token, x], axis=1)
        return x + self.position[...].astype(x.dtype)


class Block(nnx.Module):
    """x + attention(norm(x)), and then x + perceptron(norm(x)) with four times as many hidden features."""

    def __init__(self, width: int, heads: int, *, dtype, rngs: nnx.Rngs):
        glorot = nnx.initializers.xavier_uniform()
        linear = partial(nnx.Linear, dtype=dtype, kernel_init=glorot, rngs=rngs)
        self.norm1 = LayerNorm(width, dtype=dtype, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            heads, width, dtype=dtype, kernel_init=glorot, decode=False, keep_rngs=False, rngs=rngs
        )
        self.norm2 = LayerNorm(width, dtype=dtype, rngs=rngs)
        self.mlp_in = linear(width, 4 * width)
        self.mlp_out = linear(4 * width, width)

    def __call__(self, x: jax.Array, keep: jax.Array | None = None) -> jax.Array:
        """Tokens [n, tokens, width] to tokens; `keep` are factors [2, n, 1, 1] of the two branches, if any."""
        branch = self.attention(self.norm1(x))
        x = x + (branch if keep is None else keep[0] * branch)
        branch = self.mlp_out(nnx.gelu(self.mlp_in(self.norm2(x)), approximate=False))
        return x + (branch if keep is None else keep[1] * branch)


class VisionTransformer(nnx.Module):
    """Embedding, blocks, LayerNorm, class token or mean over the tokens, linear layer.

    Attributes:
      encoder: the blocks, one by one; or
      stacked_encoder: one block whose parameters have a leading axis that counts the blocks. The network is the
        same and starts from the same weights; one block is compiled in place of all.
      stochastic_depth: how often the last block's branches are dropped in training.
    """

    def __init__(
        self,
        *,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        pooling: Pooling,
        stacked: bool = False,
        stochastic_depth: float = 0.0,
        num_classes: int,
        channels: int,
        image_size: int,
        dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
          patch: height and width of a patch.
          width: features of a token.
          heads: of the attention; they share the features.
          pooling: what the last layer sees, a class token or the mean of all tokens.
          stacked: whether the blocks' parameters are stacked.
          stochastic_depth: rate at which the last block's branches are dropped in training; it rises from 0 at
            the first block. The network then needs `key` in training.
          image_size: height and width of the images, a multiple of `patch`.
          dtype: of the computation; parameters are float32.
          rngs: stream 'params' initialises the parameters.
        """
        if image_size % patch:
            raise ValueError(
                f"image_size must be a multiple of {patch} for patches of {patch}, got {image_size}"
            )
        if not 0 <= stochastic_depth < 1:
            raise ValueError(f"stochastic_depth must be from 0 to less than 1, got {stochastic_depth}")
        self.depth = depth
        self.pooling = pooling
        self.stochastic_depth = stochastic_depth
        self.embedding = Embedding(
            patch,
            width,
            use_token=pooling == "token",
            image_size=image_size,
            channels=channels,
            dtype=dtype,
            rngs=rngs,
        )
        blocks = [Block(width, heads, dtype=dtype, rngs=rngs) for _ in range(depth)]
        self.encoder = None if stacked else nnx.List(blocks)
        self.stacked_encoder = stack(blocks) if stacked else None
        self.norm = LayerNorm(width, dtype=dtype, rngs=rngs)
        self.to_logits = nnx.Linear(width, num_classes, dtype=dtype, rngs=rngs)

    def __call__(self, images: jax.Array, *, train: bool, key: jax.Array | None = None) -> jax.Array:
        x = self.embedding(images)
        x = self.encode(x, self.draw_depth(key, len(x), x.dtype) if train else None)
        x = self.norm(x)
        pooled = x[:, 0] if self.pooling == "token" else jnp.mean(x, axis=1)
        return self.to_logits(pooled).astype(jnp.float32)

    def encode(self, x: jax.Array, keep: jax.Array | None) -> jax.Array:
        """All blocks in turn; `keep` are the factors [depth, 2, n, 1, 1] of their branches, if there are any."""
        if self.encoder is not None:
            for i, block in enumerate(self.encoder):
                x = block(x, None if keep is None else keep[i])
            return x

        @nnx.scan(in_axes=(0, nnx.Carry, None if keep is None else 0), out_axes=nnx.Carry)
        def encode(block, x, keep):
            return block(x, keep)

        return encode(self.stacked_encoder, x, keep)

    def draw_depth(self, key: jax.Array | None, count: int, dtype) -> jax.Array | None:
        """Draws for every image which branches stay, as factors whose mean is 1; `None` if all do."""
        if self.stochastic_depth == 0:
            return None
        if key is None:
            raise ValueError("a network with stochastic depth needs key in training")
        stays = 1 - self.stochastic_depth * jnp.linspace(0, 1, self.depth).reshape(-1, 1, 1, 1, 1)
        kept = jax.random.bernoulli(key, stays, (self.depth, 2, count, 1, 1))
        return jnp.where(kept, 1 / stays, 0).astype(dtype)


def stack(blocks: list[Block]) -> Block:
    """One block whose parameters are those of all blocks, along a new leading axis."""
    graphdef, first = nnx.split(blocks[0])
    states = [first, *(nnx.state(block) for block in blocks[1:])]
    return nnx.merge(graphdef, jax.tree.map(lambda *leaves: jnp.stack(leaves), *states))
