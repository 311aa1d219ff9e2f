"""Image files of strangers: opened without running anything, without waiting, and within a bound."""

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path

from PIL import ExifTags, Image, ImageOps
from PIL.ImageFile import ImageFile

from experiments.files import open_regular

MOST_PIXELS = 2**26
# Pillow's own guard, which else only warns of images of up to twice as many.
Image.MAX_IMAGE_PIXELS = MOST_PIXELS
warnings.simplefilter("error", Image.DecompressionBombWarning)

# PostScript is a program; Pillow would have Ghostscript run it.
PROGRAMS = ("EPS",)
# The EXIF orientations that turn an image by a quarter.
QUARTER_TURNS = (5, 6, 7, 8)


@contextlib.contextmanager
def open_image(file: Path | bytes) -> Iterator[ImageFile]:
    """Opens an image of at most `MOST_PIXELS` pixels; it is decoded where it is used.

    Args:
      file: a regular file, or what it holds.

    Raises:
      Exception: of one of the many kinds that Pillow raises for what is no image, or as `files.open_regular`.
    """
    Image.init()
    formats = [name for name in Image.OPEN if name not in PROGRAMS]
    with io.BytesIO(file) if isinstance(file, bytes) else open_regular(file) as stream:
        try:
            image = Image.open(stream, formats=formats)
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise ValueError(f"it has too many pixels, at most {MOST_PIXELS:,} are read") from error
        with image:
            yield image


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an image that is not decoded yet, once `turn_upright` has turned it."""
    # Pillow gives the sizes of TIFF files as they will be.
    turns = image.format != "TIFF" and image.getexif().get(ExifTags.Base.Orientation) in QUARTER_TURNS
    return (image.height, image.width) if turns else (image.width, image.height)


def turn_upright(image: Image.Image) -> None:
    """Decodes an image and turns or mirrors it as its EXIF data say, so that it is as every viewer shows it."""
    ImageOps.exif_transpose(image, in_place=True)
