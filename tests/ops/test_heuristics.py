"""Policy as tables: choices and the bounds that they keep."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsparse.plan import policy


@pytest.mark.parametrize("rates", [policy.TILE_RATE, policy.NARROW_TILE_RATE, policy.WINDOW_TILE_RATE])
def test_tile_width(rates):
    """No idle vector where that is possible, no wider than the line, and the best rate for long lines."""
    for vectors in range(1, 200):
        width = policy.tile_width(vectors, rates)
        assert width in rates
        assert width <= vectors
        assert -(-vectors // width) * width - vectors < width
    assert policy.tile_width(1, rates) == 1
    assert policy.tile_width(10**6, rates) == max(rates, key=rates.__getitem__)


@given(st.integers(0, 10**5), st.integers(1, 10**4), st.integers(1, 64), st.integers(0, 2**20))
def test_row_groups(rows, tiles_, workers, tile_bytes):
    groups = policy.row_groups(rows, tiles_, workers, tile_bytes)
    limit = max(1, rows // 8)
    assert 1 <= groups <= limit
    if groups < limit:
        assert workers == 1 or groups * tiles_ >= policy.TASKS_PER_WORKER * workers
        assert rows * tile_bytes <= groups * policy.PARTIAL_BYTES


@given(st.integers(0, 2**40))
def test_blocks_fit_the_cache(row_bytes):
    for rows, limit in (
        (policy.block_rows, policy.L1_BLOCK_BYTES),
        (lambda window: policy.block_channels(window, 48 * 1024), 48 * 1024),
        (lambda window: policy.block_channels(window, 32 * 1024), 24 * 1024),
        (lambda row: policy.sddmm_block_rows(row, 48 * 1024), 48 * 1024),
        (lambda row: policy.sddmm_block_rows(row, 32 * 1024), policy.SDDMM_BLOCK_BYTES),
    ):
        found = rows(row_bytes)
        assert found >= 1
        assert found == 1 or found * row_bytes <= limit


@given(st.integers(1, 2**17), st.integers(0, 10**6), st.floats(0, 1))
def test_even_blocks_hold_more_where_rows_are_short(row_bytes, columns, density):
    found, held = policy.even_block_rows(row_bytes, columns, density), policy.block_rows(row_bytes)
    if columns <= held:
        assert found == held
        return
    blocks = -(-columns // found)
    assert blocks * found - columns < blocks, "blocks of one size, but for one row"
    most = max(policy.L2_BLOCK_BYTES // row_bytes, held)
    assert found <= (policy.ONE_BLOCK * most if blocks == 1 else most)
    if density >= policy.ENTRY_NONZEROS / held:
        assert found <= (policy.ONE_BLOCK * held if blocks == 1 else held)


def test_rates_of_short_rows():
    vector = 32
    rates = policy.tile_rates(vector)
    assert policy.row_major_rates(0.1, 64, True, vector) is policy.SHORT_ROW_TILE_RATE
    assert policy.row_major_rates(0.1, 64, False, vector) is rates
    assert policy.row_major_rates(0.1, 512, True, vector) is rates
    assert policy.row_major_rates(0.02, 512, False, vector) is policy.SHORT_ROW_TILE_RATE


@given(st.integers(1, 5000), st.sampled_from([16, 32, 64]))
def test_sddmm_runs(row, vector):
    positions = policy.sddmm_positions(vector)
    assert positions * vector == policy.SDDMM_PASS_BYTES
    part = policy.sddmm_row_part(row, positions)
    assert row % part == 0
    assert part <= 2 * positions or part == row


def test_layout_by_batch():
    for vector in (2, 4, 8, 16):
        assert [n for n in range(1, vector + 1) if policy.prefers_lanes(n, vector)] == [
            n for n in range(1, vector + 1) if n >= 0.7 * vector
        ]
        assert all(policy.prefers_lanes(n, vector) for n in range(4 * vector, 6 * vector))


@given(st.integers(0, 2**45).map(lambda n: 64 * n))
def test_strides_keep_off_the_sets(stride):
    found = policy.off_the_sets(stride, 64)
    assert found % policy.LINE_SETS_BYTES
    assert found in (stride, stride + 64)


def test_what_is_read_in_place():
    vector = 32
    for columns, stride, uses in ((1000, 4000, 3), (128, 3136, 8), (128, 4096, 3), (129, 3136, 3), (0, 3136, 0)):
        for aligned in (False, True):
            assert policy.reads_in_place(uses * columns, columns, stride, vector, aligned)
            assert not policy.reads_in_place(uses * columns + 1, columns, stride, vector, aligned)
    for stride, aligned, uses in ((3136, True, 7), (3136, False, 3), (4096, True, 3)):
        assert policy.reads_in_place(uses * 256, 256, stride, 64, aligned)
        assert not policy.reads_in_place((uses + 1) * 256, 256, stride, 64, aligned)


@given(st.integers(0, 5000), st.integers(0, 10**8), st.sampled_from([1, 8]))
def test_parts_of_a_batch(groups, group_bytes, multiple):
    each = policy.chunk_groups(groups, group_bytes, 32 * 2**20, multiple)
    assert each == 1 or each % multiple == 0
    assert each <= multiple or each * group_bytes <= policy.CHUNK_SHARE * 32 * 2**20
    parts = -(-groups // each)
    assert (each - multiple) * parts < max(1, groups), "smaller ones would not do"
    if -(-groups // multiple) * multiple * group_bytes <= policy.CHUNK_SHARE * 32 * 2**20:
        assert parts <= 1
