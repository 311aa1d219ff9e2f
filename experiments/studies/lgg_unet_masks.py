"""Slices, their true masks and what the networks of `lgg_unet` predict: measured once, drawn from records."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from experiments import data, figures, training
from experiments.config import Run
from experiments.data.pipeline import normalize
from experiments.measure import Context
from experiments.metrics import SegmentationScores
from experiments.records import RecordError, read_records

# Of the test slices with a tumour, ordered by its size; and one slice without.
QUANTILES = (0.2, 0.5, 0.8, 1.0)
FLAIR = 1  # channel of the slices in which these tumours are bright
PREDICTED, TRUE = (213, 94, 0), (0, 158, 115)  # vermilion and green, of the palette of Okabe and Ito (2008)


def choose_slices(masks: np.ndarray) -> list[int]:
    """Test slices for the figure, by the true masks alone: small to large tumours, then one without."""
    areas = masks.sum(axis=(1, 2))
    by_area = np.argsort(areas, kind="stable")
    tumours = by_area[areas[by_area] > 0]
    chosen = [int(tumours[round(q * (len(tumours) - 1))]) for q in QUANTILES] if len(tumours) else []
    return [*dict.fromkeys(chosen), *by_area[areas[by_area] == 0][:1].tolist()]


def measure_slices(context: Context, *, run: Mapping[str, Any]) -> dict[str, Any]:
    """The chosen slices and their true masks."""
    dataset = _test_set(context, Run(**run))
    chosen = choose_slices(dataset.test_labels)
    return {
        "channel": FLAIR,
        "images": [to_png(dataset.test_images[i, :, :, FLAIR]) for i in chosen],
        "masks": [to_png(dataset.test_labels[i] * 255) for i in chosen],
    }


def measure_masks(context: Context, *, run: Mapping[str, Any]) -> dict[str, Any]:
    """What a trained network predicts for the chosen slices.

    Args:
      context: where data and records are.
      run: fields of the trained run but for its learning rate, which may have been tuned.
    """
    trained = _find(context, run)
    if trained is None:
        return {"status": "diverged"}
    dataset = _test_set(context, trained)
    model = training.load_model(trained, out=context.records_folder)
    chosen = choose_slices(dataset.test_labels)
    images = normalize(jnp.asarray(dataset.test_images[np.array(chosen)]), dataset.mean, dataset.std)
    logits = nnx.jit(lambda model, images: model(images, train=False))(model, images)
    masks = np.asarray(jax.nn.sigmoid(logits[..., 0])) > 0.5
    return {
        "status": "finished",
        "learning_rate": trained.learning_rate,
        "masks": [to_png(mask.astype(np.uint8) * 255) for mask in masks],
        "dice": [_dice(mask, dataset.test_labels[i]) for mask, i in zip(masks, chosen, strict=True)],
    }


def _find(context: Context, wanted: Mapping[str, Any]) -> Run | None:
    """The finished run with these fields, or `None` if it diverged.

    Raises:
      RecordError: it has not ended; asked again later, the measurement can be made.
    """
    for record in read_records(context.records_folder):
        is_wanted = all(getattr(record.run, field) == value for field, value in wanted.items())
        if is_wanted and record.status in ("finished", "diverged"):
            return record.run if record.status == "finished" else None
    raise RecordError(f"no run of {wanted['method']} and {wanted['optimizer']} has ended")


def _test_set(context: Context, run: Run) -> data.Dataset:
    return data.select(data.load(run.dataset, context.data_dir), run)


def _dice(predicted: np.ndarray, true: np.ndarray) -> float:
    scores = SegmentationScores()
    scores.update(predicted[None].astype(np.float32), true[None])
    return round(scores.compute()["dice"], 4)


def to_png(pixels: np.ndarray) -> str:
    """A grey image, uint8 [height, width], as text: a PNG in base 64."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def from_png(text: str) -> np.ndarray:
    """The image that `to_png` made text of."""
    with Image.open(io.BytesIO(base64.b64decode(text))) as image:
        return np.asarray(image)


def draw_masks(path: Path, slices: Mapping[str, Any], predictions: Mapping[str, Mapping[str, Any]]) -> None:
    """Draws a row for each slice: the slice, its true mask, and every network's prediction.

    Args:
      path: of the figure, without suffix.
      slices: as `measure_slices` gives them.
      predictions: as `measure_masks` gives them, by the title of their column.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    images = [from_png(text) for text in slices["images"]]
    true = [from_png(text) > 0 for text in slices["masks"]]
    rows, columns = len(images), 2 + len(predictions)
    with mpl.rc_context({**figures.STYLE, "axes.grid": False}):
        figure = Figure(figsize=(1.5 * columns, 1.62 * rows + 0.3), dpi=150, layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
        for axis in axes.flat:
            axis.set_xticks([])
            axis.set_yticks([])
        for row, image, mask in zip(axes, images, true, strict=True):
            row[0].imshow(image, cmap="gray", vmin=0, vmax=255)
            row[1].imshow(tint(image, mask, TRUE))
        for column, values in zip(axes.T[2:], predictions.values(), strict=True):
            if values["status"] == "finished":
                _draw_column(column, images, true, values)
        for axis, title in zip(axes[0], ("slice", "true mask", *predictions), strict=True):
            axis.set_title(title)
        figures.save(figure, path)


def _draw_column(axes: Sequence[Any], images, true, values: Mapping[str, Any]) -> None:
    for axis, image, mask, text, dice in zip(
        axes, images, true, values["masks"], values["dice"], strict=True
    ):
        axis.imshow(tint(image, from_png(text) > 0, PREDICTED))
        if mask.any():
            axis.contour(mask, levels=[0.5], colors=[np.array(TRUE) / 255], linewidths=0.8)
        axis.set_xlabel(f"Dice {dice:.2f}", fontsize=7, labelpad=1)


def tint(image: np.ndarray, mask: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """The grey image in RGB, half of the colour where the mask is."""
    rgb = np.repeat(image[..., None], 3, axis=-1).astype(np.float64)
    rgb[mask] = 0.5 * rgb[mask] + 0.5 * np.array(color)
    return np.rint(rgb).astype(np.uint8)
