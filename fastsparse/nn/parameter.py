"""What training changes: values, their gradient, and the optimizer's state, which travel together.

A sparse parameter is a Pattern and one value per nonzero. Whoever changes `value` in place calls `updated()`, so that
the matrix a layer multiplies with is packed anew once per change and not once per call.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastsparse import checks
from fastsparse.csr import CSR, Pattern
from fastsparse.runtime import buffers
from fastsparse.sparsity import growth
from fastsparse.sparsity.growth import FullGradient

Array = NDArray[Any]

_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


class OptimizerState(dict[str, Array]):
    """An optimizer's arrays for one parameter, by name.

    The optimizer holds them; a parameter refers to all that are alive, so that they follow its nonzeros.
    """


@dataclass(frozen=True, eq=False)
class RowGradient:
    """Gradient of a table that is zero outside some rows: what an embedding's batch leaves.

    Attributes
    ----------
    rows : int64 array (count,)
        Rising, none twice.
    values : array (count, length)
    shape : tuple of int
        Of the whole table. ``np.asarray`` makes it, with its zeros.
    """

    rows: NDArray[np.int64]
    values: Array
    shape: tuple[int, ...]

    @classmethod
    def summed(cls, rows: Array, values: Array, shape: tuple[int, ...]) -> RowGradient:
        """Of rows in any order, those that come several times added up."""
        order = np.argsort(rows, kind="stable")
        found, first = np.unique(rows[order], return_index=True)
        total = np.add.reduceat(values[order], first, axis=0) if len(first) else values[:0]
        return cls(found.astype(np.int64), total, shape)

    def __add__(self, other: RowGradient) -> RowGradient:
        rows, values = np.concatenate([self.rows, other.rows]), np.concatenate([self.values, other.values])
        return RowGradient.summed(rows, values, self.shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        whole = np.zeros(self.shape, dtype or self.values.dtype)
        whole[self.rows] = self.values
        return whole


class Parameter:
    """A trainable array.

    Parameters
    ----------
    value : array of float32 or float64
        Taken over when it is contiguous and aligned, copied otherwise. With a pattern: (nnz,), in the order of the
        pattern's nonzeros.
    pattern : Pattern, optional
        Where the values stand in their matrix; None for a dense parameter.

    Attributes
    ----------
    value : array
        Assigning copies into the same array and counts as an update; after changing it in place, call
        :meth:`updated`.
    grad : array like value, RowGradient, or None
        Sum of the gradients since the last :meth:`zero_grad`. Nobody writes into it: a new sum is a new array.
    version : int
        Counts the changes of value and pattern.
    state : dict of str to array
        Arrays of the optimizer that was made last, each of value's shape: they follow their nonzeros when the pattern
        changes, as do those of other optimizers.
    watched : bool
        Whether layers hand the full gradient of their backward passes to :meth:`keep`.

    Notes
    -----
    No read-only array is written to. Where the memory itself is read-only (files mapped by ``numpy.load`` or
    ``joblib.load`` with ``mmap_mode="r"``, buffers of pickle protocol 5), the parameter gets memory of its own before
    the first change, and shares what it was loaded from until then. An array that was made read-only stays as it is:
    training raises ValueError.

    Raises
    ------
    TypeError
        When value is not an array of float32 or float64.
    ValueError
        When it does not have one number for each nonzero of the pattern.
    """

    def __init__(self, value: Array, pattern: Pattern | None = None) -> None:
        if not isinstance(value, np.ndarray) or value.dtype.newbyteorder("=") not in _FLOATS:
            found = f"has dtype {value.dtype}" if isinstance(value, np.ndarray) else f"is {type(value).__name__}"
            raise TypeError(f"value {found}, expected an array of float32 or float64")
        if isinstance(value, np.ma.MaskedArray):
            raise TypeError("value is a masked array, expected an array without a mask (fill it first)")
        if pattern is not None and not isinstance(pattern, Pattern):
            raise TypeError(f"pattern is {checks.shown(pattern)}, expected a fastsparse.Pattern")
        if pattern is not None and value.shape != (pattern.nnz,):
            raise ValueError(f"value has shape {value.shape}, expected {(pattern.nnz,)}, one for each nonzero")
        # The empty shell of a model being read repeats one number and takes no memory: it is replaced, never trained.
        shell = not any(value.strides)
        kept = value.dtype.isnative and value.flags.aligned and (shell or value.flags.c_contiguous)
        self._value = value if kept else np.array(value, value.dtype.newbyteorder("="), order="C")
        self._pattern = pattern
        self._matrix: tuple[int, CSR] | None = None
        self.grad: Array | RowGradient | None = None
        self.version = 0
        self._state = OptimizerState()
        self._other_states: list[weakref.ref[OptimizerState]] = []
        self.watched = False
        self._full: list[FullGradient] = []

    @property
    def value(self) -> Array:
        """Current values."""
        return self._value

    @value.setter
    def value(self, new: ArrayLike) -> None:
        if new is not self._value:
            array = checks.real_array(new, "value")
            if array.shape != self._value.shape:
                raise ValueError(f"value has shape {array.shape}, expected {self._value.shape}")
            np.copyto(self.writable(), array, casting="same_kind")
        self.updated()

    def writable(self, name: str = "value") -> Array:
        """The values, to be changed in place; whoever does calls :meth:`updated`.

        Raises
        ------
        ValueError
            When somebody made the array read-only; the message calls it `name`.
        """
        value = self._value
        if not value.flags.carray:
            if value.flags.c_contiguous and not value.flags.writeable and not _in_read_only_memory(value):
                raise ValueError(f"{name} is read-only, expected a writable array (a copy of it can be trained)")
            self._make_own()
        return self._value

    def _make_own(self) -> None:
        """Move the values into new memory."""
        self._value, self._matrix = np.array(self._value, order="C"), None

    @property
    def state(self) -> dict[str, Array]:
        """Arrays of the optimizer that was made last."""
        return self._state

    @state.setter
    def state(self, new: Mapping[str, Array]) -> None:
        arrays = dict(new)
        self._state.clear()
        self._state.update(arrays)

    def new_state(self) -> OptimizerState:
        """The empty state of a new optimizer, which holds it; states of others stay theirs."""
        self._other_states = [ref for ref in self._other_states if ref() is not None]
        self._other_states.append(weakref.ref(self._state))
        self._state = OptimizerState()
        return self._state

    def link_state(self, state: OptimizerState) -> None:
        """Have the state of an optimizer that was copied or unpickled follow the nonzeros again."""
        if all(state is not known for known in self._states()):
            self._other_states.append(weakref.ref(state))

    def _states(self) -> Iterator[OptimizerState]:
        yield self._state
        for reference in self._other_states:
            state = reference()
            if state is not None:
                yield state

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

    def accumulate(self, grad: Array | RowGradient) -> None:
        """Add `grad` to the gradient; the first one is taken over without a copy, and is not changed.

        Raises
        ------
        ValueError
            When grad does not have the shape of value.
        """
        shape = grad.shape if isinstance(grad, RowGradient) else np.shape(grad)
        if shape != self._value.shape:
            raise ValueError(f"grad has shape {shape}, expected {self._value.shape}, the shape of value")
        if self.grad is None:
            self.grad = grad
        elif isinstance(grad, RowGradient) and isinstance(self.grad, RowGradient):
            self.grad = self.grad + grad
        else:
            self.grad = np.add(self.grad, grad, out=buffers.array(self._value.shape, self._value.dtype))

    def zero_grad(self) -> None:
        """Forget the gradient, and what was kept of backward passes."""
        self.grad = None
        self._full = []

    def matrix(self) -> CSR:
        """The matrix of current values, which shares their memory and follows them at each call of this method.

        Raises
        ------
        TypeError
            For a dense parameter.
        """
        if self._pattern is None:
            raise TypeError("a dense parameter has no sparse matrix")
        version, known = self.version, self._matrix
        if known is None:
            if not self._value.flags.c_contiguous:
                self._make_own()
            known = self._matrix = (version, CSR._trusted(self._pattern, self._value, changing=True))
        elif known[0] != version:
            known[1]._values_changed()
            known = self._matrix = (version, known[1])
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
        """Find the elements outside the pattern where the gradient is largest.

        The gradient, summed over the backward passes since the last :meth:`zero_grad`, exists one block of rows at a
        time; memory follows the block and `k`.

        Parameters
        ----------
        k : int

        Returns
        -------
        elements : int64 array (at most k,)
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
        return growth.grow_scores(self._pattern, self._full, k)

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
        if not isinstance(pattern, Pattern):
            raise TypeError(f"pattern is {checks.shown(pattern)}, expected a fastsparse.Pattern")
        where = growth.checked_source(self._pattern, pattern, source)
        fresh = np.flatnonzero(where < 0)
        for name, array in ((name, array) for state in self._states() for name, array in state.items()):
            if np.shape(array) != self._value.shape:
                raise ValueError(f"state[{name!r}] has shape {np.shape(array)}, expected {self._value.shape}")
        moved = [
            (state, {name: growth.carried(array, where, fresh) for name, array in state.items()})
            for state in self._states()
        ]
        value = growth.carried(self._value, where, fresh)
        self._pattern, self._value, self._matrix = pattern, value, None
        for state, arrays in moved:
            state.update(arrays)
        self.zero_grad()
        self.updated()

    def _adopt(self, value: Array, pattern: Pattern | None) -> None:
        """Take over checked values, and another pattern when it differs; optimizer state survives an equal pattern."""
        if pattern is not None and pattern != self._pattern:
            self._pattern = pattern
            for state in self._states():
                state.clear()
        self._value, self._matrix = value, None
        self.zero_grad()
        self.updated()

    def _snapshot(self) -> Callable[[], None]:
        """What brings everything about the parameter back to how it is now, arrays changed in place excepted."""
        attributes = dict(self.__dict__)
        states = [(state, dict(state)) for state in self._states()]

        def restore() -> None:
            self.__dict__.update(attributes)
            for state, arrays in states:
                state.clear()
                state.update(arrays)

        return restore

    def __getstate__(self) -> dict[str, Any]:
        # The cached matrix sees this object's array, not the copy's; what was kept of a step ends with the step.
        return {**self.__dict__, "_matrix": None, "_full": [], "_other_states": []}

    def __repr__(self) -> str:
        kind = "dense" if self._pattern is None else f"{self._pattern.nnz} nonzeros"
        return f"<Parameter {'x'.join(map(str, self.shape))}, {kind}, {self.dtype}>"


def _in_read_only_memory(array: Array) -> bool:
    """Whether nobody can write to the memory behind an array, whatever the array's flags: a mapped file, bytes."""
    owner: Any = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    try:
        return memoryview(owner).readonly
    except TypeError:  # None, or what is no buffer
        return False
