"""The table of kernel variants: one row per kernel family. `warmup`, tests and benches read it.

A row names the family, the function that gives the compiled variant, and the arguments it is built for on a CPU with
`lanes(bits)` lanes. What a dispatcher may ask for beyond the usual is compiled when it is first asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from . import (
    build,
    epilogue,
    layout,
    lookup,
    lookup_layout,
    norm,
    operators,
    optimizers,
    pooling,
    row_sums,
    rowwise,
    sddmm,
    sddmm_runs,
    sequence,
    sharing,
    spgemm,
    spmm,
    spmv,
)

TILE_WIDTHS = range(1, 9)
ALIKE_WIDTHS = range(1, 4)  # up to 6 where there are 32 vector registers
LOCKSTEP_WIDTHS = range(1, 3)
Arguments = tuple[int, ...]


@dataclass(frozen=True)
class Family:
    """Variants of one kernel: `get(*arguments)` compiles one, or gives the one compiled before."""

    name: str
    get: Callable[..., Any]
    arguments: Callable[[int, int], list[Arguments]]  # of (bits, lanes)


def _once(bits: int, lanes: int) -> list[Arguments]:
    return [(bits, lanes)]


def _tiles(bits: int, lanes: int) -> list[Arguments]:
    ways = [(width, 0, asks) for width in TILE_WIDTHS for asks in (0, operators.ROWS, operators.LINES)]
    ways += [(width, row_sums.ALIKE, 0) for width in ALIKE_WIDTHS] + [
        (width, row_sums.LOCKSTEP, 0) for width in LOCKSTEP_WIDTHS
    ]
    # One vector is always in a row, as lines are. Few columns go into one of half the length.
    tiles = [(bits, lanes, width, 1, *rest) for width, *rest in ways]
    tiles += [(bits, lanes, width, 0, *rest) for width, *rest in ways if width > 1 and rest[1] != operators.LINES]
    return tiles + [(bits, half, *rest) for half in _half(bits, lanes) for _, _, *rest in tiles if rest[0] == 1]


def _half(bits: int, lanes: int) -> list[int]:
    half = build.half_lanes(bits, lanes)
    return [half] if half else []


def _both(bits: int, lanes: int) -> list[Arguments]:
    return [(bits, each) for each in (lanes, *_half(bits, lanes))]


def _lookup(bits: int, lanes: int) -> list[Arguments]:
    return [()] if (bits, lanes) == (lookup_layout.BITS, lookup_layout.LANES) else []


FAMILIES = (
    Family("spmm", spmm.spmm_kernel, _tiles),
    Family("spmv", spmv.spmv_kernel, lambda bits, lanes: [(bits, lanes, 16), (bits, lanes, 32)]),
    Family("spmv by lookup", lookup.lookup_kernel, _lookup),
    Family("sddmm", sddmm.sddmm_kernel, _once),
    Family("sddmm on runs", sddmm_runs.sddmm_runs_kernel, _once),
    Family("sparse input", spgemm.forward_kernel, _once),
    Family("sparse input gradient", spgemm.gradient_kernel, lambda bits, lanes: [(bits,)]),
    Family("pack lanes", layout.pack_lanes_kernel, _both),
    Family("unpack lanes", layout.unpack_lanes_kernel, _both),
    Family("pack flat", layout.pack_flat_kernel, _once),
    Family("gather", layout.gather_kernel, _once),
    Family(
        "activation in an epilogue",
        epilogue.activation_kernel,
        lambda bits, lanes: [(code, bits, lanes) for code in epilogue.ACTIVATION_CODES.values()],
    ),
    Family(
        "activation",
        epilogue.activation_array_kernel,
        lambda bits, lanes: [(code, bits, lanes) for code in epilogue.ACTIVATION_CODES.values()],
    ),
    Family(
        "activation gradient",
        epilogue.activation_grad_kernel,
        lambda bits, lanes: [(code, bits, lanes) for code in epilogue.ACTIVATION_CODES.values()],
    ),
    Family("pooling", pooling.pool_kernel, lambda bits, lanes: [(kind, bits, lanes) for kind in pooling.KINDS]),
    Family(
        "pooling gradient",
        pooling.pool_grad_kernel,
        lambda bits, lanes: [(kind, bits, lanes) for kind in pooling.GRADIENT_KINDS],
    ),
    Family(
        "pooling on lanes",
        pooling.pool_lanes_kernel,
        lambda bits, lanes: [(kind, bits, lanes) for kind in pooling.LANES_KINDS],
    ),
    Family("batch norm", norm.batch_norm_kernel, lambda bits, lanes: [(bits, lanes, 0), (bits, lanes, 1)]),
    Family(
        "batch norm gradient", norm.batch_norm_grad_kernel, lambda bits, lanes: [(bits, lanes, 0), (bits, lanes, 1)]
    ),
    Family("softmax", rowwise.softmax_kernel, _once),
    Family("layer norm", rowwise.layer_norm_kernel, _once),
    Family("sgd", optimizers.sgd_kernel, lambda bits, lanes: [(kind, bits, lanes) for kind in optimizers.SGD_KINDS]),
    Family("adam", optimizers.adam_kernel, _once),
)

PARALLEL = (sharing.run_parallel, sequence.run_steps)  # of use only where parallel regions may be entered


def usual() -> Iterator[tuple[str, Callable[[], Any]]]:
    """(name, function that compiles or loads it) of what most float32 programs use: some ninety variants."""
    yield "serial launch", sharing.run_serial
    yield "parallel launch", sharing.run_parallel
    yield "sequence of steps", sequence.sequence_kernel
    yield "steps in a row", sequence.run_steps_serial
    yield "parallel steps in a row", sequence.run_steps
    for name, get in (("count blocks", operators.count_blocks), ("place nonzeros", operators.place_nonzeros)):
        yield name, partial(get, 32)
    yield "order entries", operators.order_entries
    for family in FAMILIES:
        arguments = family.arguments(32, build.lanes(32))
        if family.name.startswith("activation"):
            relu = epilogue.ACTIVATION_CODES["relu"]
            arguments = [key for key in arguments if key[0] == relu]
        for key in arguments:
            yield f"{family.name} {key}", partial(family.get, *key)
