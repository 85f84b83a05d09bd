"""Products that stream the rows of a matrix: the same bits as through panels, and when they are chosen."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

import fastsparse as fs
from fastsparse.ops import stream
from fastsparse.ops.heuristics import heuristics_for
from fastsparse.ops.target import target_for, tuned
from fastsparse.runtime import buffers
from fastsparse.runtime.buffers import address
from fastsparse_kernels import compiler
from fastsparse_kernels.sparse_operator import QUARTERS, WHOLE
from tests.checking import (
    ACTIVATIONS,
    DTYPES,
    PATTERNS,
    assert_product,
    assert_within,
    fresh,
    lanes,
    matrix,
    numbers,
    same_bits,
    target,
)

TILES = [1, 2, 8, 16, 24]  # vectors of a row


ALWAYS = {"stream_margin": math.inf, "stream_small_bytes": -1, "stream_length_nonzeros": -1.0}
BY_LENGTH = {
    **ALWAYS, "stream_length_nonzeros": math.inf, "stream_length_row_bytes": math.inf, "stream_uneven_rows": -1.0,
    "stream_near_bytes": -1,
    "l1_bytes": 32 * 1024,  # of CPUs that prefetch what L3 holds
}  # fmt: skip
NEVER = {"stream_margin": 0.0}


@pytest.fixture
def streamed():
    """Every product is streamed."""
    with tuned(**ALWAYS):
        yield


def ways(W, product):
    """Results of `product` by streaming and through panels, on matrices that carry no plans.

    Rows sorted by length, with X prefetched, give the same.
    """
    found = []
    for choice in (ALWAYS, BY_LENGTH, NEVER):
        with tuned(**choice):
            found.append(product(fresh(W)))
    assert same_bits(found.pop(1), found[0])
    return found


def edges(dtype):
    """Numbers of columns around those that fill vectors and tiles."""
    vector = lanes(dtype)
    around = {count * vector + more for count in TILES for more in (-1, 0, 1)}
    return sorted({*range(2, 10), *around})


def power_law(rng, rows, columns, dtype, integers=False):
    """Rows of 1, 2, 4, ... nonzeros, most of them short, one of them full, some empty."""
    mask = np.zeros((rows, columns), bool)
    for row in range(1, rows):
        mask[row, rng.permutation(columns)[: columns // row**2 + row % 3]] = True
    return matrix(rng, mask[rng.permutation(rows)], dtype, integers)


# ------------------------------------------------------------------------------------------------------- same bits


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_bits_are_those_of_panels_on_every_pattern(rng, pattern, dtype):
    W = matrix(rng, PATTERNS[pattern](rng, (23, 70)), dtype)
    for columns in (3, 19, 150):
        X, bias = numbers(rng, (70, columns), dtype), numbers(rng, 23, dtype)
        streamed, panels = ways(W, lambda W, X=X, bias=bias: fs.spmm(W, X, bias=bias))
        assert same_bits(streamed, panels)
        assert_product(streamed, W, X, bias)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bits_are_those_of_panels_around_every_tile_edge(rng, dtype):
    W = power_law(rng, 21, 60, dtype)
    bias = numbers(rng, 21, dtype)
    for columns in edges(dtype):
        X = numbers(rng, (60, columns), dtype)
        for product in (
            lambda W, X=X: fs.spmm(W, X, bias=bias, activation="relu"),
            lambda W, X=X: fs.spmm(W, np.asfortranarray(X), bias=bias),
            lambda W, X=X: fs.linear(np.ascontiguousarray(X.T), W, bias),
            lambda W, X=X: np.ascontiguousarray(X.T) @ W.T,
        ):
            assert same_bits(*ways(W, product))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_bits_are_those_of_panels_with_every_activation(rng, activation, dtype):
    W, bias = power_law(rng, 12, 40, dtype), rng.standard_normal(12).astype(dtype)
    for columns in (2, 5, lanes(dtype) + 3):
        X = rng.standard_normal((40, columns)).astype(dtype)
        assert same_bits(*ways(W, lambda W, X=X: fs.spmm(W, X, bias=bias, activation=activation)))
        assert same_bits(*ways(W, lambda W, X=X: fs.linear(X.T, W, bias, activation=activation)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_input_gradients_have_the_bits_of_panels(rng, dtype):
    W = power_law(rng, 21, 60, dtype)
    for samples in (1, 5, 9 * lanes(dtype) + 1):
        grad, x = numbers(rng, (samples, 21), dtype), numbers(rng, (samples, 60), dtype)
        assert same_bits(*ways(W, lambda W, grad=grad, x=x: fs.linear_backward(grad, x, W)[0]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [1, 2, 7, 64, 300])
def test_the_bits_do_not_depend_on_threads(rng, columns, dtype):
    W, X = power_law(rng, 400, 3000, dtype), numbers(rng, (3000, columns), dtype)
    ones = np.ones((400, columns), dtype)
    with tuned(**(BY_LENGTH if columns == 7 else ALWAYS), parallel_flops=0):
        with fs.threads(1):
            one, one_gradient = fs.spmm(W, X), fs.sddmm(W.pattern, ones, X.T)
        with fs.threads(2):
            for _ in range(20):
                assert same_bits(fs.spmm(W, X), one)
                assert same_bits(fs.sddmm(W.pattern, ones, X.T).data, one_gradient.data)


# --------------------------------------------------------------------------------------------- one column, and numbers


@pytest.mark.parametrize("dtype", DTYPES)
def test_small_integers_are_exact(rng, streamed, dtype):
    W = power_law(rng, 25, 90, dtype, integers=True)
    dense = W.toarray().astype(np.int64)
    for columns in (1, *edges(dtype)):
        X = numbers(rng, (90, columns), dtype, integers=True)
        A = numbers(rng, (25, columns), dtype, integers=True)
        assert np.array_equal(fs.spmm(W, X), dense @ X.astype(np.int64)), columns
        everywhere = A.astype(np.int64) @ X.T.astype(np.int64)
        for left in (A, np.asfortranarray(A)):
            for right in (X.T, np.ascontiguousarray(X.T)):
                sampled = fs.sddmm(W.pattern, left, right)
                assert np.array_equal(sampled.data, everywhere[W.pattern.rows(), W.indices]), columns


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_one_column_is_within_the_bound(rng, activation, dtype):
    """Of matrices with more columns than SpMV's indices can count."""
    W, bias = power_law(rng, 33, 80, dtype), rng.standard_normal(33).astype(dtype)
    x, y = rng.standard_normal(80).astype(dtype), np.full(33, np.nan, dtype)
    here = target_for(W.dtype)
    plan = stream.plan_rows(W.pattern, 1, here)
    launch = stream.prepare(plan, here, x_row_stride=here.size, y_row_stride=here.size, activation=activation)
    launch.run(address(x), address(y), plan.values(W).current(), address(bias))
    assert_product(y, W, x, bias, activation)


@pytest.mark.parametrize("dtype", DTYPES)
def test_infinities_meet_stored_values_alone(rng, dtype):
    """NaN and infinities, as far as the last column of tiles that overlap."""
    for columns in (1, 3, lanes(dtype) + 2, 9 * lanes(dtype)):
        W = power_law(rng, 20, 50, dtype)
        X = numbers(rng, (50, columns), dtype)
        X.flat[rng.integers(0, X.size, 12)] = np.repeat([np.inf, -np.inf, np.nan], 4)
        streamed, panels = ways(W, lambda W, X=X: fs.spmm(W, X))
        np.testing.assert_array_equal(streamed, panels)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [1, 3, 8, 40, 200])
def test_sddmm_is_within_the_bound(rng, streamed, columns, dtype):
    W = power_law(rng, 30, 70, dtype)
    A, B = numbers(rng, (30, columns), dtype), numbers(rng, (columns, 70), dtype)
    rows = W.pattern.rows()
    exact = np.einsum("ij,ij->i", A[rows].astype(np.longdouble), B.T[W.indices].astype(np.longdouble))
    magnitude = np.einsum("ij,ij->i", abs(A[rows]).astype(np.longdouble), abs(B.T[W.indices]).astype(np.longdouble))
    for left in (A, np.asfortranarray(A), np.repeat(A, 2, axis=1)[:, ::2]):
        for right in (B, np.asfortranarray(B)):
            assert_within(fs.sddmm(W.pattern, left, right).data, exact, columns, magnitude)
    gradient = fs.linear_backward(A.T, B, W)[1]
    assert_within(gradient, exact, columns, magnitude)


def test_sddmm_multiplies_nothing_behind_the_columns(rng, streamed):
    """What lies behind a row's last column is not read, or it would be NaN here."""
    W = power_law(rng, 20, 40, "float32")
    for columns in (1, 5, lanes("float32") + 3):
        A, B = np.full((20, columns + 7), np.nan, np.float32), np.full((40, columns + 7), np.nan, np.float32)
        A[:, :columns], B[:, :columns] = 1, 2
        assert (fs.sddmm(W.pattern, A[:, :columns], B[:, :columns].T).data == 2 * columns).all()


# ------------------------------------------------------------------------------------------------------------- arrays


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [1, 2, 4, 16, 20, 64, 256])
@pytest.mark.parametrize("choice", [ALWAYS, NEVER], ids=["streamed", "panels"])
def test_outputs_begin_anywhere_and_nothing_beside_them_changes(rng, choice, columns, dtype):
    """Non-temporal stores at every alignment that NumPy's arrays have, and ordinary ones."""
    W, X = power_law(rng, 21, 30, dtype), numbers(rng, (30, columns), dtype)
    expected = fs.spmm(W, X)
    size = expected.itemsize
    for lead in (0, 16 // size, 32 // size, 1):
        memory = compiler.aligned_empty((expected.size + 64,), dtype)
        memory[:] = 7
        out = memory[lead : lead + expected.size].reshape(expected.shape)
        with tuned(**choice, l3_bytes=0):
            assert same_bits(fs.spmm(fresh(W), X, out=out), expected)
        assert (memory[:lead] == 7).all()
        assert (memory[lead + expected.size :] == 7).all()


def test_the_alignment_decides_how_outputs_are_stored():
    avx512, pattern = target(32, 16), fs.Pattern([0, 1], [0], (1, 2))
    for columns, alignment, expected in (
        (16, 64, WHOLE),
        (16, 16, QUARTERS),
        (16, 4, 0),
        (16, 0, 0),
        (4, 16, WHOLE),
        (2, 16, 0),
    ):
        assert stream.plan_rows(pattern, columns, avx512, alignment).nontemporal == expected
    far, l3 = 2**30, avx512.heuristics.l3_bytes
    assert stream.row_alignment(4096, 64, far, avx512) == 64
    assert stream.row_alignment(4096 + 16, 64, far, avx512) == 16
    assert stream.row_alignment(4096, 80, far, avx512) == 16
    assert stream.row_alignment(4096, 64, l3 // 4, avx512) == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_inputs_of_every_layout(rng, dtype):
    W = power_law(rng, 21, 30, dtype)
    wide = numbers(rng, (60, 74), dtype)
    for X in (wide[::2, ::2], wide[::2, 3:40], wide[29::-1, 5:24], wide[:30, 40:3:-1], wide[:30].T[:21].T):
        assert same_bits(*ways(W, lambda W, X=X: fs.spmm(W, X)))
    assert same_bits(*ways(W, lambda W: fs.spmm(W, np.broadcast_to(wide[:30, :1], (30, 19)))))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_lie_across_cache_lines_are_read_from_a_copy(rng, monkeypatch, dtype):
    """Where there are enough nonzeros for it; the copy has the bits of X, whatever lies between its rows."""
    copies, take = [], buffers.take_numbers
    monkeypatch.setattr(buffers, "take_numbers", lambda *args: copies.append(args) or take(*args))
    size = np.dtype(dtype).itemsize
    W, columns = power_law(rng, 33, 30, dtype), 64 // size
    for lead in (0, 1, 16 // size):
        for width in (columns, columns + 3):
            memory = compiler.aligned_empty((31 * width + lead,), dtype)
            memory[:] = np.nan
            X = memory[lead : lead + 30 * width].reshape(30, width)[:, :columns]
            X[:] = numbers(rng, X.shape, dtype)
            for uses, given, copied in (
                (0, X, lead > 0),
                (0, X[:, 1:], False),  # rows of another size
                (W.nnz / 30, X, False),  # too few nonzeros
            ):
                copies.clear()
                with tuned(**ALWAYS, stream_copy_uses=uses):
                    found = fs.spmm(fresh(W), given)
                assert len(copies) == copied
                assert same_bits(found, fs.spmm(fresh(W), given.copy()))


def test_a_plan_holds_few_bytes_for_each_nonzero():
    indptr = np.arange(0, 200_001 * 5, 5)
    pattern = fs.Pattern(indptr, np.tile(np.arange(5), 200_000), (200_000, 200_000))
    plan = stream.plan_rows(pattern, 64, target(32, 16, 2))
    assert plan.bounds.nbytes < 0.02 * pattern.nnz


# ------------------------------------------------------------------------------------------------------------- plans


@pytest.mark.parametrize("cpu", [target(32, 16), target(64, 4), target(32, 4)])
def test_tiles_cover_every_column_and_none_behind(cpu):
    for columns in range(1, 20 * cpu.lanes):
        tiles = stream.tiling(columns, cpu)
        covered = np.zeros(columns, int)
        for tile in range(tiles.tiles):
            is_last = tile == tiles.tiles - 1
            first = tiles.last_tile if is_last else tile * tiles.stride
            ends = tiles.last_tile_vector if is_last else tiles.last_vector
            vectors = [*range(0, (tiles.width - 1) * tiles.lanes * cpu.size, tiles.lanes * cpu.size), ends]
            assert len(vectors) == tiles.width <= cpu.heuristics.stream_tile
            for offset in vectors:
                begin = (first + offset) // cpu.size
                assert 0 <= begin <= columns - tiles.lanes
                covered[begin : begin + tiles.lanes] += 1
        assert covered.all()
        assert covered.sum() < columns + tiles.width * tiles.lanes


@pytest.mark.parametrize("threads", [1, 2, 32])
@pytest.mark.parametrize("tiles", [1, 3])
def test_chunks_cover_every_row_and_tile_once_and_are_small(rng, tiles, threads):
    h = heuristics_for(64)
    lengths = [
        np.zeros(0, int),
        np.zeros(7, int),
        np.full(10_000, 3),
        rng.zipf(1.5, 5_000).clip(0, 200_000),
        np.array([0, 0, 1_000_000, 0, 5, 70_000, 70_000, 1]),
    ]
    for length in lengths:
        indptr = np.concatenate([[0], np.cumsum(length)])
        bounds = stream.chunk_bounds(indptr, tiles, h, threads)
        seen = np.zeros((len(length), tiles), int)
        total = indptr[-1] + len(length)
        most = h.stream_chunk_work(total, threads)
        for first, last, first_tile, last_tile in bounds:
            seen[first:last, first_tile:last_tile] += 1
            work = indptr[last] - indptr[first] + last - first
            assert work <= 2 * most + 1 or (last == first + 1 and last_tile == first_tile + 1)
        assert (seen == 1).all()


# (rows, columns of W, nonzeros a row, columns of X): whether it is streamed, on AVX-512.
CHOICES = [
    # graphs, grids, permutations
    (200_000, 200_000, 5, 4, True),
    (200_000, 200_000, 5, 64, True),
    (200_000, 200_000, 5, 256, True),
    (160_000, 160_000, 5, 16, True),
    (200_000, 200_000, 1, 64, True),
    (100_000, 100_000, 10, 256, True),
    # text: long rows over many columns
    (10_000, 50_000, 65, 64, True),
    (10_000, 50_000, 65, 256, True),
    # wide, tall
    (1_000, 1_000_000, 1_000, 4, True),
    (1_000, 1_000_000, 1_000, 64, True),
    (1_000_000, 100, 3, 4, True),
    (1_000_000, 100, 3, 64, True),
    # expressions of genes, and layers
    (5_000, 3_000, 240, 16, False),
    (5_000, 3_000, 240, 256, False),
    (512, 512, 51, 64, False),
    (2048, 512, 51, 1024, False),
    (512, 4608, 460, 64, False),
    (256, 2304, 230, 784, False),
    (1024, 1024, 102, 16, False),
    (64, 576, 57, 3136, False),
    (512, 2048, 41, 49, False),
    (16_000, 16_000, 128, 64, False),
]


@pytest.mark.parametrize(("rows", "inputs", "length", "columns", "expected"), CHOICES)
def test_the_choice_by_pattern_and_columns(rows, inputs, length, columns, expected):
    pattern = Sizes((rows, inputs), rows * length)
    zen4 = target(32, 16, l3_bytes=32 * 2**20)
    assert stream.pays(pattern, columns, zen4, columns * 4) is expected


# (rows, nonzeros a row, bytes of a row of X): whether rows may be sorted by length.
def test_rows_of_one_vector_are_packed_sooner_where_the_last_cache_is_far():
    mesh = replace(target(32, 16), heuristics=heuristics_for(64, 48 * 1024, 300 * 2**20))
    wide = 1_000, 1_000_000, 1_000_000
    assert [mesh.heuristics.streams(*wide, columns, 4) for columns in (4, 16, 64)] == [False, False, True]
    assert mesh.heuristics.streams(200_000, 200_000, 1_000_000, 16, 4), "a graph"


BY_LENGTH_CHOICES = [
    (1_000_000, 3, 16, True),
    (200_000, 5, 32, True),
    (200_000, 5, 64, False),
    (10_000, 65, 16, False),
    (1_000_000, 1, 4, True),
]


@pytest.mark.parametrize(("rows", "length", "row_bytes", "expected"), BY_LENGTH_CHOICES)
def test_short_rows_of_few_columns_are_sorted_by_length(rows, length, row_bytes, expected):
    assert heuristics_for(64).stream_by_length(rows, rows * length, row_bytes) is expected


def test_rows_are_sorted_within_their_chunks_where_lengths_vary(rng):
    avx512 = target(32, 16)
    even = stream.plan_rows(fs.csr(np.eye(500)).pattern, 4, avx512)
    assert even.order is None
    pattern = power_law(rng, 3000, 100, "float32").pattern
    plan = stream.plan_rows(pattern, 4, avx512)
    assert len(plan.bounds) > 1
    for first, last, _, _ in plan.bounds:
        assert sorted(plan.order[first:last]) == list(range(first, last))
        assert (np.diff(plan.indptr[first : last + 1], 2) >= 0).all()
    rows = np.repeat(plan.order, np.diff(plan.indptr))
    np.testing.assert_array_equal(pattern.rows()[plan.permutation], rows)
    np.testing.assert_array_equal(pattern.indices[plan.permutation], plan.indices)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sorted_rows_take_new_values(rng, dtype):
    W, X = power_law(rng, 60, 50, dtype), numbers(rng, (50, 3), dtype)
    with tuned(**BY_LENGTH):
        values = W.data.copy()
        changing = fs.CSR._trusted(W.pattern, values, changing=True)
        fs.spmm(changing, X)
        values *= 2
        changing._values_changed()
        assert same_bits(fs.spmm(changing, X), fs.spmm(W * 2, X))


class Sizes:
    """A pattern of which only the sizes are looked at."""

    def __init__(self, shape, nnz):
        self.shape, self.nnz = shape, nnz


@pytest.mark.parametrize("rows", [1, 2, 40, 5000])
def test_the_reach_of_neighbouring_rows(rng, rows):
    band = matrix(rng, np.eye(rows, 3 * rows, 1, dtype=bool) | np.eye(rows, 3 * rows, 4, dtype=bool), np.float32)
    assert stream.column_reach(band.pattern) == (5 if rows > 1 else 3)  # one row has no neighbour
    order = rng.permutation(rows)
    scattered = fs.CSR(np.arange(rows + 1), order, np.ones(rows), (rows, rows))
    assert rows < 3 or stream.column_reach(scattered.pattern) > rows / 6
    empty = fs.CSR(np.zeros(rows + 1, int), [], [], (rows, 7))
    assert stream.column_reach(empty.pattern) == 7


def test_whatever_needs_more_than_32_bits_is_streamed():
    avx512 = target(32, 16)
    assert stream.pays(Sizes((1000, 2**33), 10**6), 64, avx512, 256)
    assert stream.pays(Sizes((2**20, 2**20), 2**33), 64, avx512, 256)
    assert not stream.pays(Sizes((0, 10), 0), 4, avx512, 16)


@pytest.mark.parametrize("dtype", DTYPES)
def test_indices_of_64_bits(rng, streamed, dtype):
    """The same bits as with indices of 32."""
    W, X = power_law(rng, 21, 60, dtype), numbers(rng, (60, 19), dtype)
    A = numbers(rng, (21, 19), dtype)
    expected, sampled = fs.spmm(W, X), fs.sddmm(W.pattern, A, X.T)
    wide = fresh(W)
    wide.pattern._indices = wide.indices.astype(np.int64)
    assert same_bits(fs.spmm(wide, X), expected)
    assert same_bits(fs.sddmm(wide.pattern, A, X.T).data, sampled.data)


def test_a_long_product_has_chunks_enough_for_every_slice():
    """Contract T4: work above 0.2 s is launched in slices of whole chunks."""
    rows, length = 20_000, 100
    indptr = np.arange(0, length * rows + 1, length)
    pattern = fs.Pattern(indptr, np.tile(np.arange(length), rows), (rows, length))
    avx512 = target(32, 16)
    plan = stream.plan_rows(pattern, 512, avx512)
    work = stream.work(plan.indptr, plan.columns, avx512.heuristics)
    assert work > avx512.heuristics.slice_flops
    assert len(plan.bounds) > work / avx512.heuristics.slice_flops
