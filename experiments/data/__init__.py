"""Data sets, by name: every source gives the same arrays."""

from pathlib import Path

from experiments.data.dataset import DataError, Dataset

NAMES = ("digits", "cifar10", "cifar100", "arrays:PATH.npz")

__all__ = ["NAMES", "DataError", "Dataset", "load"]


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
        from experiments.data import digits

        return digits.load()
    raise ValueError(f"unknown dataset {name!r}; choose from {', '.join(NAMES)}")
