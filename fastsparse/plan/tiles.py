"""Tables of a kernel's tiles: where each of its T vectors is read and written."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .operator import Operator


@dataclass(frozen=True, eq=False)
class Tiles:
    """Positions of an SpMM: see the record in `fastsparse_kernels.spmm` for the arrays.

    `columns` is given when the input is row-major and packed block by block.
    """

    width: int  # T
    x_positions: NDArray[np.int64]  # [tiles, T]
    y_positions: NDArray[np.int64]  # [tiles, passes, T]
    masks: NDArray[np.uint16]  # [tiles, passes, T]
    full: NDArray[np.uint8]  # [tiles]
    columns: NDArray[np.uint32] | None = None

    @property
    def count(self) -> int:
        return len(self.x_positions)

    @property
    def passes(self) -> int:
        return self.y_positions.shape[1]

    def spread(self, workers: int) -> Tiles:
        """The tiles in an order in which those that workers take at once are far apart.

        Neighbours often end and begin in one cache line; two cores that write it at once take turns in having it.
        """
        if workers == 1:
            return self
        each = -(-self.count // workers)
        order = np.arange(workers * each).reshape(workers, each).T.ravel()
        order = order[order < self.count]
        return replace(
            self,
            x_positions=self.x_positions[order],
            y_positions=self.y_positions[order],
            masks=self.masks[order],
            full=self.full[order],
            columns=None if self.columns is None else self.columns[order],
        )

    def in_a_row(self, vector: int) -> bool:
        """Whether every tile reads, and those that are stored whole write, vectors of `vector` bytes in a row."""
        reads = self.columns is not None or bool((np.diff(self.x_positions, axis=1) == vector).all())
        return reads and bool((np.diff(self.y_positions[self.full != 0, 0], axis=1) == vector).all())


@dataclass(frozen=True, eq=False)
class SpmmPlan:
    """An operator and the tiles it runs over. `prepared` is where `launch` keeps what all calls share.

    asks_ahead : see `policy.asks_ahead`
    """

    operator: Operator
    tiles: Tiles
    asks_ahead: bool = False
    prepared: dict[str, Any] = field(default_factory=dict, repr=False)


def _by_tiles(values: NDArray[Any], width: int, fill: int | None = None) -> NDArray[Any]:
    """[n, ...] -> [tiles, width, ...], the last tile filled up with `fill`, or with the last item."""
    missing = -len(values) % width
    if missing:
        tail = values[-1:] if fill is None else np.full_like(values[-1:], fill)
        values = np.concatenate([values, np.repeat(tail, missing, axis=0)])
    return np.ascontiguousarray(values.reshape(-1, width, *values.shape[1:]))


def tiles_of_vectors(
    x_positions: NDArray[np.int64],
    y_positions: NDArray[np.int64],
    masks: NDArray[np.uint16],
    width: int,
    lanes: int,
    columns: NDArray[np.uint32] | None = None,
    step: int = 0,
) -> Tiles:
    """Tiles of `width` vectors, from one x position [n], y position and mask [n, passes] per vector.

    A last tile that has fewer vectors repeats one, or runs on by `step` bytes a vector, and does not store it.
    """
    missing = np.arange(1, -len(x_positions) % width + 1, dtype=np.int64)
    x_positions = np.concatenate([x_positions, x_positions[-1:] + missing * step])
    tiled_masks = _by_tiles(masks, width, fill=0).swapaxes(1, 2)
    every = (1 << lanes) - 1
    full = (tiled_masks.shape[1] == 1) & (tiled_masks[:, 0] == every).all(axis=1)
    return Tiles(
        width=width,
        x_positions=np.ascontiguousarray(x_positions.reshape(-1, width), np.int64),
        y_positions=np.ascontiguousarray(_by_tiles(y_positions, width).swapaxes(1, 2)).astype(np.int64),
        masks=np.ascontiguousarray(tiled_masks).astype(np.uint16),
        full=np.atleast_1d(full).astype(np.uint8),
        columns=columns,
    )


def whole_vectors(x_positions: NDArray[np.int64], y_positions: NDArray[np.int64], width: int, lanes: int) -> Tiles:
    """Tiles of vectors that are stored whole."""
    masks = np.full((len(x_positions), 1), (1 << lanes) - 1, np.uint16)
    return tiles_of_vectors(x_positions, y_positions[:, None], masks, width, lanes)


def row_major_tiles(
    columns: int, width: int, lanes: int, size: int, x_positions: NDArray[np.int64] | None = None
) -> Tiles:
    """Tiles over the columns of row-major y, elements of `size` bytes.

    x is row-major too and packed block by block, or has its vectors at `x_positions`.
    """
    start = np.arange(-(-columns // lanes), dtype=np.int64) * lanes
    masks = ((1 << np.clip(columns - start, 0, lanes)) - 1).astype(np.uint16)[:, None]
    position = start * size
    if x_positions is not None:
        return tiles_of_vectors(x_positions, position[:, None], masks, width, lanes)
    first = np.arange(0, columns, width * lanes)
    tile_columns = np.minimum(columns - first, width * lanes).astype(np.uint32)
    return tiles_of_vectors(position, position[:, None], masks, width, lanes, tile_columns)


def flat_vectors(
    starts: NDArray[np.int64], places: NDArray[np.int64], lanes: int, size: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint16]]:
    """Vectors that cover the ascending positions `starts` (in elements): where each reads, and where and which lanes
    it writes, in as many passes as it takes. Vectors lie in a row, but for those that would hold no position at all.

    Lane l of a vector at f holds position f + l. One masked store serves all lanes whose target lies l elements
    behind a common base: those of one image row, or all of them where rows are as far apart in both planes.
    """
    steps = (starts - starts[0]) // lanes  # from one valid position to the next vector that holds one
    x = starts[0] + np.arange(steps[-1] + 1, dtype=np.int64) * lanes
    x = x[np.isin(np.arange(len(x)), steps)]
    lane = np.arange(lanes)
    position = x[:, None] + lane
    index = np.minimum(np.searchsorted(starts, position), len(starts) - 1)
    valid = starts[index] == position
    base = np.where(valid, places[index] - lane * size, 0)
    # A lane opens a pass when its base differs from the last valid lane's; those in front of the first have its base.
    earliest = valid.argmax(axis=1)[:, None]
    base = np.where(lane < earliest, np.take_along_axis(base, earliest, 1), base)
    latest = np.maximum.accumulate(np.where(valid | (lane < earliest), lane, 0), axis=1)
    before = np.take_along_axis(base, np.concatenate([latest[:, :1], latest[:, :-1]], axis=1), 1)
    turn = np.cumsum(valid & (base != before), axis=1)
    passes = int(turn.max(initial=0)) + 1
    targets = np.zeros((len(x), passes), np.int64)
    masks = np.zeros((len(x), passes), np.uint16)
    for i in range(passes):
        here = valid & (turn == i)
        masks[:, i] = (here * (1 << lane)).sum(axis=1)
        some = np.take_along_axis(base, here.argmax(axis=1)[:, None], 1)[:, 0]
        targets[:, i] = np.where(here.any(axis=1), some, 0)
    return x, targets, masks
