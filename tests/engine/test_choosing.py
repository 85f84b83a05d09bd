"""How many workers an engine uses: all, one, or whichever takes less time, by the work of its steps alone."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest

import fastsparse as fs
from fastsparse import nn
from fastsparse.engine.choosing import Choices
from fastsparse.engine.from_model import program_of
from fastsparse.engine.passes import optimised
from fastsparse.engine.schedule import Schedule
from fastsparse.engine.trial import CALLS
from fastsparse.runtime import launch
from tests.checking import same_bits

Layers = list[nn.Module]


def _conv(channels: int, out: int, side: int = 3, stride: int = 1, sparsity: float = 0.9) -> nn.SparseConv2d:
    return nn.SparseConv2d(
        channels, out, side, stride=stride, padding=side // 2, sparsity=sparsity, activation="relu", rng=0
    )


def _mobile(channels: int, blocks: int) -> Layers:
    """Expansion, depthwise windows, product back."""
    wide, found = 6 * channels, list[nn.Module]()
    for _ in range(blocks):
        window = nn.SparseConv2d(wide, wide, 3, padding=1, groups=wide, sparsity=0, activation="relu6", rng=0)
        found.append(nn.Residual(nn.Sequential(_conv(channels, wide, 1), window, _conv(wide, channels, 1))))
    return found


def _residual(channels: int, blocks: int) -> Layers:
    return [nn.Residual(nn.Sequential(_conv(channels, channels), _conv(channels, channels))) for _ in range(blocks)]


def _perceptron(*sizes: int) -> Layers:
    return [nn.SparseLinear(a, b, sparsity=0.9, rng=0) for a, b in pairwise(sizes)]


# Layers, shape of a sample, batch, and what two workers do: one of them runs all, both do, or which is faster is tried.
# The times of one over those of two stand behind, on cores that share a cache and on cores that do not.
TABLE = {
    "mobile, 14 x 14": (lambda: _mobile(32, 4), (32, 14, 14), 1, "tried"),  # 0.9, 0.8
    "mobile, 56 x 56": (lambda: _mobile(24, 4), (24, 56, 56), 1, "tried"),  # 1.6, 0.5
    "residual, 32 x 32": (lambda: _residual(64, 4), (64, 32, 32), 1, "tried"),  # 1.6, 0.8
    "residual, 56 x 56": (lambda: _residual(128, 2), (128, 56, 56), 1, "both"),  # 1.4 where they share none
    "residual, 32 x 32, batch 4": (lambda: _residual(64, 4), (64, 32, 32), 4, "both"),
    "tiny, batch 1": (lambda: _perceptron(784, 300, 100, 10), (784,), 1, "one"),  # 0.8, 0.8
    "tiny, batch 32": (lambda: _perceptron(784, 300, 100, 10), (784,), 32, "tried"),  # 1.2, 0.6
    "wide, batch 1": (lambda: _perceptron(1024, 1024, 1024, 1024), (1024,), 1, "one"),  # 0.8, 0.8
    "wider, batch 1": (lambda: _perceptron(2048, 2048, 2048, 2048), (2048,), 1, "tried"),  # 1.8, 1.5
    "wide, batch 64": (lambda: _perceptron(1024, 1024, 1024, 1024), (1024,), 64, "both"),  # 1.9, 1.0
}


@pytest.mark.parametrize("name", TABLE)
def test_as_many_workers_as_pay(name):
    make, shape, batch, wanted = TABLE[name]
    program = optimised(program_of(nn.Sequential(*make()), shape))

    made = Choices().schedule(program, batch, 2, tune=False)
    assert {"one": (1, None), "both": (2, None), "tried": (2, 1)}[wanted] == (made.workers, _workers(made.alone))
    one = Choices().schedule(program, batch, 1, tune=False)
    assert (one.workers, one.alone) == (1, None)


def _workers(schedule: Schedule | None) -> int | None:
    return None if schedule is None else schedule.workers


NETWORKS: dict[str, tuple[Callable[[], Layers], tuple[int, ...]]] = {
    "padded": (lambda: _mobile(32, 2), (1, 32, 14, 14)),
    "spatial tiles": (lambda: _residual(32, 2), (1, 32, 24, 24)),
    "batch-blocked": (lambda: _perceptron(784, 300, 100, 10), (40, 784)),
    "one row": (lambda: _perceptron(2048, 2048, 512), (1, 2048)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_calls_give_the_same_bits_on_one_worker_and_on_two(name, rng):
    make, shape = NETWORKS[name]
    model, x = nn.Sequential(*make()), rng.standard_normal(shape).astype("f4")
    wanted = fs.compile(model, shape, threads=1, tune=False)(x)
    engine = fs.compile(model, shape, threads=2, tune=False)
    with engine._pool(shape[0]).workspace() as space:
        used = set()
        for _ in range(3 * CALLS):
            used.add(space.taken.schedule.workers)
            y = np.full_like(wanted, np.nan)
            space.run(x, y)
            assert same_bits(y, wanted)
        assert used == {1, 2}, "the first calls go both ways"


def test_calls_from_several_threads_go_their_ways(rng):
    x = rng.standard_normal((1, 32, 14, 14)).astype("f4")
    engine = fs.compile(nn.Sequential(*_mobile(32, 2)), x.shape, threads=2, tune=False)
    wanted = engine(x)
    with ThreadPoolExecutor(4) as threads:
        assert all(same_bits(y, wanted) for y in threads.map(engine, [x] * 60))


def test_reports_and_lines_say_how_many_workers_ran(monkeypatch, capsys, rng):
    x = rng.standard_normal((1, 32, 14, 14)).astype("f4")
    engine = fs.compile(nn.Sequential(*_mobile(32, 2)), x.shape, threads=2, tune=False)
    monkeypatch.setattr(launch, "VERBOSE", True)
    for _ in range(2 * CALLS):
        engine(x)
    lines = capsys.readouterr().err.splitlines()
    assert {n for n in (1, 2) if any(f",threads {n}," in line for line in lines)} == {1, 2}
    monkeypatch.setattr(launch, "VERBOSE", False)
    with engine._pool(1).workspace() as space:
        workers = space.taken.schedule.workers
    assert engine.report().facts["workers"].startswith(f"{workers}; ")
    assert "the faster at the moment of 1 and 2" in engine.report().facts["workers"]
