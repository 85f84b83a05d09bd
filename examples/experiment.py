"""What all examples share: a task, the ways to train on it, and one training run.

The test data are looked at once, when a network is trained. Curves are drawn from the validation data, on which the
settings of the tasks were compared. Test accuracies of earlier settings were known when some were taken up again
(digits, genes, MNIST), so small differences on the test data should not be read as more than they are.

The settings of MNIST were chosen without the test data, on two other splits of the training and validation images
(3,000 to train, 1,000 to compare), with two seeds that `compare` does not use. The search was made with RigL, most of
it at 90% and 98% sparsity. Compared were batches of 32 to 128, SGD and AdamW, rates, weight decay, warm-up, how many
weights are exchanged and how often, shifts of the images or none; many differences were within the noise of so few
runs. The dense twin has the same epochs, batches and shifts; one rate of its own was tried, with one seed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from examples.shifts import Shifted
from fastsparse import nn, sparsity, training

Labels = NDArray[np.int64]
Part = tuple[Any, Labels]

METHODS = {
    "dense": "all weights",
    "static": "a random pattern that stays",
    "set": "SET: small weights make room for random ones",
    "rigl": "RigL: small weights make room for those with large gradients",
    "magnitude": "all weights at first, small ones leave along a cubic schedule",
}


@dataclass(frozen=True)
class Split:
    """Data in three parts, each (x, y); x an array or a scipy.sparse matrix with one sample per row."""

    train: Part
    validation: Part
    test: Part
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Settings:
    """How a task is trained; the same for all methods and sparsities, but for `dense_rate`.

    Attributes
    ----------
    rate : float
        Learning rate at the start of a cosine decay to 0.
    dense_rate : float, optional
        The rate of the dense twin, where the best one for sparse networks is not the best one for it.
    optimizer : {"sgd", "adamw"}
    every, drop : int, float
        Steps between changes of patterns, and share of the weights that the first one exchanges.
    shift : int
        Pixels by which training images move at most, see `Shifted`; not at all for 0.
    """

    epochs: int
    rate: float
    optimizer: str = "sgd"
    weight_decay: float = 0.0
    batch_size: int = 128
    every: int = 20
    drop: float = 0.3
    dense_rate: float | None = None
    shift: int = 0


@dataclass(frozen=True)
class Task:
    """A named problem: data, network, settings.

    Attributes
    ----------
    network : callable
        (sparsity, rng) -> a fresh network; with sparsity None, its dense twin.
    method : one of METHODS
        The one to show: the best on the validation data.
    """

    name: str
    about: str
    load: Callable[[], Split]
    network: Callable[[float | None, np.random.Generator], nn.Sequential]
    settings: Settings
    method: str = "rigl"


@dataclass(frozen=True)
class Outcome:
    """A trained network and what is known of it."""

    model: nn.Sequential
    history: training.History
    accuracy: float
    seconds: float

    @property
    def nonzeros(self) -> int:
        """Stored numbers."""
        return sum(parameter.value.size for parameter in self.model.parameters())


def train(
    task: Task, split: Split, method: str, share: float, seed: int, *, settings: Settings | None = None, progress: bool
) -> Outcome:
    """Train one network on `split`, then look at its test part.

    Parameters
    ----------
    task : Task
    split : Split
    method : one of METHODS
    share : float in [0, 1)
        Sparsity; of no meaning for the method "dense".
    seed : int
        Of the initial weights, the pattern, the order of samples and their shifts.
    settings : Settings, optional
        Instead of the task's.
    progress : bool
        Show a bar on stderr.
    """
    chosen = settings or task.settings
    rng = np.random.default_rng(seed)
    model = task.network(start(method, share), rng)
    steps = chosen.epochs * math.ceil(len(split.train[1]) / chosen.batch_size)
    began = time.perf_counter()
    history = training.fit(
        model,
        _training_data(split.train, chosen, seed),
        epochs=chosen.epochs,
        batch_size=chosen.batch_size,
        optimizer=_optimizer(model, method, chosen, steps),
        sparsity=_algorithm(method, model, share, chosen, steps, seed),
        validation=split.validation,
        progress=progress,
        rng=seed,
    )
    seconds = time.perf_counter() - began - sum(history["compile_seconds"])
    return Outcome(model, history, accuracy(model, split.test), seconds)


def _training_data(part: Part, settings: Settings, seed: int) -> Part | Shifted:
    return Shifted(*part, settings.batch_size, settings.shift, seed) if settings.shift else part


def start(method: str, share: float) -> float | None:
    """Sparsity of the network that training begins with; None is the dense twin."""
    return {"dense": None, "magnitude": 0.0}.get(method, share)


def _optimizer(model: nn.Sequential, method: str, settings: Settings, steps: int) -> training.Optimizer:
    first = settings.dense_rate if method == "dense" and settings.dense_rate is not None else settings.rate
    rate = training.CosineDecay(first, steps)
    if settings.optimizer == "adamw":
        return training.AdamW(model.parameters(), rate, weight_decay=settings.weight_decay)
    return training.SGD(model.parameters(), rate, 0.9, nesterov=True, weight_decay=settings.weight_decay)


def _algorithm(method: str, model: nn.Sequential, share: float, settings: Settings, steps: int, seed: int) -> Any:
    """What changes the patterns while a model trains; None when nothing does."""
    if method == "set":
        return sparsity.SET(model, drop_fraction=settings.drop, every=settings.every, stop=0.75, rng=seed)
    if method == "rigl":
        return sparsity.RigL(model, drop_fraction=settings.drop, every=settings.every, stop=0.75)
    if method == "magnitude":
        # A tenth of the steps with all weights, the second half to recover.
        schedule = sparsity.PolynomialDecay(0.0, share, steps // 10, max(steps // 2, 1), frequency=settings.every)
        return sparsity.GradualPruning(model, schedule)
    return None


def accuracy(model: nn.Sequential, part: Part) -> float:
    """Share of the samples that the model puts into the right class."""
    return float(np.mean(predictions(model, part[0]) == part[1]))


def predictions(model: nn.Sequential, x: Any) -> Labels:
    """The most likely class of each sample."""
    return np.asarray(model.eval()(x).argmax(axis=1))


def linear(
    inputs: int, outputs: int, share: float | None, rng: np.random.Generator, activation: str | None = None
) -> nn.Module:
    """A sparse linear layer, or a dense one for `share` (sparsity) None."""
    if share is None:
        return nn.Linear(inputs, outputs, activation=activation, rng=rng)
    return nn.SparseLinear(inputs, outputs, sparsity=share, activation=activation, rng=rng)


def conv2d(inputs: int, outputs: int, share: float | None, rng: np.random.Generator) -> nn.Module:
    """A 3x3 convolution with a ReLU, sparse, or dense for `share` (sparsity) None."""
    if share is None:
        return nn.Conv2d(inputs, outputs, 3, padding=1, activation="relu", rng=rng)
    return nn.SparseConv2d(inputs, outputs, 3, padding=1, sparsity=share, activation="relu", rng=rng)


def perceptron(sizes: Sequence[int], share: float | None, rng: np.random.Generator) -> nn.Sequential:
    """Linear layers with ReLUs between them, all dense for `share` (sparsity) None.

    The weights of the sparse ones are shared out as in a random graph (Erdős-Rényi): small layers stay denser.
    """
    shapes = list(zip(sizes[1:], sizes[:-1]))
    shares = [None] * len(shapes) if share is None else [1 - d for d in sparsity.erdos_renyi(shapes, share)]
    activations = ["relu"] * (len(shapes) - 1) + [None]
    layers = [linear(*shape[::-1], own, rng, name) for shape, own, name in zip(shapes, shares, activations)]
    return nn.Sequential(*layers)


def split_stratified(x: Any, y: Labels, classes: tuple[str, ...], test: float, validation: float) -> Split:
    """The same random split at every call, with each class in its share in every part.

    `test` and `validation` are shares of all samples.
    """
    from sklearn.model_selection import train_test_split

    rest, held_out = train_test_split(np.arange(len(y)), test_size=test, stratify=y, random_state=0)
    inner, chosen = train_test_split(rest, test_size=validation / (1 - test), stratify=y[rest], random_state=0)
    parts = [(x[np.sort(part)], y[np.sort(part)]) for part in (inner, chosen, held_out)]
    return Split(parts[0], parts[1], parts[2], classes)


def described(x: Any) -> str:
    """Shape of one sample, and the share of nonzeros of a sparse matrix."""
    shape = "x".join(map(str, x.shape[1:]))
    return f"{shape}, {x.nnz / np.prod(x.shape, dtype=float):.1%} nonzero" if sparse.issparse(x) else shape
