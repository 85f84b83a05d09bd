"""The register tile, operation by operation, against NumPy: what is read, what is written, what stays."""

from __future__ import annotations

import ctypes
import itertools
import mmap
import platform
import re
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from llvmlite import binding as llvm
from llvmlite import ir
from numba import types

from fastsparse.runtime import kernel_cache
from fastsparse.runtime.buffers import address
from fastsparse_kernels import compiler, simd
from fastsparse_kernels.numba_internals import KernelCFunc, assembly, llvm_ir
from fastsparse_kernels.simd.horizontal import _masked_rows
from fastsparse_kernels.simd.types import at, instruction, shifted
from tests.kernels.support import DTYPES, Guarded, bits_of, lanes_of

BOTH = pytest.mark.parametrize("dtype", DTYPES)
I64 = types.int64


def compiled(function: Callable[..., None], arguments: int) -> Callable[..., None]:
    """A C function of int64 arguments; arrays stand for their addresses. Nothing is cached."""
    code = KernelCFunc(function, types.void(*[I64] * arguments))
    code.compile()

    def call(*values: Any) -> None:
        code.ctypes(*(address(v) if isinstance(v, np.ndarray) else int(v) for v in values))

    return call


def assembly_on_arm(instruction: Any, arguments: int) -> str:
    """Assembly of an instruction of `simd` on int64 arguments, for AArch64, on any machine."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    module, integer = ir.Module(), ir.IntType(64)
    module.triple = "aarch64-unknown-linux-gnu"
    function = ir.Function(module, ir.FunctionType(integer, [integer] * arguments), "f")
    builder = ir.IRBuilder(function.append_basic_block())
    result = instruction._defn.__wrapped__(builder, function.args, *[I64] * arguments)
    builder.ret(result if getattr(result, "type", None) == integer else integer(0))
    machine = llvm.Target.from_triple(module.triple).create_target_machine(cpu="generic", opt=3)
    return str(machine.emit_assembly(llvm.parse_assembly(str(module))))


@pytest.mark.T1
@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("fetch_add", 2, ["ldaxr", "stlxr"]),
        ("load_acquire", 1, ["ldar"]),
        ("store_release", 2, ["stlr"]),
        ("store_fence", 0, ["dmb"]),
        ("pause", 0, ["isb"]),
    ],
)
def test_what_workers_hand_over_is_ordered_on_arm(name, arguments, expected):
    """x86 orders all that these instructions order, so no run there misses one. A pause takes time."""
    code = assembly_on_arm(getattr(simd, name), arguments)
    assert re.findall(r"^\t(ldaxr|stlxr|ldar|stlr|dmb|isb|hint|yield)\b", code, re.MULTILINE) == expected


@BOTH
def test_first_elements(rng, dtype):
    """Loads put zeros behind `count` elements, stores leave the memory behind them alone; any count."""
    bits, lanes = bits_of(dtype), lanes_of(dtype)

    def copy(source, target, count):  # type: ignore[no-untyped-def]
        simd.store(simd.load_first(simd.zeros(3, lanes, bits), source, count), target)

    def keep(source, target, count):  # type: ignore[no-untyped-def]
        simd.store_first(simd.load(simd.zeros(3, lanes, bits), source), target, count)

    load, store = compiled(copy, 3), compiled(keep, 3)
    whole = rng.standard_normal(3 * lanes).astype(dtype)
    for count in range(-2, 3 * lanes + 3):
        valid = min(max(count, 0), 3 * lanes)
        source = np.full(3 * lanes, np.nan, dtype)
        source[:valid] = whole[:valid]
        target = np.full(3 * lanes, np.nan, dtype)
        load(source, target, count)
        assert np.array_equal(target, np.where(np.arange(3 * lanes) < valid, whole, 0))
        guarded = Guarded(valid, dtype)
        store(whole, guarded.inside, count)
        assert np.array_equal(guarded.inside, whole[:valid])
        assert guarded.intact()


@pytest.mark.skipif(sys.platform == "win32", reason="needs mprotect")
@BOTH
def test_first_elements_at_the_end_of_a_page(dtype):
    """Elements that are not wanted are not touched: behind them lies memory that cannot be read."""
    bits, lanes, page = bits_of(dtype), lanes_of(dtype), mmap.PAGESIZE
    memory = np.frombuffer(mmap.mmap(-1, 2 * page), np.uint8)
    base = address(memory)
    protect = ctypes.CDLL(None).mprotect
    protect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    if protect(base + page, page, 0):
        pytest.skip("memory cannot be protected")

    def copy(source, target, count):  # type: ignore[no-untyped-def]
        tile = simd.load_first(simd.zeros(2, lanes, bits), source, count)
        simd.store_first(tile, target, count)

    run = compiled(copy, 3)
    size = np.dtype(dtype).itemsize
    for count in range(2 * lanes + 1):
        inside = memory[page - count * size : page].view(dtype)
        inside[:] = np.arange(count)
        target = np.full(2 * lanes, np.nan, dtype)
        run(base + page - count * size, target, count)
        assert np.array_equal(target[:count], np.arange(count))
        inside[:] = -1
        run(np.arange(2 * lanes, dtype=dtype), base + page - count * size, count)
        assert np.array_equal(inside, np.arange(count))
    assert protect(base + page, page, mmap.PROT_READ | mmap.PROT_WRITE) == 0


@pytest.mark.parametrize("rows", [1, 3, 4])
def test_rows_that_do_not_exist_have_the_address_of_one_that_does(rows):
    """A masked access to a page that is not there does not fault, but takes hundreds of cycles."""

    @instruction(types.void)
    def addresses(builder, args, tile, address, stride, rows, columns, target):  # type: ignore[no-untyped-def]
        for i, (row, _mask) in enumerate(_masked_rows(builder, tile, *args[1:5])):
            builder.store(row, at(builder, shifted(builder, args[5], 8 * i), ir.IntType(64)))

    def run(base, target):  # type: ignore[no-untyped-def]
        addresses(simd.zeros(4, 4, 32), base, 100, rows, 2, target)

    found = np.zeros(4, np.int64)
    compiled(run, 2)(1000, found)
    assert found.tolist() == [1000 + 100 * i if i < rows else 1000 for i in range(4)]


@BOTH
def test_transpose_with_any_number_of_rows_and_columns(rng, dtype):
    bits, lanes, size = bits_of(dtype), lanes_of(dtype), np.dtype(dtype).itemsize

    def turn(source, target, rows, columns):  # type: ignore[no-untyped-def]
        square = simd.load_rows(simd.zeros(lanes, lanes, bits), source, 50 * size, rows, columns)
        simd.store(simd.transpose(square), target)

    def turn_back(source, target, rows, columns):  # type: ignore[no-untyped-def]
        square = simd.transpose(simd.load(simd.zeros(lanes, lanes, bits), source))
        simd.store_rows(square, target, 50 * size, rows, columns)

    there, back = compiled(turn, 4), compiled(turn_back, 4)
    wide = rng.standard_normal((lanes, 50)).astype(dtype)
    for rows in range(lanes + 1):
        for columns in {0, 1, lanes - 1, lanes}:
            source = np.full((lanes, 50), np.nan, dtype)
            source[:rows, :columns] = wide[:rows, :columns]
            target = np.full((lanes, lanes), np.nan, dtype)
            there(source, target, rows, columns)
            expected = np.zeros((lanes, lanes), dtype)
            expected[:columns, :rows] = wide[:rows, :columns].T
            assert np.array_equal(target, expected)
            result = np.full((lanes, 50), np.nan, dtype)
            back(expected, result, rows, columns)
            assert np.array_equal(result[:rows, :columns], wide[:rows, :columns])
            assert np.isnan(result).sum() == result.size - rows * columns


@BOTH
@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_sums_over_lanes(rng, count, dtype):
    """Lane i of the result is the sum of vector i, added to what memory holds or from zero; all of them or the first
    ones."""
    bits, lanes = bits_of(dtype), lanes_of(dtype)
    if count > lanes:
        pytest.skip("more vectors than lanes")

    def reduce(source, target, valid, from_zero):  # type: ignore[no-untyped-def]
        simd.add_reduced(simd.load(simd.zeros(count, lanes, bits), source), target, valid, from_zero)

    source = rng.integers(-50, 50, (count, lanes)).astype(dtype)
    run = compiled(reduce, 4)
    for from_zero in (0, 1):
        before = np.full(count, np.nan) if from_zero else np.arange(count)
        after = source.sum(axis=1) if from_zero else before + source.sum(axis=1)
        for valid in range(count + 1):
            memory = Guarded(valid, dtype)
            memory.inside[:] = before[:valid]
            run(source, memory.inside, valid, from_zero)
            assert np.array_equal(memory.inside, after[:valid])
            assert memory.intact()


@BOTH
def test_clamp_keeps_nan_and_the_sign_of_zero(dtype):
    bits, lanes = bits_of(dtype), lanes_of(dtype)

    def clamp(memory, limits):  # type: ignore[no-untyped-def]
        low, high = simd.load_float(bits, limits), simd.load_float(bits, limits + bits // 8)
        simd.store(simd.clamp(simd.load(simd.zeros(2, lanes, bits), memory), low, high), memory)

    run = compiled(clamp, 2)
    special = np.array([np.nan, -np.nan, np.inf, -np.inf, -0.0, 0.0, 7.0, -7.0, 6.0, 1e-45, np.finfo(dtype).max], dtype)
    for low, high in ((0, 6), (0, np.inf), (-np.inf, np.inf)):
        memory = np.resize(special, -(-len(special) // (2 * lanes)) * 2 * lanes).astype(dtype)
        expected = np.where(memory < low, low, np.where(memory > high, high, memory)).astype(dtype)
        for start in range(0, len(memory), 2 * lanes):
            run(memory[start:], np.array([low, high], dtype))
        assert memory.tobytes() == expected.tobytes()


@BOTH
@pytest.mark.parametrize("row", sorted({16, compiler.vector_bytes()}))
@pytest.mark.parametrize("index", range(4))
def test_weights_are_taken_one_by_one(rng, dtype, row, index):
    """Also from more numbers than a vector of 16 bytes has lanes."""
    bits, lanes = bits_of(dtype), row // np.dtype(dtype).itemsize

    def contiguous(weights, x, y):  # type: ignore[no-untyped-def]
        like = simd.zeros(3, lanes, bits)
        simd.store(simd.axpy_lane(like, simd.load_four_weights(like, weights), index, x, 3 * row), y)

    def apart(weights, x, y):  # type: ignore[no-untyped-def]
        like = simd.zeros(3, lanes, bits)
        bases = simd.strided_addresses(3, x + 2 * row, -row)
        simd.store(simd.axpy_lane(like, simd.load_four_weights(like, weights), index, bases, 0), y)

    weights = np.full(8, np.nan, dtype)
    weights[:4] = rng.standard_normal(4)
    x, y = rng.standard_normal((6, lanes)).astype(dtype), np.full((3, lanes), np.nan, dtype)
    compiled(contiguous, 3)(weights, x, y)
    assert np.array_equal(y, weights[index] * x[3:])
    compiled(apart, 3)(weights, x, y)
    assert np.array_equal(y, weights[index] * x[2::-1])


@pytest.mark.parametrize("vector_bytes", [16, 32, 64])
def test_four_offsets_are_two_pairs(rng, vector_bytes):
    """The first of each in the low half, at any multiple of four bytes; also numbers that an int32 cannot hold."""

    def load(source, out):  # type: ignore[no-untyped-def]
        two, more = simd.load_four_u32(vector_bytes, source + 4)
        simd.store_i64(two, out)
        simd.store_i64(more, out + 8)

    source, out = rng.integers(0, 2**32, 5, dtype=np.uint32), np.zeros(2, np.int64)
    compiled(load, 2)(source, out)
    assert out.view(np.uint32).tolist() == source[1:].tolist()


@BOTH
@pytest.mark.parametrize("row", sorted({16, compiler.vector_bytes()}))
def test_sums_of_four_vectors(rng, dtype, row):
    """Added to as many numbers as there are lanes, or to fewer, or from zero; exact on small integers."""
    bits, lanes = bits_of(dtype), row // np.dtype(dtype).itemsize
    number, each = max(4, lanes), max(1, 4 // lanes)
    fours = number // 4
    parts, step = fours * each, each * row

    def add(vectors, kept, gradients, count, from_zero):  # type: ignore[no-untyped-def]
        like = simd.zeros(1, lanes, bits)
        for four in range(fours):
            at = vectors + four * 4 * row
            a, b = simd.load(like, at), simd.load(like, at + row)
            c, d = simd.load(like, at + 2 * row), simd.load(like, at + 3 * row)
            simd.store(simd.reduce_fours(a, b, c, d), kept + four * step)
        simd.add_reduced_fours(simd.load(simd.zeros(parts, lanes, bits), kept), gradients, count, from_zero)

    run = compiled(add, 5)
    vectors = rng.integers(-9, 10, (number, lanes)).astype(dtype)
    before = rng.integers(-9, 10, number).astype(dtype)
    for count, from_zero in itertools.product(range(1, number + 1), (0, 1)):
        guarded = Guarded(count, dtype)
        guarded.inside[:] = np.nan if from_zero else before[:count]
        run(vectors, np.empty(parts * lanes, dtype), guarded.inside, count, from_zero)
        after = vectors.sum(axis=1) if from_zero else before + vectors.sum(axis=1)
        assert np.array_equal(guarded.inside, after[:count])
        assert guarded.intact()


@BOTH
def test_products_of_a_tile(rng, dtype):
    bits, lanes = bits_of(dtype), lanes_of(dtype)

    def dot(tile, memory, y):  # type: ignore[no-untyped-def]
        acc = simd.load(simd.zeros(1, lanes, bits), y)
        simd.store(simd.dot_tile(acc, simd.load(simd.zeros(3, lanes, bits), tile), memory), y)

    tile, memory = rng.integers(-9, 10, (2, 3, lanes)).astype(dtype)
    y = rng.integers(-9, 10, lanes).astype(dtype)
    expected = y + (tile * memory).sum(axis=0)
    compiled(dot, 3)(tile, memory, y)
    assert np.array_equal(y, expected)


@BOTH
def test_products_are_rounded_once(dtype):
    """(1 + e)(1 - e) - 1 is -e^2 with one rounding and 0 with two."""
    bits, lanes = bits_of(dtype), lanes_of(dtype)

    def vector(memory):  # type: ignore[no-untyped-def]
        acc = simd.load(simd.zeros(1, lanes, bits), memory)
        step = lanes * bits // 8
        simd.store(simd.axpy(acc, memory + step, simd.strided_addresses(1, memory + 2 * step, 0), 0), memory)

    def scalar(memory):  # type: ignore[no-untyped-def]
        size = bits // 8
        a, b = simd.load_float(bits, memory), simd.load_float(bits, memory + size)
        simd.store_float(simd.fma(a, b, simd.load_float(bits, memory + 2 * size)), memory)

    eps = np.finfo(dtype).eps
    rows = np.array([[-1.0], [1 + eps], [1 - eps]], dtype) * np.ones(lanes, dtype)
    compiled(vector, 1)(rows)
    assert (rows[0] == -(eps**2)).all()
    numbers = np.array([1 + eps, 1 - eps, -1], dtype)
    compiled(scalar, 1)(numbers)
    assert numbers[0] == -(eps**2)


def test_memory_order_is_explicit():
    """The task counter is atomic, acquire-release where x86 does not imply it; non-temporal stores are fenced; a stack
    buffer is not zero-filled."""
    lanes = lanes_of("float32")

    def ordered(counter, target):  # type: ignore[no-untyped-def]
        buffer = simd.stack_buffer(4096)
        simd.store_i64(simd.fetch_add(counter, 1), buffer)
        simd.store_nontemporal(simd.load(simd.zeros(1, lanes, 32), buffer), target)
        simd.store_fence()

    compiler.set_cache_directories()
    try:
        kernel = compiler.compile_kernel(ordered, "test_memory_order")
        code = llvm_ir(kernel)
    finally:
        compiler.set_cache_directories(kernel_cache.cache_directories, kernel_cache.write_cached)
    x86 = platform.machine() in ("x86_64", "AMD64")
    assert re.search(rf"atomicrmw add .* {'monotonic' if x86 else 'acq_rel'}", code)
    assert "zeroinitializer" not in code
    if x86:
        assert re.search(r"\tv?movnt.*\n(.*\n)*?\tsfence", assembly(kernel))
