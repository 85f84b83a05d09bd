"""Updates of patterns: candidates for new nonzeros, and merging them with those that are kept, in O(nnz + new).

`path_scores` rates the elements outside a pattern by the paths of the pattern that would become cycles.

The index of an element of the matrix is row * columns + column. Columns in a row and indices are ascending.
"""

from __future__ import annotations

import numpy as np

from .compiler import host_function

# Elements tested at once: two vectors of the narrowest target, and few enough that most chunks have no hit.
_CHUNK = 16


@host_function("int64(real**, int64, const int64*, const column*, real, int64*, real*)")
def candidates(block, first, indptr, columns, threshold, indices, scores):  # type: ignore[no-untyped-def]
    """Elements of a block of rows outside the pattern whose magnitude is above a threshold; returns their number.

    Called with (block float [n, columns], first row, indptr, columns, threshold, indices int64, scores), one kind of
    float. `indices` and `scores` are longer than the block by one, which is written and means nothing.

    The block's elements inside the pattern are overwritten by NaN, which is above nothing. Then chunks are counted as
    vectors, and few of them are looked at one by one. Indices are unsigned: no code for negative ones.
    """
    width, chunk, found = np.uint64(block.shape[1]), np.uint64(_CHUNK), np.uint64(0)
    flat = block.reshape(-1)
    for i in range(block.shape[0]):
        row = np.uint64(i) * width
        for p in range(np.uint64(indptr[first + i]), np.uint64(indptr[first + i + 1])):
            flat[row + np.uint64(columns[p])] = np.nan
    base = first * np.int64(width)
    size = np.uint64(flat.shape[0])
    for start in range(np.uint64(0), size, chunk):
        stop = min(start + chunk, size)
        if stop - start == chunk:
            hits = np.int32(0)
            for k in range(chunk):
                hits += np.int32(abs(flat[start + k]) > threshold)
            if hits == 0:
                continue
        for at in range(start, stop):
            score = abs(flat[at])
            indices[found] = base + np.int64(at)
            scores[found] = score
            found += np.uint64(score > threshold)  # a branch would be mispredicted
    return np.int64(found)


@host_function("void(const int64*, const column*, int64, int64*)")
def zero_indices(indptr, columns, width, ranks):  # type: ignore[no-untyped-def]
    """Turn ranks among the zeros of the matrix into indices, in place.

    Called with (indptr, columns, width, ranks int64, ascending).
    """
    row, taken, p = np.int64(0), np.int64(0), np.int64(0)
    rows = indptr.shape[0] - 1
    for i in range(ranks.shape[0]):
        while p < columns.shape[0]:
            while row < rows and indptr[row + 1] <= p:
                row += 1
            if row * width + columns[p] - taken > ranks[i]:
                break
            taken += 1
            p += 1
        ranks[i] += taken


@host_function("void(const int64*, const column*, boolean*, int64*, int64, int64*, column*, int64*)")
def merge(indptr, columns, kept, grown, width, new_indptr, new_columns, source):  # type: ignore[no-untyped-def]
    """Merge the nonzeros that are kept with new ones; source[i] is the old number of nonzero i, -1 for a new one.

    Called with (indptr, columns, kept bool, grown int64, width, new_indptr int64, new_columns, source int64).
    """
    at, g = np.int64(0), np.int64(0)
    new_indptr[0] = 0
    for row in range(indptr.shape[0] - 1):
        for p in range(indptr[row], indptr[row + 1]):
            if not kept[p]:
                continue
            while g < grown.shape[0] and grown[g] < row * width + columns[p]:
                new_columns[at] = grown[g] - row * width
                source[at] = -1
                at += 1
                g += 1
            new_columns[at] = columns[p]
            source[at] = p
            at += 1
        while g < grown.shape[0] and grown[g] < (row + 1) * width:
            new_columns[at] = grown[g] - row * width
            source[at] = -1
            at += 1
            g += 1
        new_indptr[row + 1] = at


@host_function("void(int64, const int64*, const column*, int64*, int64*, float64*, int64*, int64*, float64**)")
def path_scores(first, indptr, columns, column_indptr, rows, root, shared, visits, scores):  # type: ignore[no-untyped-def]
    """CH3-L3 scores of rows of a pattern, read as a bipartite graph of rows and columns.

    Called with (first row, indptr, columns, column_indptr, rows, root float64, shared, visits, scores float64
    [n, columns]). `shared` (rows,) and `visits` (columns,) are zero before and after. root[0] is 0, and root reaches to
    the largest degree.

    scores[i, v] is the sum over paths row - a - b - v (a column, b another row) of root[outer a] * root[outer b], where
    root[k] = 1 / sqrt(k). With `outer` = degree - links within the paths' nodes, one plus the links that lead outside:
    those of b lead inside when they go to columns of the row, those of a when they go to rows of v. What stands at
    elements of the pattern means nothing. O(number of such paths), twice.
    """
    for i in range(scores.shape[0]):
        row, out = first + i, scores[i]
        out[:] = 0
        for p in range(indptr[row], indptr[row + 1]):
            for q in range(column_indptr[columns[p]], column_indptr[columns[p] + 1]):
                shared[rows[q]] += 1
        for p in range(indptr[row], indptr[row + 1]):
            start, stop = column_indptr[columns[p]], column_indptr[columns[p] + 1]
            for q in range(start, stop):
                for r in range(indptr[rows[q]], indptr[rows[q] + 1]):
                    visits[columns[r]] += 1
            for q in range(start, stop):
                b = rows[q]
                outer = root[indptr[b + 1] - indptr[b] - shared[b]]
                for r in range(indptr[b], indptr[b + 1]):
                    out[columns[r]] += outer * root[stop - start - visits[columns[r]]]
            for q in range(start, stop):
                for r in range(indptr[rows[q]], indptr[rows[q] + 1]):
                    visits[columns[r]] = 0
        for p in range(indptr[row], indptr[row + 1]):
            for q in range(column_indptr[columns[p]], column_indptr[columns[p] + 1]):
                shared[rows[q]] = 0
