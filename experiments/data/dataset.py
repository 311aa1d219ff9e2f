"""What every source of data gives."""

import dataclasses
import functools
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.files import FileError, first_line


class DataError(FileError, ValueError):
    """A data set is missing, damaged, or not what its name says. The message is one line."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Images of one size with their classes or masks, for training and for evaluation.

    Attributes:
      name: as given to `experiments.data.load`.
      train_images: uint8 [n, height, width, channels]; or, of a streamed set, `StreamedImages` that stand for
        such an array.
      train_labels: classes, int32 [n], from 0 to `num_classes` - 1; or masks, uint8 [n, height, width], 1
        where the object is and 0 elsewhere.
      test_images: uint8, as the training images.
      test_labels: int32, as the training labels.
      num_classes: number of classes; 1 for masks, where one logit per pixel says object or not.
      mean: float32 [channels], of all training images of the set, where 255 counts as 1.
      std: float32 [channels], in the same unit; 1 for a channel that never changes.
      train_groups: int32 [n], images with the same number, such as the slices of one patient, belong
        together: no split parts them. `None` where every image stands alone.
      test_groups: of the test images.
      is_cropped: whether images of many sizes are cropped to one as they are read.
      damaged: how many images of both splits were excluded because they cannot be decoded.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    num_classes: int
    mean: np.ndarray
    std: np.ndarray
    train_groups: np.ndarray | None = None
    test_groups: np.ndarray | None = None
    is_cropped: bool = False
    damaged: int = 0

    @property
    def is_streamed(self) -> bool:
        """Whether the images are read while training, not held in memory."""
        return not isinstance(self.train_images, np.ndarray)

    @functools.cached_property
    def images_checksum(self) -> int:
        """CRC-32 of the training images and then the test images, computed once.

        Every byte of images in memory counts; of a streamed set, the images that `StreamedImages.checksum` samples.
        """
        splits: Any = (self.train_images, self.test_images)
        checksum = 0
        for images in splits:
            if self.is_streamed:
                checksum = images.checksum(checksum)
            else:
                checksum = zlib.crc32(np.ascontiguousarray(images).data, checksum)
        return checksum

    @property
    def has_masks(self) -> bool:
        """Whether the labels are masks."""
        return self.train_labels.ndim == 3


def make_dataset(
    name, train_images, train_labels, test_images, test_labels, num_classes: int, **groups
) -> Dataset:
    """Builds a `Dataset`, with mean and standard deviation measured on the training images."""
    # In parts, because counting needs eight times the memory of the data.
    parts = (train_images[start : start + 10_000] for start in range(0, len(train_images), 10_000))
    mean, std = mean_and_std(parts)
    label_dtype = np.uint8 if np.ndim(train_labels) == 3 else np.int32
    return Dataset(
        name,
        np.ascontiguousarray(train_images, np.uint8),
        np.ascontiguousarray(train_labels, label_dtype),
        np.ascontiguousarray(test_images, np.uint8),
        np.ascontiguousarray(test_labels, label_dtype),
        num_classes,
        mean,
        std,
        **groups,
    )


def list_folder(folder: Path) -> list[Path]:
    """What a folder holds, by name.

    Raises:
      DataError: it cannot be read.
    """
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {first_line(error)}") from error


def mean_and_std(parts: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Exact mean and deviation of images, uint8 [n, height, width, channels] in parts, by counting their values.

    Returns:
      Mean and standard deviation as in `Dataset`.
    """
    values = np.arange(256) / 255
    counts = sum(
        np.stack([np.bincount(part[..., c].ravel(), minlength=256) for c in range(part.shape[-1])])
        for part in parts
    )
    means, stds = [], []
    for channel in np.asarray(counts):
        share = channel / channel.sum()
        mean = share @ values
        is_constant = np.count_nonzero(channel) == 1
        means.append(mean)
        stds.append(1.0 if is_constant else np.sqrt(share @ (values - mean) ** 2))
    return np.array(means, np.float32), np.array(stds, np.float32)
