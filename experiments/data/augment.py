"""What happens to a batch of images on the device: pure functions for use inside `jax.jit`."""

import jax
import jax.numpy as jnp

from experiments.run import AUGMENTATIONS

PADDING = 4


def normalize(images: jax.Array, mean: jax.typing.ArrayLike, std: jax.typing.ArrayLike) -> jax.Array:
    """Turns uint8 images into float32 with zero mean and unit standard deviation per channel.

    Args:
      images: uint8 [n, height, width, channels].
      mean: [channels], where 255 counts as 1.
      std: [channels], in the same unit.

    Returns:
      (images / 255 - mean) / std, float32.
    """
    mean = jnp.asarray(mean, jnp.float32).reshape(1, 1, 1, -1)
    std = jnp.asarray(std, jnp.float32).reshape(1, 1, 1, -1)
    return (images.astype(jnp.float32) / 255 - mean) / std


def augment(images: jax.Array, key: jax.Array, kind: str) -> jax.Array:
    """Changes every image at random, on its own.

    Args:
      images: uint8 [n, height, width, channels].
      key: decides everything; the same key gives the same images.
      kind: 'none'; 'flip' for a horizontal flip of every second image on average; 'crop_flip' for a crop
        of the original size out of the image padded by four black pixels on every side, and then the flip;
        or 'flip_rotate' for one of the eight orientations of a square, each equally likely: horizontal
        flip, vertical flip and quarter turns. These images must be square.

    Returns:
      Images of the same shape and dtype.

    Raises:
      ValueError: `kind` is unknown, or does not go with the shape of the images.
    """
    if kind not in AUGMENTATIONS:
        raise ValueError(f"unknown augmentation {kind!r}; choose from {', '.join(AUGMENTATIONS)}")
    if kind == "none":
        return images
    if kind == "flip_rotate":
        if images.shape[1] != images.shape[2]:
            raise ValueError(f"augment 'flip_rotate' needs square images, got {images.shape[1:3]}")
        return turn(images, jax.random.bernoulli(key, shape=(3, len(images))))
    crop_key, flip_key = jax.random.split(key)
    if kind == "crop_flip":
        images = crop(images, jax.random.randint(crop_key, (len(images), 2), 0, 2 * PADDING + 1))
    return flip(images, jax.random.bernoulli(flip_key, shape=(len(images),)))


def augment_both(images: jax.Array, labels: jax.Array, key: jax.Array, kind: str):
    """Changes images as `augment` does, and labels alike where these are masks [n, height, width]."""
    if labels.ndim == 3:
        labels = augment(labels[..., None], key, kind)[..., 0]  # the same key: the same changes
    return augment(images, key, kind), labels


def crop(images: jax.Array, offsets: jax.Array) -> jax.Array:
    """Crops image i of the padded images from row offsets[i, 0], column offsets[i, 1], each 0 to 8."""
    padded = jnp.pad(images, ((0, 0), (PADDING, PADDING), (PADDING, PADDING), (0, 0)))

    def crop_one(image, offset):
        return jax.lax.dynamic_slice(image, (offset[0], offset[1], 0), images.shape[1:])

    return jax.vmap(crop_one)(padded, offsets)


def flip(images: jax.Array, is_flipped: jax.Array) -> jax.Array:
    """Mirrors left and right the images that a boolean [n] marks."""
    return jnp.where(is_flipped[:, None, None, None], images[:, :, ::-1], images)


def turn(images: jax.Array, choices: jax.Array) -> jax.Array:
    """Mirrors left and right, then top and bottom, then along the diagonal, where booleans [3, n] say so."""
    left_right, top_bottom, diagonal = choices[:, :, None, None, None]
    images = jnp.where(left_right, images[:, :, ::-1], images)
    images = jnp.where(top_bottom, images[:, ::-1], images)
    return jnp.where(diagonal, images.swapaxes(1, 2), images)
