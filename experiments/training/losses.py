"""Losses of binary segmentation, by name.

All take logits, float [n, height, width, 1], and targets, uint8 or boolean [n, height, width] where 1 is the
object, compute in float32, and give a float32 scalar that is finite, as is its gradient, for empty masks and
for logits that are right or wrong without doubt; for the cross-entropy in `bce_dice` the wrong logits must not add up
to more than float32 holds, 3.4e38. Overlaps are those of the whole batch, all its pixels
together: in a batch most slices may be without an object, where the overlap of a slice alone says little.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

# Added to numerator and denominator of an overlap: 1, a pixel, makes that of two empty masks 1.
SMOOTHING = 1.0
# Weights of false positives and false negatives in the Tversky index, here and among the scores: missing a pixel
# costs more, as lesions are small.
ALPHA, BETA = 0.3, 0.7


def bce_dice(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Binary cross-entropy, mean over all pixels, plus 1 - Dice coefficient of the batch.

    With probabilities p and targets t, the Dice coefficient is (2 sum p t + 1) / (sum p + sum t + 1).

    References:
      Milletari, Navab and Ahmadi, "V-Net: Fully Convolutional Neural Networks for Volumetric Medical Image
      Segmentation", 2016, arXiv 1606.04797, whose denominator has squares and no smoothing.
    """
    logits, targets = _prepare(logits, targets)
    cross_entropy = optax.sigmoid_binary_cross_entropy(logits, targets).mean()
    return cross_entropy + _miss(logits, targets, 0.5, 0.5, SMOOTHING / 2)


def tversky(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """1 - Tversky index of the batch: (TP + 1) / (TP + 0.3 FP + 0.7 FN + 1), of probabilities.

    References:
      Salehi, Erdogmus and Gholipour, "Tversky loss function for image segmentation using 3D fully
      convolutional deep networks", 2017, arXiv 1706.05721: alpha = 0.3 for false positives and beta = 0.7
      for false negatives were best there.
    """
    logits, targets = _prepare(logits, targets)
    return _miss(logits, targets, ALPHA, BETA, SMOOTHING)


LOSSES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "bce_dice": bce_dice,
    "tversky": tversky,
}


def _prepare(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both as float32 [n, height, width]."""
    if logits.shape != (*targets.shape, 1):
        raise ValueError(
            f"logits must have the shape of the targets and one channel, {(*targets.shape, 1)}, "
            f"got {logits.shape}"
        )
    return logits[..., 0].astype(jnp.float32), targets.astype(jnp.float32)


def _miss(logits: jax.Array, targets: jax.Array, alpha: float, beta: float, smoothing: float) -> jax.Array:
    """1 - (TP + smoothing) / (TP + alpha FP + beta FN + smoothing), without a difference of like numbers."""
    # Not 1 - sigmoid(logits), which has lost all digits where the logits are large.
    object_, background = jax.nn.sigmoid(logits), jax.nn.sigmoid(-logits)
    true_positive = jnp.sum(object_ * targets)
    missed = alpha * jnp.sum(object_ * (1 - targets)) + beta * jnp.sum(background * targets)
    return missed / (true_positive + missed + smoothing)
