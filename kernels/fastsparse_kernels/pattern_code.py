"""SpMM by machine code that is written for one pattern, for x86-64 with AVX-512.

The sums of up to `CODE_ROWS` rows of y, of one vector of positions, stay in vector registers while the columns go by: a
vector of x is loaded once for all rows that have a nonzero in its column, and a nonzero is one instruction, which
multiplies it with a weight from memory. Registers and addresses are numbers in the instructions, so that nothing is
looked up: the loop over the nonzeros of a row in `spmm` pays one and a half cycles for each beside its multiply-adds,
and reads a vector of x for each of them.

Rows are cut into chunks, and a chunk's columns into parts whose x and weights stay in L1; sums are stored in the
worker's scratch between parts. Chunks of a single part follow one another in one segment: segments are what is called,
and their code stays in the instruction cache while it runs over the vectors of a tile. A row's order of summation is
that of `spmm`: ascending columns, one FMA each, then bias, then residual. All that follows a row's last nonzero comes
right behind it, between the multiply-adds of other rows, which take other units of the core.

Code has the calling convention of System V:

    void code(x, weights, bias, y, residual, sums)

x, y, residual : address of the vector in row 0 of each
weights : `WEIGHTS_AHEAD` numbers behind the segment's first weight, from where most displacements take one byte
bias : of row 0
sums : room for `CODE_ROWS` vectors
"""

from __future__ import annotations

from typing import Any

from . import simd
from .compiler import compile_kernel, compiled_once, host_function, inlined_function, kernel_arguments, kernel_function

CODE_ROWS = 30  # the other two registers hold x, or the limits
CODE_LANES = 16  # float32 in 64 bytes
WEIGHTS_AHEAD = 128
MULTIPLY_BYTES, LOAD_BYTES, ROW_BYTES = 7, 7, 40  # of code, as a rule: a nonzero, a column's load of x, a row's rest
NONZERO_BYTES, PART_BYTES = 32, 2048  # at most: a nonzero with all that may stand before it; all else of a part

BEGINS, ENDS, FOLLOWS = 1, 2, 4  # kinds of parts: of the first, of the last columns; in the segment of the one before
BIAS, RESIDUAL, LOW, HIGH = 1, 2, 4, 8  # stages of the epilogue

_VECTOR, _RECORD = CODE_LANES * 4, 32  # bytes: of a vector, of a segment in the kernel's table
_X, _LIMIT = 30, 31  # vector registers
_RAX, _RCX, _RDX, _RSI, _RDI, _R8, _R9, _R10 = 0, 1, 2, 6, 7, 8, 9, 10
POINTERS = 3  # registers that point into x: see `_pointer`
_REACH = 128 * _VECTOR  # of a displacement of one byte, to either side
# Instructions as opcode map, prefix and opcode, a byte each.
_LOAD, _STORE, _ADD, _MAX, _MIN = 0x010010, 0x010011, 0x010058, 0x01005F, 0x01005D
_ZERO, _MULTIPLY_ADD, _REPEAT = 0x0101EF, 0x0201B8, 0x02017C  # vpxord, vfmadd231ps, vpbroadcastd of an integer register


# ---------------------------------------------------------------- instructions


@inlined_function
def _put(code, at, byte):  # type: ignore[no-untyped-def]
    code[at] = byte & 0xFF
    return at + 1


@inlined_function
def _put_four(code, at, number):  # type: ignore[no-untyped-def]
    for i in range(4):
        code[at + i] = (number >> 8 * i) & 0xFF
    return at + 4


@kernel_function
def _prefix(code, at, instruction, register, source, base, index_bit, broadcast):  # type: ignore[no-untyped-def]
    """EVEX prefix and opcode of an instruction on 64-byte vectors; bits of register numbers are inverted in it."""
    at = _put(code, at, 0x62)
    extended = ((~register >> 3) & 1) << 7 | index_bit << 6 | ((~base >> 3) & 1) << 5 | ((~register >> 4) & 1) << 4
    at = _put(code, at, extended | instruction >> 16)
    at = _put(code, at, (~source & 15) << 3 | 4 | ((instruction >> 8) & 3))
    at = _put(code, at, 2 << 5 | broadcast << 4 | ((~source >> 4) & 1) << 3)
    return _put(code, at, instruction)


@kernel_function
def _on_memory(code, at, instruction, register, source, base, displacement, unit):  # type: ignore[no-untyped-def]
    """An instruction whose last operand is at base + displacement. unit : bytes of it: a vector's, or 4 that are
    broadcast; displacements of few units take one byte.
    """
    at = _prefix(code, at, instruction, register, source, base, 1, int(unit == 4))
    count = displacement // unit
    if displacement == count * unit and -128 <= count < 128:
        at = _put(code, at, 0x40 | (register & 7) << 3 | base & 7)
        return _put(code, at, count)
    at = _put(code, at, 0x80 | (register & 7) << 3 | base & 7)
    return _put_four(code, at, displacement)


@kernel_function
def _on_registers(code, at, instruction, register, source, last):  # type: ignore[no-untyped-def]
    at = _prefix(code, at, instruction, register, source, last, (~last >> 4) & 1, 0)
    return _put(code, at, 0xC0 | (register & 7) << 3 | last & 7)


@inlined_function
def _pointer(i):  # type: ignore[no-untyped-def]
    """The i-th register that points into x: r10, r11 and rax."""
    return _R10 + i if i < 2 else _RAX


@kernel_function
def _load_x(code, at, offset, pointers):  # type: ignore[no-untyped-def]
    """Load the vector `offset` bytes into x.

    pointers : int64 [POINTERS, 2], where each of those registers points, and when it was last used: channels of an
        image row lie side by side, so that one points to each row of a window
    """
    oldest = 0
    for i in range(POINTERS):
        distance = offset - pointers[i, 0]
        if -_REACH <= distance < _REACH and distance % _VECTOR == 0:
            pointers[i, 1] = at
            return _on_memory(code, at, _LOAD, _X, 0, _pointer(i), distance, _VECTOR)
        if pointers[i, 1] < pointers[oldest, 1]:
            oldest = i
    if 0 <= offset < _REACH and offset % _VECTOR == 0:
        return _on_memory(code, at, _LOAD, _X, 0, _RDI, offset, _VECTOR)
    pointers[oldest, 0], pointers[oldest, 1] = offset + _REACH, at
    register = _pointer(oldest)
    at = _put(code, _put(code, at, 0x48 | (register >> 3) << 2), 0x8D)  # lea register, [rdi + offset + _REACH]
    at = _put(code, at, 0x80 | (register & 7) << 3 | _RDI)
    at = _put_four(code, at, offset + _REACH)
    return _on_memory(code, at, _LOAD, _X, 0, register, -_REACH, _VECTOR)


@kernel_function
def _set_limit(code, at, limit):  # type: ignore[no-untyped-def]
    """Have the float32 with the bits `limit` in all lanes of a register."""
    at = _put_four(code, _put(code, at, 0xB8 + _RAX), limit)
    return _on_registers(code, at, _REPEAT, _LIMIT, 0, _RAX)


@kernel_function
def _finish(code, at, r, row, kind, epilogue, y_row_stride):  # type: ignore[no-untyped-def]
    """What follows the last nonzero of a part's r-th row. Clamps leave a NaN, which is their last operand, as it is;
    those to two sides wait for the second limit.
    """
    if not kind & ENDS:
        return _on_memory(code, at, _STORE, r, 0, _R9, r * _VECTOR, _VECTOR)
    if epilogue & BIAS:
        at = _on_memory(code, at, _ADD, r, r, _RDX, row * 4, 4)
    if epilogue & RESIDUAL:
        at = _on_memory(code, at, _ADD, r, r, _R8, row * y_row_stride, _VECTOR)
    if epilogue & (LOW | HIGH):
        at = _on_registers(code, at, _MAX if epilogue & LOW else _MIN, r, _LIMIT, r)
        if epilogue & LOW and epilogue & HIGH:
            return at
    return _on_memory(code, at, _STORE, r, 0, _RCX, row * y_row_stride, _VECTOR)


@host_function("int64(int64*, int64*, int64**, int64, int64, int64, int64, int64**, int64*, uint8*, int64*)")
def write_code(  # type: ignore[no-untyped-def]
    offsets, rows, parts, epilogue, y_row_stride, low, high, pointers, left, code, starts
):
    """Write the code of all segments; returns its bytes.

    offsets, rows : int64 [nnz], bytes from a position to a nonzero's x, and its row, by chunk, column and row
    parts : int64 [parts, 4], first row, number of rows, end of the nonzeros, kind
    low, high : limits of the clamp as bits of float32
    pointers : scratch, see `_load_x`
    left : int64 [CODE_ROWS], scratch
    code, starts : uint8, int64 [parts], written: the code, and where that of a segment begins, at its first part
    """
    at, p, weights = 0, 0, 0
    for s in range(parts.shape[0]):
        first, count, end, kind = parts[s, 0], parts[s, 1], parts[s, 2], parts[s, 3]
        if not kind & FOLLOWS:
            while at % 64:
                at = _put(code, at, 0x90)
            starts[s], weights = at, p + WEIGHTS_AHEAD
        left[:] = 0
        for q in range(p, end):
            left[rows[q] - first] += 1
        if kind & ENDS and epilogue & (LOW | HIGH):
            at = _set_limit(code, at, low if epilogue & LOW else high)
        for r in range(count):
            if kind & BEGINS:
                at = _on_registers(code, at, _ZERO, r, r, r)
            elif kind & ENDS or left[r] > 0:
                at = _on_memory(code, at, _LOAD, r, 0, _R9, r * _VECTOR, _VECTOR)
            if left[r] == 0 and kind & (BEGINS | ENDS):
                at = _finish(code, at, r, first + r, kind, epilogue, y_row_stride)
        loaded = -1
        for i in range(POINTERS):
            pointers[i, 0], pointers[i, 1] = -(2**40), -1
        while p < end:
            if offsets[p] != loaded:
                loaded = offsets[p]
                at = _load_x(code, at, loaded, pointers)
            if p - weights >= WEIGHTS_AHEAD:  # add rsi, bytes of as many weights as one byte tells apart
                at = _put(code, _put(code, _put(code, at, 0x48), 0x81), 0xC0 | _RSI)
                at = _put_four(code, at, 2 * WEIGHTS_AHEAD * 4)
                weights += 2 * WEIGHTS_AHEAD
            r = rows[p] - first
            at = _on_memory(code, at, _MULTIPLY_ADD, r, _X, _RSI, (p - weights) * 4, 4)
            left[r] -= 1
            if left[r] == 0:
                at = _finish(code, at, r, rows[p], kind, epilogue, y_row_stride)
            p += 1
        if kind & ENDS and epilogue & LOW and epilogue & HIGH:
            at = _set_limit(code, at, high)
            for r in range(count):
                at = _on_registers(code, at, _MIN, r, _LIMIT, r)
                at = _on_memory(code, at, _STORE, r, 0, _RCX, (first + r) * y_row_stride, _VECTOR)
        if s + 1 == parts.shape[0] or not parts[s + 1, 3] & FOLLOWS:
            for byte in (0xC5, 0xF8, 0x77, 0xC3):  # vzeroupper, ret
                at = _put(code, at, byte)
    return at


@host_function("void(const int64*, const column*, int64*, int64*, int64*, int64*)")
def order_by_columns(indptr, columns, chunk_rows, counts, rows, order):  # type: ignore[no-untyped-def]
    """Sort the nonzeros of each chunk of rows by column, then row.

    counts : int64 [columns + 1], scratch
    rows, order : int64 [nnz], written: the row of each nonzero in that order, and its index in the CSR
    """
    for chunk in range(chunk_rows.shape[0] - 1):
        first, last = chunk_rows[chunk], chunk_rows[chunk + 1]
        counts[:] = 0
        for p in range(indptr[first], indptr[last]):
            counts[columns[p] + 1] += 1
        counts[0] = indptr[first]
        for column in range(counts.shape[0] - 1):
            counts[column + 1] += counts[column]
        for row in range(first, last):
            for p in range(indptr[row], indptr[row + 1]):
                at = counts[columns[p]]
                counts[columns[p]] = at + 1
                rows[at], order[at] = row, p


# ---------------------------------------------------------------- the kernel

ARGUMENTS = kernel_arguments(
    # tasks are (batch, tile, row group), the last one innermost
    "tiles",  # tiles per batch
    "groups",  # row groups
    "group_segments",  # int64 [groups + 1], first segment of every group
    # int64 [segments + 1, 4], of each segment: address of the code, bytes from the values to what it takes as weights,
    # bytes from y to the first row that it finishes, and how many these are; then where the last one's code ends
    "segments",
    "tile_vectors",  # int64 [tiles + 1], first vector of every tile
    "x_positions",  # int64 [vectors], bytes from x of the batch to each vector
    "y_positions",
    "x",
    "x_batch_stride",
    "y",
    "y_batch_stride",
    "y_row_stride",
    "values",
    "bias",
    "residual",  # in y's layout; may be y itself
    "scratch",  # of each worker: sums of a chunk, for every vector of a tile
    "scratch_stride",
)
_arguments = simd.arguments_view(ARGUMENTS)


@inlined_function
def _prefetch(start, end):  # type: ignore[no-untyped-def]
    while start < end:
        simd.prefetch_l2(start, 64)
        start += 64
    return start


@compiled_once
def coded_spmm_kernel() -> Any:
    """The kernel with arguments ARGUMENTS: it calls a tile's code, segment by segment, for each of its vectors."""

    def coded_spmm(arguments, slot):  # type: ignore[no-untyped-def]
        a = _arguments(arguments)
        scratch = a.scratch + slot * a.scratch_stride
        for task in simd.tasks(arguments):
            batch, part = task // (a.groups * a.tiles), task % (a.groups * a.tiles)
            group, tile = part % a.groups, part // a.groups
            x, y = a.x + batch * a.x_batch_stride, a.y + batch * a.y_batch_stride
            begin, end = simd.load_i64(a.tile_vectors + tile * 8), simd.load_i64(a.tile_vectors + tile * 8 + 8)
            first = a.segments + simd.load_i64(a.group_segments + group * 8) * _RECORD
            last = a.segments + simd.load_i64(a.group_segments + group * 8 + 8) * _RECORD
            residual, segment = a.residual - a.y if a.residual != 0 else 0, first
            while segment < last:
                code, weights = simd.load_i64(segment), a.values + simd.load_i64(segment + 8)
                finishes, rows = simd.load_i64(segment + 16), simd.load_i64(segment + 24)
                # While a segment runs, code and weights of the next one come from a far cache, a part for each vector;
                # before it runs, what its epilogue reads, or y.
                following = segment + _RECORD if segment + _RECORD < last else first
                ahead, ahead_end = simd.load_i64(following), simd.load_i64(following + _RECORD)
                share, sums = (ahead_end - ahead) // (end - begin) + 64, scratch
                values = a.values + simd.load_i64(following + 8) - WEIGHTS_AHEAD * 4
                values_end = a.values + simd.load_i64(following + _RECORD + 8) - WEIGHTS_AHEAD * 4
                values_share = (values_end - values) // (end - begin) + 64
                for vector in range(begin, end):
                    ahead = _prefetch(ahead, min(ahead + share, ahead_end))
                    values = _prefetch(values, min(values + values_share, values_end))
                    source = x + simd.load_i64(a.x_positions + vector * 8)
                    out = y + simd.load_i64(a.y_positions + vector * 8)
                    at = out + finishes + residual
                    for _ in range(rows):
                        simd.prefetch_l2(at, 64)
                        at += a.y_row_stride
                    simd.call_code(code, source, weights, a.bias, out, out + residual, sums)
                    sums += CODE_ROWS * _VECTOR
                segment += _RECORD

    return compile_kernel(coded_spmm, "coded_spmm_f32")
