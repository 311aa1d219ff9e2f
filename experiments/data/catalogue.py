"""Every data set by its name, and where it comes from."""

import dataclasses
from pathlib import Path

from experiments.data import arrays, digits, lgg, prepared
from experiments.data.dataset import Dataset
from experiments.data.prepared import PreparedSet

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
NAMES = ("digits", *PREPARED, "lgg", "lgg:SIZE", "stream:NAME", "arrays:PATH.npz")


def load(name: str, data_dir: str | Path | None = None) -> Dataset:
    """Loads a data set.

    Args:
      name: 'digits', 'cifar10', 'cifar100', 'patch_camelyon', 'pcam32', 'lgg', 'lgg:SIZE' for slices resized
        to SIZE x SIZE pixels, or 'arrays:PATH.npz' for your own arrays: all into memory. 'stream:NAME' reads
        a prepared set, such as 'stream:patch_camelyon', while a network trains on it, in the same order.
        'patch_camelyon:validation' has the published validation patches in place of the test patches.
      data_dir: where prepared TensorFlow Datasets and the folder kaggle_3m lie; `None` takes the environment
        variable GRADNORM_DATA_DIR, or else ~/tensorflow_datasets.

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
    if name == "digits":
        return digits.load()
    if name in PREPARED:
        return prepared.load(PREPARED[name], data_dir)
    if source == "lgg":
        return lgg.load(name, data_dir)
    if source == "arrays" and separator:
        return arrays.load(path)
    raise ValueError(f"unknown dataset {name!r}; choose from {', '.join(NAMES)}")


def prepare(name: str, data_dir: str | Path | None = None) -> Path:
    """Downloads a set of TensorFlow Datasets and prepares it, unless that is done already.

    Args:
      name: 'cifar10', 'cifar100' or 'patch_camelyon'.
      data_dir: as for `load`.

    Returns:
      The prepared folder.

    Raises:
      DataError: TensorFlow is not installed, or the download or the preparation failed.
      ValueError: the name is unknown.
    """
    choices = [known for known, wanted in PREPARED.items() if known == wanted.name and not wanted.source]
    if name not in choices:
        raise ValueError(f"unknown dataset {name!r} to prepare; choose from {', '.join(choices)}")
    return prepared.prepare(PREPARED[name], data_dir)
