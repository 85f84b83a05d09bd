"""Layers that move or drop numbers: Flatten, Dropout, Embedding."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from fastsparse.arguments import Seed
from fastsparse.nn import _arguments as check
from fastsparse.nn import initial
from fastsparse.nn.activations import floating
from fastsparse.nn.module import Module, check_gradient
from fastsparse.nn.parameter import Parameter

Array = NDArray[Any]


class Flatten(Module):
    """x (N, ...) -> (N, product of the rest)."""

    def forward(self, x: ArrayLike) -> Array:
        array = np.asarray(x)
        if array.ndim < 1:
            raise ValueError(f"x has shape {array.shape}, expected (N, ...)")
        self._keep(array.shape)
        return array.reshape(len(array), int(np.prod(array.shape[1:])))

    def backward(self, dy: Array, *, need_input: bool = True) -> Array | None:
        shape = self._taken()
        flat = (shape[0], int(np.prod(shape[1:])))
        return check_gradient(dy, flat, np.asarray(dy).dtype).reshape(shape)

    def config(self) -> dict[str, Any]:
        return {}


class Dropout(Module):
    """In training mode, sets each element to 0 with probability `p` and divides the others by 1 - p.

    Srivastava et al., Dropout, JMLR 15 (2014).

    Parameters
    ----------
    p : float in [0, 1)
    rng : None, int or Generator
    """

    def __init__(self, p: float = 0.5, *, rng: Seed = None) -> None:
        self.p = check.number(p, "p", 0.0)
        if self.p >= 1:
            raise ValueError(f"p is {p!r}, expected a number from 0 to below 1")
        self.rng = check.generator(rng)

    def forward(self, x: ArrayLike) -> Array:
        """x of any shape -> the same shape; x itself in evaluation mode."""
        array = floating(x)
        if not self.training or self.p == 0:
            return array
        kept = self.rng.random(array.shape, np.float32) >= self.p
        mask = kept * array.dtype.type(1 / (1 - self.p))
        self._keep(mask)
        return array * mask

    def backward(self, dy: Array, *, need_input: bool = True) -> Array | None:
        if not self.training or self.p == 0:
            return dy
        mask = self._taken()
        return check_gradient(dy, mask.shape, mask.dtype) * mask

    def config(self) -> dict[str, Any]:
        return {"p": self.p}


def embedded(table: Array, x: Array) -> Array:
    """Rows of a table (rows, length) by their numbers: x (...) -> (..., length).

    Raises
    ------
    TypeError, ValueError
        When x does not hold integers, or others than numbers of rows.
    """
    if x.dtype.kind not in "iu":
        raise TypeError(f"x has dtype {x.dtype.name}, expected integers")
    if x.size and not 0 <= int(x.min()) <= int(x.max()) < len(table):
        raise ValueError(f"x goes from {x.min()} to {x.max()}, expected 0 to {len(table) - 1}")
    return np.asarray(table[x])


class Embedding(Module):
    """A table of vectors, one for each integer.

    Parameters
    ----------
    num_embeddings : int
        Number of vectors.
    embedding_dim : int
        Length of a vector.
    dtype : float32 or float64
    rng : None, int or Generator
        For the initial values, which are standard normal.
    """

    input_kind = "int64"

    def __init__(
        self, num_embeddings: int, embedding_dim: int, *, dtype: DTypeLike = "float32", rng: Seed = None
    ) -> None:
        self.num_embeddings = check.integer(num_embeddings, "num_embeddings")
        self.embedding_dim = check.integer(embedding_dim, "embedding_dim")
        shape = (self.num_embeddings, self.embedding_dim)
        self.weight = Parameter(initial.standard_normal(shape, check.dtype(dtype), check.generator(rng)))

    def forward(self, x: ArrayLike) -> Array:
        """x integers (...) in [0, num_embeddings) -> (..., embedding_dim)."""
        array = np.asarray(x)
        y = embedded(self.weight.value, array)
        self._keep(array)
        return y

    def backward(self, dy: Array, *, need_input: bool = True) -> Array | None:
        """As ``Module.backward``; there is no gradient at integers."""
        x = self._taken()
        grad = check_gradient(dy, (*x.shape, self.embedding_dim), self.weight.dtype)
        total = np.zeros_like(self.weight.value)
        np.add.at(total, x.reshape(-1), grad.reshape(-1, self.embedding_dim))
        self.weight.accumulate(total)
        return None

    def config(self) -> dict[str, Any]:
        return {
            "num_embeddings": self.num_embeddings,
            "embedding_dim": self.embedding_dim,
            "dtype": self.weight.dtype.name,
        }
