"""Growing: where gradients or scores are largest outside a pattern, and what follows nonzeros into another pattern.

The gradient of a weight at all its elements exists in blocks of rows alone, computed from what a backward pass kept.
Only RigL asks for it, and only on the steps on which it changes patterns. A block is one BLAS product. Scores of CHT
come from the pattern alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from fastsparse.csr import Pattern
from fastsparse.ops import dense
from fastsparse.sparsity.selection import TopK
from fastsparse_kernels import pattern_updates as kernels

Array = NDArray[Any]

# Elements of the full gradient that exist at a time when elements to grow are looked for.
_BLOCK = 1 << 18


class FullGradient(Protocol):
    """The gradient of one backward pass at all elements of the matrix, computed in blocks of rows when asked for."""

    def rows(self, first: int, stop: int) -> Array:
        """Rows `first` to `stop`, (stop - first, columns): a new array."""


def grow_scores(pattern: Pattern, gradients: Sequence[FullGradient], k: int) -> tuple[NDArray[np.int64], Array]:
    """`SparseParameter.grow_scores` for the sum of some gradients."""
    if not gradients:
        raise RuntimeError("no backward pass was kept for growing, expected one after watch(True)")
    found = offered(TopK(pattern, k, guess=True), pattern, gradients)
    if not found.complete:
        found = offered(TopK(pattern, k), pattern, gradients)
    return found.result()


def offered(found: TopK, pattern: Pattern, gradients: Sequence[FullGradient]) -> TopK:
    """`found` after it has seen the sum of the gradients, block by block."""
    rows, columns = pattern.shape
    step = max(1, _BLOCK // max(columns, 1))
    for first in range(0, rows, step):
        stop = min(first + step, rows)
        block = gradients[0].rows(first, stop)
        for gradient in gradients[1:]:
            block += gradient.rows(first, stop)
        found.offer(block, first)
    return found


class LinearGradient:
    """dW = dy^T x of a linear layer.

    Parameters
    ----------
    dy : array (..., out)
        Gradient before the activation.
    x : array (..., in), or scipy.sparse (batch, in)
    """

    def __init__(self, dy: Array, x: Any) -> None:
        self._dy = dy.reshape(-1, dy.shape[-1])
        self._x = x if sparse.issparse(x) else np.asarray(x, dy.dtype).reshape(-1, x.shape[-1])

    def rows(self, first: int, stop: int) -> Array:
        """Rows `first` to `stop` of dW, (stop - first, in)."""
        part = self._dy[:, first:stop]
        if sparse.issparse(self._x):
            return np.ascontiguousarray((self._x.T @ part).T, self._dy.dtype)
        return np.ascontiguousarray(part.T @ self._x)


class ConvolutionGradient:
    """dW of a convolution, (out, in / groups * prod(kernel)).

    Parameters
    ----------
    dy : array (N, out, *output)
        Gradient before the activation.
    x : array (N, in, *spatial)
    geometry : dense.Geometry
    """

    def __init__(self, dy: Array, x: Array, geometry: dense.Geometry) -> None:
        self._dy, self._x, self._geometry = dy, np.asarray(x, dy.dtype), geometry

    def rows(self, first: int, stop: int) -> Array:
        """Rows `first` to `stop` of dW, (stop - first, in / groups * prod(kernel))."""
        groups = self._geometry.groups
        inside, outside = self._x.shape[1] // groups, self._dy.shape[1] // groups
        parts = []
        for group in range(first // outside, -(-stop // outside)):
            low, high = max(first, group * outside), min(stop, (group + 1) * outside)
            x = self._x[:, group * inside : (group + 1) * inside]
            parts.append(dense.weight_gradient(self._dy[:, low:high], x, self._geometry))
        return np.concatenate(parts) if len(parts) != 1 else parts[0]


class PathScores:
    """CH3-L3 scores of links that a pattern does not have, in place of a gradient.

    A pattern is a bipartite graph: rows and columns are nodes, nonzeros are links. For a row u and a column v without a
    link, the nodes between the ends of all paths u - a - b - v of length 3 are their local community; e(z) is the
    number of links of z that lead neither to the community nor to u or v. The score is

        sum over paths of 1 / sqrt((1 + e(a)) (1 + e(b))),

    large where communities keep to themselves: Muscoloni, Michieli, Zhang and Cannistraci, Adaptive network automata
    modelling of complex networks (2022); Zhang et al., ICLR 2024.

    Parameters
    ----------
    pattern : Pattern
    sample : Generator, optional
        Divides each score by a number from the exponential distribution: the largest are then a sample without
        replacement with chances in proportion to the scores (Efraimidis and Spirakis, 2006). Anew for each call.
    """

    def __init__(self, pattern: Pattern, sample: np.random.Generator | None = None) -> None:
        self._pattern, self._sample = pattern, sample
        rows, columns = pattern.shape
        by_column = np.argsort(pattern.indices, kind="stable")
        self._rows = pattern.rows()[by_column].astype(np.int64)
        degrees = np.bincount(pattern.indices, minlength=columns)
        self._column_indptr = np.concatenate([[0], np.cumsum(degrees)]).astype(np.int64)
        most = max(int(degrees.max(initial=0)), int(np.diff(pattern.indptr).max(initial=0)))
        self._root = np.concatenate([[0.0], 1 / np.sqrt(np.arange(1, most + 1))])
        self._counts = np.zeros(rows, np.int64), np.zeros(columns, np.int64)

    def rows(self, first: int, stop: int) -> Array:
        """Scores of rows `first` to `stop`, (stop - first, columns); they mean nothing at nonzeros."""
        pattern = self._pattern
        scores = np.empty((stop - first, pattern.shape[1]))
        run = kernels.path_scores(pattern.indices.dtype.itemsize * 8)
        run(
            first, pattern.indptr, pattern.indices, self._column_indptr, self._rows, self._root, *self._counts, scores
        )  # fmt: skip
        return scores if self._sample is None else scores / self._sample.standard_exponential(scores.shape)


# ------------------------------------------------------------------------------------------------- moving


def checked_source(old: Pattern, new: Pattern, source: NDArray[np.integer[Any]] | None) -> NDArray[np.integer[Any]]:
    """For every nonzero of `new` its position in `old`, or -1 when it is new; found when it is not given.

    Raises
    ------
    ValueError
        When the patterns have different shapes, or `source` does not fit them.
    """
    if new.shape != old.shape:
        raise ValueError(f"pattern has shape {new.shape}, expected {old.shape}")
    where = _positions(old, new) if source is None else np.asarray(source)
    if where.shape != (new.nnz,):
        raise ValueError(f"source has shape {where.shape}, expected {(new.nnz,)}, one for each new nonzero")
    if where.size and not -1 <= int(where.min()) <= int(where.max()) < old.nnz:
        raise ValueError(f"source goes from {where.min()} to {where.max()}, expected -1 to {old.nnz - 1}")
    return where


def carried(array: Array, where: Array, fresh: Array) -> Array:
    """array[where], with 0 at the elements `fresh`, where `where` is -1."""
    if len(array) == 0:
        return np.zeros(len(where), array.dtype)
    moved = np.take(array, where, mode="clip")  # checked by the caller; "clip" needs no second check
    moved[fresh] = 0
    return moved


def _positions(old: Pattern, new: Pattern) -> NDArray[np.int64]:
    """Position in `old` of every nonzero of `new`, -1 for those that are not in `old`."""
    columns = old.shape[1]
    old_keys = old.rows() * columns + old.indices
    new_keys = new.rows() * columns + new.indices
    found = np.searchsorted(old_keys, new_keys)
    found[found == len(old_keys)] = -1
    if len(old_keys):
        found[old_keys[found] != new_keys] = -1
    return found
