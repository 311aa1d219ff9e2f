"""Brain MRI with masks of lower-grade glioma: slices in one folder per patient.

Buda, Saha and Mazurowski, "Association of genomic subtypes of lower-grade gliomas with shape features
automatically extracted by a deep learning algorithm", 2019. The layout is the published one,
kaggle_3m/PATIENT/NAME.tif and NAME_mask.tif (or .TIF). Patients, never slices, are split: those of lgg_splits.json
beside kaggle_3m (lists of patients under 'train' and 'test') if there is one, else every fifth at random is for
testing.
"""

import json
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from experiments.data.dataset import DataError, Dataset, list_folder, make_dataset
from experiments.data.prepared import data_folder
from experiments.files import first_line, read_bytes
from experiments.pictures import open_image

FOLDER = "kaggle_3m"
SPLITS = "lgg_splits.json"
SUFFIX = ".tif"  # or with capitals, as some systems write it
MASK_ENDING = "_mask"
TEST_SHARE = 0.2


class Slice(NamedTuple):
    """The files of one slice."""

    patient: str
    image: Path
    mask: Path


def load(name: str, data_dir: str | Path | None = None) -> Dataset:
    """Loads the slices of all patients.

    Args:
      name: 'lgg' for images as they are stored, 'lgg:64' for images of 64 x 64 pixels: images are resized
        bilinearly with antialiasing, masks by their nearest pixel.
      data_dir: the folder that holds kaggle_3m; as for `experiments.data.load`.

    Raises:
      DataError: files are missing, damaged, or do not go together; the message names one.
      ValueError: the name has no size after its colon.
    """
    size = _parse_size(name)
    folder = data_folder(data_dir) / FOLDER
    slices = _find_slices(folder)
    patients = sorted({slice_.patient for slice_ in slices})
    test_patients = _read_split(folder.with_name(SPLITS), patients)
    train = [slice_ for slice_ in slices if slice_.patient not in test_patients]
    test = [slice_ for slice_ in slices if slice_.patient in test_patients]
    train_images, train_masks = _read_slices(train, size)
    test_images, test_masks = _read_slices(test, size)
    if train_images.shape[1:] != test_images.shape[1:]:
        raise _different_sizes(test[0], test_images[0], train[0], train_images[0])
    return make_dataset(
        name,
        train_images,
        train_masks,
        test_images,
        test_masks,
        1,
        train_groups=_groups(train, patients),
        test_groups=_groups(test, patients),
    )


def _groups(slices: Sequence[Slice], patients: Sequence[str]) -> np.ndarray:
    return np.array([patients.index(slice_.patient) for slice_ in slices], np.int32)


def _parse_size(name: str) -> int | None:
    source, separator, size = name.partition(":")
    if not separator:
        return None
    if not re.fullmatch(r"[1-9]\d{0,4}", size):
        raise ValueError(f"dataset '{source}:SIZE' needs a number of pixels, such as 'lgg:64', got {name!r}")
    return int(size)


def _find_slices(folder: Path) -> list[Slice]:
    """All slices, by patient and number, each with its mask."""
    if not os.path.isdir(folder):
        raise DataError(
            f"no {FOLDER} in {folder.parent}: unpack Kaggle's mateuszbuda/lgg-mri-segmentation there, or name "
            f"the folder that holds {FOLDER} by --data-dir or GRADNORM_DATA_DIR"
        )
    patients = [path for path in list_folder(folder) if os.path.isdir(path)]
    found = {patient: [p for p in list_folder(patient) if p.suffix.lower() == SUFFIX] for patient in patients}
    paths = sorted((path for paths in found.values() for path in paths), key=_slice_number)
    if not paths:
        raise DataError(f"{folder} holds no PATIENT/NAME{SUFFIX}")
    images = [path for path in paths if not path.stem.endswith(MASK_ENDING)]
    masks = {path.with_suffix(""): path for path in paths if path.stem.endswith(MASK_ENDING)}
    slices = []
    for path in images:
        mask = masks.pop(path.with_name(f"{path.stem}{MASK_ENDING}"), None)
        if mask is None:
            raise DataError(f"{path} has no mask {path.stem}{MASK_ENDING}{path.suffix}")
        slices.append(Slice(path.parent.name, path, mask))
    if masks:
        raise DataError(f"{min(masks.values())} is the mask of no slice")
    for patient in patients:
        if not found[patient]:
            raise DataError(f"{patient} holds no slices")
    return slices


def _slice_number(path: Path) -> tuple[str, int, str]:
    """Orders slice 2 before slice 10."""
    number = re.search(r"_(\d+)(_mask)?$", path.stem)
    return path.parent.name, int(number[1]) if number else 0, path.name


def _read_split(path: Path, patients: Sequence[str]) -> set[str]:
    """The patients to test on."""
    if not os.path.lexists(path):
        if len(patients) < 2:
            raise DataError(f"{path.with_name(FOLDER)} holds one patient; training and testing need one each")
        count = max(1, round(TEST_SHARE * len(patients)))
        return set(np.random.RandomState(0).permutation(patients)[:count].tolist())
    try:
        splits = json.loads(read_bytes(path))
        train, test = (_patients(splits[part]) for part in ("train", "test"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} must hold patients under 'train' and 'test': {first_line(error)}") from error
    for patient in sorted(train & test):
        raise DataError(f"{path} names patient {patient} for training and for testing")
    for patient in sorted(set(patients) ^ (train | test)):
        lacks = f"{path} does not name it" if patient in patients else f"{FOLDER} has no such folder"
        raise DataError(f"patient {patient}: {lacks}")
    if not train or not test:
        raise DataError(f"{path} names no patient for {'testing' if train else 'training'}")
    return test


def _patients(names: Sequence[object]) -> set[str]:
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"{name!r} is not the name of a patient")
    return {str(name) for name in names}


def _read_slices(slices: Sequence[Slice], size: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Images, uint8 [n, height, width, 3], and masks, uint8 [n, height, width] of 0 and 1."""
    images, masks = [], []
    for slice_ in slices:
        image, mask = _open(slice_.image), _open(slice_.mask)
        if image.mode != "RGB":
            raise DataError(f"{slice_.image} must be a colour image of 8 bits (RGB), it is {image.mode}")
        if mask.size != image.size:
            raise DataError(
                f"{slice_.mask} has {_words(mask.size)} pixels, but its slice has {_words(image.size)}"
            )
        if mask.mode != "L":
            raise DataError(f"{slice_.mask} must be a grey image of 8 bits (L), it is {mask.mode}")
        values = set(np.unique(np.asarray(mask)).tolist())
        if not values <= {0, 255}:
            raise DataError(f"{slice_.mask} must hold 0 and 255 alone, it holds {sorted(values)[:4]}")
        if size is not None:
            image = image.resize((size, size), Image.Resampling.BILINEAR)  # antialiased where it shrinks
            mask = mask.resize((size, size), Image.Resampling.NEAREST)
        images.append(np.asarray(image))
        masks.append(np.asarray(mask) // 255)
        if images[-1].shape != images[0].shape:
            raise _different_sizes(slice_, images[-1], slices[0], images[0])
    return np.stack(images), np.stack(masks)


def _different_sizes(one: Slice, image: np.ndarray, other: Slice, other_image: np.ndarray) -> DataError:
    return DataError(
        f"{one.image} has {_words(image.shape[:2])} pixels, but {other.image} has "
        f"{_words(other_image.shape[:2])}; give all one size by dataset 'lgg:{len(other_image)}'"
    )


def _words(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))


def _open(path: Path) -> Image.Image:
    try:
        # Pillow only warns of some damage.
        with warnings.catch_warnings(action="error"), open_image(path) as image:
            frames = getattr(image, "n_frames", 1)
            image.load()
    except Exception as error:  # Pillow raises many kinds for damaged files.
        raise DataError(f"{path} cannot be read as an image: {first_line(error)}") from error
    if frames > 1:
        raise DataError(f"{path} must be one image, it has {frames} frames")
    return image
