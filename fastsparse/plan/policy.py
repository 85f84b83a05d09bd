"""Choices, as pure functions of sizes: which kernel, tile width, block size and number of row groups.

The figures behind the numbers are in kernels/LADDER.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from fastsparse_kernels.sparse_operator import ROW_UNROLL

L1_BLOCK_BYTES = 32 * 1024  # panel of one column block; the rest of L1 is the operator's and the output's
L2_BLOCK_BYTES = 256 * 1024  # the same where rows would have few nonzeros in less: half of a small L2
BEYOND_L1 = 1.2  # times as much as L1 holds, at least, is worth leaving it
ONE_BLOCK = 1.5  # times its size a block may be, if that makes it the only one
ENTRY_NONZEROS = 14  # of a row in a block, which pay for starting and ending it there
PARTIAL_BYTES = 512 * 1024  # partial sums of one row group: half of a small L2
SDDMM_BLOCK_BYTES = 96 * 1024  # inputs of one SDDMM block: part of L2, long entries are worth more than L1
SDDMM_PASS_BYTES = 512  # of each input row per pass: enough to pay for the reduction over lanes
NEAR_BYTES = 4 * 2**20  # arrays of this size or less stay in a cache that is near enough
LINE_SETS_BYTES = 4096  # addresses this far apart fall on the same L1 set
FEW_VECTORS = 7  # images of fewer vectors leave too much of them empty
FAR_SHARE = 3 / 8  # of the L3 cache: see `is_far`
CHUNK_SHARE = 1 / 4  # of the L3 cache: workspace of one pass over part of a batch
LINEAR_CHUNK_GROUPS = 8  # groups of VL samples of a linear layer in one part, at least: W is read for each
TASKS_PER_WORKER = 3  # enough that a slow core does not hold up the others
PARALLEL_FLOPS = 200_000  # below this a parallel region costs more than it brings
SLICE_FLOPS = 1_000_000_000  # longest stretch without a look at signals: 0.2 s on a slow core

# Useful rate of a tile of T vectors, relative to the best: a nonzero's loads and what it takes to find them are shared
# by T multiply-adds, few accumulators wait on their latency, and a wide tile's panel leaves room for fewer rows in L1.
# Narrow vectors leave more. Windows of a convolution overlap, so there a wider tile costs little more of L1.
TILE_RATE = {1: 0.40, 2: 0.78, 3: 0.94, 4: 0.97, 5: 1.00, 6: 0.99, 7: 0.99, 8: 0.94}
NARROW_TILE_RATE = {1: 0.40, 2: 0.77, 3: 0.85, 4: 0.94, 5: 0.98, 6: 0.98, 7: 1.00, 8: 0.99}  # less than 64 bytes
WINDOW_TILE_RATE = {1: 0.40, 2: 0.72, 3: 0.85, 4: 0.94, 5: 0.95, 6: 0.96, 7: 1.00, 8: 0.99}
ACROSS_ROWS = 0.93  # of that, for tiles that go from one row of an image to the next
# The same for rows of fewer nonzeros in a block than SHORT_ROW: starting and ending one is most of the work.
SHORT_ROW_TILE_RATE = {1: 0.40, 2: 0.70, 3: 0.84, 4: 0.92, 5: 0.97, 6: 0.97, 7: 0.97, 8: 1.00}
SHORT_ROW = 8
# The same for X that is read where it lies, each row by few nonzeros: the longer the part of a row that a tile takes,
# the fewer of its cache lines are new ones.
IN_PLACE_TILE_RATE = {1: 0.33, 2: 0.55, 3: 0.70, 4: 0.79, 5: 0.81, 6: 0.83, 7: 0.91, 8: 1.00}
USES_IN_PLACE = 3.0  # nonzeros for each row of X, up to which packing it costs more than it brings
USES_IN_L1 = 8.0  # the same where L1 holds a tile's part of X
USES_ALIGNED = 7.0  # the same on 64-byte vectors that begin where lines of X do; elsewhere each is two lines
MANY_VECTORS = 100  # of a row of Y: where one tile more is little against beginning where vectors do
WIDEST_TILE = max(TILE_RATE)
# Widest tiles, in vectors, on which four rows are interleaved: one row's multiply-adds wait on their latency there.
INTERLEAVED_WIDTH = 1
# Rates of tiles over dense rows: four times as many accumulators hide the latency of few vectors.
ALIKE_TILE_RATE = {1: 0.45, 2: 0.85, 3: 1.00, 4: 1.00, 5: 1.00, 6: 1.00}


# SpMV by lookup in registers: cycles of a nonzero, vectors being as full as they are as a rule, and of a row and chunk.
LOOKUP_CYCLES, LOOKUP_CHUNK_CYCLES = 0.29, 0.95
# The same of a nonzero and of a row in the other SpMV, and of a nonzero where x does not fit L1.
SPMV_CYCLES, SPMV_ROW_CYCLES, SPMV_FAR_CYCLES = 0.76, 8.5, 1.4
LOOKUP_NONZEROS = 1_000  # with fewer, the call is most of the work
LOOKUP_FILLED = 0.5  # nonzeros of a row and chunk, on average: each has a place in tables
LOOKUP_ROWS = 2048  # of a group: longer ones fill vectors no better
LOOKUP_SUM_BYTES = 256 * 1024  # of a group


def window_rates(row: int) -> dict[int, float]:
    """Rates of tiles over windows in lanes layout, of images whose rows have so many positions.

    Where tiles do not go from one row to the next, the windows of each lie in a row, and one address serves all.
    """
    return {count: rate if row % count == 0 else ACROSS_ROWS * rate for count, rate in WINDOW_TILE_RATE.items()}


def alike_rates(vector_bytes: int) -> dict[int, float]:
    """Rates of tiles over rows alike, of those widths whose sums, vectors of X and a weight fit the registers."""
    registers = 16 if vector_bytes == 32 else 32  # AVX2 has half as many as AVX-512 and NEON
    widest = (registers - 1) // (ROW_UNROLL + 1)
    return {count: rate for count, rate in ALIKE_TILE_RATE.items() if count <= widest}


def tile_rates(vector_bytes: int) -> dict[int, float]:
    """Rates of tiles of vectors of so many bytes."""
    return TILE_RATE if vector_bytes == 64 else NARROW_TILE_RATE


def row_major_rates(density: float, columns: int, y_stays_near: bool, vector_bytes: int) -> dict[int, float]:
    """Rates of tiles over row-major y, for W of so many columns.

    Where y leaves the near caches, if not by stores past all of them, storing it in wide tiles costs more than it
    brings, unless they spare rows many blocks.
    """
    held = L1_BLOCK_BYTES // (4 * vector_bytes)
    short = density * min(columns, held) < SHORT_ROW
    return SHORT_ROW_TILE_RATE if short and (y_stays_near or columns > held) else tile_rates(vector_bytes)


def reads_in_place(nonzeros: int, columns: int, x_row_stride: int, vector_bytes: int, aligned: bool) -> bool:
    """Whether W of so many columns has so few nonzeros that row-major X is not worth packing.

    aligned : X is in a cache, and tiles begin where vectors of X do
    """
    uses = USES_IN_PLACE
    if x_row_stride % LINE_SETS_BYTES != 0:
        if vector_bytes == 64:
            uses = USES_ALIGNED if aligned else USES_IN_PLACE
        elif columns * WIDEST_TILE * vector_bytes <= L1_BLOCK_BYTES:
            uses = USES_IN_L1
    return nonzeros <= uses * columns


def tile_width(vectors: int, rates: Mapping[int, float] = TILE_RATE) -> int:
    """T for a line of `vectors` vectors: the best useful rate, idle vectors of the last tile counted."""
    return max(rates, key=lambda count: rates[count] * vectors / (-(-vectors // count) * count))


def takes_turns(width: int) -> bool:
    """Whether four rows are interleaved on tiles of `width` vectors."""
    return 1 <= width <= INTERLEAVED_WIDTH


def block_rows(row_bytes: int) -> int:
    """Input rows per column block when each brings `row_bytes` bytes to L1."""
    return max(1, L1_BLOCK_BYTES // max(1, row_bytes))


def even_block_rows(row_bytes: int, columns: int, density: float) -> int:
    """The same for W of so many columns, in blocks of one size: what L1 holds, or more where W is very sparse.

    One block of half as much again is better than two: no sum is put aside.
    """
    held = block_rows(row_bytes)
    if columns <= held:
        return held
    wanted = min(L2_BLOCK_BYTES // max(1, row_bytes), math.ceil(ENTRY_NONZEROS / max(density, 1e-9)))
    size = wanted if wanted > BEYOND_L1 * held else held
    return columns if columns <= ONE_BLOCK * size else -(-columns // -(-columns // size))


def is_far(nbytes: int, l3_bytes: int) -> bool:
    """Whether an array of so many bytes is in no cache, or on its way out of the last one, when it is read again.

    Large outputs are stored past the caches then: a line that is not there need not be read before it is written. Of
    less, which the next layer would find in a cache, the two layers together gain nothing, and lose up to 8%.
    """
    return nbytes > FAR_SHARE * l3_bytes


def block_channels(window_bytes: int, l1_bytes: int, overlap: bool = True) -> int:
    """Channels per column block of a convolution when each one's window has `window_bytes` bytes.

    With 32 KB of L1 cache (Zen 1) three quarters of it were best; with 48 KB (Zen 5) all of it on the whole, where the
    windows of neighbouring tiles overlap (two thirds are up to 5% faster for many channels, a third more for 64), and
    more where they do not, for x comes from memory then.
    """
    block = 3 * l1_bytes // 4
    if l1_bytes > 32 * 1024:
        block = l1_bytes if overlap else 2 * L1_BLOCK_BYTES
    return max(1, block // max(1, window_bytes))


def sddmm_positions(vector_bytes: int) -> int:
    """Positions of one SDDMM pass."""
    return max(1, SDDMM_PASS_BYTES // vector_bytes)


def sddmm_window_positions(vector_bytes: int) -> int:
    """The same where x is read in windows, which positions share: as many bytes were too few on 64-byte vectors."""
    return sddmm_positions(vector_bytes) * (4 if vector_bytes == 64 else 1)


def sddmm_run_positions(x_bytes: int, l3_bytes: int, vector_bytes: int) -> int:
    """The same where windows can be read in runs of four, which end sums after two; 0 where they had better not be.

    What comes from memory likes long rows, and four vectors of 32 bytes are too few of its lines.
    """
    if vector_bytes < 64:
        return 16 if x_bytes <= NEAR_BYTES else 0
    return 32 if is_far(x_bytes, l3_bytes) else 16


def sddmm_row_part(row: int, positions: int) -> int:
    """Positions of an image row that one run takes: the row in equal parts of at most twice `positions`."""
    return next((row // n for n in range(1, row) if row % n == 0 and row // n <= 2 * positions), row)


def sddmm_block_rows(row_bytes: int, l1_bytes: int) -> int:
    """Input rows (or channels) of one SDDMM block when each brings `row_bytes`.

    With 48 KB of L1 cache what it holds was best, by 5%; with 32 KB that would be too few nonzeros of a row.
    """
    return max(1, (l1_bytes if l1_bytes > 32 * 1024 else SDDMM_BLOCK_BYTES) // max(1, row_bytes))


def lookup_fits(rows: int, inputs: int, nonzeros: int, chunk: int) -> bool:
    """Whether W is one for SpMV by lookup in chunks of so many columns: not where most chunks of a row are empty."""
    by_lookup = LOOKUP_CYCLES * nonzeros + LOOKUP_CHUNK_CYCLES * rows * -(-inputs // chunk)
    by_loads = (SPMV_CYCLES if inputs <= 10_000 else SPMV_FAR_CYCLES) * nonzeros + SPMV_ROW_CYCLES * rows
    chunks_filled = nonzeros / max(1, rows * -(-inputs // chunk))
    return LOOKUP_NONZEROS <= nonzeros < 2**28 and chunks_filled > LOOKUP_FILLED and by_lookup < by_loads


def lookup_rows(chunks: int) -> int:
    """Rows of a group, of which one sum is kept for every chunk."""
    return max(64, min(LOOKUP_ROWS, LOOKUP_SUM_BYTES // (4 * chunks)))


def row_groups(rows: int, tiles: int, workers: int, tile_bytes: int) -> int:
    """Row groups: more than one when tiles alone do not feed the workers, or partial sums would leave L2."""
    for_workers = 1 if workers == 1 or tiles >= TASKS_PER_WORKER * workers else -(-TASKS_PER_WORKER * workers // tiles)
    for_partials = -(-rows * tile_bytes // PARTIAL_BYTES)
    return max(1, min(max(for_workers, for_partials), rows // 8 or 1))


def prefers_lanes(samples: int, lanes: int) -> bool:
    """Whether a batch fills vectors of samples well enough: aligned loads are worth about 1.4 unaligned ones."""
    return samples >= 0.7 * lanes * -(-samples // lanes)


def fills_vectors(positions: int, lanes: int) -> bool:
    """Whether a 1x1 layer takes each image as it lies: no windows, nothing to pack, half the time of lanes layout."""
    return positions >= FEW_VECTORS * lanes


def chunk_groups(groups: int, group_bytes: int, l3_bytes: int, multiple: int = 1) -> int:
    """Groups of samples in one part of a batch, whose workspace stays in the L3 cache; the last part may have fewer.

    What is packed, multiplied and unpacked is still there then: up to a quarter less time for batches of images.
    """
    most = max(1, int(CHUNK_SHARE * l3_bytes) // max(1, group_bytes) // multiple) * multiple
    parts = max(1, -(-groups // most))
    return max(1, -(-groups // (parts * multiple)) * multiple)


def off_the_sets(stride_bytes: int, vector_bytes: int) -> int:
    """A stride that is no multiple of 4096 bytes, which would map every plane onto the same cache sets."""
    return stride_bytes + vector_bytes if stride_bytes % LINE_SETS_BYTES == 0 else stride_bytes
