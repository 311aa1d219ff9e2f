"""Checkpoints of a state that is divided among devices or hosts: a folder that Orbax writes, each host its part.

It is written while training goes on, and is there whole or not at all; the one before is removed afterwards.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.files import FileError, NpzError, check_memory, first_line

if TYPE_CHECKING:
    import jax


def latest_epoch(folder: Path) -> int | None:
    """The number of epochs that the last whole checkpoint has seen; `None` if there is none."""
    if not folder.is_dir():
        return None
    import orbax.checkpoint as ocp

    return max((step.step for step in ocp.path.step.standard_name_format().find_all(folder)), default=None)


class Writer:
    """Writes checkpoints into a folder, one after another; on several hosts all call it together."""

    def __init__(self, folder: Path):
        import orbax.checkpoint as ocp

        self.folder = folder
        options = ocp.CheckpointManagerOptions(max_to_keep=1)
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def write(self, arrays: Mapping[str, "jax.Array"], epoch: int) -> None:
        """Begins to write a checkpoint, once the one before is whole.

        Raises:
          FileError: one of the two cannot be written; the last whole one is left as it was.
        """
        import orbax.checkpoint as ocp

        try:
            self._manager.save(epoch, args=ocp.args.StandardSave(dict(arrays)), force=True)
        except (OSError, ValueError) as error:
            raise FileError(f"cannot write {self.folder}: {first_line(error)}") from error

    def close(self) -> None:
        """Waits until the last checkpoint is whole.

        Raises:
          FileError: it cannot be written.
        """
        try:
            self._manager.wait_until_finished()
            self._manager.close()
        except (OSError, ValueError) as error:
            raise FileError(f"cannot write {self.folder}: {first_line(error)}") from error


def read(
    folder: Path,
    epoch: int,
    like: Mapping[str, "jax.Array"] | None = None,
    *,
    check: Callable[[Mapping[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Reads a checkpoint, on as many devices and hosts as there are now.

    Args:
      folder: of the checkpoints.
      epoch: which one, as `latest_epoch` gives it.
      like: arrays that lie as those of the checkpoint are to lie; by default they are whole NumPy arrays.
      check: is given shapes and dtypes of all arrays there are, and raises a `FileError` for those that are not
        wanted, before an array takes memory. With `like` it must let through arrays like these alone.

    Returns:
      The arrays by name.

    Raises:
      FileError: it cannot be read.
    """
    import orbax.checkpoint as ocp

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
    except (OSError, ValueError, TypeError, KeyError, AttributeError, NpzError) as error:
        raise FileError(
            f"cannot read {folder}: {first_line(error)}; remove it to start the run again"
        ) from error


def _describe(array: "jax.Array") -> "jax.ShapeDtypeStruct":
    import jax

    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)
