"""The residual of the SpMM epilogue: every tile width, tiles stored in pieces, blocks, poison around what is read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import fastsparse as fs
from fastsparse.ops import spmm
from fastsparse.ops.conv import plan_between_padded, plan_identity, plan_linear_between
from fastsparse.ops.geometry import ConvGeometry
from fastsparse.ops.layouts import PaddedPlanes, blocked_planes, padded_planes, user_planes
from fastsparse.runtime.buffers import address
from fastsparse_kernels import reference as ref
from tests.checking import fixed_width, target
from tests.kernels.support import DTYPES, bits_of, lanes_of, target_of

Array = NDArray[Any]
CHANNELS, OUT = 5, 11


def geometry(spatial: tuple[int, int], kernel: int, pad: int) -> ConvGeometry:
    return ConvGeometry(CHANNELS, OUT, spatial, (kernel,) * 2, (1, 1), ((pad, pad),) * 2, (1, 1), 1)


def weights(rng: np.random.Generator, rows: int, columns: int, dtype: str) -> fs.CSR:
    return fs.csr(np.where(rng.random((rows, columns)) < 0.3, rng.standard_normal((rows, columns)), 0).astype(dtype))


def in_planes(planes: PaddedPlanes, images: Array, fill: float) -> Array:
    """Images in planes, `fill` everywhere else."""
    count, size = len(images), planes.strides[-1]  # of a number
    memory = np.full((count * planes.image_stride + planes.slack) // size, fill, images.dtype)
    offsets = planes.all_offsets() // size
    for n, image in enumerate(images):
        for c, channel in enumerate(image):
            memory[n * planes.image_stride // size + c * planes.channel_stride // size + offsets] = channel.ravel()
    return memory


def outside(planes: PaddedPlanes, count: int, length: int) -> NDArray[np.bool_]:
    mask = in_planes(planes, np.zeros((count, planes.channels, *planes.spatial), np.float32), 1.0) == 1
    return np.resize(mask, length)


@pytest.mark.R7
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", range(1, 9))
def test_residuals_in_padded_planes(rng, width, dtype):
    """y with and without padding, rows shorter than a vector and longer; in place and beside; blocks of channels."""
    m = target(bits_of(dtype), lanes_of(dtype), **fixed_width(width), l1_bytes=2048)
    for spatial, kernel, wide in (((3, 5), 3, False), ((4, 3), 3, True), ((2, 2 * m.lanes * width + 1), 1, True)):
        g = geometry(spatial, kernel, kernel // 2)
        x_planes = padded_planes(CHANNELS, spatial, [g], m)
        readers = [ConvGeometry(OUT, 1, spatial, (5, 5), (1, 1), ((2, 2), (2, 2)), (1, 1), 1)]
        y_planes = padded_planes(OUT, spatial, readers, m) if wide else user_planes(OUT, spatial, m)
        x, r = (rng.standard_normal((2, c, *spatial)).astype(dtype) for c in (CHANNELS, OUT))
        W, bias = weights(rng, OUT, CHANNELS * kernel**2, dtype), rng.standard_normal(OUT).astype(dtype)
        plan = plan_between_padded(W.pattern, g, x_planes, y_planes, m, 2)
        memory, residual = in_planes(x_planes, x, 0.0), in_planes(y_planes, r, np.nan)
        for activation in (None, "relu", "silu"):
            args = (W.indptr, W.indices, W.data, W.shape, x)
            shape = {"kernel_size": g.kernel, "stride": g.stride, "padding": g.padding, "dilation": g.dilation}
            exact = ref.conv(*args, **shape, bias=bias, residual=r, activation=activation)
            sizes = ref.conv(W.indptr, W.indices, abs(W.data), W.shape, abs(x), **shape, bias=abs(bias)) + abs(r)
            beside, inside = np.full_like(residual, np.nan), residual.copy()
            for y, source in ((beside, residual), (inside, inside)):
                values = plan.operator.pack(W.data)
                launch = spmm.prepare(
                    plan, m, y_row_stride=y_planes.channel_stride, batches=2, x_batch_stride=x_planes.image_stride,
                    y_batch_stride=y_planes.image_stride, residual=True, activation=activation,
                )  # fmt: skip
                launch.run(*map(address, (memory, y, values, bias, source)))
                assert np.isnan(y[outside(y_planes, 2, len(y))]).all(), "padding and what lies behind are left alone"
                expected = in_planes(y_planes, exact.astype(np.float64), np.nan)
                allowed = in_planes(y_planes, ref.bound(CHANNELS * kernel**2 + 1, sizes, dtype), np.nan)
                allowed = 1.1 * allowed + 4 * np.finfo(dtype).eps * np.maximum(1, abs(expected)) * (
                    activation == "silu"
                )
                within = abs(y - expected) <= allowed
                assert within[~outside(y_planes, 2, len(y))].all()
            np.testing.assert_array_equal(beside, inside)


@pytest.mark.R3
@pytest.mark.R7
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", range(1, 9))
def test_batch_blocked_residuals_give_the_same_bits_for_every_tile(rng, width, dtype):
    m, features = target_of(dtype), 23
    W, bias = weights(rng, OUT, features, dtype), rng.standard_normal(OUT).astype(dtype)
    x_planes, y_planes = blocked_planes(features, (), (), m), blocked_planes(OUT, (), (), m)
    for groups in (1, width, width + 1):
        results = []
        for choice in (1, width):
            fixed = target(bits_of(dtype), lanes_of(dtype), **fixed_width(choice))
            data = np.random.default_rng(5)
            x = data.standard_normal(groups * x_planes.group_stride // m.size).astype(dtype)
            r = data.standard_normal(groups * y_planes.group_stride // m.size).astype(dtype)
            y = np.full(len(r), np.nan, dtype)
            plan = plan_linear_between(W.pattern, x_planes, y_planes, fixed, groups)
            assert plan.tiles.width == choice
            values = plan.operator.pack(W.data)
            launch = spmm.prepare(plan, fixed, y_row_stride=m.vector, residual=True, activation="relu")
            launch.run(*map(address, (x, y, values, bias, r)))
            results.append(y)
            group = y.reshape(groups, -1)[0, : OUT * m.lanes].reshape(OUT, m.lanes)
            source = x.reshape(groups, -1)[0, : features * m.lanes].reshape(features, m.lanes)
            added = r.reshape(groups, -1)[0, : OUT * m.lanes].reshape(OUT, m.lanes)
            exact = ref.spmm(W.indptr, W.indices, W.data, W.shape, source, bias, "relu", added)
            sizes = ref.spmm(W.indptr, W.indices, abs(W.data), W.shape, abs(source), abs(bias)) + abs(added)
            assert (abs(group - exact) <= ref.bound(features + 1, sizes, dtype)).all()
        np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("positions", [1, 7, 8, 9, 31, 32, 33, 200])
def test_the_identity_adds_its_residual(rng, positions, dtype):
    m = target_of(dtype)
    plan = plan_identity(positions, m)
    x = np.concatenate([rng.standard_normal(positions), np.full(m.lanes, np.nan)]).astype(dtype)
    r = rng.standard_normal(positions).astype(dtype)
    y = np.full(positions + 1, np.nan, dtype)
    values = plan.operator.pack(np.ones(1, dtype))
    launch = spmm.prepare(plan, m, y_row_stride=0, residual=True)
    launch.run(address(x), address(y), address(values), 0, address(r))
    np.testing.assert_array_equal(y[:positions], x[:positions] + r)
    assert np.isnan(y[positions])
