"""Sparse operators, the packed operand of SpMM and SDDMM, built from CSR structure in O(nnz + M * blocks).

An operator has row groups (contiguous rows, taken by one worker) and column blocks (columns whose inputs fit the L1
cache). An *entry* is the part of a row in a block. Inside (group, block) entries are sorted by kind, then length:

    ONLY    all the row's nonzeros are in this block: zeros -> epilogue
    FIRST   zeros -> partial sum
    MIDDLE  partial sum -> partial sum
    LAST    partial sum -> epilogue

so the loop over entries has no branch that varies but the trip count, and trip counts are steady (a mispredicted exit
costs as much as ten nonzeros: worth up to 30 % at 95 % sparsity). A block has no entries for rows without nonzeros in
it: depthwise and grouped convolutions are only patterns. An empty row is an ONLY entry of block 0.

For narrow tiles the nonzeros of every four entries of a kind are interleaved.

Nonzeros of a row keep ascending column order inside and across blocks, so the sum's bits do not depend on blocking.

SpMV of short rows has slices of as many rows as a vector has lanes: row i of a slice has lane i, and the slice's vector
n holds nonzero n of each of its rows. Rows are sorted by length where that saves vectors (SELL-C-sigma, Kreutzer et al.
2014). Bit i of a vector's mask says whether lane i has a nonzero; others have column and value 0. Where the columns of
each vector rise by one from lane to lane, as in grids and bands, a slice has the first column of each vector only.

SpMV by register lookup has a format of its own. Columns are cut into chunks of `LOOKUP_CHUNK`, which eight vector
registers hold, with a 0 behind them. Within each chunk the rows of a group are sorted by their nonzeros there and cut
into slices of `LOOKUP_ROWS`, four vectors of rows. Step n of a slice holds nonzero n of each of its rows. A column is
one byte, counted within the chunk; the four columns of a lane are one word. An empty lane has column `LOOKUP_EMPTY`,
that of the 0, and value 0. Values that are all bfloat16 numbers are kept in 16 bits, those of two vectors in the halves
of one. As each chunk has its own order of rows, `sum_index` gives the index of each row's sum in it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from . import simd
from .compiler import compile_function, compiled_once, host_function, host_signature, kernel_function, lanes
from .layouts import make_copy_numbers

KINDS = 4
ONLY, FIRST, MIDDLE, LAST = range(KINDS)
ABSENT = 0xFFFFFFFF  # instead of an entry's key: the row has no nonzeros in the block
ROW_UNROLL = 4  # rows computed at once: interleaved entries, or dense rows that share what is read of X
OVERREAD = 9  # items after the last value, offset and entry that kernels may read
SPMV_ACCUMULATORS = 8  # of a row of SpMV, the lanes of one vector
RUNS_AHEAD = 8  # prefetch distance of `copy_runs`: runs lie anywhere in an array larger than L2
RUN_VECTORS = 4  # vectors of a contiguous SDDMM run, and nonzeros that are reduced at once there

WHOLE, QUARTERS = 1, 2  # non-temporal stores: of vector-aligned vectors, or of 16-byte-aligned quarters of them

SLICE_ORDER_ROWS = 2048  # rows of SpMV by slices that are sorted together

LOOKUP_BITS, LOOKUP_LANES = 32, 16
LOOKUP_TABLES = 8  # vector registers that hold a chunk
LOOKUP_CHUNK = LOOKUP_TABLES * LOOKUP_LANES - 1  # columns
LOOKUP_EMPTY = LOOKUP_CHUNK  # column of an empty lane
LOOKUP_VECTORS = 4  # of a step
LOOKUP_ROWS = LOOKUP_VECTORS * LOOKUP_LANES  # of a slice


@host_function(
    "int64(const int64*, const column*, int32*, uint32*, int64*, int64*, int32**, uint32**, int64*, uint32*, "
    "uint32*, uint32*, uint32*, uint32*)"
)
def order_nonzeros(  # type: ignore[no-untyped-def]
    indptr, columns, column_block, column_offset, group_starts, reached, counts, starts, buckets, segments, rows,
    row_ends, offsets, permutation,
):  # fmt: skip
    """Sort the nonzeros of every (group, block) into entries, by counting; returns the number of entries.

    Scratch : reached, a copy of indptr; counts [M, blocks], zeros; starts [M, blocks]; buckets
    Written : segments, rows [at least entries], row_ends [at least entries + 1], offsets [nnz], permutation [nnz]
    """
    blocks = counts.shape[1]
    keys = np.int64(0)  # of each kind, one for each length: entries are sorted by kind, then length
    for row in range(indptr.shape[0] - 1):
        for p in range(indptr[row], indptr[row + 1]):
            counts[row, column_block[columns[p]]] += 1
        for block in range(blocks):
            keys = max(keys, np.int64(counts[row, block]) + 1)

    nonzero = np.int64(0)
    row_ends[0] = segments[0] = 0
    for group in range(group_starts.shape[0] - 1):
        low, high = group_starts[group], group_starts[group + 1]
        for block in range(blocks):
            for key in range(KINDS * keys):
                buckets[key] = 0
            for row in range(low, high):
                first, end, length = indptr[row], indptr[row + 1], np.int64(counts[row, block])
                own = np.int64(ABSENT)
                if length > 0 or (first == end and block == 0):
                    begins, reached[row] = reached[row] == first, reached[row] + length
                    ends = reached[row] == end
                    kind = (ONLY if ends else FIRST) if begins else (LAST if ends else MIDDLE)
                    own = kind * keys + length
                    buckets[own] += 1
                starts[row, block] = own
            base = (group * blocks + block) * KINDS
            entry = before = np.int64(segments[base])
            for kind in range(KINDS):
                for key in range(kind * keys, (kind + 1) * keys):
                    entry, buckets[key] = entry + buckets[key], entry
                segments[base + kind + 1] = entry
            for row in range(low, high):
                own = np.int64(starts[row, block])
                if own != ABSENT:
                    rows[buckets[own]] = row
                    buckets[own] += 1
            for i in range(before, entry):
                owner = np.int64(rows[i])
                starts[owner, block] = nonzero
                nonzero += counts[owner, block]
                row_ends[i + 1] = nonzero

    for row in range(indptr.shape[0] - 1):
        for p in range(indptr[row], indptr[row + 1]):
            column = columns[p]
            block = column_block[column]
            at = starts[row, block]
            starts[row, block] = at + 1
            offsets[at] = column_offset[column]
            permutation[at] = p
    return np.int64(segments[segments.shape[0] - 1])


@host_function("void(uint32*, uint32*, uint32*, uint32*, uint32*, uint32*)")
def interleave(segments, row_ends, offsets, permutation, new_offsets, new_permutation):  # type: ignore[no-untyped-def]
    """Interleave the nonzeros of every four entries of a kind, as many as the shortest has, then append each one's
    rest. Entries left over keep their order.
    """
    at = np.int64(0)
    for segment in range(segments.shape[0] - 1):
        entry, end = np.int64(segments[segment]), np.int64(segments[segment + 1])
        while entry < end:
            rows = ROW_UNROLL if entry + ROW_UNROLL <= end else 1
            shortest = np.int64(row_ends[entry + 1]) - np.int64(row_ends[entry])
            for i in range(entry, entry + rows):
                shortest = min(shortest, np.int64(row_ends[i + 1]) - np.int64(row_ends[i]))
            for step in range(shortest):
                for i in range(entry, entry + rows):
                    new_offsets[at] = offsets[row_ends[i] + step]
                    new_permutation[at] = permutation[row_ends[i] + step]
                    at += 1
            for i in range(entry, entry + rows):
                for p in range(row_ends[i] + shortest, row_ends[i + 1]):
                    new_offsets[at] = offsets[p]
                    new_permutation[at] = permutation[p]
                    at += 1
            entry += rows


@host_function("void(const int64*, const uint32*, int64**, int64*, uint32*, int64*, uint32*, uint32*)")
def order_rows(indptr, columns, bounds, buckets, order, starts, out, permutation):  # type: ignore[no-untyped-def]
    """Sort the rows of every chunk by length; rows order[first] to order[last - 1] are the rows first to last of one.

    bounds : [chunks, 4], as in `stream.py`
    starts, out : row starts and columns of the matrix in this order
    permutation : index in the CSR of each of its nonzeros
    """
    at = np.int64(0)
    starts[0] = 0
    for chunk in range(bounds.shape[0]):
        first, last, longest = bounds[chunk, 0], bounds[chunk, 1], 0
        if bounds[chunk, 2] > 0:  # another tile of the same row
            continue
        for row in range(first, last):
            longest = max(longest, indptr[row + 1] - indptr[row])
        buckets[: longest + 2] = 0
        for row in range(first, last):
            buckets[indptr[row + 1] - indptr[row] + 1] += 1
        for length in range(longest + 1):
            buckets[length + 1] += buckets[length]
        for row in range(first, last):
            length = indptr[row + 1] - indptr[row]
            order[first + buckets[length]] = row
            buckets[length] += 1
        for i in range(first, last):
            source = np.int64(order[i])
            for p in range(indptr[source], indptr[source + 1]):
                out[at] = columns[p]
                permutation[at] = p
                at += 1
            starts[i + 1] = at


@host_function("void(const real*, const uint32*, real*)")
def gather(values, indices, out):  # type: ignore[no-untyped-def]
    """out[i] = values[indices[i]]."""
    for i in range(indices.shape[0]):
        out[i] = values[indices[i]]


@host_function("void(const real*, const uint32*, real*)")
def scatter(values, indices, out):  # type: ignore[no-untyped-def]
    """out[indices[i]] = values[i]."""
    for i in range(indices.shape[0]):
        out[indices[i]] = values[i]


@host_function("int64(const uint32*, const uint32*, uint16*)")
def scatter_bfloat16(values, indices, out):  # type: ignore[no-untyped-def]
    """out[indices[i]] = values[i] in 16 bits, with the values of two vectors of a lookup in the halves of one.

    Returns how many are written: all of them, or those before the first one that is no bfloat16 number.
    """
    for i in range(indices.shape[0]):
        if values[i] & 0xFFFF:
            return i
        index = indices[i]
        pair, second, lane = index & ~31, (index >> 4) & 1, index & 15
        out[pair + 2 * lane + second] = values[i] >> 16
    return indices.shape[0]


@host_function("int64(const uint32*, uint32**)")
def find_runs(indices, runs):  # type: ignore[no-untyped-def]
    """Cut indices into runs of consecutive ones: (first index, where it stands), then (0, number of indices).

    Returns the number of runs; 0 where `runs` has no room for them.
    """
    count, expected = 0, np.int64(-1)
    for i in range(indices.shape[0]):
        index = np.int64(indices[i])
        if index != expected:
            if count == runs.shape[0] - 1:
                return 0
            runs[count, 0], runs[count, 1] = index, i
            count += 1
        expected = index + 1
    runs[count, 0], runs[count, 1] = 0, indices.shape[0]
    return count


@compiled_once
def copy_runs(bits: int) -> Callable[..., None]:
    """out[i] = values[indices[i]] by runs of consecutive indices, of `find_runs`.

    Vectors are copied whole, what one of them writes behind its run is written again by the next run.
    """
    size, vector_lanes = bits // 8, lanes(bits)
    vector = vector_lanes * size
    copy_numbers = make_copy_numbers(bits, vector_lanes)

    def copy_runs(values, runs, out):  # type: ignore[no-untyped-def]
        like = simd.zeros(1, vector_lanes, bits)
        first, start, at = np.int64(values.ctypes.data), np.int64(out.ctypes.data), np.int64(0)
        sources_end, targets_end = values.shape[0] - vector_lanes, out.shape[0] - vector_lanes
        count = runs.shape[0] - 1
        for i in range(count):
            simd.prefetch_l1(first + np.int64(runs[min(i + RUNS_AHEAD, count), 0]) * size, 128)
            index, stop = np.int64(runs[i, 0]), np.int64(runs[i + 1, 1])
            source, target = first + index * size, start + at * size
            if index + stop - at <= sources_end and stop <= targets_end:
                simd.store(simd.load(like, source), target)  # most runs are one vector
                for step in range(vector, (stop - at) * size, vector):
                    simd.store(simd.load(like, source + step), target + step)
            else:
                copy_numbers(source, target, stop - at)
            at = stop

    copy_runs.__qualname__ = f"copy_runs_f{bits}"
    return compile_function(copy_runs, host_signature("void(const real*, uint32**, real*)", bits))


@kernel_function
def _slice_rank(sum_index, row):  # type: ignore[no-untyped-def]
    """Rank of a row among the lanes of all slices."""
    return row // SLICE_ORDER_ROWS * SLICE_ORDER_ROWS + sum_index[row] if sum_index.shape[0] else row


@host_function("void(const int64*, int64, int64*, uint16*, int64*)")
def slice_starts(indptr, lanes, buckets, sum_index, starts):  # type: ignore[no-untyped-def]
    """Number of vectors before each slice. With buckets, rows are sorted by falling length and `sum_index` is written.

    A counting sort in each window of SLICE_ORDER_ROWS, of rows of one length in their own order.
    """
    rows, slices = indptr.shape[0] - 1, starts.shape[0] - 1
    starts[:] = 0
    for window in range(0, slices * lanes, SLICE_ORDER_ROWS):
        stop, longest = min(window + SLICE_ORDER_ROWS, rows), 0
        if buckets.shape[0] == 0:
            for row in range(window, stop):
                at = row // lanes + 1
                starts[at] = max(starts[at], indptr[row + 1] - indptr[row])
            continue
        for row in range(window, stop):
            longest = max(longest, indptr[row + 1] - indptr[row])
        buckets[: longest + 1] = 0
        for row in range(window, stop):
            buckets[indptr[row + 1] - indptr[row]] += 1
        before = 0
        for length in range(longest, -1, -1):
            before, buckets[length] = before + buckets[length], before
        for row in range(window, stop):
            length = indptr[row + 1] - indptr[row]
            rank = buckets[length]
            buckets[length] += 1
            sum_index[row] = rank
            if rank % lanes == 0:
                starts[(window + rank) // lanes + 1] = length
        for row in range(stop, min(window + SLICE_ORDER_ROWS, slices * lanes)):  # rows that do not exist
            sum_index[row] = row - window
    for i in range(slices):
        starts[i + 1] += starts[i]


@kernel_function
def _is_run(indptr, columns, row, rows):  # type: ignore[no-untyped-def]
    """Whether each vector of the slice of `rows` rows from `row` on has columns that rise by one from lane to lane."""
    first, length = indptr[row], indptr[row + 1] - indptr[row]
    for lane in range(1, rows):
        p, end = indptr[row + lane], indptr[row + lane + 1]
        if end - p > length:
            return False
        for i in range(end - p):
            if columns[p + i] != columns[first + i] + lane:
                return False
    return True


@host_function("int64(const int64*, const uint32*, uint16*, int64, int64*, int64*, uint32*, uint16*)")
def slice_columns(indptr, columns, sum_index, lanes, starts, column_starts, out, masks):  # type: ignore[no-untyped-def]
    """Write columns and masks of slices; returns how many columns there are.

    A slice whose vectors are runs, of columns that rise by one from lane to lane, has the first column of each vector
    only. Slices of sorted rows are not looked at.
    """
    rows, at = indptr.shape[0] - 1, 0
    for i in range(starts.shape[0] - 1):
        column_starts[i] = at
        row = i * lanes
        run = sum_index.shape[0] == 0 and _is_run(indptr, columns, row, min(lanes, rows - row))
        at += (starts[i + 1] - starts[i]) * (1 if run else lanes)
    column_starts[starts.shape[0] - 1] = at
    for row in range(rows):
        rank = _slice_rank(sum_index, row)
        i, lane = rank // lanes, rank % lanes
        bit, run = np.uint16(1 << lane), column_starts[i + 1] - column_starts[i] == starts[i + 1] - starts[i]
        at, step = column_starts[i] + lane, lanes
        if run:
            at, step = column_starts[i], 1
        for p in range(indptr[row], indptr[row + 1]):
            masks[starts[i] + p - indptr[row]] |= bit
            if lane == 0 or not run:
                out[at] = columns[p]
            at += step
    return column_starts[starts.shape[0] - 1]


@host_function("void(const int64*, const real*, uint16*, int64, int64*, real*)")
def slice_values(indptr, values, sum_index, lanes, starts, out):  # type: ignore[no-untyped-def]
    """Write values of slices: nonzero n of a row goes to vector n of its slice, to the row's lane."""
    for row in range(indptr.shape[0] - 1):
        rank = _slice_rank(sum_index, row)
        at = starts[rank // lanes] * lanes + rank % lanes
        for p in range(indptr[row], indptr[row + 1]):
            out[at] = values[p]
            at += lanes


@host_function("void(const int64*, const uint32*, int64*, uint8**, int64*, uint16*, uint8*, int64*, int64*, int64*)")
def lookup_slices(  # type: ignore[no-untyped-def]
    indptr, columns, group_starts, counts, buckets, sum_index, step_counts, first_steps, slice_starts,
    step_starts,
):  # fmt: skip
    """Sort the rows of each group and chunk by their nonzeros there and cut them into slices.

    counts, buckets : work, [chunks + 1, rows of the widest group] and [LOOKUP_CHUNK + 2]
    sum_index, step_counts : of the kernel
    first_steps : [slices], in the order of step_counts, number of the slice's first step
    slice_starts, step_starts : [groups + 1], slices and steps of groups before
    """
    chunks = counts.shape[0] - 1
    ordered = counts[chunks]
    at = step = np.int64(0)
    slice_starts[0] = step_starts[0] = 0
    for group in range(group_starts.shape[0] - 1):
        first, stop = group_starts[group], group_starts[group + 1]
        slices = (stop - first + LOOKUP_ROWS - 1) // LOOKUP_ROWS
        rows = slices * LOOKUP_ROWS
        for chunk in range(chunks):
            counts[chunk, :rows] = 0
        for row in range(first, stop):
            for p in range(indptr[row], indptr[row + 1]):
                counts[columns[p] // LOOKUP_CHUNK, row - first] += 1
        for chunk in range(chunks):
            buckets[:] = 0
            for row in range(rows):
                buckets[counts[chunk, row] + 1] += 1
            for count in range(LOOKUP_CHUNK + 1):
                buckets[count + 1] += buckets[count]
            for row in range(rows):
                count = counts[chunk, row]
                rank = buckets[count]
                buckets[count] += 1
                ordered[rank] = count
                part = row // LOOKUP_LANES * chunks + chunk
                sum_index[at * LOOKUP_ROWS + part * LOOKUP_LANES + row % LOOKUP_LANES] = rank
            for i in range(slices):
                count = ordered[(i + 1) * LOOKUP_ROWS - 1]
                step_counts[at + chunk * slices + i] = count
                first_steps[at + chunk * slices + i] = step
                step += np.int64(count)
        at += slices * chunks
        slice_starts[group + 1], step_starts[group + 1] = at, step


@host_function("void(const int64*, const uint32*, int64*, int64, uint16*, int64*, int64*, uint8*, uint32*)")
def lookup_columns(  # type: ignore[no-untyped-def]
    indptr, columns, group_starts, chunks, sum_index, first_steps, slice_starts, out, order
):
    """Write columns of lookups, counted within their chunks, and the order of the values: where each nonzero goes."""
    for group in range(group_starts.shape[0] - 1):
        first, before = group_starts[group], slice_starts[group]
        slices = (slice_starts[group + 1] - before) // chunks
        for row in range(first, group_starts[group + 1]):
            rank = row - first
            index = before * LOOKUP_ROWS + rank // LOOKUP_LANES * chunks * LOOKUP_LANES + rank % LOOKUP_LANES
            previous, at, column = np.int64(-1), np.int64(0), np.int64(0)
            for p in range(indptr[row], indptr[row + 1]):
                chunk = np.int64(columns[p]) // LOOKUP_CHUNK
                if chunk != previous:
                    rank, previous = np.int64(sum_index[index + chunk * LOOKUP_LANES]), chunk
                    step = first_steps[before + chunk * slices + rank // LOOKUP_ROWS]
                    at = step * LOOKUP_ROWS + rank % LOOKUP_ROWS
                    vector, lane = rank % LOOKUP_ROWS // LOOKUP_LANES, rank % LOOKUP_LANES
                    column = step * LOOKUP_ROWS + lane * LOOKUP_VECTORS + vector
                out[column] = columns[p] % LOOKUP_CHUNK
                order[p] = at
                at += LOOKUP_ROWS
                column += LOOKUP_ROWS


@host_function("void(const int64*, const uint32*, int64*, int32*, uint32*)")
def transpose(indptr, columns, starts, rows, permutation):  # type: ignore[no-untyped-def]
    """Counting sort by columns. starts : [columns + 1], zeros; written are row starts of the transposed pattern, its
    columns, and the index of each nonzero's value.
    """
    for p in range(columns.shape[0]):
        starts[columns[p] + 1] += 1
    for column in range(starts.shape[0] - 1):
        starts[column + 1] += starts[column]
    for row in range(indptr.shape[0] - 1):
        for p in range(indptr[row], indptr[row + 1]):
            column = columns[p]
            at = starts[column]
            starts[column] = at + 1
            rows[at] = row
            permutation[at] = p
    for column in range(starts.shape[0] - 1, 0, -1):
        starts[column] = starts[column - 1]
    starts[0] = 0
