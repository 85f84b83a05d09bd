"""Scikit-learn's bundled handwritten digits: 1,797 real images of 8 x 8 pixels, no download.

Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository (1998).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TEST_SHARE = 0.25
VALIDATION_SHARE = 0.1  # of what is not test
# The split is the same whatever the seed of the training.
SPLIT_SEED = 0

CLASSES = 10
Images = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Digits:
    """Images (n, 1, 8, 8) in [0, 1] with their labels (n,), each class in its share in every part.

    `test` serves the final figure and nothing else; `validation` draws the curves.
    """

    train: tuple[Images, Labels]
    validation: tuple[Images, Labels]
    test: tuple[Images, Labels]


def load_digits() -> Digits:
    """The digits, always split in the same way."""
    from sklearn import datasets
    from sklearn.model_selection import train_test_split

    bunch = datasets.load_digits()
    images = np.ascontiguousarray(bunch.images[:, None] / 16, dtype=np.float32)
    labels = bunch.target.astype(np.int64)
    split = {"random_state": SPLIT_SEED, "shuffle": True}
    rest_x, test_x, rest_y, test_y = train_test_split(images, labels, test_size=TEST_SHARE, stratify=labels, **split)
    train_x, validation_x, train_y, validation_y = train_test_split(
        rest_x, rest_y, test_size=VALIDATION_SHARE, stratify=rest_y, **split
    )
    return Digits((train_x, train_y), (validation_x, validation_y), (test_x, test_y))
