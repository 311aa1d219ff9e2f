"""Reads the .npz files of users, caches and checkpoints: the arrays that were written, or one clear error."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np


class NpzError(Exception):
    """A file is no whole .npz file, or lacks an array. The message is one line without the file's name."""


def read_npz(path: Path, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Reads arrays by name.

    Args:
      path: a file of `numpy.savez`.
      names: the arrays wanted; by default all there are.

    Raises:
      FileNotFoundError: there is no such file.
      NpzError: the file is damaged or something else, or an array is missing.
    """
    try:
        # Opened here, because `np.load` leaves a file open that it cannot read.
        with open(path, "rb") as file:
            _check_all_bytes(file)
            with np.load(file, allow_pickle=False) as arrays:
                if missing := [name for name in names or () if name not in arrays]:
                    found = ", ".join(arrays) or "nothing"
                    raise NpzError(f"it has no {', '.join(missing)}; it holds {found}")
                return {name: arrays[name] for name in (arrays if names is None else names)}
    except (FileNotFoundError, MemoryError, NpzError):
        raise
    except Exception as error:  # Damage shows as one of a dozen kinds, of zipfile, zlib and NumPy.
        raise NpzError(f"it is not a whole .npz file: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """The first line of an error's message, or what kind it is."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _check_all_bytes(file: BinaryIO) -> None:
    """Compares every checksum: `np.load` skips it where a damaged header asks for too few bytes."""
    if file.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX:
        raise NpzError("it holds one array without a name; numpy.savez keeps several by name")
    file.seek(0)
    with zipfile.ZipFile(file) as archive:
        if damaged := archive.testzip():
            raise NpzError(f"it is not a whole .npz file: {damaged} is damaged")
    file.seek(0)
