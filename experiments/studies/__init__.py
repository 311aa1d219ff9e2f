"""Studies by name: one module or package per paper table, each with a `STUDY`."""

import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

# Imported where they are loaded: the command line needs their names alone, and starts without JAX.
if TYPE_CHECKING:
    from experiments.studies.study import Study

NAMES = (
    "cifar10_confirm",
    "steps_and_images",
    "shared_rate",
    "skips",
    "overlap_table1",
    "gan_cifar100",
    "znorm_architectures",
    "large_batch",
    "gradient_convergence",
    "near_convergence",
    "gradient_overlap",
    "beyond_batchnorm",
    "pcam",
    "lgg_unet",
    "vit_dynamics",
    "imagenet",
)


def load_study(name: str) -> "Study":
    """One study, by its name in `NAMES`."""
    return importlib.import_module(f"experiments.studies.{name}").STUDY


def deciding_studies() -> Sequence[str]:
    """Names of the studies whose findings count in the summary of all."""
    return [name for name, study in load_studies().items() if not study.undecided]


def load_studies() -> Mapping[str, "Study"]:
    """All studies, by name."""
    return {name: load_study(name) for name in NAMES}
