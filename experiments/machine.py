"""The machine: its cores, a shared compilation cache, an end with the parent process, what a record says of it."""

import contextlib
import functools
import importlib.metadata
import multiprocessing
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

import optax_gradnorm

COMPILED = "optax-gradnorm-compiled"

ONEDNN_FLAGS = {
    "xla_cpu_use_onednn": "true",
    "xla_cpu_experimental_onednn_custom_call": "true",
    # Otherwise YNNPACK, XLA's other kernel library, takes the convolutions before oneDNN sees them.
    "xla_cpu_experimental_ynn_fusion_type": "-individual_dot,-individual_convolution",
}


def backend() -> str:
    """'cpu', 'gpu' or 'tpu'."""
    return jax.default_backend()


def usable_cores() -> list[int]:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def cpu_model() -> str:
    """Name of the processor, and on Linux its family, model and stepping, which cloud providers do not hide."""
    try:
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    except OSError:
        first = ""
    fields = dict(re.findall(r"^([^\t:]+)\t*: (.*)$", first, flags=re.MULTILINE))
    name = fields.get("model name") or platform.processor() or platform.machine()
    numbers = [
        f"{field.removeprefix('cpu ')} {fields[field]}"
        for field in ("cpu family", "model", "stepping")
        if field in fields
    ]
    return f"{name} ({', '.join(numbers)})" if numbers else name


def xla_threads() -> int:
    """Threads that XLA on CPU computes with."""
    return 1 if "--xla_cpu_multi_thread_eigen=false" in _xla_flags() else len(usable_cores())


def xla_flags() -> list[str]:
    """Flags that XLA got from the environment, without values that are paths."""
    return [flag.partition("=")[0] if os.sep in flag else flag for flag in _xla_flags()]


def use_cores(count: int) -> None:
    """Keeps this process to its first cores; must come before the first computation.

    Raises:
      ValueError: it may not use so many, or the system cannot keep a process to some.
    """
    cores = usable_cores()
    if not 1 <= count <= len(cores):
        raise ValueError(f"cores must be from 1 to the {len(cores)} there are, got {count}")
    if count < len(cores):
        if not hasattr(os, "sched_setaffinity"):
            raise ValueError("this system cannot keep a process to some of its cores")
        os.sched_setaffinity(0, set(cores[:count]))


def pin(core: int) -> None:
    """Keeps this process, and with it XLA, to one core; must come before the first computation."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    else:
        _add_xla_flags({"xla_cpu_multi_thread_eigen": "false"})


def share_accelerator() -> None:
    """Lets several processes use one GPU; must come before JAX starts its backend, which else takes most memory."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def use_onednn() -> None:
    """Makes XLA on CPU convolve with oneDNN, a third faster; must come before JAX starts its backend.

    Where XLA_FLAGS already names one of these flags, the user has chosen, and nothing changes.
    """
    # An unknown flag ends the process. Older jaxlib gain nothing from these; newer ones may have dropped them.
    version = importlib.metadata.version("jaxlib")
    if version.startswith("0.12.") and not any(
        flag in os.environ.get("XLA_FLAGS", "") for flag in ONEDNN_FLAGS
    ):
        _add_xla_flags(ONEDNN_FLAGS)


def _xla_flags() -> list[str]:
    return os.environ.get("XLA_FLAGS", "").split()


def _add_xla_flags(flags: Mapping[str, str]) -> None:
    before = os.environ.get("XLA_FLAGS", "").strip()
    # A value without dashes names a file that holds the flags.
    if not before or before.startswith("-"):
        os.environ["XLA_FLAGS"] = " ".join(
            [before, *(f"--{name}={value}" for name, value in flags.items())]
        ).strip()


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
    """Shares compiled programs with other processes through a folder."""
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def exit_with_parent() -> None:
    """Waits for the parent's end, then ends this process: to be run in a thread of its own."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def describe_environment(devices: int = 1) -> dict[str, Any]:
    """What a run's metrics and times may depend on; no path and no host name.

    Args:
      devices: number of devices that the run uses.

    Returns:
      Versions of Python and of the packages, operating system, model of the processor, kind (of a GPU its
      name) and number of devices, number of hosts, number of CPU cores of the machine and of this process,
      threads of XLA on CPU, flags given to XLA (without paths), precision of matrix products and convolutions, and
      the source's commit.
    """
    return {
        "python": platform.python_version(),
        **{
            package: importlib.metadata.version(package)
            for package in ("jax", "jaxlib", "flax", "optax", "numpy")
        },
        "optax_gradnorm": optax_gradnorm.__version__,
        "platform": platform.platform(),
        "backend": jax.default_backend(),
        "device_kind": jax.devices()[0].device_kind,
        "device_count": devices,
        "hosts": jax.process_count(),
        "cpu_count": os.cpu_count(),
        "cpu_usable": len(usable_cores()),
        "cpu_model": cpu_model(),
        "xla_threads": xla_threads(),
        "xla_flags": xla_flags(),
        "matmul_precision": jax.config.jax_default_matmul_precision or "default",  # pyright: ignore[reportAttributeAccessIssue]
        **_commit(),
    }


@functools.cache
def _commit() -> dict[str, Any]:
    """Commit of the checkout that this file belongs to, and whether its code was changed since."""
    here = Path(__file__).resolve()
    root = here.parent.parent

    def git(*arguments: str) -> str:
        # Without optional locks: many workers may look at one checkout.
        command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # A copy inside another project's checkout must not report that project's commit.
        git("ls-files", "--error-unmatch", str(here))
        changes = git("status", "--porcelain", "--", "optax_gradnorm", "experiments", ":!experiments/results")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changes)}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}
