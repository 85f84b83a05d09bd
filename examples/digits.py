"""Handwritten digits in 8 x 8 pixels: scikit-learn's 1,797 images, and a network of three linear layers.

Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998.
"""

from __future__ import annotations

import sys

import numpy as np

from examples.command import piped, run
from examples.experiment import Settings, Split, Task, perceptron, split_stratified
from fastsparse import nn


def load() -> Split:
    """1,167 images to train, 180 to validate, 450 to test, as (n, 64) in [0, 1]."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    x, classes = (pixels / 16).astype(np.float32), tuple("0123456789")
    return split_stratified(x, labels.astype(np.int64), classes, test=0.25, validation=0.1)


def network(sparsity: float | None, rng: np.random.Generator) -> nn.Sequential:
    """64-256-256-10; all dense for sparsity None."""
    return perceptron((64, 256, 256, 10), sparsity, rng)


TASK = Task("digits", "1,797 digits of 8x8, MLP", load, network, Settings(epochs=80, rate=0.1, weight_decay=1e-4))

if __name__ == "__main__":
    sys.exit(piped(lambda: run(TASK, __doc__)))
