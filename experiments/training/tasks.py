"""What the kind of labels decides: the loss, what counts as right, and the scores of a finished run."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.data import Dataset
from experiments.run import CROSS_ENTROPY, RESIZED_CROP, Run
from experiments.training.losses import LOSSES


class Scores(Protocol):
    """Scores of all images, gathered batch by batch."""

    def update(self, outputs: np.ndarray, labels: np.ndarray, /) -> None: ...

    def compute(self) -> dict[str, float]: ...


@dataclasses.dataclass(frozen=True)
class Task:
    """What training and evaluation do with a model's logits, float32 with the images as first axis.

    Attributes:
      train_loss: from the logits and labels of a batch to the training objective, a scalar.
      test_losses: from the same to the loss of every image alone, float32 [n].
      correct: from the same to how right every image is, [n]: for classes whether it is (boolean), for
        masks the share of its pixels that are (float32).
      outputs: from logits to what `new_scores` takes: of classes the logits, of masks probabilities.
      new_scores: makes an empty accumulator of a finished run's scores; `None` where there are none.
    """

    train_loss: Callable[[jax.Array, jax.Array], jax.Array]
    test_losses: Callable[[jax.Array, jax.Array], jax.Array]
    correct: Callable[[jax.Array, jax.Array], jax.Array]
    outputs: Callable[[jax.Array], jax.Array]
    new_scores: Callable[[], Scores] | None


def make_task(run: Run, dataset: Dataset) -> Task:
    """Chooses the task by the run's loss.

    Args:
      run: gives the loss and the label smoothing.
      dataset: its labels are classes for cross-entropy, masks for every other loss.

    Raises:
      ValueError: loss and labels, or augmentation and images, do not go together.
    """
    if run.augment == RESIZED_CROP and not dataset.is_cropped:
        raise ValueError(
            f"augment {RESIZED_CROP!r} does not fit dataset {dataset.name}, whose images have one size; it needs "
            f"'jpeg:NAME'"
        )
    if dataset.has_masks != (run.loss != CROSS_ENTROPY):
        fitting = ", ".join(LOSSES) if dataset.has_masks else CROSS_ENTROPY
        labels = "masks" if dataset.has_masks else "classes"
        raise ValueError(
            f"loss {run.loss!r} does not fit dataset {dataset.name}, whose labels are {labels}; "
            f"choose from {fitting}"
        )
    return _segmentation(run) if dataset.has_masks else _classification(run, dataset)


def check_logits(shape: Sequence[int], dataset: Dataset, model: str) -> None:
    """Checks the shape of a model's logits, `shape`, against the labels.

    Raises:
      ValueError: the model gives classes where masks are wanted, or masks where classes are.
    """
    wanted = (*dataset.train_labels.shape[1:], dataset.num_classes)
    if tuple(shape[1:]) != wanted:
        labels = "masks" if dataset.has_masks else "classes"
        raise ValueError(
            f"model {model!r} gives logits of shape {tuple(shape[1:])} per image, but the {labels} of "
            f"dataset {dataset.name} need {wanted}"
        )


def _classification(run: Run, dataset: Dataset) -> Task:
    num_classes = dataset.num_classes
    new_scores = _classification_scores if num_classes == 2 else None
    if dataset.is_cropped and num_classes > 5:
        new_scores = _top_scores

    def train_loss(logits, labels):
        targets = optax.smooth_labels(jax.nn.one_hot(labels, num_classes), run.label_smoothing)
        return optax.softmax_cross_entropy(logits, targets).mean()

    return Task(
        train_loss=train_loss,
        test_losses=optax.softmax_cross_entropy_with_integer_labels,
        correct=lambda logits, labels: jnp.argmax(logits, axis=-1) == labels,
        outputs=lambda logits: logits,
        new_scores=new_scores,
    )


def _segmentation(run: Run) -> Task:
    loss = LOSSES[run.loss]

    def loss_of_one(logits, mask):
        return loss(logits[None], mask[None])

    return Task(
        train_loss=loss,
        test_losses=jax.vmap(loss_of_one),
        correct=lambda logits, masks: jnp.mean((logits[..., 0] > 0) == (masks > 0), axis=(1, 2)),
        outputs=lambda logits: jax.nn.sigmoid(logits[..., 0]),
        new_scores=_segmentation_scores,
    )


# Imported where they are needed: scikit-learn takes a second, and most runs have no scores.
def _classification_scores() -> Scores:
    from experiments.training.metrics import ClassificationScores

    return ClassificationScores()


def _top_scores() -> Scores:
    from experiments.training.metrics import TopScores

    return TopScores()


def _segmentation_scores() -> Scores:
    from experiments.training.metrics import SegmentationScores

    return SegmentationScores()
