"""The table of kernel variants, one row per kernel family, which `warmup`, tests and benches read.

A row has the family's name, the function that returns the compiled variant, and the arguments it is built for on a CPU
with `lanes(bits)` lanes. Other variants are compiled at first use.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from . import (
    activations,
    attention,
    compiler,
    depthwise,
    gates,
    interpolation,
    layouts,
    norm,
    optimizers,
    pattern_code,
    pattern_updates,
    pooling,
    recurrent,
    sddmm,
    sequence,
    softmax,
    sparse_operator,
    spgemm,
    spmm,
    spmv,
    stream,
)

TILE_WIDTHS = range(1, 9)
Arguments = tuple[Any, ...]  # numbers, and names of kinds


@dataclass(frozen=True)
class Family:
    """Variants of one kernel: `get(*arguments)` returns one, compiled at most once."""

    name: str
    get: Callable[..., Any]
    arguments: Callable[[int, int], list[Arguments]]  # of (bits, lanes)


def _once(bits: int, lanes: int) -> list[Arguments]:
    return [(bits, lanes)]


def _each(kinds: Iterable[Any], *, half: bool = False) -> Callable[[int, int], list[Arguments]]:
    """Of all kinds, with vectors of half the length, too."""

    def arguments(bits: int, lanes: int) -> list[Arguments]:
        lengths = (lanes, *_half(bits, lanes)) if half else (lanes,)
        return [(kind, bits, each) for kind in kinds for each in lengths]

    return arguments


def _columns(bits: int, lanes: int) -> list[Arguments]:
    return [(bits, lanes, 0), (bits, lanes, 1)]


def _tiles(bits: int, lanes: int) -> list[Arguments]:
    kinds = [(width, 0) for width in TILE_WIDTHS]
    kinds += [(width, spmm.DENSE) for width in range(1, spmm.widest_dense(bits * lanes // 8) + 1)]
    # One vector is always contiguous, and the only width with interleaved rows. Few columns go into half a vector.
    tiles: list[Arguments] = [(bits, lanes, width, 1, row_unroll) for width, row_unroll in kinds]
    tiles += [(bits, lanes, width, 0, row_unroll) for width, row_unroll in kinds if width > 1]
    tiles += [(bits, lanes, 1, 1, spmm.INTERLEAVED)]
    half = [(bits, half, 1, 1, kind) for half in _half(bits, lanes) for kind in (0, spmm.DENSE, spmm.INTERLEAVED)]
    return tiles + half


def _half(bits: int, lanes: int) -> list[int]:
    half = compiler.half_lanes(bits, lanes)
    return [half] if half else []


def _lookup(bits: int, lanes: int) -> list[Arguments]:
    fits = (bits, lanes) == (sparse_operator.LOOKUP_BITS, sparse_operator.LOOKUP_LANES)
    return [(bits, lanes, value_bits) for value_bits in (32, 16)] if fits else []


def _coded(bits: int, lanes: int) -> list[Arguments]:
    return [()] if (bits, lanes) == (32, pattern_code.CODE_LANES) else []


def _stream(bits: int, lanes: int) -> list[Arguments]:
    """Tiles of any width on whole vectors, of one or two on shorter ones. Only huge matrices have 64-bit indices."""
    short = [(each, width) for each in (2, 4, 8) if each < lanes for width in (1, 2)]
    tiles = [(1, 1), *short, *((lanes, width) for width in TILE_WIDTHS)]
    return [(bits, *tile, 32) for tile in tiles]


def _narrow(bits: int, lanes: int) -> list[Arguments]:
    """Of AVX-512, where masked loads are as fast, and of the usual type and padding."""
    fits = (bits, lanes) == (32, 16)
    return [(*w, w[0] // 2, parts, bits, lanes) for w in depthwise.WINDOWS for parts in (1, 2)] if fits else []


_ACTIVATIONS = _each(activations.ACTIVATIONS)
FAMILIES = (
    Family("spmm", spmm.spmm_kernel, _tiles),
    Family("spmm by code", pattern_code.coded_spmm_kernel, _coded),
    Family("spmv", spmv.spmv_kernel, lambda bits, lanes: [(bits, lanes, 16), (bits, lanes, 32)]),
    Family("spmv by slices", spmv.slices_kernel, _once),
    Family("spmv by register lookup", spmv.lookup_kernel, _lookup),
    Family("sddmm", sddmm.sddmm_kernel, _once),
    Family("sddmm on contiguous runs", sddmm.sddmm_runs_kernel, _once),
    Family("streaming spmm", stream.spmm_kernel, _stream),
    Family("streaming sddmm", stream.sddmm_kernel, lambda bits, lanes: [(bits, lanes, 32)]),
    Family("sparse input", spgemm.forward_kernel, _once),
    Family("sparse input gradient", spgemm.gradient_kernel, lambda bits, lanes: [(bits,)]),
    Family("pack and unpack batch-blocked", layouts.batch_blocked_kernel, _each((0, 1), half=True)),
    Family("pack padded NCHW", layouts.pack_padded_kernel, _once),
    Family("gather vectors", layouts.gather_vectors_kernel, _once),
    Family("activation of a tile", activations.activation_kernel, _ACTIVATIONS),
    Family("activation", activations.activation_array_kernel, _ACTIVATIONS),
    Family("activation gradient", activations.activation_grad_kernel, _ACTIVATIONS),
    Family("pooling", pooling.pool_kernel, _each(pooling.KINDS)),
    Family("pooling gradient", pooling.pool_grad_kernel, _each(pooling.GRADIENT_KINDS)),
    Family(
        "pooling of batch-blocked arrays", pooling.pool_batch_blocked_kernel, _each(pooling.BATCH_BLOCKED_KINDS)
    ),
    Family(
        "depthwise convolution", depthwise.depthwise_kernel,
        lambda bits, lanes: [(*window, bits, lanes) for window in depthwise.WINDOWS],
    ),
    Family("depthwise convolution of narrow images", depthwise.narrow_kernel, _narrow),
    Family("interpolation", interpolation.interpolation_kernel, lambda bits, lanes: [(2, bits, lanes)]),
    Family("interpolation of batch-blocked arrays", interpolation.interpolation_batch_blocked_kernel, _once),
    Family("gate", gates.gate_kernel, _each((0, 1))),
    Family("recurrent cell", recurrent.cell_kernel, _each(recurrent.GATES, half=True)),
    Family("batch norm", norm.batch_norm_kernel, _columns),
    Family("batch norm gradient", norm.batch_norm_grad_kernel, _columns),
    Family("softmax", softmax.softmax_kernel, _once),
    Family("attention", attention.attention_kernel, _once),
    Family("layer norm", norm.layer_norm_kernel, _once),
    Family("sgd", optimizers.sgd_kernel, _each(optimizers.SGD_KINDS)),
    Family("adam", optimizers.adam_kernel, _once),
)  # fmt: skip

# Functions that Python calls: launchers, and what builds operators and changes patterns.
FUNCTIONS: tuple[tuple[Any, Arguments], ...] = (
    *((get, bits) for get, keys in compiler.host_functions for bits in itertools.product((32, 64), repeat=keys)),
    *((sparse_operator.copy_runs, (bits,)) for bits in (32, 64)),
)


def usual() -> Iterator[tuple[Any, Arguments]]:
    """(builder, key) of the variants that most float32 programs use, of matrices of fewer than 2**31 columns."""
    for get, key in FUNCTIONS:
        if 64 not in key and get.__module__ != pattern_updates.__name__:
            yield get, key
    yield sequence.sequence_kernel, ()
    for family in FAMILIES:
        for key in family.arguments(32, compiler.lanes(32)):
            if not family.name.startswith("activation") or key[0] == "relu":
                yield family.get, key


def every() -> Iterator[tuple[Any, Arguments]]:
    """(builder, key) of all variants in the table."""
    yield from FUNCTIONS
    yield sequence.sequence_kernel, ()
    for family in FAMILIES:
        for bits in (32, 64):
            yield from ((family.get, key) for key in family.arguments(bits, compiler.lanes(bits)))
