"""Layers that move or drop numbers: Flatten, Upsample, Dropout, Embedding."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from fastsparse import checks
from fastsparse.arguments import Axes, per_axis
from fastsparse.checks import Seed, as_array
from fastsparse.nn import initial
from fastsparse.nn.activations import floating
from fastsparse.nn.module import Module, check_gradient
from fastsparse.nn.parameter import Parameter, RowGradient
from fastsparse.ops.interpolation import interpolation_weights

Array = NDArray[Any]


class Flatten(Module):
    """x (N, ...) -> (N, product of the rest)."""

    def forward(self, x: ArrayLike) -> Array:
        array = as_array(x, "x")
        if array.ndim < 1:
            raise ValueError(f"x has shape {array.shape}, expected (N, ...)")
        self._keep(array.shape)
        return array.reshape(len(array), int(np.prod(array.shape[1:])))

    def backward(self, dy: Array, *, need_input: bool = True) -> Array | None:
        shape = self._taken()
        flat = (shape[0], int(np.prod(shape[1:])))
        return check_gradient(dy, flat).reshape(shape)


class Upsample(Module):
    """Larger images: every pixel repeated, or interpolated between its neighbours.

    Parameters
    ----------
    scale_factor : int or (height, width)
    mode : {"nearest", "bilinear"}
        "bilinear" takes pixels as squares (torch's ``align_corners=False``); edges are continued outside the image.
    """

    def __init__(self, scale_factor: Axes, mode: str = "nearest") -> None:
        height, width = per_axis(scale_factor, 2, "scale_factor", 1)
        self.scale_factor = (height, width)
        self.mode = checks.choice(mode, "mode", ("nearest", "bilinear"))

    def forward(self, x: ArrayLike) -> Array:
        """x (N, C, H, W) -> (N, C, H * height, W * width)."""
        y = floating(x)
        if y.ndim != 4 or min(y.shape[2:]) < 1:
            raise ValueError(f"x has shape {y.shape}, expected (N, C, H, W) with H and W at least 1")
        for axis, scale in zip((3, 2), self.scale_factor[::-1]):
            y = np.repeat(y, scale, axis) if self.mode == "nearest" else _stretched(y, scale, axis)
        self._keep((y.shape, y.dtype))
        return y

    def backward(self, dy: Array, *, need_input: bool = True) -> Array | None:
        grad = check_gradient(dy, *self._taken())
        if not need_input:
            return None
        for axis, scale in zip((2, 3), self.scale_factor):
            if self.mode == "bilinear":
                grad = _stretched_backward(grad, scale, axis)
            else:
                shape = *grad.shape[:axis], grad.shape[axis] // scale, scale, *grad.shape[axis + 1 :]
                grad = grad.reshape(shape).sum(axis=axis + 1)
        return grad


def _neighbours(x: Array, axis: int) -> list[Array]:
    """For every pixel along an axis the one before, itself and the next; itself where there is none."""
    at = np.arange(x.shape[axis])
    return [x.take((at - 1).clip(0), axis), x, x.take((at + 1).clip(max=at[-1]), axis)]


def _stretched(x: Array, scale: int, axis: int) -> Array:
    """Interpolate along an axis."""
    near, made = _neighbours(x, axis), []
    for weights in interpolation_weights(scale).astype(x.dtype):
        terms = [w * part for w, part in zip(weights, near) if w]
        made.append(sum(terms[1:], terms[0]))
    shape = *x.shape[:axis], x.shape[axis] * scale, *x.shape[axis + 1 :]
    return np.stack(made, axis + 1).reshape(shape)


def _stretched_backward(dy: Array, scale: int, axis: int) -> Array:
    """The transpose of `_stretched`."""
    shape = *dy.shape[:axis], dy.shape[axis] // scale, scale, *dy.shape[axis + 1 :]
    parts = np.moveaxis(dy.reshape(shape), axis + 1, 0)
    before, own, after = (
        np.tensordot(w, parts, 1) for w in interpolation_weights(scale).astype(dy.dtype).T
    )  # fmt: skip
    before, own, after = (np.moveaxis(part, axis, 0) for part in (before, own, after))
    grad = own.copy()
    grad[:-1] += before[1:]
    grad[0] += before[0]
    grad[1:] += after[:-1]
    grad[-1] += after[-1]
    return np.ascontiguousarray(np.moveaxis(grad, 0, axis))


class Dropout(Module):
    """In training mode, sets each element to 0 with probability `p` and divides the others by 1 - p.

    Srivastava et al., Dropout, JMLR 15 (2014).

    Parameters
    ----------
    p : float in [0, 1)
    rng : None, int or Generator
    """

    def __init__(self, p: float = 0.5, *, rng: Seed = None) -> None:
        self.p = checks.number(p, "p", 0, 1, ends="[)")
        self.rng = checks.generator(rng)

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


def embedded(table: Array, x: Array, positions: Array | None = None) -> Array:
    """Rows of a table (rows, length) by their numbers, x (...) -> (..., length), and the rows of positions on top.

    Raises
    ------
    TypeError, ValueError
        When x does not hold integers, or others than numbers of rows, or more of them than there are positions.
    """
    if positions is not None and (x.ndim != 2 or x.shape[1] > len(positions)):
        raise ValueError(f"x has shape {x.shape}, expected (N, tokens) with at most {len(positions)} tokens")
    if x.dtype.kind not in "iu":
        raise TypeError(f"x has dtype {x.dtype.name}, expected integers")
    if x.size and not 0 <= int(x.min()) <= int(x.max()) < len(table):
        raise ValueError(f"x goes from {x.min()} to {x.max()}, expected 0 to {len(table) - 1}")
    y = np.asarray(table[x])
    if positions is not None:
        y += positions[: x.shape[1]]
    return y


def padding_mask(x: Array, dtype: np.dtype[Any], name: str) -> Array:
    """What attention adds to its scores: 0, or -inf where x (N, keys) is True.

    Raises
    ------
    TypeError
        When x does not hold booleans.
    """
    if x.dtype != np.bool_:
        raise TypeError(f"{name} has dtype {x.dtype.name}, expected booleans, which are True where a key is padding")
    return np.where(x, dtype.type(-np.inf), dtype.type(0))


class Embedding(Module):
    """A table of vectors, one for each integer, and if wanted one for each position, which is added.

    Parameters
    ----------
    num_embeddings : int
        Number of vectors.
    embedding_dim : int
        Length of a vector.
    positions : int
        Longest sequence, for which each position has a vector of its own; 0 for none.
    sparse : bool
        Gradients of the table are a `RowGradient`: optimizers then change the rows that a batch has used and leave all
        others, their momentum and their weight decay alone, and time follows the batch and not the table.
    dtype : float32 or float64
    rng : None, int or Generator
        For the initial values, which are standard normal.
    """

    input_kind = "int64"

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        positions: int = 0,
        sparse: bool = False,
        dtype: DTypeLike = "float32",
        rng: Seed = None,
    ) -> None:
        self.num_embeddings = checks.integer(num_embeddings, "num_embeddings")
        self.embedding_dim = checks.integer(embedding_dim, "embedding_dim")
        self.positions = checks.integer(positions, "positions", 0)
        self.sparse = checks.flag(sparse, "sparse")
        shape, kind, generator = (
            (self.num_embeddings, self.embedding_dim),
            checks.float_dtype(dtype),
            checks.generator(rng),
        )
        self.weight = Parameter(initial.standard_normal(shape, kind, generator))
        self.position = None
        if self.positions:
            table = (self.positions, self.embedding_dim)
            self.position = Parameter(initial.standard_normal(table, kind, generator))

    def forward(self, x: ArrayLike) -> Array:
        """x integers (...) in [0, num_embeddings) -> (..., embedding_dim); with positions x is (N, tokens)."""
        array = as_array(x, "x")
        y = embedded(self.weight.value, array, None if self.position is None else self.position.value)
        self._keep(array)
        return y

    def backward(self, dy: Array, *, need_input: bool = True) -> Array | None:
        """As ``Module.backward``; there is no gradient at integers."""
        x = self._taken()
        grad = check_gradient(dy, (*x.shape, self.embedding_dim), self.weight.dtype)
        if self.position is not None:
            total = np.zeros_like(self.position.value)
            total[: x.shape[1]] = grad.sum(axis=0)
            self.position.accumulate(total)
        rows = RowGradient.summed(x.reshape(-1), grad.reshape(-1, self.embedding_dim), self.weight.shape)
        self.weight.accumulate(rows if self.sparse else np.asarray(rows))
        return None
