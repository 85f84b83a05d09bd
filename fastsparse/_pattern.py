"""Structure of sparse matrices, apart from values. Import `Pattern` from `fastsparse.csr`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from fastsparse import _validate
from fastsparse._memo import Memo

Built = TypeVar("Built")


class Pattern:
    """Structure of a sparse matrix: which elements may be nonzero.

    Immutable and hashable; two patterns are equal when they have the same shape and the same nonzeros.

    Parameters
    ----------
    indptr : array_like of int, (rows + 1,)
        Row m's nonzeros are number ``indptr[m]`` to ``indptr[m + 1]``.
    indices : array_like of int, (nnz,)
        Their columns. Columns are sorted and duplicates are merged.
    shape : (rows, columns)

    Raises
    ------
    ValueError
        When a field contradicts another; the message names the field, what was found and what was expected.

    Examples
    --------
    >>> import fastsparse as fs
    >>> pattern = fs.Pattern([0, 2, 3], [0, 3, 1], (2, 4))
    >>> pattern
    <Pattern 2x4, 3 nonzeros, density 0.375>
    """

    __slots__ = ("__weakref__", "_hash", "_indices", "_indptr", "_memo", "_shape")

    def __init__(self, indptr: Any, indices: Any, shape: Any) -> None:
        pointers, columns, _, checked = _validate.canonical(indptr, indices, None, shape)
        self._set(pointers, columns, checked)

    def _set(self, indptr: NDArray[Any], indices: NDArray[Any], shape: tuple[int, int]) -> None:
        self._indptr, self._indices, self._shape = indptr, indices, shape
        self._memo = Memo()
        self._hash: int | None = None

    @classmethod
    def _trusted(cls, indptr: NDArray[Any], indices: NDArray[Any], shape: tuple[int, int]) -> Pattern:
        """Make a pattern of arrays that our own code built, valid, sorted, unique and not used elsewhere."""
        pattern = cls.__new__(cls)
        columns = np.ascontiguousarray(indices, dtype=_validate.index_dtype(shape[1]))
        pointers = np.ascontiguousarray(indptr, dtype=np.int64)
        pattern._set(_validate.frozen(pointers), _validate.frozen(columns), shape)
        return pattern

    @property
    def indptr(self) -> NDArray[np.int64]:
        """Row starts, int64 (rows + 1,), read-only."""
        return self._indptr

    @property
    def indices(self) -> NDArray[Any]:
        """Columns, int32 (nnz,) (int64 when there are more than 2**31 - 1 columns), rising in every row, read-only."""
        return self._indices

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self._shape

    @property
    def nnz(self) -> int:
        """Number of nonzeros."""
        return len(self._indices)

    @property
    def density(self) -> float:
        """Share of elements that may be nonzero; 0.0 when there is no element."""
        size = self._shape[0] * self._shape[1]
        return self.nnz / size if size else 0.0

    def rows(self) -> NDArray[np.int64]:
        """Row of every nonzero, int64 (nnz,), computed on each call."""
        return np.repeat(np.arange(self._shape[0]), np.diff(self._indptr))

    def transpose(self) -> tuple[Pattern, NDArray[Any]]:
        """Return the transposed pattern and the permutation of the values that goes with it.

        Returns
        -------
        pattern : Pattern, (columns, rows)
        permutation : int64 array (nnz,), uint32 below 2**32 nonzeros, read-only
            The transposed matrix's values are ``data[permutation]``.
        """
        return self.cached("transpose", self._transpose)

    def _transpose(self) -> tuple[Pattern, NDArray[Any]]:
        shape = self._shape[::-1]
        numbers = np.arange(self.nnz, dtype=np.uint32 if self.nnz < 2**32 else np.int64)
        columns = sparse.csr_array((numbers, self._indices, self._indptr), shape=self._shape).tocsc()
        return Pattern._trusted(columns.indptr, columns.indices, shape), _validate.frozen(columns.data)

    def cached(self, key: Hashable, build: Callable[..., Built], *arguments: Any) -> Built:
        """Return what was built for this pattern under `key`, by `build(*arguments)` when there is nothing yet.

        The store is bounded (32 entries, least recently used goes first) and safe to use from many threads; `build`
        may run more than once when threads ask at the same time, and all get the same result.
        """
        return self._memo.get(key, build, *arguments)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Pattern):
            return NotImplemented
        if self._shape != other._shape or self.nnz != other.nnz or hash(self) != hash(other):
            return False
        return np.array_equal(self._indptr, other._indptr) and np.array_equal(self._indices, other._indices)

    def __hash__(self) -> int:
        if self._hash is None:
            digest = hashlib.blake2b(self._indptr.data, digest_size=8)
            digest.update(self._indices.data)
            self._hash = hash((self._shape, digest.digest()))
        return self._hash

    def _summary(self) -> str:
        rows, columns = self._shape
        return f"{rows}x{columns}, {self.nnz} nonzeros, density {self.density:.4g}"

    def __repr__(self) -> str:
        return f"<Pattern {self._summary()}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return Pattern, (self._indptr, self._indices, self._shape)

    def __copy__(self) -> Pattern:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Pattern:
        return self
