"""Plans of pooling: windows per axis as tables, and bands of rows that fit the cache."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Sizes = tuple[int, int]
Pads = tuple[tuple[int, int], tuple[int, int]]
Table = NDArray[np.int64]

# A band's vectors should stay in the L2 cache; more tasks than workers keep all of them busy to the end.
BAND_BYTES = 256 * 1024
TASKS_PER_WORKER = 4


@dataclass(frozen=True, eq=False)
class Windows:
    """The windows of a pooling layer, int64 [outputs, 3] per axis: first input, end, weight (see the kernels)."""

    spatial: Sizes
    rows: Table
    columns: Table

    @property
    def out_spatial(self) -> Sizes:
        return len(self.rows), len(self.columns)


@dataclass(frozen=True, eq=False)
class Bands:
    """int64 [bands, 4]: input rows from, to; output rows from, to. With the largest counts of rows."""

    table: Table
    input_rows: int
    output_rows: int


def _axis(size: int, kernel: int, stride: int, padding: tuple[int, int], count_padding: bool) -> Table:
    outputs = max(0, (size + sum(padding) - kernel) // stride + 1)
    corner = np.arange(outputs, dtype=np.int64) * stride - padding[0]
    first, end = np.clip(corner, 0, size), np.clip(corner + kernel, 0, size)
    weight = np.full_like(first, kernel) if count_padding else end - first
    return np.ascontiguousarray(np.stack([first, end, weight], 1))


@functools.lru_cache(maxsize=64)
def windows(spatial: Sizes, kernel: Sizes, stride: Sizes, padding: Pads, *, count_padding: bool = True) -> Windows:
    """Windows of fixed size; their weights count the padding or leave it out."""
    rows, columns = (_axis(n, k, s, p, count_padding) for n, k, s, p in zip(spatial, kernel, stride, padding))
    return Windows(spatial, rows, columns)


@functools.lru_cache(maxsize=64)
def adaptive_windows(spatial: Sizes, output: Sizes) -> Windows:
    """Windows that split the image as evenly as possible: i goes from floor(i n / m) to ceil((i + 1) n / m)."""

    def axis(size: int, outputs: int) -> Table:
        i = np.arange(outputs, dtype=np.int64)
        first, end = i * size // outputs, -(-(i + 1) * size // outputs)
        return np.ascontiguousarray(np.stack([first, end, end - first], 1))

    return Windows(spatial, axis(spatial[0], output[0]), axis(spatial[1], output[1]))


def _band_count(rows: int, row_bytes: int, tasks: int, workers: int) -> int:
    """How many bands `rows` are cut into: small enough for the cache, enough for all workers."""
    fitting = -(-rows * row_bytes // BAND_BYTES)
    wanted = -(-TASKS_PER_WORKER * workers // max(1, tasks)) if workers > 1 else 1
    return max(1, min(rows, max(fitting, wanted)))


@functools.lru_cache(maxsize=64)
def forward_bands(w: Windows, vector: int, groups: int, workers: int) -> Bands:
    """Bands of output rows, for `groups` tasks per band on vectors of `vector` bytes."""
    outputs = len(w.rows)
    row_bytes = (w.spatial[0] * w.spatial[1] // max(1, outputs) + len(w.columns)) * vector
    count = _band_count(outputs, row_bytes, groups, workers)
    cuts = np.arange(count + 1, dtype=np.int64) * outputs // count
    if not outputs:
        return _bands(np.zeros((count, 4), np.int64))
    table = np.stack([w.rows[cuts[:-1], 0], w.rows[cuts[1:] - 1, 1], cuts[:-1], cuts[1:]], 1)
    return _bands(table)


@functools.lru_cache(maxsize=64)
def backward_bands(w: Windows, vector: int, groups: int, workers: int) -> Bands:
    """Bands of input rows, with the output rows whose windows meet them."""
    height = w.spatial[0]
    row_bytes = (w.spatial[1] + 2 * len(w.rows) * len(w.columns) // max(1, height)) * vector
    count = _band_count(height, row_bytes, groups, workers)
    cuts = np.arange(count + 1, dtype=np.int64) * height // count
    first = np.searchsorted(w.rows[:, 1], cuts[:-1], side="right")
    last = np.maximum(first, np.searchsorted(w.rows[:, 0], cuts[1:], side="left"))
    return _bands(np.stack([cuts[:-1], cuts[1:], first, last], 1))


def _bands(table: Table) -> Bands:
    table = np.ascontiguousarray(table, np.int64)
    return Bands(table, int((table[:, 1] - table[:, 0]).max()), int((table[:, 3] - table[:, 2]).max()))
