"""How many workers an engine uses: as many as there are, or one, by the work of its steps alone."""

from __future__ import annotations

from itertools import pairwise

import pytest

import fastsparse as fs
from fastsparse import nn
from fastsparse.engine.choosing import workers_that_pay
from fastsparse.engine.from_model import program_of
from fastsparse.engine.passes import optimised
from fastsparse.ops.target import tuned

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


# Layers, shape of a sample, batch, and how many of two workers. What was measured of such networks on two cores that
# share no cache stands behind, as the time of one worker over that of two.
TABLE = {
    "mobile, 14 x 14": (lambda: _mobile(32, 4), (32, 14, 14), 1, 1),  # 0.5
    "mobile, 56 x 56": (lambda: _mobile(24, 4), (24, 56, 56), 1, 1),  # 0.8
    "mobile, 14 x 14, batch 2": (lambda: _mobile(32, 4), (32, 14, 14), 2, 2),
    "residual, 32 x 32": (lambda: _residual(64, 4), (64, 32, 32), 1, 2),  # 0.8, but 1.6 where they share one
    "residual, 56 x 56": (lambda: _residual(128, 2), (128, 56, 56), 1, 2),  # 1.4
    "tiny, batch 32": (lambda: _perceptron(784, 300, 100, 10), (784,), 32, 1),  # 0.6
    "tiny, batch 1": (lambda: _perceptron(784, 300, 100, 10), (784,), 1, 1),
    "wide, batch 1": (lambda: _perceptron(1024, 1024, 1024, 1024), (1024,), 1, 1),  # 0.8
    "wider, batch 1": (lambda: _perceptron(2048, 2048, 2048, 2048), (2048,), 1, 2),  # 1.4
    "wide, batch 64": (lambda: _perceptron(1024, 1024, 1024, 1024), (1024,), 64, 2),
}


@pytest.mark.parametrize("name", TABLE)
def test_as_many_workers_as_pay_where_cores_may_share_no_cache(name):
    make, shape, batch, wanted = TABLE[name]
    program = optimised(program_of(nn.Sequential(*make()), shape))
    with tuned(cores_share_cache=False):
        assert [workers_that_pay(program, batch, most) for most in (1, 2)] == [1, wanted]


@pytest.mark.parametrize(("name", "wanted"), [("mobile, 56 x 56", 2), ("wide, batch 1", 2), ("tiny, batch 1", 1)])
def test_less_work_pays_where_cores_share_a_cache(name, wanted):
    make, shape, batch, _far = TABLE[name]
    program = optimised(program_of(nn.Sequential(*make()), shape))
    with tuned(cores_share_cache=True):
        assert workers_that_pay(program, batch, 2) == wanted


def test_an_engine_of_tiny_steps_runs_on_one_thread_and_gives_the_same_bits(rng):
    model = nn.Sequential(*_mobile(16, 2))
    x = rng.standard_normal((1, 16, 9, 9)).astype("f4")
    with tuned(cores_share_cache=False):
        engine = fs.compile(model, x.shape, threads=2, tune=False)
        assert "workers: 1" in str(engine.report())
    with tuned(step_cost=0.0, moved_cost=0.0, region_cost=0.0, parallel_flops=0.0):
        shared = fs.compile(model, x.shape, threads=2, tune=False)
        assert "workers: 2" in str(shared.report())
    assert (engine(x) == shared(x)).all()
