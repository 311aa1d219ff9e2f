"""A user's own images: 'arrays:PATH.npz' with x_train, y_train, x_test and y_test."""

from pathlib import Path

import numpy as np

from experiments.data.dataset import DataError, Dataset, make_dataset
from experiments.files import NpzError, read_npz

ARRAYS = ("x_train", "y_train", "x_test", "y_test")


def load(path: str | Path) -> Dataset:
    """Loads and checks the arrays of an .npz file.

    Args:
      path: a file of `numpy.savez` with x_train and x_test, uint8 [n, size, size, channels] or
        [n, size, size], and y_train and y_test, whole numbers [n] from 0, without a gap.

    Raises:
      DataError: the file cannot be read, or an array is missing or not as above.
    """
    path = Path(path).expanduser()
    arrays = _read(path)
    for split in ("train", "test"):
        _check_split(path, split, arrays[f"x_{split}"], arrays[f"y_{split}"])
    x_train, x_test = (x if x.ndim == 4 else x[..., None] for x in (arrays["x_train"], arrays["x_test"]))
    if x_train.shape[1:] != x_test.shape[1:]:
        raise DataError(
            f"{path}: images of x_train and x_test must have one shape, got {x_train.shape[1:]} and "
            f"{x_test.shape[1:]}"
        )
    classes = np.unique(arrays["y_train"])
    num_classes = len(classes)
    if not np.array_equal(classes, np.arange(num_classes)):
        missing = next(label for label in range(num_classes) if label not in classes)
        raise DataError(f"{path}: y_train must use every label from 0 to its largest; {missing} never occurs")
    if arrays["y_test"].max() >= num_classes:
        raise DataError(f"{path}: y_test has label {arrays['y_test'].max()}, which y_train never has")
    return make_dataset(f"arrays:{path}", x_train, arrays["y_train"], x_test, arrays["y_test"], num_classes)


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        return read_npz(path, ARRAYS)
    except FileNotFoundError:
        raise DataError(f"no file {path}; 'arrays:PATH.npz' needs {', '.join(ARRAYS)}") from None
    except NpzError as error:
        raise DataError(f"cannot read {path}: {error}") from error


def _check_split(path: Path, split: str, images: np.ndarray, labels: np.ndarray) -> None:
    if images.dtype != np.uint8:
        raise DataError(f"{path}: x_{split} must be uint8, got {images.dtype}")
    if images.ndim not in (3, 4) or images.shape[1] != images.shape[2] or 0 in images.shape:
        raise DataError(
            f"{path}: x_{split} must have shape [n, size, size, channels] or [n, size, size], "
            f"got {images.shape}"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{path}: y_{split} must hold whole numbers, got {labels.dtype}")
    if labels.shape != images.shape[:1]:
        raise DataError(
            f"{path}: y_{split} must have shape {images.shape[:1]} as x_{split}, got {labels.shape}"
        )
    if labels.min() < 0:
        raise DataError(f"{path}: y_{split} must not be negative, got {labels.min()}")
