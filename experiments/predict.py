"""A trained network's answer to one image: a mask, or a class with its probability, and a picture of it."""

import json
import math
import re
import warnings
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from experiments import models, training
from experiments.data.augment import normalize
from experiments.files import first_line, in_words, write_whole
from experiments.pictures import open_image, turn_upright
from experiments.records import RunRecord
from experiments.report import style
from experiments.run import CROSS_ENTROPY
from experiments.training.metrics import THRESHOLD

MODES = {1: "L", 3: "RGB"}  # of Pillow, by number of channels
SMALLEST_OVERLAY = 256  # height and width in pixels: small images are magnified
LARGEST_OVERLAY = 4096  # height and width in pixels of what is magnified
MOST_MEMORY = 2**32  # bytes that a network may take for one image

Fit = Literal["resize", "as-is"]


def predict(
    record: RunRecord, records_folder: Path, image: Path, out: Path, fit: Fit | None = None
) -> dict[str, Any]:
    """Applies a run's network to an image and writes what it says.

    Args:
      records_folder: where the record and its checkpoint lie.
      image: of any format that Pillow reads, with 8 bits per channel.
      out: the mask, a PNG of the image's size with 255 where the object is, or for a network that
        classifies a JSON file. The picture is written beside it, as STEM_overlay.png.
      fit: for an image of another size than the training images: 'resize' scales it to theirs, and the
        probabilities of a mask back, 'as-is' takes it as it is.

    Returns:
      What the JSON file holds: 'class', its 'probability' and the 'probabilities' of all classes; or the
      'object_share' of a mask's pixels. Also 'out' and 'overlay', the files.

    Raises:
      ValueError: the image cannot be read, is of another size or too large for the network, whose answer is not a
        number, or a file's name has the wrong ending. Nothing is written then.
      FileError: the network cannot be read, or a file cannot be written.
    """
    overlay = out.with_name(f"{out.stem}_overlay.png")
    if image.resolve() in (out.resolve(), overlay.resolve()):
        raise ValueError(f"--out: {image} would be overwritten by what is predicted for it")
    model = training.load_model(record.run, out=records_folder)
    pixels = read_image(image, record.data["image_shape"][2])
    fitted = fit_image(record, image, pixels, fit)
    is_mask = record.run.loss != CROSS_ENTROPY
    ending = ".png" if is_mask else ".json"
    if out.suffix.lower() != ending:
        what = "a mask" if is_mask else "a class"
        raise ValueError(f"--out: this run predicts {what}, whose file has to end in {ending}, got {out}")
    trained_on = record.data
    try:
        probabilities = predict_probabilities(
            model, fitted[None], trained_on["mean"], trained_on["std"], MOST_MEMORY
        )[0]
    except MemoryError as error:
        raise ValueError(
            f"{image} is too large for {record.run.model}: {error}, at most {in_words(MOST_MEMORY)} are used; "
            f"--fit resize scales it"
        ) from error
    if not np.isfinite(probabilities).all():
        raise ValueError(f"{record.run.name} gives no numbers (NaN) for {image}: its checkpoint is of no use")
    if is_mask:
        mask = _resize(probabilities, pixels.shape[0], pixels.shape[1])[:, :, 0] > THRESHOLD
        answer: dict[str, Any] = {"object_share": round(float(mask.mean()), 6)}
        grey = Image.fromarray(mask.astype(np.uint8) * 255)
        write_whole(out, lambda file: grey.save(file, "PNG"))
        picture = draw_mask(pixels, mask)
    else:
        answer = {
            "class": int(probabilities.argmax()),
            "probability": round(float(probabilities.max()), 6),
            "probabilities": [round(p, 6) for p in probabilities.tolist()],
        }
        write_whole(out, lambda file: file.write((json.dumps(answer) + "\n").encode()))
        picture = draw_caption(pixels, f"class {answer['class']}, probability {answer['probability']:.3f}")
    write_whole(overlay, lambda file: picture.save(file, "PNG"))
    return {**answer, "out": str(out), "overlay": str(overlay)}


def predict_probabilities(
    model: nnx.Module,
    images: np.ndarray,
    mean: ArrayLike,
    std: ArrayLike,
    most_memory: float = math.inf,
) -> np.ndarray:
    """What a network says of images.

    Args:
      images: uint8 [n, height, width, channels].
      mean: of the images it was trained on, per channel, where 255 counts as 1.
      most_memory: bytes that the network may take for them all, by XLA's count.

    Returns:
      float32: of masks [n, height, width, 1], of classes [n, classes].

    Raises:
      MemoryError: the network would take more.
    """
    graphdef, state = nnx.split(model)
    network = jax.jit(lambda state, images: nnx.merge(graphdef, state)(images, train=False))
    compiled = network.lower(state, jax.ShapeDtypeStruct(images.shape, jnp.float32)).compile()
    memory = compiled.memory_analysis()  # Some backends give none.
    needed = memory.temp_size_in_bytes + memory.argument_size_in_bytes if memory is not None else 0
    if needed > most_memory:
        raise MemoryError(f"it would take {in_words(needed)} of memory")
    logits = compiled(state, normalize(jnp.asarray(images), mean, std))
    return np.asarray(jax.nn.sigmoid(logits) if logits.ndim == 4 else jax.nn.softmax(logits))


def read_image(path: Path, channels: int) -> np.ndarray:
    """Reads an image, upright as viewers show it, as uint8 [height, width, channels]; transparency is dropped.

    Raises:
      ValueError: it is no image, is damaged, has several frames or more than 8 bits per channel.
    """
    if channels not in MODES:
        raise ValueError(
            f"this run was trained on images of {channels} channels, which image files do not have"
        )
    try:
        # One line says what is wrong, and not a warning before it.
        with warnings.catch_warnings(action="ignore", category=UserWarning), open_image(path) as image:
            frames = getattr(image, "n_frames", 1)
            mode = image.mode
            # Pillow reduces 16-bit colours to 8 bits; only the decoder's raw mode, such as RGB;16B, tells.
            is_deep = mode.startswith(("I", "F")) or re.search(r";16[BLN]", str(image.tile))
            turn_upright(image)
            pixels = np.asarray(image.convert(MODES[channels]))
    except FileNotFoundError:
        raise ValueError(f"there is no image {path}") from None
    except Exception as error:  # a damaged file makes Pillow raise almost anything
        raise ValueError(f"cannot read the image {path}: {first_line(error)}") from error
    if frames > 1:
        raise ValueError(f"{path} has {frames} frames; save the one to predict as an image of its own")
    if is_deep:
        raise ValueError(
            f"{path} has more than 8 bits per channel (Pillow's mode {mode}); scale it to 0..255"
        )
    return pixels.reshape(*pixels.shape[:2], channels)


def draw_mask(pixels: np.ndarray, mask: np.ndarray) -> Image.Image:
    """The image in its own colours with the mask tinted and its outline drawn, magnified if it is small."""
    picture = np.array(_magnify(pixels))
    factor = picture.shape[0] // mask.shape[0]
    mask = mask.repeat(factor, axis=0).repeat(factor, axis=1)
    outline = mask & np.logical_not(ndimage.binary_erosion(mask))
    picture = style.tint(picture, mask, style.PREDICTED)
    picture[outline] = style.PREDICTED
    return Image.fromarray(picture)


def draw_caption(pixels: np.ndarray, caption: str) -> Image.Image:
    """The image in its own colours, magnified if it is small, with a line of text below."""
    picture = _magnify(pixels)
    font = ImageFont.load_default(16)
    width = max(picture.width, int(font.getlength(caption)) + 16)
    canvas = Image.new("RGB", (width, picture.height + 28), "white")
    canvas.paste(picture, ((width - picture.width) // 2, 0))
    ImageDraw.Draw(canvas).text((8, picture.height + 4), caption, fill="black", font=font)
    return canvas


def fit_image(record: RunRecord, path: Path, pixels: np.ndarray, fit: Fit | None) -> np.ndarray:
    """The image as the network gets it."""
    height, width, _ = record.data["image_shape"]
    if fit == "resize" or pixels.shape[:2] == (height, width):
        return _resize(pixels, height, width)
    sizes = (
        f"{path} has {pixels.shape[0]} x {pixels.shape[1]} pixels, the training images had {height} x {width}"
    )
    if not models.takes_any_size(record.run.model):
        raise ValueError(f"{sizes}, and {record.run.model} takes no others: --fit resize scales the image")
    if fit is None:
        raise ValueError(f"{sizes}: --fit resize scales the image, --fit as-is takes it as it is")
    return pixels


def _resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scales [height, width, channels] bilinearly; what has the size already stays as it is."""
    picture = Image.fromarray(pixels if pixels.shape[2] > 1 else pixels[:, :, 0])
    resized = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))
    return resized.reshape(height, width, pixels.shape[2])


def _magnify(pixels: np.ndarray) -> Image.Image:
    """The image in RGB, every pixel a square of pixels if it is small; a narrow one does not become too long."""
    rgb = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
    shorter, longer = sorted(pixels.shape[:2])
    factor = max(1, min(-(-SMALLEST_OVERLAY // shorter), LARGEST_OVERLAY // longer))
    return Image.fromarray(rgb.repeat(factor, axis=0).repeat(factor, axis=1))
