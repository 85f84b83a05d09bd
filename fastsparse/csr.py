"""Sparse matrices in compressed sparse rows, structure and values apart.

A `Pattern` holds the positions of the nonzeros; it is immutable and keeps the plans built for it. A `CSR` is a pattern
with values. Both own their arrays, which are read-only, so code that takes a `CSR` may trust it.

Raw arrays are checked once, when a matrix is made (contract I1). They are copied before they are checked, so that a
caller or another thread cannot change them afterwards. Errors name the field, what was found and what was expected.
"""

from __future__ import annotations

import hashlib
import numbers
import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray
from scipy import sparse

from fastsparse.checks import INT64_MAX, as_array, float_dtype, shown
from fastsparse.runtime.memo import Memoized

__all__ = ["CSR", "Pattern", "csr"]

Built = TypeVar("Built")

_PLAN_BYTES = 32  # bound of a matrix's plans, relative to its own bytes: several batch sizes, forward and backward
_DENSE_BYTES = 2**30  # what np.asarray(W) may take: more is hardly meant
# What a CSR has in place of methods of SciPy's matrices.
_INSTEAD = {"dot": "W @ x", "transpose": "W.T", "astype": "fastsparse.csr(W, dtype)", "todense": "W.toarray()"}
INT32_MAX = 2**31 - 1

IntArray = NDArray[Any]  # int64, or int32 for indices
FloatArray = NDArray[Any]  # float32 or float64
MatrixLike: TypeAlias = "ArrayLike | sparse.sparray | sparse.spmatrix | CSR"
Product: TypeAlias = "Callable[[CSR, MatrixLike], NDArray[Any]]"


def frozen(array: NDArray[Any]) -> NDArray[Any]:
    """Make our own array read-only, and return a view that cannot be made writable again."""
    array.flags.writeable = False
    return array.view()


def checked_shape(shape: Sequence[int]) -> tuple[int, int]:
    """Return `shape` as two Python ints.

    Raises
    ------
    ValueError
        When it is anything but two non-negative 64-bit integers.
    """
    try:
        rows, columns = (operator.index(size) for size in shape)
    except (TypeError, ValueError):
        raise ValueError(f"shape is {shown(shape)}, expected two non-negative integers (rows, columns)") from None
    if min(rows, columns) < 0 or max(rows, columns) > INT64_MAX:
        raise ValueError(f"shape is {(rows, columns)}, expected two non-negative integers below 2**63")
    return rows, columns


def value_dtype(found: np.dtype[Any], name: str) -> np.dtype[Any]:
    """Type in which values of type `found` are stored: float64 for float64, float32 for smaller floats, integers, bool.

    Raises
    ------
    TypeError
        For complex, long double, object, text and date types.
    """
    if found.kind == "f" and found.itemsize == 8:
        return np.dtype(np.float64)
    if found.kind in "biu" or (found.kind == "f" and found.itemsize < 8):
        return np.dtype(np.float32)
    raise TypeError(
        f"{name} has dtype {found.name}, expected float32 or float64 (float16, integers and bool are converted)"
    )


def owned_values(values: ArrayLike, name: str = "data", dtype: np.dtype[Any] | None = None) -> FloatArray:
    """Copy `values`, of any layout and byte order, into a new native float32 or float64 array of the same shape."""
    array = values if type(values) is np.ndarray else as_array(values, name)
    kept = value_dtype(array.dtype, name)
    return np.array(array, dtype=dtype or kept, order="C", copy=True, subok=False)


def owned_integers(values: ArrayLike, name: str) -> IntArray:
    """Copy a one-dimensional integer array into a new native array that int64 can hold."""
    array = as_array(values, name)
    if array.size == 0 and not isinstance(values, np.ndarray):
        array = array.astype(np.int64)  # an empty list carries no type
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name} has dtype {array.dtype.name}, expected integers")
    if array.ndim != 1:
        raise ValueError(f"{name} has shape {array.shape}, expected one dimension")
    owned = np.array(array, dtype=array.dtype.newbyteorder("="), copy=True, subok=False)
    if owned.dtype == np.uint64 and owned.size and int(owned.max()) > INT64_MAX:
        position = int(owned.argmax())
        raise ValueError(f"{name}[{position}] is {int(owned[position])}, expected a value below 2**63")
    return owned


def _check_range(values: IntArray, name: str, limit: int, what: str, shape: tuple[int, int]) -> None:
    """Raise unless 0 <= values < limit."""
    if values.size == 0 or (values.min() >= 0 and int(values.max()) < limit):
        return
    position = int(values.argmin() if values.min() < 0 else values.argmax())
    raise ValueError(
        f"{name}[{position}] is {int(values[position])}, expected 0 <= {what} < {limit} to match shape {shape}"
    )


def _check_indptr(indptr: IntArray, length: int, rows: int, shape: tuple[int, int]) -> None:
    """Raise unless `indptr` starts at 0, never falls and ends at `length`."""
    if len(indptr) != rows + 1:
        raise ValueError(f"indptr has length {len(indptr)}, expected {rows + 1} to match shape {shape}")
    if indptr[0] != 0:
        raise ValueError(f"indptr[0] is {indptr[0]}, expected 0")
    falls = indptr[1:] < indptr[:-1]
    if falls.any():
        position = int(falls.argmax()) + 1
        raise ValueError(
            f"indptr[{position}] is {indptr[position]}, expected at least {indptr[position - 1]}, the value before it"
        )
    if indptr[-1] != length:
        raise ValueError(f"indptr[{rows}] is {indptr[-1]}, expected {length}, the length of indices")


def index_dtype(columns: int) -> type[np.int32] | type[np.int64]:
    """Type of column indices for a matrix of that many columns."""
    return np.int32 if columns <= INT32_MAX else np.int64


def canonical(
    indptr: ArrayLike, indices: ArrayLike, data: ArrayLike | None, shape: Sequence[int], *, what: str = "column",
    dtype: np.dtype[Any] | None = None,
) -> tuple[IntArray, IntArray, Any, tuple[int, int]]:  # fmt: skip
    """Check raw compressed rows and return owned read-only ones, sorted and with duplicates summed. O(nnz).

    Parameters
    ----------
    indptr : array_like of int, (rows + 1,)
    indices : array_like of int, (nnz,)
    data : array_like, (nnz,), or None for a structure without values
    shape : (rows, columns)
    what : {"column", "row"}
        Meaning of `indices`. With "row", the arrays are compressed columns, `shape` is that of the matrix, and the
        result is compressed columns, too.
    dtype : float32 or float64, optional
        Type of the returned values; by default as `value_dtype` says.

    Returns
    -------
    indptr, indices, data, shape
        int64, int32 or int64, float32 or float64 (None when `data` is), and two Python ints.

    Raises
    ------
    ValueError
        When a field breaks contract I1.
    TypeError
        When `data` is not real numbers.
    """
    full_shape = checked_shape(shape)
    major, minor = full_shape if what == "column" else full_shape[::-1]
    pointers = owned_integers(indptr, "indptr").astype(np.int64, copy=False)
    minors = owned_integers(indices, "indices")
    values = None if data is None else owned_values(data, dtype=dtype)
    _check_indptr(pointers, len(minors), major, full_shape)
    if values is not None and values.shape != minors.shape:
        raise ValueError(f"data has shape {values.shape}, expected {minors.shape} to match indices")
    _check_range(minors, "indices", minor, what, full_shape)
    minors = minors.astype(index_dtype(minor), copy=False)
    if not _is_canonical(pointers, minors):
        pointers, minors, values = _sorted_and_summed(pointers, minors, values, (major, minor))
    return frozen(pointers), frozen(minors), None if values is None else frozen(values), full_shape


def _is_canonical(indptr: IntArray, indices: IntArray) -> bool:
    """Tell whether columns rise strictly inside every row."""
    if len(indices) < 2:
        return True
    rises = indices[1:] > indices[:-1]
    starts = indptr[1:-1]
    rises[starts[(starts > 0) & (starts < len(indices))] - 1] = True  # no order is required between rows
    return bool(rises.all())


def _sorted_and_summed(
    indptr: IntArray, indices: IntArray, values: FloatArray | None, shape: tuple[int, int]
) -> tuple[IntArray, IntArray, FloatArray | None]:
    """Sort columns inside rows and sum duplicates, in the values' own precision."""
    placeholder = np.zeros(len(indices), np.float32) if values is None else values
    matrix = sparse.csr_array((placeholder, indices, indptr), shape=shape)
    matrix.sum_duplicates()
    kept = matrix.nnz
    return (
        np.array(matrix.indptr, dtype=np.int64),
        np.array(matrix.indices[:kept], dtype=index_dtype(shape[1])),
        None if values is None else np.array(matrix.data[:kept]),
    )


def from_coordinates(
    rows: ArrayLike, columns: ArrayLike, data: ArrayLike, shape: Sequence[int], dtype: np.dtype[Any] | None
) -> tuple[IntArray, IntArray, Any, tuple[int, int]]:
    """Check coordinates and return canonical compressed rows, as `canonical` does."""
    full_shape = checked_shape(shape)
    row, column = owned_integers(rows, "row"), owned_integers(columns, "col")
    values = owned_values(data, dtype=dtype)
    for name, found in (("col", column.shape), ("data", values.shape)):
        if found != row.shape:
            raise ValueError(f"{name} has shape {found}, expected {row.shape} to match row")
    _check_range(row, "row", full_shape[0], "row", full_shape)
    _check_range(column, "col", full_shape[1], "column", full_shape)
    matrix = sparse.coo_array((values, (row, column)), shape=full_shape).tocsr()
    return canonical(matrix.indptr, matrix.indices, matrix.data, full_shape)


def _field(path: str, text: str) -> Any:
    """Read-only property of a stored attribute; reading it needs no Python call."""
    return property(operator.attrgetter(path), doc=text)


# ----------------------------------------------------------------------------------------------- structure


class Pattern(Memoized):
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

    __slots__ = ("__weakref__", "_full", "_hash", "_indices", "_indptr", "_shape", "_transposed")

    def __init__(self, indptr: ArrayLike, indices: ArrayLike, shape: Sequence[int]) -> None:
        pointers, columns, _, checked = canonical(indptr, indices, None, shape)
        self._set(pointers, columns, checked)

    def _set(self, indptr: NDArray[Any], indices: NDArray[Any], shape: tuple[int, int]) -> None:
        self._indptr, self._indices, self._shape = indptr, indices, shape
        self._full = indices.size == shape[0] * shape[1]
        self._limit = _PLAN_BYTES * (indptr.nbytes + indices.nbytes)
        self._hash: int | None = None
        self._transposed: tuple[Pattern, NDArray[Any]] | None = None

    @classmethod
    def _trusted(cls, indptr: NDArray[Any], indices: NDArray[Any], shape: tuple[int, int]) -> Pattern:
        """Make a pattern of arrays that our own code built, valid, sorted, unique and not used elsewhere."""
        pattern = cls.__new__(cls)
        columns = np.ascontiguousarray(indices, dtype=index_dtype(shape[1]))
        pointers = np.ascontiguousarray(indptr, dtype=np.int64)
        pattern._set(frozen(pointers), frozen(columns), shape)
        return pattern

    indptr: NDArray[np.int64] = _field("_indptr", """Row starts, int64 (rows + 1,), read-only.""")
    indices: NDArray[Any] = _field(
        "_indices", """Columns (nnz,), rising in every row, read-only; int32, int64 where there are 2**31 or more."""
    )
    shape: tuple[int, int] = _field("_shape", """(rows, columns).""")
    nnz: int = _field("_indices.size", """Number of nonzeros.""")
    full: bool = _field("_full", """Whether every element may be nonzero.""")

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
        if self._transposed is None:
            self._transposed = self._transpose()  # concurrent threads may each build one; the last is kept
        return self._transposed

    def _without_empty(self) -> tuple[NDArray[np.int64], NDArray[Any], Pattern]:
        counts = np.diff(self._indptr)
        rows = np.flatnonzero(counts)
        columns, indices = np.unique(self._indices, return_inverse=True)
        pointers = np.concatenate([[0], np.cumsum(counts[rows])])
        return rows, columns, Pattern._trusted(pointers, indices, (len(rows), len(columns)))

    def _transpose(self) -> tuple[Pattern, NDArray[Any]]:
        (rows, columns), nnz = self._shape, self.nnz
        if max(rows, columns) <= INT32_MAX and nnz < 2**32:
            from fastsparse_kernels import sparse_operator  # imports Numba, deferred until something is computed

            starts = np.zeros(columns + 1, np.int64)
            indices, permutation = np.empty(nnz, np.int32), np.empty(nnz, np.uint32)
            sparse_operator.transpose()(self._indptr, self._indices.view(np.uint32), starts, indices, permutation)
        else:
            numbers = np.arange(nnz, dtype=np.uint32 if nnz < 2**32 else np.int64)
            by_columns = sparse.csr_array((numbers, self._indices, self._indptr), shape=self._shape).tocsc()
            # SciPy's indices are views of arrays that could be made writable again.
            starts, indices, permutation = by_columns.indptr, by_columns.indices.copy(), by_columns.data
        return Pattern._trusted(starts, indices, (columns, rows)), frozen(permutation)

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
        return f"{self._shape[0]}x{self._shape[1]}, {self.nnz} nonzeros, density {self.density:.4g}"

    def __repr__(self) -> str:
        return f"<Pattern {self._summary()}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return Pattern, (self._indptr, self._indices, self._shape)


# --------------------------------------------------------------------------------------------------- values


_products: dict[str, Product] = {}  # what computes ``W @ X`` and ``X @ W``: functions of `fastsparse.functional`


def define_products(matmul: Product, rmatmul: Product) -> None:
    """Set the functions that compute ``W @ X`` and ``X @ W``; the package does."""
    _products.update(matmul=matmul, rmatmul=rmatmul)


def _refused(W: CSR, other: Any) -> Any:
    """What `CSR` leaves to SciPy."""
    raise TypeError(
        f"a CSR takes part in @ and in * and / by real numbers, found {type(other).__name__}: use W.to_scipy() for "
        "the arithmetic of sparse matrices, fastsparse.csr(...) to come back"
    )


def _number(W: CSR, value: Any) -> Any:
    """A real number in W's type."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    return W.dtype.type(value) if isinstance(value, numbers.Real) else _refused(W, value)


class CSR(Memoized):
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

    __slots__ = ("__weakref__", "_changes", "_data", "_pattern", "_transposed")
    __array_ufunc__ = None  # makes ndarray @ CSR call CSR.__rmatmul__

    def __init__(self, indptr: ArrayLike, indices: ArrayLike, data: ArrayLike, shape: Sequence[int]) -> None:
        if data is None:
            raise TypeError("data is None, expected one value for each nonzero")
        pointers, columns, values, checked = canonical(indptr, indices, data, shape)
        self._set(Pattern._trusted(pointers, columns, checked), values)

    def _set(self, pattern: Pattern, data: NDArray[Any]) -> None:
        self._pattern, self._data, self._limit = pattern, data, _PLAN_BYTES * data.nbytes
        self._latest = None  # looked up in every call: __getattr__ would answer
        self._transposed: tuple[CSR, NDArray[Any], int] | None = None
        self._changes: list[int] | None = None

    @classmethod
    def _trusted(cls, pattern: Pattern, data: NDArray[Any], changing: bool = False) -> CSR:
        """Make a matrix of a pattern and a float32 or float64 array (nnz,), without a check or a copy.

        The matrix holds a read-only view. If `changing`, whoever writes to `data` later calls `_values_changed`.
        """
        matrix = cls.__new__(cls)
        matrix._set(pattern, frozen(data.view()))
        matrix._changes = [0] if changing else None  # shared with packed values, which do not keep the matrix
        return matrix

    def _values_changed(self) -> None:
        """Have what was made of the values, packed ones and the transposed, made again in its place before use."""
        assert self._changes is not None
        self._changes[0] += 1

    pattern: Pattern = _field("_pattern", """Structure without values.""")
    data: NDArray[Any] = _field("_data", """Values, float32 or float64 (nnz,), read-only.""")
    indptr: NDArray[np.int64] = _field("_pattern._indptr", """Row starts, int64 (rows + 1,), read-only.""")
    indices: NDArray[Any] = _field(
        "_pattern._indices", """Columns, int32 or int64 (nnz,), rising in every row, read-only."""
    )
    shape: tuple[int, int] = _field("_pattern._shape", """(rows, columns).""")

    @property
    def ndim(self) -> int:
        """Always 2."""
        return 2

    nnz: int = _field("_data.size", """Number of stored values, zeros among them included.""")

    @property
    def density(self) -> float:
        """Share of elements that are stored; 0.0 when there is no element."""
        return self._pattern.density

    dtype: np.dtype[Any] = _field("_data.dtype", """Type of the values, float32 or float64.""")

    @property
    def T(self) -> CSR:
        """The transposed matrix, built once."""
        known, changes = self._transposed, 0 if self._changes is None else self._changes[0]
        if known is None or known[2] != changes:
            pattern, permutation = self._pattern.transpose()
            values = np.empty_like(self._data) if known is None else known[1]
            if permutation.dtype == np.uint32:
                from fastsparse_kernels import sparse_operator

                sparse_operator.gather(values.itemsize * 8)(self._data, permutation, values)
            else:
                np.take(self._data, permutation, out=values)
            if known is None:
                changing = self._changes is not None
                matrix = CSR._trusted(pattern, values if changing else frozen(values), changing)
            else:
                matrix = known[0]
                matrix._values_changed()
            known = self._transposed = matrix, values, changes
        return known[0]

    def _without_empty(self) -> tuple[NDArray[np.int64], NDArray[Any], CSR]:
        """Leave out the rows and columns without nonzeros.

        Returns
        -------
        rows, columns : int64 (R,), integer (C,)
            Those that have nonzeros, ascending.
        core : CSR (R, C)
            The matrix of these alone, built once; ``core @ X[columns]`` is ``(W @ X)[rows]``.
        """
        rows, columns, pattern = self._pattern.kept(Pattern._without_empty)
        core = self.cached("without empty", CSR._trusted, pattern, self._data)
        core._changes = self._changes
        return rows, columns, core

    def with_data(self, values: ArrayLike) -> CSR:
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
        owned = owned_values(values, "values")
        if owned.shape != self._data.shape:
            raise ValueError(
                f"values has shape {owned.shape}, expected {self._data.shape}, one for each nonzero of the pattern"
            )
        return CSR._trusted(self._pattern, frozen(owned))

    def toarray(self) -> NDArray[Any]:
        """Return a new dense array (rows, columns)."""
        dense = np.zeros(self.shape, self.dtype)
        dense[self._pattern.rows(), self.indices] = self._data
        return dense

    def to_scipy(self) -> sparse.csr_array:
        """Return a new `scipy.sparse.csr_array` with copies of the arrays."""
        return sparse.csr_array((self._data.copy(), self.indices.copy(), self.indptr.copy()), shape=self.shape)

    def __matmul__(self, X: MatrixLike) -> Any:
        """``W @ X`` for dense X (K, N) or (K,): a dense array; for sparse X (K, N), by SciPy: a `CSR`."""
        return _products["matmul"](self, X)

    matvec = __matmul__  # with `rmatvec` and `shape`, what SciPy's solvers take as a linear operator

    def rmatvec(self, y: MatrixLike) -> Any:
        """``W.T @ y``."""
        return self.T @ y

    def __rmatmul__(self, X: MatrixLike) -> Any:
        """``X @ W`` for dense X (N, M) or (M,): a dense array."""
        return _products["rmatmul"](self, X)

    def __getitem__(self, rows: Any) -> Any:
        """``W[i]``: row i, a dense array (columns,); ``W[a:b]`` and ``W[a:b:c]``: a `CSR` of these rows."""
        if isinstance(rows, slice):
            start, stop, step = rows.indices(self.shape[0])
            if step != 1:
                return csr(self.to_scipy()[rows])
            pointers = self.indptr[start : max(start, stop) + 1]
            first, last = int(pointers[0]), int(pointers[-1])
            columns, shape = self.indices[first:last].copy(), (len(pointers) - 1, self.shape[1])
            pattern = Pattern._trusted(pointers - first, columns, shape)
            return CSR._trusted(pattern, frozen(self._data[first:last].copy()))
        try:
            row = operator.index(rows)
        except TypeError:
            raise TypeError(
                f"W[...] takes a row's number or a slice of rows, not {type(rows).__name__}: use W.to_scipy()[...]"
            ) from None
        if not -self.shape[0] <= row < self.shape[0]:
            raise IndexError(f"row {row} is out of range for shape {self.shape}")
        first, last = self.indptr[row % self.shape[0] :][:2]
        dense = np.zeros(self.shape[1], self.dtype)
        dense[self.indices[first:last]] = self._data[first:last]
        return dense

    def __mul__(self, factor: Any) -> CSR:
        """``W * number``: a `CSR` of the same pattern and type."""
        return CSR._trusted(self._pattern, frozen(self._data * _number(self, factor)))

    __rmul__ = __mul__

    def __truediv__(self, divisor: Any) -> CSR:
        """``W / number``: a `CSR` of the same pattern and type."""
        return CSR._trusted(self._pattern, frozen(self._data / _number(self, divisor)))

    def __neg__(self) -> CSR:
        return self * -1

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """``np.asarray(W)`` is `toarray`, where that takes no memory by accident."""
        if copy is False:
            raise ValueError("a CSR cannot become a dense array without a copy, expected copy=None or True")
        if (size := self.shape[0] * self.shape[1] * self.dtype.itemsize) > _DENSE_BYTES:
            raise ValueError(
                f"np.asarray would make a dense array of {size} bytes of a CSR of shape {self.shape}: use W.toarray() "
                "if that is meant, or W.to_scipy() for functions that take sparse matrices"
            )
        return self.toarray().astype(dtype or self.dtype, copy=False)

    def __getattr__(self, name: str) -> Any:
        known = not name.startswith("_") and hasattr(sparse.csr_array, name)
        hint = f", SciPy's matrices do: use {_INSTEAD.get(name, f'W.to_scipy().{name}')}" if known else ""
        raise AttributeError(f"a CSR has no {name!r}{hint}", name=name, obj=self)

    def __repr__(self) -> str:
        return f"<CSR {self._pattern._summary()}, {self.dtype}>"

    __add__ = __radd__ = __sub__ = __rsub__ = __pow__ = __rtruediv__ = _refused

    def __reduce__(self) -> tuple[Any, ...]:
        return _with_data, (self._pattern, self._data)


def csr(obj: MatrixLike, dtype: DTypeLike | None = None) -> CSR:
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
    return as_csr(obj, "obj", None if dtype is None else float_dtype(dtype))


def as_csr(obj: Any, name: str, dtype: np.dtype[Any] | None = None) -> CSR:
    """`csr` of an argument that errors call `name`."""
    if isinstance(obj, CSR):
        if dtype is None or dtype == obj.dtype:  # NumPy takes None for float64 when it compares
            return obj
        return CSR._trusted(obj.pattern, frozen(obj.data.astype(dtype)))
    if isinstance(obj, Pattern):
        raise TypeError(f"{name} is a Pattern, which has no values, expected a matrix (use fs.CSR with the values)")
    if not sparse.issparse(obj):
        return _from_dense(obj, name, dtype)
    if len(obj.shape) != 2:
        raise ValueError(f"{name} has shape {obj.shape}, expected two dimensions (rows, columns)")
    return _from_scipy(obj, dtype)


def _from_dense(obj: ArrayLike, name: str, dtype: np.dtype[Any] | None) -> CSR:
    """Keep the nonzeros of a dense array; NaN counts as one."""
    dense = as_array(obj, name)
    value_dtype(dense.dtype, name)
    if dense.ndim != 2:
        raise ValueError(f"{name} has shape {dense.shape}, expected two dimensions (rows, columns)")
    rows, columns = dense.shape
    kept = dense != 0  # four times faster than np.nonzero on numbers in two dimensions
    flat = np.flatnonzero(kept)
    values = frozen(owned_values(np.ascontiguousarray(dense).reshape(-1)[flat], name, dtype))
    indptr = np.zeros(rows + 1, np.int64)
    np.cumsum(np.count_nonzero(kept, 1), out=indptr[1:])
    flat -= np.repeat(np.arange(rows, dtype=np.int64) * columns, np.diff(indptr))
    return CSR._trusted(Pattern._trusted(indptr, flat, (rows, columns)), values)


def _from_scipy(obj: Any, dtype: np.dtype[Any] | None) -> CSR:
    """Take over a scipy.sparse array or matrix of any format; its fields are not trusted."""
    if obj.format in ("csr", "csc"):
        what = "column" if obj.format == "csr" else "row"
        indices, data = _without_slack(obj.indptr, obj.indices, obj.data)
        fields = canonical(obj.indptr, indices, data, obj.shape, what=what, dtype=dtype)
    else:
        coordinates = obj if obj.format == "coo" else obj.tocoo()
        fields = from_coordinates(coordinates.row, coordinates.col, coordinates.data, obj.shape, dtype)
    indptr, indices, values, shape = fields
    if obj.format == "csc":
        return CSR._trusted(Pattern._trusted(indptr, indices, shape[::-1]), values).T
    return CSR._trusted(Pattern._trusted(indptr, indices, shape), values)


def _without_slack(indptr: Any, indices: Any, data: Any) -> tuple[Any, Any]:
    """Compressed indices and data up to ``indptr[-1]``: SciPy takes what lies behind for room, not for nonzeros."""
    pointers = np.asarray(indptr)
    if pointers.ndim != 1 or not pointers.size or pointers.dtype.kind not in "iu":
        return indices, data
    end = int(pointers[-1])
    if not 0 <= end < min(np.size(indices), np.size(data)):
        return indices, data
    return np.asarray(indices)[:end], np.asarray(data)[:end]


def _with_data(pattern: Pattern, values: NDArray[Any]) -> CSR:
    """Rebuild a matrix when it is unpickled."""
    return CSR._trusted(pattern, np.empty(pattern.nnz, np.float32)).with_data(values)
