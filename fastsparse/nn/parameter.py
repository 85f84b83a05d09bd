"""What training changes: values, their gradient, and the optimizer's state, which travel together.

A sparse parameter is a Pattern and one value per nonzero. Whoever changes `value` in place calls `updated()`, so that
the matrix a layer multiplies with is packed anew once per change and not once per call.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fastsparse.csr import CSR, Pattern
from fastsparse.sparsity.selection import TopK

Array = NDArray[Any]

# Elements of the full gradient that exist at a time when places to grow are looked for.
_BLOCK = 1 << 18


class FullGradient(Protocol):
    """The gradient of one backward pass at all elements of the matrix, computed in blocks of rows when asked for."""

    def rows(self, first: int, stop: int) -> Array:
        """Rows `first` to `stop`, (stop - first, columns): a new array."""


class Parameter:
    """A trainable array.

    Parameters
    ----------
    value : array of float32 or float64
        Taken over, not copied when it is contiguous. With a pattern: (nnz,), in the order of the pattern's nonzeros.
    pattern : Pattern, optional
        Where the values stand in their matrix; None for a dense parameter.

    Attributes
    ----------
    value : array
        Assigning copies into the same array and counts as an update; after changing it in place, call
        :meth:`updated`.
    grad : array like value, or None
        Sum of the gradients since the last :meth:`zero_grad`.
    version : int
        Counts the changes of value and pattern.
    state : dict of str to array
        The optimizer's arrays, each of value's shape: they follow their nonzeros when the pattern changes.
    watched : bool
        Whether layers hand the full gradient of their backward passes to :meth:`keep`.
    """

    def __init__(self, value: Array, pattern: Pattern | None = None) -> None:
        if pattern is not None and value.shape != (pattern.nnz,):
            raise ValueError(f"value has shape {value.shape}, expected {(pattern.nnz,)}, one for each nonzero")
        # The empty shell of a model being read repeats one number and takes no memory: it is replaced, never trained.
        shell = not any(value.strides)
        self._value = value if shell or value.flags.c_contiguous else np.ascontiguousarray(value)
        self._pattern = pattern
        self._matrix: tuple[int, CSR] | None = None
        self.grad: Array | None = None
        self.version = 0
        self.state: dict[str, Array] = {}
        self.watched = False
        self._full: list[FullGradient] = []

    @property
    def value(self) -> Array:
        """Current values."""
        return self._value

    @value.setter
    def value(self, new: Any) -> None:
        if new is not self._value:
            array = np.asarray(new)
            if array.shape != self._value.shape:
                raise ValueError(f"value has shape {array.shape}, expected {self._value.shape}")
            np.copyto(self._value, array, casting="same_kind")
        self.updated()

    @property
    def pattern(self) -> Pattern | None:
        """Where the values stand; None for a dense parameter."""
        return self._pattern

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the matrix for a sparse parameter, of the array for a dense one."""
        return self._value.shape if self._pattern is None else self._pattern.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""
        return self._value.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the values and, for a sparse parameter, of their pattern."""
        structure = 0 if self._pattern is None else self._pattern.indptr.nbytes + self._pattern.indices.nbytes
        return self._value.nbytes + structure

    def updated(self) -> None:
        """Tell that `value` was changed in place."""
        self.version += 1

    def accumulate(self, grad: Array) -> None:
        """Add `grad` (shape of value) to the gradient; the first one is taken over without a copy."""
        if self.grad is None:
            self.grad = grad
        else:
            self.grad += grad

    def zero_grad(self) -> None:
        """Forget the gradient, and what was kept of backward passes."""
        self.grad = None
        self._full = []

    def matrix(self) -> CSR:
        """The matrix of current values, built once per version; it sees later changes, so use it at once.

        Raises
        ------
        TypeError
            For a dense parameter.
        """
        if self._pattern is None:
            raise TypeError("a dense parameter has no sparse matrix")
        version, known = self.version, self._matrix
        if known is None or known[0] != version:
            known = (version, CSR._trusted(self._pattern, self._value))
            self._matrix = known
        return known[1]

    def watch(self, wanted: bool) -> None:
        """Have the next backward passes keep what :meth:`grow_scores` needs, or not."""
        self.watched = wanted
        if not wanted:
            self._full = []

    def keep(self, full: FullGradient) -> None:
        """Take what the full gradient of a backward pass can be computed from; layers call it while watched."""
        self._full.append(full)

    def grow_scores(self, k: int) -> tuple[NDArray[np.int64], Array]:
        """Find the places outside the pattern where the gradient is largest.

        The gradient, summed over the backward passes since the last :meth:`zero_grad`, exists one block of rows at a
        time; memory follows the block and `k`.

        Parameters
        ----------
        k : int

        Returns
        -------
        places : int64 array (at most k,)
            row * columns + column, rising; of equal magnitudes the first. NaN is never chosen.
        scores : array
            Magnitudes of the gradient there.

        Raises
        ------
        RuntimeError
            When no backward pass was kept.
        """
        if self._pattern is None:
            raise TypeError("a dense parameter has no pattern to grow")
        if not self._full:
            raise RuntimeError("no backward pass was kept for growing, expected one after watch(True)")
        found = self._offered(TopK(self._pattern, k, guess=True))
        if not found.complete:
            found = self._offered(TopK(self._pattern, k))
        return found.result()

    def _offered(self, found: TopK) -> TopK:
        """`found` after it has seen the full gradient, block by block."""
        rows, columns = self.shape
        step = max(1, _BLOCK // max(columns, 1))
        for first in range(0, rows, step):
            stop = min(first + step, rows)
            block = self._full[0].rows(first, stop)
            for full in self._full[1:]:
                block += full.rows(first, stop)
            found.offer(block, first)
        return found

    def replace_pattern(self, pattern: Pattern, source: NDArray[np.integer[Any]] | None = None) -> None:
        """Move to another pattern of the same shape.

        Nonzeros that stay keep their value and optimizer state; new ones start at zero in both. The gradient is
        forgotten.

        Parameters
        ----------
        pattern : Pattern
        source : integer array (pattern.nnz,), optional
            For every new nonzero, its position among the old ones, or -1 when it is new. Found by comparing the two
            patterns when not given, in O(nnz log nnz).
        """
        if self._pattern is None:
            raise TypeError("a dense parameter has no pattern to replace")
        if pattern.shape != self._pattern.shape:
            raise ValueError(f"pattern has shape {pattern.shape}, expected {self._pattern.shape}")
        where = _positions(self._pattern, pattern) if source is None else np.asarray(source)
        if where.shape != (pattern.nnz,):
            raise ValueError(f"source has shape {where.shape}, expected {(pattern.nnz,)}, one for each new nonzero")
        if where.size and not -1 <= int(where.min()) <= int(where.max()) < self._pattern.nnz:
            raise ValueError(f"source goes from {where.min()} to {where.max()}, expected -1 to {self._pattern.nnz - 1}")
        fresh = np.flatnonzero(where < 0)
        state = {name: _carried(array, where, fresh) for name, array in self.state.items()}
        value = _carried(self._value, where, fresh)
        self._pattern, self._value, self.state, self._matrix = pattern, value, state, None
        self.zero_grad()
        self.updated()

    def _adopt(self, value: Array, pattern: Pattern | None) -> None:
        """Take over checked values, and another pattern when it differs; optimizer state survives an equal pattern."""
        if pattern is not None and pattern != self._pattern:
            self._pattern, self.state = pattern, {}
        self._value, self._matrix = value, None
        self.zero_grad()
        self.updated()

    def __getstate__(self) -> dict[str, Any]:
        # The cached matrix sees this object's array, not the copy's; what was kept of a step ends with the step.
        return {**self.__dict__, "_matrix": None, "_full": []}

    def __repr__(self) -> str:
        kind = "dense" if self._pattern is None else f"{self._pattern.nnz} nonzeros"
        return f"<Parameter {'x'.join(map(str, self.shape))}, {kind}, {self.dtype}>"


def _carried(array: Array, where: Array, fresh: Array) -> Array:
    """array[where], with 0 at the places `fresh`, where `where` is -1."""
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
