"""Subsets of a data set: as a run asks for them, and the same for every run that asks for the same."""

import dataclasses

import numpy as np

from experiments.config import Run
from experiments.data.dataset import DataError, Dataset


def select(dataset: Dataset, run: Run) -> Dataset:
    """Takes the subsets that a run asks for.

    Args:
      dataset: a whole set.
      run: its `train_examples` and `test_examples` take the first images of every class, equally many
        (or one more of the first classes); its `validation_examples` are drawn by `validation_seed` from
        all training images, in proportion to the classes, and replace the test set, which nothing then
        looks at. Validation images are held out before the training subset is taken.

    Returns:
      A set with the same mean and standard deviation, images in the original order.

    Raises:
      DataError: there are fewer images of a class than asked for.
    """
    images, labels = dataset.train_images, dataset.train_labels
    if run.validation_examples:
        held_out = _stratified(dataset, run.validation_examples, run.validation_seed)
        test_images, test_labels = images[held_out], labels[held_out]
        images, labels = images[~held_out], labels[~held_out]
    else:
        test_images, test_labels = _balanced(
            "test_examples", dataset.test_images, dataset.test_labels, run.test_examples, dataset.num_classes
        )
    images, labels = _balanced("train_examples", images, labels, run.train_examples, dataset.num_classes)
    return dataclasses.replace(
        dataset, train_images=images, train_labels=labels, test_images=test_images, test_labels=test_labels
    )


def _balanced(argument: str, images: np.ndarray, labels: np.ndarray, count: int | None, num_classes: int):
    """First images of every class."""
    if count is None:
        return images, labels
    if count < 1:
        raise DataError(f"{argument} must be at least 1, got {count}")
    taken = np.zeros(len(labels), bool)
    for label in range(num_classes):
        wanted = count // num_classes + (label < count % num_classes)
        found = np.flatnonzero(labels == label)
        if len(found) < wanted:
            raise DataError(
                f"{argument}={count} takes {wanted} images of class {label}, but there are only {len(found)}"
            )
        taken[found[:wanted]] = True
    return images[taken], labels[taken]


def _stratified(dataset: Dataset, count: int, seed: int) -> np.ndarray:
    """Which training images are held out."""
    labels = dataset.train_labels
    if not 0 < count < len(labels):
        raise DataError(
            f"validation_examples must leave some of the {len(labels)} training images, got {count}"
        )
    sizes = np.bincount(labels, minlength=dataset.num_classes)
    shares = sizes * count / len(labels)
    counts = np.floor(shares).astype(int)
    # What rounding left over goes to the classes that lost most by it.
    by_loss = np.argsort(counts - shares, kind="stable")
    counts[by_loss[: count - counts.sum()]] += 1
    random = np.random.RandomState(seed)  # Unlike default_rng, its numbers never change between versions.
    held_out = np.zeros(len(labels), bool)
    for label, n in enumerate(counts):
        held_out[random.permutation(np.flatnonzero(labels == label))[:n]] = True
    return held_out
