"""What evaluation measures besides the loss, batch by batch, so that no test set has to fit in memory."""

import numpy as np
from scipy import ndimage, special
from sklearn import metrics

from experiments.training.losses import ALPHA, BETA

# A probability above it is an object's pixel.
THRESHOLD = 0.5


class ClassificationScores:
    """Accuracy, area under the ROC curve and F1 of all images seen.

    The ROC curve needs every score: 5 bytes are kept per image of two classes (a float32 and a label), and
    4 per class and 1 of more classes. Scores are logarithms of odds: of a confident network, probabilities
    round to 1 and would no longer tell images apart.
    """

    def __init__(self):
        self._scores: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []
        self._num_classes = 0

    def update(self, logits: np.ndarray, labels: np.ndarray) -> None:
        """Adds a batch.

        Args:
          logits: floats [n, classes].
          labels: whole numbers [n], from 0 to classes - 1, at most 255.
        """
        logits, labels = np.asarray(logits, np.float32), np.asarray(labels)
        if logits.ndim != 2 or labels.shape != logits.shape[:1]:
            raise ValueError(
                f"logits must be [n, classes] and labels [n], got {logits.shape} and {labels.shape}"
            )
        self._num_classes = logits.shape[1]
        self._scores.append(logits[:, 1] - logits[:, 0] if self._num_classes == 2 else logits)
        self._labels.append(labels.astype(np.uint8))

    def compute(self) -> dict[str, float]:
        """Scores of all images since the start.

        Returns:
          'accuracy'; 'roc_auc' and 'f1' of class 1 if there are two classes, else means over the classes,
          of each against the rest. 'roc_auc' is NaN where a class does not occur.

        Raises:
          ValueError: there were no images.
        """
        if not self._scores:
            raise ValueError("there are no images to score")
        scores, labels = np.concatenate(self._scores), np.concatenate(self._labels)
        classes = np.arange(self._num_classes)
        is_binary = self._num_classes == 2
        predicted = (scores > 0).astype(np.uint8) if is_binary else scores.argmax(axis=1)
        roc_auc = np.nan
        if np.isin(classes, labels).all():
            odds = {1: scores} if is_binary else {k: _log_odds(scores, k) for k in range(self._num_classes)}
            roc_auc = np.mean([metrics.roc_auc_score(labels == k, of_class) for k, of_class in odds.items()])
        average = "binary" if is_binary else "macro"
        f1 = metrics.f1_score(
            labels,
            predicted,
            labels=classes,
            average=average,
            zero_division=0.0,  # pyright: ignore[reportArgumentType]
        )
        return {
            "accuracy": float(metrics.accuracy_score(labels, predicted)),
            "roc_auc": float(roc_auc),
            "f1": float(f1),
        }


def _log_odds(logits: np.ndarray, k: int) -> np.ndarray:
    """The area of class `k` against the rest."""
    others = np.delete(logits, k, axis=1).astype(np.float64)
    return logits[:, k] - special.logsumexp(others, axis=1)


class TopScores:
    """Share of the images whose class has the highest score, and one of the five highest; keeps counts only."""

    def __init__(self):
        self._images = 0
        self._counts = np.zeros(2, np.int64)

    def update(self, logits: np.ndarray, labels: np.ndarray) -> None:
        """Adds a batch.

        Args:
          logits: floats [n, classes].
          labels: whole numbers [n], from 0 to classes - 1.
        """
        logits, labels = np.asarray(logits), np.asarray(labels)
        if logits.ndim != 2 or labels.shape != logits.shape[:1]:
            raise ValueError(
                f"logits must be [n, classes] and labels [n], got {logits.shape} and {labels.shape}"
            )
        own = np.take_along_axis(logits, labels[:, None], axis=1)
        # Written so that NaN is never right: it compares as false.
        above = np.sum(~(logits <= own), axis=1)
        self._counts += [np.sum(above < 1), np.sum(above < 5)]
        self._images += len(labels)

    def compute(self) -> dict[str, float]:
        """Scores of all images since the start.

        Returns:
          'top_1' and 'top_5'. Of equal scores all count as the highest.

        Raises:
          ValueError: there were no images.
        """
        if not self._images:
            raise ValueError("there are no images to score")
        top_1, top_5 = (self._counts / self._images).tolist()
        return {"top_1": top_1, "top_5": top_5}


class SegmentationScores:
    """Overlap of masks and distance of their outlines, over all slices seen; keeps sums only.

    A slice whose two masks are both empty has overlap 1 and distance 0. If one alone is empty, its distance
    is the image's diagonal, a little more than two pixels can be apart (from centre to centre), as in the
    BraTS challenges: leaving such slices out would reward a method that finds nothing wherever it would find
    something far off.
    """

    def __init__(self):
        self._slices = 0
        self._sums: dict[str, float] = {}
        self._counts = np.zeros(3, np.int64)

    def update(self, probabilities: np.ndarray, targets: np.ndarray) -> None:
        """Adds a batch.

        Args:
          probabilities: floats [n, height, width]; above 0.5 is the object.
          targets: [n, height, width], 1 or True is the object, all else 0.
        """
        probabilities, targets = np.asarray(probabilities), np.asarray(targets)
        if probabilities.ndim != 3 or probabilities.shape != targets.shape:
            raise ValueError(
                f"probabilities and targets must both be [n, height, width], got {probabilities.shape} "
                f"and {targets.shape}"
            )
        for predicted, true in zip(probabilities > THRESHOLD, targets.astype(bool), strict=True):
            counts = _count(predicted, true)
            hausdorff, hausdorff95 = hausdorff_distances(predicted, true)
            values = {
                "dice": _tversky(counts, 0.5, 0.5),
                "iou": _tversky(counts, 1.0, 1.0),
                "tversky": _tversky(counts, ALPHA, BETA),
                "hausdorff": hausdorff,
                "hausdorff95": hausdorff95,
                "one_empty": float(predicted.any() != true.any()),
            }
            self._sums = {name: self._sums.get(name, 0.0) + value for name, value in values.items()}
            self._counts += counts
            self._slices += 1

    def compute(self) -> dict[str, float]:
        """Scores of all slices since the start.

        Returns:
          'f1': of all pixels of all slices together. Means over slices: 'dice' (the F1 of a slice), 'iou',
          'tversky' (TP / (TP + 0.3 FP + 0.7 FN)), 'hausdorff' and 'hausdorff95' (in pixels; see
          `hausdorff_distances`), and 'one_empty', the share of slices where one mask alone is empty.

        Raises:
          ValueError: there were no slices.
        """
        if not self._slices:
            raise ValueError("there are no slices to score")
        means = {name: total / self._slices for name, total in self._sums.items()}
        return {"f1": _tversky(self._counts, 0.5, 0.5), **means}


def hausdorff_distances(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Hausdorff distance of two masks' outlines, and its 95th percentile, in pixels.

    A pixel of the outline has a neighbour, above, below or beside it, out of the mask or the image. The
    distances of each outline's pixels from the other outline have a maximum and a 95th percentile; the
    larger of the two outlines' is given.

    Args:
      first: booleans [height, width].

    Returns:
      Both: 0 if both masks are empty, the image's diagonal if one is.
    """
    if not first.any() and not second.any():
        return 0.0, 0.0
    if not first.any() or not second.any():
        diagonal = float(np.hypot(*first.shape))
        return diagonal, diagonal
    # The nearest pixels of the outlines lie where the masks do: the rest of the image only costs time.
    (box,) = ndimage.find_objects((first | second).astype(np.uint8))
    outlines = [mask[box] & np.logical_not(ndimage.binary_erosion(mask[box])) for mask in (first, second)]
    to_second, to_first = (
        np.asarray(ndimage.distance_transform_edt(np.logical_not(there)))[here]
        for here, there in (outlines, outlines[::-1])
    )
    return (
        float(max(to_second.max(), to_first.max())),
        float(max(np.percentile(to_second, 95), np.percentile(to_first, 95))),
    )


def _count(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """True positives, false positives and false negatives."""
    pairs = ((predicted, true), (predicted, ~true), (~predicted, true))
    return np.array([np.count_nonzero(a & b) for a, b in pairs])


def _tversky(counts: np.ndarray, alpha: float, beta: float) -> float:
    """Tversky index of counts; 1 if there is nothing to find and nothing was found."""
    true_positive, false_positive, false_negative = counts.tolist()
    weighted = true_positive + alpha * false_positive + beta * false_negative
    return true_positive / weighted if weighted else 1.0
