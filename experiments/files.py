"""Files that are read and written whole: what was written, or one clear error."""

import contextlib
import errno
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np


class FileError(Exception):
    """A file cannot be read or written. The message is one line and names the file."""


class NpzError(Exception):
    """A file is no whole .npz file, or lacks an array. The message is one line without the file's name."""


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> Path:
    """Writes a file so that there is always either the old one or the new one, whole.

    Args:
      path: of the file; its folder is made if missing.
      write: gets the open file.

    Returns:
      The path.

    Raises:
      FileError: the file cannot be written; an older one is left as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
        _sync_folder(path.parent)
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def read_regular(path: Path) -> bytes:
    """All of a file; anything else, such as a pipe or a device, might never end.

    Raises:
      FileNotFoundError: there is no such file.
      OSError: it cannot be read, or is no file.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is no file", str(path))
    return path.read_bytes()


def _sync_folder(folder: Path) -> None:
    """Makes a rename outlast a power failure, and keeps two renames in order."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


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
        # Opened here, because `np.load` leaves a file open if it cannot read it.
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
