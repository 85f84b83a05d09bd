"""Plans of SpMV whose x is looked up in registers, see `fastsparse_kernels.spmv`: where it pays, and the packing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastsparse.csr import Pattern
from fastsparse_kernels import sparse_operator as kernels
from fastsparse_kernels.compiler import aligned_empty
from fastsparse_kernels.sparse_operator import LOOKUP_BITS, LOOKUP_CHUNK, LOOKUP_EMPTY, LOOKUP_LANES

from . import policy
from .operator import INDEX_LIMIT, split_rows

if TYPE_CHECKING:
    from .linear import Machine


@dataclass(frozen=True, eq=False)
class LookupPlan:
    """SpMV by lookup; see the record in `fastsparse_kernels.spmv` for the arrays. `prepared` as in `SpmmPlan`."""

    chunks: int
    inputs: int
    group_starts: NDArray[np.int64]
    slice_starts: NDArray[np.int64]
    vector_starts: NDArray[np.int64]
    vectors: NDArray[np.uint16]
    places: NDArray[np.uint8]
    positions: NDArray[np.uint16]
    order: NDArray[np.uint32]  # [nnz], where each nonzero's value goes
    prepared: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def nonzeros(self) -> int:
        return len(self.order)

    @property
    def widest_group(self) -> int:
        """Slices of the largest group."""
        return int(-(-np.diff(self.group_starts).max(initial=0) // LOOKUP_LANES))

    def pack(self, values: NDArray[np.floating]) -> NDArray[np.floating]:
        """The values in the order of vectors and lanes, 0 in empty ones."""
        packed = aligned_empty((len(self.places),), values.dtype)
        packed[...] = 0
        kernels.scatter(LOOKUP_BITS)(values, self.order, packed)
        return packed


def lookup_plan(pattern: Pattern, machine: Machine) -> LookupPlan | None:
    """The plan for W, or None where W or the machine is not fit for it."""
    rows, inputs = pattern.shape
    if (machine.bits, machine.lanes) != (LOOKUP_BITS, LOOKUP_LANES) or not policy.lookup_fits(
        rows, inputs, pattern.nnz, LOOKUP_CHUNK
    ):
        return None
    return _packed(pattern, machine.workers)


def _packed(pattern: Pattern, workers: int) -> LookupPlan | None:
    rows, inputs = pattern.shape
    chunks = max(1, -(-inputs // LOOKUP_CHUNK))
    row, chunk = pattern.rows(), pattern.indices // LOOKUP_CHUNK
    tall = -(-max(1, rows) // LOOKUP_LANES) * LOOKUP_LANES
    counts = np.bincount(row * chunks + chunk, minlength=tall * chunks).reshape(tall, chunks)
    group_starts = _slice_groups(pattern, workers, chunks)
    sorted_at = np.empty((tall, chunks), np.int64)  # of every row, in its group and chunk
    first = np.empty((tall, chunks), np.int64)  # number of the first vector of a row's slice
    slice_starts, vector_starts, vectors, positions, number = [0], [0], [], [], 0
    for begin, end in zip(group_starts[:-1], -(-group_starts[1:] // LOOKUP_LANES) * LOOKUP_LANES, strict=True):
        by_count = np.argsort(counts[begin:end], axis=0, kind="stable")
        at = np.empty_like(by_count)
        np.put_along_axis(at, by_count, np.arange(end - begin)[:, None], axis=0)
        slices = np.take_along_axis(counts[begin:end], by_count, axis=0).T.reshape(chunks, -1, LOOKUP_LANES)
        least, most = slices[:, :, 0], slices[:, :, -1]
        firsts = number + (np.cumsum(most) - most.ravel()).reshape(most.shape)
        sorted_at[begin:end] = at
        first[begin:end] = firsts[np.arange(chunks), at // LOOKUP_LANES]
        vectors.append((least + 256 * (most - least)).ravel())
        positions.append(at.reshape(-1, LOOKUP_LANES, chunks).transpose(0, 2, 1).ravel())
        number += int(most.sum())
        slice_starts.append(slice_starts[-1] + most.size)
        vector_starts.append(number)
    if number * LOOKUP_LANES >= INDEX_LIMIT:  # few long rows among short ones
        return None
    within = np.arange(pattern.nnz) - (np.cumsum(counts) - counts.ravel())[row * chunks + chunk]
    order = (first[row, chunk] + within) * LOOKUP_LANES + sorted_at[row, chunk] % LOOKUP_LANES
    places = np.full(number * LOOKUP_LANES, LOOKUP_EMPTY, np.uint8)
    places[order] = pattern.indices % LOOKUP_CHUNK
    return LookupPlan(
        chunks=chunks,
        inputs=inputs,
        group_starts=group_starts,
        slice_starts=np.array(slice_starts, np.int64),
        vector_starts=np.array(vector_starts, np.int64),
        vectors=np.concatenate([np.zeros(0, np.int64), *vectors]).astype(np.uint16),
        places=places,
        positions=np.concatenate([np.zeros(0, np.int64), *positions]).astype(np.uint16),
        order=order.astype(np.uint32),
    )


def _slice_groups(pattern: Pattern, workers: int, chunks: int) -> NDArray[np.int64]:
    """Bounds of row groups of whole slices: their sums stay in a near cache, and every worker gets some."""
    rows, most = pattern.shape[0], policy.lookup_rows(chunks) // LOOKUP_LANES * LOOKUP_LANES
    few = max(-(-rows // most), 2 * pattern.nnz // policy.SLICE_FLOPS + 1)
    groups = few if workers == 1 else max(few, policy.TASKS_PER_WORKER * workers)
    bounds = split_rows(pattern.indptr, groups)
    bounds[:-1] = (bounds[:-1] + LOOKUP_LANES // 2) // LOOKUP_LANES * LOOKUP_LANES
    bounds = np.unique(np.minimum(bounds, rows))
    if (np.diff(bounds) > 2 * most).any():  # rows with few nonzeros
        bounds = np.unique(np.concatenate([bounds, np.arange(0, rows, most)]))
    return bounds
