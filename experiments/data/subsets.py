"""Subsets of a data set: as a run asks for them, and the same for every run that asks for the same."""

import dataclasses
from typing import NamedTuple, Self

import numpy as np

from experiments.data.dataset import DataError, Dataset
from experiments.run import Run


def select(dataset: Dataset, run: Run) -> Dataset:
    """Takes the subsets that a run asks for.

    Args:
      run: its `train_examples` and `test_examples` take the first images of every class, equally many
        (or one more of the first classes); its `validation_examples` are drawn by `validation_seed` from
        all training images, in proportion to the classes, and replace the test set, which nothing then
        looks at. Validation images are held out before the training subset is taken.

        Masks are taken by group (patient) in place of class, the groups in a random order that is always
        the same for `train_examples` and `test_examples`: whole groups, and of the last one only the first
        slices, so that there are as many as asked for. Validation takes, in the order that
        `validation_seed` draws, every group that still fits, whole, so that it may hold a few slices less
        than asked for and no group is on both sides.

    Returns:
      A set with the same mean and standard deviation, images in the original order.

    Raises:
      DataError: there are fewer images of a class than asked for.
    """
    train, test = _Part.of_train(dataset), _Part.of_test(dataset)
    if run.validation_examples:
        hold_out = _whole_groups if dataset.has_masks else _stratified
        held_out = hold_out(train, run.validation_examples, run.validation_seed, dataset.num_classes)
        train, test = train.take(~held_out), train.take(held_out)
    else:
        test = _subset("test_examples", test, run.test_examples, dataset.num_classes)
    train = _subset("train_examples", train, run.train_examples, dataset.num_classes)
    return dataclasses.replace(
        dataset,
        train_images=train.images,
        train_labels=train.labels,
        train_groups=train.groups,
        test_images=test.images,
        test_labels=test.labels,
        test_groups=test.groups,
    )


class _Part(NamedTuple):
    """The training or the test images of a set."""

    images: np.ndarray
    labels: np.ndarray
    groups: np.ndarray | None

    @classmethod
    def of_train(cls, dataset: Dataset) -> Self:
        return cls(dataset.train_images, dataset.train_labels, dataset.train_groups)

    @classmethod
    def of_test(cls, dataset: Dataset) -> Self:
        return cls(dataset.test_images, dataset.test_labels, dataset.test_groups)

    def take(self, taken: np.ndarray) -> "_Part":
        """The images that a boolean [n] marks."""
        groups = None if self.groups is None else self.groups[taken]
        return _Part(self.images[taken], self.labels[taken], groups)

    def shuffled_groups(self, seed: int) -> list[np.ndarray]:
        """Indices of every group's images; without groups every image is a group."""
        groups = np.arange(len(self.labels)) if self.groups is None else self.groups
        random = np.random.RandomState(seed)  # Unlike default_rng, its numbers never change between versions.
        return [np.flatnonzero(groups == group) for group in random.permutation(np.unique(groups))]


def _subset(argument: str, part: _Part, count: int | None, num_classes: int) -> _Part:
    if count is None:
        return part
    if count < 1:
        raise DataError(f"{argument} must be at least 1, got {count}")
    if part.labels.ndim == 1:
        return part.take(_balanced(argument, part.labels, count, num_classes))
    if count > len(part.labels):
        raise DataError(f"{argument}={count}, but there are only {len(part.labels)} images")
    taken = np.zeros(len(part.labels), bool)
    taken[np.concatenate(part.shuffled_groups(seed=0))[:count]] = True
    return part.take(taken)


def _balanced(argument: str, labels: np.ndarray, count: int, num_classes: int) -> np.ndarray:
    """Which images are the first of every class."""
    taken = np.zeros(len(labels), bool)
    for label in range(num_classes):
        wanted = count // num_classes + (label < count % num_classes)
        found = np.flatnonzero(labels == label)
        if len(found) < wanted:
            raise DataError(
                f"{argument}={count} takes {wanted} images of class {label}, but there are only {len(found)}"
            )
        taken[found[:wanted]] = True
    return taken


def _whole_groups(train: _Part, count: int, seed: int, num_classes: int) -> np.ndarray:
    """Which training images are held out, by group."""
    del num_classes
    _check_validation(count, len(train.labels))
    held_out = np.zeros(len(train.labels), bool)
    for group in train.shuffled_groups(seed):
        if held_out.sum() + len(group) <= count:
            held_out[group] = True
    if not held_out.any():
        raise DataError(f"validation_examples={count}, but every patient has more images than that")
    return held_out


def _check_validation(count: int, images: int) -> None:
    if not 0 < count < images:
        raise DataError(f"validation_examples must leave some of the {images} training images, got {count}")


def _stratified(train: _Part, count: int, seed: int, num_classes: int) -> np.ndarray:
    """Which training images are held out, in proportion to the classes."""
    labels = train.labels
    _check_validation(count, len(labels))
    sizes = np.bincount(labels, minlength=num_classes)
    shares = sizes * count / len(labels)
    counts = np.floor(shares).astype(int)
    # The images left over by rounding go to the classes that lost most.
    by_loss = np.argsort(counts - shares, kind="stable")
    counts[by_loss[: count - counts.sum()]] += 1
    random = np.random.RandomState(seed)  # Unlike default_rng, its numbers never change between versions.
    held_out = np.zeros(len(labels), bool)
    for label, n in enumerate(counts):
        held_out[random.permutation(np.flatnonzero(labels == label))[:n]] = True
    return held_out
