"""Plans of SpMM and SpMV on matrices."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastsparse.csr import Pattern
from fastsparse_kernels.compiler import half_lanes
from fastsparse_kernels.sparse_operator import RUN_VECTORS, SPMV_ACCUMULATORS

from . import policy
from .lookup import LookupPlan, lookup_plan
from .operator import INDEX_LIMIT, Operator, build_operator, even_blocks, split_rows
from .tiles import SpmmPlan, overlapping_tiles, packed_tiles, tiles_from_panels, whole_vectors


@dataclass(frozen=True)
class Machine:
    """What a plan depends on besides the pattern: bits of the numbers, lanes of a vector, worker threads, caches."""

    bits: int
    lanes: int
    workers: int
    l1_bytes: int = 32 * 1024
    l3_bytes: int = 8 * 2**20
    size: int = field(init=False, compare=False)  # bytes of one number
    vector: int = field(init=False, compare=False)  # bytes of one vector

    def __post_init__(self) -> None:
        # No cached properties: before Python 3.12 they hold a lock, which a child would inherit from a fork.
        object.__setattr__(self, "size", self.bits // 8)
        object.__setattr__(self, "vector", self.lanes * self.size)


@functools.lru_cache(maxsize=64)
def narrowed(machine: Machine, columns: int) -> Machine:
    """The machine with vectors half as long where so many columns fit them: L1 holds more of X, a quarter less time."""
    half = half_lanes(machine.bits, machine.lanes)
    return replace(machine, lanes=half) if half and columns <= half else machine


def tile_width(
    pattern: Pattern, vectors: int, machine: Machine, rates: Mapping[int, float] | None = None, groups: int = 1
) -> int:
    """T for a line of `vectors` vectors: by `rates` (the machine's), or by those of rows alike where W has no zeros.

    groups : of a convolution; with several the rows of W differ, whatever the pattern
    """
    alike = groups == 1 and pattern.nnz == math.prod(pattern.shape)
    if alike:
        rates = policy.alike_rates(machine.vector)
    return policy.tile_width(vectors, rates or policy.tile_rates(machine.vector))


def linear_operator(pattern: Pattern, row_bytes: int, block_rows: int, groups: int, width: int = 0) -> Operator:
    """The operator whose column k lies `row_bytes` behind column k - 1, cached on the pattern.

    width : as in `build_operator`
    """
    return pattern.cached(
        ("linear operator", row_bytes, block_rows, groups, width),
        lambda: build_operator(
            pattern.indptr, pattern.indices, even_blocks(pattern.shape[1], block_rows, row_bytes), groups, width
        ),
    )


class Leads(NamedTuple):
    """Columns of row-major X and Y in front of the first vector that begins at a multiple of its bytes.

    None where there is no such vector in every row.
    """

    x: int | None = None
    y: int | None = None


ANYWHERE = Leads()


def lead_columns(address: int, row_bytes: int, machine: Machine) -> int | None:
    """One of `Leads`: that of an array at `address` whose rows are `row_bytes` apart."""
    return None if row_bytes % machine.vector or address % machine.size else -address % machine.vector // machine.size


def minds_leads(columns: int, y_bytes: int, machine: Machine) -> bool:
    """Whether a plan of row-major products depends on `Leads`."""
    return columns >= policy.MANY_VECTORS * machine.lanes or policy.is_far(y_bytes, machine.l3_bytes)


def spmm_row_major(
    pattern: Pattern, columns: int, x_row_stride: int, machine: Machine, leads: Leads = ANYWHERE, batches: int = 1
) -> SpmmPlan:
    """Plan of row-major X (K, columns), rows `x_row_stride` bytes apart, -> row-major Y (M, columns), `batches` times.

    X is packed into panels block by block, or read in place where few nonzeros read each row. Where there are many
    tiles, or they are stored past the caches, they begin where vectors of Y do, or of X that is read in place.
    """
    rows, inputs = pattern.shape
    row_bytes = columns * machine.size
    many = columns >= policy.MANY_VECTORS * machine.lanes
    past_caches = leads.y is not None and policy.is_far(batches * rows * row_bytes, machine.l3_bytes)
    aligned = many and leads.x is not None and (leads.x == leads.y or not past_caches)
    near = not policy.is_far(batches * inputs * row_bytes, machine.l3_bytes)
    in_place = policy.reads_in_place(pattern.nnz, inputs, x_row_stride, machine.vector, aligned and near)
    if in_place and columns >= machine.lanes and x_row_stride >= row_bytes:
        lead = leads.y if past_caches else leads.x if aligned else 0
        return _spmm_in_place(pattern, columns, x_row_stride, machine, lead or 0, past_caches)
    density = pattern.nnz / max(1, rows * inputs)
    y_stays_near = past_caches or rows * row_bytes <= policy.NEAR_BYTES
    rates = policy.row_major_rates(density, inputs, y_stays_near, machine.vector)
    width = tile_width(pattern, -(-columns // machine.lanes), machine, rates)
    lead = (leads.y if many or past_caches else None) or 0
    tiles = packed_tiles(columns, width, machine.lanes, machine.size, lead)
    panel_row = width * machine.vector
    groups = policy.row_groups(rows, tiles.count, machine.workers, panel_row)
    block_rows = policy.even_block_rows(panel_row, inputs, density)
    operator = linear_operator(pattern, panel_row, block_rows, groups, width)
    return SpmmPlan(operator, tiles, x_row_stride, past_caches)


def _spmm_in_place(
    pattern: Pattern, columns: int, x_row_stride: int, machine: Machine, lead: int, past_caches: bool
) -> SpmmPlan:
    """The same without packing. Offsets count rows of X, so that every stride has an operator of its own."""
    whole = columns // machine.lanes
    rates = {width: rate for width, rate in policy.IN_PLACE_TILE_RATE.items() if width <= whole}
    # No rows are alike here: four with all columns would be four nonzeros for each row of X.
    width = min(policy.tile_width(-(-columns // machine.lanes), rates), whole)
    tiles = overlapping_tiles(columns, width, machine.lanes, machine.size, lead)
    groups = policy.row_groups(pattern.shape[0], tiles.count, machine.workers, width * machine.vector)
    operator = linear_operator(pattern, x_row_stride, pattern.shape[1], groups, width)
    return SpmmPlan(operator, tiles, past_caches=past_caches)


def lanes_group_stride(rows: int, machine: Machine) -> int:
    """Bytes from one group of VL samples to the next in lanes layout (groups, rows, VL)."""
    return policy.off_the_sets(max(1, rows) * machine.vector, machine.vector)


def panel_stride(features: int, width: int, machine: Machine) -> int:
    """Bytes from one panel (features, width, VL) of samples to the next."""
    return policy.off_the_sets(max(1, features) * width * machine.vector, machine.vector)


def panel_width(pattern: Pattern, samples: int, machine: Machine, backward: bool = False) -> int:
    """Groups of VL samples that a panel holds: the width of a tile, or four where SDDMM reads it, too, and has as many
    but for one."""
    groups = -(-samples // machine.lanes)
    if backward:
        return RUN_VECTORS if groups >= RUN_VECTORS - 1 else groups
    return tile_width(pattern, groups, machine)


def spmm_panels(pattern: Pattern, samples: int, width: int, machine: Machine, y_row_major: bool = False) -> SpmmPlan:
    """Plan of x in panels (panels, K, width, VL) of samples -> y in panels (panels, M, width, VL), or row-major
    (M, samples)."""
    rows, columns = pattern.shape
    sample_groups = -(-samples // machine.lanes)
    panel, vector = np.arange(-(-sample_groups // width)), np.arange(width) * machine.vector
    x_positions = np.add.outer(panel * panel_stride(columns, width, machine), vector).ravel()
    if y_row_major:
        tiles = tiles_from_panels(samples, width, machine.lanes, machine.size, x_positions[:sample_groups])
    else:
        y_positions = np.add.outer(panel * panel_stride(rows, width, machine), vector).ravel()
        tiles = whole_vectors(x_positions, y_positions, width, machine.lanes, machine.size, machine.vector)
    row_bytes = width * machine.vector
    groups = policy.row_groups(rows, tiles.count, machine.workers, row_bytes)
    block_rows = policy.even_block_rows(row_bytes, columns, pattern.nnz / max(1, rows * columns))
    operator = linear_operator(pattern, row_bytes, block_rows, groups, width)
    past_caches = not y_row_major and policy.is_far(rows * samples * machine.size, machine.l3_bytes)
    return SpmmPlan(operator, tiles, past_caches=past_caches)


@dataclass(frozen=True, eq=False)
class SpmvPlan:
    """SpMV: row groups of equal nonzeros, column indices of 16 bits where they fit. `prepared` as in `SpmmPlan`."""

    indptr: NDArray[np.int64]
    group_starts: NDArray[np.int64]
    columns: NDArray[Any]  # uint16 or uint32 [nnz + SPMV_ACCUMULATORS], 0 behind the nonzeros
    prepared: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def column_bits(self) -> int:
        return self.columns.dtype.itemsize * 8

    @property
    def nonzeros(self) -> int:
        return int(self.indptr[-1])

    def pack(self, values: NDArray[np.floating]) -> NDArray[np.floating]:
        """The values as they are."""
        return values


def _padded(indices: NDArray[np.integer], dtype: type[np.integer]) -> NDArray[Any]:
    padded = np.zeros(len(indices) + SPMV_ACCUMULATORS, dtype)
    padded[: len(indices)] = indices
    return padded


def spmv(pattern: Pattern, machine: Machine) -> SpmvPlan | LookupPlan:
    """Plan of W @ x for one column.

    Raises
    ------
    ValueError
        When W has more than 2**32 columns: indices are 32-bit.
    """
    if pattern.shape[1] > INDEX_LIMIT:
        raise ValueError(f"W has {pattern.shape[1]} columns, expected at most {INDEX_LIMIT}")
    by_lookup = lookup_plan(pattern, machine)
    if by_lookup is not None:
        return by_lookup
    narrow = np.uint16 if pattern.shape[1] <= 2**16 else np.uint32
    columns = pattern.cached(("spmv columns",), _padded, pattern.indices, narrow)
    slices = 2 * pattern.nnz // policy.SLICE_FLOPS + 1
    groups = max(slices, 1 if machine.workers == 1 else policy.TASKS_PER_WORKER * machine.workers)
    return SpmvPlan(pattern.indptr, split_rows(pattern.indptr, groups), columns)
