"""SpMM by code that is written for a pattern: the same bits as the loop over nonzeros, which has its own oracle."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastsparse as fs
from fastsparse import nn
from fastsparse.csr import csr
from fastsparse.engine.lowering import weights
from fastsparse.ops import pattern_code, spmm, tiles
from fastsparse.ops.sparse_operator import build_operator, channel_blocks
from fastsparse.ops.spmm import SpmmPlan
from fastsparse.ops.target import heuristics_here, target_for
from fastsparse.runtime import executable
from fastsparse.runtime.buffers import address
from fastsparse.runtime.executable import ExecutableMemory, runs_code
from fastsparse_kernels import pattern_code as kernels
from tests.checking import assert_product, same_bits

TARGET = target_for(np.dtype(np.float32), 1)
CODE = pytest.mark.skipif(
    TARGET.lanes != kernels.CODE_LANES or not runs_code(), reason="code is written for AVX-512 where it may run"
)
VECTOR = 64
POISON = np.float32(-7.25)


def products(
    W, x, y_vectors, *, width=7, bias=None, residual=None, activation=None, groups=1, per_block=16, part_bytes=8192,
    segment_bytes=24576, in_place=False,
):  # fmt: skip
    """y by the loop and by code, with what lies around it. x : [K, vectors, 16]; y_vectors : of y's rows."""
    K, count, _ = x.shape
    threads = 1 if groups == 1 else 2
    h = replace(heuristics_here(), code_part_bytes=part_bytes, code_segment_bytes=segment_bytes, code_vectors=1)
    target = replace(TARGET, heuristics=h, threads=threads)
    x_offsets = np.arange(count, dtype=np.int64) * VECTOR
    blocks = channel_blocks(K, per_block, count * VECTOR, np.zeros(1, np.int64))
    operator = build_operator(W.pattern.indptr, W.pattern.indices, blocks, h, groups, width)
    stride, rows = (int(y_vectors.max()) + 2) * VECTOR, W.shape[0]
    plan = SpmmPlan(operator, tiles.whole_vectors(x_offsets, y_vectors * VECTOR, width, TARGET))
    assert operator.dense or weights.runs_by_code(plan, target, stride, activation)
    found = []
    for by_code in (False, True):
        y = np.full((rows + 1, stride // 4), POISON)
        more = y if in_place else np.full_like(y, POISON)
        if residual is not None:
            more[:rows].reshape(rows, -1, 16)[:, y_vectors] = residual
        if by_code:
            stages = kernels.BIAS * (bias is not None) | kernels.RESIDUAL * (residual is not None)
            code = pattern_code.write(plan, W, target, stride, stages, activation)
            launch, values = pattern_code.prepare(plan, code, target, activation=activation), code.values
        else:
            launch = spmm.prepare(
                plan, target, y_row_stride=stride, residual=residual is not None, activation=activation
            )
            values = operator.pack(W.data)
        b, r = 0 if bias is None else address(bias), 0 if residual is None else address(more)
        launch.run(address(x), address(y), address(values), b, r)
        found.append(y)
    return found, [y[:rows].reshape(rows, -1, 16)[:, y_vectors] for y in found]


def pattern(rng, rows, columns, density):
    dense = rng.standard_normal((rows, columns)).astype(np.float32) * (rng.random((rows, columns)) < density)
    return csr(dense)


@CODE
@given(
    st.sampled_from([1, 2, 29, 30, 31, 60, 61, 97]),
    st.integers(1, 90),
    st.sampled_from([0.01, 0.1, 0.5, 1.0]),
    st.integers(1, 23),
    st.integers(1, 8),
    st.sampled_from([None, "relu", "relu6"]),
    st.sampled_from(["", "bias", "residual", "both", "in place"]),
    st.sampled_from([1, 3]),
    st.sampled_from([40, 400, 24576]),
    st.sampled_from([0, 1000, 24576]),
    st.integers(0, 2**32 - 1),
)
def test_drawn_products_have_the_bits_of_the_loop(
    rows, columns, density, vectors, width, activation, epilogue, groups, part_bytes, segment_bytes, seed
):
    rng = np.random.default_rng(seed)
    W = pattern(rng, rows, columns, density)
    if not W.nnz:
        return
    x = rng.standard_normal((columns, vectors, 16)).astype(np.float32)
    y_vectors = rng.permutation(vectors + 3)[:vectors].astype(np.int64)
    bias = rng.standard_normal(rows).astype(np.float32) if epilogue in ("bias", "both", "in place") else None
    more = rng.standard_normal((rows, vectors, 16)).astype(np.float32)
    residual = more if epilogue in ("residual", "both", "in place") else None
    (by_loop, by_code), (_, y) = products(
        W, x, y_vectors, width=width, bias=bias, residual=residual, activation=activation, groups=groups,
        part_bytes=part_bytes, segment_bytes=segment_bytes, in_place=epilogue == "in place",
    )  # fmt: skip
    same_bits(by_code, by_loop)
    if residual is None:
        assert_product(y.reshape(rows, -1), W, x.reshape(columns, -1), bias, activation)


@CODE
@pytest.mark.parametrize("nonzeros", [127, 128, 129, 255, 256, 257, 512, 513, 3000])
def test_weights_beyond_the_reach_of_one_byte(rng, nonzeros):
    W = csr(rng.standard_normal((1, nonzeros)).astype(np.float32))
    W = csr(np.concatenate([W.toarray(), np.eye(1, nonzeros, dtype=np.float32)]))
    x = rng.standard_normal((nonzeros, 2, 16)).astype(np.float32)
    (by_loop, by_code), _ = products(W, x, np.arange(2), part_bytes=2**20)
    same_bits(by_code, by_loop)


@CODE
@pytest.mark.parametrize("vectors", [1, 127, 128, 129, 300])
def test_columns_beyond_the_reach_of_one_byte(rng, vectors):
    """Channels up to 19,200 bytes apart, and few of them: pointers into x jump."""
    W = pattern(rng, 33, 40, 0.3)
    x = rng.standard_normal((40, vectors, 16)).astype(np.float32)
    (by_loop, by_code), _ = products(W, x, np.arange(vectors))
    same_bits(by_code, by_loop)


@CODE
def test_windows_whose_rows_lie_apart(rng):
    """Columns are not in the order of addresses: rows of a window are far from each other, channels near."""
    W, h = pattern(rng, 35, 4 * 9, 0.4), heuristics_here()
    window = np.add.outer(np.arange(3) * 50_000, np.arange(3) * VECTOR).ravel()
    operator = build_operator(W.pattern.indptr, W.pattern.indices, channel_blocks(4, 3, 9 * VECTOR, window), h, width=7)
    at = np.arange(7, dtype=np.int64) * VECTOR
    plan = SpmmPlan(operator, tiles.whole_vectors(at, at, 7, TARGET))
    x, ys = rng.standard_normal(60_000).astype(np.float32), []
    for by_code in (False, True):
        y = np.full((35, 7 * 16), POISON)
        if by_code:
            code = pattern_code.write(plan, W, TARGET, 7 * VECTOR)
            launch, values = pattern_code.prepare(plan, code, TARGET), code.values
        else:
            launch, values = spmm.prepare(plan, TARGET, y_row_stride=7 * VECTOR), operator.pack(W.data)
        launch.run(address(x), address(y), address(values), 0, 0)
        ys.append(y)
    same_bits(*ys)


@CODE
def test_clamps_keep_nan_and_the_sign_of_zero():
    W = csr(np.eye(4, dtype=np.float32))
    x = np.zeros((4, 1, 16), np.float32)
    x[:, 0, :6] = [np.nan, np.inf, -np.inf, -0.0, 7, -7]
    for activation in (None, "relu", "relu6"):
        (by_loop, by_code), (_, y) = products(W, x, np.arange(1), activation=activation)
        assert np.isnan(y[:, 0, 0]).all()
        np.testing.assert_array_equal(np.isnan(by_loop), np.isnan(by_code))
        numbers = ~np.isnan(by_loop)
        same_bits(by_code[numbers], by_loop[numbers])


@CODE
@pytest.mark.parametrize("count", [16, 17, 31, 33, 49, 97, 109, 111, 128, 130 + 7 * 16])
def test_images_of_no_whole_number_of_vectors(rng, count):
    """The last vector begins earlier; what lies behind the image is neither read nor written."""
    W, stride = pattern(rng, 65, 40, 0.3), -(-count // 16) * VECTOR
    h = replace(heuristics_here(), code_vectors=1)
    target = replace(TARGET, heuristics=h)
    at = np.arange(count)
    blocks = channel_blocks(40, 16, stride, np.zeros(1, np.int64))
    operator = build_operator(W.pattern.indptr, W.pattern.indices, blocks, h, 2, 7)
    plan = SpmmPlan(operator, tiles.tiles_over(at, 4 * at, 7, TARGET, VECTOR))
    assert weights.runs_by_code(plan, target, stride, "relu")
    x = np.full((40, stride // 4), np.nan, np.float32)
    x[:, :count] = rng.standard_normal((40, count))
    expected, y = (np.full((66, stride // 4), POISON) for _ in range(2))
    bias = rng.standard_normal(65).astype(np.float32)
    loop = spmm.prepare(plan, target, y_row_stride=stride, activation="relu")
    loop.run(address(x), address(expected), address(operator.pack(W.data)), address(bias))
    code = pattern_code.write(plan, W, target, stride, kernels.BIAS, "relu")
    launch = pattern_code.prepare(plan, code, target, activation="relu")
    launch.run(address(x), address(y), address(code.values), address(bias))
    same_bits(y, expected)


@CODE
def test_what_code_cannot_do_stays_with_the_loop(rng, monkeypatch):
    W, h = pattern(rng, 20, 30, 0.2), replace(heuristics_here(), code_vectors=5)
    target, at = replace(TARGET, heuristics=h), np.arange(7, dtype=np.int64) * VECTOR
    blocks = channel_blocks(30, 30, 7 * VECTOR, np.zeros(1, np.int64))
    plan = SpmmPlan(
        build_operator(W.pattern.indptr, W.pattern.indices, blocks, h, width=7), tiles.whole_vectors(at, at, 7, TARGET)
    )
    part, short = (replace(plan, tiles=tiles.tiles_over(np.arange(n), 4 * np.arange(n), 7, TARGET)) for n in (109, 120))
    assert weights.runs_by_code(plan, target, 7 * VECTOR)
    assert weights.runs_by_code(part, target, 7 * VECTOR), "its last vector begins earlier"
    assert not weights.runs_by_code(part, target, 7 * VECTOR, residual=True), "some numbers would be added twice"
    assert not weights.runs_by_code(short, target, 7 * VECTOR), "a tile of half a vector"
    assert not weights.runs_by_code(plan, target, 7 * VECTOR, "silu")
    assert not weights.runs_by_code(plan, target, 2**27), "rows that 32 bits do not reach"
    assert not weights.runs_by_code(replace(plan, nontemporal=1), target, 7 * VECTOR)
    assert not weights.runs_by_code(replace(plan, by_rows=True), target, 7 * VECTOR)
    assert not weights.runs_by_code(plan, replace(target, lanes=8), 7 * VECTOR)
    assert not weights.runs_by_code(plan, replace(target, heuristics=replace(h, code_vectors=8)), 7 * VECTOR)
    monkeypatch.setattr(weights, "runs_code", lambda: False)
    assert not weights.runs_by_code(plan, target, 7 * VECTOR)


@CODE
def test_reports_say_which_layers_run_by_code(rng):
    layers = [nn.SparseConv2d(8, 8, 3, padding=1, sparsity=0.5, activation=how, rng=rng) for how in ("relu", "silu")]
    report = str(fs.compile(nn.Sequential(*layers), (16, 8, 9, 9), tune=False).report())
    kernels = [line for line in report.splitlines() if "SparseConv2d" in line]
    assert ["by code" in line for line in kernels] == [True, False], report
    assert "tile " in kernels[1]


@pytest.mark.skipif(not runs_code(), reason="this process may not run code of its own")
def test_executable_memory_is_freed_and_cannot_be_written():
    memory = ExecutableMemory(np.full(5000, 0xC3, np.uint8))
    with open("/proc/self/maps") as maps:
        lines = [line.split() for line in maps]
    (rights,) = [f[1] for f in lines if int(f[0].split("-")[0], 16) <= memory.address < int(f[0].split("-")[1], 16)]
    assert rights.startswith("r-x")
    assert memory.nbytes == 5000


def test_systems_that_forbid_executable_memory_use_the_loop(monkeypatch):
    def refuse(code):
        raise PermissionError("no")

    monkeypatch.setattr(executable, "ExecutableMemory", refuse)
    assert not executable.runs_code.__wrapped__()
