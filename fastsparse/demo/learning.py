"""Training of the sparse network and of its dense twin, with the same seeds, data, optimizer and epochs."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass

import numpy as np

from fastsparse import nn, training
from fastsparse.demo import network
from fastsparse.demo.data import Digits, Images, Labels
from fastsparse.demo.results import Curves
from fastsparse_kernels import compiler

BATCH_SIZE = 64
LEARNING_RATE = 0.1
WEIGHT_DECAY = 5e-3


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
