"""Accumulators of evaluation, against brute force."""

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from experiments.training.metrics import (
    ClassificationScores,
    SegmentationScores,
    TopScores,
    hausdorff_distances,
)


def score(accumulator, *batches):
    for batch in batches:
        accumulator.update(*batch)
    return accumulator.compute()


def outline(mask):
    """Pixels with a neighbour out of the mask or the image, one by one."""
    height, width = mask.shape
    pixels = []
    for row, column in zip(*np.nonzero(mask), strict=True):
        around = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
        if any(not (0 <= r < height and 0 <= c < width and mask[r, c]) for r, c in around):
            pixels.append((row, column))
    return np.array(pixels, float)


def brute_hausdorff(first, second):
    distances = cdist(outline(first), outline(second))
    nearest = distances.min(axis=1), distances.min(axis=0)
    return max(d.max() for d in nearest), max(np.percentile(d, 95) for d in nearest)


shapes = st.tuples(st.integers(1, 9), st.integers(1, 9))


@given(shape=shapes, seed=st.integers(0, 2**31), share=st.sampled_from([0.05, 0.3, 0.8, 1.0]))
def test_distances_equal_brute_force(shape, seed, share):
    rng = np.random.default_rng(seed)
    first, second = rng.random((2, *shape)) < share
    first.flat[rng.integers(first.size)] = second.flat[rng.integers(second.size)] = True
    found = hausdorff_distances(first, second)
    assert found == pytest.approx(brute_hausdorff(first, second), abs=1e-9)
    assert found == hausdorff_distances(second, first)
    assert hausdorff_distances(first, first) == (0, 0)
    assert 0 <= found[1] <= found[0] <= np.hypot(*shape)


def test_distance_of_shifted_squares_and_of_a_far_pixel():
    first, second = np.zeros((2, 40, 40), bool)
    first[5:15, 5:15] = True
    second[5:15, 8:18] = True
    assert hausdorff_distances(first, second) == (3, 3)
    second[:] = first
    second[30, 10] = True  # one pixel of 37 in the outline: above the 95th percentile
    largest, percentile = hausdorff_distances(first, second)
    assert largest == 30 - 14
    assert percentile == 0


def test_empty_masks_follow_the_stated_convention():
    empty, full = np.zeros((1, 30, 40)), np.ones((1, 30, 40))
    both = score(SegmentationScores(), (empty, empty))
    assert both == {
        "f1": 1, "dice": 1, "iou": 1, "tversky": 1, "hausdorff": 0, "hausdorff95": 0, "one_empty": 0
    }  # fmt: skip
    for pair in ((empty, full), (full, empty)):
        assert score(SegmentationScores(), pair) == {
            "f1": 0, "dice": 0, "iou": 0, "tversky": 0, "hausdorff": 50, "hausdorff95": 50, "one_empty": 1
        }  # fmt: skip


@given(seed=st.integers(0, 2**31), share=st.sampled_from([0.0, 0.05, 0.5]))
def test_overlaps_equal_sets_of_pixels(seed, share):
    rng = np.random.default_rng(seed)
    probabilities = rng.random((3, 6, 5)) * (0.5 + share)
    targets = (rng.random((3, 6, 5)) < share).astype(np.uint8)

    def pixels(array):
        return {tuple(index) for index in np.argwhere(array)}

    dice, iou, tversky = [], [], []
    for predicted, true in zip(map(pixels, probabilities > 0.5), map(pixels, targets), strict=True):
        if not predicted | true:
            dice, iou, tversky = [*dice, 1], [*iou, 1], [*tversky, 1]
            continue
        common = len(predicted & true)
        dice.append(2 * common / (len(predicted) + len(true)))
        iou.append(common / len(predicted | true))
        found = common + 0.3 * len(predicted - true) + 0.7 * len(true - predicted)
        tversky.append(common / found)
    predicted, true = pixels(probabilities > 0.5), pixels(targets)
    f1 = 2 * len(predicted & true) / (len(predicted) + len(true)) if predicted | true else 1
    scores = score(SegmentationScores(), (probabilities, targets))
    assert scores["dice"] == pytest.approx(np.mean(dice))
    assert scores["iou"] == pytest.approx(np.mean(iou))
    assert scores["tversky"] == pytest.approx(np.mean(tversky))
    assert scores["f1"] == pytest.approx(f1)


def test_batches_do_not_matter():
    rng = np.random.default_rng(0)
    probabilities, targets = rng.random((7, 20, 24)), rng.random((7, 20, 24)) < 0.1
    parts = [slice(0, 1), slice(1, 5), slice(5, 7)]
    whole = score(SegmentationScores(), (probabilities, targets))
    assert score(SegmentationScores(), *[(probabilities[p], targets[p]) for p in parts]) == pytest.approx(
        whole
    )
    rows = rng.dirichlet(np.ones(2), 7).astype(np.float32)
    labels = np.array([0, 1, 1, 0, 1, 0, 1])
    whole = score(ClassificationScores(), (rows, labels))
    assert score(ClassificationScores(), *[(rows[p], labels[p]) for p in parts]) == whole


def brute_auc(scores, labels):
    """Share of pairs of a positive and a negative in the right order; ties count half."""
    pairs = list(itertools.product(scores[labels == 1], scores[labels == 0]))
    return np.mean([(p > n) + 0.5 * (p == n) for p, n in pairs])


@given(seed=st.integers(0, 2**31), count=st.integers(2, 30))
def test_classification_of_two_classes_equals_counting(seed, count):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    labels[:2] = 0, 1
    positive = rng.integers(0, 9, count) / 8  # exact, with ties
    scores = score(ClassificationScores(), (np.stack([-positive, positive - 1], axis=1), labels))
    predicted = positive > 0.5
    true_positive = np.sum(predicted & (labels == 1))
    assert scores["roc_auc"] == pytest.approx(brute_auc(positive, labels))
    assert scores["accuracy"] == pytest.approx(np.mean(predicted == labels))
    assert scores["f1"] == pytest.approx(2 * true_positive / (predicted.sum() + labels.sum() or 1))


def test_more_classes_are_averaged_each_against_the_rest():
    rng = np.random.default_rng(1)
    probabilities = rng.dirichlet(np.ones(3), 60)
    labels = rng.integers(0, 3, 60)
    scores = score(ClassificationScores(), (np.log(probabilities) + 3, labels))
    aucs = [brute_auc(probabilities[:, k], (labels == k).astype(int)) for k in range(3)]
    assert scores["roc_auc"] == pytest.approx(np.mean(aucs))
    assert scores["accuracy"] == pytest.approx(np.mean(probabilities.argmax(axis=1) == labels))


@pytest.mark.parametrize("scale", [1, 20, 1000])
def test_confident_networks_are_ranked_as_well(scale):
    """Probabilities near 1 round to 1 in single precision; their logits stay apart."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, 300)
    logits = np.stack([np.zeros(300), scale * (rng.normal(size=300) + labels)], axis=1).astype(np.float32)
    expected = pytest.approx(brute_auc(logits[:, 1], labels))
    assert score(ClassificationScores(), (logits, labels))["roc_auc"] == expected
    assert score(ClassificationScores(), (logits[:, ::-1], 1 - labels))["roc_auc"] == expected


@pytest.mark.parametrize("scale", [1, 1000])
def test_confident_networks_of_more_classes_are_ranked_as_well(scale):
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 3, 200)
    logits = (scale * (rng.normal(size=(200, 3)) + np.eye(3)[labels])).astype(np.float32)
    against_rest = [
        np.float64(logits[:, k]) - np.logaddexp(*np.float64(np.delete(logits, k, axis=1)).T) for k in range(3)
    ]
    aucs = [brute_auc(odds, (labels == k).astype(int)) for k, odds in enumerate(against_rest)]
    assert score(ClassificationScores(), (logits, labels))["roc_auc"] == pytest.approx(np.mean(aucs))


def test_one_class_alone_has_no_roc_curve():
    scores = score(ClassificationScores(), (np.array([[2.0, 1.0], [0.4, 0.6]]), [0, 0]))
    assert np.isnan(scores["roc_auc"])
    assert scores["accuracy"] == 0.5


def test_memory_grows_by_five_bytes_an_image_and_not_at_all_for_masks():
    rng = np.random.default_rng(2)
    classification, segmentation = ClassificationScores(), SegmentationScores()
    rows, labels = np.full((10_000, 2), 0.5, np.float32), rng.integers(0, 2, 10_000)
    masks = rng.random((4, 64, 64)) < 0.2
    classification.update(rows, labels)
    segmentation.update(masks, masks)
    tracemalloc.start()
    for _ in range(20):
        classification.update(rows, labels)
    for_images = tracemalloc.get_traced_memory()[0]
    for _ in range(20):
        segmentation.update(masks, masks)
    for_masks = tracemalloc.get_traced_memory()[0] - for_images
    tracemalloc.stop()
    assert for_images == pytest.approx(5 * 200_000, rel=0.02)
    assert for_masks < 10_000


def test_wrong_shapes_and_nothing_to_score_are_said():
    with pytest.raises(ValueError, match=r"logits must be \[n, classes\]"):
        ClassificationScores().update(np.zeros(3), np.zeros(3))
    with pytest.raises(ValueError, match=r"must both be \[n, height, width\]"):
        SegmentationScores().update(np.zeros((1, 4, 4, 1)), np.zeros((1, 4, 4)))
    for accumulator in (ClassificationScores(), SegmentationScores()):
        with pytest.raises(ValueError, match="to score"):
            accumulator.compute()


def test_top_scores_of_batches_are_those_of_sorting_all_logits():
    random = np.random.default_rng(0)
    logits = random.normal(size=(300, 12)).astype(np.float32)
    labels = random.integers(0, 12, 300)
    scores = TopScores()
    for start in range(0, 300, 70):
        scores.update(logits[start : start + 70], labels[start : start + 70])
    ranked = np.argsort(-logits, axis=1)
    expected = {
        "top_1": np.mean(ranked[:, 0] == labels),
        "top_5": np.mean((ranked[:, :5] == labels[:, None]).any(axis=1)),
    }
    assert scores.compute() == pytest.approx(expected)


def test_logits_that_are_nan_are_never_right():
    logits = np.zeros((3, 8), np.float32)
    logits[0] = np.nan  # its own score among them
    logits[1, 2:7] = np.nan  # five that cannot be compared with it
    scores = TopScores()
    scores.update(logits, np.array([1, 1, 1]))
    assert scores.compute() == pytest.approx({"top_1": 1 / 3, "top_5": 1 / 3})


def test_top_scores_of_nothing_or_of_other_shapes():
    with pytest.raises(ValueError, match="there are no images to score"):
        TopScores().compute()
    with pytest.raises(ValueError, match=r"logits must be \[n, classes\] and labels \[n\], got"):
        TopScores().update(np.zeros((3, 8)), np.zeros(4, int))
