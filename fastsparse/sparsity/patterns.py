"""Where nonzeros may be: random patterns, and how to share a number of nonzeros among layers."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse.csr import Pattern

# Above this density the elements that are left out are drawn instead of those that stay.
_DENSE = 0.5
_INT64_MAX = 2**63 - 1


def count_nonzeros(size: int, sparsity: float) -> int:
    """Number of nonzeros of `size` elements at `sparsity`, to the nearest integer, halves up.

    Raises
    ------
    ValueError
        When sparsity is outside [0, 1).
    """
    if isinstance(sparsity, (bool, str)):
        raise TypeError(f"sparsity is {sparsity!r}, expected a number in [0, 1)")
    try:
        share = float(sparsity)
    except (TypeError, ValueError):
        raise TypeError(f"sparsity is {sparsity!r}, expected a number in [0, 1)") from None
    if not 0 <= share < 1:
        raise ValueError(f"sparsity is {sparsity!r}, expected a number in [0, 1)")
    return math.floor(size * (1 - share) + 0.5)


def random_pattern(shape: tuple[int, int], sparsity: float, *, rng: Any = None) -> Pattern:
    """A pattern drawn with equal chances from all those with the same number of nonzeros.

    Parameters
    ----------
    shape : (rows, columns)
    sparsity : float in [0, 1)
        Share of elements that are left out; the number of nonzeros is exact, see Returns.
    rng : None, int or Generator

    Returns
    -------
    Pattern
        With round(rows * columns * (1 - sparsity)) nonzeros. Time and memory follow that number, not
        rows * columns, below a density of one half.

    Examples
    --------
    >>> from fastsparse.sparsity import random_pattern
    >>> random_pattern((100, 50), 0.9, rng=0)
    <Pattern 100x50, 500 nonzeros, density 0.1>
    """
    rows, columns = _matrix_shape(shape)
    size = rows * columns
    count = count_nonzeros(size, sparsity)
    generator = np.random.default_rng(rng)
    if count > size * _DENSE:
        mask = np.ones(size, np.bool_)
        mask[_distinct(size, size - count, generator)] = False
        places = np.flatnonzero(mask)
    else:
        places = _distinct(size, count, generator)
    return _from_places(places, (rows, columns))


def _distinct(size: int, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """`count` different integers below `size` in rising order, every such set with the same probability.

    Draws with repetition until there are enough different ones, then drops some at random. Whatever the number of
    different ones, all sets of that many are equally likely.
    """
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


def _from_places(places: NDArray[np.int64], shape: tuple[int, int]) -> Pattern:
    """The pattern whose nonzeros have these numbers, row * columns + column, in rising order."""
    rows, columns = shape
    indptr = np.searchsorted(places, np.arange(rows + 1, dtype=np.int64) * columns)
    indices = (places % max(columns, 1)).astype(np.int32 if columns < 2**31 else np.int64)
    return Pattern._trusted(indptr, indices, shape)


def _matrix_shape(shape: Any) -> tuple[int, int]:
    try:
        rows, columns = (operator.index(n) for n in shape)
    except (TypeError, ValueError):
        raise ValueError(f"shape is {shape!r}, expected two non-negative integers (rows, columns)") from None
    if min(rows, columns) < 0 or rows * columns > _INT64_MAX:
        raise ValueError(f"shape is {shape!r}, expected two non-negative integers with a product below 2**63")
    return rows, columns


def erdos_renyi(shapes: Sequence[Sequence[int]], sparsity: float, *, kernel: bool = True) -> list[float]:
    """Densities that share the nonzeros among layers so that small layers stay denser.

    A layer's density is proportional to (out + in + kernel sizes) / (out * in * kernel sizes), and 1 where that would
    be more than 1 (Mocanu et al., Nature Communications 9, 2383 (2018); Evci et al., Rigging the Lottery, ICML 2020).

    Parameters
    ----------
    shapes : sequence of tuples
        Shapes of the weights, (out, in) or (out, in / groups, *kernel).
    sparsity : float in [0, 1)
        Of all layers together.
    kernel : bool
        True counts the kernel's sizes (ERK); False leaves them out of both terms (ER).

    Returns
    -------
    list of float
        One density per shape, each a whole number of nonzeros over the layer's size; these numbers add up to exactly
        round(size of all layers * (1 - sparsity)). ``random_pattern(shape, 1 - density)`` has that many nonzeros.

    Examples
    --------
    >>> from fastsparse.sparsity import erdos_renyi
    >>> erdos_renyi([(100, 100), (10, 100)], 0.8)
    [0.1419, 0.781]
    """
    checked = [_layer_shape(shape, position) for position, shape in enumerate(shapes)]
    sizes = [math.prod(shape) for shape in checked]
    total = count_nonzeros(sum(sizes), sparsity)
    scores = []
    for shape in checked:
        used = shape if kernel else shape[:2]
        scores.append(Fraction(sum(used), math.prod(used)))
    return [count / size for count, size in zip(_shared(total, sizes, scores), sizes)]


def _layer_shape(shape: Sequence[int], position: int) -> tuple[int, ...]:
    try:
        numbers = tuple(operator.index(n) for n in shape)
    except TypeError:
        numbers = ()
    if len(numbers) < 2 or min(numbers) < 1:
        raise ValueError(f"shapes[{position}] is {shape!r}, expected at least two positive integers (out, in, ...)")
    return numbers


def _shared(total: int, sizes: Sequence[int], scores: Sequence[Fraction]) -> list[int]:
    """Split `total` in proportion to sizes * scores, no share above its size, shares whole numbers of exact sum."""
    full: set[int] = set()
    while True:
        free = [i for i in range(len(sizes)) if i not in full]
        left = total - sum(sizes[i] for i in full)
        weight = sum(sizes[i] * scores[i] for i in free)
        over = {i for i in free if left * scores[i] > weight}
        if not over:
            break
        full |= over
    wanted = [Fraction(size) for size in sizes]
    for i in free:
        wanted[i] = left * sizes[i] * scores[i] / weight
    counts = [math.floor(w) for w in wanted]
    for i in sorted(free, key=lambda i: (counts[i] - wanted[i], i))[: total - sum(counts)]:
        counts[i] += 1
    return counts
