"""Every tuned number and every choice, in one frozen record per target CPU.

A choice is a pure function of sizes: tile width, block size, layout, serial or parallel, prefetch, how a batch is cut.
Plans get the record with their `Target`; whoever wants other choices passes another record. All choices give the same
bits (contract R3), so a wrong one costs time alone. The measurements behind the numbers are in kernels/LADDER.md.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field

from fastsparse_kernels.sparse_operator import ROW_UNROLL

Rates = tuple[float, ...]  # of tiles of 1, 2, ... vectors

WIDEST_TILE = 8
ALIASED_BYTES = 4096  # addresses this far apart map to the same set of an L1 cache


@dataclass(frozen=True, eq=False)
class Heuristics:
    """Choices for a CPU with vectors of `vector_bytes` and caches of these sizes. Compared by identity.

    Rates are those of tiles of T vectors, useful work only, relative to the best: a nonzero's loads are shared by T
    multiply-adds, few accumulators wait on their latency, and a wide tile's panel leaves room for fewer rows in L1.
    """

    vector_bytes: int
    l1_bytes: int
    l3_bytes: int

    # --- serial or parallel
    parallel_flops: float = 200_000  # below this a parallel region costs more than it brings
    slice_flops: float = 1_000_000_000  # longest stretch without a look at signals: 0.2 s on a slow core
    tasks_per_worker: int = 3  # enough that a slow core does not hold up the others

    # --- SpMM: tile width
    tile_rate: Rates = (0.40, 0.78, 0.94, 0.97, 1.00, 0.99, 0.99, 0.94)
    window_tile_rate: Rates = (0.40, 0.72, 0.85, 0.94, 0.95, 0.96, 1.00, 0.99)  # windows overlap in L1
    row_crossing_rate: float = 0.93  # of that, for tiles that go from one row of an image to the next
    short_row_tile_rate: Rates = (0.40, 0.70, 0.84, 0.92, 0.97, 0.97, 0.97, 1.00)
    short_row: float = 8  # nonzeros of a row in a block below which starting and ending it is most of the work
    in_place_tile_rate: Rates = (0.33, 0.55, 0.70, 0.79, 0.81, 0.83, 0.91, 1.00)  # X read where it lies
    dense_tile_rate: Rates = (0.45, 0.85, 1.00, 1.00, 1.00, 1.00)  # four rows of a dense W share loads of X
    interleaved_width: int = 1  # widest tiles on which four rows are interleaved: one row's sums wait on their latency

    # --- SpMM: blocks, groups, stores
    l1_block_bytes: int = 32 * 1024  # panel of one column block; the rest of L1 is the operator's and the output's
    l2_block_bytes: int = 256 * 1024  # the same where rows would have few nonzeros in less: half of a small L2
    beyond_l1: float = 1.2  # times as much as L1 holds, at least, is worth leaving it
    one_block: float = 1.5  # times its size a block may be, if that makes it the only one
    entry_nonzeros: float = 14  # of a row in a block, which pay for starting and ending it there
    partial_bytes: int = 512 * 1024  # partial sums of one row group: half of a small L2
    group_rows: int = 8  # of a row group, at least
    near_bytes: int = 4 * 2**20  # arrays of this size or less stay in a cache that is near enough
    far_share: float = 3 / 8  # of the L3 cache: see `leaves_cache`
    rows_share: float = 3 / 8  # the same where rows of X are not contiguous
    uses_in_place: float = 3.0  # nonzeros for each row of X, up to which packing it costs more than it brings
    uses_in_l1: float = 8.0  # the same where L1 holds a tile's part of X
    uses_aligned: float = 7.0  # the same on 64-byte vectors aligned to the lines of X; elsewhere each is two lines
    many_vectors: int = 100  # of a row of Y: where one tile more is little against an alignment peel

    # --- SDDMM
    sddmm_block_bytes: int = 96 * 1024  # inputs of one block: part of L2, long entries are worth more than L1
    sddmm_pass_bytes: int = 512  # of each input row per pass: enough to pay for the horizontal sum

    # --- SpMV by lookup in registers: cycles of a nonzero, of a row and chunk; of the other form
    lookup_cycles: float = 0.29
    lookup_chunk_cycles: float = 0.95
    spmv_cycles: float = 0.76
    spmv_row_cycles: float = 8.5
    spmv_far_cycles: float = 1.4  # of a nonzero where x does not fit L1
    lookup_nonzeros: int = 1_000  # with fewer, the call is most of the work
    lookup_filled: float = 0.5  # nonzeros of a row and chunk, on average: each has an index in tables
    lookup_row_limit: int = 2048  # of a group: longer ones fill vectors no better
    lookup_sum_bytes: int = 256 * 1024  # of a group

    # --- batches
    few_vectors: int = 7  # images of fewer vectors leave too much of them empty
    chunk_share: float = 1 / 4  # of the L3 cache: workspace of one pass over part of a batch
    linear_chunk_groups: int = 8  # groups of VL samples of a linear layer in one part, at least: W is read for each

    # --- operations without products: work per element, in units of multiply-adds
    activation_flops: float = 4.0
    pool_flops: float = 4.0
    band_bytes: int = 256 * 1024  # vectors of a band of image rows should stay in the L2 cache
    bands_per_worker: int = 4
    row_flops: float = 8.0  # softmax, layer norm
    norm_flops: float = 6.0
    optimizer_flops: float = 8.0  # memory, mostly
    pack_flops: float = 4.0
    gather_flops: float = 8.0
    pack_chunk: int = 512  # positions that one packing task moves
    row_chunk: int = 8192  # numbers of the rows of one task
    norm_block_bytes: int = 1024  # of x that a task of batch norm reads contiguously
    norm_blocks_per_worker: int = 3

    # --- engines: how a batch is cut, which layout
    few_positions: int = 4  # images smaller than this make their tiles over groups of samples
    live_bytes: int = 1 << 20  # what two neighbouring layers of the first stage may hold: about the L2 cache
    late_bytes: int = 1 << 20  # the same of the second stage
    task_flops: float = 10e9  # of a worker's task at most, so that Ctrl-C is noticed
    most_groups: int = 16  # of a task
    step_cost: float = 2e5  # of a barrier of all workers, in multiplications and additions (2 us)
    shared_rate: float = 0.85  # of shared steps: a core reads what others wrote
    # Padded planes against spatial tiles, in multiplications and additions
    planes_cost: float = 1.3  # of a window's, whose vectors are unaligned
    planes_store_flops: float = 10  # of a number that is stored: many vectors are stored in pieces
    phase_flops: float = 11  # of a number of x that is packed for strides
    tiles_store_flops: float = 6
    gathered_flops: float = 28  # of a number of a halo, of other tiles, or of an image that is gathered from tiles

    # Which layouts a convolution may take; tests and tuners narrow it.
    layouts: tuple[str, ...] = field(default=("batch-blocked", "planes", "spatial tiles"))

    # ------------------------------------------------------------------------------------------ tile width

    def tile_width(self, vectors: int, rates: Rates | None = None) -> int:
        """T for a line of `vectors` vectors: the best useful rate, idle vectors of the last tile counted."""
        rates = rates or self.tile_rate
        return max(range(1, len(rates) + 1), key=lambda count: _useful(rates, count, vectors))

    def useful_rate(self, vectors: int) -> float:
        """Useful rate of tiles over a line of `vectors` vectors."""
        return _useful(self.tile_rate, self.tile_width(vectors), vectors)

    def window_rates(self, row: int) -> Rates:
        """Rates of tiles over windows in batch-blocked layout, of images whose rows have so many positions.

        Where tiles do not go from one row to the next, the windows of each are contiguous, and one address serves all.
        """
        return tuple(
            rate if row % count == 0 else self.row_crossing_rate * rate
            for count, rate in enumerate(self.window_tile_rate, 1)
        )

    @property
    def dense_rates(self) -> Rates:
        """Rates of tiles over rows of a dense W: of the widths whose sums, vectors of X and a weight fit registers."""
        registers = 16 if self.vector_bytes == 32 else 32  # AVX2 has half as many as AVX-512 and NEON
        widest = (registers - 1) // (ROW_UNROLL + 1)
        return self.dense_tile_rate[:widest]

    def row_major_rates(self, density: float, columns: int, y_stays_near: bool) -> Rates:
        """Rates of tiles over row-major y, for W of so many columns.

        Where y leaves the near caches, if not by non-temporal stores, storing it in wide tiles costs more than it
        brings, unless they spare rows many blocks.
        """
        held = self.l1_block_bytes // (4 * self.vector_bytes)
        short = density * min(columns, held) < self.short_row
        return self.short_row_tile_rate if short and (y_stays_near or columns > held) else self.tile_rate

    def interleaves_rows(self, width: int) -> bool:
        """Whether four rows are interleaved on tiles of `width` vectors."""
        return 1 <= width <= self.interleaved_width

    # ------------------------------------------------------------------------------------------ blocks and groups

    def block_rows(self, row_bytes: int) -> int:
        """Input rows per column block when each brings `row_bytes` bytes to L1."""
        return max(1, self.l1_block_bytes // max(1, row_bytes))

    def even_block_rows(self, row_bytes: int, columns: int, density: float) -> int:
        """The same for W of so many columns, in blocks of one size: what L1 holds, or more where W is very sparse.

        One block of half as much again is better than two: no sum is put aside.
        """
        held = self.block_rows(row_bytes)
        if columns <= held:
            return held
        wanted = min(
            self.l2_block_bytes // max(1, row_bytes), math.ceil(self.entry_nonzeros / max(density, 1e-9))
        )  # fmt: skip
        size = wanted if wanted > self.beyond_l1 * held else held
        return columns if columns <= self.one_block * size else -(-columns // -(-columns // size))

    def block_channels(self, window_bytes: int, overlap: bool = True) -> int:
        """Channels per column block of a convolution when each one's window has `window_bytes` bytes.

        With 32 KB of L1 cache (Zen 1) three quarters of it were best; with 48 KB (Zen 5) all of it on the whole, where
        the windows of neighbouring tiles overlap (two thirds are up to 5% faster for many channels, a third more for
        64), and more where they do not, for x comes from memory then.
        """
        block = 3 * self.l1_bytes // 4
        if self.l1_bytes > 32 * 1024:
            block = self.l1_bytes if overlap else 2 * self.l1_block_bytes
        return max(1, block // max(1, window_bytes))

    def row_groups(self, rows: int, tiles: int, threads: int, tile_bytes: int) -> int:
        """Row groups: more than one when tiles alone do not feed the workers, or partial sums would leave L2."""
        enough = self.tasks_per_worker * threads
        for_workers = 1 if threads == 1 or tiles >= enough else -(-enough // tiles)
        for_partials = -(-rows * tile_bytes // self.partial_bytes)
        return max(1, min(max(for_workers, for_partials), rows // self.group_rows or 1))

    # ------------------------------------------------------------------------------------------ memory

    def leaves_cache(self, nbytes: int) -> bool:
        """Whether an array of so many bytes is in no cache, or on its way out of the last one, when it is read again.

        Large outputs get non-temporal stores then: a line that is not there need not be read before it is written. Of
        less, which the next layer would find in a cache, the two layers together gain nothing, and lose up to 8%.
        """
        return nbytes > self.far_share * self.l3_bytes

    def reads_in_place(self, nonzeros: int, columns: int, x_row_stride: int, aligned: bool) -> bool:
        """Whether W of so many columns has so few nonzeros that row-major X is not worth packing.

        aligned : X is in a cache, and tiles are aligned to vectors of X
        """
        uses = self.uses_in_place
        if x_row_stride % ALIASED_BYTES != 0:
            if self.vector_bytes == 64:
                uses = self.uses_aligned if aligned else self.uses_in_place
            elif columns * WIDEST_TILE * self.vector_bytes <= self.l1_block_bytes:
                uses = self.uses_in_l1
        return nonzeros <= uses * columns

    # ------------------------------------------------------------------------------------------ SDDMM

    def sddmm_positions(self) -> int:
        """Positions of one SDDMM pass."""
        return max(1, self.sddmm_pass_bytes // self.vector_bytes)

    def sddmm_window_positions(self) -> int:
        """The same where x is read in windows, which positions share: as many bytes were too few on 64-byte vectors."""
        return self.sddmm_positions() * (4 if self.vector_bytes == 64 else 1)

    def sddmm_run_positions(self, x_bytes: int) -> int:
        """The same where windows can be read in runs of four, which end sums after two; 0 where they had better not be.

        What comes from memory likes long rows, and four vectors of 32 bytes are too few of its lines.
        """
        if self.vector_bytes < 64:
            return 16 if x_bytes <= self.near_bytes else 0
        return 32 if self.leaves_cache(x_bytes) else 16

    def sddmm_row_part(self, row: int, positions: int) -> int:
        """Positions of an image row that one run takes: the row in equal parts of at most twice `positions`."""
        return next((row // n for n in range(1, row) if row % n == 0 and row // n <= 2 * positions), row)

    def sddmm_block_rows(self, row_bytes: int) -> int:
        """Input rows (or channels) of one SDDMM block when each brings `row_bytes`.

        With 48 KB of L1 cache what it holds was best, by 5%; with 32 KB that would be too few nonzeros of a row.
        """
        held = self.l1_bytes if self.l1_bytes > 32 * 1024 else self.sddmm_block_bytes
        return max(1, held // max(1, row_bytes))

    # ------------------------------------------------------------------------------------------ SpMV

    def spmv_by_lookup(self, rows: int, inputs: int, nonzeros: int, chunk: int) -> bool:
        """Whether SpMV looks x up in chunks of so many columns: not where most chunks of a row are empty."""
        by_lookup = self.lookup_cycles * nonzeros + self.lookup_chunk_cycles * rows * -(-inputs // chunk)
        cycles = self.spmv_cycles if inputs <= 10_000 else self.spmv_far_cycles
        by_loads = cycles * nonzeros + self.spmv_row_cycles * rows
        filled = nonzeros / max(1, rows * -(-inputs // chunk))
        return self.lookup_nonzeros <= nonzeros < 2**28 and filled > self.lookup_filled and by_lookup < by_loads

    def lookup_rows(self, chunks: int) -> int:
        """Rows of a group, of which one sum is kept for every chunk."""
        return max(64, min(self.lookup_row_limit, self.lookup_sum_bytes // (4 * chunks)))

    # ------------------------------------------------------------------------------------------ batches and layouts

    def prefers_batch_blocks(self, samples: int, lanes: int) -> bool:
        """Whether a batch fills vectors of samples well enough: aligned loads are worth about 1.4 unaligned ones."""
        return "batch-blocked" in self.layouts and (
            samples >= 0.7 * lanes * -(-samples // lanes) or self.layouts == ("batch-blocked",)
        )

    def fills_vectors(self, positions: int, lanes: int) -> bool:
        """Whether a 1x1 layer takes each image as it lies: no windows, nothing to pack, half the time of packing."""
        return "planes" in self.layouts and positions >= self.few_vectors * lanes

    def chunk_groups(self, groups: int, group_bytes: int, multiple: int = 1) -> int:
        """Groups of samples in one part of a batch, whose workspace stays in the L3 cache; the last may have fewer.

        What is packed, multiplied and unpacked is still there then: up to a quarter less time for batches of images.
        """
        most = max(1, int(self.chunk_share * self.l3_bytes) // max(1, group_bytes) // multiple) * multiple
        parts = max(1, -(-groups // most))
        return max(1, -(-groups // (parts * multiple)) * multiple)


def _useful(rates: Rates, width: int, vectors: int) -> float:
    """Rate of tiles of so many vectors over a line, idle vectors of the last tile counted."""
    return rates[width - 1] * vectors / (-(-vectors // width) * width)


def unaliased_stride(stride_bytes: int, vector_bytes: int) -> int:
    """A stride that is no multiple of 4096 bytes, which would map every plane onto the same cache sets."""
    return stride_bytes + vector_bytes if stride_bytes % ALIASED_BYTES == 0 else stride_bytes


@functools.lru_cache(maxsize=64)
def heuristics_for(vector_bytes: int, l1_bytes: int = 32 * 1024, l3_bytes: int = 8 * 2**20) -> Heuristics:
    """The record for a CPU: AVX-512 (64 bytes), AVX2 (32 bytes), NEON and SSE (16 bytes)."""
    if vector_bytes == 64:
        return Heuristics(64, l1_bytes, l3_bytes)
    # Narrow vectors leave more room in L1, so wider tiles are best.
    narrow = (0.40, 0.77, 0.85, 0.94, 0.98, 0.98, 1.00, 0.99)
    return Heuristics(vector_bytes, l1_bytes, l3_bytes, tile_rate=narrow)
