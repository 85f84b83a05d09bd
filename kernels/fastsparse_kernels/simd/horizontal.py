"""Horizontal (cross-lane) tile operations: transposes, gathers and lookups, sums over lanes by shuffle trees."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llvmlite import ir
from numba import types

from .types import (
    I16,
    I32,
    I64,
    L2,
    Const,
    Tile,
    at,
    first_lanes,
    fma_function,
    instruction,
    llvm_function,
    load_value,
    masked_load,
    masked_store,
    pack,
    prefetch_line,
    shifted,
    shuffle,
    splat,
    unpack,
)


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
                out[i], out[i + block] = shuffle(builder, a, b, low), shuffle(builder, a, b, high)
        vectors, block = out, block * 2
    return vectors


@instruction()
def transpose(builder: Any, args: Any, tile: Any) -> Any:
    """Transpose a square tile (VL vectors of VL lanes) in registers."""
    vectors = _transposed(builder, unpack(builder, args[0], tile.count), tile.lanes)
    return pack(builder, tile.vector, vectors)


@instruction()
def load_rows(builder: Any, args: Any, like: Any, address: Any, stride: Any, rows: Any, columns: Any) -> Any:
    """Vector i = the first `columns` elements at address + i * stride for i < rows; zeros elsewhere."""
    _, address, stride, rows, columns = args
    masked = _masked_rows(builder, like, address, stride, rows, columns)
    return pack(builder, like.vector, [masked_load(builder, like, row, mask) for row, mask in masked])


@instruction(types.void)
def store_rows(builder: Any, args: Any, tile: Any, address: Any, stride: Any, rows: Any, columns: Any) -> Any:
    """The first `columns` elements of vector i to address + i * stride for i < rows, and nothing else."""
    value, address, stride, rows, columns = args
    masked = _masked_rows(builder, tile, address, stride, rows, columns)
    for vector, (row, mask) in zip(unpack(builder, value, tile.count), masked, strict=True):
        masked_store(builder, tile, vector, row, mask)


def _masked_rows(builder: Any, tile: Any, address: Any, stride: Any, rows: Any, columns: Any) -> list[tuple[Any, Any]]:
    """Address and mask of each vector of a tile, of which only so many rows and columns exist.

    Rows that do not exist have the address of the first one, which does: a masked access to a page that is not there
    does not fault, but takes hundreds of cycles.
    """
    inside, none = first_lanes(builder, tile, columns), ir.Constant(tile.mask, None)
    masked = []
    for i in range(tile.count):
        exists = builder.icmp_signed("<", ir.Constant(I64, i), rows)
        row = builder.add(address, builder.mul(stride, ir.Constant(I64, i)))
        masked.append((builder.select(exists, row, address), builder.select(exists, inside, none)))
    return masked


def _summed(builder: Any, parts: list[Any], lanes: int) -> Any:
    """One vector whose lane i is the sum of the lanes of parts[i] (a power of two, at most VL), by a shuffle tree."""
    count, block, width = len(parts), 1, lanes
    while len(parts) > 1:
        low = [lane if lane // block % 2 == 0 else lanes + lane - block for lane in range(lanes)]
        high = [lane + block if lane // block % 2 == 0 else lanes + lane for lane in range(lanes)]
        parts = [
            builder.fadd(shuffle(builder, a, b, low), shuffle(builder, a, b, high))
            for a, b in zip(parts[::2], parts[1::2], strict=True)
        ]
        block *= 2
    sums = parts[0]  # lane i: of every lane l of part i mod T with l // T = i // T
    while width > count:
        half = width // 2
        indices = [lane + half if lane < half else lane for lane in range(lanes)]
        sums, width = builder.fadd(sums, shuffle(builder, sums, sums, indices)), half
    return shuffle(builder, sums, sums, list(range(count)))


def _add_in_memory(builder: Any, part: Any, sums: Any, address: Any, from_zero: Any, mask: Any = None) -> None:
    """memory += sums, or memory = sums where `from_zero` is not 0; of the lanes in `mask`."""
    kept = builder.icmp_signed("==", from_zero, ir.Constant(I64, 0))
    if mask is None:
        pointer = at(builder, address, part.vector)
        before = builder.load(pointer, align=part.size)
        total = builder.fadd(sums, builder.select(kept, before, ir.Constant(part.vector, None)))
        builder.store(total, pointer, align=part.size)
    else:
        before = masked_load(builder, part, address, builder.select(kept, mask, ir.Constant(part.mask, None)))
        masked_store(builder, part, builder.fadd(sums, before), address, mask)


def _add_first_in_memory(builder: Any, part: Any, sums: Any, address: Any, count: Any, from_zero: Any) -> None:
    """`_add_in_memory` of the first `count` lanes; without a mask where these are all."""
    with builder.if_else(builder.icmp_signed(">=", count, ir.Constant(I64, part.lanes))) as (whole, some):
        with whole:
            _add_in_memory(builder, part, sums, address, from_zero)
        with some:
            _add_in_memory(builder, part, sums, address, from_zero, first_lanes(builder, part, count))


@instruction(types.void)
def add_reduced(builder: Any, args: Any, tile: Any, address: Any, count: Any, from_zero: Any) -> Any:
    """memory[i] += the sum of the lanes of vector i for i < count, for all at once (T a power of two, T <= VL).

    from_zero : 1: what is in memory counts as 0; 0: it is added to
    """
    sums = _summed(builder, unpack(builder, args[0], tile.count), tile.lanes)
    _add_first_in_memory(builder, Tile(1, tile.count, tile.bits), sums, *args[1:])


@instruction(lambda a, *_: Tile(max(1, 4 // a.lanes), a.lanes, a.bits))
def reduce_fours(builder: Any, args: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """Reduce four vectors to one, an operand of `add_reduced_fours`: lane 4 i + j has the sum of lanes 4 i to 4 i + 3
    of vector j.

    For vectors of two lanes the result has two: a and b in the first one, c and d in the second one.
    """
    lanes = a.lanes

    def added(one: Any, other: Any, near: list[int], distance: int) -> Any:
        far = [lane + distance for lane in near]
        return builder.fadd(shuffle(builder, one, other, near), shuffle(builder, one, other, far))

    parts = [builder.extract_value(vector, 0) for vector in args]
    if lanes == 2:
        sums = [added(one, other, [0, 2], 1) for one, other in zip(parts[::2], parts[1::2], strict=True)]
        return pack(builder, a.vector, sums)
    # Shuffles in the order of unpack instructions, which need no index vectors in registers.
    pairs = [four + i + of for four in range(0, lanes, 4) for i in (0, 1) for of in (0, lanes)]
    halves = [four + of + i for four in range(0, lanes, 4) for of in (0, lanes) for i in (0, 1)]
    sums = added(added(parts[0], parts[1], pairs, 2), added(parts[2], parts[3], pairs, 2), halves, 2)
    return pack(builder, a.vector, [sums])


@instruction(types.void)
def add_reduced_fours(builder: Any, args: Any, tile: Any, address: Any, count: Any, from_zero: Any) -> Any:
    """memory[4 i + j] += the sum of the lanes of vector j of the four that `reduce_fours` made vector i of.

    Updates the first `count` of VL numbers (of four with shorter vectors).

    from_zero : as in `add_reduced`
    """
    part = Tile(1, max(4, tile.lanes), tile.bits)
    vectors, lanes = unpack(builder, args[0], tile.count), tile.lanes
    if lanes < 4:
        sums = shuffle(builder, vectors[0], vectors[1], range(4))
    else:
        fours = [range(first, first + 4) for first in range(0, 2 * lanes, 4)]
        evens, odds = ([lane for four in fours[i::2] for lane in four] for i in (0, 1))
        while len(vectors) > 1:
            vectors = [
                builder.fadd(shuffle(builder, a, b, evens), shuffle(builder, a, b, odds))
                for a, b in zip(vectors[::2], vectors[1::2], strict=True)
            ]
        sums = vectors[0]
    _add_first_in_memory(builder, part, sums, *args[1:])


@instruction(lambda tile: Tile(1, tile.lanes, tile.bits))
def even(builder: Any, args: Any, tile: Any) -> Any:
    """A tile of one vector: every second number of a tile of two."""
    first, second = unpack(builder, args[0], 2)
    return pack(builder, tile.vector, [shuffle(builder, first, second, range(0, 2 * tile.lanes, 2))])


def _gathered_addresses(builder: Any, tile: Tile, base: Any, columns: Any, bits: int) -> Iterator[Any]:
    """Addresses of x[c], for VL contiguous columns of `bits` bits, which are loaded 64 bits at a time."""
    low = ir.Constant(I64, (1 << bits) - 1)
    for lane in range(tile.lanes):
        if lane * bits % 64 == 0:
            word = load_value(builder, shifted(builder, columns, lane * bits // 8), I64, bits // 8)
        column = builder.and_(builder.lshr(word, ir.Constant(I64, lane * bits % 64)), low)
        yield builder.add(base, builder.mul(column, ir.Constant(I64, tile.size)))


def _gather(builder: Any, tile: Tile, base: Any, columns: Any, bits: int) -> Any:
    """A vector of x[c], each by a scalar load into its lane: gather instructions are slower."""
    numbers = ir.Constant(tile.vector, ir.Undefined)
    for lane, address in enumerate(_gathered_addresses(builder, tile, base, columns, bits)):
        number = load_value(builder, address, tile.element, tile.size)
        numbers = builder.insert_element(numbers, number, ir.Constant(I32, lane))
    return numbers


@instruction()
def gather(builder: Any, args: Any, like: Any, x: Any, columns: Any, column_bits: Const) -> Any:
    """A tile of one vector: x[c] for VL contiguous columns of 16 or 32 bits."""
    return pack(builder, like.vector, [_gather(builder, like, args[1], args[2], column_bits)])


@instruction(types.void)
def prefetch_gathered(builder: Any, args: Any, like: Any, x: Any, columns: Any, column_bits: Const) -> Any:
    """Prefetch to L2 what `gather` reads."""
    for address in _gathered_addresses(builder, like, args[1], args[2], column_bits):
        prefetch_line(builder, address, L2)


@instruction()
def gather_fma(builder: Any, args: Any, tile: Any, weights: Any, x: Any, columns: Any, column_bits: Const) -> Any:
    """tile + w * x[c], lane by lane: VL contiguous weights and columns of 16 or 32 bits, for one vector."""
    numbers = _gather(builder, tile, args[2], args[3], column_bits)
    w = load_value(builder, args[1], tile.vector, tile.size)
    sums = fma_function(builder, tile)(w, numbers, builder.extract_value(args[0], 0))
    return pack(builder, tile.vector, [sums])


@instruction()
def gather_fma_first(
    builder: Any,
    args: Any,
    tile: Any,
    weights: Any,
    x: Any,
    columns: Any,
    column_bits: Const,
    count: Any,
    masked: Const,
) -> Any:
    """The same in the first `count` lanes only. All VL columns and their x are read.

    masked : 1 where fewer than VL weights may be read; slow before AVX-512
    """
    numbers = _gather(builder, tile, args[2], args[3], column_bits)
    mask = first_lanes(builder, tile, args[5], I32)
    if masked:
        w = masked_load(builder, tile, args[1], mask)
    else:
        w = load_value(builder, args[1], tile.vector, tile.size)
    before = builder.extract_value(args[0], 0)
    sums = builder.select(mask, fma_function(builder, tile)(w, numbers, before), before)
    return pack(builder, tile.vector, [sums])


@instruction()
def gather_fma_masked(builder: Any, args: Any, tile: Any, weights: Any, x: Any, columns: Any, mask: Any) -> Any:
    """`gather_fma` with columns of 32 bits in the lanes whose bits are set in the mask; all VL are read."""
    numbers = _gather(builder, tile, args[2], args[3], 32)
    w, before = load_value(builder, args[1], tile.vector, tile.size), builder.extract_value(args[0], 0)
    lanes = _lanes(builder, tile, args[4])
    sums = builder.select(lanes, fma_function(builder, tile)(w, numbers, before), before)
    return pack(builder, tile.vector, [sums])


@instruction()
def fma_masked(builder: Any, args: Any, tile: Any, weights: Any, x: Any, mask: Any) -> Any:
    """tile + w * x in the lanes whose bits are set in the mask: VL contiguous weights and x, of which others are not
    read."""
    lanes = _lanes(builder, tile, args[3])
    w, before = load_value(builder, args[1], tile.vector, tile.size), builder.extract_value(args[0], 0)
    product = fma_function(builder, tile)(w, masked_load(builder, tile, args[2], lanes), before)
    return pack(builder, tile.vector, [builder.select(lanes, product, before)])


def _lanes(builder: Any, tile: Tile, bits: Any) -> Any:
    """A mask of lanes from the bits of an integer."""
    return builder.bitcast(builder.trunc(bits, ir.IntType(tile.lanes)), tile.mask)


@instruction(lambda a, *_: Tile(1, 4, a.bits))
def reduce_four(builder: Any, args: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """A tile of one vector of 4 lanes: the sum of the lanes of each of four vectors, by the same tree."""
    sums = _summed(builder, [builder.extract_value(vector, 0) for vector in args], a.lanes)
    return pack(builder, sums.type, [sums])


@instruction(types.int64)
def lower_halves(builder: Any, args: Any, tile: Any) -> Any:
    """The lower 16 bits of all numbers of 32 bits, by "or": 0 where all of them are bfloat16 numbers."""
    integers = ir.VectorType(I32, tile.lanes)
    bits = ir.Constant(integers, [0] * tile.lanes)
    for vector in unpack(builder, args[0], tile.count):
        bits = builder.or_(bits, builder.bitcast(vector, integers))
    reduce = llvm_function(builder, f"llvm.vector.reduce.or.v{tile.lanes}i32", I32, [integers])
    return builder.zext(builder.and_(reduce(bits), ir.Constant(I32, 0xFFFF)), I64)


@instruction(lambda tile: Tile(tile.count // 2, tile.lanes, tile.bits))
def upper_halves(builder: Any, args: Any, tile: Any) -> Any:
    """The upper 16 bits of all numbers of 32 bits, in order, in half as many vectors."""
    halves, upper = ir.VectorType(I16, 2 * tile.lanes), [2 * i + 1 for i in range(2 * tile.lanes)]
    vectors = [builder.bitcast(vector, halves) for vector in unpack(builder, args[0], tile.count)]
    found = [shuffle(builder, a, b, upper) for a, b in zip(vectors[::2], vectors[1::2], strict=True)]
    return pack(builder, tile.vector, [builder.bitcast(vector, tile.vector) for vector in found])


def _half(builder: Any, tile: Tile, halves: Any, upper: int) -> Any:
    """Numbers of 32 bits from bfloat16 numbers in the lower or upper halves of a vector."""
    integers = ir.VectorType(I32, tile.lanes)
    halves = builder.bitcast(halves, integers)
    if upper:
        bits = builder.and_(halves, ir.Constant(integers, [0xFFFF0000] * tile.lanes))
    else:
        bits = builder.shl(halves, ir.Constant(integers, [16] * tile.lanes))
    return builder.bitcast(bits, tile.vector)


def _looked_up(builder: Any, vectors: list[Any], index: Any, name: str, bit: int) -> Any:
    """table[index] of a table in vectors; bits of an index above those of the table play no part.

    name : LLVM's for the type of an item
    bit : of an index, that says which half of two vectors' items it does not count
    """
    kind = index.type
    look_up = llvm_function(
        builder, f"llvm.x86.avx512.vpermi2var.{name}.512", vectors[0].type, [vectors[0].type, kind, vectors[0].type]
    )
    found = [look_up(a, index, b) for a, b in zip(vectors[::2], vectors[1::2], strict=True)]
    while len(found) > 1:
        chosen = builder.and_(index, ir.Constant(kind, [bit] * kind.count))
        second = builder.icmp_unsigned("!=", chosen, ir.Constant(kind, [0] * kind.count))
        found = [builder.select(second, b, a) for a, b in zip(found[::2], found[1::2], strict=True)]
        bit *= 2
    return found[0]


@instruction()
def lookup_fma(builder: Any, args: Any, tile: Any, weights: Any, table: Any, columns: Any, value_bits: Const) -> Any:
    """tile + w * table[column], lane by lane, for four vectors of 16 lanes.

    The table is a tile of 128 numbers in AVX-512's registers, eight vectors of 32 bits or four of `upper_halves`, of
    which one lookup takes 32. Columns have 8 bits, the four of a lane are one word. Weights have 32 bits, or are
    bfloat16 numbers, those of two vectors in one.
    """
    integers, vectors = ir.VectorType(I32, tile.lanes), unpack(builder, args[2], table.count)
    words = load_value(builder, args[3], integers, 4)

    def shifted_words(byte: int) -> Any:
        return builder.lshr(words, ir.Constant(integers, [8 * byte] * tile.lanes))

    if table.count == 8:
        found = [_looked_up(builder, vectors, shifted_words(i), "ps", 2 * tile.lanes) for i in range(4)]
    else:
        halves = ir.VectorType(I16, 2 * tile.lanes)
        vectors = [builder.bitcast(vector, halves) for vector in vectors]
        pairs = [
            _looked_up(builder, vectors, builder.bitcast(shifted_words(i), halves), "hi", 4 * tile.lanes)
            for i in range(2)
        ]  # those of columns 0 and 2, and of 1 and 3
        found = [_half(builder, tile, pairs[i % 2], i // 2) for i in range(4)]
    sums = []
    for i, acc in enumerate(unpack(builder, args[0], tile.count)):
        line = shifted(builder, args[1], (i if value_bits == 32 else i // 2) * tile.vector_bytes)
        w = load_value(builder, line, tile.vector, value_bits // 8)
        if value_bits == 16:
            w = _half(builder, tile, w, i % 2)
        sums.append(fma_function(builder, tile)(w, found[i], acc))
    return pack(builder, tile.vector, sums)


@instruction()
def add_indexed(builder: Any, args: Any, tile: Any, base: Any, indices: Any) -> Any:
    """tile + numbers at base: vector i adds the one of index i. Vectors have one lane, and there are 4, 8 or 16.

    Four indices of 16 bits are one load.
    """
    sums = []
    for i, before in enumerate(unpack(builder, args[0], tile.count)):
        if i % 4 == 0:
            four = load_value(builder, shifted(builder, args[2], 2 * i), I64, 2)
        index = builder.and_(builder.lshr(four, ir.Constant(I64, 16 * (i % 4))), ir.Constant(I64, 0xFFFF))
        address = builder.add(args[1], builder.mul(index, ir.Constant(I64, tile.size)))
        sums.append(builder.fadd(before, load_value(builder, address, tile.vector, tile.size)))
    return pack(builder, tile.vector, sums)


_PERMUTES = {  # lanes, bits: AVX-512 has all of them, AVX2 the one of 8 lanes and 32 bits
    (16, 32): "llvm.x86.avx512.permvar.sf.512",
    (8, 32): "llvm.x86.avx2.permps",
    (8, 64): "llvm.x86.avx512.permvar.df.512",
    (4, 64): "llvm.x86.avx512.permvar.df.256",
}


def permutes(lanes: int, bits: int, vector_bytes: int) -> bool:
    """Whether `permute_bytes` has an instruction on a CPU whose widest vectors have `vector_bytes` bytes."""
    return (lanes, bits) in _PERMUTES and (vector_bytes == 64 or (vector_bytes == 32 and (lanes, bits) == (8, 32)))


@instruction()
def filled(builder: Any, args: Any, like: Any, number: Any) -> Any:
    """A tile of one vector with the number at an address in all lanes."""
    value = load_value(builder, args[1], like.element, like.size)
    return pack(builder, like.vector, [splat(builder, like, value)])


@instruction()
def permute_bytes(builder: Any, args: Any, tile: Any, base: Any, first: Any, table: Any) -> Any:
    """A tile of one vector with those lanes l replaced whose base + table[l], table int32 at a byte address, is in the
    vector at base + first: by the numbers there.
    """
    numbers, base, first, table = args
    lanes, bits = tile.lanes, tile.bits
    integers = ir.VectorType(I32, lanes)
    offsets = load_value(builder, table, integers, 4)
    start = splat(builder, tile, builder.trunc(first, I32))
    inside = builder.sub(offsets, start)
    here = builder.icmp_unsigned("<", inside, ir.Constant(integers, [lanes * tile.size] * lanes))
    index = builder.lshr(inside, ir.Constant(integers, [tile.size.bit_length() - 1] * lanes))
    if bits == 64:
        index = builder.zext(index, ir.VectorType(I64, lanes))
    found = load_value(builder, builder.add(base, first), tile.vector, tile.size)
    found = llvm_function(builder, _PERMUTES[lanes, bits], tile.vector, [tile.vector, index.type])(found, index)
    (before,) = unpack(builder, numbers, 1)
    return pack(builder, tile.vector, [builder.select(here, found, before)])


@instruction()
def gather_bytes(builder: Any, args: Any, like: Any, base: Any, table: Any, other: Any) -> Any:
    """A tile of one vector: lane l from base + table[l], table int32 at a byte address; from `other` where negative."""
    base, table, other = args[1:]
    numbers = ir.Constant(like.vector, ir.Undefined)
    for lane in range(like.lanes):
        offset = builder.sext(load_value(builder, shifted(builder, table, 4 * lane), I32, 4), I64)
        nowhere = builder.icmp_signed("<", offset, ir.Constant(I64, 0))
        address = builder.select(nowhere, other, builder.add(base, offset))
        number = load_value(builder, address, like.element, like.size)
        numbers = builder.insert_element(numbers, number, ir.Constant(I32, lane))
    return pack(builder, like.vector, [numbers])
