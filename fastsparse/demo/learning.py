"""Training of the sparse network and of its dense twin, with the same seeds, data, optimizer and epochs.

Data: scikit-learn's handwritten digits, 1,797 real images of 8 x 8 pixels in its package. E. Alpaydin, C. Kaynak,
"Optical Recognition of Handwritten Digits", UCI Machine Learning Repository (1998).
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastsparse import nn, training
from fastsparse.demo import network
from fastsparse.demo.results import Curves
from fastsparse_kernels import compiler

TEST_SHARE = 0.25
VALIDATION_SHARE = 0.1  # of what is not test
# The split is the same whatever the seed of the training.
SPLIT_SEED = 0
Images = NDArray[np.float32]
Labels = NDArray[np.int64]
BATCH_SIZE = 64
LEARNING_RATE = 0.1
WEIGHT_DECAY = 5e-3


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


@dataclass(frozen=True)
class Trained:
    """A trained network with what is known of it; `seconds` of training are without those of compiling kernels."""

    model: nn.Sequential
    curves: Curves
    test_accuracy: float
    seconds: float


def train(digits: Digits, *, sparse: bool, seed: int, epochs: int) -> Trained:
    """Train one network, progress on stderr, then look at the test images once."""
    model = network.build(sparse, seed)
    steps = epochs * math.ceil(len(digits.train[1]) / BATCH_SIZE)
    rate = training.CosineDecay(LEARNING_RATE, steps=steps)
    optimizer = training.SGD(model.parameters(), rate, momentum=0.9, nesterov=True, weight_decay=WEIGHT_DECAY)
    print(f"training the {'sparse' if sparse else 'dense'} network, seed {seed}", file=sys.stderr, flush=True)
    started, compiled = time.perf_counter(), compiler.compile_seconds()
    history = training.fit(
        model,
        digits.train,
        epochs=epochs,
        batch_size=BATCH_SIZE,
        optimizer=optimizer,
        validation=digits.validation,
        rng=seed,
    )
    seconds = time.perf_counter() - started - (compiler.compile_seconds() - compiled)
    names = ("loss", "accuracy", "val_loss", "val_accuracy")
    curves = Curves(*(history[name] for name in names))
    return Trained(model, curves, accuracy(model, *digits.test), seconds)


def accuracy(model: nn.Sequential, images: Images, labels: Labels) -> float:
    """Share of the images that the network reads correctly."""
    return float(np.mean(predictions(model, images) == labels))


def predictions(model: nn.Sequential, images: Images) -> np.ndarray:
    """The most likely class of each image (n,)."""
    return np.asarray(model.eval()(images)).argmax(axis=1)
