"""Slices, their true masks and what the networks of `lgg_unet` predict: measured once, drawn from records."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments import data, training
from experiments.jobs.measure import Context
from experiments.pictures import open_image
from experiments.predict import predict_probabilities
from experiments.records import RecordError, RunRecord, read_records
from experiments.report import style
from experiments.report.cells import make_cells
from experiments.run import Run
from experiments.studies.tuning import best_cell
from experiments.training.metrics import THRESHOLD, SegmentationScores

# Places among the test slices with a tumour, ordered by its size; and one slice without.
QUANTILES = (0.2, 0.5, 0.8, 1.0)
FLAIR = 1  # channel of the slices in which these tumours are bright
DARKEST, BRIGHTEST = 1, 99.5  # percentiles of a slice's grey values, shown as black and white


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


def measure_masks(
    context: Context, *, run: Mapping[str, Any], tuning: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What a trained network predicts for the chosen slices.

    Args:
      context: where data and records are.
      run: fields of the trained run but for its learning rate.
      tuning: fields of the runs that choose it, by F1.
    """
    trained = _find(context, run, tuning)
    found = {"status": trained.status, "learning_rate": trained.run.learning_rate}
    if trained.status == "diverged":
        return found
    dataset = _test_set(context, trained.run)
    model = training.load_model(trained.run, out=context.records_folder)
    chosen = choose_slices(dataset.test_labels)
    images = dataset.test_images[np.array(chosen)]
    masks = predict_probabilities(model, images, dataset.mean, dataset.std)[..., 0] > THRESHOLD
    return {
        **found,
        "masks": [to_png(mask.astype(np.uint8) * 255) for mask in masks],
        "dice": [_dice(mask, dataset.test_labels[i]) for mask, i in zip(masks, chosen, strict=True)],
    }


def _find(context: Context, run: Mapping[str, Any], tuning: Sequence[Mapping[str, Any]]) -> RunRecord:
    """The record of the run, finished or diverged, with the learning rate that its tuning chose.

    Raises:
      RecordError: it or its tuning has not ended; asked again later, the measurement can be made.
    """
    records = read_records(context.records_folder)
    cells = make_cells([Run(**fields) for fields in tuning], records).values()
    if best := best_cell(cells, "f1"):
        (cell,) = make_cells([Run(**run, learning_rate=best.run.learning_rate)], records).values()
        for record in cell.ended.values():
            return record
    raise RecordError(f"no tuned run of {run['method']} and {run['optimizer']} has ended")


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
    with open_image(base64.b64decode(text)) as image:
        return np.asarray(image)


def draw_masks(path: Path, slices: Mapping[str, Any], predictions: Mapping[str, Mapping[str, Any]]) -> None:
    """Draws a row for each slice: the slice, its true mask, and every network's prediction.

    Args:
      path: of the figure, which ends with .png.
      slices: as `measure_slices` gives them.
      predictions: as `measure_masks` gives them, by the title of their column.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    images = [to_picture(from_png(text)) for text in slices["images"]]
    true = [from_png(text) > 0 for text in slices["masks"]]
    rows, columns = len(images), 2 + len(predictions)
    with mpl.rc_context({**style.STYLE, "axes.grid": False}):
        figure = Figure(figsize=(1.5 * columns, 1.62 * rows + 0.3), dpi=150, layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
        for axis in axes.flat:
            axis.set_xticks([])
            axis.set_yticks([])
        for row, image, mask in zip(axes, images, true, strict=True):
            row[0].imshow(image)
            row[1].imshow(style.tint(image, mask, style.TRUE))
        for column, values in zip(axes.T[2:], predictions.values(), strict=True):
            if values["status"] == "finished":
                _draw_column(column, images, true, values)
        for axis, title in zip(axes[0], ("slice", "true mask", *predictions), strict=True):
            axis.set_title(title)
        style.save(figure, path)


def _draw_column(axes: Sequence[Any], images, true, values: Mapping[str, Any]) -> None:
    for axis, image, mask, text, dice in zip(
        axes, images, true, values["masks"], values["dice"], strict=True
    ):
        axis.imshow(style.tint(image, from_png(text) > 0, style.PREDICTED))
        if mask.any():
            axis.contour(mask, levels=[0.5], colors=[np.array(style.TRUE) / 255], linewidths=0.8)
        axis.set_xlabel(f"Dice {dice:.2f}", fontsize=7, labelpad=1)


def to_picture(slice_: np.ndarray) -> np.ndarray:
    """A grey slice in RGB; its own grey values, but for a few outliers, go from black to white."""
    darkest, brightest = np.percentile(slice_, (DARKEST, BRIGHTEST))
    grey = (slice_ - darkest) / max(brightest - darkest, 1)
    return np.rint(255 * grey.clip(0, 1)).astype(np.uint8)[..., None].repeat(3, axis=-1)
