"""Packing and unpacking: every element where it belongs, padding and missing samples zero, nothing else touched."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastsparse as fs
from fastsparse.ops import conv, layouts
from fastsparse.ops.geometry import ConvGeometry
from fastsparse.runtime.buffers import address
from fastsparse_kernels import layouts as kernels
from fastsparse_kernels import reference as ref
from fastsparse_kernels.compiler import aligned_empty
from tests.checking import EVERYWHERE, NOWHERE, target
from tests.kernels.support import DTYPES, Guarded, bits_of, lanes_of, target_of

BOTH = pytest.mark.parametrize("dtype", DTYPES)
THREADS = pytest.mark.parametrize("threads", [1, 2])
SHAPES: list[Any] = [
    # channels, image, padding
    (1, (1,), ((0, 0),)),
    (3, (17,), ((0, 0),)),
    (2, (600,), ((0, 0),)),  # more than one chunk
    (2, (5, 7), ((1, 1), (1, 1))),
    (2, (5, 7), ((0, 2), (3, 0))),
    (1, (30, 40), ((0, 0), (0, 1))),
    (2, (2, 3, 4), ((1, 0), (0, 0), (0, 2))),
    (1, (0, 3), ((1, 1), (0, 0))),
]


@pytest.mark.R7
@BOTH
@THREADS
@pytest.mark.parametrize(("channels", "spatial", "padding"), SHAPES)
def test_batch_blocked_there_and_back(rng, channels, spatial, padding, threads, dtype):
    m = target_of(dtype, threads)
    planes = layouts.blocked_planes(channels, spatial, padding, m)
    padded_shape = tuple(n + a + b for n, (a, b) in zip(spatial, padding, strict=True))
    size = int(np.prod(padded_shape))
    for samples in (1, 2, m.lanes - 1, m.lanes, m.lanes + 1, 2 * m.lanes):
        groups = -(-samples // m.lanes)
        user = rng.standard_normal((samples, channels, *spatial)).astype(dtype)
        buffer = aligned_empty((groups * planes.group_stride,), np.uint8)
        layouts.pack_blocked(planes, samples, m).run(address(user), address(buffer))
        expected = np.zeros((groups * m.lanes, channels, *padded_shape), dtype)
        expected[:samples] = ref.pad_spatial(user, padding, 0.0)
        for group, channel in np.ndindex(groups, channels):
            start = group * planes.group_stride + channel * planes.channel_stride
            plane = buffer[start : start + size * m.vector].view(dtype).reshape(size, m.lanes)
            wanted = expected[group * m.lanes : (group + 1) * m.lanes, channel].reshape(m.lanes, size).T
            assert np.array_equal(plane, wanted)
            gap = buffer[start + size * m.vector : start + planes.channel_stride]
            assert (gap == 255).all(), "between planes nothing is written"
        back = Guarded(user.shape, dtype)
        inside = back.inside
        layouts.unpack_blocked(planes, samples, m).run(address(buffer), address(inside))
        assert np.array_equal(inside, user)
        assert back.intact()


@BOTH
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize(("channels", "spatial", "padding"), [s for s in SHAPES if len(s[1]) == 2])
def test_by_rows_every_vector_has_a_place_of_its_own(channels, spatial, padding, order, dtype):
    m = target_of(dtype, 1)
    planes = layouts.blocked_planes(channels, spatial, padding, m, order, by_rows=True)
    inside, around = planes.all_offsets(), planes.padding_offsets
    row, columns = order
    length = spatial[columns] + sum(padding[columns])
    assert planes.strides[columns] == m.vector <= length * m.vector <= max(planes.channel_stride, m.vector)
    assert planes.strides[row] >= channels * planes.channel_stride
    vectors = np.add.outer(np.arange(channels) * planes.channel_stride, np.concatenate([inside, around])).ravel()
    assert len(np.unique(vectors // m.vector)) == channels * int(
        np.prod([n + a + b for n, (a, b) in zip(spatial, padding, strict=True)])
    )
    assert (vectors % m.vector == 0).all()
    assert ((vectors >= 0) & (vectors < max(1, planes.group_stride))).all()
    assert len(inside) == planes.positions == np.prod(spatial)


@BOTH
def test_samples_far_apart(rng, dtype):
    """Rows of a wider array, in any order; what lies between them is not read."""
    m = target_of(dtype)
    wide = np.full((40, 90), np.nan, dtype)
    wide[::3, :33] = rng.standard_normal((14, 33))
    planes = layouts.blocked_planes(1, (33,), ((0, 0),), m)
    for rows in (wide[::3, :33], wide[::-3, :33][:13], np.broadcast_to(wide[3, :33], (9, 33))):
        groups = -(-len(rows) // m.lanes)
        buffer = aligned_empty((groups * planes.group_stride,), np.uint8)
        layouts.pack_blocked(planes, len(rows), m, rows.strides[0]).run(address(rows), address(buffer))
        back = np.full_like(wide, np.nan)
        layouts.unpack_blocked(planes, len(rows), m, back.strides[0]).run(address(buffer), address(back))
        assert np.array_equal(back[: len(rows), :33], rows, equal_nan=True)
        assert np.isnan(back[:, 33:]).all()
        assert np.isnan(back[len(rows) :]).all()


@BOTH
@THREADS
@pytest.mark.parametrize("far", [False, True])
@pytest.mark.parametrize("peel", [0, 1, 7])
def test_unpacking_rows_on_the_same_sets(rng, peel, far, threads, dtype):
    """Rows a multiple of 2 KB apart, whole vectors of which are stored by way of a buffer, non-temporal when far."""
    m = target(bits_of(dtype), lanes_of(dtype), threads, parallel_flops=0, far_share=EVERYWHERE if far else NOWHERE)
    wide = kernels.WIDE * m.lanes
    for features, samples in ((wide - 1, 2 * m.lanes), (wide, m.lanes), (3 * wide + m.lanes + 3, 2 * m.lanes + 1)):
        row = -(-(peel + features + 1) * m.size // 2048) * 2048 // m.size
        rows = rng.standard_normal((samples, features)).astype(dtype)
        planes = layouts.blocked_planes(1, (features,), ((0, 0),), m)
        buffer = aligned_empty((-(-samples // m.lanes) * planes.group_stride,), np.uint8)
        layouts.pack_blocked(planes, samples, m, rows.strides[0]).run(address(rows), address(buffer))
        back = aligned_empty((samples, row), dtype)
        back[...] = np.nan
        begin = address(back) + peel * m.size
        layouts.unpack_blocked(planes, samples, m, back.strides[0]).run(address(buffer), begin)
        assert np.array_equal(back[:, peel : peel + features], rows)
        assert np.isnan(back[:, :peel]).all()
        assert np.isnan(back[:, peel + features :]).all()


@BOTH
@pytest.mark.parametrize("width", [1, 3])
def test_panels_there_and_back(rng, width, dtype):
    m = target_of(dtype)
    for samples in (1, m.lanes, width * m.lanes + 1, 2 * width * m.lanes - 1, 3 * width * m.lanes):
        rows = rng.standard_normal((samples, 13)).astype(dtype)
        planes = layouts.feature_panels(13, width, m)
        panels = -(-samples // (width * m.lanes))
        buffer = aligned_empty((panels * planes.panel_stride,), np.uint8)
        layouts.pack_blocked(planes, samples, m, rows.strides[0]).run(address(rows), address(buffer))
        padded = np.zeros((panels * width * m.lanes, 13), dtype)
        padded[:samples] = rows
        for sample in range(len(padded)):  # zeros behind the samples, too: SDDMM reads them
            panel, group, lane = sample // (width * m.lanes), sample // m.lanes % width, sample % m.lanes
            found = buffer[panel * planes.panel_stride :][: 13 * width * m.vector].view(dtype)
            assert np.array_equal(found.reshape(13, width, m.lanes)[:, group, lane], padded[sample])
        back = np.full_like(rows, np.nan)
        layouts.unpack_blocked(planes, samples, m, back.strides[0]).run(address(buffer), address(back))
        assert np.array_equal(back, rows)


@pytest.mark.R7
@BOTH
@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (1, 3), (3, 1), (4, 5)])
@pytest.mark.parametrize("padding", [((0, 0), (0, 0)), ((1, 2), (3, 1))])
def test_padded_planes(rng, stride, padding, dtype):
    """Every window finds its element, through offsets that the plan folds into the operator."""
    m = target_of(dtype)
    geometry = ConvGeometry(3, 1, (9, 11), (2, 3), stride, padding, (1, 2), 1)
    pattern = fs.csr(np.ones((1, 18), dtype)).pattern
    plan = conv.plan_padded(pattern, geometry, m, 2)
    images = rng.standard_normal((2, 3, 9, 11)).astype(dtype)
    channel = plan.x.channel_stride
    buffer = aligned_empty((2 * 3 * channel + plan.x.slack,), np.uint8)
    layouts.pack_padded(plan.x, 3, 2, *images.strides[:2], m).run(address(images), address(buffer))
    numbers = buffer.view(dtype)
    padded = ref.pad_spatial(images, padding, 0.0)
    op = plan.spmm.operator
    offsets = np.zeros(18, np.int64)
    offsets[op.permutation] = op.offsets + op.columns.bases[op.columns.block[pattern.indices[op.permutation]]]
    tiles = plan.spmm.tiles
    tile_of = np.repeat(np.arange(tiles.count), np.diff(tiles.tile_pieces)[:, 0])
    stored = [(tile, *piece) for tile, piece in zip(tile_of, tiles.pieces // (m.size, m.size, 1), strict=True)]
    for tile in np.flatnonzero(tiles.whole):  # short vectors make some
        stored += [(tile, i * m.lanes, to // m.size, m.lanes) for i, to in enumerate(tiles.y_offsets[tile])]
    seen = 0
    for tile, first, end, count in stored:
        for at in range(count):
            row, column = divmod(int(end + at), geometry.out_spatial[1])
            vector, lane = divmod(int(first + at), m.lanes)
            offset = tiles.x_offsets[tile, vector] // m.size + lane
            for image in range(2):
                found = numbers[offset + (offsets + image * 3 * channel) // m.size]
                window = padded[image, :, row * stride[0] :, column * stride[1] :][:, :2, :5:2]
                assert np.array_equal(found, window.ravel())
            seen += 1
    assert seen == geometry.positions
