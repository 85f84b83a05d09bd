"""Sparse operators decoded, what plans keep, and sizes past 2**31 (contract I2)."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastsparse as fs
from fastsparse.ops import conv, layouts, sddmm, sparse_operator, spmm, spmv, tiles
from fastsparse.ops.geometry import ConvGeometry
from fastsparse.ops.heuristics import heuristics_for
from fastsparse.ops.layouts import grid
from fastsparse_kernels import sparse_operator as kernels
from tests.checking import PATTERNS, TARGETS, Array, matrix, target
from tests.geometries import TABLE, geometry_of

H = heuristics_for(64)

# ------------------------------------------------------------------------------------------------------- operators


def decoded(op: sparse_operator.SparseOperator) -> list[tuple[int, int, int, int, list[int]]]:
    """Entries in order: (group, block, kind, row, indices in the operator)."""
    found, index = [], 0
    shape = op.groups, op.blocks, kernels.KINDS
    assert len(op.segments) == np.prod(shape) + 1
    for i, (group, block, kind) in enumerate(np.ndindex(shape)):
        for entry in range(op.segments[i], op.segments[i + 1]):
            assert op.row_ends[entry] == index
            end = int(op.row_ends[entry + 1])
            indices = list(range(index, end))
            if op.interleaved:
                indices = interleaved_indices(op, entry, int(op.segments[i]), int(op.segments[i + 1]))
            found.append((group, block, kind, int(op.rows[entry]), indices))
            index = end
    assert op.segments[-1] == len(op.rows)
    assert index == op.nnz
    for array in (op.offsets, op.entries):
        assert room_behind(array) >= kernels.OVERREAD
    return found


def room_behind(array: Array) -> int:
    """Items of an array's memory that lie behind it."""
    whole = array if array.base is None else array.base
    return (whole.ctypes.data + whole.nbytes - array.ctypes.data - array.nbytes) // array.strides[0]


def interleaved_indices(op: sparse_operator.SparseOperator, entry: int, first: int, end: int) -> list[int]:
    """Where an entry's nonzeros are when those of four entries are interleaved as long as all of them have some."""
    four = entry - (entry - first) % kernels.ROW_UNROLL
    ends = op.row_ends.astype(int)
    if four + kernels.ROW_UNROLL > end:
        return list(range(ends[entry], ends[entry + 1]))
    lengths = np.diff(ends[four : four + kernels.ROW_UNROLL + 1])
    turns, row = lengths.min(), entry - four
    rest = ends[four] + kernels.ROW_UNROLL * turns + (lengths[:row] - turns).sum()
    in_turn = ends[four] + row + kernels.ROW_UNROLL * np.arange(turns)
    return [*in_turn, *range(rest, rest + lengths[row] - turns)]


def assert_operator(op: sparse_operator.SparseOperator, pattern: fs.Pattern, position: Array) -> None:
    """The operator holds every nonzero once, in an order that sums every row's columns in ascending order."""
    assert sorted(op.permutation) == list(range(pattern.nnz))
    rows = pattern.rows()
    kinds: dict[int, list[int]] = {row: [] for row in range(pattern.shape[0])}
    order: dict[int, list[int]] = {row: [] for row in range(pattern.shape[0])}
    lengths: dict[tuple[int, int, int], list[int]] = {}
    for group, block, kind, row, indices in decoded(op):
        assert op.group_starts[group] <= row < op.group_starts[group + 1]
        kinds[row].append(kind)
        lengths.setdefault((group, block, kind), []).append(len(indices))
        for index in indices:
            p = int(op.permutation[index])
            order[row].append(p)
            column = pattern.indices[p]
            assert rows[p] == row
            assert op.columns.block[column] == block
            assert int(op.columns.bases[block]) + int(op.offsets[index]) == position[column]
    for row, found in order.items():
        assert found == list(range(pattern.indptr[row], pattern.indptr[row + 1]))
        middle = [kernels.MIDDLE] * (len(kinds[row]) - 2)
        assert kinds[row] in ([kernels.ONLY], [kernels.FIRST, *middle, kernels.LAST])
    assert all(found == sorted(found) for found in lengths.values())


@given(
    st.integers(0, 30), st.integers(0, 40), st.sampled_from(list(PATTERNS)), st.integers(1, 12), st.integers(1, 8),
    st.sampled_from([np.int32, np.int64]), st.integers(0, 2), st.integers(0, 2**32),
)  # fmt: skip
def test_operators_hold_every_nonzero_once(rows, columns, name, block_rows, groups, kind, width, seed):
    rng = np.random.default_rng(seed)
    pattern = matrix(rng, PATTERNS[name](rng, (rows, columns)), "float32").pattern
    blocks = sparse_operator.channel_blocks(columns, block_rows, 320)
    op = sparse_operator.build_operator(pattern.indptr, pattern.indices.astype(kind), blocks, H, groups, width)
    assert op.interleaved == (not op.dense and H.interleaves_rows(width))
    assert_operator(op, pattern, np.arange(columns) * 320)
    values = rng.standard_normal(pattern.nnz)
    packed = op.pack(values)
    assert packed.size == 0 or packed.ctypes.data % 64 == 0
    assert np.array_equal(packed, values[op.permutation])
    assert op.pack(-values, packed) is packed
    assert np.array_equal(packed, -values[op.permutation])
    for multiple in (1, 4):
        order = sddmm.gradient_order(op, multiple == 4)
        assert order.longest == np.diff(op.row_ends).max(initial=0)
        ends = order.entries[:, 0].astype(np.int64)
        begins = -(-ends[:-1] // multiple) * multiple
        assert np.array_equal(ends[1:] - begins, np.diff(op.row_ends))
        assert np.array_equal(order.entries[:-1, 1], op.rows)
        held = np.concatenate([np.arange(*entry) for entry in zip(begins, ends[1:], strict=True)] or [[]])
        assert np.array_equal(order.offsets[held.astype(int)], op.offsets)
        assert np.array_equal(order.csr.indices[op.permutation], held)
        gradients = order.pack(values)
        assert gradients.size == order.size == (held[-1] // multiple * multiple + multiple if len(held) else 0)
        assert np.array_equal(gradients[order.csr.indices], values)
        assert np.count_nonzero(gradients) == np.count_nonzero(values)
        assert np.array_equal(order.csr.take(gradients), values)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(st.lists(st.integers(1, 40), max_size=12), st.randoms(use_true_random=False))
def test_runs_are_copied_to_the_last_number_and_no_further(dtype, lengths, random):
    ends = np.cumsum([0, *lengths])
    runs = [np.arange(*run) for run in itertools.pairwise(ends)]
    random.shuffle(runs)
    indices = np.concatenate([*runs, []]).astype(np.uint32)
    values = np.random.default_rng(0).standard_normal(len(indices)).astype(dtype)
    memory = np.full(len(indices) + 64, np.nan, dtype)
    reordering = sparse_operator.Reordering(indices)
    out = reordering.take(values, memory[32 : 32 + len(indices)])
    assert np.array_equal(out, values[indices])
    assert np.isnan(memory).sum() == 64
    found = 1 + np.count_nonzero(np.diff(indices.astype(int)) != 1)
    wanted = len(indices) and found <= len(indices) // sparse_operator.RUN_NUMBERS
    assert len(reordering.keep[1]) == (found + 1 if wanted else 0)


@given(st.lists(st.integers(0, 50), max_size=60), st.integers(1, 70))
def test_row_groups_have_equal_work(lengths, groups):
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    bounds = sparse_operator.split_rows(indptr, groups)
    assert bounds[0] == 0
    assert bounds[-1] == len(lengths)
    work = np.diff(indptr[bounds] + bounds)
    if lengths:
        assert (np.diff(bounds) > 0).all()
        assert len(bounds) - 1 <= groups
        assert work.max() <= work.sum() / min(groups, len(lengths)) + max(lengths) + 2


@pytest.mark.parametrize("l1_bytes", [512, 4096])  # blocks of few channels
@pytest.mark.parametrize("cpu", TARGETS)
@pytest.mark.parametrize("name", TABLE)
def test_operators_of_convolutions_hold_every_nonzero_once(rng, name, cpu, l1_bytes):
    cpu = replace(cpu, heuristics=replace(cpu.heuristics, l1_bytes=l1_bytes))
    geometry = geometry_of(TABLE[name])
    pattern = matrix(rng, PATTERNS["scattered"](rng, TABLE[name].shape), "float32").pattern
    plan = conv.plan_batch_blocked(pattern, geometry, cpu, 1)
    whole = geometry.channels * np.prod(geometry.kernel)
    window = grid(geometry.kernel, geometry.dilation, plan.x.strides)
    position = np.add.outer(np.arange(geometry.channels) * plan.x.channel_stride, window).ravel()
    wide = fs.Pattern(pattern.indptr, conv.absolute_columns(pattern, geometry), (pattern.shape[0], whole))
    assert_operator(plan.spmm.operator, wide, position)
    backward = conv.plan_backward(pattern, geometry, cpu, 1)
    held = np.concatenate([phase.operator.permutation for phase in backward.dx_phases])
    reached = Counter(held.tolist())
    assert set(reached.values()) <= {1}
    assert sorted(backward.dw.operator.permutation) == list(range(pattern.nnz))


# ------------------------------------------------------------------------------------------------------- keeping


def test_kernels_may_read_ahead_of_packed_values(rng, monkeypatch):
    """Also in memory that has no other room: what is aligned may have some."""
    monkeypatch.setattr(sparse_operator, "aligned_empty", np.empty)
    pattern = matrix(rng, rng.random((5, 70)) < 0.3, "float64").pattern
    op = sparse_operator.build_operator(pattern.indptr, pattern.indices, sparse_operator.channel_blocks(70, 30, 320), H)
    packed = op.pack(rng.standard_normal(pattern.nnz))
    assert (len(packed), room_behind(packed)) == (pattern.nnz, kernels.OVERREAD)


def test_values_are_packed_once_per_matrix(rng, monkeypatch):
    packed = []
    pack = sparse_operator.SparseOperator.pack
    monkeypatch.setattr(
        sparse_operator.SparseOperator, "pack", lambda self, *arrays: packed.append(1) or pack(self, *arrays)
    )
    W = matrix(rng, PATTERNS["scattered"](rng, (9, 30)), "float32")
    X = np.ones((30, 40), np.float32)
    for _ in range(3):
        fs.spmm(W, X)
    assert len(packed) == 1
    fs.spmm(W.with_data(2 * W.data), X)
    assert len(packed) == 2


# ------------------------------------------------------------------------------------------ I2: sizes past 2**31


@pytest.mark.I2
def test_blocks_of_rows_past_four_gigabytes():
    for row_bytes in (1, 4096 * 64, 2**31, 2**32 - 1, 2**32, 2**40):
        blocks = sparse_operator.channel_blocks(5000, 10**9, row_bytes)
        found = blocks.bases[blocks.block] + blocks.offset.astype(np.int64)
        assert np.array_equal(found, np.arange(5000) * row_bytes)
        assert np.array_equal(
            blocks.starts[blocks.block], np.arange(5000) - blocks.offset.astype(np.int64) // row_bytes
        )


@pytest.mark.I2
def test_blocks_of_channels_past_four_gigabytes():
    for stride in (64, 2**30, 2**32 - 1, 2**32, 2**41):
        for farthest in (0, 5 * 64, 2**31, 2**32 - 1):
            window = np.array([0, farthest // 2, farthest])
            blocks = sparse_operator.channel_blocks(70, 10**9, stride, window)
            found = blocks.bases[blocks.block] + blocks.offset.astype(np.int64)
            assert np.array_equal(found, np.add.outer(np.arange(70) * stride, window).ravel())


@pytest.mark.I2
def test_windows_past_four_gigabytes_are_refused():
    message = r"^the window of x spans 4294967296 bytes, expected fewer than 4294967296 in 32-bit offsets$"
    with pytest.raises(ValueError, match=message):
        sparse_operator.channel_blocks(3, 1, 64, np.array([0, 2**32]))


@pytest.mark.I2
def test_more_nonzeros_than_32_bits_count_are_refused():
    columns = np.broadcast_to(np.int32(0), 2**32)
    message = r"^W has 4294967296 nonzeros, expected fewer than 4294967296$"
    with pytest.raises(ValueError, match=message):
        sparse_operator.build_operator(np.array([0, 2**32]), columns, sparse_operator.channel_blocks(1, 1, 64), H)


@pytest.mark.I2
def test_more_columns_than_32_bits_count_are_refused_by_spmv():
    pattern = fs.Pattern([0, 1], [2**32], (1, 2**32 + 1))
    with pytest.raises(ValueError, match=r"^W has 4294967297 columns, expected at most 4294967296$"):
        spmv.plan_spmv(pattern, TARGETS[0])
    pattern = fs.Pattern([0, 2], [7, 2**32 - 1], (1, 2**32))
    assert spmv.plan_spmv(pattern, TARGETS[0]).columns.tolist() == [7, 2**32 - 1] + [0] * kernels.SPMV_ACCUMULATORS


@pytest.mark.I2
def test_rows_of_two_billion_nonzeros_are_split():
    indptr = np.array([0, 2**31, 2**32, 2**40, 2**41])
    assert sparse_operator.split_rows(indptr, 2).tolist() == [0, 3, 4]


@pytest.mark.I2
def test_columns_of_groups_past_two_billion():
    geometry = ConvGeometry(4 * 2**29, 4, (1, 1), (1, 2), (1, 1), ((0, 0), (0, 1)), (1, 1), 4)
    pattern = fs.Pattern([0, 1, 2, 3, 4], [2**30 - 1] * 4, (4, 2**30))
    assert conv.absolute_columns(pattern, geometry).tolist() == [2**30 * (g + 1) - 1 for g in range(4)]


@pytest.mark.I2
def test_places_of_planes_past_two_billion():
    geometry = ConvGeometry(1, 1, (2**10, 2), (1, 1), (1, 1), ((0, 0), (0, 2**20)), (1, 1), 1)
    cpu = target(32, 16)
    planes = layouts.BlockedPlanes(
        1, 2048, np.empty(0, np.int64), np.empty(0, np.int64), 2**36, 2**36, geometry.spatial,
        ((2 + 2**20) * cpu.vector, cpu.vector), 0,
    )  # fmt: skip
    assert planes.all_offsets().max() == ((2**10 - 1) * (2 + 2**20) + 1) * 64
    assert grid((2, 2, 3), (2**31, 2**16, 1), (2**20, 2**30, 4))[-1] == 2**51 + 2**46 + 8


@pytest.mark.I2
def test_tables_of_tiles_are_64_bit():
    starts = np.array([0, 2**40])
    found = tiles.whole_vectors(starts, 2 * starts, 2, target(32, 16))
    assert found.x_offsets.tolist() == [[0, 2**40]]
    assert found.y_offsets.tolist() == [[0, 2**41]]


@pytest.mark.I2
def test_panels_that_sddmm_reads(rng):
    """Four groups of samples, also where one of them is missing; fewer where that would be most of the work."""
    pattern = matrix(rng, np.ones((5, 7), bool), "float32").pattern
    m = target(32, 8)
    widths = [spmm.panel_width(pattern, groups * m.lanes, m, backward=True) for groups in range(1, 7)]
    assert widths == [1, 2, 4, 4, 4, 4]
    assert [sddmm.plan_panels(pattern, groups * 8, m).by_fours for groups in (2, 3, 5)] == [False, True, True]
    assert sddmm.plan_panels(pattern, 5 * 8, m).positions == 8
    for groups in (2, 5):
        order = sddmm.plan_panels(pattern, groups * 8, m).order
        assert all(room_behind(array) >= kernels.OVERREAD for array in (order.offsets, order.entries))
