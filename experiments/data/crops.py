"""Encoded images of any size become squares of one size: decoded, cropped, resized and flipped."""

import math
from typing import NamedTuple

import numpy as np

from experiments.pictures import open_image, turn_upright, upright_size

# The random-resized crop's, from Szegedy et al., "Going Deeper with Convolutions", 2014, arXiv 1409.4842, section 6.
SMALLEST_AREA = 0.08
LARGEST_RATIO = 4 / 3
TRIES = 10
# The centre crop's: 224 of 256 pixels.
CENTRE = 0.875


class Box(NamedTuple):
    """A part of an image, in its pixels."""

    left: float
    top: float
    width: float
    height: float


def centre_box(width: int, height: int) -> Box:
    """The square in the middle whose side is 87.5 % of the shorter side of the image."""
    side = CENTRE * min(width, height)
    return Box((width - side) / 2, (height - side) / 2, side, side)


def random_box(width: int, height: int, draws: np.ndarray) -> Box:
    """A box of 8 to 100 % of the area whose sides have a ratio from 3/4 to 4/3, as torchvision draws it.

    Args:
      draws: numbers from 0 to less than 1, [10, 4]: four for each try.

    Returns:
      The first of the ten boxes that lies in the image; if none does, the largest one in the middle.
    """
    for area_draw, ratio_draw, left_draw, top_draw in draws.tolist():
        area = width * height * (SMALLEST_AREA + (1 - SMALLEST_AREA) * area_draw)
        ratio = LARGEST_RATIO ** (2 * ratio_draw - 1)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(left_draw * (width - w + 1)), int(top_draw * (height - h + 1)), w, h)
    w, h = min(width, height * LARGEST_RATIO), min(height, width * LARGEST_RATIO)
    return Box((width - w) / 2, (height - h) / 2, w, h)


def draw(seed: int, epoch: int, record: int) -> tuple[np.ndarray, bool]:
    """What is left to chance in one record of one epoch, and depends on nothing else.

    Args:
      seed: of the run, less than 2**32.
      epoch: epochs done, less than 2**32.
      record: index in the split, less than 2**64.

    Returns:
      Draws for `random_box`, and whether the image is flipped.
    """
    # Raw numbers of Philox never change between versions of NumPy, unlike those of its distributions.
    key = np.array([seed << 32 | epoch, record], np.uint64)
    raw = np.random.Philox(key=key).random_raw(4 * TRIES + 1)
    uniform = (raw >> np.uint64(11)) * 2.0**-53
    return uniform[1:].reshape(TRIES, 4), bool(uniform[0] < 0.5)


def decode(encoded: bytes, size: int, chance: tuple[np.ndarray, bool] | None = None) -> np.ndarray:
    """Decodes an image, turns it upright as viewers show it, and takes one square out of it.

    Args:
      encoded: a JPEG, or any other format that Pillow reads; grey and CMYK become RGB.
      size: height and width of the square, in pixels.
      chance: from `draw`, for a random-resized crop and perhaps a flip; `None` takes the centre.

    Returns:
      uint8 [size, size, 3].

    Raises:
      Exception: of one of the many kinds that Pillow raises for what is no whole image.
    """
    from PIL import Image

    with open_image(encoded) as image:
        stored_width = image.width
        width, height = upright_size(image)
        box = centre_box(width, height) if chance is None else random_box(width, height, chance[0])
        # The JPEG decoder shrinks by 2, 4 or 8 at little cost; the crop keeps at least its final size.
        shrink = max(1.0, min(box.width, box.height) / size)
        drafted = image.draft("RGB", (math.ceil(image.width / shrink), math.ceil(image.height / shrink)))
        # Exactly 1, 1/2, 1/4 or 1/8: not the quotient of the sizes, which are rounded up.
        scale = drafted[1][2] / stored_width if drafted else 1.0
        turn_upright(image)
        # Rounding must not put the far edges outside.
        right = min((box.left + box.width) * scale, image.size[0])
        bottom = min((box.top + box.height) * scale, image.size[1])
        part = (box.left * scale, box.top * scale, right, bottom)
        rgb = image if image.mode == "RGB" else image.convert("RGB")
        square = np.asarray(rgb.resize((size, size), Image.Resampling.BILINEAR, box=part))
    return square[:, ::-1] if chance is not None and chance[1] else square


def check(encoded: bytes) -> None:
    """Decodes the whole of an image, as small as its format allows.

    Raises:
      Exception: as `decode`.
    """
    with open_image(encoded) as image:
        image.draft("RGB", (1, 1))
        turn_upright(image)
