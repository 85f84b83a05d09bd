"""SpMV: sparse W times one vector.

The time is that of reading W. There are three forms: CSR rows with column indices of 16 bits where they fit; slices of
as many rows as a vector has lanes, where rows are short (`SpmvSlicePlan`); and a lookup of x in registers
(`SpmvLookupPlan`) where W fills its tables well enough. Bits depend on the form and the vector length, never on
threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastsparse.csr import CSR, Pattern
from fastsparse.ops import stream
from fastsparse.ops.activations import CLAMPS, epilogue
from fastsparse.ops.sparse_operator import INDEX_LIMIT, PackedValues, split_rows
from fastsparse.ops.target import Target, target_for
from fastsparse.runtime.buffers import address, optional_address
from fastsparse.runtime.launch import Arguments, Launch
from fastsparse_kernels import sparse_operator, spmv
from fastsparse_kernels.compiler import aligned_empty
from fastsparse_kernels.sparse_operator import (
    LOOKUP_BITS,
    LOOKUP_CHUNK,
    LOOKUP_EMPTY,
    LOOKUP_LANES,
    SLICE_ORDER_ROWS,
    SPMV_ACCUMULATORS,
)

Array = NDArray[Any]


# ------------------------------------------------------------------------------------------------- entry


def multiply(
    W: CSR, x: Array, y: Array, bias: Array | None, activation: str | None, target: Target | None = None
) -> None:
    """y = activation(W @ x + bias) for one x; both may have further dimensions of size 1, y is contiguous."""
    target = target or target_for(W.dtype)
    if not x.flags.c_contiguous:
        x = np.ascontiguousarray(x)
    launch = W.cached(("spmv", activation, target), _prepared, W, activation, target)
    launch.run(address(x), address(y), optional_address(bias))


def _prepared(W: CSR, activation: str | None, target: Target) -> Launch:
    if W.shape[1] > INDEX_LIMIT:  # columns of plans have 32 bits
        rows = stream.plan(W.pattern, 1, target)
        launch = stream.prepare(
            rows, target, x_row_stride=target.size, y_row_stride=target.size, activation=activation, label="spmv"
        )
        return rows.values(W).fixed(launch)
    plan = plan_spmv(W.pattern, target)
    launch = W.pattern.cached(("spmv launch", activation, target), prepare, plan, target, activation)
    return PackedValues(W, plan.pack).fixed(launch)


# ------------------------------------------------------------------------------------------------- plans


@dataclass(frozen=True, eq=False)
class SpmvPlan:
    """SpMV by rows: row groups of equal nonzeros, column indices of 16 bits where they fit."""

    inputs: int
    indptr: NDArray[np.int64]
    group_starts: NDArray[np.int64]
    columns: NDArray[Any]  # uint16 or uint32 [nnz + SPMV_ACCUMULATORS], 0 after the nonzeros

    @property
    def column_bits(self) -> int:
        return self.columns.dtype.itemsize * 8

    @property
    def rows(self) -> int:
        return len(self.indptr) - 1

    @property
    def nonzeros(self) -> int:
        return int(self.indptr[-1])

    def pack(self, values: Array, out: Array | None = None) -> Array:
        """The values in CSR order."""
        return values


@dataclass(frozen=True, eq=False)
class SpmvSlicePlan:
    """SpMV by slices; see the arguments in `fastsparse_kernels.spmv` for the arrays.

    row_starts : index of each row's first nonzero in columns and values
    """

    inputs: int
    indptr: NDArray[np.int64]
    lanes: int
    row_starts: NDArray[np.int64]
    group_starts: NDArray[np.int64]
    slice_starts: NDArray[np.int64]
    columns: NDArray[np.uint32]
    masks: NDArray[np.uint16]
    sum_index: NDArray[np.uint16] | None  # None: rows have their own order

    @property
    def rows(self) -> int:
        return len(self.indptr) - 1

    @property
    def nonzeros(self) -> int:
        return int(self.indptr[-1])

    def pack(self, values: Array, out: Array | None = None) -> Array:
        """The values in the order of vectors and lanes, 0 in empty ones."""
        packed = aligned_empty((len(self.columns),), values.dtype) if out is None else out
        if out is None:
            packed[...] = 0
        sparse_operator.slice_values(values.itemsize * 8)(self.indptr, values, self.row_starts, self.lanes, packed)
        return packed


@dataclass(frozen=True, eq=False)
class SpmvLookupPlan:
    """SpMV by lookup; see the arguments in `fastsparse_kernels.spmv` for the arrays."""

    chunks: int
    inputs: int
    group_starts: NDArray[np.int64]
    slice_starts: NDArray[np.int64]
    vector_starts: NDArray[np.int64]
    vector_counts: NDArray[np.uint16]
    columns: NDArray[np.uint8]
    sum_index: NDArray[np.uint16]
    order: NDArray[np.uint32]  # [nnz], index of each nonzero's value

    @property
    def rows(self) -> int:
        return int(self.group_starts[-1])

    @property
    def nonzeros(self) -> int:
        return len(self.order)

    @property
    def widest_group(self) -> int:
        """Slices of the largest group."""
        return int(-(-np.diff(self.group_starts).max(initial=0) // LOOKUP_LANES))

    def pack(self, values: Array, out: Array | None = None) -> Array:
        """The values in the order of vectors and lanes, 0 in empty ones."""
        packed = aligned_empty((len(self.columns),), values.dtype) if out is None else out
        if out is None:
            packed[...] = 0
        sparse_operator.scatter(LOOKUP_BITS)(values, self.order, packed)
        return packed


Plan: TypeAlias = SpmvPlan | SpmvSlicePlan | SpmvLookupPlan


def plan_spmv(pattern: Pattern, target: Target) -> Plan:
    """Plan of W @ x for one column, kept with the pattern.

    Raises
    ------
    ValueError
        When W has more than 2**32 columns: indices are 32-bit.
    """
    return pattern.cached(("spmv", target), _plan, pattern, target)


def takes_lookup(pattern: Pattern, target: Target) -> bool:
    """Whether the target has the lookup and W fills its tables well enough."""
    return (target.bits, target.lanes) == (LOOKUP_BITS, LOOKUP_LANES) and target.heuristics.spmv_by_lookup(
        *pattern.shape, pattern.nnz, LOOKUP_CHUNK
    )


def _plan(pattern: Pattern, target: Target) -> Plan:
    h = target.heuristics
    if pattern.shape[1] > INDEX_LIMIT:
        raise ValueError(f"W has {pattern.shape[1]} columns, expected at most {INDEX_LIMIT}")
    if takes_lookup(pattern, target):
        by_lookup = plan_lookup(pattern, target)
        if by_lookup is not None:
            return by_lookup
    if pattern.indices.itemsize == 4 and h.spmv_by_slices(pattern.shape[0], pattern.nnz):
        by_slices = plan_slices(pattern, target)
        if by_slices is not None:
            return by_slices
    narrow = np.uint16 if pattern.shape[1] <= 2**16 else np.uint32
    columns = pattern.cached(("spmv columns",), _padded, pattern.indices, narrow)
    slices = int(2 * pattern.nnz // h.slice_flops) + 1
    groups = max(slices, 1 if target.threads == 1 else h.tasks_per_worker * target.threads)
    return SpmvPlan(pattern.shape[1], pattern.indptr, split_rows(pattern.indptr, groups), columns)


def _padded(indices: NDArray[np.integer], dtype: type[np.integer]) -> NDArray[Any]:
    padded = np.zeros(len(indices) + SPMV_ACCUMULATORS, dtype)
    padded[: len(indices)] = indices
    return padded


def plan_slices(pattern: Pattern, target: Target, always: bool = False) -> SpmvSlicePlan | None:
    """Slices of rows in their own order, or sorted by length where that saves vectors.

    None where vectors are too many, unless `always`.
    """
    h, lanes, (rows, inputs) = target.heuristics, target.lanes, pattern.shape
    slices, window = -(-rows // lanes), SLICE_ORDER_ROWS // lanes
    counts = np.zeros(slices * lanes, np.int64)
    np.subtract(pattern.indptr[1:], pattern.indptr[:-1], out=counts[:rows])
    longest = counts.reshape(slices, lanes).max(axis=1)
    order = sum_index = None
    if longest.sum() * lanes > h.slice_filling * pattern.nnz:
        # A stable sort by window and falling length: windows are sorted together.
        key = np.arange(slices * lanes) // SLICE_ORDER_ROWS * (int(counts.max()) + 1) - counts
        key[rows:] = np.iinfo(np.int64).max  # rows that do not exist stay the last ones
        order = np.argsort(key, kind="stable")
        longest = counts[order].reshape(slices, lanes).max(axis=1)
        place = np.empty_like(order)
        place[order] = np.arange(slices * lanes)
        sum_index = (place % SLICE_ORDER_ROWS).astype(np.uint16)
    slice_starts = np.concatenate([[0], np.cumsum(longest)])
    vectors = int(slice_starts[-1])
    if not always and vectors * lanes > h.slice_room * pattern.nnz:  # a few long rows among short ones
        return None
    place = np.arange(rows) if order is None else place[:rows]
    row_starts = slice_starts[place // lanes] * lanes + place % lanes
    columns, masks = np.zeros(vectors * lanes, np.uint32), np.zeros(vectors, np.uint16)
    sparse_operator.slice_columns()(pattern.indptr, pattern.indices, row_starts, lanes, columns, masks)
    return SpmvSlicePlan(
        inputs, pattern.indptr, lanes, row_starts, np.append(np.arange(0, slices, window), slices), slice_starts,
        columns, masks, sum_index,
    )  # fmt: skip


def plan_lookup(pattern: Pattern, target: Target) -> SpmvLookupPlan | None:
    """Tables of SpMV by lookup; None where they would be too large."""
    rows, inputs = pattern.shape
    chunks = max(1, -(-inputs // LOOKUP_CHUNK))
    row, chunk = pattern.rows(), pattern.indices // LOOKUP_CHUNK
    tall = -(-max(1, rows) // LOOKUP_LANES) * LOOKUP_LANES
    counts = np.bincount(row * chunks + chunk, minlength=tall * chunks).reshape(tall, chunks)
    group_starts = _slice_groups(pattern, target, chunks)
    sorted_index = np.empty((tall, chunks), np.int64)  # nonzeros of every row in its group and chunk
    first = np.empty((tall, chunks), np.int64)  # index of the first vector of a row's slice
    slice_starts, vector_starts, vector_counts, sum_index, number = [0], [0], [], [], 0
    for begin, end in zip(group_starts[:-1], -(-group_starts[1:] // LOOKUP_LANES) * LOOKUP_LANES, strict=True):
        by_count = np.argsort(counts[begin:end], axis=0, kind="stable")
        index = np.empty_like(by_count)
        np.put_along_axis(index, by_count, np.arange(end - begin)[:, None], axis=0)
        slices = np.take_along_axis(counts[begin:end], by_count, axis=0).T.reshape(chunks, -1, LOOKUP_LANES)
        least, most = slices[:, :, 0], slices[:, :, -1]
        firsts = number + (np.cumsum(most) - most.ravel()).reshape(most.shape)
        sorted_index[begin:end] = index
        first[begin:end] = firsts[np.arange(chunks), index // LOOKUP_LANES]
        vector_counts.append((least + 256 * (most - least)).ravel())
        sum_index.append(index.reshape(-1, LOOKUP_LANES, chunks).transpose(0, 2, 1).ravel())
        number += int(most.sum())
        slice_starts.append(slice_starts[-1] + most.size)
        vector_starts.append(number)
    if number * LOOKUP_LANES >= INDEX_LIMIT:  # a few long rows among short ones
        return None
    within = np.arange(pattern.nnz) - (np.cumsum(counts) - counts.ravel())[row * chunks + chunk]
    order = (first[row, chunk] + within) * LOOKUP_LANES + sorted_index[row, chunk] % LOOKUP_LANES
    columns = np.full(number * LOOKUP_LANES, LOOKUP_EMPTY, np.uint8)
    columns[order] = pattern.indices % LOOKUP_CHUNK
    return SpmvLookupPlan(
        chunks=chunks,
        inputs=inputs,
        group_starts=group_starts,
        slice_starts=np.array(slice_starts, np.int64),
        vector_starts=np.array(vector_starts, np.int64),
        vector_counts=np.concatenate([np.zeros(0, np.int64), *vector_counts]).astype(np.uint16),
        columns=columns,
        sum_index=np.concatenate([np.zeros(0, np.int64), *sum_index]).astype(np.uint16),
        order=order.astype(np.uint32),
    )


def _slice_groups(pattern: Pattern, target: Target, chunks: int) -> NDArray[np.int64]:
    """Bounds of row groups, in whole slices: sums of a group stay in a near cache, and every worker has groups."""
    h, rows = target.heuristics, pattern.shape[0]
    most = h.lookup_rows(chunks) // LOOKUP_LANES * LOOKUP_LANES
    few = max(-(-rows // most), int(2 * pattern.nnz // h.slice_flops) + 1)
    groups = few if target.threads == 1 else max(few, h.tasks_per_worker * target.threads)
    bounds = split_rows(pattern.indptr, groups)
    bounds[:-1] = (bounds[:-1] + LOOKUP_LANES // 2) // LOOKUP_LANES * LOOKUP_LANES
    bounds = np.unique(np.minimum(bounds, rows))
    if (np.diff(bounds) > 2 * most).any():  # rows with few nonzeros
        bounds = np.unique(np.concatenate([bounds, np.arange(0, rows, most)]))
    return bounds


# ------------------------------------------------------------------------------------------------- launch


def prepare(plan: Plan, target: Target, activation: str | None = None) -> Launch:
    """y (M,) = activation(W @ x (K,) + bias), all contiguous; operands x, y, values (packed by the plan), bias (0 for
    none)."""
    if isinstance(plan, SpmvLookupPlan):
        form, (arguments, kernel, scratch) = "lookup", _lookup_arguments(plan, target)
    elif isinstance(plan, SpmvSlicePlan):
        form, (arguments, kernel, scratch) = "slices", _slice_arguments(plan, target)
    else:
        form, (arguments, kernel, scratch) = f"{plan.column_bits}-bit columns", _row_arguments(plan, activation, target)
    arguments.set(**epilogue(activation, target))
    return Launch(
        kernel, arguments, ("x", "y", "values", "bias"), target.sharing,
        tasks=len(plan.group_starts) - 1, flops=2.0 * plan.nonzeros, scratch=scratch,
        label=("spmv", f"{plan.rows}x{plan.inputs}", f"nnz {plan.nonzeros}", "", form, activation),
    )  # fmt: skip


def _lookup_arguments(plan: SpmvLookupPlan, target: Target) -> tuple[Arguments, Any, int]:
    scratch = (plan.widest_group * plan.chunks + 1) * target.vector
    arguments = Arguments(
        spmv.LOOKUP_ARGUMENTS,
        group_starts=plan.group_starts,
        chunks=plan.chunks,
        inputs=plan.inputs,
        slice_starts=plan.slice_starts,
        vector_starts=plan.vector_starts,
        vector_counts=plan.vector_counts,
        columns=plan.columns,
        sum_index=plan.sum_index,
        scratch_stride=scratch,
        scratch_vector=scratch - target.vector,
    )
    return arguments, spmv.lookup_kernel(), scratch


def _slice_arguments(plan: SpmvSlicePlan, target: Target) -> tuple[Arguments, Any, int]:
    scratch = (1 + SLICE_ORDER_ROWS // target.lanes) * target.vector
    arguments = Arguments(
        spmv.SLICE_ARGUMENTS,
        group_starts=plan.group_starts,
        rows=plan.rows,
        slice_starts=plan.slice_starts,
        columns=plan.columns,
        masks=plan.masks,
        sum_index=plan.sum_index,
        scratch_stride=scratch,
    )
    return arguments, spmv.slices_kernel(target.bits, target.lanes), scratch


def _row_arguments(plan: SpmvPlan, activation: str | None, target: Target) -> tuple[Arguments, Any, int]:
    scratch = spmv.scratch_bytes(target.bits, target.lanes)
    arguments = Arguments(
        spmv.ARGUMENTS,
        group_starts=plan.group_starts,
        indptr=plan.indptr,
        columns=plan.columns,
        nonzeros=plan.nonzeros,
        scratch_stride=scratch,
    )
    kernel = spmv.spmv_kernel(target.bits, target.lanes, plan.column_bits)
    return arguments, kernel, 0 if activation in CLAMPS else scratch  # clamps work in registers
