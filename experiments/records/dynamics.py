"""Statistics of what the raw gradients of a run do, epoch by epoch."""

import dataclasses
from collections.abc import Mapping

import numpy as np

EPOCH_STATISTICS = ("std", "smallest_std", "mean", "global_std")


@dataclasses.dataclass(frozen=True)
class GradientDynamics:
    """What the raw gradients of one run did: statistics over the steps of each epoch.

    A NaN or an infinity in a step's gradient shows in its epoch.

    Attributes:
      layers: names of the layers, in the order of the network.
      sizes: int64 [layers], number of elements of each.
      std: float32 [epochs, layers], standard deviation within the layer, mean over the steps.
      smallest_std: float32 [epochs, layers], the same of the step where it was smallest, and ZNorm amplifies most.
      mean: float32 [epochs, layers], magnitude of the layer's mean, mean over the steps (signed means cancel).
      global_std: float32 [epochs], standard deviation of all layers together, each about its own mean; mean
        over the steps.
    """

    layers: tuple[str, ...]
    sizes: np.ndarray
    std: np.ndarray
    smallest_std: np.ndarray
    mean: np.ndarray
    global_std: np.ndarray

    def __post_init__(self):
        epochs, layers = len(self.global_std), len(self.layers)
        shapes = [self.sizes.shape, *(getattr(self, name).shape for name in EPOCH_STATISTICS)]
        if shapes != [(layers,), *[(epochs, layers)] * 3, (epochs,)]:
            raise ValueError(f"statistics of {layers} layers and {epochs} epochs have the shapes {shapes}")

    def first(self, epochs: int) -> "GradientDynamics":
        """The first epochs alone."""
        return dataclasses.replace(self, **{n: getattr(self, n)[:epochs] for n in EPOCH_STATISTICS})

    def append(self, statistics: Mapping[str, np.ndarray]) -> "GradientDynamics":
        """With one epoch more: its statistics by name, [layers] each, 'global_std' a scalar."""
        rows = {n: np.concatenate([getattr(self, n), statistics[n][None]]) for n in EPOCH_STATISTICS}
        return dataclasses.replace(self, **rows)
