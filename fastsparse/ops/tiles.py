"""Tables of tiles: where each of the T vectors of a tile is read and written."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from fastsparse.ops.target import Target


@dataclass(frozen=True, eq=False)
class Tiles:
    """Tiles of an SpMM: see the arguments of `fastsparse_kernels.spmm` for the arrays.

    `columns` is given when the input is row-major and packed block by block.
    """

    width: int  # T
    x_offsets: NDArray[np.int64]  # [tiles, T]
    y_offsets: NDArray[np.int64]  # [tiles, T]
    tile_pieces: NDArray[np.uint32]  # [tiles, 2]
    pieces: NDArray[np.int64]  # [pieces, 3]
    columns: NDArray[np.uint32] | None = None
    count: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "count", len(self.x_offsets))

    @property
    def whole(self) -> NDArray[np.bool_]:
        """Whether the tile's vectors are stored whole."""
        return self.tile_pieces[:, 0] == self.tile_pieces[:, 1]

    def contiguous(self, vector: int) -> bool:
        """Whether every tile reads contiguous vectors of `vector` bytes, and writes them where it is stored whole."""
        reads = self.columns is not None or bool((np.diff(self.x_offsets, axis=1) == vector).all())
        return reads and bool((np.diff(self.y_offsets[self.whole], axis=1) == vector).all())


def vectors_over(starts: NDArray[np.int64], lanes: int) -> NDArray[np.int64]:
    """First positions of vectors of `lanes` that cover the ascending positions `starts`.

    Vectors are contiguous, and those that would hold none of the positions are left out.
    """
    steps = np.unique((starts - starts[0]) // lanes)
    return starts[0] + steps * lanes


def tiles_over(
    starts: NDArray[np.int64], targets: NDArray[np.int64], width: int, target: Target, step: int = 0
) -> Tiles:
    """Tiles of `width` of the `vectors_over` starts: the number at starts[i] goes to targets[i], in bytes.

    step : as in `_tiles`
    """
    x = vectors_over(starts, target.lanes)
    vector = np.searchsorted(x, starts, side="right") - 1
    return _tiles(x * target.size, vector, starts - x[vector], targets, width, target, step)


def whole_vectors(
    x_offsets: NDArray[np.int64], y_offsets: NDArray[np.int64], width: int, target: Target, step: int = 0
) -> Tiles:
    """Tiles of vectors that are stored whole, each at its y offset. step : see `_filled`."""
    rest = np.arange(len(y_offsets) % width)
    last = y_offsets[len(y_offsets) - len(rest) :]
    pieces = np.stack([rest * target.vector, last, np.full_like(rest, target.lanes)], axis=1)
    x, y = _filled(x_offsets, width, step), _filled(y_offsets, width, 0)
    tile_pieces = np.zeros((len(x), 2), np.uint32)
    tile_pieces[-1:, 1] = len(rest)
    return Tiles(width, x, y, tile_pieces, pieces.astype(np.int64))


def first_tile(width: int, lanes: int, peel: int) -> int:
    """Columns of the first tile that align all others to vectors of y; `peel` is the alignment peel."""
    return (width - 1) * lanes + (peel or lanes)


def packed_tiles(columns: int, width: int, target: Target, peel: int = 0) -> Tiles:
    """Tiles over the columns of row-major x, packed block by block, and y.

    peel : see `first_tile`
    """
    first, counts = _split(columns, width, target.lanes, peel)
    tiles = _row_major(first * target.size, first, counts, width, target)
    return replace(tiles, columns=counts.astype(np.uint32))


def overlapping_tiles(columns: int, width: int, target: Target, peel: int = 0) -> Tiles:
    """Tiles over the columns of row-major x, read in place, and y, which have at least one tile's columns.

    The last tile begins early enough not to read past x, and stores the columns that the previous one has not.

    peel : see `first_tile`
    """
    first, counts = _split(columns, width, target.lanes, peel)
    reads = np.minimum(first, columns - width * target.lanes)
    return _row_major(reads * target.size, first, counts, width, target, (first - reads) * target.size)


def _split(columns: int, width: int, lanes: int, peel: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First column and number of columns of every tile."""
    first = np.arange(first_tile(width, lanes, peel), columns, width * lanes, dtype=np.int64)
    first = np.concatenate([np.zeros(1, np.int64), first])
    return first, np.diff(first, append=columns)


def _row_major(
    reads: NDArray[np.int64], first: NDArray[np.int64], counts: NDArray[np.int64], width: int, target: Target,
    skipped: NDArray[np.int64] | int = 0,
) -> Tiles:  # fmt: skip
    """Tiles that read from byte `reads[i]` and write counts[i] numbers from column first[i].

    skipped : bytes of the tile before those numbers
    """
    vectors = np.arange(width, dtype=np.int64) * target.vector
    partial = counts < width * target.lanes
    pieces = np.stack([np.zeros_like(first) + skipped, first * target.size, counts], axis=1)[partial]
    ends = np.cumsum(partial)
    return Tiles(
        width=width,
        x_offsets=np.add.outer(reads, vectors),
        y_offsets=np.add.outer(first * target.size, vectors),
        tile_pieces=np.stack([ends - partial, ends], axis=1).astype(np.uint32),
        pieces=pieces,
    )


def tiles_from_panels(columns: int, width: int, target: Target, x_offsets: NDArray[np.int64]) -> Tiles:
    """Tiles over the columns of row-major y; x has its vectors at `x_offsets`, in panels of whole tiles."""
    column = np.arange(columns, dtype=np.int64)
    vector, lane = np.divmod(column, target.lanes)
    return _tiles(x_offsets, vector, lane, column * target.size, width, target, target.vector)


def _filled(offsets: NDArray[np.int64], width: int, step: int) -> NDArray[np.int64]:
    """[vectors] -> [tiles, width]. An incomplete last tile repeats a vector, or goes on by `step` bytes."""
    missing = np.arange(1, -len(offsets) % width + 1, dtype=np.int64)
    return np.concatenate([offsets, offsets[-1:] + missing * step]).reshape(-1, width).astype(np.int64)


def _tiles(
    x_offsets: NDArray[np.int64], vector: NDArray[np.int64], lane: NDArray[np.int64], targets: NDArray[np.int64],
    width: int, target: Target, step: int = 0,
) -> Tiles:  # fmt: skip
    """Tiles over vectors at `x_offsets`; lane[i] of vector[i] goes to targets[i], and no other lane anywhere.

    vector, lane : ascending
    step : see `_filled`
    """
    read, lanes, size = _filled(x_offsets, width, step), target.lanes, target.size
    tile, at = vector // width, (vector % width * lanes + lane) * size
    breaks = np.ones(len(targets), bool)
    breaks[1:] = (np.diff(tile) != 0) | (np.diff(at) != size) | (np.diff(targets) != size)
    # A tile is stored whole when every lane has a target, and the targets of each vector are contiguous.
    astray = np.bincount(tile, breaks & (lane > 0), len(read))
    whole = (astray == 0) & (np.bincount(tile, minlength=len(read)) == width * lanes)
    written = np.zeros(read.size, np.int64)
    written[vector[lane == 0]] = targets[lane == 0]
    begin = np.flatnonzero(breaks)
    count = np.diff(begin, append=len(targets))
    kept = ~whole[tile[begin]]
    begin, count = begin[kept], count[kept]
    piece = np.searchsorted(tile[begin], np.arange(len(read) + 1))
    return Tiles(
        width=width,
        x_offsets=read,
        y_offsets=written.reshape(-1, width),
        tile_pieces=np.stack([piece[:-1], piece[1:]], axis=1).astype(np.uint32),
        pieces=np.stack([at[begin], targets[begin], count], axis=1),
    )
