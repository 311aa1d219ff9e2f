"""Data sets, by name: every source gives the same arrays."""

from pathlib import Path

from experiments.data import arrays, cifar, digits, lgg, pcam, prepared
from experiments.data.dataset import DataError, Dataset
from experiments.data.subsets import select

PREPARED = {**cifar.SETS, **pcam.SETS}
NAMES = ("digits", *PREPARED, "lgg", "lgg:SIZE", "stream:NAME", "arrays:PATH.npz")

__all__ = ["NAMES", "DataError", "Dataset", "load", "prepare", "select"]


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
