"""One command at a time works in a folder: a file in it says which, and goes when that ends."""

import contextlib
import os
import platform
import re
from pathlib import Path
from typing import BinaryIO

from experiments import hosts, machine
from experiments.files import FileError

try:
    import fcntl
except ImportError:  # not on this system: then the process's number decides
    fcntl = None

NAME = ".lock"


class FolderLock:
    """Context manager that keeps other commands out of a folder; of several hosts the first holds it for all.

    The system gives the lock back when its process ends, however that comes, so a file that a killed process left is
    taken over. Where the process is on another host, which may see no such locks, the file alone is believed.

    Raises:
      FileError: another command works in the folder; the message says which, and how to go on.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.path = folder / NAME
        self._held: contextlib.ExitStack | None = None
        self._made: list[Path] = []

    def __enter__(self) -> "FolderLock":
        hosts.on_first(self._take)
        return self

    def __exit__(self, *exception) -> None:
        if self._held is not None:
            with self._held, contextlib.suppress(OSError):
                self.path.unlink()  # before the lock goes: afterwards the file may be another's
            with contextlib.suppress(OSError):  # what came to nothing leaves no empty folder
                for folder in self._made:
                    folder.rmdir()

    def _take(self) -> None:
        try:
            self._made = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
            while self._held is None:
                self.folder.mkdir(parents=True, exist_ok=True)  # another may have removed an empty one
                with contextlib.suppress(FileNotFoundError), contextlib.ExitStack() as opened:
                    file = opened.enter_context(open(self.path, "a+b"))
                    self._check_free(file)
                    if self._is_the_file(file):
                        file.truncate(0)
                        file.write(f"process {os.getpid()} on {platform.node()}\n".encode())
                        file.flush()
                        self._held = opened.pop_all()
        except OSError as error:
            raise FileError(f"cannot write {self.path}: {error.strerror or error}") from error

    def _check_free(self, file: BinaryIO) -> None:
        """Takes the system's lock, where there is one, and raises if the folder is another's."""
        is_locked = _lock(file)
        file.seek(0)
        found = re.match(r"process (\d+) on (.*)\n", file.read(1000).decode(errors="replace"))
        pid, host = found.groups() if found else ("", platform.node())
        if host != platform.node():
            raise FileError(
                f"{self.folder} is in use by process {pid} on host {host}; "
                f"if that has ended without tidying up, remove {self.path}"
            )
        if is_locked is False or (is_locked is None and pid and not machine.has_ended(pid)):
            process = f"process {pid} on this host" if pid else "another process"
            raise FileError(
                f"{self.folder} is in use by {process}: wait for its end, or choose another --out"
                + ("" if is_locked is False else f"; if it has ended, remove {self.path}")
            )

    def _is_the_file(self, file: BinaryIO) -> bool:
        """Whether the path still leads to this file, which the process before may just have removed."""
        try:
            return os.path.samestat(os.fstat(file.fileno()), os.stat(self.path))
        except FileNotFoundError:
            return False


def _lock(file: BinaryIO) -> bool | None:
    """Whether this process has the file's lock now; `None` where neither system nor disk knows locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
