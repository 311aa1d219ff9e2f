"""What worker processes need of the machine: its cores, a shared compilation cache, an end with their parent."""

import contextlib
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

COMPILED = "optax-gradnorm-compiled"


def backend() -> str:
    """'cpu', 'gpu' or 'tpu'."""
    import jax

    return jax.default_backend()


def usable_cores() -> list[int]:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def pin(core: int) -> None:
    """Keeps this process, and with it XLA, to one core; must come before the first computation."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    else:
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()


def has_ended(pid: str) -> bool:
    """Whether this is the number of a process that is gone; where there is no harmless way to ask, `False`."""
    if os.name != "posix" or not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)  # Signal 0 is none: it only asks.
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:  # It is another user's.
        return False
    return False


@contextlib.contextmanager
def compilation_cache() -> Iterator[str]:
    """A folder in which runs that differ in the seed alone share their compiled epoch."""
    if folder := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        yield folder
    else:
        _remove_dead_caches()
        prefix = f"{COMPILED}-{os.getpid()}-"
        with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as folder:
            yield folder


def _remove_dead_caches() -> None:
    """Removes the folders that killed processes left behind: each is named by its process."""
    for folder in Path(tempfile.gettempdir()).glob(f"{COMPILED}-*-*"):
        if has_ended(folder.name.removeprefix(f"{COMPILED}-").partition("-")[0]):
            shutil.rmtree(folder, ignore_errors=True)


def use_compilation_cache(folder: str) -> None:
    """Makes this process take compiled programs from a folder, and leave them there."""
    import jax

    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def exit_with_parent() -> None:
    """Waits for the parent's end, then ends this process: to be run in a thread of its own."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
