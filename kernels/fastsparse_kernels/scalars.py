"""Scalars and memory for kernels: typed loads and stores at byte addresses, FMA, the task counter, records, calls."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import from_dtype, types
from numba.extending import intrinsic

from .vector_ir import FLOATS, I32, I64, NUMBA_FLOATS, at, llvm_function, load_value, opaque, shifted


def _scalar_load(bits: int, align: int) -> Any:
    @intrinsic
    def load_unsigned(typing: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            value = load_value(builder, args[0], ir.IntType(bits), align)
            return builder.zext(value, I64) if bits < 64 else value

        return types.int64(types.int64), codegen

    return load_unsigned


load_u16, load_u32, load_i64 = (_scalar_load(bits, bits // 8) for bits in (16, 32, 64))


@intrinsic(prefer_literal=True)
def load_four_u32(typing: Any, vector_bytes: Any, address: Any) -> Any:
    """Four neighbours of a uint32 array as two int64 of two, the first one in the low half (little-endian).

    vector_bytes : of the vectors that are loaded all around. Beside those of 64 bytes, a load of an integer takes more
        time than a vector's: one vector brings all four. Shorter ones leave room for integers, but not for moving them.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if vector_bytes.literal_value == 64:
            four = opaque(builder, load_value(builder, args[1], ir.VectorType(I64, 2), 4))
            halves = [builder.extract_element(four, ir.Constant(I32, i)) for i in (0, 1)]
        else:
            halves = [load_value(builder, shifted(builder, args[1], 8 * i), I64, 4) for i in (0, 1)]
        return context.make_tuple(builder, signature.return_type, halves)

    return types.UniTuple(types.int64, 2)(vector_bytes, types.int64), codegen


@intrinsic(prefer_literal=True)
def load_float(typing: Any, bits: Any, address: Any) -> Any:
    """The floating-point number of `bits` bits at `address`."""
    width = bits.literal_value

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return load_value(builder, args[1], FLOATS[width], width // 8)

    return NUMBA_FLOATS[width](bits, types.int64), codegen


@intrinsic(prefer_literal=True)
def zero(typing: Any, bits: Any) -> Any:
    """The scalar 0 of `bits` bits."""
    width = bits.literal_value

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(FLOATS[width], 0.0)

    return NUMBA_FLOATS[width](bits), codegen


@intrinsic
def store_float(typing: Any, value: Any, address: Any) -> Any:
    """Write one floating-point number."""
    width = value.bitwidth

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[0], at(builder, args[1], FLOATS[width]), align=width // 8)
        return context.get_dummy_value()

    return types.void(value, types.int64), codegen


@intrinsic
def store_i64(typing: Any, value: Any, address: Any) -> Any:
    """Write one int64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[0], at(builder, args[1], I64), align=8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def fma(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c rounded once; Numba contracts nothing by itself."""
    width = a.bitwidth

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        scalar = FLOATS[width]
        return llvm_function(builder, f"llvm.fma.f{width}", scalar, [scalar] * 3)(*args)

    return a(a, a, a), codegen


@intrinsic
def fetch_add(typing: Any, address: Any, amount: Any) -> Any:
    """Atomically add to the int64 at `address`, giving the value before: hands out tasks to worker slots."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", at(builder, args[0], I64), args[1], "monotonic")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def call(typing: Any, function: Any, arguments: Any, slot: Any) -> Any:
    """Call the compiled kernel at address `function` as void(int64 arguments, int64 slot)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [I64, I64])
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


def record_view(dtype: np.dtype) -> Any:
    """An intrinsic that reads the int64 address of a kernel's argument record as a record of `dtype`."""
    record = from_dtype(dtype)

    @intrinsic
    def view(typing: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], context.get_value_type(record))

        return record(types.int64), codegen

    return view
