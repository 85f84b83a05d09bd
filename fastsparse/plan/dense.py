"""Plans of products whose every weight is there; see the record in `fastsparse_kernels.dense` for the arrays."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse_kernels.build import aligned_empty

from . import policy
from .linear import Machine
from .operator import INDEX_LIMIT
from .tiles import Tiles

WORTH_DENSITY = 0.5  # the sparse kernels reach about half of what this one does, per multiply-add


@dataclass(frozen=True, eq=False)
class DensePlan:
    """Row blocks and the tiles they run over. `prepared` is where `launch_engine` keeps what all calls share."""

    blocks: NDArray[np.int64]  # [row blocks, 3]
    chunk_starts: NDArray[np.int64]
    offsets: NDArray[np.uint32]  # [columns]
    block_rows: int  # R
    tiles: Tiles
    prepared: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def chunks(self) -> int:
        return len(self.chunk_starts) - 1

    def pack(self, weight: NDArray[np.floating]) -> NDArray[np.floating]:
        """A weight (rows, columns) in the order of the kernel: [row blocks, columns, R]."""
        packed = aligned_empty((len(self.blocks), len(self.offsets), self.block_rows), weight.dtype)
        packed.fill(0)
        for block, (first, rows, _) in zip(packed, self.blocks.tolist(), strict=True):
            block[:, :rows] = weight[first : first + rows].T
        return packed


def tile_width(vectors: int, machine: Machine) -> int:
    """T for a line of `vectors` vectors: the fewest loads per multiply-add, idle vectors of the last tile counted."""

    def cost(width: int) -> float:
        rows = policy.dense_rows(width, machine.vector)
        return -(-vectors // width) * width * (1 + 0.25 * (width + rows) / (width * rows))

    return min(policy.dense_widths(machine.vector), key=cost)


def suits(rows: int, columns: int, nonzeros: int, groups: int) -> bool:
    """Whether a weight (rows, columns) of so many nonzeros, in groups of rows, is worth treating as full."""
    return nonzeros >= WORTH_DENSITY * rows * columns and rows // max(1, groups) >= 4 and columns > 0


def dense_plan(
    rows: int, groups: int, group_bytes: int, offsets: NDArray[np.int64], tiles: Tiles, batches: int, machine: Machine
) -> DensePlan | None:
    """Plan for groups of rows whose inputs begin `group_bytes` bytes apart; None when offsets are too large."""
    if len(offsets) and int(offsets.max()) >= INDEX_LIMIT:
        return None
    height = policy.dense_rows(tiles.width, machine.vector)
    per_group = rows // groups
    first = np.arange(0, per_group, height, dtype=np.int64)
    counts = np.minimum(height, per_group - first)
    group = np.repeat(np.arange(groups, dtype=np.int64), len(first))
    blocks = np.stack([np.tile(first, groups) + group * per_group, np.tile(counts, groups), group * group_bytes], 1)
    chunks = min(
        len(blocks), policy.row_groups(rows, tiles.count * batches, machine.workers, 0)
    )  # fmt: skip
    starts = np.arange(chunks + 1, dtype=np.int64) * len(blocks) // chunks
    return DensePlan(np.ascontiguousarray(blocks), starts, offsets.astype(np.uint32), height, tiles)
