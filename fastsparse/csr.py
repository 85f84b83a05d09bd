"""Sparse matrices in compressed sparse rows, structure and values apart.

A `Pattern` is where the nonzeros are; it never changes and carries the plans built for it. A `CSR` is a pattern with
values. Both are checked once, when they are made (see `fastsparse/_validate.py`), own their arrays and are read-only,
so whatever takes a `CSR` may trust it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray
from scipy import sparse

from fastsparse import _validate
from fastsparse._memo import Memo
from fastsparse._pattern import Pattern

__all__ = ["CSR", "Pattern", "csr"]

Built = TypeVar("Built")


class CSR:
    """A sparse matrix in compressed sparse rows, read-only.

    Parameters
    ----------
    indptr : array_like of int, (rows + 1,)
        Row m's nonzeros are number ``indptr[m]`` to ``indptr[m + 1]``.
    indices : array_like of int, (nnz,)
        Their columns. Columns are sorted and duplicates are summed.
    data : array_like, (nnz,)
        Their values: float32 and float64 are kept, float16, integers and bool become float32. Zeros are kept.
    shape : (rows, columns)

    Raises
    ------
    ValueError
        When a field contradicts another; the message names the field, what was found and what was expected.
    TypeError
        When `data` is complex, long double or no numbers at all.

    Examples
    --------
    >>> import fastsparse as fs
    >>> W = fs.CSR([0, 2, 3], [0, 3, 1], [1.0, 2.0, 3.0], (2, 4))
    >>> W.toarray()
    array([[1., 0., 0., 2.],
           [0., 3., 0., 0.]])
    """

    __slots__ = ("__weakref__", "_data", "_memo", "_pattern")
    __array_ufunc__ = None  # so that ndarray @ CSR comes to CSR.__rmatmul__

    def __init__(self, indptr: Any, indices: Any, data: Any, shape: Any) -> None:
        pointers, columns, values, checked = _validate.canonical(indptr, indices, _required(data), shape)
        self._set(Pattern._trusted(pointers, columns, checked), values)

    def _set(self, pattern: Pattern, data: NDArray[Any]) -> None:
        self._pattern, self._data = pattern, data
        self._memo = Memo()

    @classmethod
    def _trusted(cls, pattern: Pattern, data: NDArray[Any]) -> CSR:
        """Make a matrix of a pattern and a float32 or float64 array (nnz,), without a check or a copy.

        The matrix holds a read-only view; whoever writes to `data` later must not use the matrix any more.
        """
        matrix = cls.__new__(cls)
        matrix._set(pattern, _validate.frozen(data.view()))
        return matrix

    @property
    def pattern(self) -> Pattern:
        """Structure without values."""
        return self._pattern

    @property
    def data(self) -> NDArray[Any]:
        """Values, float32 or float64 (nnz,), read-only."""
        return self._data

    @property
    def indptr(self) -> NDArray[np.int64]:
        """Row starts, int64 (rows + 1,), read-only."""
        return self._pattern.indptr

    @property
    def indices(self) -> NDArray[Any]:
        """Columns, int32 or int64 (nnz,), rising in every row, read-only."""
        return self._pattern.indices

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self._pattern.shape

    @property
    def ndim(self) -> int:
        """Always 2."""
        return 2

    @property
    def nnz(self) -> int:
        """Number of stored values, zeros among them included."""
        return self._pattern.nnz

    @property
    def density(self) -> float:
        """Share of elements that are stored; 0.0 when there is no element."""
        return self._pattern.density

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values, float32 or float64."""
        return self._data.dtype

    @property
    def T(self) -> CSR:
        """The transposed matrix, built once."""
        return self.cached("T", self._transpose)

    def _transpose(self) -> CSR:
        pattern, permutation = self._pattern.transpose()
        if permutation.dtype != np.uint32:
            return CSR._trusted(pattern, _validate.frozen(self._data[permutation]))
        values = np.empty_like(self._data)
        from fastsparse_kernels import sparse_operator  # numba: not before something is computed

        sparse_operator.gather(values.itemsize * 8)(self._data, permutation, values)
        return CSR._trusted(pattern, _validate.frozen(values))

    def with_data(self, values: Any) -> CSR:
        """Return a matrix of the same pattern with other values.

        Parameters
        ----------
        values : array_like, (nnz,)
            In the order of ``data``; copied, and converted as by the constructor.

        Raises
        ------
        ValueError
            When there is not one value per nonzero.
        TypeError
            When they are not real numbers.
        """
        owned = _validate.owned_values(values, "values")
        if owned.shape != self._data.shape:
            raise ValueError(
                f"values has shape {owned.shape}, expected {self._data.shape}, one for each nonzero of the pattern"
            )
        return CSR._trusted(self._pattern, _validate.frozen(owned))

    def cached(self, key: Hashable, build: Callable[..., Built], *arguments: Any) -> Built:
        """Return what was built for these values under `key`; as `Pattern.cached`."""
        return self._memo.get(key, build, *arguments)

    def toarray(self) -> NDArray[Any]:
        """Return a new dense array (rows, columns)."""
        dense = np.zeros(self.shape, self.dtype)
        dense[self._pattern.rows(), self.indices] = self._data
        return dense

    def to_scipy(self) -> sparse.csr_array:
        """Return a new `scipy.sparse.csr_array` with copies of the arrays."""
        arrays = (self._data.copy(), self.indices.copy(), self.indptr.copy())
        return sparse.csr_array(arrays, shape=self.shape)

    def __matmul__(self, X: Any) -> Any:
        """``W @ X`` for dense X (K, N) or (K,), or sparse X (K, N): a dense array."""
        from fastsparse import functional

        if isinstance(X, CSR):
            X = X.to_scipy()
        if isinstance(X, np.ndarray) or not sparse.issparse(X):
            return functional.spmm(self, X)
        if X.ndim != 2 or X.shape[0] != self.shape[1]:
            raise ValueError(f"X has shape {X.shape}, expected ({self.shape[1]}, N) to match W of shape {self.shape}")
        return functional.linear(sparse.csr_array(X.T), self).T

    def __rmatmul__(self, X: Any) -> Any:
        """``X @ W`` for dense X (N, M) or (M,), or scipy sparse X (N, M): a dense array."""
        from fastsparse import functional

        if not sparse.issparse(X):
            X = np.asarray(X)
        if X.ndim not in (1, 2) or X.shape[-1] != self.shape[0]:
            raise ValueError(f"X has shape {X.shape}, expected (..., {self.shape[0]}) to match W of shape {self.shape}")
        if sparse.issparse(X):
            return functional.linear(sparse.csr_array(X), self.T)
        return functional.spmm(self.T, X.T).T

    def __repr__(self) -> str:
        return f"<CSR {self._pattern._summary()}, {self.dtype}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _with_data, (self._pattern, self._data)

    def __copy__(self) -> CSR:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> CSR:
        return self


def csr(obj: Any, dtype: DTypeLike | None = None) -> CSR:
    """Make a `CSR` of a dense array, any scipy.sparse array or matrix, or a `CSR`.

    Parameters
    ----------
    obj : array_like (rows, columns), scipy.sparse array or matrix, or CSR
        Any layout, byte order and real data type. A dense array's zeros are dropped, NaN is kept; zeros that a sparse
        matrix stores stay stored. Duplicates are summed. Nothing of `obj` is changed or kept.
    dtype : float32 or float64, optional
        Default: float64 for float64; float32 for float32, float16, integers (those above 2**24 are rounded) and bool.

    Returns
    -------
    CSR
        `obj` itself when it is a `CSR` of that type already.

    Raises
    ------
    ValueError
        When `obj` does not have two dimensions, or is a sparse matrix whose fields contradict each other.
    TypeError
        When its values are not real numbers, or `dtype` is neither float32 nor float64.

    Examples
    --------
    >>> import fastsparse as fs
    >>> fs.csr([[1.0, 0.0], [0.0, 2.0]], dtype="float32")
    <CSR 2x2, 2 nonzeros, density 0.5, float32>
    """
    wanted = _validate.checked_dtype(dtype)
    if isinstance(obj, CSR):
        if wanted is None or wanted == obj.dtype:
            return obj
        return CSR._trusted(obj.pattern, _validate.frozen(obj.data.astype(wanted)))
    if isinstance(obj, Pattern):
        raise TypeError("obj is a Pattern, which has no values, expected a matrix (use fs.CSR with the values)")
    if sparse.issparse(obj):
        return _from_scipy(obj, wanted)
    return _from_dense(obj, wanted)


def _from_dense(obj: Any, dtype: np.dtype[Any] | None) -> CSR:
    """Keep the nonzeros of a dense array; NaN counts as one."""
    if isinstance(obj, np.ma.MaskedArray):
        raise TypeError("obj is a masked array, expected an array without a mask (fill it first)")
    dense = np.asarray(obj)
    _validate.value_dtype(dense.dtype, "obj")
    if dense.ndim != 2:
        raise ValueError(f"obj has shape {dense.shape}, expected two dimensions (rows, columns)")
    rows, columns = dense.shape
    kept = dense != 0  # four times faster than np.nonzero on numbers in two dimensions
    places = np.flatnonzero(kept)
    values = _validate.frozen(_validate.owned_values(np.ascontiguousarray(dense).reshape(-1)[places], "obj", dtype))
    indptr = np.zeros(rows + 1, np.int64)
    np.cumsum(np.count_nonzero(kept, 1), out=indptr[1:])
    places -= np.repeat(np.arange(rows, dtype=np.int64) * columns, np.diff(indptr))
    return CSR._trusted(Pattern._trusted(indptr, places, (rows, columns)), values)


def _from_scipy(obj: Any, dtype: np.dtype[Any] | None) -> CSR:
    """Take over a scipy.sparse array or matrix of any format; its fields are not trusted."""
    if len(obj.shape) != 2:
        raise ValueError(f"obj has shape {obj.shape}, expected two dimensions (rows, columns)")
    if obj.format in ("csr", "csc"):
        what = "column" if obj.format == "csr" else "row"
        fields = _validate.canonical(obj.indptr, obj.indices, obj.data, obj.shape, what=what, dtype=dtype)
    else:
        coordinates = obj if obj.format == "coo" else obj.tocoo()
        fields = _validate.from_coordinates(coordinates.row, coordinates.col, coordinates.data, obj.shape, dtype)
    indptr, indices, values, shape = fields
    if obj.format == "csc":
        return CSR._trusted(Pattern._trusted(indptr, indices, shape[::-1]), values).T
    return CSR._trusted(Pattern._trusted(indptr, indices, shape), values)


def _required(data: Any) -> Any:
    if data is None:
        raise TypeError("data is None, expected one value for each nonzero")
    return data


def _with_data(pattern: Pattern, values: NDArray[Any]) -> CSR:
    """Rebuild a matrix when it is unpickled."""
    return CSR._trusted(pattern, np.empty(pattern.nnz, np.float32)).with_data(values)
