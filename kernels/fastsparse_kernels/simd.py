"""The register tile: T vectors of VL lanes that live in machine registers.

LLVM sees an array of vectors and keeps it in T registers, so a loop over nonzeros compiles to T fused multiply-adds
with memory operands per nonzero, and little else. Kernels written on it read as algebra and have one text for
every T (tile width), VL (lanes) and floating-point size.

Addresses are plain int64 byte addresses: no reference counts, no index wrap-around code, no bounds. Everything here
trusts its caller. `Addresses` is a tile of T int64 base addresses: the T vectors of a tile may lie anywhere.

Rejected: NumPy scalar loops left to the auto-vectoriser (15-30 % lost to negative-index code, and spills as soon as
the tile is an array), llvmlite's `builder.fma` (refuses vectors; the LLVM intrinsic by name does not).
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .across import (
    add_fours,
    add_sums,
    add_sums_first,
    dot_gathered,
    dot_gathered_first,
    dot_lookup,
    fours_of,
    gathered,
    load_evens,
    load_lanes,
    load_rows,
    store_rows,
    sums_of_four,
    transpose,
)
from .arithmetic import add, add_scalar, axpy, axpy_tile, axpy_with, clamp, dot, dot_tile, load_weights
from .scalars import (
    call,
    fetch_add,
    fma,
    load_float,
    load_four_u32,
    load_i64,
    load_u16,
    load_u32,
    record_view,
    store_float,
    store_i64,
    zero,
)
from .vector_ir import (
    I32,
    I64,
    Addresses,
    Tile,
    at,
    first_lanes,
    llvm_function,
    load_value,
    masked_load,
    masked_store,
    pack,
    shifted,
    unpack,
)

__all__ = [
    "Addresses",
    "Tile",
    "add",
    "add_scalar",
    "add_fours",
    "add_sums",
    "add_sums_first",
    "axpy",
    "axpy_tile",
    "axpy_with",
    "call",
    "clamp",
    "dot",
    "dot_gathered",
    "dot_gathered_first",
    "dot_lookup",
    "dot_tile",
    "fetch_add",
    "fma",
    "fours_of",
    "gather_addresses",
    "gather_addresses_u32",
    "gathered",
    "load",
    "load_at",
    "load_evens",
    "load_first",
    "load_float",
    "load_four_u32",
    "load_i64",
    "load_lanes",
    "load_rows",
    "load_some_at",
    "load_u16",
    "load_u32",
    "load_weights",
    "prefetch",
    "prefetch_at",
    "prefetch_near",
    "record_view",
    "spread",
    "stack_buffer",
    "store",
    "store_at",
    "store_first",
    "store_float",
    "store_i64",
    "store_rows",
    "store_some_at",
    "stream",
    "stream_at",
    "sums_of_four",
    "transpose",
    "zero",
    "zeros",
]


@intrinsic(prefer_literal=True)
def zeros(typing: Any, count: Any, lanes: Any, bits: Any) -> Any:
    """A tile of zeros; the three arguments are compile-time integers."""
    tile = Tile(count.literal_value, lanes.literal_value, bits.literal_value)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(ir.ArrayType(tile.vector, tile.count), None)

    return tile(count, lanes, bits), codegen


@intrinsic(prefer_literal=True)
def spread(typing: Any, count: Any, base: Any, stride: Any) -> Any:
    """`count` addresses base, base + stride, ..."""
    bases = Addresses(count.literal_value)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        items = [builder.add(args[1], builder.mul(args[2], ir.Constant(I64, i))) for i in range(bases.count)]
        return pack(builder, I64, items)

    return bases(count, types.int64, types.int64), codegen


@intrinsic(prefer_literal=True)
def gather_addresses(typing: Any, count: Any, base: Any, table: Any) -> Any:
    """`count` addresses base + table[i], the table being int64 at a byte address."""
    bases = Addresses(count.literal_value)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        loads = [load_value(builder, shifted(builder, args[2], 8 * i), I64, 8) for i in range(bases.count)]
        return pack(builder, I64, [builder.add(args[1], item) for item in loads])

    return bases(count, types.int64, types.int64), codegen


@intrinsic(prefer_literal=True)
def gather_addresses_u32(typing: Any, count: Any, base: Any, table: Any, valid: Any) -> Any:
    """`count` addresses base + table[min(i, valid - 1)] of a uint32 table: the last valid one is repeated."""
    bases = Addresses(count.literal_value)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        last, items = builder.sub(args[3], ir.Constant(I64, 1)), []
        for i in range(bases.count):
            index = ir.Constant(I64, i)
            index = builder.select(builder.icmp_signed("<", index, last), index, last)
            address = builder.add(args[2], builder.shl(index, ir.Constant(I64, 2)))
            items.append(builder.add(args[1], builder.zext(load_value(builder, address, I32, 4), I64)))
        return pack(builder, I64, items)

    return bases(count, types.int64, types.int64, types.int64), codegen


@intrinsic(prefer_literal=True)
def stack_buffer(typing: Any, nbytes: Any) -> Any:
    """Address of some bytes of the stack, at a multiple of 64, which the function has until it returns."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        buffer = cgutils.alloca_once(builder, ir.ArrayType(ir.IntType(8), nbytes.literal_value))
        buffer.align = 64
        return builder.ptrtoint(buffer, I64)

    return types.int64(nbytes), codegen


@intrinsic
def load(typing: Any, like: Any, address: Any) -> Any:
    """A tile of the type of `like`, read from consecutive memory."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        addresses = [shifted(builder, args[1], i * like.vector_bytes) for i in range(like.count)]
        return pack(builder, like.vector, [load_value(builder, a, like.vector, like.size) for a in addresses])

    return like(like, types.int64), codegen


@intrinsic
def load_first(typing: Any, like: Any, address: Any, count: Any) -> Any:
    """The first `count` elements from consecutive memory, zeros behind them; nothing else is read."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vectors = []
        for i in range(like.count):
            mask = first_lanes(builder, like, shifted(builder, args[2], -i * like.lanes))
            vectors.append(masked_load(builder, like, shifted(builder, args[1], i * like.vector_bytes), mask))
        return pack(builder, like.vector, vectors)

    return like(like, types.int64, types.int64), codegen


_L1, _L2 = 3, 2  # LLVM's words for how near


def _prefetch(builder: Any, address: Any, near: int = _L2) -> None:
    byte = ir.IntType(8).as_pointer()
    ask = llvm_function(builder, "llvm.prefetch.p0", ir.VoidType(), [byte, I32, I32, I32])
    ask(builder.inttoptr(address, byte), *(ir.Constant(I32, flag) for flag in (0, near, 1)))


@intrinsic
def prefetch(typing: Any, address: Any) -> Any:
    """Ask for the cache line at any address, for the L2 cache; an address that is nobody's does no harm."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _prefetch(builder, args[0])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic(prefer_literal=True)
def prefetch_near(typing: Any, address: Any, nbytes: Any) -> Any:
    """Ask for the lines of some bytes from an address on, every 64 of them, for the L1 cache."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        for distance in range(0, nbytes.literal_value, 64):
            _prefetch(builder, shifted(builder, args[0], distance), _L1)
        return context.get_dummy_value()

    return types.void(types.int64, nbytes), codegen


@intrinsic
def prefetch_at(typing: Any, bases: Any, offset: Any) -> Any:
    """`prefetch` of every bases[i] + offset."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        for base in unpack(builder, args[0], bases.count):
            _prefetch(builder, builder.add(base, args[1]))
        return context.get_dummy_value()

    return types.void(bases, types.int64), codegen


@intrinsic
def store(typing: Any, tile: Any, address: Any) -> Any:
    """Write the tile to consecutive memory."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        for i, vector in enumerate(unpack(builder, args[0], tile.count)):
            address = shifted(builder, args[1], i * tile.vector_bytes)
            builder.store(vector, at(builder, address, tile.vector), align=tile.size)
        return context.get_dummy_value()

    return types.void(tile, types.int64), codegen


def _store_past_caches(builder: Any, tile: Tile, vector: Any, address: Any) -> None:
    stored = builder.store(vector, at(builder, address, tile.vector), align=tile.vector_bytes)
    stored.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(I32, 1)]))


@intrinsic
def stream(typing: Any, tile: Any, address: Any) -> Any:
    """`store` past the caches, at a multiple of a vector's bytes. Other threads see it after an atomic operation."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        for i, vector in enumerate(unpack(builder, args[0], tile.count)):
            _store_past_caches(builder, tile, vector, shifted(builder, args[1], i * tile.vector_bytes))
        return context.get_dummy_value()

    return types.void(tile, types.int64), codegen


@intrinsic
def store_first(typing: Any, tile: Any, address: Any, count: Any) -> Any:
    """Write the first `count` elements to consecutive memory and nothing else."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        for i, vector in enumerate(unpack(builder, args[0], tile.count)):
            mask = first_lanes(builder, tile, shifted(builder, args[2], -i * tile.lanes))
            masked_store(builder, tile, vector, shifted(builder, args[1], i * tile.vector_bytes), mask)
        return context.get_dummy_value()

    return types.void(tile, types.int64, types.int64), codegen


@intrinsic
def load_at(typing: Any, like: Any, bases: Any, offset: Any) -> Any:
    """Vector i from bases[i] + offset."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        addresses = [builder.add(base, args[2]) for base in unpack(builder, args[1], bases.count)]
        return pack(builder, like.vector, [load_value(builder, a, like.vector, like.size) for a in addresses])

    return like(like, bases, types.int64), codegen


@intrinsic
def store_at(typing: Any, tile: Any, bases: Any, offset: Any) -> Any:
    """Vector i to bases[i] + offset."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vectors, addresses = unpack(builder, args[0], tile.count), unpack(builder, args[1], tile.count)
        for vector, base in zip(vectors, addresses, strict=True):
            address = builder.add(base, args[2])
            builder.store(vector, at(builder, address, tile.vector), align=tile.size)
        return context.get_dummy_value()

    return types.void(tile, bases, types.int64), codegen


@intrinsic
def stream_at(typing: Any, tile: Any, bases: Any, offset: Any) -> Any:
    """`store_at` past the caches, see `stream`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vectors, addresses = unpack(builder, args[0], tile.count), unpack(builder, args[1], tile.count)
        for vector, base in zip(vectors, addresses, strict=True):
            _store_past_caches(builder, tile, vector, builder.add(base, args[2]))
        return context.get_dummy_value()

    return types.void(tile, bases, types.int64), codegen


def _whole(builder: Any, tile: Tile, index: int, count: Any) -> Any:
    """Mask of all lanes for the vectors below `count`, of none for the others."""
    every = ir.Constant(tile.mask, [1] * tile.lanes)
    exists = builder.icmp_signed("<", ir.Constant(I64, index), count)
    return builder.select(exists, every, ir.Constant(tile.mask, None))


@intrinsic
def load_some_at(typing: Any, like: Any, bases: Any, offset: Any, count: Any) -> Any:
    """Vector i from bases[i] + offset for i < count, zeros for the others; nothing else is read."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vectors = []
        for i, base in enumerate(unpack(builder, args[1], bases.count)):
            mask = _whole(builder, like, i, args[3])
            vectors.append(masked_load(builder, like, builder.add(base, args[2]), mask))
        return pack(builder, like.vector, vectors)

    return like(like, bases, types.int64, types.int64), codegen


@intrinsic
def store_some_at(typing: Any, tile: Any, bases: Any, offset: Any, count: Any) -> Any:
    """Vector i to bases[i] + offset for i < count, and nothing else."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vectors, addresses = unpack(builder, args[0], tile.count), unpack(builder, args[1], tile.count)
        for i, (vector, base) in enumerate(zip(vectors, addresses, strict=True)):
            masked_store(builder, tile, vector, builder.add(base, args[2]), _whole(builder, tile, i, args[3]))
        return context.get_dummy_value()

    return types.void(tile, bases, types.int64, types.int64), codegen
