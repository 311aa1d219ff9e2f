"""What the commands that train have in common: how runs are made on this machine. No option changes a metric."""

import dataclasses
from typing import Annotated

import tyro

from experiments.arguments import OptionalInt, OptionalPath
from experiments.hosts import Devices
from experiments.reading import Reading


@dataclasses.dataclass(frozen=True)
class Options:
    """How runs are made.

    Attributes:
      dynamics: also record and draw what the raw gradients do, per layer and epoch (dynamics.md).
      data_dir: folder of the prepared data sets; by default the variable GRADNORM_DATA_DIR, or
        ~/tensorflow_datasets.
      workers: worker processes; by default one per core of a CPU, and none beside the main process on an
        accelerator, which several share.
      keep_checkpoints: keep the trained networks, for `predict`.
      devices: the devices, here or on several hosts.
      reading: of jpeg:NAME.
    """

    dynamics: bool = False
    data_dir: OptionalPath = None
    workers: OptionalInt = None
    keep_checkpoints: bool = False
    # Their options stand beside these.
    devices: Annotated[Devices, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Devices)
    reading: Annotated[Reading, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Reading)
