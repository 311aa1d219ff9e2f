"""Training: `train` makes a run, `load_model` gives the network of a finished one."""

from experiments.training.loop import train
from experiments.training.resuming import load_model

__all__ = ["load_model", "train"]
