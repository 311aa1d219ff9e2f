"""Inventories for intersphinx of what the docstrings name, written while the pages are built, without a network."""

import pathlib
import zlib
from collections.abc import Iterator

FOLDER = pathlib.Path(__file__).parent / "_build" / "inventories"
# Address of a library's pages, where each of its names has a page, and the names by kind.
LIBRARIES = {
    "jax": (
        "https://docs.jax.dev/en/latest/",
        "_autosummary/{0}.html",
        {
            "class": ["jax.Array"],
            "function": [
                "jax.jit",
                "jax.pmap",
                "jax.shard_map",
                "jax.lax.scan",
            ],
        },
    ),
    "optax": (
        "https://optax.readthedocs.io/en/latest/",
        "api/generated/{0}.html",
        {
            "class": [
                "optax.GradientTransformation",
                "optax.MultiSteps",
                "optax.EmptyState",
            ],
            "function": [
                "optax.apply_if_finite",
                "optax.centralize",
                "optax.chain",
                "optax.clip_by_global_norm",
                "optax.inject_hyperparams",
                "optax.masked",
                "optax.named_chain",
                "optax.partition",
            ],
        },
    ),
    "python": (
        "https://docs.python.org/3/",
        "library/exceptions.html",
        {
            "exception": [
                "ValueError",
                "TypeError",
                "UserWarning",
                "LookupError",
                "KeyError",
            ]
        },
    ),
}
# Signatures name a class by the module that defines it.
MODULES = {
    "jax.jaxlib._jax.Array": "jax.Array",
    "optax._src.base.GradientTransformation": "optax.GradientTransformation",
}


def write() -> dict[str, tuple[str, str]]:
    """Writes one file for each library and returns `intersphinx_mapping`."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    mapping = {}
    for library, (address, page, names) in LIBRARIES.items():
        header = (
            f"# Sphinx inventory version 2\n# Project: {library}\n# Version: \n"
            "# The remainder of this file is compressed using zlib.\n"
        )
        path = FOLDER / f"{library}.inv"
        path.write_bytes(
            header.encode()
            + zlib.compress("\n".join(_lines(page, names)).encode() + b"\n")
        )
        mapping[library] = (address, str(path))
    return mapping


def _lines(page: str, names: dict[str, list[str]]) -> Iterator[str]:
    for kind, some in names.items():
        for name in some:
            yield f"{name} py:{kind} 1 {page.format(name)}#{name} -"
    for module, name in MODULES.items():
        if name in names.get("class", []):
            yield f"{module} py:class 1 {page.format(name)}#{name} -"
