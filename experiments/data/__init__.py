"""Data sets, by name: every source gives the same arrays."""

from experiments.data.archives import describe
from experiments.data.catalogue import NAMES, load, prepare
from experiments.data.dataset import DataError, Dataset
from experiments.data.subsets import select

__all__ = ["NAMES", "DataError", "Dataset", "describe", "load", "prepare", "select"]
