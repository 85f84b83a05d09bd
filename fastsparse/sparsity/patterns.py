"""Random, N:M and given patterns, and how to share a number of nonzeros among layers."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastsparse import checks
from fastsparse.checks import Seed
from fastsparse.csr import Pattern, checked_shape
from fastsparse.sparsity.selection import distinct, from_elements, largest_of_each


def count_nonzeros(size: int, sparsity: float) -> int:
    """Number of nonzeros of `size` elements at `sparsity`, to the nearest integer, halves up.

    Raises
    ------
    ValueError
        When sparsity is outside [0, 1).
    """
    share = checks.number(sparsity, "sparsity", 0, 1, ends="[)")
    return math.floor(size * (1 - share) + 0.5)


def random_pattern(shape: Sequence[int], sparsity: float, *, rng: Seed = None) -> Pattern:
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
    elements = distinct(size, count_nonzeros(size, sparsity), checks.generator(rng))
    return from_elements(elements, (rows, columns))


def _matrix_shape(shape: Any) -> tuple[int, int]:
    rows, columns = checked_shape(shape)
    if rows * columns > checks.INT64_MAX:
        raise ValueError(f"shape is {(rows, columns)}, expected two non-negative integers with a product below 2**63")
    return rows, columns


def nm_pattern(shape: Sequence[int], n: int, m: int, *, scores: ArrayLike | None = None, rng: Seed = None) -> Pattern:
    """A pattern with `n` nonzeros in every `m` consecutive columns of a row (N:M sparsity).

    Parameters
    ----------
    shape : (rows, columns)
    n, m : int
        1 <= n <= m. Columns left over at the end of a row are a group of their own, with n nonzeros at most.
    scores : array (rows, columns), optional
        The largest magnitudes of every group are chosen, the first of equals; at random without them.
    rng : None, int or Generator

    Returns
    -------
    Pattern

    Examples
    --------
    >>> from fastsparse.sparsity import nm_pattern
    >>> nm_pattern((64, 128), 2, 4, rng=0)
    <Pattern 64x128, 4096 nonzeros, density 0.5>
    """
    rows, columns = _matrix_shape(shape)
    n, m = checks.integer(n, "n"), checks.integer(m, "m")
    if n > m:
        raise ValueError(f"n is {n}, expected at most m = {m}")
    if scores is None:
        magnitude = checks.generator(rng).random((rows, columns), np.float32)
    else:
        magnitude = np.abs(checks.real_array(scores, "scores"))
        if magnitude.shape != (rows, columns):
            raise ValueError(f"scores has shape {magnitude.shape}, expected {(rows, columns)} to match shape")
        if np.isnan(magnitude).any():
            raise ValueError("scores holds NaN, expected numbers")
    whole = columns - columns % m
    chosen = np.zeros((rows, columns), np.bool_)
    chosen[:, :whole] = largest_of_each(magnitude[:, :whole].reshape(-1, m), n).reshape(rows, whole)
    if whole < columns:
        chosen[:, whole:] = largest_of_each(magnitude[:, whole:], n)
    return from_elements(np.flatnonzero(chosen), (rows, columns))


def mask_pattern(mask: ArrayLike) -> Pattern:
    """The pattern of the elements of `mask` that are not zero.

    Parameters
    ----------
    mask : array (rows, columns), or (out, in, *kernel) for a convolution
        Of bool or numbers; further axes are joined to the columns.

    Returns
    -------
    Pattern, (rows, columns)

    Examples
    --------
    >>> from fastsparse.sparsity import mask_pattern
    >>> mask_pattern([[True, False, True], [False, False, True]])
    <Pattern 2x3, 3 nonzeros, density 0.5>
    """
    array = checks.as_array(mask, "mask")
    if array.ndim < 2 or array.dtype.kind not in "biuf":
        raise ValueError(f"mask has shape {array.shape} and dtype {array.dtype.name}, expected numbers (rows, columns)")
    flat = array.reshape(len(array), math.prod(array.shape[1:]))
    return from_elements(np.flatnonzero(flat), (flat.shape[0], flat.shape[1]))


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
    if not checks.is_sequence(shapes):
        raise TypeError(f"shapes is {checks.shown(shapes)}, expected a list of shapes (out, in, ...)")
    kernel = checks.flag(kernel, "kernel")
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
