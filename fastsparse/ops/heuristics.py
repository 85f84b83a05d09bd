"""Every tuned number and every choice, in one frozen record per target CPU.

A choice is a pure function of sizes: tile width, block size, layout, serial or parallel, prefetch, how a batch is cut.
Plans get the record with their `Target`; tests and experiments pass another record. All choices give the same bits
(contract R3), so a bad one costs time only. The measurements behind the numbers are in kernels/LADDER.md.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field, fields
from typing import Any

from fastsparse_kernels import spmm

Rates = tuple[float, ...]  # relative speed of tiles of 1, 2, ... vectors
Steps = tuple[tuple[float, float], ...]  # (most bytes, cycles), ascending

WIDEST_TILE = 8
_MESH_BYTES = 128 * 2**20  # last caches that are larger belong to all cores of a socket, and are far from each
ALIASED_BYTES = 4096  # addresses this far apart map to the same set of an L1 cache


@dataclass(frozen=True, eq=False)
class Heuristics:
    """Choices for a CPU with vectors of `vector_bytes` and caches of these sizes. Compared by identity.

    A rate is the speed of tiles of T vectors relative to the best T, counting useful work only. Wide tiles share a
    nonzero's loads among more multiply-adds and hide their latency; narrow tiles leave room for more rows in L1.
    """

    vector_bytes: int
    l1_bytes: int
    l3_bytes: int

    # --- serial or parallel
    parallel_flops: float = 200_000  # least work that pays for a parallel region
    slice_flops: float = 1_000_000_000  # work between two checks for signals: 0.2 s on a slow core
    tasks_per_worker: int = 3  # of SpMV: several, so that a slow core does not delay the others
    balance: float = 0.95  # share of the time that workers are busy, at least: tasks are cut finer below

    # --- SpMM: tile width
    tile_rate: Rates = (0.40, 0.78, 0.94, 0.97, 1.00, 0.99, 0.99, 0.94)
    window_tile_rate: Rates = (0.40, 0.72, 0.85, 0.94, 0.95, 0.96, 1.00, 0.99)  # windows overlap in L1
    row_crossing_rate: float = 0.93  # factor for tiles that cross from one image row to the next
    short_row_tile_rate: Rates = (0.40, 0.70, 0.84, 0.92, 0.97, 0.97, 0.97, 1.00)
    short_row: float = 8  # nonzeros per entry below which starting and ending it dominates
    in_place_tile_rate: Rates = (0.33, 0.55, 0.70, 0.79, 0.81, 0.83, 0.91, 1.00)  # X read in place
    dense_tile_rate: Rates = (0.45, 0.85, 1.00, 1.00, 1.00, 1.00)  # four rows of a dense W share loads of X
    interleaved_width: int = 1  # widest tile with four interleaved rows, which hide the latency of sums

    # --- SpMM: blocks, groups, stores
    l1_block_bytes: int = 32 * 1024  # panel of one column block; operator and output need the rest of L1
    l2_block_bytes: int = 256 * 1024  # larger blocks for very sparse rows: half of a small L2
    beyond_l1: float = 1.2  # least size, relative to an L1 block, at which a larger block pays
    beyond_adjacent: float = 1.4  # size of blocks of channels side by side, relative to L1
    one_adjacent: float = 1.8  # the same of a single block
    one_block: float = 1.5  # a single block may be this much larger than the usual size
    entry_nonzeros: float = 14  # nonzeros per entry that pay for starting and ending it
    partial_bytes: int = 512 * 1024  # partial sums of one row group: half of a small L2
    group_rows: int = 8  # smallest row group
    unpacked_planes: int = 8  # planes per worker from which on whole ones are unpacked: users' arrays in few turns
    owned_plane_bytes: int = 4096  # of a worker's part of a plane, from which on workers own positions
    expanded_bytes: int = 256 * 1024  # of channels between a product and a depthwise convolution: a part of L2
    near_bytes: int = 4 * 2**20  # largest array that stays in a near cache
    far_share: float = 3 / 8  # share of the L3 cache beyond which an array leaves it: see `leaves_cache`
    uses_in_place: float = 3.0  # nonzeros per row of X up to which packing does not pay
    uses_in_l1: float = 8.0  # the same where L1 holds the part of X that a tile reads
    uses_from_memory: float = 1.0  # the same where no cache holds a tile's part of X between two rows of W
    uses_aligned: float = 7.0  # the same for 64-byte vectors aligned to cache lines of X; unaligned ones read two lines
    many_vectors: int = 100  # vectors per row of Y from which an alignment peel is worth one more tile
    y_prefetch_bytes: int = 2**20  # Y of less is not prefetched: a near cache holds it
    y_prefetch_entries: int = 4  # prefetch distance of Y, at most `spmm.RESIDUAL_DISTANCE`
    quarter_stores: bool = True  # whether panels write quarters of vectors to a Y that no cache holds
    peel_vectors: int = 16  # of a row of Y with non-temporal stores: with fewer, a peel costs more than ordinary stores

    # --- SpMM by code that is written for a pattern
    code_vectors: int = 14  # fewest vectors of positions of a launch: code is read once for each tile
    code_segment_bytes: int = 24 * 1024  # of code that runs over a tile's vectors: a part of the instruction cache
    code_part_bytes: int = 8 * 1024  # of code of some columns, whose x and weights then stay in L1

    # --- streaming the rows of a CSR matrix: cycles are those of one vector of columns
    stream_margin: float = 0.85  # of the time through panels, at most: layers keep what they are tuned for
    stream_small_bytes: int = 2**20  # X of less, read in place anyway, is better read by rows sorted by length
    stream_near_bytes: int = 3 * 2**20  # X of less is not prefetched
    stream_cycles: Steps = (  # of a nonzero, by the bytes of X
        (2**15, 2.0), (2**17, 2.4), (2**18, 2.8), (2**20, 3.2), (2**22, 4.5), (2**24, 8.0), (math.inf, 16.0),
    )  # fmt: skip
    stream_far_cycles: float = 0.0  # more of a nonzero where a row of X is one vector, and no near cache holds X
    stream_row_cycles: float = 8.0
    panel_cycles: float = 1.6  # the same through panels: of a nonzero, whose X is in a near cache
    panel_entry_cycles: float = 14.0  # of a row's part of a column block
    panel_first_cycles: float = 6.0  # more of it where there is one vector
    pack_cycles: Steps = ((2**20, 2.0), (2**22, 4.0), (2**24, 8.0), (math.inf, 24.0))  # of a row of X, by its bytes
    stream_tile: int = 8  # vectors of the widest tile
    stream_chunk: int = 4096  # nonzeros and rows of a task, at most, except for long rows
    stream_least_chunk: int = 64
    stream_chunks_per_worker: int = 16
    stream_prefetch_bytes: int = 12 * 1024  # of X in flight, within these distances in nonzeros
    stream_prefetch_least: int = 24
    stream_prefetch_most: int = 48
    stream_copy_uses: float = 8  # nonzeros per row of X and thread that pay for a copy whose rows split no cache line
    stream_length_nonzeros: float = 16  # most nonzeros per row, on average, for rows by length
    stream_length_row_bytes: int = 32  # most bytes of a row of X and Y
    stream_uneven_rows: float = 0.25  # share of rows that are not as long as the one before, at least
    stream_least_columns: int = 16  # of X, at least, in estimates of work: reading W is work, too

    # --- SDDMM
    sddmm_block_bytes: int = 96 * 1024  # inputs of one block: part of L2, since long entries are worth more than L1
    sddmm_panel_bytes: int = 48 * 1024  # the same of panels of samples in 64-byte vectors
    sddmm_few_groups: int = 16  # of samples in panels, for which passes are short
    sddmm_pass_bytes: int = 512  # bytes of each input row per pass: enough to pay for the horizontal sum
    sddmm_part_positions: int = 96  # fewest of a part with gradients of its own
    sddmm_most_parts: int = 4

    # --- SpMV by loads
    spmv_prefetch_bytes: int = 4096  # distance: loads of x between those of W keep the CPU from prefetching W
    spmv_prefetch_nonzeros: int = 96  # distance of x, where no near cache holds it
    slice_nonzeros: float = 64  # most nonzeros per row, on average, for slices
    streamed_calls: int = 4  # of a matrix of short rows before slices are built
    slice_filling: float = 1.1  # items of slices per nonzero above which rows are sorted by length
    slice_room: float = 1.5  # most items of slices per nonzero

    # --- SpMV: cycles per nonzero and per row, by lookup in registers (lookup_*) and by loads (spmv_*)
    lookup_cycles: float = 0.29
    lookup_chunk_cycles: float = 0.95  # per row and chunk
    spmv_cycles: float = 0.76
    spmv_row_cycles: float = 8.5
    spmv_far_cycles: float = 1.4  # per nonzero where x does not fit L1
    spmv_farther_cycles: float = 2.2  # where it does not fit L2
    spmv_l2_bytes: int = 2**20  # x of less stays in L2 while W goes through
    spmv_memory_rate: float = 8  # bytes per cycle from memory
    lookup_nonzeros: int = 1_000  # fewest nonzeros: below, the call dominates
    lookup_filled: float = 0.5  # least average of nonzeros per row and chunk: each pair has an entry in the tables
    lookup_row_limit: int = 2048  # rows of a group: larger groups fill vectors no better
    lookup_sum_bytes: int = 256 * 1024  # sums of a group

    # --- batches
    few_vectors: int = 7  # vectors per image below which too many lanes stay empty
    chunk_share: float = 1 / 4  # share of the L3 cache for the workspace of one part of a batch
    linear_chunk_groups: int = 8  # fewest groups of VL samples in a part of a linear layer: every part reads W again

    # --- operations without products: work per element, in units of multiply-adds
    activation_flops: float = 4.0
    pool_flops: float = 4.0
    band_bytes: int = 256 * 1024  # vectors of a band of image rows, which should stay in the L2 cache
    bands_per_worker: int = 4
    row_flops: float = 8.0  # softmax, layer norm
    norm_flops: float = 6.0
    optimizer_flops: float = 8.0  # bound by memory
    pack_flops: float = 4.0
    gather_flops: float = 8.0
    gathered_lines: int = (
        8  # most vectors that lanes of a gathered one are permuted from; from more each is loaded alone
    )
    interpolation_flops: float = 16.0
    row_chunk: int = 8192  # elements per task of whole rows
    norm_block_bytes: int = 1024  # contiguous bytes of x per read of a batch norm task
    norm_blocks_per_worker: int = 3

    # --- engines: how a batch is cut, which layout
    few_positions: int = 4  # positions per image below which tiles run over groups of samples
    live_bytes: int = 1 << 20  # activations of two neighbouring layers in the first stage: about the L2 cache
    late_bytes: int = 1 << 20  # the same in the second stage
    task_flops: float = 10e9  # largest task of a worker, so that Ctrl-C is noticed
    most_groups: int = 16  # groups of samples per task
    step_cost: float = (
        1.1e6  # of a step that workers share where cores share no cache, in multiplications and additions
    )
    alone_flops: float = 1e6  # least work of a network that more than one worker can gain by
    certain_flops: float = 4e6  # of a step and worker, on average, from which on all workers are certain to gain
    shared_rate: float = 0.85  # relative speed of steps that workers share: a core reads what others wrote
    stacked_positions: int = 32  # of a spatial tile, below which layers may run on stacks of images
    stacked_vectors: float = 0.9  # most vectors per image of a stack, relative to one image
    group_positions: int = 7  # fewest of a spatial tile, where workers have groups of tiles of their own
    group_overhang: float = 1.15  # most positions that are computed then, relative to those of one group
    # Padded planes against spatial tiles, in multiplications and additions
    planes_cost: float = 1.6  # relative cost of a window, where vectors are unaligned
    shared_planes_cost: float = 1.1  # relative cost of planes of an image that workers share: they write them in turns
    planes_store_flops: float = 10  # per output: many vectors are stored in pieces
    phase_flops: float = 11  # per number of x that is packed for strides
    tiles_store_flops: float = 6  # per output
    gathered_flops: float = 28  # per number of a halo, of other tiles, or of an image that is gathered from tiles
    far_flops: float = 4  # per byte of what a layer reads and writes batch-blocked, where it leaves the caches

    # Which layouts a convolution may take; tests and tuners narrow it.
    layouts: tuple[str, ...] = field(default=("batch-blocked", "planes", "spatial tiles"))

    # ------------------------------------------------------------------------------------------ tile width

    def tile_width(self, vectors: int, rates: Rates | None = None, dense: bool = False) -> int:
        """Tile width T with the best useful rate over `vectors` vectors, counting idle vectors of the last tile.

        dense : whether the kernel runs W's rows as rows without zeros, at rates of their own
        """
        rates = self.dense_rates if dense else rates or self.tile_rate
        return max(range(1, len(rates) + 1), key=lambda count: _useful(rates, count, vectors))

    def useful_rate(self, vectors: int) -> float:
        """Useful rate of the best tiles over `vectors` vectors."""
        return _useful(self.tile_rate, self.tile_width(vectors), vectors)

    def window_rates(self, row: int) -> Rates:
        """Rates of tiles over windows in batch-blocked layout, for image rows of `row` positions.

        A tile within one image row reads contiguous windows and needs one address.
        """
        return tuple(
            rate if row % count == 0 else self.row_crossing_rate * rate
            for count, rate in enumerate(self.window_tile_rate, 1)
        )

    @property
    def dense_rates(self) -> Rates:
        """Rates of tiles over rows of a dense W, for widths that kernels have."""
        return self.dense_tile_rate[: spmm.widest_dense(self.vector_bytes)]

    def row_major_rates(self, density: float, columns: int, y_stays_near: bool) -> Rates:
        """Rates of tiles over row-major y, for W with `columns` columns.

        Wide tiles for short rows pay where y stays in a near cache (or is stored non-temporally), or where they save
        column blocks.
        """
        held = self.l1_block_bytes // (4 * self.vector_bytes)
        short = density * min(columns, held) < self.short_row
        return self.short_row_tile_rate if short and (y_stays_near or columns > held) else self.tile_rate

    def interleaves_rows(self, width: int) -> bool:
        """Whether four rows are interleaved on tiles of `width` vectors."""
        return 1 <= width <= self.interleaved_width

    # ------------------------------------------------------------------------------------------ blocks and groups

    def block_rows(self, row_bytes: int) -> int:
        """Input rows per column block, for rows of `row_bytes` bytes in L1."""
        return max(1, self.l1_block_bytes // max(1, row_bytes))

    def even_block_rows(self, row_bytes: int, columns: int, density: float) -> int:
        """Input rows per column block of equal size: what L1 holds, or more where W is very sparse.

        One block half as large again is better than two, since no partial sums are stored.
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
        """Channels per column block of a convolution, for windows of `window_bytes` bytes per channel.

        With 32 KB of L1 blocks of three quarters of it were best on Zen 1 (AVX2), and of its whole size on Zen 4
        (AVX-512): partial sums of a row, which go to L2, are larger. With 48 KB (Zen 5) blocks of its whole size were
        best on average where windows of neighbouring tiles overlap (two thirds of it is up to 5% faster for many
        channels, a third more for 64), and larger blocks where they do not, because x then comes from memory.
        """
        block = self.l1_bytes if self.vector_bytes == 64 else 3 * self.l1_bytes // 4
        if self.l1_bytes > 32 * 1024:
            block = self.l1_bytes if overlap else 2 * self.l1_block_bytes
        return max(1, block // max(1, window_bytes))

    def adjacent_block(self, channels: int, held: int) -> int:
        """Channels per column block of equal size, of a 1x1 convolution whose tiles read channels side by side.

        held : those that L1 holds. With vectors of 64 bytes larger blocks, which store fewer partial sums, are faster:
            what L1 lacks is fetched ahead.
        """
        if self.vector_bytes != 64 or not channels:
            return held
        size = channels if channels <= self.one_adjacent * held else int(self.beyond_adjacent * held)
        return -(-channels // -(-channels // size))

    def tiles_within_rows(self, positions: int, row: int) -> bool:
        """Whether tiles over `positions` positions in rows of `row` do not cross from one row to the next."""
        return row % self.tile_width(positions, self.window_rates(row)) == 0

    def owns_channels(self, plane_bytes: int, images: int, threads: int) -> bool:
        """Whether workers own channels of an image in padded planes, and not positions.

        They write planes from begin to end then. Where each writes a part of every small plane, cores that share no
        cache fetch each other's lines ahead in vain.
        """
        return threads > 1 and images % threads != 0 and plane_bytes < threads * self.owned_plane_bytes

    def row_groups(self, rows: int, tiles: int, threads: int, tile_bytes: int, by_rows: bool = False) -> int:
        """Number of row groups: several where tiles alone keep workers unevenly busy, or partial sums would leave L2.

        No more than that: every row group reads, or packs, its tiles' inputs again.

        by_rows : workers own rows, so that there is a group for each
        """
        for_workers = 1 if threads == 1 else _even_parts(tiles, threads, self.balance)
        for_partials = -(-rows * tile_bytes // self.partial_bytes)
        if by_rows:
            return max(1, min(-(-for_partials // threads) * threads, rows))
        return max(1, min(max(for_workers, for_partials), rows // self.group_rows or 1))

    def position_parts(self, positions: int, images: int, threads: int) -> int:
        """Parts of an image's positions for workers that pack and exchange what products read and write.

        A worker then has the positions that are its own in products, whose tasks go over images, tiles and row groups
        in this order: lines stay in its caches.
        """
        return 1 if threads == 1 or images % threads == 0 else max(1, min(threads, -(-positions // WIDEST_TILE)))

    def row_edges(self, rows: int, extent: int, images: int, threads: int) -> tuple[int, ...]:
        """Edges of the bands of rows of an image that workers share, each of which reads `extent - 1` rows more.

        They are packed twice, so bands have three times as many rows.
        """
        bands = min(self.position_parts(rows * WIDEST_TILE, images, threads), rows // max(1, 3 * (extent - 1)))
        return tuple(rows * band // bands for band in range(bands + 1)) if bands > 1 else (0, rows)

    def groups_tiles(self, positions: int, groups: int, alone: int) -> bool:
        """Whether an image that workers share is cut into so many groups of tiles with `positions` each.

        alone : positions of a tile where there is one group
        """
        return positions >= self.group_positions and groups * positions <= self.group_overhang * alone

    # ------------------------------------------------------------------------------------------ memory

    def leaves_cache(self, nbytes: int) -> bool:
        """Whether an array of `nbytes` bytes will have left the last cache when it is read again.

        Outputs of that size get non-temporal stores, which save reading a line before it is written. Smaller outputs do
        not: the next layer finds them in a cache, and both layers together would lose up to 8%.
        """
        return nbytes > self.far_share * self.l3_bytes

    def y_prefetch_distance(self, y_bytes: int) -> int:
        """Prefetch distance, in entries, of a Y of so many bytes that gets ordinary stores; 0: no prefetch."""
        return self.y_prefetch_entries if y_bytes > self.y_prefetch_bytes else 0

    def reads_in_place(self, nonzeros: int, columns: int, x_row_stride: int, aligned: bool) -> bool:
        """Whether W has too few nonzeros per column for packing row-major X to pay.

        aligned : X is in a cache, and tiles are aligned to vectors of X
        """
        uses = self.uses_in_place
        if x_row_stride % ALIASED_BYTES != 0:
            if self.vector_bytes == 64:
                uses = self.uses_aligned if aligned else self.uses_in_place
            elif columns * WIDEST_TILE * self.vector_bytes <= self.l1_block_bytes:
                uses = self.uses_in_l1
        if self.leaves_cache(columns * min(x_row_stride, WIDEST_TILE * self.vector_bytes)):
            uses = min(uses, self.uses_from_memory)
        return nonzeros <= uses * columns

    # ------------------------------------------------------------------------------------------ streaming

    def streams(self, rows: int, inputs: int, nonzeros: int, columns: int, size: int, x_row_stride: int = 0) -> bool:
        """Whether W (rows, inputs) @ X for so many columns takes less time by streaming W's rows than through panels.

        size : bytes of a number
        x_row_stride : bytes, of a row-major X, which may be read in place anyway; 0 of an X in panels
        """
        lanes = self.vector_bytes // size
        vectors, density = -(-columns // lanes), nonzeros / (rows * max(1, inputs))
        x_bytes = inputs * columns * size
        in_place = x_row_stride > 0 and self.reads_in_place(nonzeros, inputs, x_row_stride, aligned=False)
        if in_place and x_bytes <= self.stream_small_bytes and columns >= lanes:
            return False
        width = self.tile_width(vectors, self.row_major_rates(density, inputs, y_stays_near=True))
        tile_bytes = width * self.vector_bytes
        blocks = -(-inputs // self.even_block_rows(tile_bytes, inputs, density))
        groups = self.row_groups(rows, -(-vectors // width), 1, tile_bytes) if blocks > 1 else 1
        by_panels = self._panel_cycles(rows, nonzeros, blocks, inputs * groups, x_bytes, vectors)
        nonzero_cycles = _step(self.stream_cycles, x_bytes)
        if vectors == 1 and x_bytes > self.near_bytes:
            nonzero_cycles += self.stream_far_cycles
        by_rows = nonzeros * nonzero_cycles + rows * self.stream_row_cycles
        return by_rows < self.stream_margin * by_panels

    def _panel_cycles(self, rows: int, nonzeros: int, blocks: int, packed: int, x_bytes: int, vectors: int) -> float:
        """Cycles through panels in so many column blocks, for which so many rows of X are packed, or read, in all.

        A row has an entry in each block with some of its nonzeros: of n scattered over b, b (1 - (1 - 1/b)^n).
        """
        length = nonzeros / max(1, rows)
        entries = rows * max(1.0, blocks * (1 - (1 - 1 / max(1, blocks)) ** length))
        entry_cycles = self.panel_entry_cycles + (self.panel_first_cycles if vectors == 1 else 0.0)
        return nonzeros * self.panel_cycles + entries * entry_cycles + packed * _step(self.pack_cycles, x_bytes)

    def stream_prefetch_distance(self, x_bytes: int, row_bytes: int, tile_bytes: int, reach: float) -> int:
        """Prefetch distance of rows of X in nonzeros; 0 where a near cache holds X, or the part of it that is in use.

        reach : rows of X that two neighbouring rows of W span, on average. In grids and bands they are few, and X is
            read in order, so for rows of less than a line hardware prefetch does better.
        """
        in_order = row_bytes < 64 and reach * row_bytes <= self.stream_small_bytes
        if x_bytes <= self._near_x_bytes() or in_order:
            return 0
        bounds = self.stream_prefetch_least, self.stream_prefetch_most
        return max(bounds[0], min(bounds[1], self.stream_prefetch_bytes // tile_bytes))

    def _near_x_bytes(self) -> int:
        """The largest X whose rows are better not prefetched.

        CPUs with 32 KB of L1 (Zen 4) gain by it where X lies in L3. Those with 48 KB (Zen 5) wait for more loads out of
        order: they lose up to 40% there, and gain as much where X lies in memory.
        """
        waits = self.l1_bytes > 32 * 1024
        return max(self.stream_near_bytes, 3 * self.l3_bytes // 8) if waits else self.stream_near_bytes

    def stream_by_length(self, rows: int, nonzeros: int, row_bytes: int) -> bool:
        """Whether rows are so short that it pays to compute them by length, so that their ends are predicted."""
        return row_bytes <= self.stream_length_row_bytes and nonzeros <= self.stream_length_nonzeros * rows

    def stream_chunk_work(self, work: int, threads: int) -> int:
        """Nonzeros and rows of one task, when there are so many in all."""
        even = work // (self.stream_chunks_per_worker * threads)
        return max(self.stream_least_chunk, min(self.stream_chunk, even))

    # ------------------------------------------------------------------------------------------ SDDMM

    def sddmm_positions(self, groups: int = 0) -> int:
        """Positions of one SDDMM pass, over panels of so many groups of samples.

        With 32 KB of L1, half as long passes over few samples take 5 to 10% less time, since twice as many rows of x
        stay there, and over many samples as much more, since every pass adds to the gradients.
        """
        half = self.vector_bytes == 64 and self.l1_bytes <= 32 * 1024 and 0 < groups <= self.sddmm_few_groups
        return max(1, self.sddmm_pass_bytes // self.vector_bytes // (2 if half else 1))

    def sddmm_parts(self, positions: int, runs: int, gradient_bytes: int) -> int:
        """Parts of the positions of a convolution with gradients of their own, which are added up in the end.

        A worker then reads what it packed, and leaves it to nobody else: where cores share no cache, lines that both
        have read take as long to be written again as to be read. The number depends on sizes alone, as bits do.
        """
        most = min(self.sddmm_most_parts, positions // self.sddmm_part_positions, runs)
        most = min(most, self.near_bytes // max(1, gradient_bytes))
        return 1 << max(0, most.bit_length() - 1)

    def sddmm_window_positions(self) -> int:
        """Positions of one pass over windows of x, which positions share; more of them on 64-byte vectors."""
        return self.sddmm_positions() * (4 if self.vector_bytes == 64 else 1)

    def sddmm_run_positions(self, x_bytes: int) -> int:
        """Positions of one pass where windows form runs of four contiguous vectors; 0 where such runs do not pay.

        Reads from memory favour long rows; four vectors of 32 bytes cover too few cache lines.
        """
        if self.vector_bytes < 64:
            return 16 if x_bytes <= self.near_bytes else 0
        return 32 if self.leaves_cache(x_bytes) else 16

    def sddmm_row_part(self, row: int, positions: int) -> int:
        """Positions of a run: an image row in equal parts of at most twice `positions`."""
        return next((row // n for n in range(1, row) if row % n == 0 and row // n <= 2 * positions), row)

    def sddmm_block_rows(self, row_bytes: int, panels: bool = False) -> int:
        """Input rows (or channels) of one SDDMM block, for rows of `row_bytes` bytes, in panels of samples or not.

        With 48 KB of L1, blocks of its size were best, by 5%; with 32 KB, entries would have too few nonzeros, except
        for short passes over panels.
        """
        held = self.l1_bytes if self.l1_bytes > 32 * 1024 else self.sddmm_block_bytes
        if panels and self.vector_bytes == 64:
            short = 2 * row_bytes == self.sddmm_pass_bytes
            held = min(held, self.l1_bytes if short else self.sddmm_panel_bytes)
        return max(1, held // max(1, row_bytes))

    # ------------------------------------------------------------------------------------------ SpMV

    def spmv_prefetch_distance(self, nbytes: int, x_bytes: int | None = None) -> int:
        """Prefetch distance of columns and values, of so many bytes in all; 0 where a near cache holds them.

        x_bytes : of x, where its numbers are loaded one by one. An x that fits L2 would be driven out of it by a W that
            is prefetched, so one that L3 holds is not.
        """
        near = self.near_bytes
        if x_bytes is not None and x_bytes <= self.spmv_l2_bytes:
            near = max(near, self.l3_bytes // 2)
        return self.spmv_prefetch_bytes if nbytes > near else 0

    def spmv_x_distance(self, x_bytes: int) -> int:
        """Prefetch distance of x in nonzeros; 0 where it does not pay."""
        return self.spmv_prefetch_nonzeros if x_bytes > self._near_x_bytes() else 0

    def spmv_by_slices(self, rows: int, nonzeros: int) -> bool:
        """Whether rows of W are so short that SpMV takes one nonzero of many rows at once: nothing is reduced then."""
        return self.slice_nonzeros * rows >= nonzeros < 2**28

    def spmv_by_lookup(self, rows: int, inputs: int, nonzeros: int, chunk: int, slice_rows: int) -> bool:
        """Whether SpMV by lookup, in chunks of `chunk` columns and slices of `slice_rows`, is estimated to be faster
        than by loads."""
        chunks = max(1, -(-inputs // chunk))
        filled = nonzeros / max(1, rows * chunks)
        # A slice takes as many steps as its longest row. Rows are sorted within their group, so that few slices have
        # rows of several lengths: among `slice_rows` rows of Poisson-distributed lengths the longest exceeds the mean
        # by about the square root of 2 * mean * log(slice_rows).
        padded = -(-rows // slice_rows) * slice_rows
        sorted_rows = max(slice_rows, min(padded, self.lookup_rows(chunks) // slice_rows * slice_rows))
        excess = math.sqrt(2 * filled * math.log(slice_rows)) * slice_rows / sorted_rows
        slots = padded * chunks * (filled + excess)
        by_lookup = self.lookup_cycles * slots + self.lookup_chunk_cycles * padded * chunks
        by_lookup += self._far_cycles(5 * slots)  # a column of 8 bits and a value
        cycles = self.spmv_cycles if inputs <= 10_000 else self.spmv_far_cycles
        cycles = self.spmv_farther_cycles if 4 * inputs > self.spmv_l2_bytes else cycles
        nbytes = nonzeros * (6 if inputs <= 2**16 else 8)  # a column of 16 or 32 bits and a value
        by_loads = cycles * nonzeros + self.spmv_row_cycles * rows + self._far_cycles(nbytes)
        return self.lookup_nonzeros <= nonzeros < 2**28 and filled > self.lookup_filled and by_lookup < by_loads

    def _far_cycles(self, nbytes: float) -> float:
        """What SpMV takes longer because its operator of so many bytes comes from memory."""
        return max(0.0, nbytes - self.l3_bytes / 2) / self.spmv_memory_rate

    def lookup_rows(self, chunks: int) -> int:
        """Rows of a lookup group; each row has one sum per chunk."""
        return max(64, min(self.lookup_row_limit, self.lookup_sum_bytes // (4 * chunks)))

    # ------------------------------------------------------------------------------------------ batches and layouts

    def prefers_batch_blocks(self, samples: int, lanes: int) -> bool:
        """Whether a batch fills vectors of samples well enough; aligned loads are about 1.4 times as fast."""
        return "batch-blocked" in self.layouts and (
            samples >= 0.7 * lanes * -(-samples // lanes) or self.layouts == ("batch-blocked",)
        )

    def fills_vectors(self, positions: int, lanes: int) -> bool:
        """Whether a 1x1 layer reads each image in place, without packing."""
        return "planes" in self.layouts and positions >= self.few_vectors * lanes

    def chunk_groups(self, groups: int, group_bytes: int, multiple: int = 1) -> int:
        """Groups of samples per part of a batch; the last part may have fewer.

        The workspace of a part stays in the L3 cache between packing, multiplying and unpacking: up to a quarter less
        time for batches of images.
        """
        most = max(1, int(self.chunk_share * self.l3_bytes) // max(1, group_bytes) // multiple) * multiple
        parts = max(1, -(-groups // most))
        return max(1, -(-groups // (parts * multiple)) * multiple)


def _even_parts(tasks: int, threads: int, balance: float) -> int:
    """Parts of a task, as few as keep workers evenly busy, or up to four times their number the most even."""

    def busy(parts: int) -> float:
        return tasks * parts / (-(-tasks * parts // threads) * threads)

    choices = range(1, 4 * threads + 1)
    return next((parts for parts in choices if busy(parts) >= balance), max(choices, key=busy))


def _useful(rates: Rates, width: int, vectors: int) -> float:
    """Rate of tiles of `width` vectors over `vectors` vectors, counting idle vectors of the last tile."""
    return rates[width - 1] * vectors / (-(-vectors // width) * width)


def described(h: Heuristics) -> list[tuple[str, str]]:
    """Names and values of a record's fields."""
    return [(field.name, _text(getattr(h, field.name))) for field in fields(h)]


def _text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _step(steps: Steps, nbytes: int) -> float:
    return next(cycles for most, cycles in steps if nbytes <= most)


@functools.lru_cache(maxsize=64)
def heuristics_for(vector_bytes: int, l1_bytes: int = 32 * 1024, l3_bytes: int = 8 * 2**20) -> Heuristics:
    """The record for a CPU: AVX-512 (64 bytes), AVX2 (32 bytes), NEON and SSE (16 bytes)."""
    changes: dict[str, Any] = {}
    if vector_bytes < 64:  # narrow vectors leave more room in L1, so wider tiles are best
        changes = {"tile_rate": (0.40, 0.77, 0.85, 0.94, 0.98, 0.98, 1.00, 0.99), "planes_cost": 1.3}
    if l3_bytes > _MESH_BYTES:  # single rows of X come late, but rows in order do not, and parts of lines leave late
        changes |= {
            "quarter_stores": False,
            "peel_vectors": 32,
            "stream_far_cycles": 4.0,
            "pack_cycles": (*Heuristics.pack_cycles[:2], (2**24, 6.0), (math.inf, 10.0)),
        }
    return Heuristics(vector_bytes, l1_bytes, l3_bytes, **changes)
