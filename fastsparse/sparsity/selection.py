"""Choosing among nonzeros and among places for new ones, and patterns made of what was chosen.

A place is the number of an element of the matrix, row * columns + column. Nothing here loops over nonzeros in Python.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse.csr import Pattern

Array = NDArray[Any]
Places = NDArray[np.int64]

# Compress the candidates when there are this many times more of them than are wanted.
_SLACK = 2


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
    """The `count` largest of scores that come block by block, the first of equals; memory follows `count`."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._threshold = -1.0
        self._held = 0
        self._scores: list[Array] = []
        self._places: list[Places] = []

    def offer(self, scores: Array, first: int) -> None:
        """Take part in the choice: places `first`, first + 1, ... Scores below 0 are not eligible."""
        better = np.flatnonzero(scores > self._threshold)
        if len(better) > _SLACK * self._count:
            better = better[largest(scores[better], self._count)]
        if self._count and len(better):
            self._scores.append(scores[better])
            self._places.append(better + first)
            self._held += len(better)
        if self._held > _SLACK * self._count:
            self._compress()

    def result(self) -> tuple[Places, Array]:
        """Places in rising order and their scores; fewer than `count` when there were fewer."""
        if not self._scores:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        self._compress()
        return self._places[0], self._scores[0]

    def _compress(self) -> None:
        scores, places = np.concatenate(self._scores), np.concatenate(self._places)
        kept = largest(scores, self._count)
        scores, places = scores[kept], places[kept]
        self._scores, self._places, self._held = [scores], [places], len(scores)
        if len(scores) == self._count:
            self._threshold = float(scores.min())


def places_of(pattern: Pattern) -> Places:
    """Places of the nonzeros, in rising order."""
    return pattern.rows() * pattern.shape[1] + pattern.indices


def free_places(pattern: Pattern, count: int, rng: np.random.Generator) -> Places:
    """`count` different places outside the pattern in rising order, all such sets equally likely."""
    taken = places_of(pattern)
    free = pattern.shape[0] * pattern.shape[1] - len(taken)
    ranks = distinct(free, count, rng)
    # taken[i] - i free places lie before taken[i].
    return ranks + np.searchsorted(taken - np.arange(len(taken)), ranks, side="right")


def distinct(size: int, count: int, rng: np.random.Generator) -> Places:
    """`count` different integers below `size` in rising order, every such set with the same probability.

    Draws with repetition until there are enough different ones, then drops some at random. Whatever the number of
    different ones, all sets of that many are equally likely. Above one half, those that are left out are drawn.
    """
    if 2 * count > size:
        mask = np.ones(size, np.bool_)
        mask[distinct(size, size - count, rng)] = False
        return np.flatnonzero(mask)
    places = np.empty(0, np.int64)
    while len(places) < count:
        missing = count - len(places)
        # A draw hits a place that is still free with probability (size - found) / size.
        draws = int(missing * size / (size - count) * 1.01) + 16
        places = np.concatenate([places, rng.integers(0, size, draws)])
        places.sort()
        fresh = np.ones(len(places), np.bool_)
        np.not_equal(places[1:], places[:-1], out=fresh[1:])
        places = places[fresh]
    surplus = len(places) - count
    if surplus:
        kept = np.ones(len(places), np.bool_)
        kept[rng.choice(len(places), surplus, replace=False)] = False
        places = places[kept]
    return places


def from_places(places: Places, shape: tuple[int, int]) -> Pattern:
    """The pattern whose nonzeros have these places, in rising order."""
    rows, columns = shape
    indptr = np.searchsorted(places, np.arange(rows + 1, dtype=np.int64) * columns)
    indices = (places % max(columns, 1)).astype(np.int32 if columns < 2**31 else np.int64)
    return Pattern._trusted(indptr, indices, shape)


def exchanged(pattern: Pattern, kept: NDArray[np.bool_], grown: Places) -> tuple[Pattern, Places]:
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
    old = np.flatnonzero(kept)
    stay = places_of(pattern)[old]
    at = np.searchsorted(stay, grown) + np.arange(len(grown))
    fresh = np.zeros(len(stay) + len(grown), np.bool_)
    fresh[at] = True
    source = np.empty(len(fresh), np.int64)
    source[fresh], source[~fresh] = -1, old
    places = np.empty(len(fresh), np.int64)
    places[fresh], places[~fresh] = grown, stay
    return from_places(places, pattern.shape), source
