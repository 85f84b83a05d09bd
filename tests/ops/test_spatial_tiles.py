"""Spatial tiles: the tables hold what a padded image, cut with NumPy, has at the same positions."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fastsparse.ops import pooling
from fastsparse.ops import spatial_tiles as plans
from fastsparse.ops.heuristics import heuristics_for
from fastsparse.ops.layouts import grid
from fastsparse.ops.target import Target, target_for
from fastsparse.runtime.buffers import address

TARGET = target_for(np.dtype("float32"), 1)
AVX512 = Target(32, 16, 1, heuristics_for(64))
spatials = st.lists(st.integers(1, 13), min_size=1, max_size=3).map(tuple)


def cut(image: np.ndarray, r: plans.Reading, outside: float) -> np.ndarray:
    """(tiles, *padded size) of an image (*spatial), by padding and slicing."""
    ends = [c * n for c, n in zip(r.partition.counts, r.partition.size)]
    pads = [(b, e - n + a) for n, e, (b, a) in zip(image.shape, ends, r.padding)]
    whole = np.pad(image, pads, constant_values=outside)
    found = []
    for corner in itertools.product(*map(range, r.partition.counts)):
        first = [c * n for c, n in zip(corner, r.partition.size)]
        found.append(whole[tuple(slice(f, f + n + b + a) for f, n, (b, a) in zip(first, r.partition.size, r.padding))])
    return np.stack(found)


@pytest.mark.parametrize("count", [1, 2, 4, 8, 16])
@given(spatial=spatials)
def test_a_partition_covers_the_image_with_as_few_positions_as_any(spatial, count):
    found = plans.partition(spatial, count)
    assert math.prod(found.counts) == count
    assert all(c * n >= whole for c, n, whole in zip(found.counts, found.size, spatial))
    for counts in itertools.product(range(1, count + 1), repeat=len(spatial)):
        if math.prod(counts) == count:
            assert math.prod(found.size) <= math.prod(-(-n // c) for n, c in zip(spatial, counts))


@pytest.mark.parametrize(
    ("spatial", "count", "counts", "size"),
    [
        ((56, 56), 8, (4, 2), (14, 28)),
        ((14, 14), 8, (4, 2), (4, 7)),
        ((7, 7), 8, (8, 1), (1, 7)),
        ((56, 56), 16, (4, 4), (14, 14)),
        ((100,), 8, (8,), (13,)),
    ],
)
def test_partitions_of_usual_images(spatial, count, counts, size):
    assert plans.partition(spatial, count) == plans.Partition(counts, size)


@pytest.mark.parametrize("threads", [1, 3])  # two images are cut into parts for three workers
@pytest.mark.parametrize("groups", [1, 2, 3])
@given(
    spatial=spatials,
    deep=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=3, max_size=3),
    outside=st.sampled_from([0.0, -np.inf]),
    lines=st.sampled_from([0, 2, 8, 16]),
    seed=st.integers(0, 99),
)
def test_gathers_give_what_padding_and_slicing_give(spatial, deep, outside, lines, seed, groups, threads):
    target = target_for(np.dtype("float32"), threads)
    target = replace(target, heuristics=replace(target.heuristics, gathered_lines=lines))
    r = plans.Reading(plans.partition(spatial, target.lanes, groups), tuple(deep[: len(spatial)]), outside)
    images, channels, lanes = 2, 5, target.lanes
    planes = plans.tile_planes(channels, r, target)
    padded = tuple(n + b + a for n, (b, a) in zip(r.partition.size, r.padding))
    places = grid(padded, (1,) * len(spatial), planes.strides) // 4
    x = np.random.default_rng(seed).standard_normal((images, channels, *spatial)).astype(np.float32)
    flat_x, plain = x.reshape(images, channels, -1), np.arange(math.prod(spatial)) * 4
    strides = (flat_x.strides[:2], (groups * planes.group_stride, planes.channel_stride))
    expected = np.full((images, groups, planes.group_stride // 4), np.nan, np.float32)
    for i, c in np.ndindex(images, channels):
        at = np.add.outer(places + c * planes.channel_stride // 4, np.arange(lanes))
        for g, tiles in enumerate(np.split(cut(x[i, c], r, outside).reshape(lanes * groups, -1), groups)):
            expected[i, g, at] = tiles.T

    def run(gather: plans.Gather, x: np.ndarray, y: np.ndarray, strides: Any) -> np.ndarray:
        plans.prepare(gather, *strides, channels, images, target).run(address(x), address(y))
        return y

    y = np.full_like(expected, np.nan)
    run(plans.gather_tiles(plain, spatial, r, planes, target), flat_x, y, strides)
    np.testing.assert_array_equal(y, expected)

    # Halos alone, from the tiles: what is not the image's own is spoilt first.
    at = plans.tile_offsets(spatial, r.partition, planes, 4)
    spoilt = np.full_like(y, np.nan)
    own = np.add.outer(np.arange(channels) * planes.channel_stride, at).ravel() // 4
    spoilt.reshape(images, -1)[:, own] = x.reshape(images, -1)
    run(plans.exchange_halo(at, spatial, r, planes, target), spoilt, spoilt, strides[1:] * 2)
    np.testing.assert_array_equal(spoilt, y)

    # The same in two steps: a group reads of others what they have copied, and nothing of their planes.
    halo, edges = plans.exchange_halo(at, spatial, r, planes, target), plans.edge_bytes(channels, planes)
    owners = halo.target_offsets.astype(np.int64) // planes.group_stride
    steps = plans.with_copies(halo, owners, r, planes, edges, target)
    others = (halo.source_offsets >= 0) & (halo.source_offsets // planes.group_stride != owners[:, None])
    if steps is None:
        assert not others.any() or planes.by_rows
    else:
        lent = np.full((images, groups * (planes.group_stride + edges) // 4), np.nan, np.float32)
        lent[:, own] = x.reshape(images, -1)
        apart = (lent.strides[0], planes.channel_stride)
        for step in steps:
            run(step, lent, lent, (apart, apart))
        np.testing.assert_array_equal(lent[:, : y[0].size].reshape(y.shape), y)
        group = steps[1].source_offsets // planes.group_stride
        assert ((group == owners[:, None]) | (group >= groups) | (halo.source_offsets < 0)).all()

    back = np.full((images, channels, flat_x.shape[2] + 9), np.nan, np.float32)
    run(plans.gather_image(at, target), y, back, (strides[1], back.strides[:2]))
    np.testing.assert_array_equal(back[..., : flat_x.shape[2]], flat_x)
    assert np.isnan(back[..., flat_x.shape[2] :]).all()


@given(
    size=st.integers(1, 12), kernel=st.integers(1, 5), stride=st.integers(1, 4),
    before=st.integers(0, 4), after=st.integers(0, 4),
)  # fmt: skip
def test_regular_windows_are_recognised(size, kernel, stride, before, after):
    assume(max(before, after) < kernel <= size + before + after)
    table = pooling._axis(size, kernel, stride, (before, after), True)
    assume((table[:, 1] - table[:, 0]).max() == kernel)  # some window is whole, or nobody could tell its size
    found = plans.windows_of(table, size)
    assert found is not None  # perhaps others than were asked for, but of the same windows
    k, s, b = found
    corner = np.arange(len(table)) * s - b
    np.testing.assert_array_equal(np.clip(corner, 0, size), table[:, 0])
    np.testing.assert_array_equal(np.clip(corner + k, 0, size), table[:, 1])


def test_irregular_windows_are_none():
    assert plans.windows_of(pooling.adaptive_windows((10, 10), (4, 4)).rows, 10) is None
    assert plans.windows_of(np.empty((0, 3), np.int64), 7) is None


@pytest.mark.parametrize(
    ("side", "images", "counts", "size"),
    [(14, 4, (4, 2, 2), (1, 7, 7)), (7, 16, (16, 1, 1), (1, 7, 7)), (7, 2, (2, 8, 1), (1, 1, 7))],
)
def test_stacks_are_cut_into_images(side, images, counts, size):
    found = plans.stacked_partition((side, side), 16, images)
    assert (found.counts, found.size, found.lanes) == (counts, size, 16)


def test_channels_beyond_31_bits_are_refused():
    r = plans.Reading(plans.partition((3,), TARGET.lanes), ((0, 0),), 0.0)
    with pytest.raises(ValueError, match="spans 2147483648 bytes"):
        plans.gather_tiles(np.array([0, 1, 2**31]), (3,), r, plans.tile_planes(1, r, TARGET), TARGET)


def test_channels_lie_between_rows_where_tiles_stay_within_them():
    """Of an image of 56 x 56, with a halo or without; not where one row of the grid is shorter than a tile, or where
    gathers would not reach all channels."""

    def by_rows(side: int, channels: int, halo: int = 0) -> bool:
        r = plans.Reading(plans.partition((side, side), 16), ((halo, halo),) * 2, 0.0)
        return plans.tile_planes(channels, r, AVX512).by_rows

    assert by_rows(56, 64)
    assert by_rows(56, 64, halo=1)
    assert by_rows(28, 512)
    assert not by_rows(7, 512)
    assert by_rows(1792, 64)
    assert not by_rows(1792, 256)
