"""Contract I3: every data type and memory layout works, with one copy, or raises a clear TypeError."""

from __future__ import annotations

import re

import numpy as np
import pytest
import scipy.sparse as sp

import fastsparse as fs

SHAPE = (4, 8)
INDPTR, INDICES, VALUES = [0, 2, 2, 5, 6], [0, 5, 1, 2, 7, 3], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
DENSE = np.zeros(SHAPE)
DENSE[[0, 0, 2, 2, 2, 3], INDICES] = VALUES


def native(W):
    """Whatever came in, the arrays kept are contiguous, aligned and of the machine's byte order."""
    assert (W.indptr.dtype, W.indices.dtype) == (np.int64, np.int32)
    for array in (W.indptr, W.indices, W.data):
        assert array.flags.c_contiguous
        assert array.flags.aligned
        assert array.dtype.isnative
        assert not array.flags.writeable


def layouts(A):
    """The same numbers, laid out in every way."""
    strided = np.zeros((2 * A.shape[0], 3 * A.shape[1]), A.dtype)
    strided[::2, ::3] = A
    raw = np.zeros(A.nbytes + 1, np.uint8)
    unaligned = raw[1:].view(A.dtype).reshape(A.shape)
    unaligned[...] = A
    read_only = A.copy()
    read_only.flags.writeable = False
    return {
        "plain": A,
        "fortran": np.asfortranarray(A),
        "strided": strided[::2, ::3],
        "reversed": A[::-1, ::-1].copy()[::-1, ::-1],
        "unaligned": unaligned,
        "read-only": read_only,
        "big-endian": A.astype(A.dtype.newbyteorder(">")),
        "little-endian": A.astype(A.dtype.newbyteorder("<")),
    }


INTEGERS = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
DTYPES = ["bool", *INTEGERS, "float16", "float32", "float64"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_dense_layouts_and_types(dtype):
    A = DENSE.astype(dtype)
    expected = np.float64 if dtype == "float64" else np.float32
    for name, array in layouts(A).items():
        W = fs.csr(array)
        native(W)
        assert W.dtype == expected, name
        assert np.array_equal(W.toarray(), A.astype(expected)), name
        assert not np.shares_memory(W.data, array), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_raw_arrays_of_every_type_and_layout(dtype):
    data = np.array([[1, 0, 1, 1, 0, 1]]).astype(dtype)
    for name, array in layouts(data).items():
        W = fs.CSR(INDPTR, INDICES, array[0], SHAPE)
        assert W.data.tolist() == [1.0, 0.0, 1.0, 1.0, 0.0, 1.0], name


@pytest.mark.parametrize("dtype", INTEGERS)
def test_indices_of_every_integer_type_and_layout(dtype):
    fields = {
        name: layouts(np.array([{"indptr": INDPTR, "indices": INDICES}[name]], dtype)) for name in ("indptr", "indices")
    }
    for name in fields["indptr"]:
        W = fs.CSR(fields["indptr"][name][0], fields["indices"][name][0], VALUES, SHAPE)
        native(W)
        assert W.toarray().tobytes() == DENSE.tobytes()


@pytest.mark.parametrize("dtype", ["complex64", "complex128", "longdouble", "object", "U3", "datetime64[s]"])
def test_values_that_are_no_real_numbers_are_type_errors(dtype):
    if dtype == "longdouble" and np.dtype(dtype).itemsize == 8:
        dtype = "complex64"  # where long double is double
    data = np.zeros(6, dtype)
    tail = "expected float32 or float64 (float16, integers and bool are converted)"
    message = f"{{}} has dtype {data.dtype.name}, {tail}"
    with pytest.raises(TypeError, match=re.escape(message.format("data"))):
        fs.CSR(INDPTR, INDICES, data, SHAPE)
    with pytest.raises(TypeError, match=re.escape(message.format("obj"))):
        fs.csr(data.reshape(2, 3))
    with pytest.raises(TypeError, match=re.escape(message.format("values"))):
        fs.CSR(INDPTR, INDICES, VALUES, SHAPE).with_data(data)


def test_dtype_argument():
    assert fs.csr(DENSE, dtype="float32").dtype == np.float32
    assert fs.csr(sp.csc_array(DENSE), dtype=np.float32).dtype == np.float32
    assert fs.csr(DENSE.astype(np.int8), dtype=">f8").dtype == np.dtype("=f8")
    big = np.array([[2**53 - 1]])
    assert fs.csr(big, dtype=np.float64).data[0] == 2**53 - 1
    assert fs.csr(big).dtype == np.float32
    for wrong in ("int8", "float16", complex, "nonsense"):
        with pytest.raises(TypeError, match=r"^dtype is .*, expected float32 or float64$"):
            fs.csr(DENSE, dtype=wrong)


def test_matrix_of_a_matrix():
    W = fs.CSR(INDPTR, INDICES, VALUES, SHAPE)
    assert fs.csr(W) is W
    narrow = fs.csr(W, "float32")
    assert narrow.dtype == np.float32
    assert narrow.pattern is W.pattern


def test_objects_that_are_no_matrices():
    with pytest.raises(ValueError, match=re.escape("obj has shape (3,), expected two dimensions (rows, columns)")):
        fs.csr([1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match=re.escape("obj has shape (2, 2, 2), expected two dimensions (rows, columns)")):
        fs.csr(np.ones((2, 2, 2)))
    with pytest.raises(ValueError, match=re.escape("obj has shape (3,), expected two dimensions (rows, columns)")):
        fs.csr(sp.coo_array(np.array([1.0, 0.0, 2.0])))
    with pytest.raises(TypeError, match=r"^obj is a masked array"):
        fs.csr(np.ma.masked_array(DENSE, DENSE > 2))
    with pytest.raises(TypeError, match=r"^obj is a Pattern, which has no values"):
        fs.csr(fs.CSR(INDPTR, INDICES, VALUES, SHAPE).pattern)
    with pytest.raises(TypeError, match=r"^data is None, expected one value for each nonzero$"):
        fs.CSR(INDPTR, INDICES, None, SHAPE)
