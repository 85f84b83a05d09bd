"""Selection of nonzeros to keep and of elements for new ones, and patterns made of them.

An element is given by its index in the matrix, row * columns + column. Nothing here loops over nonzeros in Python.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse.csr import Pattern
from fastsparse_kernels import pattern_updates as kernels

Array = NDArray[Any]
Elements = NDArray[np.int64]

# Compress the candidates when there are this many times more of them than are wanted.
_SLACK = 3
# A threshold guessed from the first rows lets pass this many times more elements than should be needed.
_MARGIN = 1.5


def largest(scores: Array, count: int) -> NDArray[np.bool_]:
    """Mask of the `count` largest, the first of equals; all when there are not more."""
    if count >= len(scores):
        return np.ones(len(scores), np.bool_)
    if count <= 0:
        return np.zeros(len(scores), np.bool_)
    threshold = np.partition(scores, len(scores) - count)[len(scores) - count]
    mask = scores > threshold
    ties = np.flatnonzero(scores == threshold)
    mask[ties[: count - int(np.count_nonzero(mask))]] = True
    return np.asarray(mask)


def largest_of_each(scores: Array, count: int) -> NDArray[np.bool_]:
    """Mask of the `count` largest of every row, the first of equals; all when there are not more."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    mask = np.zeros(scores.shape, np.bool_)
    np.put_along_axis(mask, order, True, axis=1)
    return mask


class TopK:
    """The `count` largest magnitudes outside a pattern, of a matrix that comes in blocks of rows, the first of equals.

    Memory follows `count` and the block. With `guess`, the first block tells the threshold that candidates have to
    pass; it may turn out too high, and :attr:`complete` says so: then the blocks are to be offered once more, without.
    Only magnitudes larger than `above` are found.
    """

    def __init__(self, pattern: Pattern, count: int, *, guess: bool = False, above: float = -1.0) -> None:
        self._pattern, self._count, self._guess = pattern, count, guess
        self._threshold = above
        self._found: list[tuple[Elements, Array]] = []
        self._held = 0
        self._guessed = False
        self._buffers: tuple[Elements, Array] | None = None

    @property
    def complete(self) -> bool:
        """Whether the result is exact: always, unless a guess let fewer than `count` pass."""
        return not self._guessed or self._held >= self._count

    def offer(self, block: Array, first: int) -> None:
        """Add the rows from `first` on to the choice; block (rows, columns), contiguous, is overwritten.

        NaN is left out.
        """
        if not self._count or not block.size:
            return
        if self._buffers is None or len(self._buffers[0]) <= block.size:
            self._buffers = np.empty(block.size + 1, np.int64), np.empty(block.size + 1, block.dtype)
        elements, scores = self._buffers
        pattern = self._pattern
        run = kernels.candidates(block.dtype.itemsize * 8, pattern.indices.dtype.itemsize * 8)
        threshold = block.dtype.type(self._threshold)
        found = run(block, first, pattern.indptr, pattern.indices, threshold, elements, scores)
        if self._guess and not self._found:
            found = self._pass_likely(elements[:found], scores[:found])
        if found:
            self._found.append((elements[:found].copy(), scores[:found].copy()))
            self._held += found
        if self._held > _SLACK * self._count:
            self._compress()

    def _pass_likely(self, elements: Elements, scores: Array) -> int:
        """Set the threshold by the first block's candidates; those above it move to the front. Their number."""
        self._guess = False
        rows, columns = self._pattern.shape
        wanted = math.ceil(_MARGIN * self._count * len(scores) / max(rows * columns - self._pattern.nnz, 1))
        if not 0 < wanted < len(scores):
            return len(scores)
        self._threshold = float(np.partition(scores, len(scores) - wanted)[len(scores) - wanted])
        self._guessed = True
        above = np.flatnonzero(scores > self._threshold)
        elements[: len(above)], scores[: len(above)] = elements[above], scores[above]
        return len(above)

    def result(self) -> tuple[Elements, Array]:
        """Elements in rising order and their magnitudes; fewer than `count` when there were fewer."""
        if not self._found:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        self._compress()
        return self._found[0]

    def _compress(self) -> None:
        elements, scores = (np.concatenate(arrays) for arrays in zip(*self._found))
        kept = np.flatnonzero(largest(scores, self._count))
        self._found, self._held = [(elements[kept], scores[kept])], len(kept)
        if self._held == self._count:
            self._threshold = float(self._found[0][1].min())


def free_elements(pattern: Pattern, count: int, rng: np.random.Generator) -> Elements:
    """`count` different elements outside the pattern in rising order, all such sets equally likely."""
    rows, columns = pattern.shape
    elements = distinct(rows * columns - pattern.nnz, count, rng)
    run = kernels.zero_indices(pattern.indices.dtype.itemsize * 8)
    run(pattern.indptr, pattern.indices, columns, elements)
    return elements


def distinct(size: int, count: int, rng: np.random.Generator) -> Elements:
    """`count` different integers below `size` in rising order, every such set with the same probability.

    Draws with repetition until there are enough different ones, then drops some at random. Whatever the number of
    different ones, all sets of that many are equally likely. Above one half, those that are left out are drawn.
    """
    if 2 * count > size:
        mask = np.ones(size, np.bool_)
        mask[distinct(size, size - count, rng)] = False
        return np.flatnonzero(mask)
    elements = np.empty(0, np.int64)
    while len(elements) < count:
        missing = count - len(elements)
        # A draw hits an element that is still free with probability (size - found) / size.
        draws = int(missing * size / (size - count) * 1.01) + 16
        elements = np.concatenate([elements, rng.integers(0, size, draws)])
        elements.sort()
        fresh = np.ones(len(elements), np.bool_)
        np.not_equal(elements[1:], elements[:-1], out=fresh[1:])
        elements = elements[fresh]
    surplus = len(elements) - count
    if surplus:
        kept = np.ones(len(elements), np.bool_)
        kept[rng.choice(len(elements), surplus, replace=False)] = False
        elements = elements[kept]
    return elements


def checked_elements(elements: Any, pattern: Pattern, count: int, who: str) -> Elements:
    """At most `count` different elements outside the pattern, in rising order.

    Raises
    ------
    ValueError, TypeError
        When they are something else: `who` has given them.
    """
    found = np.asarray(elements)
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise TypeError(f"{who} gave an array of {found.dtype} of shape {found.shape}, expected integers (n,)")
    found = np.sort(found.astype(np.int64, copy=False))
    size = pattern.shape[0] * pattern.shape[1]
    if len(found) > count or (len(found) and not 0 <= found[0] <= found[-1] < size) or not np.diff(found).all():
        raise ValueError(
            f"{who} gave {len(found)} elements, expected at most {count} different ones from 0 to {size - 1}"
        )
    old = elements_of(pattern)
    near = np.minimum(np.searchsorted(old, found), max(0, len(old) - 1))
    if len(old) and (taken := found[old[near] == found]).size:
        raise ValueError(
            f"{who} gave element {taken[0]}, where there is a weight, expected elements outside the pattern"
        )
    return found


def elements_of(pattern: Pattern) -> Elements:
    """Elements of the nonzeros, in rising order."""
    return np.asarray(pattern.rows().astype(np.int64) * pattern.shape[1] + pattern.indices)


def from_elements(elements: Elements, shape: tuple[int, int]) -> Pattern:
    """The pattern whose nonzeros have these elements, in rising order."""
    rows, columns = shape
    indptr = np.searchsorted(elements, np.arange(rows + 1, dtype=np.int64) * columns)
    indices = (elements % max(columns, 1)).astype(np.int32 if columns < 2**31 else np.int64)
    return Pattern._trusted(indptr, indices, shape)


def exchanged(pattern: Pattern, kept: NDArray[np.bool_], grown: Elements) -> tuple[Pattern, Elements]:
    """The pattern without what is not `kept` and with `grown`.

    Parameters
    ----------
    pattern : Pattern
    kept : bool (nnz,)
    grown : int64, rising, none of them in the pattern

    Returns
    -------
    pattern : Pattern
    source : int64 (nnz,)
        For every nonzero its number among the old ones, or -1 when it is new.
    """
    count = int(np.count_nonzero(kept)) + len(grown)
    indptr, indices = np.empty_like(pattern.indptr), np.empty(count, pattern.indices.dtype)
    source = np.empty(count, np.int64)
    run = kernels.merge(pattern.indices.dtype.itemsize * 8)
    run(pattern.indptr, pattern.indices, kept, grown, pattern.shape[1], indptr, indices, source)
    return Pattern._trusted(indptr, indices, pattern.shape), source
