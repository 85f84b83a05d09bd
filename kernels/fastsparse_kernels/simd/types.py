"""The register tile and the address tile as Numba types, and the LLVM values that operations on them are made of.

A `Tile` is T vectors of VL lanes that live in machine registers. LLVM sees an array of vectors and keeps it in T
registers, so a loop over nonzeros compiles to T fused multiply-adds with memory operands per nonzero, and little else.
Kernels written on it read as algebra and have one text for every T (tile width), VL (lanes) and floating-point size.

`Addresses` is a tile of T int64 byte addresses: the T vectors of a tile may be anywhere in memory.

Rejected: NumPy scalar loops left to the auto-vectoriser (15-30 % lost to negative-index code, and spills as soon as
the tile is an array), llvmlite's `builder.fma` (refuses vectors; the LLVM intrinsic by name does not).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

I1 = ir.IntType(1)
I16 = ir.IntType(16)
I32 = ir.IntType(32)
I64 = ir.IntType(64)
FLOATS = {32: ir.FloatType(), 64: ir.DoubleType()}
NUMBA_FLOATS = {32: types.float32, 64: types.float64}


class Tile(types.Type):
    """`count` vectors of `lanes` floating-point numbers of `bits` bits."""

    def __init__(self, count: int, lanes: int, bits: int) -> None:
        self.count, self.lanes, self.bits = count, lanes, bits
        super().__init__(name=f"tile{count}x{lanes}f{bits}")

    @property
    def element(self) -> ir.Type:
        return FLOATS[self.bits]

    @property
    def vector(self) -> ir.Type:
        return ir.VectorType(self.element, self.lanes)

    @property
    def mask(self) -> ir.Type:
        return ir.VectorType(I1, self.lanes)

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
        super().__init__(manager, addresses, ir.ArrayType(I64, addresses.count))


Const = Any  # annotation of an instruction's parameter: an integer that is known when a kernel is compiled


def instruction(result: Any = None) -> Callable[..., Any]:
    """Decorator that makes an intrinsic of Numba of `emit(builder, args, *kinds)`, which writes LLVM code.

    `emit` returns the LLVM value of the result, or None. `args` are the LLVM values of the arguments, `kinds` their
    types; integers are int64, but parameters annotated with `Const` are numbers.

    result : type of the value, or a function of the kinds that gives it; without it the first argument's
    """

    def decorate(emit: Callable[..., Any]) -> Any:
        parameters = list(inspect.signature(emit).parameters.values())[2:]
        constant = [parameter.annotation == "Const" for parameter in parameters]

        def typed(typing: Any, *given: Any) -> Any:
            kinds = [kind.literal_value if c else _wide(kind) for kind, c in zip(given, constant, strict=True)]
            found = kinds[0] if result is None else result if isinstance(result, types.Type) else result(*kinds)

            def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
                value = emit(builder, args, *kinds)
                return context.get_dummy_value() if value is None else value

            return found(*(kind if c else wide for kind, c, wide in zip(given, constant, kinds, strict=True))), codegen

        functools.update_wrapper(typed, emit)
        first = inspect.Parameter("typing", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        typed.__signature__ = inspect.Signature([first, *parameters])  # type: ignore[attr-defined]
        return intrinsic(prefer_literal=any(constant))(typed)

    return decorate


def _wide(kind: Any) -> Any:
    """The type of an argument: int64 of integers."""
    if isinstance(kind, types.BaseTuple):
        return types.Tuple([_wide(item) for item in kind])
    return types.int64 if isinstance(kind, types.Integer) else kind


def is_x86(builder: Any) -> bool:
    """Whether the code is generated for x86-64."""
    return str(builder.module.triple).partition("-")[0] in ("x86_64", "amd64")


def at(builder: Any, address: Any, pointee: ir.Type) -> Any:
    return builder.inttoptr(address, pointee.as_pointer())


def shifted(builder: Any, address: Any, distance: int) -> Any:
    return builder.add(address, ir.Constant(I64, distance)) if distance else address


def load_value(builder: Any, address: Any, pointee: ir.Type, align: int) -> Any:
    return builder.load(at(builder, address, pointee), align=align)


L1, L2 = 3, 2  # LLVM's locality hints


def prefetch_line(builder: Any, address: Any, cache: int) -> None:
    """Prefetch the cache line at an address to L1 or L2."""
    byte = ir.IntType(8).as_pointer()
    prefetch = llvm_function(builder, "llvm.prefetch.p0", ir.VoidType(), [byte, I32, I32, I32])
    prefetch(builder.inttoptr(address, byte), *(ir.Constant(I32, flag) for flag in (0, cache, 1)))


def splat(builder: Any, tile: Tile, scalar: Any) -> Any:
    """A scalar of any type in every lane."""
    undefined = ir.Constant(ir.VectorType(scalar.type, tile.lanes), ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(I32, 0))
    return shuffle(builder, first, undefined, [0] * tile.lanes)


def shuffle(builder: Any, a: Any, b: Any, indices: Sequence[int]) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(indices)), list(indices)))


def opaque(builder: Any, vector: Any) -> Any:
    """The same vector as result of an empty asm statement, which keeps LLVM from splitting or repeating its load."""
    register = "v" if is_x86(builder) else "w"
    same = ir.InlineAsm(ir.FunctionType(vector.type, [vector.type]), "", f"={register},0")
    return builder.call(same, [vector])


def in_order(builder: Any, vectors: Sequence[Any]) -> list[Any]:
    """The same vectors; loads behind it wait for them. LLVM would load all that a loop reads first, and spill."""
    register, kinds = "v" if is_x86(builder) else "w", [vector.type for vector in vectors]
    names = [f"={register}"] * len(kinds) + [str(i) for i in range(len(kinds))]
    result = ir.LiteralStructType(kinds) if len(kinds) > 1 else kinds[0]
    barrier = ir.InlineAsm(ir.FunctionType(result, kinds), "", ",".join([*names, "~{memory}"]), side_effect=True)
    found = builder.call(barrier, list(vectors))
    return unpack(builder, found, len(kinds)) if len(kinds) > 1 else [found]


def unpack(builder: Any, aggregate: Any, count: int) -> list[Any]:
    return [builder.extract_value(aggregate, i) for i in range(count)]


def pack(builder: Any, element: ir.Type, items: Sequence[Any]) -> Any:
    out = ir.Constant(ir.ArrayType(element, len(items)), ir.Undefined)
    for i, item in enumerate(items):
        out = builder.insert_value(out, item, i)
    return out


def contiguous_addresses(builder: Any, tile: Tile, first: Any) -> list[Any]:
    """Addresses of a tile's vectors, contiguous from `first` on."""
    return [shifted(builder, first, i * tile.vector_bytes) for i in range(tile.count)]


def vector_addresses(builder: Any, tile: Tile, bases: Any, base: Any, offset: Any) -> list[Any]:
    """Addresses of a tile's vectors: `offset` from each of its `Addresses`, or contiguous from base + offset."""
    if isinstance(bases, Addresses):
        return [builder.add(one, offset) for one in unpack(builder, base, bases.count)]
    return contiguous_addresses(builder, tile, builder.add(base, offset))


def overlapping_addresses(builder: Any, tile: Tile, first: Any, last: Any) -> list[Any]:
    """Addresses of a tile's contiguous vectors, the last of which is at first + last and overlaps the one before."""
    return [*contiguous_addresses(builder, tile, first)[:-1], builder.add(first, last)]


def llvm_function(builder: Any, name: str, result: ir.Type, arguments: Sequence[ir.Type]) -> Callable[..., Any]:
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, list(arguments)), name)
    return lambda *args: builder.call(function, args)


def fma_function(builder: Any, tile: Tile) -> Callable[..., Any]:
    return llvm_function(builder, f"llvm.fma.v{tile.lanes}f{tile.bits}", tile.vector, [tile.vector] * 3)


def first_lanes(builder: Any, tile: Tile, count: Any, number: Any = I64) -> Any:
    """Mask of the lanes below `count` (int64, may be negative or beyond the vector).

    number : I32 where 32 bits hold the count: half as many registers
    """
    limit = splat(builder, tile, count if number == I64 else builder.trunc(count, number))
    return builder.icmp_signed("<", ir.Constant(limit.type, list(range(tile.lanes))), limit)


def load_vectors(builder: Any, tile: Tile, addresses: Sequence[Any]) -> Any:
    """A tile of the vectors at these addresses."""
    return pack(builder, tile.vector, [load_value(builder, at, tile.vector, tile.size) for at in addresses])


def store_vectors(builder: Any, tile: Tile, value: Any, addresses: Sequence[Any]) -> None:
    """Write the vectors of a tile to these addresses."""
    for vector, address in zip(unpack(builder, value, tile.count), addresses, strict=True):
        builder.store(vector, at(builder, address, tile.vector), align=tile.size)


def masked_load(builder: Any, tile: Tile, address: Any, mask: Any) -> Any:
    pointer = tile.vector.as_pointer()
    name = f"llvm.masked.load.v{tile.lanes}f{tile.bits}.p0"
    function = llvm_function(builder, name, tile.vector, [pointer, I32, tile.mask, tile.vector])
    zero = ir.Constant(tile.vector, None)
    return function(at(builder, address, tile.vector), ir.Constant(I32, tile.size), mask, zero)


def masked_store(builder: Any, tile: Tile, vector: Any, address: Any, mask: Any) -> None:
    pointer = tile.vector.as_pointer()
    name = f"llvm.masked.store.v{tile.lanes}f{tile.bits}.p0"
    function = llvm_function(builder, name, ir.VoidType(), [tile.vector, pointer, I32, tile.mask])
    function(vector, at(builder, address, tile.vector), ir.Constant(I32, tile.size), mask)


def elementwise(builder: Any, tile: Tile, operation: Callable[..., Any], *aggregates: Any) -> Any:
    columns = [unpack(builder, aggregate, tile.count) for aggregate in aggregates]
    return pack(builder, tile.vector, [operation(*vectors) for vectors in zip(*columns, strict=True)])
