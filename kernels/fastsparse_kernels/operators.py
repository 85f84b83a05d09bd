"""Building sparse operators: CSR structure -> blocks of row entries (values, byte offsets), in O(nnz + M * blocks).

An operator serves row groups (contiguous rows that one worker takes) and column blocks (columns whose inputs fit the
L1 cache). An entry is the part of a row inside a block. Inside (group, block) entries are sorted by kind, then length:

    ONLY    all the row's nonzeros lie in this block: zeros -> epilogue
    FIRST   zeros -> partial sum
    MIDDLE  partial sum -> partial sum
    LAST    partial sum -> epilogue

so the loop over entries has no branch that varies but the trip count, and trip counts are steady (a mispredicted exit
costs as much as ten nonzeros: worth up to 30 % at 95 % sparsity). A block does not visit rows it does not hold:
depthwise and grouped convolutions are only patterns. An empty row is an ONLY entry of block 0.

For tiles of few vectors the nonzeros of every four entries of a kind lie in turn.

Nonzeros of a row keep ascending column order inside and across blocks, so the sum's bits do not depend on blocking.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types

from .build import compile_function, compiled_once, kernel_part

KINDS = 4
TOGETHER = 4  # rows that share what is read of X, or take turns
CHAINS = 8  # running sums of a row of SpMV, which reads as many columns at once
FOUR = 4  # positions of a run that SDDMM takes without a loop, and nonzeros that it takes together there
READ_AHEAD = 4  # values, offsets and entries behind the last ones that kernels may read
ROWS, LINES = 1, 2  # of the next panel that SpMM asks for, see `asking`: by an entry, by every four nonzeros
LINE = 64  # bytes; where lines are longer, it is asked for more often
TURN_LINES = 5  # that four nonzeros ask for at most
ONLY, FIRST, MIDDLE, LAST = range(KINDS)


def make_count_blocks() -> Callable[..., None]:
    """Per row: nonzeros in every block, and the first and last block that holds any (0 for an empty row)."""

    def count_blocks(indptr, columns, column_block, counts, first, last):  # type: ignore[no-untyped-def]
        for row in range(indptr.shape[0] - 1):
            first[row] = last[row] = 0
            if indptr[row] < indptr[row + 1]:
                first[row] = column_block[columns[indptr[row]]]
                last[row] = column_block[columns[indptr[row + 1] - 1]]
            for p in range(indptr[row], indptr[row + 1]):
                counts[row, column_block[columns[p]]] += 1

    return count_blocks


@kernel_part
def _sort_key(counts, first, last, row, block, longest):  # type: ignore[no-untyped-def]
    """Kind * (longest + 1) + length of the entry; -1 where the row has no entry in the block."""
    length = counts[row, block]
    starts, ends = first[row] == block, last[row] == block
    if length == 0 and not (block == 0 and starts and ends):
        return np.int64(-1)
    kind = (ONLY if ends else FIRST) if starts else (LAST if ends else MIDDLE)
    return np.int64(kind * (longest + 1) + length)


def make_order_entries() -> Callable[..., None]:
    """Counting sort of every block's entries; starts[row, block] tells where the entry's nonzeros go."""

    def order_entries(  # type: ignore[no-untyped-def]
        counts, first, last, group_starts, buckets, segments, rows, row_ends, starts
    ):
        blocks = counts.shape[1]
        longest = buckets.shape[0] // KINDS - 1
        nonzero = np.int64(0)
        row_ends[0] = segments[0] = 0
        for group in range(group_starts.shape[0] - 1):
            low, high = group_starts[group], group_starts[group + 1]
            for block in range(blocks):
                buckets[:] = 0
                for row in range(low, high):
                    key = _sort_key(counts, first, last, row, block, longest)
                    if key >= 0:
                        buckets[key] += 1
                base = (group * blocks + block) * KINDS
                entry = begin = np.int64(segments[base])
                for kind in range(KINDS):
                    for key in range(kind * (longest + 1), (kind + 1) * (longest + 1)):
                        entry, buckets[key] = entry + buckets[key], entry
                    segments[base + kind + 1] = entry
                for row in range(low, high):
                    at = _sort_key(counts, first, last, row, block, longest)
                    if at >= 0:
                        rows[buckets[at]] = row
                        buckets[at] += 1
                for i in range(begin, entry):
                    owner = np.int64(rows[i])
                    starts[owner, block] = nonzero
                    nonzero += counts[owner, block]
                    row_ends[i + 1] = nonzero

    return order_entries


def make_place_nonzeros() -> Callable[..., None]:
    """Write every nonzero's offset, and its place in the CSR, into its entry."""

    def place_nonzeros(  # type: ignore[no-untyped-def]
        indptr, columns, column_block, column_offset, starts, offsets, permutation
    ):
        for row in range(indptr.shape[0] - 1):
            for p in range(indptr[row], indptr[row + 1]):
                column = columns[p]
                block = column_block[column]
                at = starts[row, block]
                starts[row, block] = at + 1
                offsets[at] = column_offset[column]
                permutation[at] = p

    return place_nonzeros


def make_interleave() -> Callable[..., None]:
    """Put the nonzeros of every four entries of a kind in turn, as many as the shortest of them has; then the rest of
    each. Of entries left over, one lies behind the other as before."""

    def interleave(segments, row_ends, offsets, permutation, new_offsets, new_permutation):  # type: ignore[no-untyped-def]
        at = np.int64(0)
        for segment in range(segments.shape[0] - 1):
            entry, end = np.int64(segments[segment]), np.int64(segments[segment + 1])
            while entry < end:
                rows = TOGETHER if entry + TOGETHER <= end else 1
                turns = np.int64(row_ends[entry + 1]) - np.int64(row_ends[entry])
                for i in range(entry, entry + rows):
                    turns = min(turns, np.int64(row_ends[i + 1]) - np.int64(row_ends[i]))
                for turn in range(turns):
                    for i in range(entry, entry + rows):
                        new_offsets[at] = offsets[row_ends[i] + turn]
                        new_permutation[at] = permutation[row_ends[i] + turn]
                        at += 1
                for i in range(entry, entry + rows):
                    for p in range(row_ends[i] + turns, row_ends[i + 1]):
                        new_offsets[at] = offsets[p]
                        new_permutation[at] = permutation[p]
                        at += 1
                entry += rows

    return interleave


def make_gather() -> Callable[..., None]:
    """out[i] = values[places[i]]."""

    def gather(values, places, out):  # type: ignore[no-untyped-def]
        for i in range(places.shape[0]):
            out[i] = values[places[i]]

    return gather


def make_scatter() -> Callable[..., None]:
    """out[places[i]] = values[i]."""

    def scatter(values, places, out):  # type: ignore[no-untyped-def]
        for i in range(places.shape[0]):
            out[places[i]] = values[i]

    return scatter


def _array(kind: Any, axes: int = 1) -> Any:
    return types.Array(kind, axes, "C")


def _structure(kind: Any) -> Any:
    """A pattern's own array, which is read-only."""
    return types.Array(kind, 1, "C", readonly=True)


@compiled_once
def count_blocks(column_bits: int) -> Callable[..., None]:
    """(indptr int64, columns int32/int64, column_block int32, counts int32 [M, blocks], first, last int32 [M])."""
    i32, columns = types.int32, _structure(types.int32 if column_bits == 32 else types.int64)
    signature = types.void(_structure(types.int64), columns, _array(i32), _array(i32, 2), _array(i32), _array(i32))
    function = make_count_blocks()
    function.__qualname__ = f"count_blocks_{column_bits}"
    return compile_function(function, signature)


@compiled_once
def order_entries() -> Callable[..., None]:
    """(counts, first, last, group_starts int64, buckets int64, segments, rows, row_ends, starts uint32)."""
    i32, i64, u32 = types.int32, types.int64, types.uint32
    signature = types.void(
        _array(i32, 2), _array(i32), _array(i32), _array(i64), _array(i64),
        _array(u32), _array(u32), _array(u32), _array(u32, 2),
    )  # fmt: skip
    return compile_function(make_order_entries(), signature)


@compiled_once
def place_nonzeros(column_bits: int) -> Callable[..., None]:
    """(indptr, columns, column_block, column_offset, starts, offsets, permutation uint32)."""
    i32, i64, u32 = types.int32, types.int64, types.uint32
    columns = _structure(i32 if column_bits == 32 else i64)
    signature = types.void(
        _structure(i64), columns, _array(i32), _array(u32), _array(u32, 2), _array(u32), _array(u32)
    )  # fmt: skip
    function = make_place_nonzeros()
    function.__qualname__ = f"place_nonzeros_{column_bits}"
    return compile_function(function, signature)


@compiled_once
def interleave() -> Callable[..., None]:
    """(segments, row_ends, offsets, permutation, new_offsets, new_permutation uint32): see `make_interleave`."""
    return compile_function(make_interleave(), types.void(*[_array(types.uint32)] * 6))


@compiled_once
def gather(bits: int) -> Callable[..., None]:
    """(values float, places uint32, out float): see `make_gather`."""
    return _moving(make_gather(), f"gather_f{bits}", bits)


@compiled_once
def scatter(bits: int) -> Callable[..., None]:
    """(values float, places uint32, out float): see `make_scatter`."""
    return _moving(make_scatter(), f"scatter_f{bits}", bits)


def _moving(function: Callable[..., None], name: str, bits: int) -> Callable[..., None]:
    number = types.float32 if bits == 32 else types.float64
    function.__qualname__ = name
    return compile_function(function, types.void(_structure(number), _structure(types.uint32), _array(number)))
