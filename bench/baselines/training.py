"""Whole steps of training (forward, loss, backward, SGD with momentum) by every library, from the same weights.

torch is dense, as torch networks are; SparseProp and SparseLab train with torch's optimizer. What is checked are the
losses of some steps. The dense twin takes these with gradients outside the pattern set to zero, as a sparse network.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.baselines import OURS, Baseline, Call, steps, torch_on
from bench.cold_start import Clock, Measured
from bench.workloads import PatternChange, TrainingStep
from fastsparse import nn, sparsity, training

MOMENTUM = 0.9
# Steps that are compared learn; those that are timed hardly do: on one batch a network learns so well within seconds
# that gradients become denormal numbers, which take a CPU many times longer.
LEARNING_RATE, TIMED_RATE = 0.01, 1e-6
COMPARED_STEPS = 3
# Largest relative difference of two losses in float32.
SAME = 1e-3

Data = tuple[NDArray[np.float32], NDArray[np.int64]]


def mlp(share: float, dtype: str = "float32") -> nn.Sequential:
    """3072-1024-1024-10, as for CIFAR images; the last layer is sparse too."""
    sizes = [(3072, 1024, "relu"), (1024, 1024, "relu"), (1024, 10, None)]
    return nn.Sequential(*[
        nn.SparseLinear(*s, sparsity=share, activation=a, dtype=dtype, rng=i) for i, (*s, a) in enumerate(sizes)
    ])  # fmt: skip


def cnn(share: float, dtype: str = "float32") -> nn.Sequential:
    """The MNIST network of examples/: one dense and two sparse convolutions, two poolings, a sparse linear layer."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1, activation="relu", dtype=dtype, rng=0),
        nn.MaxPool2d(2),
        nn.SparseConv2d(32, 64, 3, padding=1, sparsity=share, activation="relu", dtype=dtype, rng=1),
        nn.MaxPool2d(2),
        nn.SparseConv2d(64, 128, 3, padding=1, sparsity=share, activation="relu", dtype=dtype, rng=2),
        nn.Flatten(),
        nn.SparseLinear(128 * 49, 10, sparsity=share, dtype=dtype, rng=3),
    )


NETWORKS: dict[str, tuple[Callable[..., nn.Sequential], tuple[int, ...]]] = {
    "mlp": (mlp, (3072,)),
    "cnn": (cnn, (1, 28, 28)),
}


def expected(case: TrainingStep) -> list[tuple[Any, ...]]:
    """The losses of the network in float64, with the same weights."""
    make, _ = NETWORKS[case.network]
    model, state = make(case.sparsity, "float64"), make(case.sparsity).state_dict()
    model.load_state_dict({k: v.astype(np.float64) if v.dtype == np.float32 else v for k, v in state.items()})
    x, y = _data(case)
    step = _step(model, (x.astype(np.float64), y), LEARNING_RATE)
    losses = np.array([step() for _ in range(COMPARED_STEPS)])
    return [(losses, SAME * np.abs(losses))]


def _data(case: TrainingStep | PatternChange) -> Data:
    """A batch of noise with labels."""
    rng = np.random.default_rng(9)
    shape = (case.batch, *NETWORKS[case.network][1])
    return rng.standard_normal(shape, dtype=np.float32), rng.integers(0, 10, case.batch)


def _step(model: nn.Sequential, batch: Data, rate: float, after: Callable[[int], object] | None = None) -> Call:
    optimizer = training.SGD(model.parameters(), rate, MOMENTUM)
    x, y = batch

    def step() -> float:
        optimizer.zero_grad()
        loss, grad = training.cross_entropy(model(x), y)
        model.backward(grad, need_input=False)
        optimizer.step()
        if after is not None:
            after(optimizer.steps)
        return loss

    return step


def _fastsparse(case: TrainingStep, threads: int) -> Call:
    return _timed_and_compared(lambda rate, _: _step(NETWORKS[case.network][0](case.sparsity), _data(case), rate))


def _timed_and_compared(make: Callable[[float, bool], Call]) -> Call:
    """The step that is timed, with the losses of steps that learn as its result."""
    timed = make(TIMED_RATE, False)

    def result() -> np.ndarray:
        step = make(LEARNING_RATE, True)
        return np.array([step() for _ in range(COMPARED_STEPS)])

    timed.result = result  # type: ignore[attr-defined]
    return timed


# -------------------------------------------------------------------------------------------------------------- torch


def _torch(replace: Callable[[Any], Any] | None, *names: str) -> Callable[[TrainingStep, int], Call | None]:
    """The twin in torch; `replace` turns layers that stand for sparse ones into others, in the networks named."""

    def setup(case: TrainingStep, threads: int) -> Call | None:
        if case.network not in names:
            return None
        torch_on(threads)
        model = NETWORKS[case.network][0](case.sparsity)
        return _timed_and_compared(lambda rate, masked: _torch_step(*_twin(model, replace), _data(case), rate, masked))

    return setup


def _torch_step(network: Any, masks: list[tuple[Any, Any]], batch: Data, rate: float, masked: bool) -> Call:
    import torch

    optimizer = torch.optim.SGD(network.parameters(), rate, MOMENTUM)
    x, y = torch.from_numpy(batch[0]), torch.from_numpy(batch[1])

    def step() -> float:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(network(x), y)
        loss.backward()
        for weight, mask in masks if masked else ():
            weight.grad.mul_(mask)
        optimizer.step()
        return float(loss.detach())

    return step


def _twin(model: nn.Sequential, replace: Callable[[Any], Any] | None) -> tuple[Any, list[tuple[Any, Any]]]:
    """The torch network of the same weights; its dense weights that stand for sparse ones, with masks."""
    import torch

    layers: list[Any] = []
    masks = []
    for layer in model:
        if isinstance(layer, nn.MaxPool2d):
            layers.append(torch.nn.MaxPool2d(2))
        elif isinstance(layer, nn.Flatten):
            layers.append(torch.nn.Flatten())
        else:
            sparse = hasattr(layer, "pattern")
            full = layer.weight.toarray() if sparse else layer.weight.value
            twin: Any
            if isinstance(layer, nn.SparseLinear):
                twin = torch.nn.Linear(layer.in_features, layer.out_features)
            else:
                twin = torch.nn.Conv2d(layer.in_channels, layer.out_channels, 3, padding=1)
            with torch.no_grad():
                twin.weight.copy_(torch.from_numpy(full).reshape(twin.weight.shape))
                twin.bias.copy_(torch.from_numpy(layer.bias.value))
            if sparse and replace is None:
                masks.append((twin.weight, (twin.weight != 0).detach().float()))
            layers.append(replace(twin) if sparse and replace is not None else twin)
            if layer.activation == "relu":
                layers.append(torch.nn.ReLU())
    return torch.nn.Sequential(*layers), masks


def sparseprop(layer: Any) -> Any:
    """SparseProp's layer with the weights of one of torch's."""
    import sparseprop
    import torch
    from sparseprop.modules import SparseConv2d, SparseLinear

    sparseprop.set_num_threads(torch.get_num_threads())
    if isinstance(layer, torch.nn.Linear):
        return SparseLinear.from_dense(layer)
    return SparseConv2d.from_dense(layer, vectorizing_over_on=False)


def sparselab(layer: Any) -> Any:
    """SparseLab's, likewise."""
    return steps.sparselab_layer(layer.weight.detach(), layer.bias.detach())


TRAINING = [
    Baseline(OURS, _fastsparse),
    Baseline("torch dense", _torch(None, *NETWORKS), needs=("torch",)),
    Baseline("SparseProp", _torch(sparseprop, *NETWORKS), needs=("torch", "sparseprop")),
    Baseline("SparseLab", _torch(sparselab, "mlp"), needs=("torch", "sparselab")),
]


# --------------------------------------------------------------------------------------------- patterns that change

_ROUND = 6  # steps between changes while measuring: the last ones of each round are ordinary
_EVERY = 100  # steps between changes in real trainings, for which the share is said


def pattern_change(case: PatternChange, clock: Clock = time.perf_counter) -> Measured:
    """What a change of patterns costs: seconds beyond those of ordinary steps, and its share of training.

    A change is felt in two steps: the one it ends, in which the algorithm chooses and RigL computes gradients outside
    the pattern, and the next one, which builds new plans. What these two take beyond two ordinary steps is its cost.
    """
    model = NETWORKS[case.network][0](case.sparsity)
    algorithm = getattr(sparsity, case.algorithm)(model, every=_ROUND)
    step = _step(model, _data(case), TIMED_RATE, algorithm.step)
    seconds: list[list[float]] = [[] for _ in range(_ROUND)]
    for number in range(1, (case.changes + 2) * _ROUND):
        begin = clock()
        step()
        if number >= 2 * _ROUND:
            seconds[number % _ROUND].append(clock() - begin)
    ordinary = statistics.median(second for offset in seconds[3:] for second in offset)
    costs = [max(0.0, change + after - 2 * ordinary) for change, after in zip(seconds[0], seconds[1])]
    cost = statistics.median(costs)
    share = cost / (_EVERY * ordinary + cost)
    return costs, {"ordinary step": f"{ordinary * 1e3:.1f} ms", f"share, every {_EVERY} steps": f"{share:.1%}"}
