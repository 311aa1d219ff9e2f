"""Data sets, by name: every source gives the same arrays."""

from pathlib import Path

from experiments.data import arrays, cifar, digits
from experiments.data.cifar import prepare
from experiments.data.dataset import DataError, Dataset
from experiments.data.subsets import select

NAMES = ("digits", "cifar10", "cifar100", "arrays:PATH.npz")

__all__ = ["NAMES", "DataError", "Dataset", "load", "prepare", "select"]


def load(name: str, data_dir: str | Path | None = None) -> Dataset:
    """Loads a data set into memory.

    Args:
      name: 'digits', 'cifar10', 'cifar100', or 'arrays:PATH.npz' for your own arrays.
      data_dir: where prepared TensorFlow Datasets lie; `None` takes the environment variable
        GRADNORM_DATA_DIR, or else ~/tensorflow_datasets.

    Returns:
      The images and labels of both splits.

    Raises:
      DataError: the set is missing or damaged; the message says what was looked for and where.
      ValueError: the name is unknown.
    """
    if name == "digits":
        return digits.load()
    if name in cifar.NUM_CLASSES:
        return cifar.load(name, data_dir)
    source, separator, path = name.partition(":")
    if source == "arrays" and separator:
        return arrays.load(path)
    raise ValueError(f"unknown dataset {name!r}; choose from {', '.join(NAMES)}")
