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
    y_positions: NDArray[np.int64]  # [tiles, T]
    tile_pieces: NDArray[np.uint32]  # [tiles, 2]
    pieces: NDArray[np.int64]  # [pieces, 3]
    columns: NDArray[np.uint32] | None = None

    @property
    def count(self) -> int:
        return len(self.x_positions)

    @property
    def whole(self) -> NDArray[np.bool_]:
        """Whether a tile's vectors are stored as they are."""
        return self.tile_pieces[:, 0] == self.tile_pieces[:, 1]

    def in_a_row(self, vector: int) -> bool:
        """Whether every tile reads, and those that are stored whole write, vectors of `vector` bytes in a row."""
        reads = self.columns is not None or bool((np.diff(self.x_positions, axis=1) == vector).all())
        return reads and bool((np.diff(self.y_positions[self.whole], axis=1) == vector).all())


@dataclass(frozen=True, eq=False)
class SpmmPlan:
    """An operator and the tiles it runs over. `prepared` is where `launch` keeps what all calls share.

    x_row_stride : bytes between rows of X that are packed
    past_caches : whole tiles are stored past the caches; their vectors begin at multiples of their bytes
    """

    operator: Operator
    tiles: Tiles
    x_row_stride: int = 0
    past_caches: bool = False
    prepared: dict[str, Any] = field(default_factory=dict, repr=False)


def vectors_over(starts: NDArray[np.int64], lanes: int) -> NDArray[np.int64]:
    """Where vectors of `lanes` positions begin that cover the ascending positions `starts`.

    They lie in a row, but for those that would hold none of the positions.
    """
    steps = np.unique((starts - starts[0]) // lanes)
    return starts[0] + steps * lanes


def tiles_over(
    starts: NDArray[np.int64], places: NDArray[np.int64], width: int, lanes: int, size: int, step: int = 0
) -> Tiles:
    """Tiles of `width` of the `vectors_over` starts, positions in numbers: that at starts[i] goes to places[i] bytes.

    step : as in `_tiles`
    """
    x = vectors_over(starts, lanes)
    vector = np.searchsorted(x, starts, side="right") - 1
    return _tiles(x * size, vector, starts - x[vector], places, width, lanes, size, step)


def whole_vectors(
    x_positions: NDArray[np.int64], y_positions: NDArray[np.int64], width: int, lanes: int, size: int, step: int = 0
) -> Tiles:
    """Tiles of vectors that are stored whole, each where its y position says. step : of x, see `_filled`."""
    rest = np.arange(len(y_positions) % width)
    last = y_positions[len(y_positions) - len(rest) :]
    pieces = np.stack([rest * lanes * size, last, np.full_like(rest, lanes)], axis=1)
    x, y = _filled(x_positions, width, step), _filled(y_positions, width, 0)
    tile_pieces = np.zeros((len(x), 2), np.uint32)
    tile_pieces[-1:, 1] = len(rest)
    return Tiles(width, x, y, tile_pieces, pieces.astype(np.int64))


def first_tile(width: int, lanes: int, lead: int) -> int:
    """Columns of the first tile, such that all others begin where vectors of y do: `lead` columns from the first on."""
    return (width - 1) * lanes + (lead or lanes)


def packed_tiles(columns: int, width: int, lanes: int, size: int, lead: int = 0) -> Tiles:
    """Tiles over the columns of row-major x, packed block by block, and y, elements of `size` bytes.

    lead : see `first_tile`
    """
    first, counts = _split(columns, width, lanes, lead)
    tiles = _row_major(first * size, first, counts, width, lanes, size)
    return replace(tiles, columns=counts.astype(np.uint32))


def overlapping_tiles(columns: int, width: int, lanes: int, size: int, lead: int = 0) -> Tiles:
    """Tiles over the columns of row-major x, read in place, and y; at least a tile's columns.

    The last tile begins early enough not to read behind x, and stores what the one before has not.

    lead : see `first_tile`
    """
    first, counts = _split(columns, width, lanes, lead)
    reads = np.minimum(first, columns - width * lanes)
    return _row_major(reads * size, first, counts, width, lanes, size, (first - reads) * size)


def _split(columns: int, width: int, lanes: int, lead: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First column of every tile, and how many it has."""
    first = np.arange(first_tile(width, lanes, lead), columns, width * lanes, dtype=np.int64)
    first = np.concatenate([np.zeros(1, np.int64), first])
    return first, np.diff(first, append=columns)


def _row_major(
    reads: NDArray[np.int64],
    first: NDArray[np.int64],
    counts: NDArray[np.int64],
    width: int,
    lanes: int,
    size: int,
    skipped: NDArray[np.int64] | int = 0,
) -> Tiles:
    """Tiles that read from `reads` on, in bytes, and write counts[i] numbers from column first[i] on.

    skipped : bytes of the tile in front of those numbers
    """
    vectors = np.arange(width, dtype=np.int64) * lanes * size
    partial = counts < width * lanes
    pieces = np.stack([np.zeros_like(first) + skipped, first * size, counts], axis=1)[partial]
    ends = np.cumsum(partial)
    return Tiles(
        width=width,
        x_positions=np.add.outer(reads, vectors),
        y_positions=np.add.outer(first * size, vectors),
        tile_pieces=np.stack([ends - partial, ends], axis=1).astype(np.uint32),
        pieces=pieces,
    )


def tiles_from_panels(columns: int, width: int, lanes: int, size: int, x_positions: NDArray[np.int64]) -> Tiles:
    """Tiles over the columns of row-major y; x has its vectors at `x_positions`, in panels of whole tiles."""
    column = np.arange(columns, dtype=np.int64)
    vector, lane = np.divmod(column, lanes)
    return _tiles(x_positions, vector, lane, column * size, width, lanes, size, lanes * size)


def _filled(positions: NDArray[np.int64], width: int, step: int) -> NDArray[np.int64]:
    """[vectors] -> [tiles, width]. A last tile that has fewer repeats one, or runs on by `step` bytes a vector."""
    missing = np.arange(1, -len(positions) % width + 1, dtype=np.int64)
    return np.concatenate([positions, positions[-1:] + missing * step]).reshape(-1, width).astype(np.int64)


def _tiles(
    x_positions: NDArray[np.int64],
    vector: NDArray[np.int64],
    lane: NDArray[np.int64],
    places: NDArray[np.int64],
    width: int,
    lanes: int,
    size: int,
    step: int = 0,
) -> Tiles:
    """Tiles over vectors at `x_positions`; lane[i] of vector[i] goes to places[i], and no other lane anywhere.

    vector, lane : ascending
    step : see `_filled`
    """
    read = _filled(x_positions, width, step)
    tile, at = vector // width, (vector % width * lanes + lane) * size
    breaks = np.ones(len(places), bool)
    breaks[1:] = (np.diff(tile) != 0) | (np.diff(at) != size) | (np.diff(places) != size)
    # A tile is stored as it is when all lanes go somewhere, and within a vector each behind the one before.
    astray = np.bincount(tile, breaks & (lane > 0), len(read))
    whole = (astray == 0) & (np.bincount(tile, minlength=len(read)) == width * lanes)
    written = np.zeros(read.size, np.int64)
    written[vector[lane == 0]] = places[lane == 0]
    begin = np.flatnonzero(breaks)
    count = np.diff(begin, append=len(places))
    kept = ~whole[tile[begin]]
    begin, count = begin[kept], count[kept]
    piece = np.searchsorted(tile[begin], np.arange(len(read) + 1))
    return Tiles(
        width=width,
        x_positions=read,
        y_positions=written.reshape(-1, width),
        tile_pieces=np.stack([piece[:-1], piece[1:]], axis=1).astype(np.uint32),
        pieces=np.stack([at[begin], places[begin], count], axis=1),
    )
