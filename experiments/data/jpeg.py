"""Sets of JPEG images of any size, such as ImageNet, prepared in array_record format: read while training.

Any set that TensorFlow Datasets prepared will do, if it has the features 'image' and 'label'. Reading needs no
TensorFlow.
"""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data import prepared
from experiments.data.dataset import DataError, Dataset, mean_and_std
from experiments.data.decoding import UNREADABLE, CheckPiece, JpegImages, JpegSplit, ReadLabels, read_pieces
from experiments.files import first_line
from experiments.options import Reading

# Mean and standard deviation are those of so many training images, evenly spaced.
MEASURED_IMAGES = 1_000
# ImageNet's test labels were never published.
EVALUATED_ON = {"imagenet2012": ("validation",)}
DEFAULT_SIZE = 224


def load(name: str, data_dir: str | Path | None, reading: Reading) -> Dataset:
    """Names the images of a prepared set of JPEGs; see `experiments.data.load`.

    Labels take one pass over all files, and with `reading.skip_damaged` every image is decoded once more. What is
    found lies beside the files from then on.

    Args:
      name: 'jpeg:NAME' for images of 224 x 224 pixels, 'jpeg:NAME:SIZE' for others.
      reading: worker processes, and what becomes of damaged records.
    """
    set_name, size = _parse(name)
    folder = prepared.newest_version(set_name, prepared.data_folder(data_dir))
    prepared.remove_half_written(folder)
    try:
        train, test = _open_splits(set_name, folder)
    except DataError:
        raise
    except ImportError as error:
        raise DataError(f"reading {folder} needs {error.name}: pip install '.[experiments]'") from error
    except Exception as error:  # TFDS raises many kinds, for files that are not its own.
        raise DataError(
            f"{folder} cannot be read as {set_name}: {first_line(error)}; remove it and prepare it again"
        ) from error
    digest, splits, workers = _digest(folder), {"train": train, "test": test}, reading.input_workers
    labels = _cached(folder / f"labels-{digest}.npz", splits, lambda split: _labels(split, workers))
    whole = {key: np.ones(len(split), bool) for key, split in splits.items()}
    if reading.skip_damaged:
        whole = _cached(folder / f"whole-{digest}.npz", splits, lambda split: _find_whole(split, workers))
    kept = {key: np.flatnonzero(whole[key]) for key in splits}
    for key, split in splits.items():
        if not len(kept[key]):
            raise DataError(f"{folder}: no image of the split {split.name} can be read")
        # Without its label no image can be trained on: what is wrong is said at once, if it still is.
        for record in kept[key][labels[key][kept[key]] == UNREADABLE].tolist():
            labels[key][record] = split.read(record)[1]
    mean, std = _statistics(folder / f"statistics_{size}-{digest}.npz", train, kept["train"], size)
    shape = (size, size, 3)
    images: dict[str, Any] = {k: JpegImages(splits[k], kept[k], shape, reading.input_workers) for k in splits}
    return Dataset(
        name=name,
        train_images=images["train"],
        train_labels=labels["train"][kept["train"]],
        test_images=images["test"],
        test_labels=labels["test"][kept["test"]],
        num_classes=train.num_classes,
        mean=mean,
        std=std,
        is_cropped=True,
        damaged=sum(len(splits[key]) - len(kept[key]) for key in splits),
    )


def _parse(name: str) -> tuple[str, int]:
    match = re.fullmatch(r"jpeg:([a-z]\w*)(?::([1-9]\d{0,3}))?", name)
    if not match:
        raise ValueError(
            f"dataset 'jpeg:NAME' or 'jpeg:NAME:SIZE' needs the name of a prepared set and a number of pixels, "
            f"such as 'jpeg:imagenet2012:224', got {name!r}"
        )
    return match[1], int(match[2] or DEFAULT_SIZE)


def _open_splits(name: str, folder: Path) -> tuple[JpegSplit, JpegSplit]:
    """The training split and the one to evaluate on, checked against their metadata."""
    import tensorflow_datasets as tfds

    builder: Any = tfds.builder_from_directory(folder)
    info = builder.info
    label: Any = dict(info.features).get("label")
    if "image" not in info.features or not getattr(label, "num_classes", None):
        raise DataError(
            f"{folder}: 'image' and 'label' (a class) are wanted, it holds {', '.join(info.features)}"
        )
    evaluated = next((s for s in EVALUATED_ON.get(name, ("test", "validation")) if s in info.splits), None)
    if "train" not in info.splits or evaluated is None:
        raise DataError(
            f"{folder}: a split 'train' and one of 'test' and 'validation' are wanted, it has "
            f"{', '.join(info.splits) or 'none'}"
        )
    prepared.check_files(folder, info, ("train", evaluated))

    def split(key: str) -> JpegSplit:
        shards = info.splits[key]
        names = [Path(path).name for path in shards.filepaths]
        return JpegSplit(folder, key, label.num_classes, list(zip(names, shards.shard_lengths, strict=True)))

    return split("train"), split(evaluated)


def _digest(folder: Path) -> str:
    """A checksum of names, sizes and times: reading every byte of ImageNet would take minutes at every start."""
    files = [folder / "dataset_info.json", *folder.glob("*.array_record-*")]
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(files)]
    return hashlib.sha256(repr(stats).encode()).hexdigest()[:16]


def _cached(path: Path, splits: dict[str, JpegSplit], make: Callable) -> dict[str, np.ndarray]:
    """An array for each split, from its file or made and kept."""
    arrays = prepared.read_cache(path, tuple(splits))
    if arrays is None:
        arrays = {key: make(split) for key, split in splits.items()}
        prepared.write_cache(path, arrays)
    return arrays


def _labels(split: JpegSplit, workers: int | None) -> np.ndarray:
    """Labels, int32 [n]; those of records that cannot be read are `UNREADABLE`."""
    records = np.arange(len(split))
    labels = np.concatenate([labels for labels, _ in read_pieces(ReadLabels(split), records, 256, workers)])
    is_class = (labels >= 0) & (labels < split.num_classes)
    for record in records[~is_class & (labels != UNREADABLE)][:1].tolist():
        raise DataError(
            f"{split.where(record)}: label {labels[record]} is beyond {split.num_classes} classes"
        )
    return labels


def _find_whole(split: JpegSplit, workers: int | None) -> np.ndarray:
    """Which records can be decoded, [n]."""
    records = np.arange(len(split))
    return np.concatenate([whole for whole, _ in read_pieces(CheckPiece(split), records, 64, workers)])


def _statistics(path: Path, split: JpegSplit, records: np.ndarray, size: int):
    """Mean and standard deviation per channel, as in `Dataset`, of evenly spaced training images."""
    found = prepared.read_cache(path, ("mean", "std"))
    if found is None:
        taken = records[np.linspace(0, len(records) - 1, min(len(records), MEASURED_IMAGES)).astype(int)]
        mean, std = mean_and_std(split.square(record, size)[None] for record in taken.tolist())
        found = {"mean": mean, "std": std}
        prepared.write_cache(path, found)
    return found["mean"], found["std"]
