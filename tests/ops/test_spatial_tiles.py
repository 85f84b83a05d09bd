"""Spatial tiles: the tables hold what a padded image, cut with NumPy, has at the same positions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fastsparse.ops import pooling
from fastsparse.ops import spatial_tiles as plans
from fastsparse.ops.layouts import blocked_planes
from fastsparse.ops.target import Target, target_for
from fastsparse.runtime.buffers import address

TARGET = target_for(np.dtype("float32"), 1)
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


def run(gather: plans.Gather, x: np.ndarray, y: np.ndarray, target: Target) -> None:
    """x and y (images, channels, bytes of a channel in numbers)."""
    strides = [(a.strides[0], a.strides[1]) for a in (x, y)]
    plans.prepare(gather, *strides, x.shape[1], len(x), target).run(address(x), address(y))


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
@given(
    spatial=spatials,
    deep=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=3, max_size=3),
    outside=st.sampled_from([0.0, -np.inf]),
    seed=st.integers(0, 99),
)
def test_gathers_give_what_padding_and_slicing_give(spatial, deep, outside, seed, threads):
    target = target_for(np.dtype("float32"), threads)
    r = plans.Reading(plans.partition(spatial, target.lanes), tuple(deep[: len(spatial)]), outside)
    images, channels = 2, 3
    planes = blocked_planes(channels, r.partition.size, r.padding, target)
    x = np.random.default_rng(seed).standard_normal((images, channels, *spatial)).astype(np.float32)
    flat_x = x.reshape(images, channels, -1)
    count = math.prod(n + b + a for n, (b, a) in zip(r.partition.size, r.padding))
    y = np.full((images, channels, planes.channel_stride // 4), np.nan, np.float32)
    expected = np.stack([[cut(channel, r, outside).reshape(target.lanes, -1).T for channel in image] for image in x])

    plain = np.arange(math.prod(spatial)) * 4
    run(plans.gather_tiles(plain, spatial, r, target), flat_x, y, target)
    np.testing.assert_array_equal(y[..., : count * target.lanes].reshape(expected.shape), expected)
    assert np.isnan(y[..., count * target.lanes :]).all()

    # Halos alone, from the tiles: what is not the image's own is spoilt first.
    at = plans.tile_offsets(spatial, r.partition, planes, 4)
    spoilt = np.full_like(y, np.nan)
    np.put_along_axis(spoilt, np.broadcast_to(at // 4, flat_x.shape), flat_x, axis=2)
    run(plans.exchange_halo(at, spatial, r, target), spoilt, spoilt, target)
    np.testing.assert_array_equal(spoilt, y)

    back = np.full((images, channels, flat_x.shape[2] + 9), np.nan, np.float32)
    run(plans.gather_image(at, target), y, back, target)
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


def test_channels_beyond_31_bits_are_refused():
    r = plans.Reading(plans.partition((3,), TARGET.lanes), ((0, 0),), 0.0)
    with pytest.raises(ValueError, match="spans 2147483648 bytes"):
        plans.gather_tiles(np.array([0, 1, 2**31]), (3,), r, TARGET)
