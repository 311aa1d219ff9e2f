"""Every data set by its name, and where it comes from."""

import dataclasses
import tempfile
from pathlib import Path

from experiments.data import archives, arrays, digits, jpeg, lgg, prepared
from experiments.data.dataset import Dataset
from experiments.data.prepared import PreparedSet
from experiments.options import Reading

_PATCHES = PreparedSet("patch_camelyon", image_shape=(96, 96, 3), num_classes=2)
PREPARED = {
    # Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
    "cifar10": PreparedSet("cifar10", image_shape=(32, 32, 3), num_classes=10),
    "cifar100": PreparedSet("cifar100", image_shape=(32, 32, 3), num_classes=100),
    # Patches of lymph node sections; the label says whether the centre 32 x 32 pixels hold tumour. Veeling, Linmans,
    # Winkens, Cohen and Welling, "Rotation Equivariant CNNs for Digital Pathology", 2018, arXiv 1806.03962.
    "patch_camelyon": _PATCHES,
    # The validation patches serve as test patches: settings are chosen on slides that are in neither set.
    "patch_camelyon:validation": dataclasses.replace(_PATCHES, test_split="validation"),
    # Only the centre, which decides the label, for networks of CIFAR's image size.
    "pcam32": PreparedSet(
        "pcam32",
        image_shape=(32, 32, 3),
        num_classes=2,
        source="it is not in the catalogue of TensorFlow Datasets: crop the centres of patch_camelyon and "
        "write them with tfds.dataset_builders.store_as_tfds_dataset",
    ),
}
CIFAR10_JPEG = "cifar10_jpeg"
USAGE = {
    "imagenet2012": "--archive DIR, the folder of its tar files",
    "folder": "the folder: prepare folder DIR",
}
NAMES = (
    "digits",
    *PREPARED,
    "lgg",
    "lgg:SIZE",
    "stream:NAME",
    "jpeg:NAME",
    "jpeg:NAME:SIZE",
    "arrays:PATH.npz",
)


def load(name: str, data_dir: str | Path | None = None, reading: Reading | None = None) -> Dataset:
    """Loads a data set.

    Args:
      name: 'digits', 'cifar10', 'cifar100', 'patch_camelyon', 'pcam32', 'lgg', 'lgg:SIZE' for slices resized
        to SIZE x SIZE pixels, or 'arrays:PATH.npz' for your own arrays: all into memory. 'stream:NAME' reads
        a prepared set, such as 'stream:patch_camelyon', while a network trains on it, in the same order.
        'jpeg:NAME' is a prepared set of JPEG images of any size, such as 'jpeg:imagenet2012', cropped to 224 x 224
        pixels while it is read, 'jpeg:NAME:SIZE' to SIZE x SIZE.
        'patch_camelyon:validation' has the published validation patches in place of the test patches.
      data_dir: where prepared TensorFlow Datasets and the folder kaggle_3m lie; `None` takes the environment
        variable GRADNORM_DATA_DIR, or else ~/tensorflow_datasets.
      reading: of 'jpeg:NAME', worker processes and what becomes of damaged images.

    Returns:
      The images and labels of both splits.

    Raises:
      DataError: the set is missing or damaged; the message says what was looked for and where.
      ValueError: the name is unknown.
    """
    source, separator, path = name.partition(":")
    if source == "stream":
        if path not in PREPARED:
            raise ValueError(f"dataset {name!r} cannot be streamed; choose from {', '.join(PREPARED)}")
        return prepared.load(PREPARED[path], data_dir, stream=True)
    if source == "jpeg":
        return jpeg.load(name, data_dir, reading or Reading())
    if name == "digits":
        return digits.load()
    if name in PREPARED:
        return prepared.load(PREPARED[name], data_dir)
    if source == "lgg":
        return lgg.load(name, data_dir)
    if source == "arrays" and separator:
        return arrays.load(path)
    raise ValueError(f"unknown dataset {name!r}; choose from {', '.join(NAMES)}")


def prepare(
    name: str,
    data_dir: str | Path | None = None,
    *,
    archive: str | Path | None = None,
    source: str | Path | None = None,
    save_as: str | None = None,
) -> Path:
    """Prepares a set, unless that is done already.

    Args:
      name: 'cifar10', 'cifar100' or 'patch_camelyon' to download a set of TensorFlow Datasets; 'imagenet2012' from
        its archives; 'folder' from folders of images; or 'cifar10_jpeg', a few hundred images of the prepared
        cifar10 as JPEGs of many sizes, to try what is made for ImageNet.
      data_dir: as for `load`.
      archive: of imagenet2012; see `archives.prepare_imagenet`.
      source: of 'folder', as is `save_as`; see `archives.prepare_folder`.
      save_as: name of the set that 'folder' prepares.

    Returns:
      The prepared folder.

    Raises:
      DataError: TensorFlow is not installed, or the download or the preparation failed.
      ValueError: the name is unknown, or an argument is missing or belongs to another name.
    """
    options = {"imagenet2012": {"archive": archive}, "folder": {"source": source, "save_as": save_as}}
    for of, arguments in options.items():
        for argument, value in arguments.items():
            if value is not None and name != of:
                raise ValueError(f"{argument.replace('_', '-')} goes with 'prepare {of}', not with {name!r}")
            if value is None and name == of and argument != "save_as":
                raise ValueError(f"'prepare {of}' needs {USAGE[of]}")
    if archive is not None:
        return archives.prepare_imagenet(archive, data_dir)
    if source is not None:
        return archives.prepare_folder(source, data_dir, save_as)
    if name == CIFAR10_JPEG:
        return _prepare_cifar10_jpeg(data_dir)
    choices = [known for known, wanted in PREPARED.items() if known == wanted.name and not wanted.source]
    if name not in choices:
        everything = ", ".join((*choices, "imagenet2012", "folder", CIFAR10_JPEG))
        raise ValueError(f"unknown dataset {name!r} to prepare; choose from {everything}")
    return prepared.prepare(PREPARED[name], data_dir)


def _prepare_cifar10_jpeg(data_dir: str | Path | None) -> Path:
    if done := prepared.versions(prepared.data_folder(data_dir) / CIFAR10_JPEG):
        return done[-1]
    with tempfile.TemporaryDirectory() as folder:
        archives.write_jpegs(load("cifar10", data_dir), Path(folder), train=320, test=80)
        return archives.prepare_folder(folder, data_dir, CIFAR10_JPEG)
