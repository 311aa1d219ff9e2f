"""How sets of JPEG images are read: what the command line asks for."""

import dataclasses

from experiments.arguments import OptionalInt


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
