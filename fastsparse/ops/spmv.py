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

from fastsparse.csr import CSR, INT32_MAX, Pattern
from fastsparse.ops import stream
from fastsparse.ops.activations import CLAMPS, epilogue
from fastsparse.ops.sparse_operator import INDEX_LIMIT, PackedValues, split_rows
from fastsparse.ops.target import Target, target_for
from fastsparse.runtime.buffers import address, optional_address
from fastsparse.runtime.launch import Arguments, Launch
from fastsparse.runtime.memo import once
from fastsparse_kernels import sparse_operator, spmv
from fastsparse_kernels.compiler import aligned_empty
from fastsparse_kernels.sparse_operator import (
    LOOKUP_BITS,
    LOOKUP_CHUNK,
    LOOKUP_EMPTY,
    LOOKUP_LANES,
    LOOKUP_ROWS,
    SLICE_ORDER_ROWS,
    SPMV_ACCUMULATORS,
)

Array = NDArray[Any]

_SAMPLE = 64  # values that show whether others are worth a look for bfloat16 numbers


# ------------------------------------------------------------------------------------------------- entry


def multiply(
    W: CSR, x: Array, y: Array, bias: Array | None, activation: str | None, target: Target | None = None
) -> None:
    """y = activation(W @ x + bias) for one x; both may have further dimensions of size 1, y is contiguous."""
    target = target or target_for(W.dtype)
    if not x.flags.c_contiguous:
        x = np.ascontiguousarray(x)
    launch(W, activation, target).run(address(x), address(y), optional_address(bias))


def launch(W: CSR, activation: str | None, target: Target, held: bool = False) -> Launch:
    """The product, on addresses of x, y and bias.

    held : by the caller for many calls, so that what takes the time of several to build pays from the first one
    """
    return W.kept(_packed if held else _prepared, activation, target)


def _prepared(W: CSR, activation: str | None, target: Target) -> Launch:
    calls: list[bool] = W.pattern.cached(("spmv calls", target), list)
    early = len(calls) < target.heuristics.streamed_calls and W.shape[1] <= INDEX_LIMIT
    if early and not takes_lookup(W.pattern, target) and takes_slices(W.pattern, target):
        calls.append(True)
        spmv.slices_kernel.expect(target.bits, target.lanes)
        # The same sums. Slices take half the time, and that of about five streamed products to build.
        return once(_streamed(W, activation, target))
    return _packed(W, activation, target)


def _packed(W: CSR, activation: str | None, target: Target) -> Launch:
    if W.shape[1] > INDEX_LIMIT:  # columns of plans have 32 bits
        return _streamed(W, activation, target)
    plan = plan_spmv(W.pattern, target)
    launch = W.pattern.cached(("spmv launch", activation, target), prepare, plan, target, activation)
    values = _LookupValues if isinstance(plan, SpmvLookupPlan) else PackedValues
    return values(W, plan.pack).fixed(launch)


def _streamed(W: CSR, activation: str | None, target: Target) -> Launch:
    return PackedValues(W).fixed(W.pattern.kept(_stream, activation, target))


def _stream(pattern: Pattern, activation: str | None, target: Target) -> Launch:
    rows = stream.plan_rows(pattern, 1, target, sort=False)
    return stream.prepare(
        rows, target, x_row_stride=target.size, y_row_stride=target.size, activation=activation, label="spmv"
    )


# ------------------------------------------------------------------------------------------------- plans


@dataclass(frozen=True, eq=False)
class _PlanOfRows:
    """A plan with the row starts of its pattern."""

    inputs: int
    indptr: NDArray[np.int64]

    @property
    def rows(self) -> int:
        return len(self.indptr) - 1

    @property
    def nonzeros(self) -> int:
        return int(self.indptr[-1])


@dataclass(frozen=True, eq=False)
class SpmvPlan(_PlanOfRows):
    """SpMV by rows: row groups of equal nonzeros, column indices of 16 bits where they fit."""

    group_starts: NDArray[np.int64]
    columns: NDArray[Any]  # uint16 or uint32 [nnz + SPMV_ACCUMULATORS], 0 after the nonzeros

    @property
    def column_bits(self) -> int:
        return self.columns.dtype.itemsize * 8

    def pack(self, values: Array, out: Array | None = None) -> Array:
        """The values in CSR order."""
        return values


@dataclass(frozen=True, eq=False)
class SpmvSlicePlan(_PlanOfRows):
    """SpMV by slices; see the arguments in `fastsparse_kernels.spmv` for the arrays."""

    lanes: int
    group_starts: NDArray[np.int64]
    slice_starts: NDArray[np.int64]
    column_starts: NDArray[np.int64]
    columns: NDArray[np.uint32]
    masks: NDArray[np.uint16]
    sum_index: NDArray[np.uint16]  # empty: rows have their own order

    def pack(self, values: Array, out: Array | None = None) -> Array:
        """The values in the order of vectors and lanes, 0 in empty ones."""
        packed = aligned_empty((len(self.masks) * self.lanes,), values.dtype) if out is None else out
        if out is None:
            packed[...] = 0
        write = sparse_operator.slice_values(values.itemsize * 8)
        write(self.indptr, values, self.sum_index, self.lanes, self.slice_starts, packed)
        return packed


@dataclass(frozen=True, eq=False)
class SpmvLookupPlan:
    """SpMV by lookup; see the arguments in `fastsparse_kernels.spmv` for the arrays."""

    chunks: int
    inputs: int
    group_starts: NDArray[np.int64]
    slice_starts: NDArray[np.int64]
    step_starts: NDArray[np.int64]
    step_counts: NDArray[np.uint8]
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
        return int(-(-np.diff(self.group_starts).max(initial=0) // LOOKUP_ROWS))

    def pack(self, values: Array, out: Array | None = None) -> Array:
        """The values in the order of vectors and lanes, 0 in empty ones: in 16 bits (uint16) where all of them are
        bfloat16 numbers, or in float32.

        out : array to write to, of an earlier call; another one is returned where it has the other type
        """
        bits = values.view(np.uint32)
        if not (bits[:_SAMPLE] & 0xFFFF).any():
            packed = self._zeros(np.uint16, out)
            if sparse_operator.scatter_bfloat16()(bits, self.order, packed) == len(bits):
                return packed
        packed = self._zeros(np.float32, out)
        sparse_operator.scatter(LOOKUP_BITS)(values, self.order, packed)
        return packed

    def _zeros(self, dtype: type[np.generic], out: Array | None) -> Array:
        if out is not None and out.dtype == dtype:
            return out
        zeros = aligned_empty((len(self.columns),), dtype)
        zeros[...] = 0
        return zeros


Plan: TypeAlias = SpmvPlan | SpmvSlicePlan | SpmvLookupPlan


def plan_spmv(pattern: Pattern, target: Target) -> Plan:
    """Plan of W @ x for one column, kept with the pattern.

    Raises
    ------
    ValueError
        When W has more than 2**32 columns: indices are 32-bit.
    """
    return pattern.kept(_plan, target)


def takes_lookup(pattern: Pattern, target: Target) -> bool:
    """Whether the target has the lookup and W fills its tables well enough."""
    has_lookup = (target.bits, target.lanes) == (LOOKUP_BITS, LOOKUP_LANES) and pattern.shape[1] <= INT32_MAX
    return has_lookup and target.heuristics.spmv_by_lookup(*pattern.shape, pattern.nnz, LOOKUP_CHUNK, LOOKUP_ROWS)


def _plan(pattern: Pattern, target: Target) -> Plan:
    h = target.heuristics
    if pattern.shape[1] > INDEX_LIMIT:
        raise ValueError(f"W has {pattern.shape[1]} columns, expected at most {INDEX_LIMIT}")
    if takes_lookup(pattern, target):
        by_lookup = plan_lookup(pattern, target)
        if by_lookup is not None:
            return by_lookup
    if takes_slices(pattern, target):
        return plan_slices(pattern, target)
    slices = int(2 * pattern.nnz // h.slice_flops) + 1
    groups = max(slices, 1 if target.threads == 1 else h.tasks_per_worker * target.threads)
    return SpmvPlan(pattern.shape[1], pattern.indptr, split_rows(pattern.indptr, groups), pattern.kept(_columns))


def _columns(pattern: Pattern) -> NDArray[Any]:
    columns = np.zeros(pattern.nnz + SPMV_ACCUMULATORS, np.uint16 if pattern.shape[1] <= 2**16 else np.uint32)
    columns[: pattern.nnz] = pattern.indices
    return columns


def takes_slices(pattern: Pattern, target: Target) -> bool:
    """Whether rows are short, and slices have few empty lanes: a few long rows among short ones would leave many."""
    h = target.heuristics
    if pattern.indices.itemsize != 4 or not h.spmv_by_slices(pattern.shape[0], pattern.nnz):
        return False
    starts, _ = pattern.kept(_slices, target)
    return bool(starts[-1] * target.lanes <= h.slice_room * pattern.nnz)


def _slices(pattern: Pattern, target: Target) -> tuple[NDArray[np.int64], NDArray[np.uint16]]:
    """Vectors before each slice of rows in their own order, or sorted by length where that saves vectors."""
    h, lanes, indptr = target.heuristics, target.lanes, pattern.indptr
    slices = -(-pattern.shape[0] // lanes)
    sparse_operator.slice_columns.expect()  # compiled while the first one is
    starts, sum_index = np.empty(slices + 1, np.int64), np.empty(0, np.uint16)
    sparse_operator.slice_starts()(indptr, lanes, np.empty(0, np.int64), sum_index, starts)
    if starts[-1] * lanes > h.slice_filling * pattern.nnz:
        longest = int(np.diff(starts).max(initial=0))
        sum_index = np.empty(slices * lanes, np.uint16)
        sparse_operator.slice_starts()(indptr, lanes, np.empty(longest + 1, np.int64), sum_index, starts)
    return starts, sum_index


def plan_slices(pattern: Pattern, target: Target) -> SpmvSlicePlan:
    """Slices of rows, whatever `takes_slices` says."""
    lanes, indptr, (starts, sum_index) = target.lanes, pattern.indptr, pattern.kept(_slices, target)
    slices, window, vectors = len(starts) - 1, SLICE_ORDER_ROWS // target.lanes, int(starts[-1])
    column_starts, masks = np.empty(slices + 1, np.int64), np.zeros(vectors, np.uint16)
    columns = np.zeros(vectors * lanes, np.uint32)
    write = sparse_operator.slice_columns()
    count = write(indptr, pattern.indices.view(np.uint32), sum_index, lanes, starts, column_starts, columns, masks)
    if count < len(columns) // 2:
        columns = columns[:count].copy()
    group_starts = np.append(np.arange(0, slices, window), slices)
    inputs = pattern.shape[1]
    return SpmvSlicePlan(inputs, indptr, lanes, group_starts, starts, column_starts, columns, masks, sum_index)


def plan_lookup(pattern: Pattern, target: Target) -> SpmvLookupPlan | None:
    """Tables of SpMV by lookup; None where they would be too large."""
    indptr, indices, inputs = pattern.indptr, pattern.indices.view(np.uint32), pattern.shape[1]
    sparse_operator.lookup_columns.expect()  # compiled while the first one is
    sparse_operator.scatter.expect(LOOKUP_BITS)
    spmv.lookup_kernel.expect(LOOKUP_BITS, LOOKUP_LANES, LOOKUP_BITS)
    chunks = max(1, -(-inputs // LOOKUP_CHUNK))
    group_starts = _slice_groups(pattern, target, chunks)
    slices = -(-np.diff(group_starts) // LOOKUP_ROWS)
    counts = np.empty((chunks + 1, int(slices.max(initial=0)) * LOOKUP_ROWS), np.uint8)
    total = int(slices.sum()) * chunks
    sum_index, step_counts = np.empty(total * LOOKUP_ROWS, np.uint16), np.empty(total, np.uint8)
    first_steps, buckets = np.empty(total, np.int64), np.empty(LOOKUP_CHUNK + 2, np.int64)
    slice_starts, step_starts = np.empty_like(group_starts), np.empty_like(group_starts)
    sparse_operator.lookup_slices()(
        indptr, indices, group_starts, counts, buckets, sum_index, step_counts, first_steps, slice_starts, step_starts
    )
    size = int(step_starts[-1]) * LOOKUP_ROWS
    if size >= INDEX_LIMIT:  # a few long rows among short ones
        return None
    columns, order = aligned_empty((size,), np.uint8), np.empty(pattern.nnz, np.uint32)
    columns[...] = LOOKUP_EMPTY
    sparse_operator.lookup_columns()(
        indptr, indices, group_starts, chunks, sum_index, first_steps, slice_starts, columns, order
    )
    return SpmvLookupPlan(
        chunks, inputs, group_starts, slice_starts, step_starts, step_counts, columns, sum_index, order
    )


def _slice_groups(pattern: Pattern, target: Target, chunks: int) -> NDArray[np.int64]:
    """Bounds of row groups, in whole slices: sums of a group stay in a near cache, and every worker has groups."""
    h, rows = target.heuristics, pattern.shape[0]
    most = h.lookup_rows(chunks) // LOOKUP_ROWS * LOOKUP_ROWS
    few = max(-(-rows // most), int(2 * pattern.nnz // h.slice_flops) + 1)
    groups = few if target.threads == 1 else max(few, h.tasks_per_worker * target.threads)
    bounds = split_rows(pattern.indptr, groups)
    bounds[:-1] = (bounds[:-1] + LOOKUP_ROWS // 2) // LOOKUP_ROWS * LOOKUP_ROWS
    bounds = np.unique(np.minimum(bounds, rows))
    if (np.diff(bounds) > 2 * most).any():  # rows with few nonzeros
        bounds = np.unique(np.concatenate([bounds, np.arange(0, rows, most)]))
    return bounds


# ------------------------------------------------------------------------------------------------- launch


class _LookupValues(PackedValues):
    """Packed values of a lookup, whose kernel follows their type when they change."""

    __slots__ = ()

    def update(self, launch: Launch | None = None) -> None:
        """Pack them again if they have changed, for this launch."""
        before = self.keep
        super().update()
        if launch is not None and self.keep is not before:
            _set_lookup_values(launch, self.keep)

    def fixed(self, launch: Launch) -> Launch:
        """The launch with these values, which it brings up to date before it runs."""
        fixed = super().fixed(launch)
        _set_lookup_values(fixed, self.keep)
        return fixed


def _set_lookup_values(launch: Launch, values: Array) -> None:
    launch.arguments.set(values=values)
    launch.kernel = _lookup_kernel(values.dtype)


def _lookup_kernel(dtype: np.dtype[Any]) -> Any:
    return spmv.lookup_kernel(LOOKUP_BITS, LOOKUP_LANES, dtype.itemsize * 8)


def with_values(launch: Launch, plan: Plan, values: Array) -> Launch:
    """The launch with values that its plan packed."""
    fixed = launch.fixed(values=values)
    if isinstance(plan, SpmvLookupPlan):
        _set_lookup_values(fixed, values)
    return fixed


def prepare(plan: Plan, target: Target, activation: str | None = None) -> Launch:
    """y (M,) = activation(W @ x (K,) + bias), all contiguous; operands x, y, values, bias (0 for none).

    Values are those that the plan packed; those of lookups are set by `with_values`, as their type decides on the
    kernel.
    """
    if isinstance(plan, SpmvLookupPlan):
        form, (arguments, kernel, scratch) = "lookup", _lookup_arguments(plan, target)
    elif isinstance(plan, SpmvSlicePlan):
        form, (arguments, kernel, scratch) = "slices", _slice_arguments(plan, target)
    else:
        form, (arguments, kernel, scratch) = f"{plan.column_bits}-bit columns", _row_arguments(plan, activation, target)
    arguments.set(**epilogue(activation, target))
    return Launch(
        kernel, arguments, ("x", "y", "values", "bias"), target.loop,
        tasks=len(plan.group_starts) - 1, flops=2.0 * plan.nonzeros, scratch=scratch,
        label=("spmv", f"{plan.rows}x{plan.inputs}", f"nnz {plan.nonzeros}", "", form, activation),
    )  # fmt: skip


def _lookup_arguments(plan: SpmvLookupPlan, target: Target) -> tuple[Arguments, Any, int]:
    scratch = plan.widest_group * plan.chunks * LOOKUP_ROWS * target.size + target.vector
    arguments = Arguments(spmv.LOOKUP_ARGUMENTS, plan, scratch_vector=scratch - target.vector)
    return arguments, _lookup_kernel(np.dtype(np.float32)), scratch


def _slice_arguments(plan: SpmvSlicePlan, target: Target) -> tuple[Arguments, Any, int]:
    scratch = (1 + SLICE_ORDER_ROWS // target.lanes) * target.vector
    arguments = Arguments(
        spmv.SLICE_ARGUMENTS,
        plan,
        rows=plan.rows,
        distance=target.heuristics.spmv_prefetch_distance(len(plan.masks) * plan.lanes * target.size),
        sum_index=plan.sum_index if len(plan.sum_index) else None,
    )
    return arguments, spmv.slices_kernel(target.bits, target.lanes), scratch


def _row_arguments(plan: SpmvPlan, activation: str | None, target: Target) -> tuple[Arguments, Any, int]:
    h, scratch = target.heuristics, spmv.scratch_bytes(target.bits, target.lanes)
    arguments = Arguments(
        spmv.ARGUMENTS,
        plan,
        nonzeros=plan.nonzeros,
        distance=h.spmv_prefetch_distance(
            plan.nonzeros * (target.size + plan.columns.itemsize), plan.inputs * target.size
        ),
        x_distance=h.spmv_x_distance(plan.inputs * target.size),
    )
    kernel = spmv.spmv_kernel(target.bits, target.lanes, plan.column_bits)
    return arguments, kernel, 0 if activation in CLAMPS else scratch  # clamps work in registers
