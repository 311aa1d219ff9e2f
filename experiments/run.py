"""One `Run` says everything about one training run."""

import dataclasses
import hashlib
import json
import math
import numbers
import re
from typing import Any

import numpy as np

# The names that a run may use; `experiments.training` and `experiments.data.augment` say what they mean.
METHODS = (
    "baseline",
    "centralization",
    "layer_centralization",
    "clipping",
    "clipping_1",
    "clipping_value",
    "znorm",
    "gan",
)
# By optimizer the learning rate of all methods where none is tuned, so that the methods are compared and not their
# tuning.
DEFAULT_LEARNING_RATES = {
    "sgdm": 0.01,
    "adam": 0.001,
    "adamw": 0.001,
    "rmsprop": 0.001,
    "lars": 1.0,
    "lamb": 0.01,
}
OPTIMIZERS = tuple(DEFAULT_LEARNING_RATES)
SCHEDULES = ("constant", "cosine", "step")
CROSS_ENTROPY = "cross_entropy"
LOSSES = (CROSS_ENTROPY, "bce_dice", "tversky")
AUGMENTATIONS = ("none", "flip", "crop_flip", "flip_rotate")
RESIZED_CROP = (
    "resized_crop"  # of images that are cropped as they are read; `experiments.data.crops` says how
)
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run, from data to seed. Two equal runs give the same metrics.

    Attributes:
      dataset: name known to `experiments.data.load`, such as 'digits', 'cifar10', 'arrays:PATH.npz'.
      model: name known to `experiments.models.create`, such as 'resnet20'.
      method: what happens to the gradients before the optimizer; see `experiments.training.methods`.
      optimizer: name in `OPTIMIZERS`.
      learning_rate: peak learning rate.
      epochs: passes over the training images.
      batch_size: images per step; a last incomplete batch of an epoch is dropped.
      seed: of initialisation, shuffling and augmentation.
      schedule: 'constant', 'cosine' or 'step'.
      warmup_epochs: epochs of linear warm-up from zero.
      step_epochs: with schedule 'step', epochs between two reductions.
      step_factor: with schedule 'step', factor of each reduction.
      weight_decay: of the weights, not of biases and normalizers. Decoupled, times the learning rate, except
        in LARS and LAMB, whose trust ratio sees it: see `experiments.training.methods`.
      label_smoothing: share of the target spread evenly over the classes.
      augment: 'none', 'flip' (horizontal), 'crop_flip' (pad 4, random crop, horizontal flip) or
        'flip_rotate' (horizontal and vertical flips, quarter turns). A mask is changed as its image. Images of
        'jpeg:NAME' are centre crops with all of these; 'resized_crop' takes random-resized crops and flips.
      train_examples: subset of the training images, class-balanced or of few patients (see
        `experiments.data.select`); None takes all.
      test_examples: subset of the test images, likewise; None takes all.
      validation_examples: training images held out, by `validation_seed`, to evaluate on in place of the
        test set; 0 evaluates on the test set.
      validation_seed: of that split.
      dtype: of the computation, 'float32' or 'bfloat16'; parameters and statistics stay float32.
      dynamics: also records what the raw gradients do, per layer and epoch; changes no other metric.
      loss: 'cross_entropy' for classes; for masks a name in `experiments.training.losses`.
      steps: updates in all, after which the last epoch ends early; None trains whole epochs. `epochs` is then how
        many are begun.
      evaluated_epochs: how many of the last epochs are evaluated on the test images; None evaluates all.

    Raises:
      ValueError: a field holds something it cannot; one line names the field, the value and the choices.
    """

    dataset: str
    model: str
    method: str
    optimizer: str
    learning_rate: float
    epochs: int
    batch_size: int
    seed: int
    schedule: str = "constant"
    warmup_epochs: float = 0.0
    step_epochs: int = 30
    step_factor: float = 0.75
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    augment: str = "none"
    train_examples: int | None = None
    test_examples: int | None = None
    validation_examples: int = 0
    validation_seed: int = 0
    dtype: str = "float32"
    dynamics: bool = False
    loss: str = CROSS_ENTROPY
    steps: int | None = None
    evaluated_epochs: int | None = None

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            object.__setattr__(self, field.name, _convert(field.name, field.type, value))
        self._check_name("method", METHODS)
        self._check_name("optimizer", OPTIMIZERS)
        self._check_name("schedule", SCHEDULES)
        self._check_name("augment", (*AUGMENTATIONS, RESIZED_CROP))
        self._check_name("dtype", DTYPES)
        self._check_name("loss", LOSSES)
        self._check("learning_rate", self.learning_rate > 0, "greater than 0")
        self._check("epochs", self.epochs >= 1, "at least 1")
        self._check("batch_size", self.batch_size >= 1, "at least 1")
        self._check("seed", 0 <= self.seed < 2**32, "from 0 to 2**32 - 1")
        self._check("warmup_epochs", 0 <= self.warmup_epochs < self.epochs, "from 0 to less than epochs")
        self._check("step_epochs", self.step_epochs >= 1, "at least 1")
        self._check("step_factor", 0 < self.step_factor <= 1, "greater than 0 and at most 1")
        self._check("weight_decay", self.weight_decay >= 0, "at least 0")
        self._check("label_smoothing", 0 <= self.label_smoothing < 1, "from 0 to less than 1")
        smooth = self.label_smoothing == 0 or self.loss == CROSS_ENTROPY
        self._check("label_smoothing", smooth, f"0 with loss {self.loss!r}")
        self._check("train_examples", self.train_examples is None or self.train_examples >= 1, "at least 1")
        self._check("test_examples", self.test_examples is None or self.test_examples >= 1, "at least 1")
        self._check("validation_examples", self.validation_examples >= 0, "at least 0")
        self._check("validation_seed", 0 <= self.validation_seed < 2**32, "from 0 to 2**32 - 1")
        self._check("steps", self.steps is None or self.steps >= self.epochs, "at least as many as epochs")
        some = self.evaluated_epochs is None or 1 <= self.evaluated_epochs <= self.epochs
        self._check("evaluated_epochs", some, "from 1 to epochs")

    def _check_name(self, field: str, choices: tuple[str, ...]) -> None:
        if getattr(self, field) not in choices:
            raise ValueError(f"unknown {field} {getattr(self, field)!r}; choose from {', '.join(choices)}")

    def _check(self, field: str, valid: bool, choices: str) -> None:
        if not valid:
            raise ValueError(f"{field} must be {choices}, got {getattr(self, field)!r}")

    def evaluates(self, epoch: int) -> bool:
        """Whether the test images are looked at after an epoch, counted from 1."""
        return self.evaluated_epochs is None or epoch > self.epochs - self.evaluated_epochs

    def steps_in(self, epoch: int, train_images: int) -> int:
        """Updates in an epoch, counted from 1: one for every whole batch, or what is left of `steps`."""
        whole = train_images // self.batch_size
        return whole if self.steps is None else min(whole, self.steps - (epoch - 1) * whole)

    @property
    def data_name(self) -> str:
        """The data set's name, without the path of a user's own arrays."""
        return "arrays" if self.dataset.startswith("arrays:") else self.dataset

    @property
    def name(self) -> str:
        """Readable and unique: a file name for the run's record.

        Only fields that differ from their default count, so a field added later changes no name.
        """
        fields = dataclasses.fields(self)
        stated = {f.name: getattr(self, f.name) for f in fields if getattr(self, f.name) != f.default}
        digest = hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()
        parts = (
            file_name(self.data_name),
            file_name(self.model),
            self.method,
            self.optimizer,
            f"lr{self.learning_rate:g}",
            f"s{self.seed}",
        )
        return "-".join((*parts, digest[:8]))


def file_name(name: str) -> str:
    """The name of a model or data set as part of a file's name, on any system."""
    return re.sub(r"[^\w=.]", "_", name)


def _convert(field: str, kind: Any, value: object) -> object:
    """Makes equal values identical (1 and 1.0, NumPy's and Python's), so that equal runs share a name."""
    if value is None and kind == int | None:
        return None
    if kind is str:
        if isinstance(value, str) and value:
            return value
        raise ValueError(f"{field} must be a name, got {value!r}")
    if kind is bool:
        if isinstance(value, bool | np.bool_):
            return bool(value)
        raise ValueError(f"{field} must be True or False, got {value!r}")
    if kind is float:
        if isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
        raise ValueError(f"{field} must be a finite number, got {value!r}")
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    raise ValueError(f"{field} must be an integer, got {value!r}")
