"""Files that are read and written whole: what was written, or one clear error."""

import contextlib
import io
import math
import os
import stat
import sys
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.lib import format as npy

# Bytes of a text, such as a record: more than any that is written here.
MOST_TEXT = 2**28


class FileError(Exception):
    """A file cannot be read or written. The message is one line and names the file."""


class NpzError(Exception):
    """A file is no whole .npz file, or lacks an array. The message is one line without the file's name."""


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> Path:
    """Writes a file so that there is always either the old one or the new one, whole.

    Args:
      path: of the file; its folder is made if missing.

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


def _sync_folder(folder: Path) -> None:
    """Makes a rename outlast a power failure, and keeps two renames in order."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def file_size(path: str | Path) -> int:
    """The size of a regular file, in bytes: a pipe or a device would be waited for, or read without end.

    Raises:
      FileNotFoundError: there is nothing of this name.
      OSError: there is something else; the message is one line without the file's name.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        if os.path.islink(path):
            raise OSError(f"it is a link to {os.readlink(path)}, which is not there") from None
        raise
    if not stat.S_ISREG(status.st_mode):
        kind = next((words for is_kind, words in _KINDS.items() if is_kind(status.st_mode)), "something else")
        raise OSError(f"it is {kind}, not a regular file")
    return status.st_size


_KINDS = {
    stat.S_ISDIR: "a folder (directory)",
    stat.S_ISFIFO: "a pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}


def open_regular(path: str | Path) -> io.BufferedReader:
    """Opens a regular file to read it.

    Raises:
      OSError: as `file_size`, or the file cannot be opened.
    """
    file_size(path)
    return open(path, "rb")


def read_bytes(path: str | Path, most: int = MOST_TEXT) -> bytes:
    """Reads a regular file of at most `most` bytes.

    Raises:
      OSError: as `file_size`, or the file is larger or cannot be read.
    """
    if (size := file_size(path)) > most:
        raise OSError(f"it has {in_words(size)}, at most {in_words(most)} are read")
    with open(path, "rb") as file:
        return file.read(size)


def in_words(size: int) -> str:
    """A number of bytes with the unit that suits it, such as '12 bytes' or '1.5 GiB'."""
    power = min(3, max(0, size.bit_length() - 1) // 10)
    return f"{size:,} bytes" if power == 0 else f"{size / 1024**power:,.1f} {' KMG'[power]}iB"


class Header(NamedTuple):
    """What an array will be, known before it takes memory."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_npz(
    path: Path,
    names: Sequence[str] | None = None,
    *,
    check: Callable[[dict[str, Header]], None] | None = None,
    most: int | None = None,
) -> dict[str, np.ndarray]:
    """Reads arrays by name.

    Args:
      path: a file of `numpy.savez`.
      names: the arrays wanted; by default all there are.
      check: is given the headers of all arrays there are, and raises a `FileError` for those that are not wanted,
        before an array takes memory.
      most: bytes that the arrays may take together; by default the memory of this machine.

    Raises:
      FileNotFoundError: there is no such file.
      NpzError: the file is damaged or something else, an array is missing, or they do not fit into memory.
    """
    try:
        file = open_regular(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise NpzError(first_line(error)) from error
    try:
        with file:
            return _read_npz(file, names, check, most)
    except (FileError, NpzError):
        raise
    except MemoryError as error:
        raise NpzError("its arrays do not fit into memory") from error
    except Exception as error:  # Damage shows as one of a dozen kinds, of zipfile, zlib and NumPy.
        raise NpzError(f"it is not a whole .npz file: {first_line(error)}") from error


def _read_npz(file: BinaryIO, names: Sequence[str] | None, check, most: int | None) -> dict[str, np.ndarray]:
    if file.read(len(npy.MAGIC_PREFIX)) == npy.MAGIC_PREFIX:
        raise NpzError("it holds one array without a name; numpy.savez keeps several by name")
    with zipfile.ZipFile(file) as archive:
        members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
        names = list(members) if names is None else names
        looked_at = [name for name in members if name in names or check is not None]
        headers = {name: _read_header(archive, members[name]) for name in looked_at}
        if check is not None:
            check(headers)
        if missing := [name for name in names if name not in members]:
            raise NpzError(f"it has no {', '.join(missing)}; it holds {', '.join(members) or 'nothing'}")
        check_memory([headers[name] for name in names], most)
        return {name: _read_array(archive, members[name]) for name in names}


def printable(name: str | Path) -> str:
    r"""A file's name, in which bytes that are no UTF-8 are written as \xNN."""
    return os.fsencode(name).decode(errors="backslashreplace")


def first_line(error: Exception) -> str:
    """The first line of an error's message, or what kind it is; without the file's name, which the caller knows."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _read_header(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Header:
    """Reads the header of an array, which must ask for all bytes there are: only then is their checksum compared."""
    with archive.open(member) as file:
        is_long = npy.read_magic(file) != (1, 0)
        shape, _, dtype = (npy.read_array_header_2_0 if is_long else npy.read_array_header_1_0)(file)
        header, kept = Header(shape, dtype), member.file_size - file.tell()
    if dtype.hasobject:
        raise NpzError(f"{member.filename} holds Python objects, which are not read")
    if header.nbytes != kept:
        raise NpzError(
            f"it is not a whole .npz file: {member.filename} has {kept} bytes, its header says {header.nbytes}"
        )
    return header


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(member) as file:
        return npy.read_array(file, allow_pickle=False)


def check_memory(arrays: Iterable[Header], most: int | None = None) -> None:
    """Refuses arrays that together take more bytes than `most`, by default than the memory of this machine.

    Raises:
      NpzError: they do.
    """
    needed = sum(math.prod(array.shape) * array.dtype.itemsize for array in arrays)
    if needed > (most := _memory() if most is None else most):
        raise NpzError(f"its arrays take {in_words(needed)} of memory, at most {in_words(most)} are read")


def _memory() -> int:
    """The memory of this machine, in bytes; where no one tells, so much that nothing is refused."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return sys.maxsize
