"""Lowering to padded planes: products and depthwise convolutions in groups of channels, and images of one position."""

from __future__ import annotations

import numpy as np
import pytest

import fastsparse as fs
from fastsparse import nn
from fastsparse.engine import split, workspace
from fastsparse.engine.lowering import padded
from fastsparse.ops.target import target_for, tuned
from tests.engine.poison import poisoned


def _model(window, activation):
    """An expansion, a depthwise convolution, and twice the same behind it, the first time with other readers."""
    rng = np.random.default_rng(3)

    def depthwise(channels, sparsity=0.2, **options):
        return nn.SparseConv2d(channels, channels, groups=channels, sparsity=sparsity, rng=rng, **options)

    first = nn.Sequential(nn.SparseConv2d(5, 5, 1, sparsity=0.5, rng=rng), depthwise(5, kernel_size=3, padding=1))
    return nn.Sequential(
        nn.SparseConv2d(3, 13, 1, sparsity=0.5, activation=activation, rng=rng),
        depthwise(13, activation=activation, **window),
        nn.SparseConv2d(13, 5, 3, padding=1, sparsity=0.5, rng=rng),
        nn.Residual(first),
        nn.AdaptiveAvgPool2d((1, 1)),
        nn.SparseConv2d(5, 9, 1, sparsity=0.5, activation=activation, rng=rng),
        nn.SparseConv2d(9, 4, 1, sparsity=0.5, rng=rng),
    )


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize(
    "window",
    [
        {"kernel_size": 3, "padding": 1}, {"kernel_size": 5, "padding": 2, "stride": 2},
        {"kernel_size": 2, "padding": 1}, {"kernel_size": 3, "stride": (1, 2), "padding": 2, "dilation": 2},
        {"kernel_size": 3, "padding": 1, "sparsity": 0.0},
        {"kernel_size": 5, "stride": 2, "padding": 1, "sparsity": 0.0},
    ],
)  # fmt: skip
def test_channels_in_groups_give_the_same_bits(window, activation, rng):
    model = _model(window, activation)
    x = rng.standard_normal((2, 3, 19, 23)).astype(np.float32)
    program = fs.compile(model, (2, 3, 19, 23), tune=False)._program
    results, steps = [], []
    for expanded, workers in ((2**40, 1), (0, 1), (5000, 1), (5000, 2)):
        for cut in (split.Split(False, 1, 1), split.Split(True, 2, 1)):
            with tuned(expanded_bytes=expanded):
                schedule = padded.schedule(program, 2, target_for(np.dtype("float32"), workers), cut)
            y = np.empty((2, 4), np.float32)
            with poisoned():
                workspace.Workspace(schedule).run(x, y)
            results.append(y)
            steps.append(len(schedule.steps) // cut.outer)
    assert len({y.tobytes() for y in results}) == 1
    assert steps[0] < steps[4] < steps[2]
    np.testing.assert_allclose(results[0], model(x).reshape(2, 4), rtol=1e-4, atol=1e-5)


def test_products_of_one_position_are_vectors(rng):
    model = _model({"kernel_size": 3, "padding": 1}, "silu")
    assert [row.kernel for row in fs.compile(model, (1, 3, 8, 8), tune=False).report().rows].count("spmv") == 2


@pytest.mark.R7
@pytest.mark.R8
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_windows_that_see_padding_alone(size, stride):
    x = np.ones((1, 2, size), np.float32)
    for padding in [(0, 0), (1, 0), (0, 1), (1, 1), (2, 1), (3, 0)]:
        for kernel in (1, 2):
            if size + sum(padding) >= kernel:
                layer = nn.SparseConv1d(2, 3, kernel, stride, (padding,), sparsity=0.3, bias=False, rng=0)
                model = nn.Sequential(layer).eval()
                y = fs.compile(model, x.shape, tune=False)(x)
                np.testing.assert_allclose(y, model(x), rtol=1e-5, err_msg=f"padding {padding}, kernel {kernel}")


def test_one_channel_of_one_position_is_no_depthwise_layer_behind_a_product():
    layers = [nn.SparseConv2d(1, 1, 1, sparsity=0, rng=seed) for seed in range(3)]
    model, x = nn.Sequential(*layers[:2], nn.LayerNorm((1, 1)), layers[2]).eval(), np.full((1, 1, 1, 1), 2, np.float32)
    program = fs.compile(model, x.shape, tune=False)._program
    y = np.empty_like(x)
    with tuned(expanded_bytes=0):
        schedule = padded.schedule(program, 1, target_for(np.dtype("float32"), 1))
    with poisoned():
        workspace.Workspace(schedule).run(x, y)
    np.testing.assert_allclose(y, model(x), rtol=1e-5, atol=1e-6)


@pytest.mark.R8
def test_layers_of_one_channel_in_a_row(rng):
    """Each is a product, and a depthwise convolution behind the one before it: pairs of them go by channels."""
    layers = [nn.SparseConv2d(1, 1, 3, padding=1, sparsity=0.3, rng=seed) for seed in range(6)]
    model, x = nn.Sequential(*layers).eval(), rng.standard_normal((1, 1, 300, 300)).astype(np.float32)
    np.testing.assert_allclose(fs.compile(model, x.shape, tune=False)(x), model(x), rtol=1e-4, atol=1e-4)
