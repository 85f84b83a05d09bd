"""Lane-wise tile operations: multiply-adds with vectors in memory, sums, clamps; the scalar FMA, an opaque integer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types

from .types import (
    FLOATS,
    I64,
    NUMBA_FLOATS,
    Const,
    Tile,
    elementwise,
    first_lanes,
    fma_function,
    instruction,
    llvm_function,
    load_value,
    masked_load,
    opaque,
    overlapping_addresses,
    pack,
    shifted,
    shuffle,
    splat,
    unpack,
    vector_addresses,
)

WEIGHTS = 4  # loaded by one instruction


def _multiply_add(builder: Any, tile: Tile, sums: Any, w: Any, addresses: Sequence[Any]) -> Any:
    """sums[i] + w * the vector at address i, which stays in memory."""
    fma, out = fma_function(builder, tile), []
    for acc, address in zip(unpack(builder, sums, tile.count), addresses, strict=True):
        out.append(fma(w, load_value(builder, address, tile.vector, tile.size), acc))
    return pack(builder, tile.vector, out)


@instruction(lambda like, address: Tile(max(1, WEIGHTS // like.lanes), like.lanes, like.bits))
def load_four_weights(builder: Any, args: Any, like: Any, address: Any) -> Any:
    """Four consecutive numbers, repeated across a vector, as operand of `axpy_lane`.

    One load brings four weights, and loops over nonzeros are bound by loads. Vectors of fewer than four lanes hold as
    many as they have lanes.
    """
    each = min(WEIGHTS, like.lanes)
    weights = Tile(WEIGHTS // each, like.lanes, like.bits)
    few, vectors = ir.VectorType(like.element, each), []
    for i in range(weights.count):
        numbers = load_value(builder, shifted(builder, args[1], i * each * like.size), few, like.size)
        vector = shuffle(builder, numbers, numbers, [lane % each for lane in range(like.lanes)])
        vectors.append(opaque(builder, vector))  # or LLVM broadcasts every number from memory
    return pack(builder, like.vector, vectors)


@instruction()
def axpy_lane(builder: Any, args: Any, tile: Any, weights: Any, index: Const, bases: Any, offset: Any) -> Any:
    """tile[i] + w * vector i of x, where w is number `index` of the four in `weights`.

    bases : `Addresses`, or one int64 where the vectors are contiguous; offset is added to it
    """
    each = min(WEIGHTS, tile.lanes)
    source = unpack(builder, args[1], weights.count)[index // each]
    lanes = [lane // each * each + index % each for lane in range(tile.lanes)]
    w = shuffle(builder, source, source, lanes)
    return _multiply_add(builder, tile, args[0], w, vector_addresses(builder, tile, bases, args[3], args[4]))


@instruction()
def axpy(builder: Any, args: Any, tile: Any, weight: Any, bases: Any, offset: Any) -> Any:
    """tile[i] + w * vector i of x for the weight at address `weight`, which is broadcast; x as in `axpy_lane`."""
    w = splat(builder, tile, load_value(builder, args[1], tile.element, tile.size))
    return _multiply_add(builder, tile, args[0], w, vector_addresses(builder, tile, bases, args[2], args[3]))


@instruction()
def axpy_overlapping(builder: Any, args: Any, tile: Any, weight: Any, first: Any, last: Any) -> Any:
    """`axpy` on contiguous vectors from address `first` on, the last of which is at first + last.

    A row of any length is whole vectors that way: the last one overlaps the one before.
    """
    w = splat(builder, tile, load_value(builder, args[1], tile.element, tile.size))
    return _multiply_add(builder, tile, args[0], w, overlapping_addresses(builder, tile, args[2], args[3]))


@instruction()
def axpy_tile(builder: Any, args: Any, tile: Any, weight: Any, x: Any) -> Any:
    """tile + w * x for a tile x in registers: the weight at address `weight` is broadcast."""
    fma = fma_function(builder, tile)
    w = splat(builder, tile, load_value(builder, args[1], tile.element, tile.size))
    return elementwise(builder, tile, lambda acc, v: fma(w, v, acc), args[0], args[2])


@instruction()
def dot(builder: Any, args: Any, tile: Any, row: Any, bases: Any, offset: Any) -> Any:
    """tile[j] + vector(row) * vector(bases[j] + offset): a vector of dY against T vectors of X (SDDMM)."""
    y = load_value(builder, args[1], tile.vector, tile.size)
    return _multiply_add(builder, tile, args[0], y, vector_addresses(builder, tile, bases, args[2], args[3]))


@instruction()
def dot_first(builder: Any, args: Any, tile: Any, row: Any, bases: Any, offset: Any, count: Any) -> Any:
    """`dot` in the first `count` lanes; nothing else is read."""
    fma, mask = fma_function(builder, tile), first_lanes(builder, tile, args[4])
    y, out = masked_load(builder, tile, args[1], mask), []
    sums, addresses = unpack(builder, args[0], tile.count), unpack(builder, args[2], tile.count)
    for acc, base in zip(sums, addresses, strict=True):
        out.append(fma(y, masked_load(builder, tile, builder.add(base, args[3]), mask), acc))
    return pack(builder, tile.vector, out)


@instruction()
def dot_tile(builder: Any, args: Any, acc: Any, tile: Any, address: Any) -> Any:
    """acc + the products of the tile's vectors with as many contiguous ones at `address`, for acc of one vector."""
    fma = fma_function(builder, tile)
    total = unpack(builder, args[0], 1)[0]
    for i, vector in enumerate(unpack(builder, args[1], tile.count)):
        x = load_value(builder, shifted(builder, args[2], i * tile.vector_bytes), tile.vector, tile.size)
        total = fma(vector, x, total)
    return pack(builder, tile.vector, [total])


@instruction()
def add_scalar(builder: Any, args: Any, tile: Any, scalar: Any) -> Any:
    """Add one number to every lane."""
    every_lane = splat(builder, tile, args[1])
    return elementwise(builder, tile, lambda v: builder.fadd(v, every_lane), args[0])


@instruction()
def add(builder: Any, args: Any, a: Any, b: Any) -> Any:
    """Lane by lane sum of two tiles."""
    return elementwise(builder, a, builder.fadd, *args)


@instruction()
def add_vector(builder: Any, args: Any, tile: Any, vector: Any) -> Any:
    """Add one vector to every vector of a tile."""
    (added,) = unpack(builder, args[1], 1)
    return elementwise(builder, tile, lambda v: builder.fadd(v, added), args[0])


@instruction()
def clamp(builder: Any, args: Any, tile: Any, low: Any, high: Any) -> Any:
    """Clamp every lane to [low, high] by compare and select, which lets NaN through (maxnum would drop it)."""
    lo, hi = splat(builder, tile, args[1]), splat(builder, tile, args[2])

    def one(v: Any) -> Any:
        v = builder.select(builder.fcmp_ordered(">", lo, v), lo, v)
        return builder.select(builder.fcmp_ordered("<", hi, v), hi, v)

    return elementwise(builder, tile, one, args[0])


@instruction(lambda bits: NUMBA_FLOATS[bits])
def zero(builder: Any, args: Any, bits: Const) -> Any:
    """The scalar 0 of `bits` bits."""
    return ir.Constant(FLOATS[bits], 0.0)


@instruction(types.int64)
def opaque_i64(builder: Any, args: Any, value: Any) -> Any:
    """The same integer, about which LLVM knows nothing, so that it does not unroll a loop that counts with it.

    Short loops are slower unrolled: the remainder has branches of its own, which are mispredicted as often.
    """
    same = ir.InlineAsm(ir.FunctionType(I64, [I64]), "", "=r,0")
    return builder.call(same, [args[0]])


@instruction()
def fma(builder: Any, args: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c rounded once; Numba contracts nothing by itself."""
    width = a.bitwidth
    scalar = FLOATS[width]
    return llvm_function(builder, f"llvm.fma.f{width}", scalar, [scalar] * 3)(*args)
