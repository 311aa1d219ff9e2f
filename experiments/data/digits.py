"""scikit-learn's 1,797 handwritten digits: real 8x8 images that need no download."""

import numpy as np

from experiments.data.dataset import Dataset, make_dataset


def load() -> Dataset:
    """Loads the digits; every fifth image of each class is a test image."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    # The original grey values are whole numbers from 0 to 16.
    images = np.rint(pixels.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    is_test = np.zeros(len(labels), bool)
    for label in range(10):
        is_test[np.flatnonzero(labels == label)[4::5]] = True
    return make_dataset("digits", images[~is_test], labels[~is_test], images[is_test], labels[is_test], 10)
