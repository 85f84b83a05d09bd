"""Layouts: user arrays <-> what the SpMM and SDDMM kernels read and write.

batch-blocked  (batch / VL, channels, positions, VL), oneDNN's NCHW16n: VL samples innermost, so every load is one
        aligned vector and a tile may have any positions: strides, dilation and padding cost nothing. Packing transposes
        in registers.
panels  (batch / (T * VL), features, T, VL): batch-blocked features in which the T vectors of a tile are contiguous.
spatial tiles  (batch, channels, positions, VL): one image cut into VL tiles of equal shape, one per lane, each with a
        halo of its neighbours' first positions. Vectors are aligned and stored whole, at a batch of one.
padded NCHW  (batch, channels, phases, plane): zero-padded planes of one image, for small batches; a vector is VL
        consecutive positions of a plane, whose image rows are joined by the padding between them. With stride s a plane
        is split into s * s phases, each a stride-1 image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import simd
from .compiler import (
    compile_kernel,
    compiled_once,
    inlined_function,
    kernel_arguments,
    kernel_function,
    vector_bytes,
)

WIDE = 8  # vectors of a row that are unpacked by way of a buffer
NEAR_ROWS_BYTES = 32 * 1024  # largest distance of rows that are unpacked so with ordinary stores
WIDE_SETS_BYTES = 2048  # rows a multiple of this apart map to the same cache sets, which cannot hold as many lines

BATCH_BLOCKED = kernel_arguments(
    # tasks are (group of VL samples, chunk, channel), the channel innermost: a worker has the same positions of all
    # channels, which are what it has in convolutions
    "channels",
    "chunks",  # chunks per channel plane
    "chunk_positions",  # int64 [chunks, 3], a chunk's first position, the one behind its last, the first one's offset
    "samples",
    "user",  # address of user[sample, channel, position], positions contiguous
    "user_sample_stride",
    "user_channel_stride",
    "nontemporal",  # 1 where the user's array is larger than what caches keep
    "blocked",  # address of blocked[group, channel, position]
    "blocked_group_stride",
    "blocked_channel_stride",
    "panel_groups",  # groups `blocked_group_stride` apart; the next so many begin `panel_stride` after the first
    "panel_stride",
    "offsets",  # int64 and VL - 1 more, bytes from the plane to the positions of chunks; 0: contiguous positions
    "padding_offsets",  # int64, ascending offsets of the plane's padding, to be zeroed (packing only)
    "padding_starts",  # int64 [chunks + 1], the first of these that is zeroed with every chunk
)
_blocked_arguments = simd.arguments_view(BATCH_BLOCKED)

PADDED_NCHW = kernel_arguments(
    # tasks are (image, channel)
    "channels",
    "rows",  # image rows per channel plane, over all leading axes
    "row_length",
    "phases",  # phases along a row that the kernel window reads
    "step",  # columns between neighbours of one phase: the stride
    "user",  # address of user[image, channel, row, column], rows contiguous
    "user_image_stride",
    "user_channel_stride",
    "source_offsets",  # int64 [rows], bytes from the user's channel to each row; 0: contiguous rows
    "planes",
    "plane_image_stride",
    "plane_channel_stride",
    "channel_vectors",  # vectors to zero per channel
    "firsts",  # int64 [phases], first column of every phase along a row
    "row_offsets",  # int64 [rows, phases], bytes from the channel to the first number of a row's phase; negative: none
)
_padded_arguments = simd.arguments_view(PADDED_NCHW)


GATHER = kernel_arguments(
    # tasks are (image, chunk, channel), the channel innermost, as in packing
    "channels",
    "chunks",  # chunks per channel
    "chunk_starts",  # int64 [chunks + 1], first vector of every chunk
    "vectors",  # vectors to write per channel
    "x",
    "x_image_stride",
    "x_channel_stride",
    "y",  # may be x, when no vector reads what another one writes
    "y_image_stride",
    "y_channel_stride",
    "source_offsets",  # int32 [vectors, VL], bytes from x's channel to each lane's number; negative: `fill`
    # int32, bytes from x's channel to the vectors that together have all lanes of a vector to write that are not
    # `fill`: those from line_starts[i], int32 [vectors + 1], on; one negative number where they are too many
    "lines",
    "line_starts",
    "target_offsets",  # int32 [vectors], bytes from y's channel
    "fill",  # address of a number
    "last_lanes",  # lanes of the last vector that are written
)
_gather_arguments = simd.arguments_view(GATHER)
_CHANNELS_AHEAD = 4  # of a gather that are prefetched: their lines are far from each other


# ---------------------------------------------------------------- copies of few numbers


def make_copy_numbers(bits: int, lanes: int) -> Callable[..., None]:
    """copy(source, target, count) of `count` > 0 numbers of `bits` bits, by vectors of at most `lanes` numbers.

    Whole vectors are copied, the last of which overlaps the one before; fewer numbers than a vector has are copied by
    shorter vectors in the same way. Before AVX-512, masked loads and stores take several times as long.
    """
    size = bits // 8

    @kernel_function
    def copy(source, target, count):  # type: ignore[no-untyped-def]
        like = simd.zeros(1, lanes, bits)
        if count < lanes:
            simd.copy_few(like, source, target, count)
            return
        last, at = (count - lanes) * size, 0
        while at < last:  # `range` with a step would divide to count its iterations
            simd.store(simd.load(like, source + at), target + at)
            at += lanes * size
        simd.store(simd.load(like, source + last), target + last)

    return copy


# ---------------------------------------------------------------- kernels


@compiled_once
def batch_blocked_kernel(pack: int, bits: int, lanes: int) -> Any:
    """Packing user -> batch-blocked (`pack` 1) or unpacking batch-blocked -> user (0)."""
    size = bits // 8
    vector = lanes * size

    @inlined_function
    def position_addresses(a, plane, offsets, position):  # type: ignore[no-untyped-def]
        if a.offsets == 0:
            return simd.strided_addresses(lanes, plane + position * vector, vector)
        return simd.gather_addresses(lanes, plane, offsets + position * 8)

    @inlined_function
    def pack_square(a, user, plane, offsets, position, samples, columns):  # type: ignore[no-untyped-def]
        like = simd.zeros(lanes, lanes, bits)
        source = user + position * size
        addresses = position_addresses(a, plane, offsets, position)
        if samples == lanes and columns >= lanes:
            square = simd.load_at(like, simd.strided_addresses(lanes, source, a.user_sample_stride), 0)
            simd.store_at(simd.transpose(square), addresses, 0)
        else:
            square = simd.load_rows(like, source, a.user_sample_stride, samples, columns)
            simd.store_first_at(simd.transpose(square), addresses, columns)

    @inlined_function
    def unpack_square(a, user, plane, offsets, position, samples, columns):  # type: ignore[no-untyped-def]
        like = simd.zeros(lanes, lanes, bits)
        target = user + position * size
        addresses = position_addresses(a, plane, offsets, position)
        if samples == lanes and columns >= lanes:
            square = simd.transpose(simd.load_at(like, addresses, 0))
            simd.store_at(square, simd.strided_addresses(lanes, target, a.user_sample_stride), 0)
        else:
            square = simd.transpose(simd.load_first_at(like, addresses, columns))
            simd.store_rows(square, target, a.user_sample_stride, samples, columns)

    square = pack_square if pack else unpack_square
    wide, wide_row = WIDE * lanes, (WIDE + 1) * vector  # rows of the buffer map to different cache sets
    buffer_bytes = lanes * wide_row

    @kernel_function
    def unpack_wide(a, user, plane, offsets, position, buffer, nontemporal):  # type: ignore[no-untyped-def]
        """WIDE squares of full rows, by way of a buffer, so that rows are stored in whole cache lines."""
        like, row = simd.zeros(lanes, lanes, bits), simd.zeros(WIDE, lanes, bits)
        for i in range(WIDE):
            addresses = position_addresses(a, plane, offsets, position + i * lanes)
            rows = simd.strided_addresses(lanes, buffer + i * vector, wide_row)
            simd.store_at(simd.transpose(simd.load_at(like, addresses, 0)), rows, 0)
        for sample in range(lanes):
            target = user + position * size + sample * a.user_sample_stride
            if nontemporal:
                simd.store_nontemporal(simd.load(row, buffer + sample * wide_row), target)
            else:
                simd.store(simd.load(row, buffer + sample * wide_row), target)

    def run(arguments, slot):  # type: ignore[no-untyped-def]
        a = _blocked_arguments(arguments)
        zero = simd.zeros(1, lanes, bits)
        buffer = simd.stack_buffer(buffer_bytes)
        strides = a.user_sample_stride | a.user_channel_stride
        aligned = (a.user | strides) % vector == 0
        near = a.user_sample_stride % WIDE_SETS_BYTES == 0 and a.user_sample_stride <= NEAR_ROWS_BYTES
        by_buffer = pack == 0 and (aligned if a.nontemporal else near)
        for task in simd.tasks(arguments):
            channel, part = task % a.channels, task // a.channels
            chunk, group = part % a.chunks, part // a.chunks
            sample = group * lanes
            samples = min(lanes, a.samples - sample)
            if samples <= 0:
                sample = 0  # of a group without samples nothing is read, at addresses that are there
            user = a.user + sample * a.user_sample_stride + channel * a.user_channel_stride
            panel, inside = group // a.panel_groups, group % a.panel_groups
            plane = a.blocked + channel * a.blocked_channel_stride
            plane += panel * a.panel_stride + inside * a.blocked_group_stride
            bounds = a.chunk_positions + chunk * 24
            begin, end = simd.load_i64(bounds), simd.load_i64(bounds + 8)
            offsets = a.offsets + (simd.load_i64(bounds + 16) - begin) * 8
            if by_buffer and samples == lanes:
                while begin + wide <= end:
                    unpack_wide(a, user, plane, offsets, begin, buffer, a.nontemporal)
                    begin += wide
            for position in range(begin, end, lanes):
                square(a, user, plane, offsets, position, samples, end - position)
            if pack:
                starts = a.padding_starts + chunk * 8
                for i in range(simd.load_i64(starts), simd.load_i64(starts + 8)):
                    simd.store(zero, plane + simd.load_i64(a.padding_offsets + i * 8))
        if by_buffer and a.nontemporal:
            simd.store_fence()

    return compile_kernel(run, f"{'pack' if pack else 'unpack'}_batch_blocked_f{bits}_v{lanes}")


@compiled_once
def pack_padded_kernel(bits: int, lanes: int) -> Any:
    """Copy images into zero-padded planes, one per channel and phase."""
    size = bits // 8
    vector = lanes * size

    copy_row = make_copy_numbers(bits, lanes)

    @kernel_function
    def copy_phase(source, target, first, length, step):  # type: ignore[no-untyped-def]
        pair = simd.zeros(2, lanes, bits)
        if step == 2:
            for i in range(first, length, 2 * lanes):
                numbers = simd.even(simd.load_first(pair, source + i * size, length - i))
                simd.store_first(numbers, target, (length - i + 1) // 2)
                target += vector
            return
        for i in range(first, length, step):
            simd.store_float(simd.load_float(bits, source + i * size), target)
            target += size

    def run(arguments, slot):  # type: ignore[no-untyped-def]
        a = _padded_arguments(arguments)
        zero = simd.zeros(1, lanes, bits)
        phases, step, length = a.phases, a.step, a.row_length
        for task in simd.tasks(arguments):
            channel, image = task % a.channels, task // a.channels
            user = a.user + image * a.user_image_stride + channel * a.user_channel_stride
            planes = a.planes + image * a.plane_image_stride + channel * a.plane_channel_stride
            for i in range(a.channel_vectors):
                simd.store(zero, planes + i * vector)
            for row in range(a.rows):
                source = row * length * size if a.source_offsets == 0 else simd.load_i64(a.source_offsets + row * 8)
                for phase in range(phases):
                    offset = simd.load_i64(a.row_offsets + (row * phases + phase) * 8)
                    if offset < 0 or length == 0:
                        continue
                    if step == 1:
                        copy_row(user + source, planes + offset, length)
                    else:
                        copy_phase(user + source, planes + offset, simd.load_i64(a.firsts + phase * 8), length, step)

    return compile_kernel(run, f"pack_padded_f{bits}_v{lanes}")


@compiled_once
def gather_vectors_kernel(bits: int, lanes: int) -> Any:
    """Write vectors whose lanes come from anywhere in x's channel: between images, spatial tiles and their halos.

    A tile's halo is, lane by lane, what its neighbours have at one position: one vector, with its lanes permuted. Tiles
    of other images, or of strides, have theirs from as many vectors as there are images in a stack.
    """
    permutes = simd.permutes(lanes, bits, vector_bytes())

    @inlined_function
    def gathered(like, x, line, end, ahead, near, table, other):  # type: ignore[no-untyped-def]
        if not permutes or (line < end and simd.load_u32(line) >= 0x80000000):
            simd.prefetch_l2(x + near, 64)
            return simd.gather_bytes(like, x, table, other)
        numbers = simd.filled(like, other)
        while line < end:
            first = simd.load_u32(line)
            simd.prefetch_l2(x + first + ahead, 64)
            numbers = simd.permute_bytes(numbers, x, first, table)
            line += 4
        return numbers

    def run(arguments, slot):  # type: ignore[no-untyped-def]
        a = _gather_arguments(arguments)
        like = simd.zeros(1, lanes, bits)
        ahead = _CHANNELS_AHEAD * a.x_channel_stride
        for task in simd.tasks(arguments):
            channel, part = task % a.channels, task // a.channels
            chunk, image = part % a.chunks, part // a.chunks
            x = a.x + image * a.x_image_stride + channel * a.x_channel_stride
            y = a.y + image * a.y_image_stride + channel * a.y_channel_stride
            starts = a.chunk_starts + chunk * 8
            for i in range(simd.load_i64(starts), simd.load_i64(starts + 8)):
                line = a.lines + simd.load_u32(a.line_starts + i * 4) * 4
                end = a.lines + simd.load_u32(a.line_starts + i * 4 + 4) * 4
                near = a.x_channel_stride + i * 64  # of an image in the user's layout each line of the next channel
                numbers = gathered(like, x, line, end, ahead, near, a.source_offsets + i * lanes * 4, a.fill)
                target = y + simd.load_u32(a.target_offsets + i * 4)
                if i + 1 < a.vectors:
                    simd.store(numbers, target)
                else:
                    simd.store_first(numbers, target, a.last_lanes)

    return compile_kernel(run, f"gather_vectors_f{bits}_v{lanes}")
