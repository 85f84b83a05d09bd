"""One training step (forward, loss, backward, SGD with momentum) of two networks: `python -m bench.training_step`.

Everybody starts from the same weights and takes the same steps; those whose losses differ are not timed. SparseLab
chooses weights of its own, so of it only the sparsity is the same. torch is dense, as torch networks are; SparseProp
and SparseLab train with torch's optimizer. Peers that are not installed are left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fastsparse as fs
from bench.rotation import pinned
from fastsparse import nn, training
from fastsparse.timing import interleaved, speedup

BATCH = 128
MOMENTUM = 0.9
# Steps that are compared learn; those that are timed hardly do: on one batch a network learns so well within seconds
# that gradients become denormal numbers, which take a CPU many times longer.
LEARNING_RATE, TIMED_RATE = 0.01, 1e-6
COMPARED_STEPS = 3
SPARSITIES = (0.9, 0.95)
# Largest relative difference of two losses in float32.
SAME = 1e-3

Step = Callable[[], float]
Data = tuple[NDArray[np.float32], NDArray[np.int64]]


def mlp(sparsity: float) -> nn.Sequential:
    """3072-1024-1024-10, as for CIFAR images; the last layer is sparse too."""
    sizes = [(3072, 1024), (1024, 1024), (1024, 10)]
    activations = ["relu", "relu", None]
    return nn.Sequential(
        *[
            nn.SparseLinear(*s, sparsity=sparsity, activation=a, rng=i)
            for i, (s, a) in enumerate(zip(sizes, activations))
        ]
    )


def cnn(sparsity: float) -> nn.Sequential:
    """The MNIST network of examples/: one dense and two sparse convolutions, two poolings, a sparse linear layer."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1, activation="relu", rng=0),
        nn.MaxPool2d(2),
        nn.SparseConv2d(32, 64, 3, padding=1, sparsity=sparsity, activation="relu", rng=1),
        nn.MaxPool2d(2),
        nn.SparseConv2d(64, 128, 3, padding=1, sparsity=sparsity, activation="relu", rng=2),
        nn.Flatten(),
        nn.SparseLinear(128 * 49, 10, sparsity=sparsity, rng=3),
    )


CASES: dict[str, tuple[Callable[[float], nn.Sequential], tuple[int, ...]]] = {
    "MLP 3072-1024-1024-10": (mlp, (BATCH, 3072)),
    "MNIST CNN": (cnn, (BATCH, 1, 28, 28)),
}


def data(shape: tuple[int, ...]) -> Data:
    """A batch of noise with labels."""
    rng = np.random.default_rng(9)
    return rng.standard_normal(shape, dtype=np.float32), rng.integers(0, 10, shape[0])


def ours(model: nn.Sequential, batch: Data, rate: float) -> Step:
    """A step of fastsparse."""
    optimizer = training.SGD(model.parameters(), rate, MOMENTUM)
    x, y = batch

    def step() -> float:
        optimizer.zero_grad()
        loss, grad = training.cross_entropy(model(x), y)
        model.backward(grad, need_input=False)
        optimizer.step()
        return loss

    return step


def torch_step(network: Any, batch: Data, rate: float) -> Step:
    """A step of a torch module."""
    import torch

    optimizer = torch.optim.SGD(network.parameters(), rate, MOMENTUM)
    x, y = torch.from_numpy(batch[0]), torch.from_numpy(batch[1])

    def step() -> float:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(network(x), y)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def twin(model: nn.Sequential, linear: Callable[[Any], Any] | None = None) -> Any:
    """The dense torch network of the same weights; `linear` turns its sparse linear layers into others."""
    import torch

    layers: list[Any] = []
    for layer in model:
        if isinstance(layer, nn.MaxPool2d):
            layers.append(torch.nn.MaxPool2d(2))
        elif isinstance(layer, nn.Flatten):
            layers.append(torch.nn.Flatten())
        else:
            full = layer.weight.toarray() if hasattr(layer, "pattern") else layer.weight.value
            twin_layer: Any
            if isinstance(layer, nn.SparseLinear):
                twin_layer = torch.nn.Linear(layer.in_features, layer.out_features)
            else:
                twin_layer = torch.nn.Conv2d(layer.in_channels, layer.out_channels, 3, padding=1)
            with torch.no_grad():
                twin_layer.weight.copy_(torch.from_numpy(full).reshape(twin_layer.weight.shape))
                twin_layer.bias.copy_(torch.from_numpy(layer.bias.value))
            layers.append(linear(twin_layer) if linear and isinstance(layer, nn.SparseLinear) else twin_layer)
            if layer.activation == "relu":
                layers.append(torch.nn.ReLU())
    return torch.nn.Sequential(*layers)


def contenders(name: str, sparsity: float, threads: int, rate: float) -> dict[str, Step]:
    """Everybody who is installed."""
    make, shape = CASES[name]
    batch = data(shape)
    steps = {"fastsparse": ours(make(sparsity), batch, rate)}
    if not _installed("torch"):
        return steps
    import torch

    torch.set_num_threads(threads)
    steps["torch dense"] = torch_step(twin(make(sparsity)), batch, rate)
    if _installed("sparseprop"):
        import sparseprop
        from sparseprop.modules import SparseConv2d, SparseLinear

        sparseprop.set_num_threads(threads)
        network = twin(make(sparsity), SparseLinear.from_dense)
        for i, layer in enumerate(network):
            if isinstance(layer, torch.nn.Conv2d) and layer.in_channels > 1:
                network[i] = SparseConv2d.from_dense(layer, vectorizing_over_on=False)
        steps["SparseProp"] = torch_step(network, batch, rate)
    if _installed("sparselab") and len(shape) == 2:
        import sparselab

        def drawn(layer: Any) -> Any:
            return sparselab.SparseLinear(layer.in_features, layer.out_features, sparsity=sparsity)

        steps["SparseLab (other weights)"] = torch_step(twin(make(sparsity), drawn), batch, rate)
    return steps


def agree(name: str, sparsity: float, threads: int) -> set[str]:
    """Those whose losses over some steps are ours; others are named and left out."""
    steps = contenders(name, sparsity, threads, LEARNING_RATE)
    losses = {who: [step() for _ in range(COMPARED_STEPS)] for who, step in steps.items()}
    want = losses["fastsparse"]
    right = set()
    for who, found in losses.items():
        if "other weights" in who or "dense" in who:  # a dense twin drifts once its zeros have moved
            found = found[:1] if "dense" in who else want
        if all(abs(a - b) <= SAME * abs(b) for a, b in zip(found, want)):
            right.add(who)
        else:
            print(f"{who} has the losses {found}, fastsparse {want}: not timed", file=sys.stderr)
    return right


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def main(argv: Sequence[str] | None = None) -> int:
    """Print milliseconds per step and how many times faster fastsparse is."""
    parser = argparse.ArgumentParser(prog="python -m bench.training_step", description=main.__doc__)
    parser.add_argument("--threads", type=int, default=fs.get_num_threads())
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args(argv)
    print(f"batch {BATCH}, float32, {args.threads} threads; median of {args.rounds} interleaved rounds\n")
    print("| network | sparsity | who | ms per step | fastsparse is faster by |\n|---|---|---|---|---|")
    with pinned(args.threads):
        for name in CASES:
            for sparsity in SPARSITIES:
                right = agree(name, sparsity, args.threads)
                steps = contenders(name, sparsity, args.threads, TIMED_RATE)
                times = interleaved({who: steps[who] for who in steps if who in right}, rounds=args.rounds)
                for who, timing in times.items():
                    ratio = speedup(timing, times["fastsparse"])
                    print(f"| {name} | {sparsity:.0%} | {who} | {timing.median * 1e3:.2f} | {ratio:.2f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
