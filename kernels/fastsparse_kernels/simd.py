"""The register tile: T vectors of VL lanes that live in machine registers.

LLVM sees an array of vectors and keeps it in T registers, so a loop over nonzeros compiles to one broadcast and
T fused multiply-adds with memory operands per nonzero. Kernels written on it read as algebra and have one text for
every T (tile width), VL (lanes) and floating-point size.

Addresses are plain int64 byte addresses: no reference counts, no index wrap-around code, no bounds. Everything here
trusts its caller. `Addresses` is a tile of T int64 base addresses: the T vectors of a tile may lie anywhere.

Rejected: NumPy scalar loops left to the auto-vectoriser (15-30 % lost to negative-index code, and spills as soon as
the tile is an array), llvmlite's `builder.fma` (refuses vectors; the LLVM intrinsic by name does not).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import from_dtype, types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

_BYTE = ir.IntType(8)
_I1 = ir.IntType(1)
_I32 = ir.IntType(32)
_I64 = ir.IntType(64)
_FLOATS = {32: ir.FloatType(), 64: ir.DoubleType()}
_NUMBA_FLOATS = {32: types.float32, 64: types.float64}


class Tile(types.Type):
    """`count` vectors of `lanes` floating-point numbers of `bits` bits."""

    def __init__(self, count: int, lanes: int, bits: int) -> None:
        self.count, self.lanes, self.bits = count, lanes, bits
        super().__init__(name=f"tile{count}x{lanes}f{bits}")

    @property
    def element(self) -> ir.Type:
        return _FLOATS[self.bits]

    @property
    def vector(self) -> ir.Type:
        return ir.VectorType(self.element, self.lanes)

    @property
    def mask(self) -> ir.Type:
        return ir.VectorType(_I1, self.lanes)

    @property
    def size(self) -> int:
        return self.bits // 8

    @property
    def vector_bytes(self) -> int:
        return self.lanes * self.size


class Addresses(types.Type):
    """`count` int64 byte addresses held in registers."""

    def __init__(self, count: int) -> None:
        self.count = count
        super().__init__(name=f"addresses{count}")


@register_model(Tile)
class _TileModel(models.PrimitiveModel):
    def __init__(self, manager: Any, tile: Tile) -> None:
        super().__init__(manager, tile, ir.ArrayType(tile.vector, tile.count))


@register_model(Addresses)
class _AddressesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, addresses: Addresses) -> None:
        super().__init__(manager, addresses, ir.ArrayType(_I64, addresses.count))


# ---------------------------------------------------------------- building blocks of the code generators


def _at(builder: Any, address: Any, pointee: ir.Type) -> Any:
    return builder.inttoptr(address, pointee.as_pointer())


def _shifted(builder: Any, address: Any, distance: int) -> Any:
    return builder.add(address, ir.Constant(_I64, distance)) if distance else address


def _load(builder: Any, address: Any, pointee: ir.Type, align: int) -> Any:
    return builder.load(_at(builder, address, pointee), align=align)


def _splat(builder: Any, tile: Tile, scalar: Any) -> Any:
    undefined = ir.Constant(tile.vector, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(_I32, tile.lanes), [0] * tile.lanes))


def _shuffle(builder: Any, a: Any, b: Any, indices: Sequence[int]) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_I32, len(indices)), list(indices)))


def _unpack(builder: Any, aggregate: Any, count: int) -> list[Any]:
    return [builder.extract_value(aggregate, i) for i in range(count)]


def _pack(builder: Any, element: ir.Type, items: Sequence[Any]) -> Any:
    out = ir.Constant(ir.ArrayType(element, len(items)), ir.Undefined)
    for i, item in enumerate(items):
        out = builder.insert_value(out, item, i)
    return out


def _llvm(builder: Any, name: str, result: ir.Type, arguments: Sequence[ir.Type]) -> Callable[..., Any]:
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, list(arguments)), name)
    return lambda *args: builder.call(function, args)


def _fma(builder: Any, tile: Tile) -> Callable[..., Any]:
    return _llvm(builder, f"llvm.fma.v{tile.lanes}f{tile.bits}", tile.vector, [tile.vector] * 3)


def _mask_at(builder: Any, tile: Tile, address: Any, index: int) -> Any:
    """Bit mask of one vector from a table of uint16, one entry per vector."""
    word = ir.IntType(16)
    bits = _load(builder, _shifted(builder, address, 2 * index), word, 2)
    lanes = ir.IntType(tile.lanes)
    bits = bits if tile.lanes == 16 else builder.trunc(bits, lanes)
    return builder.bitcast(bits, tile.mask)


def _first_lanes(builder: Any, tile: Tile, count: Any) -> Any:
    """Mask of the lanes below `count` (int64, may be negative or beyond the vector)."""
    vector = ir.VectorType(_I64, tile.lanes)
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, count, ir.Constant(_I32, 0))
    wide = builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(_I32, tile.lanes), [0] * tile.lanes))
    return builder.icmp_signed("<", ir.Constant(vector, list(range(tile.lanes))), wide)


def _masked_load(builder: Any, tile: Tile, address: Any, mask: Any) -> Any:
    pointer = tile.vector.as_pointer()
    name = f"llvm.masked.load.v{tile.lanes}f{tile.bits}.p0"
    function = _llvm(builder, name, tile.vector, [pointer, _I32, tile.mask, tile.vector])
    zero = ir.Constant(tile.vector, None)
    return function(_at(builder, address, tile.vector), ir.Constant(_I32, tile.size), mask, zero)


def _masked_store(builder: Any, tile: Tile, vector: Any, address: Any, mask: Any) -> None:
    pointer = tile.vector.as_pointer()
    name = f"llvm.masked.store.v{tile.lanes}f{tile.bits}.p0"
    function = _llvm(builder, name, ir.VoidType(), [tile.vector, pointer, _I32, tile.mask])
    function(vector, _at(builder, address, tile.vector), ir.Constant(_I32, tile.size), mask)


def _elementwise(builder: Any, tile: Tile, operation: Callable[..., Any], *aggregates: Any) -> Any:
    columns = [_unpack(builder, aggregate, tile.count) for aggregate in aggregates]
    return _pack(builder, tile.vector, [operation(*vectors) for vectors in zip(*columns, strict=True)])


# ---------------------------------------------------------------- tiles and addresses


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
        items = [builder.add(args[1], builder.mul(args[2], ir.Constant(_I64, i))) for i in range(bases.count)]
        return _pack(builder, _I64, items)

    return bases(count, types.int64, types.int64), codegen


@intrinsic(prefer_literal=True)
def gather_addresses(typing: Any, count: Any, base: Any, table: Any) -> Any:
    """`count` addresses base + table[i], the table being int64 at a byte address."""
    bases = Addresses(count.literal_value)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        loads = [_load(builder, _shifted(builder, args[2], 8 * i), _I64, 8) for i in range(bases.count)]
        return _pack(builder, _I64, [builder.add(args[1], item) for item in loads])

    return bases(count, types.int64, types.int64), codegen


@intrinsic(prefer_literal=True)
def gather_addresses_u32(typing: Any, count: Any, base: Any, table: Any, valid: Any) -> Any:
    """`count` addresses base + table[min(i, valid - 1)] of a uint32 table: the last valid one is repeated."""
    bases = Addresses(count.literal_value)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        last, items = builder.sub(args[3], ir.Constant(_I64, 1)), []
        for i in range(bases.count):
            index = ir.Constant(_I64, i)
            index = builder.select(builder.icmp_signed("<", index, last), index, last)
            address = builder.add(args[2], builder.shl(index, ir.Constant(_I64, 2)))
            items.append(builder.add(args[1], builder.zext(_load(builder, address, _I32, 4), _I64)))
        return _pack(builder, _I64, items)

    return bases(count, types.int64, types.int64, types.int64), codegen


@intrinsic
def moved(typing: Any, bases: Any, distance: Any) -> Any:
    """All addresses moved by `distance` bytes."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _pack(builder, _I64, [builder.add(item, args[1]) for item in _unpack(builder, args[0], bases.count)])

    return bases(bases, types.int64), codegen


@intrinsic
def load(typing: Any, like: Any, address: Any) -> Any:
    """A tile of the type of `like`, read from consecutive memory."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        addresses = [_shifted(builder, args[1], i * like.vector_bytes) for i in range(like.count)]
        return _pack(builder, like.vector, [_load(builder, a, like.vector, like.size) for a in addresses])

    return like(like, types.int64), codegen


@intrinsic
def load_first(typing: Any, like: Any, address: Any, count: Any) -> Any:
    """The first `count` elements from consecutive memory, zeros behind them; nothing else is read."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vectors = []
        for i in range(like.count):
            mask = _first_lanes(builder, like, _shifted(builder, args[2], -i * like.lanes))
            vectors.append(_masked_load(builder, like, _shifted(builder, args[1], i * like.vector_bytes), mask))
        return _pack(builder, like.vector, vectors)

    return like(like, types.int64, types.int64), codegen


@intrinsic
def store(typing: Any, tile: Any, address: Any) -> Any:
    """Write the tile to consecutive memory."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        for i, vector in enumerate(_unpack(builder, args[0], tile.count)):
            address = _shifted(builder, args[1], i * tile.vector_bytes)
            builder.store(vector, _at(builder, address, tile.vector), align=tile.size)
        return context.get_dummy_value()

    return types.void(tile, types.int64), codegen


@intrinsic
def store_first(typing: Any, tile: Any, address: Any, count: Any) -> Any:
    """Write the first `count` elements to consecutive memory and nothing else."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        for i, vector in enumerate(_unpack(builder, args[0], tile.count)):
            mask = _first_lanes(builder, tile, _shifted(builder, args[2], -i * tile.lanes))
            _masked_store(builder, tile, vector, _shifted(builder, args[1], i * tile.vector_bytes), mask)
        return context.get_dummy_value()

    return types.void(tile, types.int64, types.int64), codegen


@intrinsic
def load_at(typing: Any, like: Any, bases: Any, offset: Any) -> Any:
    """Vector i from bases[i] + offset."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        addresses = [builder.add(base, args[2]) for base in _unpack(builder, args[1], bases.count)]
        return _pack(builder, like.vector, [_load(builder, a, like.vector, like.size) for a in addresses])

    return like(like, bases, types.int64), codegen


@intrinsic
def store_at(typing: Any, tile: Any, bases: Any, offset: Any) -> Any:
    """Vector i to bases[i] + offset."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vectors, addresses = _unpack(builder, args[0], tile.count), _unpack(builder, args[1], tile.count)
        for vector, base in zip(vectors, addresses, strict=True):
            address = builder.add(base, args[2])
            builder.store(vector, _at(builder, address, tile.vector), align=tile.size)
        return context.get_dummy_value()

    return types.void(tile, bases, types.int64), codegen


@intrinsic
def store_masked_at(typing: Any, tile: Any, bases: Any, offset: Any, masks: Any) -> Any:
    """Vector i to bases[i] + offset, only the lanes set in the uint16 mask i of the table at `masks`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vectors, addresses = _unpack(builder, args[0], tile.count), _unpack(builder, args[1], tile.count)
        for i, (vector, base) in enumerate(zip(vectors, addresses, strict=True)):
            mask = _mask_at(builder, tile, args[3], i)
            _masked_store(builder, tile, vector, builder.add(base, args[2]), mask)
        return context.get_dummy_value()

    return types.void(tile, bases, types.int64, types.int64), codegen


def _whole(builder: Any, tile: Tile, index: int, count: Any) -> Any:
    """Mask of all lanes for the vectors below `count`, of none for the others."""
    every = ir.Constant(tile.mask, [1] * tile.lanes)
    exists = builder.icmp_signed("<", ir.Constant(_I64, index), count)
    return builder.select(exists, every, ir.Constant(tile.mask, None))


@intrinsic
def load_some_at(typing: Any, like: Any, bases: Any, offset: Any, count: Any) -> Any:
    """Vector i from bases[i] + offset for i < count, zeros for the others; nothing else is read."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vectors = []
        for i, base in enumerate(_unpack(builder, args[1], bases.count)):
            mask = _whole(builder, like, i, args[3])
            vectors.append(_masked_load(builder, like, builder.add(base, args[2]), mask))
        return _pack(builder, like.vector, vectors)

    return like(like, bases, types.int64, types.int64), codegen


@intrinsic
def store_some_at(typing: Any, tile: Any, bases: Any, offset: Any, count: Any) -> Any:
    """Vector i to bases[i] + offset for i < count, and nothing else."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vectors, addresses = _unpack(builder, args[0], tile.count), _unpack(builder, args[1], tile.count)
        for i, (vector, base) in enumerate(zip(vectors, addresses, strict=True)):
            _masked_store(builder, tile, vector, builder.add(base, args[2]), _whole(builder, tile, i, args[3]))
        return context.get_dummy_value()

    return types.void(tile, bases, types.int64, types.int64), codegen


# ---------------------------------------------------------------- arithmetic


@intrinsic
def axpy_at(typing: Any, tile: Any, weight: Any, bases: Any, offset: Any) -> Any:
    """tile[i] + w * vector(bases[i] + offset): the weight at address `weight` is broadcast, vectors stay in memory."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        fma = _fma(builder, tile)
        w = _splat(builder, tile, _load(builder, args[1], tile.element, tile.size))
        out = []
        sums, addresses = _unpack(builder, args[0], tile.count), _unpack(builder, args[2], tile.count)
        for acc, base in zip(sums, addresses, strict=True):
            x = _load(builder, builder.add(base, args[3]), tile.vector, tile.size)
            out.append(fma(w, x, acc))
        return _pack(builder, tile.vector, out)

    return tile(tile, types.int64, bases, types.int64), codegen


@intrinsic
def dot_step(typing: Any, tile: Any, row: Any, bases: Any, offset: Any) -> Any:
    """tile[j] + vector(row) * vector(bases[j] + offset): one vector of dY against T vectors of X (SDDMM)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        fma = _fma(builder, tile)
        y = _load(builder, args[1], tile.vector, tile.size)
        out = []
        sums, addresses = _unpack(builder, args[0], tile.count), _unpack(builder, args[2], tile.count)
        for acc, base in zip(sums, addresses, strict=True):
            x = _load(builder, builder.add(base, args[3]), tile.vector, tile.size)
            out.append(fma(y, x, acc))
        return _pack(builder, tile.vector, out)

    return tile(tile, types.int64, bases, types.int64), codegen


@intrinsic
def add_scalar(typing: Any, tile: Any, scalar: Any) -> Any:
    """Add one number to every lane."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        splat = _splat(builder, tile, args[1])
        return _elementwise(builder, tile, lambda v: builder.fadd(v, splat), args[0])

    return tile(tile, _NUMBA_FLOATS[tile.bits]), codegen


@intrinsic
def add(typing: Any, a: Any, b: Any) -> Any:
    """Lane by lane sum of two tiles."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _elementwise(builder, a, builder.fadd, *args)

    return a(a, a), codegen


@intrinsic
def clamp(typing: Any, tile: Any, low: Any, high: Any) -> Any:
    """Clamp every lane to [low, high] by compare and select, which lets NaN through (maxnum would drop it)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        lo, hi = _splat(builder, tile, args[1]), _splat(builder, tile, args[2])

        def one(v: Any) -> Any:
            v = builder.select(builder.fcmp_ordered(">", lo, v), lo, v)
            return builder.select(builder.fcmp_ordered("<", hi, v), hi, v)

        return _elementwise(builder, tile, one, args[0])

    scalar = _NUMBA_FLOATS[tile.bits]
    return tile(tile, scalar, scalar), codegen


# ---------------------------------------------------------------- across lanes


def _transposed(builder: Any, vectors: list[Any], lanes: int) -> list[Any]:
    """VL vectors of VL lanes, transposed by log2(VL) stages of two-vector shuffles."""
    block = 1
    while block < lanes:
        low = [i if i // block % 2 == 0 else lanes + i - block for i in range(lanes)]
        high = [i + block if i // block % 2 == 0 else lanes + i for i in range(lanes)]
        out = list(vectors)
        for i in range(lanes):
            if i // block % 2 == 0:
                a, b = vectors[i], vectors[i + block]
                out[i], out[i + block] = _shuffle(builder, a, b, low), _shuffle(builder, a, b, high)
        vectors, block = out, block * 2
    return vectors


@intrinsic
def transpose(typing: Any, tile: Any) -> Any:
    """Transpose a square tile (VL vectors of VL lanes) in registers."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vectors = _transposed(builder, _unpack(builder, args[0], tile.count), tile.lanes)
        return _pack(builder, tile.vector, vectors)

    return tile(tile), codegen


@intrinsic
def load_rows(typing: Any, like: Any, address: Any, stride: Any, rows: Any, columns: Any) -> Any:
    """Vector i = the first `columns` elements at address + i * stride for i < rows; zeros elsewhere."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vectors = []
        inside = _first_lanes(builder, like, args[4])
        none = ir.Constant(like.mask, None)
        for i in range(like.count):
            exists = builder.icmp_signed("<", ir.Constant(_I64, i), args[3])
            address = builder.add(args[1], builder.mul(args[2], ir.Constant(_I64, i)))
            vectors.append(_masked_load(builder, like, address, builder.select(exists, inside, none)))
        return _pack(builder, like.vector, vectors)

    i64 = types.int64
    return like(like, i64, i64, i64, i64), codegen


@intrinsic
def store_rows(typing: Any, tile: Any, address: Any, stride: Any, rows: Any, columns: Any) -> Any:
    """The first `columns` elements of vector i to address + i * stride for i < rows, and nothing else."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        inside = _first_lanes(builder, tile, args[4])
        none = ir.Constant(tile.mask, None)
        for i, vector in enumerate(_unpack(builder, args[0], tile.count)):
            exists = builder.icmp_signed("<", ir.Constant(_I64, i), args[3])
            address = builder.add(args[1], builder.mul(args[2], ir.Constant(_I64, i)))
            _masked_store(builder, tile, vector, address, builder.select(exists, inside, none))
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(tile, i64, i64, i64, i64), codegen


def _summed(builder: Any, parts: list[Any], lanes: int) -> Any:
    """One vector whose lane i is the sum of the lanes of parts[i] (a power of two, at most VL), by a shuffle tree."""
    count, block = len(parts), 1
    while len(parts) > 1:
        low = [lane if lane // block % 2 == 0 else lanes + lane - block for lane in range(lanes)]
        high = [lane + block if lane // block % 2 == 0 else lanes + lane for lane in range(lanes)]
        parts = [
            builder.fadd(_shuffle(builder, a, b, low), _shuffle(builder, a, b, high))
            for a, b in zip(parts[::2], parts[1::2], strict=True)
        ]
        block *= 2
    sums, width = parts[0], lanes
    while width > count:
        half = width // 2
        indices = [lane + half if lane < half else lane for lane in range(lanes)]
        sums, width = builder.fadd(sums, _shuffle(builder, sums, sums, indices)), half
    return _shuffle(builder, sums, sums, list(range(count)))


@intrinsic
def add_sums_first(typing: Any, tile: Any, address: Any, count: Any) -> Any:
    """memory[i] += the sum of the lanes of vector i for i < count (T a power of two, T <= VL)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        sums = _summed(builder, _unpack(builder, args[0], tile.count), tile.lanes)
        part = Tile(1, tile.count, tile.bits)
        mask = _first_lanes(builder, part, args[2])
        before = _masked_load(builder, part, args[1], mask)
        _masked_store(builder, part, builder.fadd(sums, before), args[1], mask)
        return context.get_dummy_value()

    return types.void(tile, types.int64, types.int64), codegen


@intrinsic
def add_sums(typing: Any, tile: Any, address: Any) -> Any:
    """memory[i] += the sum of the lanes of vector i, for all T vectors at once (T a power of two, T <= VL)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        sums = _summed(builder, _unpack(builder, args[0], tile.count), tile.lanes)
        shape = tile.element if tile.count == 1 else ir.VectorType(tile.element, tile.count)
        if tile.count == 1:
            sums = builder.extract_element(sums, ir.Constant(_I32, 0))
        pointer = _at(builder, args[1], shape)
        builder.store(builder.fadd(sums, builder.load(pointer, align=tile.size)), pointer, align=tile.size)
        return context.get_dummy_value()

    return types.void(tile, types.int64), codegen


# ---------------------------------------------------------------- scalars and memory


def _scalar_load(bits: int, align: int) -> Any:
    @intrinsic
    def load_unsigned(typing: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            value = _load(builder, args[0], ir.IntType(bits), align)
            return builder.zext(value, _I64) if bits < 64 else value

        return types.int64(types.int64), codegen

    return load_unsigned


load_u8, load_u16, load_u32, load_i64 = (_scalar_load(bits, bits // 8) for bits in (8, 16, 32, 64))
load_u64 = _scalar_load(64, 4)  # two neighbours of a uint32 array, the first in the low half (little-endian)


@intrinsic(prefer_literal=True)
def load_float(typing: Any, bits: Any, address: Any) -> Any:
    """The floating-point number of `bits` bits at `address`."""
    width = bits.literal_value

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _load(builder, args[1], _FLOATS[width], width // 8)

    return _NUMBA_FLOATS[width](bits, types.int64), codegen


@intrinsic(prefer_literal=True)
def zero(typing: Any, bits: Any) -> Any:
    """The scalar 0 of `bits` bits."""
    width = bits.literal_value

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(_FLOATS[width], 0.0)

    return _NUMBA_FLOATS[width](bits), codegen


@intrinsic
def store_float(typing: Any, value: Any, address: Any) -> Any:
    """Write one floating-point number."""
    width = value.bitwidth

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[0], _at(builder, args[1], _FLOATS[width]), align=width // 8)
        return context.get_dummy_value()

    return types.void(value, types.int64), codegen


@intrinsic
def fma(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c rounded once; Numba contracts nothing by itself."""
    width = a.bitwidth

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        scalar = _FLOATS[width]
        return _llvm(builder, f"llvm.fma.f{width}", scalar, [scalar] * 3)(*args)

    return a(a, a, a), codegen


@intrinsic
def fetch_add(typing: Any, address: Any, amount: Any) -> Any:
    """Atomically add to the int64 at `address`, giving the value before: hands out tasks to worker slots."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", _at(builder, args[0], _I64), args[1], "monotonic")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def call(typing: Any, function: Any, arguments: Any, slot: Any) -> Any:
    """Call the compiled kernel at address `function` as void(int64 arguments, int64 slot)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [_I64, _I64])
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
