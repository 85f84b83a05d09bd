"""What functions accept: every data type and memory layout (contract I3)."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from scipy import sparse

import fastsparse as fs
from fastsparse.arguments import as_float
from fastsparse_kernels import compiler
from tests.checking import DTYPES, PATTERNS, Array, matrix, numbers, same_bits
from tests.test_arguments import CALLS

pytestmark = pytest.mark.I3


def layouts(array: Array) -> dict[str, Array]:
    """The same numbers, laid out in every way."""
    spread = np.zeros([2 * n for n in array.shape], array.dtype)
    inside = spread[tuple(slice(None, None, 2) for _ in array.shape)]
    inside[...] = array
    raw = np.zeros(array.nbytes + 1, np.uint8)
    unaligned = raw[1:].view(array.dtype).reshape(array.shape)
    unaligned[...] = array
    backwards = (slice(None, None, -1),) * array.ndim
    record = np.zeros(array.shape, [("pad", "i1"), ("value", array.dtype)])
    record["value"] = array
    read_only = array.copy()
    read_only.flags.writeable = False
    return {
        "plain": array,
        "fortran": np.asfortranarray(array),
        "strided": inside,
        "reversed": array[backwards].copy()[backwards],
        "swapped": np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 0, -1)), -1, 0),
        "unaligned": unaligned,
        "field of records": record["value"],
        "read-only": read_only,
        "big-endian": array.astype(array.dtype.newbyteorder(">")),
        "little-endian": array.astype(array.dtype.newbyteorder("<")),
        "list": array.tolist() if array.dtype.kind in "biu" else array,
    }


OTHERS = ["bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16"]
ARRAYS = ("X", "A", "B", "x", "grad", "bias")


def matrices(arguments: dict[str, Any], dtype: Any) -> dict[str, Any]:
    """The same arguments for matrices of `dtype`, without out."""
    return {
        name: fs.csr(value, dtype) if isinstance(value, fs.CSR) else value
        for name, value in arguments.items()
        if name != "out"
    }


def flat(result: Any) -> list[bytes]:
    """Bits of everything that a function returns."""
    if isinstance(result, fs.CSR):
        return [result.data.tobytes()]
    return [part.tobytes() for part in (result if isinstance(result, tuple) else (result,))]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [name for name in CALLS if "sparse" not in name])
def test_every_type_and_layout_gives_the_same_and_compiles_nothing(rng, monkeypatch, name, dtype):
    function, good = CALLS[name]
    good = matrices(good, dtype)
    present = [key for key in ARRAYS if key in good]
    for key in present:  # 0 and 1, which every type has
        good[key] = rng.integers(0, 2, good[key].shape).astype(dtype)
    expected = flat(function(**good))
    if "X" in good:
        assert flat(function(**{**good, "X": np.asfortranarray(good["X"])})) == expected
    compiled = []
    monkeypatch.setattr(compiler.KernelCFunc, "compile", lambda self: compiled.append(self))
    monkeypatch.setattr(compiler, "KernelDispatcher", lambda function, **_: compiled.append(function))
    for key, kind in itertools.product(present, [dtype, *OTHERS]):
        for layout, array in layouts(good[key].astype(kind)).items():
            found = flat(function(**{**good, key: array}))
            assert found == expected, (key, kind, layout)
    assert not compiled


@pytest.mark.parametrize("dtype", DTYPES)
def test_kernels_see_aligned_native_arrays(dtype):
    for kind in [dtype, *OTHERS]:
        for layout, array in layouts(np.ones((3, 4), kind)).items():
            found = as_float(array, np.dtype(dtype), "x")
            assert found.dtype == dtype
            assert found.dtype.isnative
            assert found.flags.aligned
            copied = kind != dtype or layout in ("unaligned", "field of records", "big-endian", "list")
            assert copied or found is array or layout == "little-endian"


@pytest.mark.parametrize("dtype", DTYPES)
def test_samples_that_overlap_in_memory(rng, dtype):
    """Windows over a signal, and one sample repeated by a stride of zero."""
    W = matrix(rng, PATTERNS["scattered"](rng, (7, 20)), dtype)
    signal = numbers(rng, 60, dtype)
    windows = np.lib.stride_tricks.sliding_window_view(signal, 20)
    repeated = np.broadcast_to(signal[:20], (5, 20))
    for x in (windows, windows[::3], windows[::-1], repeated):
        assert same_bits(fs.linear(x, W), fs.linear(x.copy(), W))
        assert same_bits(fs.spmm(W, x.T), fs.spmm(W, x.T.copy()))
        assert same_bits(fs.spmm(W.T, x.T[:7]), fs.spmm(W.T, x.T[:7].copy()))
        grad = numbers(rng, (len(x), 7), dtype)
        assert same_bits(fs.linear_backward(grad, x, W)[1], fs.linear_backward(grad, x.copy(), W)[1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_axes_of_length_one_with_any_stride(rng, dtype):
    """NumPy lets an axis of length one have any stride, and calls the array contiguous."""

    def odd(array: Array) -> Array:
        strides = tuple(
            s if n > 1 else -12345 * array.itemsize for s, n in zip(array.strides, array.shape, strict=True)
        )
        return np.lib.stride_tricks.as_strided(array, strides=strides)

    for rows, columns, samples in itertools.product((1, 5), (1, 6), (1, 4)):
        W = matrix(rng, np.ones((rows, columns), bool), dtype)
        X, grad = numbers(rng, (columns, samples), dtype), numbers(rng, (samples, rows), dtype)
        x = np.ascontiguousarray(X.T)
        assert same_bits(fs.spmm(W, odd(X)), fs.spmm(W, X))
        assert same_bits(fs.spmm(W, odd(np.asfortranarray(X))), fs.spmm(W, np.asfortranarray(X)))
        assert same_bits(fs.linear(odd(x), W), fs.linear(x, W))
        assert flat(fs.linear_backward(odd(grad), odd(x), W)) == flat(fs.linear_backward(grad, x, W))
        image = numbers(rng, (samples, columns, 1, 3), dtype)
        assert same_bits(fs.conv2d(odd(image), W, kernel_size=1), fs.conv2d(image, W, kernel_size=1))
        padded = {"kernel_size": 1, "padding": 1}
        assert same_bits(fs.conv2d(odd(image), W, **padded), fs.conv2d(image, W, **padded))


@pytest.mark.parametrize("shape", [(40_000, 60), (3, 40_000), (50_000, 40_000)])
@pytest.mark.parametrize("count", [0, 1, 900])
def test_mostly_empty_rows_and_columns(rng, shape, count):
    elements = np.unique(rng.integers(0, shape[0] * shape[1], count))
    values, (rows, columns) = numbers(rng, (len(elements),), np.float32), np.divmod(elements, shape[1])
    W = fs.csr(sparse.coo_array((values, (rows, columns)), shape=shape))
    X = np.full((shape[1], 17), np.nan, np.float32)  # what meets no nonzero does not matter
    X[columns] = numbers(rng, (len(columns), 17), np.float32)
    expected = fs.spmm(W, X, bias=np.zeros(shape[0], np.float32))  # with a bias, every row is computed
    for laid_out in (X, np.asfortranarray(X)):
        same_bits(fs.spmm(W, laid_out), expected)
        out = np.full(expected.shape, np.nan, np.float32)
        assert fs.spmm(W, laid_out, out=out) is out
        same_bits(out, expected)
    same_bits(W.with_data(2 * W.data) @ X, 2 * expected)
    np.testing.assert_allclose(W @ X[:, 0], expected[:, 0], rtol=1e-5, atol=1e-5)


def test_rows_of_x_that_meet_no_nonzero_take_no_memory():
    columns = 2**34
    W = fs.csr(sparse.coo_array((np.float32([2, 3]), ([0, 1], [columns - 1, 5])), shape=(2, columns)))
    X = np.broadcast_to(np.float32([1, 10]), (columns, 2))[:, ::-1]
    np.testing.assert_array_equal(W @ X, [[20, 2], [30, 3]])
