"""Prepares sets of JPEG images in array_record format, from ImageNet's archives or from folders; without TensorFlow.

Images are kept as they are, byte for byte; one that is no JPEG or PNG ends the preparation. A prepared folder is
whole or not there; while it is written, twice the space of the images is needed.
"""

import contextlib
import errno
import hashlib
import io
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import machine
from experiments.data.dataset import DataError, Dataset, list_folder
from experiments.data.prepared import data_folder, versions
from experiments.data.tars import MOST_IMAGE, OF_AT_MOST, check_end, members, read_member
from experiments.files import file_size, first_line, in_words, open_regular, printable, read_bytes
from experiments.pictures import open_image

TRAIN_ARCHIVE, VALIDATION_ARCHIVE = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
# Names in the catalogue of TensorFlow Datasets, whose features and labels these are.
IMAGENET_VERSION = "5.1.0"
IMAGENET_COUNTS = {"train": 1_281_167, "validation": 50_000}

SUFFIXES = (".jpg", ".jpeg", ".png")
EVALUATION_FOLDERS = ("test", "validation", "val")
HELD_OUT = 10  # one image in so many, where a folder has no test images

HALF_WRITTEN = ".preparing"

# Image by image: its name, its bytes and the name of its class.
Images = Iterator[tuple[str, bytes, str]]


def prepare_imagenet(archive: str | Path, data_dir: str | Path | None = None) -> Path:
    """Prepares imagenet2012 from its original archives, unless that is done already.

    Args:
      archive: folder of ILSVRC2012_img_train.tar, which holds one tar file per class, and ILSVRC2012_img_val.tar.
        The labels of the validation images, by their number, are those that TensorFlow Datasets ships.
      data_dir: as for `experiments.data.load`.

    Returns:
      The prepared folder, with splits 'train' and 'validation'.

    Raises:
      DataError: an archive is missing or damaged, or holds something else; the message names it.
    """
    import tensorflow_datasets as tfds

    archive, name = Path(archive).expanduser(), "imagenet2012"
    if done := versions(data_folder(data_dir) / name):
        return done[-1]
    paths = [archive / file for file in (TRAIN_ARCHIVE, VALIDATION_ARCHIVE)]
    for path in paths:
        try:
            with open_regular(path) as file:
                check_end(file, str(path))
        except FileNotFoundError:
            raise DataError(
                f"no {path.name} in {archive}: image-net.org gives it to registered users"
            ) from None
        except OSError as error:
            raise DataError(f"cannot read {path}: {first_line(error)}") from error
    shipped = Path(tfds.core.tfds_path("datasets/imagenet2012"))
    classes = (shipped / "labels.txt").read_text().split()
    labels = (shipped / "validation_labels.txt").read_text().split()
    splits = {
        "train": lambda: _train_images(paths[0], set(classes)),
        "validation": lambda: _validation_images(paths[1], labels),
    }
    size = sum(path.stat().st_size for path in paths)
    return _write(name, IMAGENET_VERSION, classes, splits, size, data_dir)


def _train_images(path: Path, classes: set[str]) -> Images:
    for member, file in members(path):
        synset, suffix = os.path.splitext(member)
        if suffix != ".tar" or synset not in classes:
            raise DataError(
                f"{path}: {printable(member)} is not the archive of one of ImageNet's 1,000 classes"
            )
        where = f"{path}: {member}"
        for inner, image in members(path, file, member):
            yield inner, read_member(where, inner, image), synset


def _validation_images(path: Path, labels: Sequence[str]) -> Images:
    for member, file in members(path):
        number = re.fullmatch(r"ILSVRC2012_val_(\d{8})\.JPEG", member)
        if not number or not 1 <= int(number[1]) <= len(labels):
            raise DataError(f"{path}: {printable(member)} is not one of ImageNet's 50,000 validation images")
        yield member, read_member(str(path), member, file), labels[int(number[1]) - 1]


def prepare_folder(
    source: str | Path, data_dir: str | Path | None = None, save_as: str | None = None
) -> Path:
    """Prepares a set from folders of images, one per class.

    Args:
      source: holds CLASS/NAME.jpg, of which every tenth image of a class, at random but always the same ones, is for
        testing; or train/CLASS/NAME.jpg and test/CLASS/NAME.jpg (or validation/ or val/).
      data_dir: as for `experiments.data.load`.
      save_as: name of the set; by default that of the folder.

    Returns:
      The prepared folder, with splits 'train' and 'test'. Classes are numbered by their names' order.

    Raises:
      DataError: the folders are not as above, or a file is no image; the message names one.
      ValueError: the name cannot be one.
    """
    source = Path(source).expanduser().resolve()
    name = save_as or re.sub(r"\W+", "_", source.name.lower(), flags=re.ASCII)
    if not re.fullmatch(r"[a-z]\w*", name, flags=re.ASCII):
        raise ValueError(
            "--save-as must give the set a name that begins with a letter from a to z and goes on with such "
            f"letters, digits and _, like 'my_images'; {name!r} does not"
        )
    folder = data_folder(data_dir) / name
    if versions(folder):
        raise DataError(f"{folder} is there already: choose another name by --save-as, or remove it")
    if not os.path.isdir(source):
        raise DataError(f"no folder {source}; it should hold CLASS/NAME.jpg")
    tests = [path for key in EVALUATION_FOLDERS if os.path.isdir(path := source / key)]
    if os.path.isdir(source / "train"):
        if not tests:
            raise DataError(
                f"{source} has train/ but none of {', '.join(f'{e}/' for e in EVALUATION_FOLDERS)}"
            )
        train, test = _classes(source / "train"), _classes(tests[0])
        for unknown in sorted(test.keys() - train.keys()):
            raise DataError(f"{tests[0]} has a class {unknown!r} that {source / 'train'} lacks")
    else:
        train, test = _hold_out(_classes(source))
    if len(train) < 2:
        raise DataError(f"{source} must hold the folders of two classes or more, it holds {len(train)}")
    found = {"train": train, "test": test}
    size = sum(_image_size(path) for split in found.values() for paths in split.values() for path in paths)
    splits = {key: (lambda images=images: _read_images(images)) for key, images in found.items()}
    return _write(name, "1.0.0", sorted(train), splits, size, data_dir)


def _classes(folder: Path) -> dict[str, list[Path]]:
    """The images of every class, in the order of their names."""
    found = {}
    for path in list_folder(folder):
        if path.name.startswith(".") or not os.path.isdir(path):
            continue
        if printable(path.name) != path.name or path.name.splitlines() != [path.name]:
            raise DataError(
                f"the folder {printable(path)} cannot name a class: rename it, in UTF-8 and one line"
            )
        images = [p for p in list_folder(path) if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")]
        if not images:
            raise DataError(f"{path} holds no image ({', '.join(SUFFIXES)})")
        found[path.name] = images
    if not found:
        raise DataError(f"{folder} holds no folder; it should hold CLASS/NAME.jpg")
    return found


def _image_size(path: Path) -> int:
    """The size of an image's file, in bytes."""
    try:
        size = file_size(path)
    except OSError as error:
        raise DataError(f"cannot read {printable(path)}: {first_line(error)}") from error
    if size > MOST_IMAGE:
        raise DataError(f"{printable(path)} has {in_words(size)}, {OF_AT_MOST}")
    return size


def _hold_out(classes: dict[str, list[Path]]) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    """One image of every ten of a class, and at least one, for testing."""
    train, test = {}, {}
    for label, images in classes.items():
        if len(images) < 2:
            raise DataError(f"{images[0].parent} holds one image; training and testing need one each")
        by_chance = sorted(images, key=lambda path: hashlib.sha256(os.fsencode(path.name)).digest())
        count = max(1, len(images) // HELD_OUT)
        test[label], train[label] = sorted(by_chance[:count]), sorted(by_chance[count:])
    return train, test


def _read_images(classes: dict[str, list[Path]]) -> Images:
    for label, paths in classes.items():
        for path in paths:
            try:
                encoded = read_bytes(path, MOST_IMAGE)
            except OSError as error:
                raise DataError(f"cannot read {printable(path)}: {first_line(error)}") from error
            yield f"{label}/{path.name}", encoded, label


def write_jpegs(dataset: Dataset, folder: Path, train: int, test: int) -> None:
    """Writes images of a set in memory as JPEGs of many sizes, as `prepare_folder` takes them.

    Args:
      train: how many training images, in the set's order.
      test: how many test images.
    """
    from PIL import Image

    sizes = np.random.RandomState(0)  # Unlike default_rng, its numbers never change between versions.
    for split, count in (("train", train), ("test", test)):
        images, labels = getattr(dataset, f"{split}_images"), getattr(dataset, f"{split}_labels")
        for i in range(count):
            path = folder / split / f"{labels[i]:03d}" / f"{i:05d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            size = sizes.randint(40, 160), sizes.randint(40, 160)
            Image.fromarray(images[i]).resize(size, Image.Resampling.BICUBIC).save(path, quality=90)


def describe(folder: Path) -> str:
    """How many images a prepared folder holds, and whether ImageNet has more."""
    import tensorflow_datasets as tfds

    splits = tfds.builder_from_directory(folder).info.splits
    counts: dict[str, int] = {name: splits[name].num_examples for name in splits}
    words = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    if folder.parent.name == "imagenet2012" and any(counts.get(k) != n for k, n in IMAGENET_COUNTS.items()):
        words += f" (the whole of ImageNet: {', '.join(f'{n:,} {k}' for k, n in IMAGENET_COUNTS.items())})"
    return words


def _write(
    name: str,
    version: str,
    classes: Sequence[str],
    splits: dict[str, Callable[[], Images]],
    size: int,
    data_dir: str | Path | None,
) -> Path:
    """Writes a prepared folder beside its place, and moves it there when it is whole."""
    import tensorflow_datasets as tfds

    target = data_folder(data_dir) / name / version
    temporary = target.parent / f"{HALF_WRITTEN}-{os.getpid()}"
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    try:
        _remove_half_written(target.parent)
        temporary.mkdir(parents=True)
        if (free := shutil.disk_usage(temporary).free) < 2 * size:
            needed = in_words(2 * size)
            raise OSError(errno.ENOSPC, f"{needed} are needed, {in_words(free)} are free")
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS tells of the temporary folder
            _make_builder(name, version, classes, splits, temporary).download_and_prepare()
        os.replace(temporary / name / version, target)
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"cannot write {target}: {error.strerror or error}") from error
    except Exception as error:  # TFDS raises many kinds.
        raise DataError(f"preparing {name} failed: {first_line(error)}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        with contextlib.suppress(OSError):  # it holds other versions
            target.parent.rmdir()
    return target


def _remove_half_written(folder: Path) -> None:
    """Removes what processes that were killed while they wrote left behind: each is named by its process."""
    for path in folder.glob(f"{HALF_WRITTEN}-*"):
        if machine.has_ended(path.name.removeprefix(f"{HALF_WRITTEN}-")):
            shutil.rmtree(path, ignore_errors=True)


def _make_builder(name: str, version: str, classes: Sequence[str], splits, data_dir: Path):
    """TensorFlow Datasets' own writer: features and files are those of its ImageNet."""
    import tensorflow_datasets as tfds

    def info(self):
        features: Any = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=classes),
            "file_name": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=("image", "label")
        )

    def examples(images: Callable[[], Images]) -> Iterable[tuple[str, dict[str, Any]]]:
        keys = set()
        for key, encoded, label in images():
            _check_image(printable(key), encoded)
            if printable(key) != key:
                raise DataError(f"the name of {printable(key)} is no UTF-8: rename it")
            if key in keys:
                raise DataError(f"there are two images {key}: rename one")
            keys.add(key)
            yield key, {"image": io.BytesIO(encoded), "label": label, "file_name": key}

    builder = type(
        name,
        (tfds.core.GeneratorBasedBuilder,),
        {
            "VERSION": tfds.core.Version(version),
            "pkg_dir_path": data_dir,  # else TFDS looks for metadata beside this module
            "_info": info,
            "_split_generators": lambda self, _: {key: examples(images) for key, images in splits.items()},
            "_generate_examples": None,
            "name": name,
        },
        skip_registration=True,
    )
    return builder(data_dir=data_dir, file_format="array_record")


def _check_image(key: str, encoded: bytes) -> None:
    """The file begins as an image; whether it is whole is seen where it is decoded."""
    from PIL import UnidentifiedImageError

    try:
        with open_image(encoded) as image:
            kind = image.format
    except UnidentifiedImageError as error:
        raise DataError(f"{key} is no image") from error
    except Exception as error:  # Pillow raises many kinds.
        raise DataError(f"{key} cannot be read as an image: {first_line(error)}") from error
    if kind not in ("JPEG", "PNG"):
        raise DataError(f"{key} must be a JPEG or PNG image, it is {kind}")
