"""Heuristics: choices and the bounds that they keep."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastsparse as fs
from fastsparse.ops.heuristics import ALIASED_BYTES, heuristics_for
from fastsparse.ops.layouts import unaliased_stride
from fastsparse.ops.spmm import plan_row_major
from fastsparse.ops.target import narrowed, target_for, tuned
from fastsparse_kernels import codegen, registry, spmm
from fastsparse_kernels.sparse_operator import LOOKUP_CHUNK, LOOKUP_LANES, LOOKUP_ROWS
from tests.checking import fixed_width, target

BYTES = 16, 32, 64
any_cpu = pytest.mark.parametrize("h", [heuristics_for(size) for size in BYTES], ids=map(str, BYTES))
h64, h32 = heuristics_for(64), heuristics_for(32)


@any_cpu
@pytest.mark.parametrize("name", ["tile_rate", "window_tile_rate", "short_row_tile_rate", "in_place_tile_rate"])
def test_tile_width(h, name):
    """No idle vector where that is possible, no wider than the line, and the best rate for long lines."""
    rates = getattr(h, name)
    for vectors in range(1, 200):
        width = h.tile_width(vectors, rates)
        assert 1 <= width <= min(vectors, len(rates))
        assert -(-vectors // width) * width - vectors < width
    assert h.tile_width(1, rates) == 1
    assert h.tile_width(840, rates) == 1 + int(np.argmax(rates)), "every width divides it"


def test_windows_that_cross_rows_are_slower():
    assert h64.window_rates(12)[4] == h64.row_crossing_rate * h64.window_tile_rate[4]
    assert h64.window_rates(12)[5] == h64.window_tile_rate[5]


def test_rows_of_x_that_come_from_memory_are_packed_for_their_second_use():
    """W.T of a million rows and a hundred columns took four times as long with X in place."""
    for inputs, uses, expected in ((1_000_000, 1, True), (1_000_000, 3, False), (1_000, 3, True), (1_000, 4, False)):
        assert h64.reads_in_place(uses * inputs, inputs, 4 * 80, aligned=False) == expected
        assert h64.reads_in_place(uses * inputs, inputs, 2**20 + 64, aligned=False) == expected


@pytest.mark.parametrize(("x86", "widest"), [(True, {64: 6, 32: 3, 16: 3}), (False, {16: 6})])
def test_dense_rows_share_tiles_that_fit_the_registers_and_are_in_the_table(monkeypatch, x86, widest):
    monkeypatch.setattr(codegen, "_X86", x86)
    for nbytes, width in widest.items():
        assert len(heuristics_for(nbytes).dense_rates) == width
        for bits in (32, 64):
            keys = registry.FAMILIES[0].arguments(bits, 8 * nbytes // bits)
            dense = {(tile, contiguous) for _, lanes, tile, contiguous, kind in keys if kind == spmm.DENSE}
            assert dense == {(tile, flag) for tile in range(1, width + 1) for flag in (0, 1) if tile > 1 or flag}


@any_cpu
@given(st.integers(0, 10**5), st.integers(1, 10**4), st.integers(1, 64), st.integers(0, 2**20))
def test_row_groups(h, rows, tiles_, threads, tile_bytes):
    groups = h.row_groups(rows, tiles_, threads, tile_bytes)
    limit = max(1, rows // h.group_rows)
    assert 1 <= groups <= limit
    if groups < limit:
        assert threads == 1 or groups * tiles_ >= h.balance * threads
        assert rows * tile_bytes <= groups * h.partial_bytes


@pytest.mark.parametrize(
    ("tiles_", "threads", "groups"), [(28, 2, 1), (7, 2, 2), (2, 2, 1), (1, 2, 2), (28, 8, 2), (7, 8, 8), (1, 8, 8)]
)
def test_row_groups_keep_workers_evenly_busy(tiles_, threads, groups):
    assert h64.row_groups(512, tiles_, threads, 448) == groups
    assert h64.row_groups(512, tiles_, 1, 448) == 1


def test_workers_own_channels_of_small_planes():
    planes = [28 * 28 * 4, 56 * 56 * 4]
    assert [h64.owns_channels(plane, 1, 2) for plane in planes] == [True, False]
    assert not h64.owns_channels(planes[0], 1, 1)
    assert not h64.owns_channels(planes[0], 4, 2), "then every worker has images of its own"
    found = [h64.row_groups(rows, 7, 2, 448, by_rows=True) for rows in (0, 1, 2, 512, 2048)]
    assert found == [1, 1, 2, 2, 2], "a group for each"
    assert h64.row_groups(2500, 7, 2, 448, by_rows=True) == 4, "partial sums stay in L2"


def test_workers_pack_the_positions_that_they_compute():
    assert [h64.position_parts(196, 1, threads) for threads in (1, 2, 8)] == [1, 2, 8]
    assert h64.position_parts(14, 1, 8) == 2, "no more parts than tiles"
    assert h64.position_parts(196, 4, 2) == 1, "then every worker has images of its own"
    assert h64.position_parts(196, 3, 2) == 2


@given(st.integers(1, 4096), st.integers(1, 600))
def test_blocks_of_channels_side_by_side_are_larger_and_of_equal_size(channels, held):
    found = h64.adjacent_block(channels, held)
    count = -(-channels // found)
    assert found <= max(h64.beyond_adjacent, h64.one_adjacent) * held
    assert found == -(-channels // count)
    assert count <= max(1, -(-channels // held))
    assert h32.adjacent_block(channels, held) == held
    assert [h64.adjacent_block(n, 73) for n in (64, 128, 256, 1024)] == [64, 128, 86, 94]


@pytest.mark.parametrize(("positions", "row", "within"), [(196, 14, True), (49, 7, True), (14, 7, True), (4, 2, False)])
def test_tiles_within_rows(positions, row, within):
    assert h64.tiles_within_rows(positions, row) == within


def test_workers_have_bands_of_rows_of_their_own():
    assert h64.row_edges(28, 3, 1, 1) == (0, 28)
    assert h64.row_edges(28, 3, 1, 2) == (0, 14, 28)
    assert h64.row_edges(7, 3, 1, 2) == (0, 7), "too few rows for what is packed twice"
    assert len(h64.row_edges(28, 3, 1, 8)) == 5
    assert h64.row_edges(28, 3, 4, 2) == (0, 28), "then every worker has images of its own"
    assert h64.row_edges(28, 1, 1, 2) == (0, 14, 28)
    assert h64.row_edges(0, 1, 1, 2) == (0, 0)


@any_cpu
def test_parts_of_weight_gradients(h):
    assert [h.sddmm_parts(positions, 1000, 1000) for positions in (0, 95, 191, 192, 383, 384, 10**6)] == [
        1, 1, 1, 2, 2, 4, 4,
    ]  # fmt: skip
    assert h.sddmm_parts(10**6, 1, 1000) == 1, "no more parts than runs"
    assert h.sddmm_parts(10**6, 1000, h.near_bytes) == 1, "parts would leave the near caches"


@given(st.integers(0, 2**40))
def test_blocks_fit_the_cache(row_bytes):
    small, large = heuristics_for(64, 32 * 1024), heuristics_for(64, 48 * 1024)
    for rows, limit in (
        (small.block_rows, small.l1_block_bytes),
        (large.block_channels, 48 * 1024),
        (small.block_channels, 32 * 1024),
        (heuristics_for(32, 32 * 1024).block_channels, 24 * 1024),
        (large.sddmm_block_rows, 48 * 1024),
        (small.sddmm_block_rows, small.sddmm_block_bytes),
        (lambda row: small.sddmm_block_rows(row, panels=True), small.sddmm_panel_bytes),
    ):
        found = rows(row_bytes)
        assert found >= 1
        assert found == 1 or found * row_bytes <= limit


@any_cpu
@given(st.integers(1, 2**17), st.integers(0, 10**6), st.floats(0, 1))
def test_even_blocks_hold_more_where_rows_are_short(h, row_bytes, columns, density):
    found, held = h.even_block_rows(row_bytes, columns, density), h.block_rows(row_bytes)
    if columns <= held:
        assert found == held
        return
    blocks = -(-columns // found)
    assert blocks * found - columns < blocks, "blocks of one size, but for one row"
    most = max(h.l2_block_bytes // row_bytes, held)
    assert found <= (h.one_block * most if blocks == 1 else most)
    if density >= h.entry_nonzeros / held:
        assert found <= (h.one_block * held if blocks == 1 else held)


def test_rates_of_short_rows():
    assert h32.row_major_rates(0.1, 64, True) is h32.short_row_tile_rate
    assert h32.row_major_rates(0.1, 64, False) is h32.tile_rate
    assert h32.row_major_rates(0.1, 512, True) is h32.tile_rate
    assert h32.row_major_rates(0.02, 512, False) is h32.short_row_tile_rate


@any_cpu
@given(row=st.integers(1, 5000))
def test_sddmm_runs(h, row):
    positions = h.sddmm_positions()
    assert positions * h.vector_bytes == h.sddmm_pass_bytes
    part = h.sddmm_row_part(row, positions)
    assert row % part == 0
    assert part <= 2 * positions or part == row


@any_cpu
def test_layout_by_batch(h):
    for lanes in (2, 4, 8, 16):
        assert [n for n in range(1, lanes + 1) if h.prefers_batch_blocks(n, lanes)] == [
            n for n in range(1, lanes + 1) if n >= 0.7 * lanes
        ]
        assert all(h.prefers_batch_blocks(n, lanes) for n in range(4 * lanes, 6 * lanes))
        assert [n for n in range(12 * lanes) if h.fills_vectors(n, lanes)] == list(range(7 * lanes, 12 * lanes))


@given(st.integers(0, 2**45).map(lambda n: 64 * n))
def test_strides_do_not_alias(stride):
    found = unaliased_stride(stride, 64)
    assert found % ALIASED_BYTES
    assert found in (stride, stride + 64)


def test_what_is_read_in_place():
    for columns, stride, uses in ((1000, 4000, 3), (128, 3136, 8), (128, 4096, 3), (129, 3136, 3), (0, 3136, 0)):
        for aligned in (False, True):
            assert h32.reads_in_place(uses * columns, columns, stride, aligned)
            assert not h32.reads_in_place(uses * columns + 1, columns, stride, aligned)
    for stride, aligned, uses in ((3136, True, 7), (3136, False, 3), (4096, True, 3)):
        assert h64.reads_in_place(uses * 256, 256, stride, aligned)
        assert not h64.reads_in_place((uses + 1) * 256, 256, stride, aligned)


@given(st.integers(0, 5000), st.integers(0, 10**8), st.sampled_from([1, 8]))
def test_parts_of_a_batch(groups, group_bytes, multiple):
    h = heuristics_for(64, l3_bytes=32 * 2**20)
    held = h.chunk_share * h.l3_bytes
    each = h.chunk_groups(groups, group_bytes, multiple)
    assert each == 1 or each % multiple == 0
    assert each <= multiple or each * group_bytes <= held
    parts = -(-groups // each)
    assert (each - multiple) * parts < max(1, groups), "smaller ones would not do"
    if -(-groups // multiple) * multiple * group_bytes <= held:
        assert parts <= 1


def test_lookups_are_weighed_against_loads():
    assert h64.spmv_by_lookup(2048, 2048, 400_000, LOOKUP_CHUNK, LOOKUP_ROWS)
    assert h64.spmv_by_lookup(2048, 2048, 40_000, LOOKUP_CHUNK, LOOKUP_ROWS)
    assert not h64.spmv_by_lookup(2048, 2048, 4_000, LOOKUP_CHUNK, LOOKUP_ROWS)
    assert not h64.spmv_by_lookup(50, 100, 500, LOOKUP_CHUNK, LOOKUP_ROWS), "the call is most of the work"
    assert not h64.spmv_by_lookup(10**5, 10**5, 10**6, LOOKUP_CHUNK, LOOKUP_ROWS), "most chunks of a row would be empty"
    assert not h64.spmv_by_lookup(10**7, 1000, 1000, LOOKUP_CHUNK, LOOKUP_ROWS), "rows are empty"
    assert not h64.spmv_by_lookup(4, 2000, 6000, LOOKUP_CHUNK, LOOKUP_ROWS), "most lanes would be empty"
    assert h64.lookup_rows(1) > h64.lookup_rows(1000) >= LOOKUP_LANES


# ------------------------------------------------------------------------------------------------ records as values


def test_a_record_holds_inside_its_block_and_in_its_thread():
    float32 = np.dtype("float32")
    usual = target_for(float32).heuristics
    with tuned(norm_block_bytes=7) as h:
        assert target_for(float32).heuristics is h
        assert h.norm_block_bytes == 7
        assert replace(h, norm_block_bytes=usual.norm_block_bytes) is not usual
        with tuned(row_chunk=9) as inner:
            assert (inner.norm_block_bytes, inner.row_chunk) == (7, 9)
        assert target_for(float32).heuristics is h
        assert target_for(float32, heuristics=usual).heuristics is usual
    assert target_for(float32).heuristics is usual


def test_unknown_fields_of_a_record_are_refused():
    with pytest.raises(TypeError, match="tile_widht"), tuned(tile_widht=3):
        pass


def test_narrow_targets_keep_what_somebody_chose():
    wide = target(32, 16, **fixed_width(3))
    if narrowed(wide, 1) is not wide:  # this CPU's kernels come in half the length
        narrow = narrowed(wide, 1).heuristics
        assert (narrow.vector_bytes, narrow.tile_rate) == (32, wide.heuristics.tile_rate)
    usual = target_for(np.dtype("float32"))
    assert narrowed(usual, 10**6) is usual


def test_plans_of_different_records_are_kept_apart(rng):
    W = fs.csr((rng.random((20, 90)) < 0.2).astype("float32"))
    X = rng.standard_normal((90, 70)).astype("float32")
    widths = []
    for width in (1, 4, 1):
        with tuned(**fixed_width(width), uses_in_place=-1, uses_in_l1=-1, uses_aligned=-1):
            fs.spmm(W, X)
        plans = [entry for key, (entry, _) in W.pattern._entries.items() if key[0] is plan_row_major]
        widths.append(plans[-1].tiles.width)
    assert widths == [1, 4, 1]


def test_only_large_matrices_are_prefetched_in_spmv():
    h = heuristics_for(64, l3_bytes=32 * 2**20)
    assert h.spmv_prefetch_distance(h.near_bytes) == 0
    assert h.spmv_prefetch_distance(h.near_bytes + 1) == h.spmv_prefetch_bytes
    assert h.spmv_prefetch_distance(h.near_bytes + 1, h.spmv_l2_bytes + 1) == h.spmv_prefetch_bytes
    assert h.spmv_prefetch_distance(h.near_bytes + 1, h.spmv_l2_bytes) == 0, "it would take the cache from x"
    assert h.spmv_prefetch_distance(h.l3_bytes + 1, 100) == h.spmv_prefetch_bytes
    assert h.spmv_x_distance(h.stream_near_bytes) == 0
    assert h.spmv_x_distance(h.stream_near_bytes + 1) == h.spmv_prefetch_nonzeros
    later = heuristics_for(64, l1_bytes=48 * 1024)  # loads of x wait out of order
    assert later.spmv_x_distance(later.l3_bytes // 4) == 0
    assert later.spmv_x_distance(later.l3_bytes) == later.spmv_prefetch_nonzeros


# Rows, inputs, nonzeros, and whether the lookup took less time (Zen 5).
LOOKUPS = [
    (1000, 4_000, 300_000, True),
    (5000, 16_000, 300_000, False),
    (1000, 50_000, 1_000_000, True),
    (1000, 100_000, 1_000_000, False),
    (1000, 100_000, 4_000_000, True),
    (200, 100_000, 1_000_000, True),
    (5000, 100_000, 4_000_000, False),
    (1000, 400_000, 4_000_000, False),
    (200, 400_000, 4_000_000, True),
    (200, 0, 0, False),
    (0, 200, 0, False),
]


@pytest.mark.parametrize(("rows", "inputs", "nonzeros", "expected"), LOOKUPS)
def test_lookups_pay_where_slices_are_full_and_memory_is_near(rows, inputs, nonzeros, expected):
    h = heuristics_for(64, l3_bytes=32 * 2**20)
    assert h.spmv_by_lookup(rows, inputs, nonzeros, LOOKUP_CHUNK, LOOKUP_ROWS) == expected


PREFETCHES = [  # bytes of X, of its rows and of a tile, rows in use, distance
    (3 * 2**20, 256, 256, 2e4, 0),  # a near cache holds X
    (50 * 2**20, 64, 64, 2e5, 48),
    (50 * 2**20, 256, 256, 2e5, 48),
    (50 * 2**20, 1024, 512, 2e5, 24),
    (5 * 2**20, 32, 32, 801, 0),  # a grid
    (5 * 2**20, 32, 32, 8e4, 48),
    (50 * 2**20, 256, 256, 801, 48),  # a grid, with rows of several lines
]


def test_cpus_that_wait_out_of_order_prefetch_from_memory_only():
    h = heuristics_for(64, l1_bytes=48 * 1024, l3_bytes=32 * 2**20)
    assert h.stream_prefetch_distance(12 * 2**20, 64, 64, 2e5) == 0
    assert h.stream_prefetch_distance(13 * 2**20, 64, 64, 2e5) == 48


@pytest.mark.parametrize(("x_bytes", "row_bytes", "tile_bytes", "reach", "expected"), PREFETCHES)
def test_prefetch_distances_when_streaming(x_bytes, row_bytes, tile_bytes, reach, expected):
    assert heuristics_for(64).stream_prefetch_distance(x_bytes, row_bytes, tile_bytes, reach) == expected
