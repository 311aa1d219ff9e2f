"""Everything that was measured and trained, as arrays."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.records import MeasurementRecord, RunRecord
from experiments.studies.beyond_batchnorm.plan import DATASET, Size, initialization_name, make_run, model_name


@dataclasses.dataclass(frozen=True)
class Initialization:
    """A network at initialisation.

    Attributes:
      units: names of layers or blocks.
      convolutions: names of convolutions.
      statistics: by name, [seeds, units or convolutions].
    """

    units: Sequence[str]
    convolutions: Sequence[str]
    statistics: Mapping[str, np.ndarray]

    def stages(self) -> list[np.ndarray]:
        """Logarithm of the variance in the blocks of each stage of a residual network, [seeds, blocks]."""
        stage = np.array(
            [int(unit.split("/")[1]) if unit.startswith("stages/") else -1 for unit in self.units]
        )
        return [self.statistics["log_variance"][:, stage == s] for s in range(stage.max() + 1)]

    @property
    def similarity(self) -> np.ndarray:
        """Cosine similarity of the activations before the linear layer, by seed."""
        return self.statistics["cosine_similarity"][:, -1]


@dataclasses.dataclass(frozen=True)
class Results:
    """Everything that was measured and trained.

    Attributes:
      size: of the preset.
      measurements: by name.
      records: of the trainings.
    """

    size: Size
    measurements: Mapping[str, MeasurementRecord]
    records: Sequence[RunRecord]

    def initialization(
        self, model: str, *, small: bool = False, dataset: str = DATASET
    ) -> Initialization | None:
        """What was measured of a model at initialisation, if it was."""
        name = initialization_name(model, 16 if small else self.size.batch_size, dataset)
        if name not in self.measurements:
            return None
        values = dict(self.measurements[name].values)
        units, convolutions = values.pop("units"), values.pop("convolutions")
        return Initialization(units, convolutions, {key: to_array(rows) for key, rows in values.items()})

    def initializations(
        self, network: str, normalizers: Sequence[str], options: str = "", *, small: bool = False
    ) -> dict[str, Initialization]:
        """The same by normalizer, in one network with one kind of block, as far as it was measured."""
        models = {normalizer: model_name(network, normalizer, options) for normalizer in normalizers}
        found = {normalizer: self.initialization(model, small=small) for normalizer, model in models.items()}
        return {normalizer: some for normalizer, some in found.items() if some is not None}

    def trainings(self, network: str, normalizer: str, method: str = "baseline") -> list[RunRecord]:
        """Those of one network that got through an epoch, in the order of their seeds."""
        by_name = {record.run.name: record for record in self.records if record.epochs}
        runs = (make_run(self.size, network, normalizer, method, seed) for seed in self.size.training_seeds)
        return [by_name[run.name] for run in runs if run.name in by_name]

    def values(self, name: str) -> Mapping[str, Any] | None:
        """What another measurement gave, if it was made."""
        return self.measurements[name].values if name in self.measurements else None


def to_array(rows: Any) -> np.ndarray:
    """Numbers as they are in a file, where those that are not finite are strings."""
    return np.asarray(rows, dtype=object).astype(float)
