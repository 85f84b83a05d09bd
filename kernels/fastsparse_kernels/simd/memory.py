"""Memory for kernels: scalars, vectors, prefetch, non-temporal stores, the atomic task counter, kernel arguments.

Addresses are plain int64 byte addresses: no reference counts, no index wrap-around code, no bounds checks. Everything
here trusts its caller.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import from_dtype, types
from numba.extending import intrinsic, lower_builtin, models, register_model

from ..numba_internals import RefType, iternext_impl
from .types import (
    FLOATS,
    I32,
    I64,
    L1,
    L2,
    NUMBA_FLOATS,
    Addresses,
    Const,
    Tile,
    at,
    contiguous_addresses,
    first_lanes,
    instruction,
    is_x86,
    llvm_function,
    load_value,
    load_vectors,
    masked_load,
    masked_store,
    opaque,
    overlapping_addresses,
    pack,
    prefetch_line,
    shifted,
    shuffle,
    store_vectors,
    unpack,
    vector_addresses,
)

# ---------------------------------------------------------------- scalars


def _scalar_load(bits: int, align: int) -> Any:
    @instruction(types.int64)
    def load_unsigned(builder: Any, args: Any, address: Any) -> Any:
        value = load_value(builder, args[0], ir.IntType(bits), align)
        return builder.zext(value, I64) if bits < 64 else value

    return load_unsigned


load_u8, load_u16, load_u32, load_i64 = (_scalar_load(bits, bits // 8) for bits in (8, 16, 32, 64))


@instruction(types.UniTuple(types.int64, 2))
def load_four_u32(builder: Any, args: Any, vector_bytes: Const, address: Any) -> Any:
    """Four consecutive uint32 as two int64 that hold two each, the first one in the low half (little-endian).

    vector_bytes : of the tile's vectors. With 64-byte vectors, load ports are the bottleneck and one vector load brings
        all four. Shorter vectors leave ports for two integer loads, but not for moving integers out of a vector.
    """
    if vector_bytes == 64:
        four = opaque(builder, load_value(builder, args[1], ir.VectorType(I64, 2), 4))
        halves = [builder.extract_element(four, ir.Constant(I32, i)) for i in (0, 1)]
    else:
        halves = [load_value(builder, shifted(builder, args[1], 8 * i), I64, 4) for i in (0, 1)]
    return pack(builder, I64, halves)


@instruction(lambda bits, address: NUMBA_FLOATS[bits])
def load_float(builder: Any, args: Any, bits: Const, address: Any) -> Any:
    """The floating-point number of `bits` bits at `address`."""
    return load_value(builder, args[1], FLOATS[bits], bits // 8)


@instruction(types.void)
def store_float(builder: Any, args: Any, value: Any, address: Any) -> Any:
    """Write one floating-point number."""
    builder.store(args[0], at(builder, args[1], FLOATS[value.bitwidth]), align=value.bitwidth // 8)


@instruction(types.void)
def store_i64(builder: Any, args: Any, value: Any, address: Any) -> Any:
    """Write one int64."""
    builder.store(args[0], at(builder, args[1], I64), align=8)


# ---------------------------------------------------------------- vectors


@instruction(Tile)
def zeros(builder: Any, args: Any, count: Const, lanes: Const, bits: Const) -> Any:
    """A tile of zeros; the three arguments are compile-time integers."""
    tile = Tile(count, lanes, bits)
    return ir.Constant(ir.ArrayType(tile.vector, tile.count), None)


@instruction(lambda count, *_: Addresses(count))
def strided_addresses(builder: Any, args: Any, count: Const, base: Any, stride: Any) -> Any:
    """`count` addresses base, base + stride, ..."""
    items = [builder.add(args[1], builder.mul(args[2], ir.Constant(I64, i))) for i in range(count)]
    return pack(builder, I64, items)


@instruction(lambda count, *_: Addresses(count))
def gather_addresses(builder: Any, args: Any, count: Const, base: Any, table: Any) -> Any:
    """`count` addresses base + table[i], the table being int64 at a byte address."""
    loads = [load_value(builder, shifted(builder, args[2], 8 * i), I64, 8) for i in range(count)]
    return pack(builder, I64, [builder.add(args[1], item) for item in loads])


@instruction(lambda count, *_: Addresses(count))
def row_addresses(
    builder: Any, args: Any, count: Const, base: Any, indices: Any, bits: Const, stride: Any, valid: Any
) -> Any:
    """`count` addresses base + indices[min(i, valid - 1)] * stride, of indices of 32 or 64 bits."""
    integer, size = ir.IntType(bits), bits // 8
    last, items = builder.sub(args[5], ir.Constant(I64, 1)), []
    for i in range(count):
        index = ir.Constant(I64, i)
        index = builder.select(builder.icmp_signed("<", index, last), index, last)
        address = builder.add(args[2], builder.mul(index, ir.Constant(I64, size)))
        number = load_value(builder, address, integer, size)
        number = number if size == 8 else builder.zext(number, I64)
        items.append(builder.add(args[1], builder.mul(number, args[4])))
    return pack(builder, I64, items)


@instruction(types.int64)
def stack_buffer(builder: Any, args: Any, nbytes: Const) -> Any:
    """Address of `nbytes` bytes of the stack, 64-byte aligned, valid until the function returns."""
    with builder.goto_entry_block():  # not `cgutils.alloca_once`, whose zero fill takes LLVM seconds to compile
        buffer = builder.alloca(ir.ArrayType(ir.IntType(8), nbytes))
    buffer.align = 64
    return builder.ptrtoint(buffer, I64)


@instruction()
def load(builder: Any, args: Any, like: Any, address: Any) -> Any:
    """A tile of the type of `like`, read from consecutive memory."""
    return load_vectors(builder, like, contiguous_addresses(builder, like, args[1]))


@instruction()
def load_first(builder: Any, args: Any, like: Any, address: Any, count: Any) -> Any:
    """The first `count` elements from consecutive memory, zeros after them; nothing else is read.

    Where these are all there is no mask, which is slow before AVX-512; nor in `store_first`.
    """
    addresses = contiguous_addresses(builder, like, args[1])
    with builder.if_else(_are_all(builder, like, args[2])) as (whole, some):
        with whole:
            loaded, after_loading = load_vectors(builder, like, addresses), builder.block
        with some:
            masks = _masks_of_first(builder, like, args[2])
            vectors = [masked_load(builder, like, *each) for each in zip(addresses, masks, strict=True)]
            masked, after_masking = pack(builder, like.vector, vectors), builder.block
    found = builder.phi(loaded.type)
    found.add_incoming(loaded, after_loading)
    found.add_incoming(masked, after_masking)
    return found


def _are_all(builder: Any, tile: Tile, count: Any) -> Any:
    return builder.icmp_signed(">=", count, ir.Constant(I64, tile.count * tile.lanes))


def _masks_of_first(builder: Any, tile: Tile, count: Any) -> list[Any]:
    """Mask of the first `count` elements of a tile, vector by vector."""
    return [first_lanes(builder, tile, shifted(builder, count, -i * tile.lanes)) for i in range(tile.count)]


def _lines(nbytes: int) -> Iterable[int]:
    """A byte of every cache line that `nbytes` bytes may touch: they need not begin on a line."""
    return dict.fromkeys((*range(0, nbytes, 64), nbytes - 1))


@instruction(types.void)
def prefetch_l2(builder: Any, args: Any, address: Any, nbytes: Const) -> Any:
    """Prefetch the lines of `nbytes` bytes to L2; an address that is not mapped does no harm.

    What is far away is prefetched to L2 and not to L1: more such prefetches may be in flight (Zen 4).
    """
    for distance in _lines(nbytes):
        prefetch_line(builder, shifted(builder, args[0], distance), L2)


@instruction(types.void)
def prefetch_l1(builder: Any, args: Any, address: Any, nbytes: Const) -> Any:
    """Prefetch `nbytes` bytes to L1, one instruction per 64."""
    for distance in range(0, nbytes, 64):
        prefetch_line(builder, shifted(builder, args[0], distance), L1)


@instruction(types.void)
def prefetch_l2_at(builder: Any, args: Any, tile: Any, bases: Any, offset: Any) -> Any:
    """`prefetch_l2` of a tile's vectors, see `load_at`."""
    _, base, offset = args
    if isinstance(bases, Addresses):
        addresses = vector_addresses(builder, tile, bases, base, offset)
    else:
        first = builder.add(base, offset)
        addresses = [shifted(builder, first, line) for line in _lines(tile.count * tile.vector_bytes)]
    for address in addresses:
        prefetch_line(builder, address, L2)


@instruction(types.void)
def store(builder: Any, args: Any, tile: Any, address: Any) -> Any:
    """Write the tile to consecutive memory."""
    store_vectors(builder, tile, args[0], contiguous_addresses(builder, tile, args[1]))


def _store_nontemporal(builder: Any, tile: Tile, vector: Any, address: Any) -> None:
    stored = builder.store(vector, at(builder, address, vector.type), align=vector.type.count * tile.size)
    stored.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(I32, 1)]))


def _store_quarters(builder: Any, tile: Tile, vector: Any, address: Any) -> None:
    """See `store_nontemporal_quarters`."""
    each = 16 // tile.size
    if tile.lanes < each:
        builder.store(vector, at(builder, address, tile.vector), align=tile.size)
    for first in range(0, tile.lanes - each + 1, each):
        quarter = shuffle(builder, vector, vector, range(first, first + each))
        _store_nontemporal(builder, tile, quarter, shifted(builder, address, first * tile.size))


@instruction(types.void)
def store_nontemporal(builder: Any, args: Any, tile: Any, address: Any) -> Any:
    """Non-temporal (streaming) store to a vector-aligned address. Call `store_fence` before other threads read it."""
    addresses = contiguous_addresses(builder, tile, args[1])
    for vector, address in zip(unpack(builder, args[0], tile.count), addresses, strict=True):
        _store_nontemporal(builder, tile, vector, address)


@instruction(types.void)
def store_overlapping(builder: Any, args: Any, tile: Any, address: Any, last: Any) -> Any:
    """`store`, the last vector to address + last; see `axpy_overlapping`."""
    store_vectors(builder, tile, args[0], overlapping_addresses(builder, tile, args[1], args[2]))


@instruction(types.void)
def store_nontemporal_quarters(builder: Any, args: Any, tile: Any, address: Any, last: Any) -> Any:
    """Non-temporal `store_overlapping`, 16 bytes at a time, to 16-byte-aligned addresses: NumPy's arrays begin there.

    The core combines them into lines before it writes. Vectors of fewer bytes get ordinary stores.
    """
    addresses = overlapping_addresses(builder, tile, args[1], args[2])
    for vector, address in zip(unpack(builder, args[0], tile.count), addresses, strict=True):
        _store_quarters(builder, tile, vector, address)


@instruction(types.void)
def store_fence(builder: Any, args: Any) -> Any:
    """Order the non-temporal stores before what this thread writes next: x86 keeps them in buffers of their own."""
    if is_x86(builder):
        llvm_function(builder, "llvm.x86.sse.sfence", ir.VoidType(), [])()
    else:
        builder.fence("release")


@instruction(types.void)
def store_first(builder: Any, args: Any, tile: Any, address: Any, count: Any) -> Any:
    """Write the first `count` elements to consecutive memory and nothing else."""
    addresses = contiguous_addresses(builder, tile, args[1])
    with builder.if_else(_are_all(builder, tile, args[2])) as (whole, some):
        with whole:
            store_vectors(builder, tile, args[0], addresses)
        with some:
            masks, vectors = _masks_of_first(builder, tile, args[2]), unpack(builder, args[0], tile.count)
            for each in zip(vectors, addresses, masks, strict=True):
                masked_store(builder, tile, *each)


@instruction()
def load_at(builder: Any, args: Any, like: Any, bases: Any, offset: Any) -> Any:
    """A tile whose vector i is at bases[i] + offset; or, where `bases` is one int64, contiguous from there on."""
    return load_vectors(builder, like, vector_addresses(builder, like, bases, args[1], args[2]))


@instruction(types.void)
def store_at(builder: Any, args: Any, tile: Any, bases: Any, offset: Any) -> Any:
    """Write a tile to where `load_at` reads it."""
    store_vectors(builder, tile, args[0], vector_addresses(builder, tile, bases, args[1], args[2]))


@instruction(types.void)
def store_nontemporal_at(builder: Any, args: Any, tile: Any, bases: Any, offset: Any, aligned: Any) -> Any:
    """Non-temporal `store_at` of vectors that are aligned, or, if they are contiguous, of 16-byte-aligned quarters."""
    vectors = unpack(builder, args[0], tile.count)
    addresses = vector_addresses(builder, tile, bases, args[1], args[2])

    def store_all(store: Any) -> None:
        for vector, address in zip(vectors, addresses, strict=True):
            store(builder, tile, vector, address)

    if isinstance(bases, Addresses):
        store_all(_store_nontemporal)
    else:
        with builder.if_else(args[3]) as (whole, quarters):
            with whole:
                store_all(_store_nontemporal)
            with quarters:
                store_all(_store_quarters)


def _whole(builder: Any, tile: Tile, index: int, count: Any) -> Any:
    """Mask of all lanes for the vectors below `count`, of none for the others."""
    every = ir.Constant(tile.mask, [1] * tile.lanes)
    exists = builder.icmp_signed("<", ir.Constant(I64, index), count)
    return builder.select(exists, every, ir.Constant(tile.mask, None))


@instruction()
def load_first_at(builder: Any, args: Any, like: Any, bases: Any, count: Any) -> Any:
    """Vector i from bases[i] for i < count, zeros for the others; nothing else is read."""
    vectors = []
    for i, base in enumerate(unpack(builder, args[1], bases.count)):
        vectors.append(masked_load(builder, like, base, _whole(builder, like, i, args[2])))
    return pack(builder, like.vector, vectors)


@instruction(types.void)
def store_first_at(builder: Any, args: Any, tile: Any, bases: Any, count: Any) -> Any:
    """Vector i to bases[i] for i < count, and nothing else."""
    vectors, addresses = unpack(builder, args[0], tile.count), unpack(builder, args[1], tile.count)
    for i, (vector, base) in enumerate(zip(vectors, addresses, strict=True)):
        masked_store(builder, tile, vector, base, _whole(builder, tile, i, args[2]))


@instruction(types.void)
def copy_few(builder: Any, args: Any, like: Any, source: Any, target: Any, count: Any) -> Any:
    """Copy `count` numbers, from 1 to one less than `like` has lanes: two overlapping vectors, the longest that fit."""
    _, source, target, count = args

    def copy(lanes: int) -> None:
        vector = ir.VectorType(like.element, lanes) if lanes > 1 else like.element
        last = builder.mul(builder.sub(count, ir.Constant(I64, lanes)), ir.Constant(I64, like.size))
        for offset in (ir.Constant(I64, 0), last) if lanes > 1 else (last,):
            value = load_value(builder, builder.add(source, offset), vector, like.size)
            builder.store(value, at(builder, builder.add(target, offset), vector), align=like.size)

    def choose(lanes: int) -> None:
        if lanes == 1:
            copy(1)
            return
        with builder.if_else(builder.icmp_signed(">=", count, ir.Constant(I64, lanes))) as (fits, shorter):
            with fits:
                copy(lanes)
            with shorter:
                choose(lanes // 2)

    choose(max(1, like.lanes // 2))


# ---------------------------------------------------------------- tasks and arguments


@instruction(types.int64)
def fetch_add(builder: Any, args: Any, address: Any, amount: Any) -> Any:
    """Atomically add to the int64 at `address` and return the value before.

    What a task wrote is visible before the counter is taken again: acquire-release order, which every locked
    instruction has on x86. There it is not asked for, as LLVM would load all arguments anew for every task.
    """
    return _fetch_add(builder, *args)


def _fetch_add(builder: Any, address: Any, amount: Any) -> Any:
    order = "monotonic" if is_x86(builder) else "acq_rel"
    return builder.atomic_rmw("add", at(builder, address, I64), amount, order)


class Tasks(types.SimpleIteratorType):
    """Iterator over task numbers that workers share: address of the counter, and the end."""

    def __init__(self) -> None:
        super().__init__("tasks", types.int64)


@register_model(Tasks)
class _TasksModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, ir.ArrayType(I64, 2))


@instruction(Tasks())
def tasks(builder: Any, args: Any, arguments: Any) -> Any:
    """The tasks that this worker takes, one after the other, from the counter in kernel arguments at an address."""
    return pack(builder, I64, [load_value(builder, shifted(builder, args[0], 8 * i), I64, 8) for i in range(2)])


@lower_builtin("getiter", Tasks)
def _iterate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    return args[0]


@lower_builtin("iternext", Tasks)
@iternext_impl(RefType.UNTRACKED)
def _next_task(context: Any, builder: Any, signature: Any, args: Any, result: Any) -> None:
    counter, stop = unpack(builder, args[0], 2)
    task = _fetch_add(builder, counter, I64(1))
    result.set_valid(builder.icmp_signed("<", task, stop))
    result.yield_(task)


@instruction(types.int64)
def load_acquire(builder: Any, args: Any, address: Any) -> Any:
    """The int64 at `address`, and all that its writer wrote before `store_release`."""
    return builder.load_atomic(at(builder, args[0], I64), "acquire", 8)


@instruction(types.void)
def store_release(builder: Any, args: Any, value: Any, address: Any) -> Any:
    """Store an int64 behind all that this thread has written; for `load_acquire`."""
    builder.store_atomic(args[0], at(builder, args[1], I64), "release", 8)


@instruction(types.void)
def pause(builder: Any, args: Any) -> Any:
    """Tell the core that it waits in a loop: some 50 cycles on current x86.

    On AArch64 an instruction barrier takes about as long. YIELD, the hint that is meant for this, takes no time on
    cores of one thread, and who waits would help too early (rust-lang/rust#84725).
    """
    if is_x86(builder):
        llvm_function(builder, "llvm.x86.sse2.pause", ir.VoidType(), [])()
    elif str(builder.module.triple).startswith(("aarch64", "arm64")):
        llvm_function(builder, "llvm.aarch64.isb", ir.VoidType(), [I32])(ir.Constant(I32, 15))  # SY


@instruction(types.void)
def yield_core(builder: Any, args: Any) -> Any:
    """Let the operating system run another thread on this core."""
    name = "SwitchToThread" if "windows" in str(builder.module.triple) else "sched_yield"
    llvm_function(builder, name, I32, [])()


@instruction(types.void)
def call(builder: Any, args: Any, function: Any, arguments: Any, slot: Any) -> Any:
    """Call the compiled kernel at address `function` as void(int64 arguments, int64 slot)."""
    kind = ir.FunctionType(ir.VoidType(), [I64, I64])
    builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])


@instruction(types.void)
def call_code(
    builder: Any, args: Any, function: Any, x: Any, weights: Any, bias: Any, y: Any, residual: Any, sums: Any
) -> Any:
    """Call the code at address `function`, of `pattern_code`, with these addresses."""
    kind = ir.FunctionType(ir.VoidType(), [I64] * 6)
    builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])


def arguments_view(dtype: np.dtype) -> Any:
    """An intrinsic that reads the int64 address of kernel arguments as a record of `dtype`."""
    record = from_dtype(dtype)

    @intrinsic
    def view(typing: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], context.get_value_type(record))

        return record(types.int64), codegen

    return view
