"""Sparse operators: structure of a pattern, packed in the kernel's order and with byte offsets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fastsparse.csr import CSR, Pattern
from fastsparse.ops.heuristics import Heuristics
from fastsparse.runtime import buffers
from fastsparse.runtime.buffers import address
from fastsparse.runtime.launch import Launch
from fastsparse_kernels import sparse_operator as kernels
from fastsparse_kernels.compiler import aligned_empty

Array = NDArray[Any]

INDEX_LIMIT = 2**32
_ALONE = np.zeros(1, np.int64)  # the window of a channel of one column
RUN_NUMBERS = 6  # average length of runs from which copying them takes less time than gathering numbers


@dataclass(frozen=True, eq=False)
class ColumnBlocks:
    """Location of every column of an operator: its block, and bytes from the block's base.

    Attributes
    ----------
    block : int32 [columns], ascending
    offset : uint32 [columns]
    bases : int64 [blocks], bytes from a position to the block's first input
    starts : int64 [blocks + 1], first input row of every block (used when inputs are packed block by block)
    """

    block: NDArray[np.int32]
    offset: NDArray[np.uint32]
    bases: NDArray[np.int64]
    starts: NDArray[np.int64]


class Reordering:
    """out[i] = values[indices[i]] for each i, by runs of consecutive indices where these are long.

    Parameters
    ----------
    indices : uint32 [n]
    """

    __slots__ = ("indices", "keep")

    def __init__(self, indices: NDArray[np.uint32]) -> None:
        self.indices = indices
        self.keep: tuple[NDArray[np.uint32], ...] = (indices,)  # and runs, which are found when first needed

    def take(self, values: Array, out: Array | None = None) -> Array:
        """Write `out`, whose memory is not that of `values`, or a new array."""
        out = buffers.array(self.indices.shape, values.dtype) if out is None else out
        if len(self.keep) == 1:
            self.keep = self.indices, self._find_runs()
        runs, bits = self.keep[1], values.itemsize * 8
        if len(runs):
            kernels.copy_runs(bits)(values, runs, out)
        else:
            kernels.gather(bits)(values, self.indices, out)
        return out

    def pack(self, values: Array, out: Array | None = None) -> Array:
        """As `take`; a new array is aligned, with room for reading ahead."""
        if out is not None:
            return self.take(values, out)
        packed = aligned_empty((len(self.indices) + kernels.OVERREAD,), values.dtype)[: len(self.indices)]
        kernels.gather(values.itemsize * 8)(values, self.indices, packed)  # most are packed once: no search of runs
        return packed

    def _find_runs(self) -> NDArray[np.uint32]:
        runs = np.empty((1 + len(self.indices) // RUN_NUMBERS, 2), np.uint32)
        count = kernels.find_runs()(self.indices, runs)
        return runs[: count + 1 if count else 0].copy()


@dataclass(frozen=True, eq=False)
class SparseOperator:
    """A packed structure; see `fastsparse_kernels.sparse_operator` for the order of its entries.

    An entry holds the nonzeros of one row in one column block. `entries` is [entries + 1, 2]: the index of an entry's
    first nonzero, and its row; the last row marks the end.
    `permutation[i]` is the index in the CSR's data of the operator's
    nonzero i.
    """

    group_starts: NDArray[np.int64]
    segments: NDArray[np.uint32]
    entries: NDArray[np.uint32]
    offsets: NDArray[np.uint32]
    permutation: NDArray[np.uint32]
    columns: ColumnBlocks
    interleaved: bool = False  # nonzeros of four entries alternate
    groups: int = field(init=False)
    blocks: int = field(init=False)
    nnz: int = field(init=False)
    dense: bool = field(init=False)  # every row has every column
    order: Reordering = field(init=False)  # of values, by the permutation

    def __post_init__(self) -> None:
        nnz = len(self.offsets)
        object.__setattr__(self, "groups", len(self.group_starts) - 1)
        object.__setattr__(self, "blocks", len(self.columns.bases))
        object.__setattr__(self, "nnz", nnz)
        object.__setattr__(self, "order", Reordering(self.permutation))
        object.__setattr__(self, "dense", nnz == int(self.group_starts[-1]) * len(self.columns.block))

    @property
    def rows(self) -> NDArray[np.uint32]:
        """Row of every entry."""
        return self.entries[:-1, 1]

    @property
    def row_ends(self) -> NDArray[np.uint32]:
        """0, then the end of every entry's nonzeros."""
        return self.entries[:, 0]

    @property
    def widest_group(self) -> int:
        """Rows of the largest group: a worker holds that many partial sums."""
        return int(np.diff(self.group_starts).max(initial=0))

    def pack(self, values: Array, out: Array | None = None) -> Array:
        """The values in the operator's order, aligned, with room for reading ahead."""
        return self.order.pack(values, out)


class PackedValues:
    """Values of a matrix in the order in which a kernel reads them, at one address.

    Parameters
    ----------
    W : CSR
        Not kept, as it keeps what is packed of it.
    pack : function of values and of the array they were packed into before, or None; without it they stay as they are
    """

    __slots__ = ("_changes", "_pack", "_seen", "_values", "keep")

    def __init__(self, W: CSR, pack: Callable[[Array, Array | None], Array] | None = None) -> None:
        self._values, self._pack, self._changes = W.data, pack, None if pack is None else W._changes
        self._seen = 0 if self._changes is None else self._changes[0]
        self.keep = self._values if pack is None else pack(self._values, None)

    def update(self, launch: Launch | None = None) -> None:
        """Pack them again if they have changed, for a launch that is about to run."""
        if self._pack is not None and self._changes is not None and self._changes[0] != self._seen:
            seen = self._changes[0]
            self.keep = self._pack(self._values, self.keep)
            self._seen = seen

    def current(self) -> int:
        """Address of the values, after an update."""
        self.update()
        return address(self.keep)

    def fixed(self, launch: Launch) -> Launch:
        """The launch with these values, which it brings up to date before it runs."""
        fixed = launch.fixed(values=self.keep)
        fixed.before = None if self._changes is None else self.update
        return fixed


def packed_values(W: CSR, operator: SparseOperator) -> PackedValues:
    """W's values in the operator's order, kept with W: a layer packs once per optimizer step, never per call."""
    # They hold the operator, so that no other object gets its id.
    return W.cached(("values", id(operator)), PackedValues, W, operator.pack)


class _Plan(Protocol):
    @property
    def operator(self) -> SparseOperator: ...


def packed_for_each(W: CSR, plans: Sequence[_Plan]) -> list[PackedValues]:
    """`packed_values` of several plans, as one entry of W's store: they may be more than it has entries."""
    key = "values of each", *[id(plan.operator) for plan in plans]
    return W.cached(key, lambda: [PackedValues(W, plan.operator.pack) for plan in plans])


class Ordered(Protocol):
    """What has W's nonzeros in an order of its own: operators, and plans with sorted rows."""

    @property
    def permutation(self) -> NDArray[np.uint32] | None:
        """Index in W.data of each nonzero."""


def transposed_values(W: CSR, ordered: Ordered | None = None) -> PackedValues:
    """W.T's values, in the order of an operator or a plan or in that of rows, moved once from W's."""
    return W.cached(("values of W.T", id(ordered)), _transposed_values, W, ordered)[0]


def _transposed_values(W: CSR, ordered: Ordered | None) -> tuple[PackedValues, Ordered | None]:
    """The values, with what has their order, so that no other object gets its id."""
    pattern, permutation = W.pattern.transpose()
    order, _ = pattern.cached(("order of W.T", id(ordered)), _transposed_order, permutation, ordered)
    return PackedValues(W, order.pack), ordered


def _transposed_order(permutation: Array, ordered: Ordered | None) -> tuple[Reordering, Ordered | None]:
    own = None if ordered is None else ordered.permutation
    return Reordering(permutation if own is None else permutation[own]), ordered


# ------------------------------------------------------------------------------------------------- building


def build_operator(
    indptr: NDArray[np.int64], columns: NDArray[np.integer], blocks: ColumnBlocks, h: Heuristics, groups: int = 1,
    width: int = 0,
) -> SparseOperator:  # fmt: skip
    """Pack a structure with sorted columns. O(nnz + M * blocks).

    width : vectors per tile; narrow tiles have interleaved rows

    Raises
    ------
    ValueError
        When there are 2**32 nonzeros or more: their indices are 32-bit.
    """
    rows, count, nnz = len(indptr) - 1, len(blocks.bases), len(columns)
    if nnz >= INDEX_LIMIT:
        raise ValueError(f"W has {nnz} nonzeros, expected fewer than {INDEX_LIMIT}")
    bits = 64 if columns.dtype.itemsize == 8 else 32
    group_starts, lengths = split_rows(indptr, groups), np.diff(indptr)
    longest = min(int(lengths.max(initial=0)), int(np.bincount(blocks.block).max(initial=0)))  # entry, at most
    entries = min(nnz, rows * count) + int(np.count_nonzero(lengths == 0))  # at most
    row_ids, row_ends = np.empty(entries, np.uint32), np.empty(entries + 1, np.uint32)
    segments = np.empty((len(group_starts) - 1) * count * kernels.KINDS + 1, np.uint32)
    offsets, permutation = with_read_ahead(nnz), np.empty(nnz, np.uint32)
    entries = kernels.order_nonzeros(bits)(
        indptr, columns, blocks.block, blocks.offset, group_starts, indptr.copy(), np.zeros((rows, count), np.int32),
        np.empty((rows, count), np.uint32), np.empty(kernels.KINDS * (longest + 1), np.int64), segments, row_ids,
        row_ends, offsets, permutation,
    )  # fmt: skip
    row_ends = row_ends[: entries + 1]
    packed = pack_entries(row_ends, row_ids[:entries])
    operator = SparseOperator(group_starts, segments, packed, offsets, permutation, blocks)
    if operator.dense or not h.interleaves_rows(width):
        return operator
    interleaved, order = with_read_ahead(nnz), np.empty_like(permutation)
    kernels.interleave()(segments, row_ends, offsets, permutation, interleaved, order)
    return replace(operator, offsets=interleaved, permutation=order, interleaved=True)


def linear_operator(
    pattern: Pattern, row_bytes: int, block_rows: int, groups: int, h: Heuristics, width: int = 0
) -> SparseOperator:
    """Operator whose columns are `row_bytes` apart, cached on the pattern.

    width : as in `build_operator`
    """
    return pattern.kept(_linear_operator, row_bytes, block_rows, groups, h, width)


def _linear_operator(
    pattern: Pattern, row_bytes: int, block_rows: int, groups: int, h: Heuristics, width: int
) -> SparseOperator:
    blocks = channel_blocks(pattern.shape[1], block_rows, row_bytes)
    return build_operator(pattern.indptr, pattern.indices, blocks, h, groups, width)


def channel_blocks(
    channels: int, per_block: int, channel_stride: int, window: NDArray[np.int64] = _ALONE
) -> ColumnBlocks:
    """Blocks of channels, or of a matrix's input rows; column (c, k) is at byte c * channel_stride + window[k].

    Raises
    ------
    ValueError
        When a window reaches 2**32 bytes or more from its corner: offsets are 32-bit.
    """
    farthest = int(window.max(initial=0))
    if farthest >= INDEX_LIMIT:
        raise ValueError(f"the window of x spans {farthest} bytes, expected fewer than {INDEX_LIMIT} in 32-bit offsets")
    per_block = max(1, min(per_block, channels, (INDEX_LIMIT - 1 - farthest) // max(1, channel_stride)))
    channel = np.arange(channels, dtype=np.int64)
    block = channel // per_block
    offset = np.add.outer((channel - block * per_block) * channel_stride, window)
    count = max(1, -(-channels // per_block))
    starts = np.minimum(np.arange(count + 1) * per_block, channels)
    return ColumnBlocks(
        np.repeat(block, len(window)).astype(np.int32),
        offset.ravel().astype(np.uint32),
        starts[:-1] * channel_stride,
        starts,
    )


def split_rows(indptr: NDArray[np.int64], groups: int) -> NDArray[np.int64]:
    """Bounds of contiguous row groups of about equal work: nonzeros plus one per row for its output."""
    rows = len(indptr) - 1
    groups = max(1, min(groups, rows))
    work = indptr + np.arange(rows + 1)
    targets = work[-1] * np.arange(1, groups) // groups
    cuts = np.searchsorted(work, targets, side="left")
    bounds = np.concatenate([[0], cuts, [rows]]).astype(np.int64)
    return np.unique(bounds) if rows else np.zeros(2, np.int64)


def with_read_ahead(length: int, *rest: int) -> NDArray[np.uint32]:
    """Zeros, followed by as many as kernels may read ahead."""
    return np.zeros((length + kernels.OVERREAD, *rest), np.uint32)[:length]


def pack_entries(row_ends: NDArray[np.integer], rows: NDArray[np.integer]) -> NDArray[np.uint32]:
    """`SparseOperator.entries`, with room for reading ahead."""
    entries = with_read_ahead(len(row_ends), 2)
    entries[:, 0], entries[:-1, 1] = row_ends, rows
    return entries
