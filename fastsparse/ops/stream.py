"""Streaming: SpMM, SpMV and SDDMM of matrices that are not layers, such as graphs, grids, permutations and text.

The kernels read the pattern's own arrays and the matrix's own values, and X and Y where they are. A plan holds the
bounds of tasks and nothing else, except where rows are sorted by length (`by_length`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastsparse.csr import CSR, Pattern
from fastsparse.ops.activations import CLAMPS, epilogue
from fastsparse.ops.heuristics import Heuristics
from fastsparse.ops.sparse_operator import INDEX_LIMIT, PackedValues, transposed_values
from fastsparse.ops.target import Target
from fastsparse.runtime.buffers import KEEP_BYTES
from fastsparse.runtime.launch import Arguments, Launch
from fastsparse_kernels import sparse_operator, stream
from fastsparse_kernels.compiler import aligned_empty
from fastsparse_kernels.sparse_operator import QUARTERS, WHOLE

Array = NDArray[Any]

CACHE_LINE = 64
_SAMPLED_ROWS = 1024


def pays(pattern: Pattern, columns: int, target: Target, x_row_stride: int = 0) -> bool:
    """Whether a product with so many columns is streamed: see `Heuristics.streams`, and where panels cannot hold it."""
    rows, inputs = pattern.shape
    if rows == 0 or columns == 0 or rows >= INDEX_LIMIT:
        return False
    if max(pattern.nnz, inputs * max(x_row_stride, columns * target.size)) >= INDEX_LIMIT:
        return True  # indices of nonzeros and offsets in panels have 32 bits
    return target.heuristics.streams(rows, inputs, pattern.nnz, columns, target.size, x_row_stride)


def copies(pattern: Pattern, X: Array, target: Target) -> bool:
    """Whether the product with row-major X, whose rows are as long as a cache line but lie across two, is streamed from
    a copy: where there are nonzeros enough for it."""
    enough = pattern.nnz > target.heuristics.stream_copy_uses * target.threads * len(X)
    return enough and X.nbytes <= KEEP_BYTES and pays(pattern, X.shape[1], target, X.strides[0])


# ------------------------------------------------------------------------------------------------- plans


class Tiling(NamedTuple):
    """Columns of X and Y in tiles of `width` vectors of `lanes` numbers; offsets in bytes, as in the kernel."""

    lanes: int
    width: int
    tiles: int
    stride: int
    last_tile: int
    last_vector: int
    last_tile_vector: int


def tiling(columns: int, target: Target) -> Tiling:
    """Tiles of equal width that cover all columns; the last one, and its last vector, overlap what is before."""
    lanes, size = target.lanes, target.size
    while lanes > columns:
        lanes //= 2
    vectors = -(-columns // lanes)
    tiles = -(-vectors // target.heuristics.stream_tile)
    width = -(-vectors // tiles)
    before, begin = (width - 1) * lanes, (tiles - 1) * width * lanes
    rest = columns - begin
    if rest <= before:  # fewer vectors than in a whole tile: all of it moves back
        begin, rest = columns - width * lanes, width * lanes
    return Tiling(lanes, width, tiles, width * lanes * size, begin * size, before * size, (rest - lanes) * size)


@dataclass(frozen=True, eq=False)
class StreamPlan:
    """SpMM by streaming; see the arguments in `fastsparse_kernels.stream`.

    indptr, indices : the pattern's own, unless rows are sorted; not the pattern, which holds the plan
    bounds : int64 [chunks, 4]
    distance : prefetch distance of rows of X in nonzeros; 0: no prefetch
    nontemporal : WHOLE, QUARTERS or 0, ordinary stores
    order, permutation : of sorted rows, each one's row in W, and each nonzero's index in its data
    """

    indptr: NDArray[np.int64]
    indices: NDArray[np.integer]
    inputs: int
    columns: int
    tiling: Tiling
    bounds: NDArray[np.int64]
    distance: int
    nontemporal: int
    order: NDArray[np.uint32] | None = None
    permutation: NDArray[np.uint32] | None = None

    def values(self, W: CSR) -> PackedValues:
        """W's values in the order the kernel reads them: as they are, unless rows are sorted."""
        if self.permutation is None:
            return PackedValues(W)
        return W.cached(("values", id(self)), PackedValues, W, self.pack)  # which holds the plan, so its id stays

    def pack(self, values: Array, out: Array | None = None) -> Array:
        """The values of sorted rows."""
        assert self.permutation is not None
        packed = aligned_empty((len(self.indices),), values.dtype) if out is None else out
        sparse_operator.gather(values.itemsize * 8)(values, self.permutation, packed)
        return packed

    def transposed_values(self, W: CSR) -> PackedValues:
        """W.T's values in that order."""
        return transposed_values(W, None if self.permutation is None else self)


def plan_rows(
    pattern: Pattern, columns: int, target: Target, y_alignment: int = 0, batches: int = 1, sort: bool = True
) -> StreamPlan:
    """Plan of row-major X (K, columns) -> row-major Y (M, columns), `batches` times.

    y_alignment : see `row_alignment`
    sort : whether rows are sorted by length where that pays
    """
    tiles, h = tiling(columns, target), target.heuristics
    vector = tiles.lanes * target.size
    nontemporal = 0
    if y_alignment > 0 and vector >= 16:
        nontemporal = WHOLE if y_alignment % vector == 0 else QUARTERS if y_alignment % 16 == 0 else 0
    x_bytes = batches * pattern.shape[1] * columns * target.size
    row_bytes = columns * target.size
    distance = h.stream_prefetch_distance(x_bytes, row_bytes, tiles.width * vector, column_reach(pattern))
    bounds = chunk_bounds(pattern.indptr, tiles.tiles, h, target.threads)
    plan = StreamPlan(pattern.indptr, pattern.indices, pattern.shape[1], columns, tiles, bounds, distance, nontemporal)
    if sort and h.stream_by_length(pattern.shape[0], pattern.nnz, columns * target.size):
        return by_length(plan, h)
    return plan


def by_length(plan: StreamPlan, h: Heuristics) -> StreamPlan:
    """The plan with the rows of every chunk sorted by length; itself where most rows are as long as the one before."""
    lengths, nonzeros = np.diff(plan.indptr), len(plan.indices)
    uneven = np.count_nonzero(lengths[1:] != lengths[:-1]) > h.stream_uneven_rows * len(lengths)
    if not uneven or plan.indices.itemsize != 4 or nonzeros >= INDEX_LIMIT:
        return plan
    order, starts = np.empty(len(lengths), np.uint32), np.empty_like(plan.indptr)
    indices, permutation = np.empty(nonzeros, np.uint32), np.empty(nonzeros, np.uint32)
    buckets = np.empty(int(lengths.max()) + 2, np.int64)
    columns = plan.indices.view(np.uint32)
    sparse_operator.order_rows()(plan.indptr, columns, plan.bounds, buckets, order, starts, indices, permutation)
    return replace(plan, indptr=starts, indices=indices, nontemporal=0, order=order, permutation=permutation)


def row_alignment(y: int, row_bytes: int, y_bytes: int, target: Target) -> int:
    """Bytes to a multiple of which every row of Y at address y is aligned, a vector's at most; 0 of a Y that stays in a
    cache, which gets ordinary stores."""
    if not target.heuristics.leaves_cache(y_bytes):
        return 0
    multiples = y | row_bytes | target.vector
    return multiples & -multiples


def chunk_bounds(indptr: NDArray[np.int64], tiles: int, h: Heuristics, threads: int) -> NDArray[np.int64]:
    """First and last row, first and last tile of every chunk, int64 [chunks, 4], of about equal nonzeros and rows.

    A row that is more than a chunk has one for each tile.
    """
    cuts, most = _row_cuts(indptr, h, threads)
    first, last = cuts[:-1], cuts[1:]
    long = (indptr[last] - indptr[first] > most) & (last - first == 1)
    repeats = np.where(long, tiles, 1)
    starts = np.cumsum(repeats) - repeats
    tile = np.arange(repeats.sum()) - np.repeat(starts, repeats)
    alone = np.repeat(long, repeats)
    bounds = np.empty((len(tile), 4), np.int64)
    bounds[:, 0], bounds[:, 1] = np.repeat(first, repeats), np.repeat(last, repeats)
    bounds[:, 2], bounds[:, 3] = np.where(alone, tile, 0), np.where(alone, tile + 1, tiles)
    return bounds


def _row_cuts(indptr: NDArray[np.int64], h: Heuristics, threads: int) -> tuple[NDArray[np.int64], int]:
    """Bounds of the rows of chunks, int64 [chunks + 1], and most nonzeros of a chunk of more rows than one."""
    rows = len(indptr) - 1
    if rows == 0:
        return np.zeros(1, np.int64), h.stream_chunk
    total = int(indptr[-1]) + rows
    most = h.stream_chunk_work(total, threads)
    targets = np.arange(most, total, most)
    cuts = np.searchsorted(indptr + np.arange(rows + 1), targets)  # the first row that begins there or behind
    long = cuts[indptr[cuts] - indptr[cuts - 1] > most]
    return np.unique(np.concatenate([[0], cuts, long - 1, [rows]])), most


def column_reach(pattern: Pattern) -> float:
    """Columns from the first to the last nonzero of two neighbouring rows, on average over some pairs."""
    rows, indptr, indices = pattern.shape[0], pattern.indptr, pattern.indices
    first = np.arange(0, rows - 1, max(1, rows // _SAMPLED_ROWS))
    first = first[(indptr[first] < indptr[first + 1]) & (indptr[first + 1] < indptr[first + 2])]
    if not len(first):
        return float(pattern.shape[1])
    left = np.minimum(indices[indptr[first]], indices[indptr[first + 1]])
    right = np.maximum(indices[indptr[first + 1] - 1], indices[indptr[first + 2] - 1])
    return float((right - left + 1).mean())


def work(indptr: NDArray[np.int64], columns: int, h: Heuristics) -> float:
    """Floating-point operations that would take as long as streaming so many columns of X."""
    return 2.0 * (int(indptr[-1]) + len(indptr) - 1) * max(h.stream_least_columns, columns)


# ------------------------------------------------------------------------------------------------- launch


def prepare(
    plan: StreamPlan, target: Target, *, x_row_stride: int, y_row_stride: int, batches: int = 1,
    x_batch_stride: int = 0, y_batch_stride: int = 0, activation: str | None = None, label: str = "spmm",
) -> Launch:  # fmt: skip
    """SpMM of row-major arrays, in each of `batches` batches; strides in bytes.

    Operands x, y, values, bias: values are W's own; bias is 0 for none.
    """
    tiles, nonzeros = plan.tiling, len(plan.indices)
    vectors = scratch = 0
    if activation not in CLAMPS:
        vectors = -(-tiles.width * tiles.lanes // target.lanes)
        scratch = -(-vectors * target.vector // CACHE_LINE) * CACHE_LINE
    flops = work(plan.indptr, plan.columns, target.heuristics) * batches
    arguments = Arguments(
        stream.SPMM,
        plan,
        tiles,
        chunks=len(plan.bounds),
        nonzeros=nonzeros,
        x_batch_stride=x_batch_stride,
        x_row_stride=x_row_stride,
        y_batch_stride=y_batch_stride,
        y_row_stride=y_row_stride,
        tile_stride=tiles.stride,
        activation_vectors=vectors,
        **epilogue(activation, target),
    )
    kernel = stream.spmm_kernel(target.bits, tiles.lanes, tiles.width, plan.indices.itemsize * 8)
    return Launch(
        kernel, arguments, ("x", "y", "values", "bias"), target.loop,
        tasks=len(plan.bounds) * batches,
        flops=flops, scratch=scratch,
        label=(
            label, f"{len(plan.indptr) - 1}x{plan.inputs} by {plan.columns * batches}", f"nnz {nonzeros}", "row-major",
            f"streamed tile {tiles.width} tiles {tiles.tiles} chunks {len(plan.bounds)}", activation,
        ),
    )  # fmt: skip


def prepare_sddmm(
    pattern: Pattern, target: Target, columns: int, x_row_stride: int, y_row_stride: int, *, batches: int = 1,
    x_batch_stride: int = 0, y_batch_stride: int = 0,
) -> Launch:  # fmt: skip
    """gradients (nnz,) += y x^T at the pattern's nonzeros, for row-major x (K, columns) and y (M, columns), summed over
    `batches` batches; strides in bytes.

    Operands x, y, gradients, in the order of the CSR.
    """
    h = target.heuristics
    bounds, _ = pattern.cached(("stream rows", target), _row_cuts, pattern.indptr, h, target.threads)
    row_bytes, flops = columns * target.size, work(pattern.indptr, columns, h) * batches
    arguments = Arguments(
        stream.SDDMM,
        bounds=bounds,
        indptr=pattern.indptr,
        indices=pattern.indices,
        batches=batches,
        columns=columns,
        x_batch_stride=x_batch_stride,
        x_row_stride=x_row_stride,
        y_batch_stride=y_batch_stride,
        y_row_stride=y_row_stride,
        distance=h.stream_prefetch_distance(
            pattern.shape[1] * row_bytes * batches, row_bytes, row_bytes, column_reach(pattern)
        ),
    )
    kernel = stream.sddmm_kernel(target.bits, target.lanes, pattern.indices.itemsize * 8)
    return Launch(
        kernel, arguments, ("x", "y", "gradients"), target.loop,
        tasks=len(bounds) - 1,
        flops=flops,
        label=(
            "sddmm", f"{pattern.shape[0]}x{pattern.shape[1]} by {columns * batches}", f"nnz {pattern.nnz}", "row-major",
            "streamed",
        ),
    )  # fmt: skip
