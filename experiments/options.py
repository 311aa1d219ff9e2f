"""What the commands that train have in common: how runs are made on this machine. No option changes a metric."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

# Shown as `PATH` where the parser of the command line would write `{None}|PATH`.
OptionalPath = Annotated[Path | None, tyro.conf.arg(metavar="PATH")]
OptionalInt = Annotated[int | None, tyro.conf.arg(metavar="INT")]
OptionalFloat = Annotated[float | None, tyro.conf.arg(metavar="FLOAT")]
OptionalStr = Annotated[str | None, tyro.conf.arg(metavar="STR")]


@dataclasses.dataclass(frozen=True)
class Devices:
    """The devices that train a run, here or on several hosts.

    Attributes:
      devices: devices that share each batch; by default one, on several hosts all of them.
      shard_params: parameters and optimizer state are divided among the devices; by default each has all.
      distributed: this command is started once on each of several hosts, which find each other: on a TPU pod,
        under SLURM or Open MPI.
      coordinator: HOST:PORT of process 0, where hosts are started by hand.
      num_processes: with a coordinator, how many processes there are.
      process_id: with a coordinator, which of them this is, from 0.
    """

    devices: OptionalInt = None
    shard_params: bool = False
    distributed: bool = False
    coordinator: OptionalStr = None
    num_processes: OptionalInt = None
    process_id: OptionalInt = None


@dataclasses.dataclass(frozen=True)
class Reading:
    """How a set of JPEG images (jpeg:NAME) is read; changes no batch.

    Attributes:
      input_workers: of jpeg:NAME, processes that decode images; by default all cores but one for an accelerator, and
        threads alone on a CPU.
      skip_damaged: of jpeg:NAME, exclude images that do not decode, where else the first one ends the run.
    """

    input_workers: OptionalInt = None
    skip_damaged: bool = False


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


DEFAULTS = Options()
