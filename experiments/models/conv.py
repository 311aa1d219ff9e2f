"""A convolution whose gradients are fast on CPU.

XLA on CPU runs a convolution fast in one layout only: images [n, height, width, in], kernel
[height, width, in, out]. The gradients of `lax.conv_general_dilated` come in other layouts. At the top level
of a program XLA pays with transposes of whole batches (a third of a ResNet's step); inside a loop, such as
a `lax.scan` over the steps of an epoch, it falls back to a naive convolution, many times slower.
Here both gradients are written in terms that are fast everywhere.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

LAYOUT = ("NHWC", "HWIO", "NHWC")
# Patches of a few images fit a core's cache; those of a whole batch would fill the memory.
PATCH_BYTES = 4 * 2**20
# The same limit for the images and output gradients in one step of the kernel's gradient.
CHUNK = 16


def conv_general_dilated(
    images: jax.Array, kernel: jax.Array, strides, padding, *, dimension_numbers=LAYOUT, **options
) -> jax.Array:
    """`lax.conv_general_dilated` as `flax.nnx.Conv` calls it, with gradients that are fast on CPU.

    Args:
      images: the first argument of `lax.conv_general_dilated`, and so on.
      kernel: of the same dtype.
      strides: one for each spatial axis.
      padding: a pair for each spatial axis, or 'SAME' or 'VALID'.
      dimension_numbers: those of NHWC images; others, other numbers of axes and accelerators take the
        function of `lax` as it is.
      **options: as for that function; so do groups and dilation.

    Returns:
      What `lax.conv_general_dilated` gives, to rounding; so are the gradients.
    """
    if jax.default_backend() != "cpu" or not images.size or not _is_plain(dimension_numbers, options):
        return lax.conv_general_dilated(
            images, kernel, strides, padding, dimension_numbers=dimension_numbers, **options
        )
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(images.shape[1:3], kernel.shape[:2], strides, padding)
    strides, padding = tuple(strides), tuple(tuple(pair) for pair in padding)
    height, width, _, features = kernel.shape
    if images.shape[1] < height or images.shape[2] < width:
        # Small images, as in VGG's last layers: XLA's own convolution takes a hundred times as long there.
        return _patches(images, height, width, strides, padding) @ kernel.reshape(-1, features)
    return _conv(images, kernel, strides, padding)


def _is_plain(dimension_numbers, options) -> bool:
    plain = {"lhs_dilation": (1, 1), "rhs_dilation": (1, 1), "feature_group_count": 1}
    if not all(value is None or value == plain.get(name) for name, value in options.items()):
        return False
    if not isinstance(dimension_numbers, lax.ConvDimensionNumbers):
        return dimension_numbers == LAYOUT
    return dimension_numbers == lax.conv_dimension_numbers((1,) * 4, (1,) * 4, LAYOUT)


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _conv(images, kernel, strides, padding):
    return lax.conv_general_dilated(images, kernel, strides, padding, dimension_numbers=LAYOUT)


# A forward-mode rule: JAX transposes it, so that every mode of differentiation works.
@_conv.defjvp
def _conv_jvp(strides, padding, primals, tangents):
    images, kernel = primals
    images_dot, kernel_dot = tangents
    by_images = _conv_by_images(images_dot, kernel, strides, padding)
    # The patches of a 1x1 kernel are the pixels themselves.
    convolve = conv_by_patches if kernel.shape[:2] == (1, 1) else _conv_by_kernel
    by_kernel = convolve(images, kernel_dot, strides, padding)
    return _conv(images, kernel, strides, padding), by_images + by_kernel


def _conv_by_images(images, kernel, strides, padding):
    """The convolution, in an order whose transpose, the gradient of the images, is in the fast order."""
    if any(stride > 1 for stride in strides):
        swapped = ("NHWC", "HWOI", "NHWC")
        return lax.conv_general_dilated(images, kernel.mT, strides, padding, dimension_numbers=swapped)
    # Reversed before it is transposed: XLA would merge a later reversal into the convolution, which is slow.
    kernel_back = kernel[::-1, ::-1].mT
    padding_back = [
        (size - 1 - low, size - 1 - high) for size, (low, high) in zip(kernel.shape[:2], padding, strict=True)
    ]

    def gradient(outputs):
        return lax.conv_general_dilated(outputs, kernel_back, strides, padding_back, dimension_numbers=LAYOUT)

    outputs = jax.eval_shape(partial(_conv, strides=strides, padding=padding), images, kernel)
    return jax.linear_transpose(gradient, outputs)(images)[0]


def _conv_by_kernel(images, kernel, strides, padding):
    """The convolution in an order whose transpose, the gradient of the kernel, is in the fast order.

    That gradient is a convolution too: the features of the images are its batch, and the images its features.
    """
    # Summed in at least single precision: XLA on CPU would sum half precision in half precision.
    dtype = jnp.float32 if jnp.finfo(kernel.dtype).bits < 32 else kernel.dtype
    kernel = kernel.astype(dtype).transpose(2, 0, 1, 3)

    # The backward pass keeps the images, not their transposed copies.
    @jax.checkpoint
    def convolve(some_images):
        outputs = lax.conv_general_dilated(
            some_images.transpose(3, 1, 2, 0).astype(dtype),
            kernel,
            strides,
            padding,
            dimension_numbers=("CHWN", "IHWO", "HWNC"),
        )
        return outputs.transpose(2, 0, 1, 3).astype(images.dtype)

    chunk = _largest_divisor(len(images), CHUNK)
    outputs = lax.map(convolve, images.reshape(-1, chunk, *images.shape[1:]))
    return outputs.reshape(-1, *outputs.shape[2:])


def conv_by_patches(images, kernel, strides, padding):
    """The convolution as matrix products: its transpose, the gradient of the kernel, is one too."""
    height, width, _, features = kernel.shape
    # Products and sums in at least single precision: XLA on CPU would sum half precision in half precision.
    dtype = jnp.float32 if jnp.finfo(kernel.dtype).bits < 32 else kernel.dtype
    matrix = kernel.astype(dtype).reshape(-1, features).T

    # The backward pass keeps the images, not their patches.
    @jax.checkpoint
    def convolve(some_images):
        patches = _patches(some_images, height, width, strides, padding)
        return (patches.astype(dtype) @ matrix.T).astype(kernel.dtype)

    take_patches = partial(_patches, height=height, width=width, strides=strides, padding=padding)
    shape = jax.eval_shape(take_patches, images)
    bytes_per_image = shape.size * shape.dtype.itemsize // len(images)
    chunk = _largest_divisor(len(images), PATCH_BYTES // bytes_per_image)
    chunks = images.reshape(-1, chunk, *images.shape[1:])
    return lax.map(convolve, chunks).reshape(*shape.shape[:-1], features)


def _patches(images, height, width, strides, padding):
    """What each output pixel sees: [n, out_height, out_width, height * width * in]."""
    padded = jnp.pad(images, ((0, 0), *padding, (0, 0)))
    rows = padded.shape[1] - height + 1
    columns = padded.shape[2] - width + 1
    shifted = [
        padded[:, row : row + rows : strides[0], column : column + columns : strides[1]]
        for row in range(height)
        for column in range(width)
    ]
    return jnp.concatenate(shifted, axis=-1)


def _largest_divisor(number: int, limit: int) -> int:
    return next((divisor for divisor in range(min(number, limit), 1, -1) if number % divisor == 0), 1)
