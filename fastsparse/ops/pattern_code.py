"""SpMM by code that is written for a pattern: see `fastsparse_kernels.pattern_code`.

Writing it takes about as long as a product, so it is for plans that are made once and run often, those of engines.
It runs over the vectors of an `SpmmPlan`'s tiles, and sums in the same order, so that results are the same bits.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse.csr import CSR
from fastsparse.ops.activations import CLAMPS
from fastsparse.ops.heuristics import Heuristics
from fastsparse.ops.spmm import SpmmPlan
from fastsparse.ops.target import Target
from fastsparse.ops.tiles import Tiles
from fastsparse.runtime.executable import ExecutableMemory
from fastsparse.runtime.launch import Arguments, Launch
from fastsparse_kernels import pattern_code as kernels
from fastsparse_kernels.compiler import aligned_empty
from fastsparse_kernels.pattern_code import BIAS as BIAS
from fastsparse_kernels.pattern_code import CODE_LANES as CODE_LANES
from fastsparse_kernels.pattern_code import RESIDUAL as RESIDUAL
from fastsparse_kernels.sparse_operator import KINDS

Array = NDArray[Any]
LABEL = "spmm by code"


@dataclass(frozen=True, eq=False)
class Vectors:
    """The vectors that a plan's tiles write, all of them whole: where each is read and written, tile by tile."""

    starts: NDArray[np.int64]  # [tiles + 1], first vector of every tile
    x_offsets: NDArray[np.int64]
    y_offsets: NDArray[np.int64]


def whole_vectors(tiles: Tiles, target: Target) -> Vectors | None:
    """Vectors that write what tiles write, all of them whole.

    Pieces begin with a vector and have at least one. Where they are no whole number of vectors, the last one begins
    earlier, so that some positions are computed twice; None where x is not contiguous there.
    """
    lanes, vector = target.lanes, target.vector
    vectors, x_offsets, y_offsets = np.full(tiles.count, tiles.width), tiles.x_offsets.copy(), tiles.y_offsets.copy()
    used = np.ones(tiles.x_offsets.shape, bool)
    for tile in np.flatnonzero(tiles.tile_pieces[:, 0] != tiles.tile_pieces[:, 1]):
        used[tile] = False
        for at, to, count in tiles.pieces[slice(*tiles.tile_pieces[tile].tolist())].tolist():
            first, last = at // vector, at // vector + -(-count // lanes)
            back = (last - first) * vector - count * target.size  # bytes by which the last vector begins earlier
            if back and x_offsets[tile, last - 1] - x_offsets[tile, last - 2] != vector:
                return None
            used[tile, first:last], y_offsets[tile, first:last] = True, to + np.arange(last - first) * vector
            x_offsets[tile, last - 1] -= back
            y_offsets[tile, last - 1] -= back
        vectors[tile] = np.count_nonzero(used[tile])
    starts = np.concatenate([[0], np.cumsum(vectors)]).astype(np.int64)
    return Vectors(starts, x_offsets[used], y_offsets[used])


@dataclass(frozen=True, eq=False)
class PatternCode:
    """Code for a pattern and an epilogue, and the values of a matrix in the order in which it takes them.

    segments, group_segments : see the kernel's arguments
    """

    memory: ExecutableMemory
    values: Array
    segments: NDArray[np.int64]
    group_segments: NDArray[np.int64]
    y_row_stride: int


def write(
    plan: SpmmPlan, W: CSR, target: Target, y_row_stride: int, epilogue: int = 0, activation: str | None = None
) -> PatternCode:
    """The code of a plan for W's pattern, and W's values.

    epilogue : BIAS, RESIDUAL or both, or 0
    """
    operator, edges = plan.operator, plan.operator.group_starts
    chunks = [
        np.linspace(first, last, -(-(last - first) // kernels.CODE_ROWS), endpoint=False).astype(np.int64)
        for first, last in itertools.pairwise(edges)
    ]
    chunk_rows = np.concatenate([*chunks, edges[-1:]])
    rows, order = np.empty(operator.nnz, np.int64), np.empty(operator.nnz, np.int64)
    counts = np.empty(W.shape[1] + 1, np.int64)
    kernels.order_by_columns(8 * W.indices.itemsize)(W.indptr, W.indices, chunk_rows, counts, rows, order)
    offsets = _offsets(plan)[order]
    parts = _parts(offsets, W.indptr[chunk_rows], chunk_rows, edges, target.heuristics)
    low, high = CLAMPS[activation]
    epilogue |= (kernels.LOW if low > -np.inf else 0) | (kernels.HIGH if high < np.inf else 0)
    text = np.empty(kernels.NONZERO_BYTES * operator.nnz + kernels.PART_BYTES * len(parts), np.uint8)
    starts, pointers = np.empty(len(parts), np.int64), np.empty((kernels.POINTERS, 2), np.int64)
    left = np.empty(kernels.CODE_ROWS, np.int64)
    size = kernels.write_code()(
        offsets, rows, parts, epilogue, y_row_stride, _bits_of(low), _bits_of(high), pointers, left, text, starts
    )
    memory = ExecutableMemory(text[:size])
    calls = np.flatnonzero(parts[:, 3] & kernels.FOLLOWS == 0)  # first part of every segment
    finished = np.where(parts[:, 3] & kernels.ENDS, parts[:, 1], 0)
    segments = np.zeros((len(calls) + 1, 4), np.int64)
    segments[:, 0] = memory.address + np.append(starts[calls], size)
    segments[:, 1] = (np.append(0, parts[:, 2])[[*calls, len(parts)]] + kernels.WEIGHTS_AHEAD) * target.size
    segments[:-1, 2] = parts[calls, 0] * y_row_stride
    segments[:-1, 3] = np.add.reduceat(finished, calls)
    group_segments = np.searchsorted(parts[calls, 0], edges).astype(np.int64)
    values = aligned_empty(W.data.shape, W.data.dtype)
    np.take(W.data, order, out=values)
    return PatternCode(memory, values, segments, group_segments, y_row_stride)


def _offsets(plan: SpmmPlan) -> NDArray[np.int64]:
    """Bytes from a position to the x of each nonzero, in the CSR's order."""
    operator = plan.operator
    entries = np.arange(len(operator.entries) - 1)
    block = np.searchsorted(operator.segments[::KINDS], entries, side="right") - 1
    offsets = np.empty(operator.nnz, np.int64)
    bases = np.repeat(operator.columns.bases[block % operator.blocks], np.diff(operator.row_ends))
    offsets[operator.permutation] = operator.offsets + bases
    return offsets


def _parts(
    offsets: NDArray[np.int64], chunk_starts: NDArray[np.int64], chunk_rows: NDArray[np.int64],
    edges: NDArray[np.int64], h: Heuristics,
) -> NDArray[np.int64]:  # fmt: skip
    """Parts of every chunk, with about equally many nonzeros and `code_part_bytes` of code, cut between columns; whole
    chunks of one row group follow one another up to `code_segment_bytes`."""
    columns = np.flatnonzero(np.diff(offsets, prepend=-1))  # where each begins
    found, room = [], 0  # room: bytes of code that may follow
    for chunk, (begin, end) in enumerate(itertools.pairwise(chunk_starts.tolist())):
        first, last = chunk_rows[chunk : chunk + 2].tolist()
        inner = columns[slice(*np.searchsorted(columns, (begin + 1, end)))]
        nbytes = kernels.MULTIPLY_BYTES * (end - begin) + kernels.LOAD_BYTES * (len(inner) + 1)
        parts = min(-(-nbytes // h.code_part_bytes), len(inner) + 1)
        cuts = inner[
            np.searchsorted(inner, begin + (end - begin) * np.arange(1, parts) // parts).clip(max=len(inner) - 1)
        ]
        ends = np.append(np.unique(cuts), end)
        kinds = np.zeros(len(ends), np.int64)
        kinds[0] |= kernels.BEGINS
        kinds[-1] |= kernels.ENDS
        nbytes += kernels.ROW_BYTES * (last - first)
        if len(ends) == 1 and nbytes <= room and first not in edges:
            kinds[0] |= kernels.FOLLOWS
        else:
            room = h.code_segment_bytes if len(ends) == 1 else 0
        room -= nbytes
        found.append(np.stack([np.full_like(ends, first), np.full_like(ends, last - first), ends, kinds], axis=1))
    return np.ascontiguousarray(np.concatenate(found))


def _bits_of(number: float) -> int:
    return int(np.float32(number).view(np.uint32))


def prepare(
    plan: SpmmPlan, code: PatternCode, target: Target, *, batches: int = 1, x_batch_stride: int = 0,
    y_batch_stride: int = 0, activation: str | None = None, layout: str = "row-major",
) -> Launch:  # fmt: skip
    """As `spmm.prepare`; the operand `values` is that of the code."""
    operator, vectors = plan.operator, whole_vectors(plan.tiles, target)
    assert vectors is not None
    groups, tiles, rows = len(code.group_segments) - 1, plan.tiles.count, int(operator.group_starts[-1])
    arguments = Arguments(
        kernels.ARGUMENTS,
        tiles=tiles,
        groups=groups,
        group_segments=code.group_segments,
        segments=code.segments,
        tile_vectors=vectors.starts,
        x_positions=vectors.x_offsets,
        x_batch_stride=x_batch_stride,
        y_positions=vectors.y_offsets,
        y_batch_stride=y_batch_stride,
        y_row_stride=code.y_row_stride,
    )
    numbers = len(vectors.x_offsets) * target.lanes * batches
    return Launch(
        kernels.coded_spmm_kernel(), arguments, ("x", "y", "values", "bias", "residual"), target.loop,
        tasks=tiles * batches * groups, flops=2.0 * operator.nnz * numbers,
        scratch=plan.tiles.width * kernels.CODE_ROWS * target.vector, plan=plan,
        label=(
            LABEL, f"{rows}x{len(operator.columns.block)} by {numbers}", f"nnz {operator.nnz}", layout,
            f"code {code.memory.nbytes} segments {len(code.segments) - 1} groups {groups} tiles {tiles}", activation,
        ),
    )  # fmt: skip
