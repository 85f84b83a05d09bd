"""Plans of SpMV whose x is looked up in registers, see `fastsparse_kernels.lookup`: where it pays, and the packing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastsparse.csr import Pattern
from fastsparse_kernels import operators as kernels
from fastsparse_kernels.build import aligned_empty
from fastsparse_kernels.lookup_layout import BITS, CHUNK, LANES, NOWHERE, SHARE, TABLES

from . import policy
from .operator import split_rows

if TYPE_CHECKING:
    from .linear import Machine


@dataclass(frozen=True, eq=False)
class LookupPlan:
    """SpMV by lookup; see the record in `fastsparse_kernels.lookup` for the arrays. `prepared` as in `SpmmPlan`."""

    tables: int
    chunks: int
    inputs: int
    group_starts: NDArray[np.int64]
    vectors: NDArray[np.uint32]  # [groups * chunks + 1]
    sums: NDArray[np.uint16]
    places: NDArray[np.uint8]
    starts: NDArray[np.int64]
    order: NDArray[np.uint32]  # [nnz], where each nonzero's value goes
    prepared: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def nonzeros(self) -> int:
        return len(self.order)

    @property
    def widest_group(self) -> int:
        """Rows of the largest group."""
        return int(np.diff(self.group_starts).max(initial=0))

    def pack(self, values: NDArray[np.floating]) -> NDArray[np.floating]:
        """The values in the order of vectors and lanes, and some more: whole vectors are read."""
        packed = aligned_empty((self.nonzeros + LANES,), values.dtype)
        packed[self.nonzeros :] = 0
        kernels.scatter(BITS)(values, self.order, packed)
        return packed


def lookup_plan(pattern: Pattern, machine: Machine) -> LookupPlan | None:
    """The plan for W, or None where W or the machine is not fit for it."""
    rows, inputs = pattern.shape
    if (machine.bits, machine.lanes) != (BITS, LANES) or not policy.lookup_fits(rows, inputs, pattern.nnz):
        return None
    row = pattern.rows()
    counts = _counts(row, pattern, rows, inputs, TABLES[-1])
    vectors = {tables: int(_shares(_merged(counts, tables)).sum()) for tables in TABLES}
    chosen = policy.lookup_pays(rows, pattern.nnz, vectors)
    return _packed(pattern, row, _merged(counts, chosen), chosen, machine.workers) if chosen else None


def _counts(row: NDArray[Any], pattern: Pattern, rows: int, inputs: int, most: int) -> NDArray[np.int64]:
    """Nonzeros by row and CHUNK columns; whole tiles of rows, and a multiple of `most` chunks."""
    tall, wide = -(-max(1, rows) // LANES) * LANES, -(-max(1, inputs) // (CHUNK * most)) * most
    key = row * wide + pattern.indices // CHUNK
    return np.bincount(key, minlength=tall * wide).reshape(tall, wide)


def _merged(counts: NDArray[np.int64], tables: int) -> NDArray[np.int64]:
    """The same for chunks of `tables` times as many columns."""
    return counts.reshape(len(counts), -1, tables).sum(axis=2)


def _shares(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Vectors [tiles * SHARE, chunks] that the rows r and r + SHARE of a tile need for each chunk."""
    shares = -(-counts // SHARE)
    return shares.reshape(-1, 2, SHARE, counts.shape[1]).max(axis=1).reshape(-1, counts.shape[1])


def _packed(pattern: Pattern, row: NDArray[Any], counts: NDArray[np.int64], tables: int, workers: int) -> LookupPlan:
    """Vectors are in the order of groups, chunks, how many there are before for the same rows, and rows.

    So the next vector is added to other sums, as a rule: nobody waits for what was just stored.
    """
    chunks = counts.shape[1]
    group_starts = _tile_groups(pattern, workers)
    shares = _shares(counts)
    first = np.zeros((int(shares.max(initial=0)), *shares.shape), np.int64)  # number of the share-th vector of a pair
    vectors, sums, number = [np.zeros(1, np.int64)], [], 0
    for begin, end in zip(group_starts[:-1] // 2, -(-group_starts[1:] // LANES) * SHARE, strict=True):
        there = np.arange(len(first))[:, None] < shares[begin:end].T[:, None]
        pair = np.nonzero(there)[2]  # of [chunk, share, pair]
        numbers = np.zeros(there.shape, np.int64)
        numbers[there] = number + np.arange(len(pair))
        first[:, begin:end] = numbers.transpose(1, 2, 0)
        vectors.append(number + np.cumsum(there.sum(axis=(1, 2))))
        sums.append(pair)
        number += len(pair)
    before = np.cumsum(counts.ravel()) - counts.ravel()  # nonzeros in front of those of a row and chunk
    column = pattern.indices // (CHUNK * tables)
    within = np.arange(pattern.nnz) - before[row * chunks + column]
    pair, half = row // LANES * SHARE + row % SHARE, row // SHARE % 2
    lanes = first[within // SHARE, pair, column] * LANES + half * SHARE + within % SHARE
    places = np.full(number * LANES, NOWHERE, np.uint8)
    places[lanes] = pattern.indices % (CHUNK * tables)
    number_of = np.cumsum(places != NOWHERE)
    first_vectors = np.concatenate(vectors)[:-1:chunks] if chunks else np.zeros(0, np.int64)
    return LookupPlan(
        tables=tables,
        chunks=chunks,
        inputs=pattern.shape[1],
        group_starts=group_starts,
        vectors=np.concatenate(vectors).astype(np.uint32),
        sums=np.concatenate(sums).astype(np.uint16),
        places=places,
        starts=np.concatenate([np.zeros(1, np.int64), number_of])[first_vectors * LANES],
        order=(number_of[lanes] - 1).astype(np.uint32),
    )


def _tile_groups(pattern: Pattern, workers: int) -> NDArray[np.int64]:
    """Bounds of row groups of whole tiles: their sums fit the L1 cache, and every worker gets some."""
    rows = pattern.shape[0]
    few = -(-rows // policy.LOOKUP_ROWS)
    groups = few if workers == 1 else max(few, policy.TASKS_PER_WORKER * workers)
    bounds = split_rows(pattern.indptr, groups)
    bounds[:-1] = (bounds[:-1] + LANES // 2) // LANES * LANES
    bounds = np.unique(np.minimum(bounds, rows))
    tall = np.diff(bounds) > policy.MOST_LOOKUP_ROWS  # of rows with few nonzeros
    if tall.any():
        bounds = np.unique(np.concatenate([bounds, np.arange(0, rows, policy.LOOKUP_ROWS)]))
    return bounds
