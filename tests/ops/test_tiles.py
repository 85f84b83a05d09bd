"""Tables of tiles: every output element has one writer."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from fastsparse.ops import conv, layouts, spmm, tiles
from fastsparse.ops.heuristics import heuristics_for
from fastsparse.ops.target import Target
from fastsparse_kernels.sparse_operator import QUARTERS, WHOLE
from tests.checking import PATTERNS, TARGETS, Array, matrix
from tests.checking import target as target_of
from tests.geometries import TABLE, geometry_of


def written(found: tiles.Tiles, m: Target) -> Counter[int]:
    """How often every element of a row is stored, by its offset in bytes."""
    assert found.y_offsets.shape == found.x_offsets.shape == (found.count, found.width)
    whole = (found.y_offsets[found.whole, :, None] + np.arange(m.lanes) * m.size).ravel()
    begin, offset, count = found.pieces.T
    assert (count > 0).all()
    assert (begin + count * m.size <= found.width * m.vector).all()
    assert sorted(taken_up(found)) == list(range(len(found.pieces)))
    pieces = [np.arange(n) * m.size + p for p, n in zip(offset, count, strict=True)]
    return Counter(np.concatenate([whole, *pieces]).tolist())


def taken_up(found: tiles.Tiles) -> list[int]:
    """Numbers of the pieces, tile by tile."""
    return [piece for begin, end in found.tile_pieces for piece in range(begin, end)]


def peels(target):
    """Alignment peels: columns in front of the first aligned vector of y."""
    return sorted({0, 1, target.lanes // 2, target.lanes - 1})


def check_row_major(found, columns, target):
    """Every number is written once, from the column of x that it stands for; vectors are contiguous."""
    assert written(found, target) == Counter(range(0, columns * target.size, target.size))
    assert found.contiguous(target.vector)
    read = np.add.outer(found.x_offsets, np.arange(0, target.vector, target.size)).reshape(found.count, -1)
    for tile, (begin, end) in enumerate(found.tile_pieces):
        if begin == end:
            np.testing.assert_array_equal(found.x_offsets[tile], found.y_offsets[tile])
        for at, offset, count in found.pieces[begin:end]:
            stored = read[tile, at // target.size :][:count]
            np.testing.assert_array_equal(stored, np.arange(offset, offset + count * target.size, target.size))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("width", range(1, 9))
def test_tiles_of_a_row_major_product(width, target):
    for columns in range(1, 3 * width * target.lanes + 2):
        for peel in peels(target):
            found = tiles.packed_tiles(columns, width, target, peel)
            check_row_major(found, columns, target)
            assert found.columns.sum() == columns
            first = tiles.first_tile(width, target.lanes, peel)
            expected = [0, *range(first, columns, width * target.lanes)]
            np.testing.assert_array_equal(found.x_offsets[:, 0], np.array(expected) * target.size)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("width", range(1, 9))
def test_tiles_of_a_product_that_reads_in_place(width, target):
    for columns in range(width * target.lanes, 3 * width * target.lanes + 2):
        for peel in peels(target):
            found = tiles.overlapping_tiles(columns, width, target, peel)
            check_row_major(found, columns, target)
            assert found.x_offsets.min() == 0
            assert found.x_offsets.max() + target.vector <= columns * target.size, "nothing behind a row is read"


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("address", [0, 4, 16, 52, 64, 4096 + 48])
def test_tiles_of_non_temporal_stores_are_aligned(address, target):
    assert spmm.alignment_peel(address, 3 * target.vector + target.size, target) is None, (
        "rows are aligned in several ways"
    )
    assert spmm.alignment_peel(address + 1, 3 * target.vector, target) is None
    peel = spmm.alignment_peel(address, 20 * target.vector, target)
    if address % target.size:
        assert peel is None
        return
    for width in range(1, 9):
        for make in (tiles.packed_tiles, tiles.overlapping_tiles):
            found = make(20 * target.lanes, width, target, peel)
            assert ((address + found.y_offsets[found.whole]) % target.vector == 0).all()
            assert found.whole.any()
            assert (~found.whole).sum() <= 2


@pytest.mark.parametrize("target", TARGETS)
def test_rows_of_x_that_few_nonzeros_read_are_not_packed(rng, target):
    few, many = (matrix(rng, rng.random((rows, 200)) < 0.1, "float32").pattern for rows in (10, 100))
    for columns in (1, target.lanes - 1, target.lanes, 3 * target.lanes + 1, 40 * target.lanes):
        stride = columns * target.size
        for pattern, in_place in ((few, columns >= target.lanes), (many, False)):
            plan = spmm.plan_row_major(pattern, columns, stride, target)
            assert (plan.tiles.columns is None) == in_place
            assert written(plan.tiles, target) == Counter(range(0, columns * target.size, target.size))
        for shared in (0, stride - target.size):  # rows that share memory
            assert spmm.plan_row_major(few, columns, shared, target).tiles.columns is not None


@pytest.mark.parametrize("target", TARGETS)
def test_many_tiles_are_aligned(rng, target):
    """To X where it is read in place, else to Y, and to Y where that gets non-temporal stores."""
    few, many = (matrix(rng, rng.random((rows, 200)) < 0.1, "float32").pattern for rows in (10, 200))
    columns = target.heuristics.many_vectors * target.lanes
    target = replace(target, threads=1)
    far = replace(target, heuristics=replace(target.heuristics, l3_bytes=0, uses_from_memory=math.inf))
    for given in (
        spmm.UNALIGNED,
        spmm.Peels(1, 1),
        spmm.Peels(1, 2),
        spmm.Peels(None, 2),
        spmm.Peels(2, None),
    ):
        for where, pattern, first in (
            (target, few, given.x), (target, many, given.y),
            (far, few, given.x if given.y is None else given.y), (far, many, given.y),
        ):  # fmt: skip
            plan = spmm.plan_row_major(pattern, columns, columns * target.size, where, given)
            tile = plan.tiles.width * target.lanes
            begin = plan.tiles.y_offsets[:, 0] // target.size
            assert begin[1] == tile - target.lanes + (first or target.lanes)
            assert (np.diff(begin[1:]) == tile).all()
            assert plan.nontemporal == (WHOLE if where is far and given.y is not None else 0)
    short = spmm.plan_row_major(many, columns - 1, columns * target.size, target, spmm.Peels(1, 1)).tiles
    assert short.y_offsets[1, 0] == short.width * target.vector


@pytest.mark.parametrize("columns", [16, 64, 128])
def test_a_peel_adds_no_tile_to_few_columns(rng, columns):
    """Four times as long, once: NumPy's arrays begin 16 bytes behind a line, and rows were cut where lines begin."""
    far = target_of(32, 16, l3_bytes=0)
    for rows in (10, 200):
        pattern = matrix(rng, rng.random((rows, 200)) < 0.1, "float32").pattern
        for peel, expected in ((0, WHOLE), (12, QUARTERS), (8, QUARTERS), (15, 0)):
            plan = spmm.plan_row_major(pattern, columns, columns * 4, far, spmm.Peels(0, peel))
            assert plan.nontemporal == expected
            assert plan.tiles.count * plan.tiles.width * far.lanes == columns


def test_quarters_of_vectors_are_not_stored_where_they_leave_as_parts_of_lines(rng):
    """On CPUs whose last cache is far: rows are stored as usual, and longer ones from where their lines begin."""
    far = replace(target_of(32, 16), heuristics=replace(heuristics_for(64, 48 * 1024, 300 * 2**20), l3_bytes=0))
    pattern = matrix(rng, rng.random((200, 200)) < 0.1, "float32").pattern
    for columns, peel, expected in ((128, 0, WHOLE), (128, 12, 0), (496, 12, 0), (512, 12, WHOLE), (512, 15, WHOLE)):
        plan = spmm.plan_row_major(pattern, columns, columns * 4, far, spmm.Peels(0, peel))
        assert plan.nontemporal == expected
        assert plan.tiles.y_offsets[1, 0] % 64 == (peel * 4 % 64 if peel and expected else 0)


def test_offsets_of_what_is_read_in_place(rng):
    target = TARGETS[0]
    few = matrix(rng, rng.random((10, 200)) < 0.1, "float32").pattern
    wide = spmm.plan_row_major(few, 100, 2**31, target).operator
    assert wide.blocks == 200, "what offsets of 32 bits do not reach goes to a block of its own"
    at = wide.columns.bases[wide.columns.block] + wide.columns.offset
    assert np.array_equal(at, np.arange(200) * 2**31)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", TABLE)
def test_tiles_of_convolutions(rng, name, target):
    """Every output of the forward pass in both layouts, and every input in the phases of the backward pass."""
    geometry = geometry_of(TABLE[name])
    pattern = matrix(rng, PATTERNS["scattered"](rng, TABLE[name].shape), "float32").pattern
    padded = conv.plan_padded(pattern, geometry, target, 1)
    everything = Counter(range(0, geometry.positions * target.size, target.size))
    assert written(padded.spmm.tiles, target) == everything
    forward = conv.plan_batch_blocked(pattern, geometry, target, 1)
    inputs, outputs = int(np.prod(geometry.spatial)), geometry.positions
    for count, plans in (
        (outputs, [forward.spmm]),
        (inputs, conv.plan_backward(pattern, geometry, target, 1).dx_phases),
    ):
        offsets = np.concatenate([vectors_written(plan.tiles, target) for plan in plans])
        assert sorted(offsets) == list(range(0, count * target.vector, target.vector))


def vectors_written(found: tiles.Tiles, m: Target) -> Array:
    """Offsets of the vectors that are stored, each whole."""
    assert (found.pieces[:, 2] == m.lanes).all()
    return np.concatenate([found.y_offsets[found.whole].ravel(), found.pieces[:, 1]])


def test_blocked_planes_cover_image_and_padding():
    for target in TARGETS:
        for sizes in TABLE.values():
            padding = sizes.keywords["padding"]
            planes = layouts.blocked_planes(3, sizes.spatial, padding, target)
            inner = planes.all_offsets()
            padded = np.prod([n + a + b for n, (a, b) in zip(sizes.spatial, padding, strict=True)])
            assert sorted([*inner, *planes.padding_offsets]) == list(range(0, padded * target.vector, target.vector))
            if len(planes.offsets):
                assert np.array_equal(planes.offsets[: planes.positions], inner)
                assert len(planes.offsets) % target.lanes == 0
            assert planes.channel_stride >= padded * target.vector
            assert planes.group_stride >= 3 * planes.channel_stride
