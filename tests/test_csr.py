"""Contracts I1 to I4: what comes in through the one door for sparse structure, in which types, and what it is then."""

from __future__ import annotations

import copy
import gc
import pickle
import re
import weakref

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

import fastsparse as fs

SHAPE = (4, 8)
VALID = {"indptr": [0, 2, 2, 5, 6], "indices": [0, 5, 1, 2, 7, 3], "data": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]}
DENSE = np.zeros(SHAPE)
DENSE[[0, 0, 2, 2, 2, 3], [0, 5, 1, 2, 7, 3]] = VALID["data"]
INDPTR, INDICES, DATA = VALID.values()
FORMATS = ("csr", "csc", "coo", "bsr", "dia", "lil", "dok")


def make(**changes):
    """The valid matrix with some fields replaced."""
    fields = {name: np.array(value) for name, value in VALID.items()} | {"shape": SHAPE} | changes
    return fs.CSR(fields["indptr"], fields["indices"], fields["data"], fields["shape"])


def holds_contract(W):
    """Contract I1, spelled out."""
    M, N = W.shape
    assert W.indptr.dtype == np.int64
    assert W.indices.dtype == (np.int32 if N <= 2**31 - 1 else np.int64)
    assert W.data.dtype in (np.float32, np.float64)
    assert W.indptr.shape == (M + 1,)
    assert W.indices.shape == W.data.shape == (W.nnz,)
    assert W.indptr[0] == 0
    assert W.indptr[-1] == W.nnz
    for array in (W.indptr, W.indices, W.data):
        assert not array.flags.writeable
        assert array.flags.c_contiguous
        assert array.flags.aligned
        assert array.dtype.isnative
    for m in range(M):
        row = W.indices[W.indptr[m] : W.indptr[m + 1]]
        assert ((row >= 0) & (row < N)).all()
        assert (np.diff(row) > 0).all()


# ------------------------------------------------------------------------------------------------ I1: wrong structure

MUTATIONS = {
    "indptr starts late": ({"indptr": [1, 2, 2, 5, 6]}, "indptr[0] is 1, expected 0"),
    "indptr starts below": ({"indptr": [-1, 2, 2, 5, 6]}, "indptr[0] is -1, expected 0"),
    "indptr falls": ({"indptr": [0, 2, 1, 5, 6]}, "indptr[2] is 1, expected at least 2, the value before it"),
    "indptr ends early": ({"indptr": [0, 2, 2, 5, 5]}, "indptr[4] is 5, expected 6, the length of indices"),
    "indptr ends late": ({"indptr": [0, 2, 2, 5, 7]}, "indptr[4] is 7, expected 6, the length of indices"),
    "indptr ends at 2**62": (
        {"indptr": [0, 2, 2, 5, 2**62]},
        "indptr[4] is 4611686018427387904, expected 6, the length of indices",
    ),
    "indptr wraps": (
        {"indptr": np.array([0, 2, 2**64 - 1, 5, 6], np.uint64)},
        "indptr[2] is 18446744073709551615, expected a value below 2**63",
    ),
    "indptr short": ({"indptr": [0, 2, 2, 6]}, "indptr has length 4, expected 5 to match shape (4, 8)"),
    "indptr long": ({"indptr": [0, 2, 2, 5, 6, 6]}, "indptr has length 6, expected 5 to match shape (4, 8)"),
    "indptr empty": ({"indptr": np.zeros(0, np.int64)}, "indptr has length 0, expected 5 to match shape (4, 8)"),
    "indptr float": ({"indptr": [0.0, 2, 2, 5, 6]}, "indptr has dtype float64, expected integers"),
    "indptr bool": ({"indptr": [False] * 5}, "indptr has dtype bool, expected integers"),
    "indptr object": ({"indptr": np.array([0, 2, 2, 5, 6], object)}, "indptr has dtype object, expected integers"),
    "indptr matrix": ({"indptr": [[0, 2, 2, 5, 6]]}, "indptr has shape (1, 5), expected one dimension"),
    "indices negative": (
        {"indices": [0, 5, -1, 2, 7, 3]},
        "indices[2] is -1, expected 0 <= column < 8 to match shape (4, 8)",
    ),
    "indices too large": (
        {"indices": [0, 5, 1, 2, 8, 3]},
        "indices[4] is 8, expected 0 <= column < 8 to match shape (4, 8)",
    ),
    "indices past int32": (
        {"indices": [0, 5, 1, 2, 2**32, 3]},
        "indices[4] is 4294967296, expected 0 <= column < 8 to match shape (4, 8)",
    ),
    "indices NaN": ({"indices": [0, 5, 1, 2, np.nan, 3]}, "indices has dtype float64, expected integers"),
    "indices short": ({"indices": [0, 5, 1, 2, 7]}, "indptr[4] is 6, expected 5, the length of indices"),
    "indices matrix": ({"indices": [[0, 5, 1], [2, 7, 3]]}, "indices has shape (2, 3), expected one dimension"),
    "data short": ({"data": [1.0] * 5}, "data has shape (5,), expected (6,) to match indices"),
    "data long": ({"data": [1.0] * 7}, "data has shape (7,), expected (6,) to match indices"),
    "data matrix": ({"data": np.ones((6, 1))}, "data has shape (6, 1), expected (6,) to match indices"),
    "data scalar": ({"data": 1.0}, "data has shape (), expected (6,) to match indices"),
    "shape negative": ({"shape": (4, -8)}, "shape is (4, -8), expected two non-negative integers below 2**63"),
    "shape one number": ({"shape": (4,)}, "shape is (4,), expected two non-negative integers (rows, columns)"),
    "shape three numbers": (
        {"shape": (4, 8, 1)},
        "shape is (4, 8, 1), expected two non-negative integers (rows, columns)",
    ),
    "shape infinite": (
        {"shape": (4, float("inf"))},
        "shape is (4, inf), expected two non-negative integers (rows, columns)",
    ),
    "shape None": ({"shape": None}, "shape is None, expected two non-negative integers (rows, columns)"),
    "shape past int64": (
        {"shape": (4, 2**63)},
        "shape is (4, 9223372036854775808), expected two non-negative integers below 2**63",
    ),
    "rows too many": ({"shape": (5, 8)}, "indptr has length 5, expected 6 to match shape (5, 8)"),
    "columns too few": (
        {"shape": (4, 7)},
        "indices[4] is 7, expected 0 <= column < 7 to match shape (4, 7)",
    ),
}


@pytest.mark.I1
@pytest.mark.parametrize("name", MUTATIONS)
def test_broken_structure_is_a_value_error_that_names_the_field(name):
    changes, message = MUTATIONS[name]
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make(**changes)


@pytest.mark.I1
@pytest.mark.parametrize("name", [name for name in MUTATIONS if "data" not in name])
def test_patterns_go_through_the_same_door(name):
    changes, message = MUTATIONS[name]
    fields = VALID | {"shape": SHAPE} | changes
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        fs.Pattern(fields["indptr"], fields["indices"], fields["shape"])


# What lies behind indptr[-1] is room to SciPy, so that an indptr that ends early is none of them.
SCIPY_REFUSES = [name for name in MUTATIONS if name.startswith(("indptr", "indices")) and name != "indptr ends early"]


@pytest.mark.I1
@pytest.mark.parametrize("name", SCIPY_REFUSES)
@pytest.mark.parametrize("kind", [sp.csr_array, sp.csr_matrix])
def test_scipy_matrices_with_broken_fields_are_refused(name, kind):
    changes, message = MUTATIONS[name]
    S = kind(DENSE)
    for field, value in changes.items():
        setattr(S, field, np.array(value))
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        fs.csr(S)


@pytest.mark.I1
def test_scipy_columns_and_coordinates_are_not_trusted_either():
    by_column, coordinates = sp.csc_array(DENSE), sp.coo_array(DENSE)
    by_column.indices[0] = 4
    message = "indices[0] is 4, expected 0 <= row < 4 to match shape (4, 8)"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        fs.csr(by_column)
    coordinates.row[1] = -3
    message = "row[1] is -3, expected 0 <= row < 4 to match shape (4, 8)"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        fs.csr(coordinates)
    coordinates = sp.coo_array(DENSE)
    coordinates.col[2] = 8
    message = "col[2] is 8, expected 0 <= column < 8 to match shape (4, 8)"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        fs.csr(coordinates)


@pytest.mark.I1
@given(data=st.data())
def test_no_mutation_of_one_number_goes_unseen_or_breaks_the_contract(data):
    fields = {name: np.array(value) for name, value in VALID.items()}
    name = data.draw(st.sampled_from(["indptr", "indices"]))
    position = data.draw(st.integers(0, len(fields[name]) - 1))
    fields[name][position] = data.draw(st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 9))
    try:
        W = fs.CSR(*fields.values(), SHAPE)
    except ValueError as error:
        assert re.match(r"(indptr|indices)\[\d\] is -?\d+, expected ", str(error))  # noqa: PT017
    else:
        holds_contract(W)


# --------------------------------------------------------------------------------------------------- I1: right values


@pytest.mark.I1
def test_constructor_keeps_valid_fields():
    W = make()
    holds_contract(W)
    assert (W.shape, W.nnz, W.density, W.dtype, W.ndim) == (SHAPE, 6, 6 / 32, np.float64, 2)
    assert W.toarray().tobytes() == DENSE.tobytes()
    assert repr(W) == "<CSR 4x8, 6 nonzeros, density 0.1875, float64>"


@pytest.mark.I1
def test_unsorted_columns_are_sorted_and_duplicates_summed():
    W = fs.CSR([0, 4, 4, 6], [3, 1, 3, 0, 2, 2], [1.0, 2.0, 4.0, 8.0, 16.0, 32.0], (3, 4))
    holds_contract(W)
    assert W.indptr.tolist() == [0, 3, 3, 4]
    assert W.indices.tolist() == [0, 1, 3, 2]
    assert W.data.tolist() == [8.0, 2.0, 5.0, 48.0]
    assert W.pattern == fs.Pattern([0, 4, 4, 6], [3, 1, 3, 0, 2, 2], (3, 4))


@pytest.mark.I1
def test_columns_may_repeat_from_one_row_to_the_next():
    W = fs.CSR([0, 0, 1, 1, 3, 3], [2, 2, 3], [1.0, 2.0, 3.0], (5, 4))
    assert W.indices.tolist() == [2, 2, 3]


@pytest.mark.I1
def test_duplicates_of_small_integers_do_not_wrap_around():
    S = sp.coo_array((np.array([100, 100], np.int8), ([0, 0], [1, 1])), shape=(1, 2))
    assert fs.csr(S).toarray().tolist() == [[0.0, 200.0]]
    assert fs.CSR([0, 2], [1, 1], np.array([100, 100], np.int8), (1, 2)).toarray().tolist() == [[0.0, 200.0]]


@pytest.mark.I1
@pytest.mark.parametrize("kind", ["array", "matrix"])
@pytest.mark.parametrize("name", FORMATS)
def test_every_scipy_format(name, kind):
    S = getattr(sp, f"{name}_{kind}")(DENSE)
    before = S.toarray()
    W = fs.csr(S)
    holds_contract(W)
    assert W.toarray().tobytes() == DENSE.tobytes()
    assert S.toarray().tobytes() == before.tobytes()


@pytest.mark.I1
@pytest.mark.parametrize("name", ["csr", "csc", "coo"])
def test_stored_zeros_of_sparse_matrices_stay_and_zeros_of_dense_ones_do_not(name):
    S = sp.csr_array(DENSE)
    S.data[2] = 0.0
    assert fs.csr(S.asformat(name)).nnz == 6
    assert fs.csr(S.toarray()).nnz == 5


@pytest.mark.I1
def test_nan_and_inf_are_values():
    A = np.array([[0.0, np.nan, -0.0], [np.inf, 0.0, -np.inf]])
    W = fs.csr(A)
    assert W.indices.tolist() == [1, 0, 2]
    assert np.array_equal(W.data, [np.nan, np.inf, -np.inf], equal_nan=True)
    assert np.array_equal(fs.csr(sp.csr_array(A)).data, W.data, equal_nan=True)


@pytest.mark.I1
@given(
    A=hnp.arrays(
        st.sampled_from([np.float32, np.float64]),
        hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=9),
        elements=st.sampled_from([0.0, 0.0, 0.0, 1.0, -2.5, np.nan, np.inf]),
    ),
    name=st.sampled_from(("dense", *FORMATS)),
)
def test_round_trip(A, name):
    W = fs.csr(A if name == "dense" or 0 in A.shape else sp.csr_array(A).asformat(name))
    holds_contract(W)
    assert W.dtype == A.dtype
    assert np.array_equal(W.toarray(), A, equal_nan=True)
    assert np.array_equal(W.T.toarray(), A.T, equal_nan=True)
    assert np.array_equal(W.to_scipy().toarray(), A, equal_nan=True)


@pytest.mark.I1
@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 6),
    entries=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(-9, 9)), max_size=30),
)
def test_coordinates_with_duplicates_sum_exactly(rows, columns, entries):
    A = np.zeros((rows, columns))
    kept = [(m % rows, n % columns, v) for m, n, v in entries]
    for m, n, v in kept:
        A[m, n] += v
    m, n, v = np.array(kept, np.int64).reshape(-1, 3).T
    W = fs.csr(sp.coo_array((v, (m, n)), shape=A.shape), dtype="float64")
    holds_contract(W)
    assert np.array_equal(W.toarray(), A)
    assert W.nnz == len({(m, n) for m, n, _ in kept})


@pytest.mark.I1
@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0), (3, 4)])
def test_matrices_without_nonzeros(shape):
    for W in (fs.csr(np.zeros(shape)), fs.CSR([0] * (shape[0] + 1), [], [], shape)):
        holds_contract(W)
        assert W.density == 0.0
        assert W.toarray().shape == shape
        assert W.T.shape == shape[::-1]


# --------------------------------------------------------------------------------------------------- I2: large shapes


@pytest.mark.I2
def test_columns_past_int32_get_int64_indices():
    W = fs.CSR([0, 2], [2**40, 7], [1.0, 2.0], (1, 2**41))
    holds_contract(W)
    assert W.indices.dtype == np.int64
    assert W.indices.tolist() == [7, 2**40]
    assert W.density == 2 / 2**41
    edge = fs.CSR([0, 1], [2**31 - 2], [1.0], (1, 2**31 - 1))
    assert edge.indices.dtype == np.int32


@pytest.mark.I2
def test_density_of_shapes_whose_size_is_past_int64():
    assert fs.Pattern([0, 1], [0], (1, 2**62)).density == 2.0**-62
    assert fs.csr(sp.coo_array(([1.0], ([0], [2**40])), shape=(3, 2**62))).density == 1 / (3 * 2**62)


# ------------------------------------------------------------------------------------------------------ I4: ownership


@pytest.mark.I4
def test_nothing_passed_in_is_changed_or_kept():
    fields = {name: np.array(value) for name, value in VALID.items()}
    fields["indices"][:2] = [5, 0]  # unsorted, so that sorting in place would show
    before = {name: array.copy() for name, array in fields.items()}
    W = fs.CSR(*fields.values(), SHAPE)
    for name, array in fields.items():
        assert np.array_equal(array, before[name])
        assert array.flags.writeable
        array[...] = 0
    assert W.data.tolist() == [2.0, 1.0, 3.0, 4.0, 5.0, 6.0]
    assert W.indices.tolist() == [0, 5, 1, 2, 7, 3]


@pytest.mark.I4
@pytest.mark.parametrize("name", ["csr", "csc", "coo"])
def test_scipy_matrices_are_not_changed_or_kept(name):
    S = sp.csr_array((VALID["data"], [5, 0, 1, 2, 7, 3], VALID["indptr"]), shape=SHAPE).asformat(name)
    before = S.copy()
    W = fs.csr(S)
    for attribute in {"coo": ("row", "col", "data")}.get(name, ("indptr", "indices", "data")):
        assert np.array_equal(getattr(S, attribute), getattr(before, attribute))
        assert not np.shares_memory(getattr(S, attribute), W.data)
    assert S.has_canonical_format == before.has_canonical_format


@pytest.mark.I4
def test_results_can_be_written_without_reaching_the_matrix():
    W = make()
    dense, S = W.toarray(), W.to_scipy()
    dense[...] = 7
    S.data[...] = 7
    S.indices[...] = 7
    assert W.toarray().tobytes() == DENSE.tobytes()
    assert S.dtype == W.dtype


@pytest.mark.I4
@pytest.mark.parametrize("field", ["data", "indices", "indptr"])
@pytest.mark.parametrize("source", [make, lambda: fs.csr(DENSE), lambda: fs.csr(sp.csc_array(DENSE)), lambda: make().T])
def test_arrays_are_read_only(field, source):
    W = source()
    with pytest.raises(ValueError, match="read-only"):
        getattr(W, field)[0] = 1
    with pytest.raises(AttributeError):
        setattr(W, field, None)
    with pytest.raises(ValueError, match="WRITEABLE"):
        getattr(W, field).flags.writeable = True


@pytest.mark.I4
def test_with_data_keeps_the_pattern_and_copies():
    W, values = make(), np.arange(6.0)
    other = W.with_data(values)
    values[...] = -1
    assert other.pattern is W.pattern
    assert other.data.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert W.with_data(np.arange(6, dtype=np.float32)).dtype == np.float32
    message = "values has shape (5,), expected (6,), one for each nonzero of the pattern"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        W.with_data(np.ones(5))


# ------------------------------------------------------------------------------------------- I3: types and layouts


def native(W):
    """Whatever came in, the arrays kept are contiguous, aligned and of the machine's byte order."""
    assert (W.indptr.dtype, W.indices.dtype) == (np.int64, np.int32)
    for array in (W.indptr, W.indices, W.data):
        assert array.flags.c_contiguous
        assert array.flags.aligned
        assert array.dtype.isnative
        assert not array.flags.writeable


def every_layout(A):
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
TYPES = ["bool", *INTEGERS, "float16", "float32", "float64"]


@pytest.mark.I3
@pytest.mark.parametrize("dtype", TYPES)
def test_dense_layouts_and_types(dtype):
    A = DENSE.astype(dtype)
    expected = np.float64 if dtype == "float64" else np.float32
    for name, array in every_layout(A).items():
        W = fs.csr(array)
        native(W)
        assert W.dtype == expected, name
        assert np.array_equal(W.toarray(), A.astype(expected)), name
        assert not np.shares_memory(W.data, array), name


@pytest.mark.I3
@pytest.mark.parametrize("dtype", TYPES)
def test_raw_arrays_of_every_type_and_layout(dtype):
    data = np.array([[1, 0, 1, 1, 0, 1]]).astype(dtype)
    for name, array in every_layout(data).items():
        W = fs.CSR(INDPTR, INDICES, array[0], SHAPE)
        assert W.data.tolist() == [1.0, 0.0, 1.0, 1.0, 0.0, 1.0], name


@pytest.mark.I3
@pytest.mark.parametrize("dtype", INTEGERS)
def test_indices_of_every_integer_type_and_layout(dtype):
    fields = {
        name: every_layout(np.array([{"indptr": INDPTR, "indices": INDICES}[name]], dtype))
        for name in ("indptr", "indices")
    }
    for name in fields["indptr"]:
        W = fs.CSR(fields["indptr"][name][0], fields["indices"][name][0], DATA, SHAPE)
        native(W)
        assert W.toarray().tobytes() == DENSE.tobytes()


@pytest.mark.I3
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
        fs.CSR(INDPTR, INDICES, DATA, SHAPE).with_data(data)


@pytest.mark.I3
def test_dtype_argument():
    assert fs.csr(DENSE, dtype="float32").dtype == np.float32
    for kept in ("float32", "float64"):
        W = fs.csr(DENSE, dtype=kept)
        assert fs.csr(W) is fs.csr(W, dtype=kept) is W
        for wanted in ("float32", "float64"):
            converted = fs.csr(W, dtype=wanted)
            assert (converted.dtype, converted.data.dtype, converted.pattern) == (wanted, wanted, W.pattern)
    assert fs.csr(sp.csc_array(DENSE), dtype=np.float32).dtype == np.float32
    assert fs.csr(DENSE.astype(np.int8), dtype=">f8").dtype == np.dtype("=f8")
    big = np.array([[2**53 - 1]])
    assert fs.csr(big, dtype=np.float64).data[0] == 2**53 - 1
    assert fs.csr(big).dtype == np.float32
    for wrong in ("int8", "float16", complex, "nonsense"):
        with pytest.raises(TypeError, match=r"^dtype is .*, expected float32 or float64$"):
            fs.csr(DENSE, dtype=wrong)


@pytest.mark.I3
def test_matrix_of_a_matrix():
    W = fs.CSR(INDPTR, INDICES, DATA, SHAPE)
    assert fs.csr(W) is W
    narrow = fs.csr(W, "float32")
    assert narrow.dtype == np.float32
    assert narrow.pattern is W.pattern


@pytest.mark.I3
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
        fs.csr(fs.CSR(INDPTR, INDICES, DATA, SHAPE).pattern)
    with pytest.raises(TypeError, match=r"^data is None, expected one value for each nonzero$"):
        fs.CSR(INDPTR, INDICES, None, SHAPE)


# ------------------------------------------------------------------------------------------ patterns and matrices


def test_transpose_is_built_once_and_sorted():
    W = fs.csr(np.triu(np.arange(1.0, 31.0).reshape(5, 6)))
    assert np.array_equal(W.T.toarray(), W.toarray().T)
    assert W.T is W.T
    pattern, permutation = W.pattern.transpose()
    assert W.pattern.transpose()[0] is pattern is W.T.pattern
    assert permutation.dtype == np.uint32
    assert not permutation.flags.writeable
    assert np.array_equal(W.T.data, W.data[permutation])
    assert W.T.T.pattern == W.pattern
    assert np.array_equal(W.pattern.rows(), np.nonzero(W.toarray())[0])


def test_patterns_are_equal_and_hash_by_content():
    a, b = make().pattern, fs.csr(make().toarray().astype(np.float32)).pattern
    assert a == b
    assert a is not b
    assert hash(a) == hash(b)
    assert len({a, b}) == 1
    shifted = fs.Pattern(INDPTR, [0, 5, 1, 2, 7, 4], SHAPE)
    moved = fs.Pattern([0, 2, 3, 5, 6], INDICES, SHAPE)
    wider = fs.Pattern(INDPTR, INDICES, (4, 9))
    assert len({a, shifted, moved, wider}) == 4
    assert a != "pattern"
    assert repr(a) == "<Pattern 4x8, 6 nonzeros, density 0.1875>"


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda obj: pickle.loads(pickle.dumps(obj))])
def test_copies_and_pickles(duplicate):
    W = make()
    W.T  # noqa: B018  (what was built for W does not travel)
    other, pattern = duplicate((W, W.pattern))
    assert not any(array.flags.writeable for array in (other.data, other.indices, other.indptr))
    assert other.pattern is pattern
    assert pattern == W.pattern
    assert other.toarray().tobytes() == W.toarray().tobytes()


def test_a_matrix_goes_when_nobody_holds_it():
    W = make()
    W.T  # noqa: B018
    alive = weakref.ref(W)
    del W
    gc.collect()
    assert alive() is None
