"""Tar files of images, read without unpacking them: regular files alone, and each of a bounded size."""

import contextlib
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from experiments.data.dataset import DataError
from experiments.files import first_line, in_words, printable

# Bytes of an image: six times those of ImageNet's largest.
MOST_IMAGE = 2**26
OF_AT_MOST = f"images of at most {in_words(MOST_IMAGE)} are read"


def check_end(file: BinaryIO, where: str) -> None:
    """A tar file ends with a kilobyte of zeros; one that was cut off does not, and may look whole all the same."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 1024))
    if file.read() != bytes(1024):
        raise DataError(f"{where} is no whole tar file: its end is missing; download it again")
    file.seek(0)


def members(path: Path, file: Any = None, inside: str = "") -> Iterator[tuple[str, Any]]:
    """Names and open files of what a tar file holds, one after another; nothing is unpacked."""
    where, is_empty = f"{path}: {inside}" if inside else str(path), True
    with _naming(where):
        if inside:
            check_end(file, where)
        with tarfile.open(path, "r:", fileobj=file) as tar:
            for member in tar:
                name = printable(member.name)
                # A file of few bytes may be sparse, and say that it has any number of zeros.
                if member.isfile() and not member.issparse():
                    is_empty = False
                    yield os.path.basename(member.name), tar.extractfile(member)
                elif not member.isdir():
                    kind = "sparse" if member.issparse() else "neither a file nor a folder"
                    raise DataError(f"{where}: {name} is {kind}")
    if is_empty:
        raise DataError(f"{where} holds no file; download it again")


def read_member(where: str, name: str, file: Any) -> bytes:
    """The bytes of an image in a tar file."""
    with _naming(where):
        size = file.seek(0, os.SEEK_END)
        if size > MOST_IMAGE:
            raise DataError(f"{where}: {printable(name)} has {in_words(size)}, {OF_AT_MOST}")
        file.seek(0)
        return file.read()


@contextlib.contextmanager
def _naming(where: str) -> Iterator[None]:
    """Says which tar file is damaged."""
    try:
        yield
    except (tarfile.TarError, EOFError, OSError, MemoryError) as error:
        raise DataError(f"{where} is no whole tar file: {first_line(error)}; download it again") from error
