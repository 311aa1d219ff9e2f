"""Checkpoints of a state that is divided among devices or hosts: a folder that Orbax writes, each host its part.

It is written while training goes on, and is there whole or not at all; the one before is removed afterwards.
"""

import contextlib
import functools
import logging
import os
import re
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.files import FileError, check_memory, first_line

if TYPE_CHECKING:
    import jax


def latest_epoch(folder: Path) -> int | None:
    """The number of epochs that the last whole checkpoint has seen; `None` if there is none."""
    return max(_epochs(folder), default=None)


def _epochs(folder: Path) -> list[int]:
    """The whole checkpoints that there are, in order."""
    if not folder.is_dir():
        return []
    steps = _import_orbax().path.step.standard_name_format().find_all(folder)
    return sorted(step.step for step in steps)


def remove_unfinished(folder: Path) -> None:
    """Removes what was not finished: it would take a full disk's last room."""
    for path in _unfinished(folder):
        shutil.rmtree(path, ignore_errors=True)


def _unfinished(folder: Path) -> list[Path]:
    return list(folder.glob("*.orbax-checkpoint-tmp*"))


class Writer:
    """Writes checkpoints into a folder, one after another; on several hosts all call it together.

    Not Orbax's manager, which after a failed write on one host waits for the others before it says so.
    """

    def __init__(self, folder: Path):
        ocp = _import_orbax()
        self.folder = folder
        self._orbax = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())

    def write(self, arrays: Mapping[str, "jax.Array"], epoch: int) -> None:
        """Begins to write a checkpoint, once the one before is whole.

        Raises:
          FileError: one of the two cannot be written; the last whole one is left as it was.
        """
        ocp = _import_orbax()
        self._wait()
        items = ocp.args.Composite(default=ocp.args.StandardSave(dict(arrays)))
        with self._naming():
            self._orbax.save(self.folder.absolute() / str(epoch), args=items, force=True)

    def close(self) -> None:
        """Waits until the last checkpoint is whole.

        Raises:
          FileError: it cannot be written.
        """
        self._wait()
        with self._naming():
            self._orbax.close()

    def _wait(self) -> None:
        """Waits until the last checkpoint is whole, and removes the one before."""
        import jax

        with self._naming():
            self._orbax.wait_until_finished()
        if jax.process_index() == 0:
            for epoch in _epochs(self.folder)[:-1]:
                shutil.rmtree(self.folder / str(epoch), ignore_errors=True)

    @contextlib.contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax and TensorStore raise of every kind.
            if isinstance(error, TimeoutError) and error.__cause__ is not None:
                raise error.__cause__ from None  # Another host has gone: whoever hears JAX say so knows which.
            if not _has_others():
                self._remove_unfinished()
            raise FileError(f"cannot write {self.folder}: {_reason(error)}") from error

    def _remove_unfinished(self) -> None:
        """Removes what a failed write left; Orbax goes on for a moment with the parts that it had begun."""
        for _ in range(20):
            remove_unfinished(self.folder)
            time.sleep(0.25)
            if not _unfinished(self.folder):
                break


def read(
    folder: Path,
    epoch: int,
    like: Mapping[str, "jax.Array"] | None = None,
    *,
    check: Callable[[Mapping[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Reads a checkpoint, on as many devices and hosts as there are now.

    Args:
      epoch: which one, as `latest_epoch` gives it.
      like: arrays that lie as those of the checkpoint are to lie; by default they are whole NumPy arrays.
      check: is given shapes and dtypes of all arrays there are, and raises a `FileError` for those that are not
        wanted, before an array takes memory. With `like` it must let through arrays like these alone.

    Returns:
      The arrays by name.

    Raises:
      FileError: it cannot be read.
    """
    ocp = _import_orbax()
    try:
        handler = ocp.StandardCheckpointHandler()
        with ocp.CheckpointManager(folder.absolute(), item_handlers=handler) as manager:
            stored = manager.item_metadata(epoch).tree
            if check is not None:
                check(stored)
            if like is None:
                check_memory(stored.values())
                wanted = {name: np.empty(kept.shape, kept.dtype) for name, kept in stored.items()}
            else:
                wanted = {name: _describe(array) for name, array in like.items()}
            return manager.restore(epoch, args=ocp.args.StandardRestore(wanted))
    except FileError:
        raise
    except Exception as error:  # Damage shows as one of a dozen kinds.
        raise FileError(
            f"cannot read {folder}: {_reason(error)}; remove it to start the run again"
        ) from error


@functools.cache
def _import_orbax() -> Any:
    """Orbax, whose pages about what it also raises stay off the terminal; several hosts have a log for them."""
    import orbax.checkpoint

    if not _has_others():
        for name in ("absl", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    show = sys.unraisablehook

    def show_others(unraisable: Any) -> None:
        # TensorStore goes on to tell the loop of a write that has failed already.
        if str(unraisable.exc_value) != "Event loop is closed":
            show(unraisable)

    sys.unraisablehook = show_others
    # Where one of several writes fails, Orbax never begins some of the others.
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    return orbax.checkpoint


def _has_others() -> bool:
    import jax

    return jax.process_count() > 1


def _reason(error: Exception) -> str:
    """A few words: TensorStore's own are a list of what it was doing."""
    if code := re.search(r"os_error_code='(\d+)'", str(error)):
        return os.strerror(int(code[1]))
    return getattr(error, "strerror", None) or first_line(error)[:300]


def _describe(array: "jax.Array") -> "jax.ShapeDtypeStruct":
    import jax

    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)
