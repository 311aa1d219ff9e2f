"""Which code this process runs: versions of the packages that results rest on, and a digest of every source file."""

import hashlib
import importlib.metadata
import platform
from pathlib import Path

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "orbax-checkpoint", "grain", "pillow")


def versions() -> dict[str, str]:
    """Version by name, of Python without its last number, which changes no result."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"python": python, **{package: importlib.metadata.version(package) for package in PACKAGES}}


def digests() -> dict[str, str]:
    """A digest of every source file of this project, by its name, such as experiments/run.py.

    By content, because a commit says nothing of what was changed since, and a copy may have none.
    """
    import optax_gradnorm

    found = {}
    for package in (Path(__file__).parent, Path(optax_gradnorm.__file__).parent):
        for path in sorted(package.rglob("*.py")):
            name = path.relative_to(package.parent).as_posix()
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return found
