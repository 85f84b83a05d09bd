"""Tile operations lane by lane: multiply-adds with vectors in memory, sums and clamps."""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic

from .vector_ir import NUMBA_FLOATS, elementwise, fma_function, load_value, pack, shifted, splat, unpack


@intrinsic
def axpy_at(typing: Any, tile: Any, weight: Any, bases: Any, offset: Any) -> Any:
    """tile[i] + w * vector(bases[i] + offset): the weight at address `weight` is broadcast, vectors stay in memory."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        fma = fma_function(builder, tile)
        w = splat(builder, tile, load_value(builder, args[1], tile.element, tile.size))
        out = []
        sums, addresses = unpack(builder, args[0], tile.count), unpack(builder, args[2], tile.count)
        for acc, base in zip(sums, addresses, strict=True):
            x = load_value(builder, builder.add(base, args[3]), tile.vector, tile.size)
            out.append(fma(w, x, acc))
        return pack(builder, tile.vector, out)

    return tile(tile, types.int64, bases, types.int64), codegen


@intrinsic
def axpy(typing: Any, tile: Any, weight: Any, address: Any) -> Any:
    """`axpy_at` on vectors that lie in a row from `address` on: one address register serves all of them."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        fma = fma_function(builder, tile)
        w = splat(builder, tile, load_value(builder, args[1], tile.element, tile.size))
        out = []
        for i, acc in enumerate(unpack(builder, args[0], tile.count)):
            x = load_value(builder, shifted(builder, args[2], i * tile.vector_bytes), tile.vector, tile.size)
            out.append(fma(w, x, acc))
        return pack(builder, tile.vector, out)

    return tile(tile, types.int64, types.int64), codegen


@intrinsic
def axpy_tile(typing: Any, tile: Any, weight: Any, x: Any) -> Any:
    """tile + w * x for a tile x in registers: the weight at address `weight` is broadcast."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        fma = fma_function(builder, tile)
        w = splat(builder, tile, load_value(builder, args[1], tile.element, tile.size))
        return elementwise(builder, tile, lambda acc, v: fma(w, v, acc), args[0], args[2])

    return tile(tile, types.int64, tile), codegen


@intrinsic(prefer_literal=True)
def dot_steps(typing: Any, tile: Any, row: Any, bases: Any, offset: Any, steps: Any) -> Any:
    """tile[j] + the products of `steps` vectors in a row from `row` on, and as many from bases[j] + offset on.

    A vector of dY against T vectors of X (SDDMM), one after the other.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        fma = fma_function(builder, tile)
        sums = unpack(builder, args[0], tile.count)
        addresses = [builder.add(base, args[3]) for base in unpack(builder, args[2], tile.count)]
        for distance in range(0, steps.literal_value * tile.vector_bytes, tile.vector_bytes):
            y = load_value(builder, shifted(builder, args[1], distance), tile.vector, tile.size)
            for j, address in enumerate(addresses):
                x = load_value(builder, shifted(builder, address, distance), tile.vector, tile.size)
                sums[j] = fma(y, x, sums[j])
        return pack(builder, tile.vector, sums)

    return tile(tile, types.int64, bases, types.int64, steps), codegen


@intrinsic
def add_scalar(typing: Any, tile: Any, scalar: Any) -> Any:
    """Add one number to every lane."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        every_lane = splat(builder, tile, args[1])
        return elementwise(builder, tile, lambda v: builder.fadd(v, every_lane), args[0])

    return tile(tile, NUMBA_FLOATS[tile.bits]), codegen


@intrinsic
def add(typing: Any, a: Any, b: Any) -> Any:
    """Lane by lane sum of two tiles."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return elementwise(builder, a, builder.fadd, *args)

    return a(a, a), codegen


@intrinsic
def clamp(typing: Any, tile: Any, low: Any, high: Any) -> Any:
    """Clamp every lane to [low, high] by compare and select, which lets NaN through (maxnum would drop it)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        lo, hi = splat(builder, tile, args[1]), splat(builder, tile, args[2])

        def one(v: Any) -> Any:
            v = builder.select(builder.fcmp_ordered(">", lo, v), lo, v)
            return builder.select(builder.fcmp_ordered("<", hi, v), hi, v)

        return elementwise(builder, tile, one, args[0])

    scalar = NUMBA_FLOATS[tile.bits]
    return tile(tile, scalar, scalar), codegen
