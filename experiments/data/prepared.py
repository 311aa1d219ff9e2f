"""Sets that TensorFlow Datasets prepared in array_record format. Reading needs no TensorFlow, preparing does.

Decoding thousands of PNG images takes seconds in every process, so the decoded arrays are kept beside the files
they came from, under a name that holds these files' checksum.
"""

import contextlib
import dataclasses
import hashlib
import importlib.util
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import machine
from experiments.data.dataset import DataError, Dataset, make_dataset, mean_and_std
from experiments.data.streaming import StreamedImages
from experiments.files import NpzError, file_size, first_line, open_regular, read_npz
from experiments.pictures import open_image

CACHED_OF_STREAM = ("train_labels", "test_labels", "mean", "std")
METADATA = ("dataset_info.json", "features.json")
HALF_WRITTEN = "decoding"
CACHED = ("train_images", "test_images", *CACHED_OF_STREAM)


@dataclasses.dataclass(frozen=True)
class PreparedSet:
    """What a prepared folder must hold.

    Attributes:
      name: of the folder and in its metadata.
      image_shape: [height, width, channels] of every image.
      num_classes: labels go from 0 to one less.
      source: how to get a set that is not in the catalogue of TensorFlow Datasets.
      test_split: what stands as the test images; 'validation' leaves those of the split 'test' unseen.
    """

    name: str
    image_shape: tuple[int, int, int]
    num_classes: int
    source: str = ""
    test_split: str = "test"

    @property
    def dataset_name(self) -> str:
        """As given to `experiments.data.load`."""
        return self.name if self.test_split == "test" else f"{self.name}:{self.test_split}"


def data_folder(data_dir: str | Path | None) -> Path:
    """Where prepared sets lie: the argument, GRADNORM_DATA_DIR, or TensorFlow Datasets' own default."""
    return (
        Path(data_dir or os.environ.get("GRADNORM_DATA_DIR") or "~/tensorflow_datasets")
        .expanduser()
        .absolute()
    )


def load(wanted: PreparedSet, data_dir: str | Path | None = None, *, stream: bool = False) -> Dataset:
    """Loads the splits 'train' and `test_split` of a prepared set; see `experiments.data.load`.

    Args:
      stream: leaves the images in their files, to be read while training. Labels, mean and standard deviation
        take one pass over all of them, and are kept as decoded images are.
    """
    folder = _prepared_folder(wanted, data_folder(data_dir))
    remove_half_written(folder)
    try:
        return (_load_streamed if stream else _load_arrays)(wanted, folder)
    except DataError:
        raise
    except MemoryError as error:
        raise DataError(
            f"{wanted.name} in {folder} does not fit into memory: choose stream:{wanted.dataset_name}"
        ) from error
    except ImportError as error:
        raise DataError(f"reading {folder} needs {error.name}: pip install '.[experiments]'") from error
    except Exception as error:  # TFDS and array_record raise many kinds, for files that are not theirs.
        raise DataError(
            f"{folder} cannot be read as {wanted.name}: {first_line(error)}; remove it and prepare it again"
        ) from error


def _load_arrays(wanted: PreparedSet, folder: Path) -> Dataset:
    # Before the decoded arrays: making a split checks that the folder holds the right data set.
    train, test = (Split(wanted, folder, name) for name in ("train", wanted.test_split))
    cache = _cache_path(wanted, folder, "decoded")
    arrays = read_cache(cache, CACHED)
    if arrays is not None:
        known: Any = arrays
        return Dataset(name=wanted.dataset_name, num_classes=wanted.num_classes, **known)
    dataset = make_dataset(wanted.dataset_name, *train.decode(), *test.decode(), wanted.num_classes)
    write_cache(cache, {key: getattr(dataset, key) for key in CACHED})
    return dataset


def _load_streamed(wanted: PreparedSet, folder: Path) -> Dataset:
    images = {}
    for name, source in (("train", "train"), ("test", wanted.test_split)):
        split = Split(wanted, folder, source)
        images[name] = StreamedImages(split, np.arange(len(split)), wanted.image_shape)
    cache = _cache_path(wanted, folder, "streamed")
    arrays = read_cache(cache, CACHED_OF_STREAM)
    if arrays is None:
        labels = {name: np.empty(len(images[name]), np.int32) for name in images}
        mean, std = mean_and_std(_pass(images["train"], labels["train"]))
        for _ in _pass(images["test"], labels["test"]):
            pass
        arrays = {"train_labels": labels["train"], "test_labels": labels["test"], "mean": mean, "std": std}
        write_cache(cache, arrays)
    streamed: Any = {"train_images": images["train"], "test_images": images["test"], **arrays}
    return Dataset(name=f"stream:{wanted.dataset_name}", num_classes=wanted.num_classes, **streamed)


def _pass(images: StreamedImages, labels: np.ndarray) -> Iterator[np.ndarray]:
    """Yields all images in batches and fills in their labels."""
    start = 0
    for batch, batch_labels in images.read(batch_size=256):
        labels[start : start + len(batch)] = batch_labels
        start += len(batch)
        yield batch


def prepare(wanted: PreparedSet, data_dir: str | Path | None = None) -> Path:
    """Downloads a set and prepares it in array_record format, unless that is done already.

    Args:
      wanted: a set of the catalogue of TensorFlow Datasets.
      data_dir: as for `experiments.data.load`.

    Returns:
      The prepared folder.

    Raises:
      DataError: TensorFlow is not installed, or the download or the preparation failed.
    """
    name = wanted.name
    data_dir = data_folder(data_dir)
    if not versions(data_dir / name):
        if importlib.util.find_spec("tensorflow") is None:
            raise DataError(
                f"preparing {name} needs TensorFlow once: pip install -e '.[experiments,prepare]'"
            )
        import tensorflow_datasets as tfds

        try:
            tfds.builder(name, data_dir=data_dir, file_format="array_record").download_and_prepare()
        except Exception as error:  # Of network, disk or format, of many kinds.
            raise DataError(f"preparing {name} in {data_dir} failed: {first_line(error)}") from error
    return _prepared_folder(wanted, data_dir)


def versions(folder: Path) -> list[Path]:
    """Prepared versions of one set, oldest first."""
    found = [info.parent for info in folder.glob("*/dataset_info.json")]
    found = [version for version in found if re.fullmatch(r"\d+\.\d+\.\d+", version.name)]
    return sorted(found, key=lambda version: tuple(map(int, version.name.split("."))))


def _prepared_folder(wanted: PreparedSet, data_dir: Path) -> Path:
    source = wanted.source or (
        f"download it with 'python -m experiments prepare {wanted.name} --data-dir {data_dir}' (extra 'prepare')"
    )
    return newest_version(wanted.name, data_dir, source)


def newest_version(name: str, data_dir: Path, source: str = "") -> Path:
    """The folder of a prepared set.

    Raises:
      DataError: there is none.
    """
    found = versions(data_dir / name)
    if not found:
        source = (
            source
            or f"prepare it, for example by 'python -m experiments prepare folder DIR --save-as {name}'"
        )
        raise DataError(
            f"no {name} in {data_dir} (looked for {name}/*/dataset_info.json): {source}, or name a "
            f"folder that holds it, prepared as array_record, by --data-dir or GRADNORM_DATA_DIR"
        )
    check_regular(found[-1], (found[-1] / name for name in METADATA))
    return found[-1]


def check_regular(folder: Path, files: Iterable[Path]) -> None:
    """Every file of a prepared folder is there, and a file: others would be waited for."""
    for path in files:
        try:
            file_size(path)
        except FileNotFoundError:
            raise DataError(f"{folder} lacks {path.name}; remove it and prepare it again") from None
        except OSError as error:
            raise DataError(f"cannot read {path}: {first_line(error)}") from error


def _cache_path(wanted: PreparedSet, folder: Path, kind: str) -> Path:
    """The file of decoded arrays, named by everything that decides them: what was wanted, and every file."""
    digest = hashlib.sha256(f"{wanted.dataset_name} {wanted.image_shape} {wanted.num_classes}\n".encode())
    files = [*(folder / name for name in METADATA), *folder.glob("*.array_record-*")]
    for file in sorted(files):
        with open_regular(file) as stream:
            digest.update(f"{file.name} {hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return folder / f"{kind}-{wanted.dataset_name.replace(':', '_')}-{digest.hexdigest()[:16]}.npz"


class Split:
    """One split of a prepared folder, checked against its metadata: `split[i]` decodes one example."""

    def __init__(self, wanted: PreparedSet, folder: Path, split: str):
        import tensorflow_datasets as tfds

        builder: Any = tfds.builder_from_directory(folder)
        self._wanted, self._folder, self._split = wanted, folder, split
        _check_metadata(wanted, folder, split, builder.info)
        self._source = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        """Image i, uint8 [height, width, channels], and its label."""
        example, where, shape = self._source[i], f"{self._folder}: {self._split}", self._wanted.image_shape
        with open_image(example["image"]) as stored:
            image = np.asarray(stored)
        if image.shape != shape or image.dtype != np.uint8:
            raise DataError(f"{where} image {i} has shape {image.shape}, wanted {shape}")
        if not 0 <= example["label"] < self._wanted.num_classes:
            raise DataError(
                f"{where} label {i} is {example['label']}, beyond {self._wanted.num_classes} classes"
            )
        return image, example["label"]

    def decode(self) -> tuple[np.ndarray, np.ndarray]:
        """All images, uint8 [n, height, width, channels], and their labels, int32 [n]."""
        images = np.empty((len(self), *self._wanted.image_shape), np.uint8)
        labels = np.empty(len(self), np.int32)
        for i in range(len(self)):
            images[i], labels[i] = self[i]
        return images, labels


def _check_metadata(wanted: PreparedSet, folder: Path, split: str, info) -> None:
    if info.name != wanted.name:
        raise DataError(f"{folder} holds {info.name}, not {wanted.name}")
    features = dict(info.features)
    image, label = features.get("image"), features.get("label")
    if getattr(image, "shape", None) != wanted.image_shape:
        raise DataError(f"{folder}: images must have shape {wanted.image_shape}, features.json says {image}")
    if getattr(label, "num_classes", None) != wanted.num_classes:
        raise DataError(
            f"{folder}: labels must have {wanted.num_classes} classes, features.json says {label}"
        )
    check_files(folder, info, (split,))


def check_files(folder: Path, info, splits: Sequence[str]) -> None:
    """Every file of some splits is there, and holds as many whole records as the metadata say."""
    from array_record.python.array_record_module import ArrayRecordReader

    if info.file_format.value != "array_record":
        raise DataError(f"{folder} is in the file format {info.file_format.value}, wanted array_record")
    shards = [
        pair
        for s in splits
        for pair in zip(info.splits[s].filepaths, info.splits[s].shard_lengths, strict=True)
    ]
    check_regular(folder, (Path(path) for path, _ in shards))
    for path, expected in shards:
        count = ArrayRecordReader(str(path)).num_records()  # 0 for a file that is not whole.
        if count != expected:
            raise DataError(
                f"{path} holds {count} whole records, dataset_info.json says {expected}; "
                f"remove {folder} and prepare it again"
            )


def read_cache(path: Path, keys: Sequence[str]) -> dict[str, np.ndarray] | None:
    try:
        return read_npz(path, keys)
    except (FileNotFoundError, NpzError):
        return None


def write_cache(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Keeps the arrays for next time, if the folder can be written; never half a file."""
    temporary = path.with_name(f"{HALF_WRITTEN}-{os.getpid()}.npz")
    try:
        np.savez(temporary, allow_pickle=False, **arrays)
        temporary.replace(path)
        # Decoded copies of files that have changed since; a process that is reading one keeps it open.
        for old in path.parent.glob(f"{path.name.rpartition('-')[0]}-*.npz"):
            if old != path:
                old.unlink()
    except OSError:
        temporary.unlink(missing_ok=True)


def remove_half_written(folder: Path) -> None:
    """Removes half-written files of killed processes; each is named by its process."""
    for path in folder.glob(f"{HALF_WRITTEN}-*.npz"):
        if machine.has_ended(path.stem.removeprefix(f"{HALF_WRITTEN}-")):
            with contextlib.suppress(OSError):
                path.unlink()
