"""Mini-batches from arrays, sparse matrices or any iterable."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse

from fastsparse import checks
from fastsparse.arguments import Samples, is_sparse
from fastsparse.checks import as_array
from fastsparse.scipy_matrices import compressed_rows

Batch = tuple[Any, ...]  # x and y, or x, y and weights
Data: TypeAlias = tuple[Samples, ArrayLike] | tuple[Samples, ArrayLike, ArrayLike] | Iterable[tuple[Any, ...]]


class Arrays:
    """Mini-batches of arrays of equal length; x may be a scipy.sparse matrix and stays sparse, or a tuple of arrays.

    weights : one number for each sample, or None.

    A last batch of a single sample is joined to the previous batch, because one sample has no variance.
    """

    def __init__(
        self, x: Samples, y: ArrayLike, batch_size: int, name: str = "data", weights: ArrayLike | None = None
    ) -> None:
        self._several = isinstance(x, tuple)
        given = x if isinstance(x, tuple) else (x,)
        self._x = [
            compressed_rows(one, f"x of {name}") if is_sparse(one) else as_array(one, f"x of {name}") for one in given
        ]
        self._y = as_array(y, f"y of {name}")
        sizes = {array.shape[0] if array.ndim else 0 for array in (*self._x, self._y)}
        self.samples = sizes.pop() if len(sizes) == 1 else 0
        if not self.samples:
            shapes = " and ".join(str(array.shape) for array in self._x)
            raise ValueError(
                f"{name} has x of shape {shapes} and y of shape {self._y.shape}, "
                "expected first sizes that are equal and not 0"
            )
        if batch_size > self.samples:
            raise ValueError(f"batch_size is {batch_size}, expected at most {self.samples}, the samples in {name}")
        for part, array in (*(("x", array) for array in self._x), ("y", self._y)):
            if _has_nan(array.data if sparse.issparse(array) else array):
                raise ValueError(f"{name} holds NaN in {part}, expected numbers")
        self._weights = None if weights is None else as_array(weights, f"weights of {name}")
        if self._weights is not None and not _are_weights(self._weights, self.samples):
            raise ValueError(
                f"{name} has weights of shape {self._weights.shape} and dtype {self._weights.dtype}, expected "
                f"({self.samples},) numbers of at least 0, one for each sample"
            )
        cuts = list(range(0, self.samples, batch_size))
        if len(cuts) > 1 and self.samples - cuts[-1] == 1:
            cuts.pop()
        self._name = name
        self._bounds = list(zip(cuts, [*cuts[1:], self.samples]))

    def __len__(self) -> int:
        return len(self._bounds)

    def check_labels(self, output: tuple[int, ...]) -> None:
        """Raise when y holds integers that are no classes of an output of this shape."""
        if self._y.ndim == 1 and self._y.dtype.kind in "iu" and len(output) == 2:
            low, high = int(self._y.min()), int(self._y.max())
            if low < 0 or high >= output[1]:
                raise ValueError(
                    f"{self._name} has labels from {low} to {high}, expected 0 to {output[1] - 1} "
                    f"to match the model's output of {output[1]} classes"
                )

    def in_order(self) -> Iterator[Batch]:
        """Yield the batches in the order of the data."""
        return (self._batch(slice(a, b)) for a, b in self._bounds)

    def of_each_size(self) -> list[Any]:
        """x of one batch of each size that there is."""
        return [self._batch(slice(a, b))[0] for a, b in {b - a: (a, b) for a, b in self._bounds}.values()]

    def shuffled(self, rng: np.random.Generator) -> Iterator[Batch]:
        """Yield batches of the data in a new random order."""
        order = rng.permutation(self.samples)
        return (self._batch(order[a:b]) for a, b in self._bounds)

    def _batch(self, chosen: Any) -> Batch:
        weights = () if self._weights is None else (self._weights[chosen],)
        x = tuple(array[chosen] for array in self._x)
        return (x if self._several else x[0], self._y[chosen], *weights)


class Stream:
    """Mini-batches that an iterable of (x, y) or (x, y, weights) gives; it is iterated over once per epoch."""

    def __init__(self, batches: Iterable[Batch], name: str = "data") -> None:
        self._batches = batches
        self._name = name
        self._given: list[Any] = []

    def __len__(self) -> int:
        """Number of batches, 0 when unknown."""
        return operator.length_hint(self._batches)

    def in_order(self) -> Iterator[Batch]:
        """Yield the batches."""
        empty = True
        for batch in self._batches:
            empty = False
            if not isinstance(batch, (tuple, list)) or len(batch) not in (2, 3):
                raise ValueError(f"{self._name} gives a {type(batch).__name__}, expected pairs (x, y)")
            self._given = [batch[0]]
            yield tuple(batch)
        self._given = []
        if empty:
            raise ValueError(f"{self._name} gives no batch, expected an iterable that starts anew for every epoch")

    def of_each_size(self) -> list[Any]:
        """x of the batch that was given last."""
        return self._given

    def shuffled(self, rng: np.random.Generator) -> Iterator[Batch]:
        """Yield the batches in the iterable's order."""
        return self.in_order()


def batches(data: Any, batch_size: int, name: str = "data") -> Arrays | Stream:
    """Mini-batches of `data`: a tuple (x, y) or (x, y, weights) of arrays, or an iterable of such batches."""
    batch_size = checks.integer(batch_size, "batch_size")
    if isinstance(data, tuple) and len(data) in (2, 3):
        return Arrays(data[0], data[1], batch_size, name, *data[2:])
    if not isinstance(data, (tuple, str, bytes, np.ndarray)) and isinstance(data, Iterable):
        return Stream(data, name)
    raise TypeError(f"{name} is a {type(data).__name__}, expected (x, y) or an iterable of batches (x, y)")


def _are_weights(array: Any, samples: int) -> bool:
    """Tell whether an array has a finite number of at least 0 for each sample."""
    if array.shape != (samples,) or array.dtype.kind not in "fbiu":
        return False
    return bool(np.isfinite(array).all() and (array >= 0).all())


def _has_nan(array: Any) -> bool:
    """Tell whether a float array holds NaN, without a mask of its whole size."""
    if array.dtype.kind != "f":
        return False
    return any(bool(np.isnan(part).any()) for part in np.array_split(array, max(1, array.size >> 20)))
