"""CIFAR-10 and CIFAR-100, from folders that TensorFlow Datasets prepared in array_record format.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. Reading needs no TensorFlow,
preparing does. Decoding 60,000 PNG images takes seconds in every process, so the decoded arrays are kept
beside the files they came from, under a name that holds these files' checksum.
"""

import hashlib
import importlib.util
import io
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data.dataset import DataError, Dataset, make_dataset

NUM_CLASSES = {"cifar10": 10, "cifar100": 100}
IMAGE_SHAPE = (32, 32, 3)
CACHED = ("train_images", "train_labels", "test_images", "test_labels", "mean", "std")


def data_folder(data_dir: str | Path | None) -> Path:
    """Where prepared sets lie: the argument, GRADNORM_DATA_DIR, or TensorFlow Datasets' own default."""
    return (
        Path(data_dir or os.environ.get("GRADNORM_DATA_DIR") or "~/tensorflow_datasets")
        .expanduser()
        .absolute()
    )


def load(name: str, data_dir: str | Path | None = None) -> Dataset:
    """Loads 'cifar10' or 'cifar100'; see `experiments.data.load`."""
    folder = _prepared_folder(name, data_folder(data_dir))
    try:
        cache = folder / f"decoded-{_checksum(folder)}.npz"
        dataset = _read_cache(cache, name)
        if dataset is None:
            train, test = _read_split(name, folder, "train"), _read_split(name, folder, "test")
            dataset = make_dataset(name, *train, *test, NUM_CLASSES[name])
            _write_cache(cache, dataset)
        return dataset
    except DataError:
        raise
    except Exception as error:  # TFDS and array_record raise many kinds, for files that are not theirs.
        raise DataError(
            f"{folder} cannot be read as {name}: {_first_line(error)}; remove it and prepare it again"
        ) from error


def prepare(name: str, data_dir: str | Path | None = None) -> Path:
    """Downloads a set and prepares it in array_record format, unless that is done already.

    Args:
      name: 'cifar10' or 'cifar100'.
      data_dir: as for `experiments.data.load`.

    Returns:
      The prepared folder.

    Raises:
      DataError: TensorFlow is not installed, or the download or the preparation failed.
      ValueError: the name is unknown.
    """
    if name not in NUM_CLASSES:
        raise ValueError(f"unknown dataset {name!r} to prepare; choose from {', '.join(NUM_CLASSES)}")
    data_dir = data_folder(data_dir)
    if not _versions(data_dir / name):
        if importlib.util.find_spec("tensorflow") is None:
            raise DataError(
                f"preparing {name} needs TensorFlow once: pip install -e '.[experiments,prepare]'"
            )
        import tensorflow_datasets as tfds

        try:
            tfds.builder(name, data_dir=data_dir, file_format="array_record").download_and_prepare()
        except Exception as error:  # Of network, disk or format, of many kinds.
            raise DataError(f"preparing {name} in {data_dir} failed: {_first_line(error)}") from error
    return _prepared_folder(name, data_dir)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _versions(folder: Path) -> list[Path]:
    """Prepared versions of one set, oldest first."""
    found = [info.parent for info in folder.glob("*/dataset_info.json")]
    found = [version for version in found if re.fullmatch(r"\d+\.\d+\.\d+", version.name)]
    return sorted(found, key=lambda version: tuple(map(int, version.name.split("."))))


def _prepared_folder(name: str, data_dir: Path) -> Path:
    versions = _versions(data_dir / name)
    if not versions:
        raise DataError(
            f"no {name} in {data_dir} (looked for {name}/*/dataset_info.json): download it with "
            f"'python -m experiments prepare {name} --data-dir {data_dir}' (extra 'prepare'), or name a "
            f"folder that holds it, prepared as array_record, by --data-dir or GRADNORM_DATA_DIR"
        )
    return versions[-1]


def _checksum(folder: Path) -> str:
    """Of every file that decides the arrays."""
    digest = hashlib.sha256()
    files = [folder / "dataset_info.json", folder / "features.json", *folder.glob("*.array_record-*")]
    for file in sorted(files):
        with file.open("rb") as stream:
            digest.update(f"{file.name} {hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


def _read_split(name: str, folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Decodes the images and labels of one split, checking them against the folder's own metadata."""
    import tensorflow_datasets as tfds
    from PIL import Image

    source: Any = tfds.data_source(
        f"{name}:{folder.name}",
        data_dir=folder.parent.parent,
        split=split,
        download=False,
        decoders={"image": tfds.decode.SkipDecoding()},
    )
    _check_metadata(name, folder, split, source.dataset_info)
    images = np.empty((len(source), *IMAGE_SHAPE), np.uint8)
    labels = np.empty(len(source), np.int32)
    for i in range(len(source)):
        example = source[i]
        image = np.asarray(Image.open(io.BytesIO(example["image"])))
        if image.shape != IMAGE_SHAPE or image.dtype != np.uint8:
            raise DataError(f"{folder}: {split} image {i} has shape {image.shape}, wanted {IMAGE_SHAPE}")
        if not 0 <= example["label"] < NUM_CLASSES[name]:
            raise DataError(
                f"{folder}: {split} label {i} is {example['label']}, beyond {NUM_CLASSES[name]} classes"
            )
        images[i] = image
        labels[i] = example["label"]
    return images, labels


def _check_metadata(name: str, folder: Path, split: str, info) -> None:
    from array_record.python.array_record_module import ArrayRecordReader

    if info.name != name:
        raise DataError(f"{folder} holds {info.name}, not {name}")
    features = dict(info.features)
    image, label = features.get("image"), features.get("label")
    if getattr(image, "shape", None) != IMAGE_SHAPE:
        raise DataError(f"{folder}: images must have shape {IMAGE_SHAPE}, features.json says {image}")
    if getattr(label, "num_classes", None) != NUM_CLASSES[name]:
        raise DataError(f"{folder}: labels must have {NUM_CLASSES[name]} classes, features.json says {label}")
    shards = info.splits[split]
    for path, expected in zip(shards.filepaths, shards.shard_lengths, strict=True):
        if not Path(path).exists():
            raise DataError(f"{folder} lacks {Path(path).name}; remove it and prepare it again")
        count = ArrayRecordReader(str(path)).num_records()  # 0 for a file that is not whole.
        if count != expected:
            raise DataError(
                f"{path} holds {count} whole records, dataset_info.json says {expected}; "
                f"remove {folder} and prepare it again"
            )


def _read_cache(path: Path, name: str) -> Dataset | None:
    try:
        with path.open("rb") as stream:
            file = np.load(stream, allow_pickle=False)  # Every array has a checksum of its own in the file.
            return Dataset(name=name, num_classes=NUM_CLASSES[name], **{key: file[key] for key in CACHED})
    except (OSError, ValueError, KeyError, EOFError, NotImplementedError, zipfile.BadZipFile):
        return None


def _write_cache(path: Path, dataset: Dataset) -> None:
    """Keeps the arrays for next time, if the folder can be written; never half a file."""
    temporary = path.with_name(f"decoding-{os.getpid()}.npz")
    try:
        np.savez(temporary, **{key: getattr(dataset, key) for key in CACHED})
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
