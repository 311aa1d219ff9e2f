"""One `Run` says everything about one training run."""

import dataclasses
import hashlib
import json


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run, from data to seed. Two equal runs give the same metrics.

    Attributes:
      dataset: name known to `experiments.data.load`, such as 'digits', 'cifar10', 'arrays:PATH.npz'.
      model: name known to `experiments.models.create`, such as 'resnet20'.
      method: what happens to the gradients before the optimizer; see `experiments.methods.METHODS`.
      optimizer: name in `experiments.methods.OPTIMIZERS`.
      learning_rate: peak learning rate.
      epochs: passes over the training images.
      batch_size: images per step; a last incomplete batch of an epoch is dropped.
      seed: of initialisation, shuffling and augmentation.
      schedule: 'constant', 'cosine' or 'step'.
      warmup_epochs: epochs of linear warm-up from zero.
      step_epochs: with schedule 'step', epochs between two reductions.
      step_factor: with schedule 'step', factor of each reduction.
      weight_decay: decoupled, times the learning rate.
      label_smoothing: share of the target spread evenly over the classes.
      augment: 'none' or 'crop_flip' (pad 4, random crop, horizontal flip).
      train_examples: class-balanced subset of the training images; None takes all.
      test_examples: class-balanced subset of the test images; None takes all.
      validation_examples: training images held out, by `validation_seed`, to evaluate on in place of the
        test set; 0 evaluates on the test set.
      validation_seed: of that split.
      dtype: of the computation, 'float32' or 'bfloat16'; parameters and statistics stay float32.
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

    @property
    def name(self) -> str:
        """Readable and unique: a file name for the run's record."""
        digest = hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()
        dataset = self.dataset.partition(":")[0]
        parts = (dataset, self.model, self.method, self.optimizer, f"lr{self.learning_rate:g}", f"s{self.seed}")
        return "-".join((*parts, digest[:8]))
