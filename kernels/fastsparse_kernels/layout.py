"""Layouts: user arrays <-> what the SpMM and SDDMM kernels read and write.

lanes   (batch / VL, channels, positions, VL): VL samples innermost, so every load is one aligned vector and a tile may
        take any positions: strides, dilation and image borders cost nothing. Packing transposes in registers.
panels  (batch / (T * VL), features, T, VL): lanes layout of features in which the T vectors of a tile lie in a row.
parts   (batch, channels, positions, VL): lanes layout of one image cut into VL parts of equal shape, each with a
        border of what its neighbours begin with. Vectors are aligned and stored whole, at a batch of one.
flat    (batch, channels, phases, plane): zero-padded planes of one image, for small batches; a vector is VL consecutive
        positions of a plane, rows of the image joined by the padding between them. With stride s a plane is split into
        s * s phases, each a stride-1 image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import simd
from .build import compile_kernel, compiled_once, inlined_part, kernel_part, kernel_record

WIDE = 8  # vectors of a row that are unpacked together where rows lie
NEAR_ROWS_BYTES = 32 * 1024  # apart, at most, where they are not stored past the caches
WIDE_SETS_BYTES = 2048  # times some number apart: on the same cache sets, which cannot hold as many lines

LANES = kernel_record(
    # tasks are (group of VL samples, channel, chunk), the chunk innermost
    "channels",
    "chunks",  # chunks per channel plane
    "chunk",  # positions per chunk, a multiple of VL
    "positions",  # positions per channel plane
    "samples",
    "user",  # address of user[sample, channel, position], positions contiguous
    "user_sample_stride",
    "user_channel_stride",
    "far",  # 1 where the user's array is larger than what caches keep
    "lanes",  # address of lanes[group, channel, place of position]
    "lanes_group_stride",
    "lanes_channel_stride",
    "panel_groups",  # groups `lanes_group_stride` apart; behind them the next so many begin `panel_stride` further
    "panel_stride",
    "places",  # int64 [positions rounded up to VL], bytes from the plane to each position; 0: positions in a row
    "borders",  # int64 [border_count], places of the plane's padding, to be zeroed (packing only)
    "border_count",
)
_lanes_arguments = simd.record_view(LANES)

FLAT = kernel_record(
    # tasks are (image, channel)
    "channels",
    "rows",  # image rows per channel plane, over all leading axes
    "row_length",
    "phases",  # phases along a row that the kernel window reads
    "step",  # columns between neighbours of one phase: the stride
    "user",  # address of user[image, channel, row, column], rows contiguous
    "user_image_stride",
    "user_channel_stride",
    "sources",  # int64 [rows], bytes from the user's channel to each row; 0: rows follow one another
    "flat",
    "flat_image_stride",
    "flat_channel_stride",
    "channel_vectors",  # vectors to zero per channel
    "firsts",  # int64 [phases], first column of every phase along a row
    "places",  # int64 [rows, phases], bytes from the channel to where a row's phase begins; negative: not read
)
_flat_arguments = simd.record_view(FLAT)


GATHER = kernel_record(
    # tasks are (image, channel, chunk), the chunk innermost
    "channels",
    "chunks",  # chunks per channel
    "chunk",  # vectors per chunk
    "vectors",  # vectors to write per channel
    "x",
    "x_image_stride",
    "x_channel_stride",
    "y",  # may be x, when no vector reads what another one writes
    "y_image_stride",
    "y_channel_stride",
    "sources",  # int32 [vectors, VL], bytes from x's channel to each lane's number; negative: `other`
    "targets",  # int32 [vectors], bytes from y's channel
    "other",  # address of a number
    "last_lanes",  # lanes of the last vector that are written
)
_gather_arguments = simd.record_view(GATHER)


def make_lanes(bits: int, lanes: int, pack: int) -> Callable[..., None]:
    """Packing user -> lanes (`pack` 1) or unpacking lanes -> user (0)."""
    size = bits // 8
    vector = lanes * size

    @kernel_part
    def places_of(a, plane, position):  # type: ignore[no-untyped-def]
        if a.places == 0:
            return simd.spread(lanes, plane + position * vector, vector)
        return simd.gather_addresses(lanes, plane, a.places + position * 8)

    @inlined_part
    def pack_square(a, user, plane, position, samples, columns):  # type: ignore[no-untyped-def]
        like = simd.zeros(lanes, lanes, bits)
        source = user + position * size
        places = places_of(a, plane, position)
        if samples == lanes and columns >= lanes:
            square = simd.load_at(like, simd.spread(lanes, source, a.user_sample_stride), 0)
            simd.store_at(simd.transpose(square), places, 0)
        else:
            square = simd.load_rows(like, source, a.user_sample_stride, samples, columns)
            simd.store_some_at(simd.transpose(square), places, 0, columns)

    @inlined_part
    def unpack_square(a, user, plane, position, samples, columns):  # type: ignore[no-untyped-def]
        like = simd.zeros(lanes, lanes, bits)
        target = user + position * size
        places = places_of(a, plane, position)
        if samples == lanes and columns >= lanes:
            square = simd.transpose(simd.load_at(like, places, 0))
            simd.store_at(square, simd.spread(lanes, target, a.user_sample_stride), 0)
        else:
            square = simd.transpose(simd.load_some_at(like, places, 0, columns))
            simd.store_rows(square, target, a.user_sample_stride, samples, columns)

    square = pack_square if pack else unpack_square
    wide, wide_row = WIDE * lanes, (WIDE + 1) * vector  # rows of the buffer lie on different sets
    buffer_bytes = lanes * wide_row

    @kernel_part
    def unpack_wide(a, user, plane, position, buffer, past_caches):  # type: ignore[no-untyped-def]
        """Several squares of full rows, by way of a buffer."""
        like, row = simd.zeros(lanes, lanes, bits), simd.zeros(WIDE, lanes, bits)
        for i in range(WIDE):
            places = places_of(a, plane, position + i * lanes)
            rows = simd.spread(lanes, buffer + i * vector, wide_row)
            simd.store_at(simd.transpose(simd.load_at(like, places, 0)), rows, 0)
        for sample in range(lanes):
            target = user + position * size + sample * a.user_sample_stride
            if past_caches:
                simd.stream(simd.load(row, buffer + sample * wide_row), target)
            else:
                simd.store(simd.load(row, buffer + sample * wide_row), target)

    def run(arguments, slot):  # type: ignore[no-untyped-def]
        a = _lanes_arguments(arguments)
        zero = simd.zeros(1, lanes, bits)
        buffer = simd.stack_buffer(buffer_bytes)
        strides = a.user_sample_stride | a.user_channel_stride
        aligned = (a.user | strides) % vector == 0
        near = a.user_sample_stride % WIDE_SETS_BYTES == 0 and a.user_sample_stride <= NEAR_ROWS_BYTES
        by_buffer = pack == 0 and (aligned if a.far else near)
        task = simd.fetch_add(a.counter, 1)
        while task < a.stop:
            chunk, plane_index = task % a.chunks, task // a.chunks
            channel, group = plane_index % a.channels, plane_index // a.channels
            user = a.user + group * lanes * a.user_sample_stride + channel * a.user_channel_stride
            panel, inside = group // a.panel_groups, group % a.panel_groups
            plane = a.lanes + panel * a.panel_stride + inside * a.lanes_group_stride + channel * a.lanes_channel_stride
            samples = min(lanes, a.samples - group * lanes)
            begin, end = chunk * a.chunk, min(a.positions, (chunk + 1) * a.chunk)
            if by_buffer and samples == lanes:
                while begin + wide <= end:
                    unpack_wide(a, user, plane, begin, buffer, a.far)
                    begin += wide
            for position in range(begin, end, lanes):
                square(a, user, plane, position, samples, end - position)
            if pack and chunk == 0:
                for i in range(a.border_count):
                    simd.store(zero, plane + simd.load_i64(a.borders + i * 8))
            task = simd.fetch_add(a.counter, 1)

    return run


def make_pack_flat(bits: int, lanes: int) -> Callable[..., None]:
    """Copy images into zero-padded planes, one per channel and phase."""
    size = bits // 8
    vector = lanes * size

    @kernel_part
    def copy_row(source, target, count):  # type: ignore[no-untyped-def]
        like = simd.zeros(1, lanes, bits)
        i = 0
        while i + lanes <= count:
            simd.store(simd.load(like, source + i * size), target + i * size)
            i += lanes
        if i < count:
            simd.store_first(simd.load_first(like, source + i * size, count - i), target + i * size, count - i)

    @kernel_part
    def copy_phase(source, target, first, length, step):  # type: ignore[no-untyped-def]
        like = simd.zeros(1, lanes, bits)
        if step == 2:
            while first + 2 * lanes <= length:
                simd.store(simd.load_evens(like, source + first * size), target)
                first += 2 * lanes
                target += vector
        for i in range(first, length, step):
            simd.store_float(simd.load_float(bits, source + i * size), target)
            target += size

    def run(arguments, slot):  # type: ignore[no-untyped-def]
        a = _flat_arguments(arguments)
        zero = simd.zeros(1, lanes, bits)
        phases, step, length = a.phases, a.step, a.row_length
        task = simd.fetch_add(a.counter, 1)
        while task < a.stop:
            channel, image = task % a.channels, task // a.channels
            user = a.user + image * a.user_image_stride + channel * a.user_channel_stride
            flat = a.flat + image * a.flat_image_stride + channel * a.flat_channel_stride
            for i in range(a.channel_vectors):
                simd.store(zero, flat + i * vector)
            for row in range(a.rows):
                source = user + (row * length * size if a.sources == 0 else simd.load_i64(a.sources + row * 8))
                for phase in range(phases):
                    place = simd.load_i64(a.places + (row * phases + phase) * 8)
                    if place < 0:
                        continue
                    if step == 1:
                        copy_row(source, flat + place, length)
                    else:
                        copy_phase(source, flat + place, simd.load_i64(a.firsts + phase * 8), length, step)
            task = simd.fetch_add(a.counter, 1)

    return run


def make_gather(bits: int, lanes: int) -> Callable[..., None]:
    """Write vectors whose lanes lie anywhere in x's channel: between an image, its parts, and their borders."""

    def run(arguments, slot):  # type: ignore[no-untyped-def]
        a = _gather_arguments(arguments)
        like = simd.zeros(1, lanes, bits)
        task = simd.fetch_add(a.counter, 1)
        while task < a.stop:
            chunk, plane = task % a.chunks, task // a.chunks
            channel, image = plane % a.channels, plane // a.channels
            x = a.x + image * a.x_image_stride + channel * a.x_channel_stride
            y = a.y + image * a.y_image_stride + channel * a.y_channel_stride
            end = min(a.vectors, (chunk + 1) * a.chunk)
            for i in range(chunk * a.chunk, end):
                numbers = simd.load_lanes(like, x, a.sources + i * lanes * 4, a.other)
                target = y + simd.load_u32(a.targets + i * 4)
                if i + 1 < a.vectors:
                    simd.store(numbers, target)
                else:
                    simd.store_first(numbers, target, a.last_lanes)
            task = simd.fetch_add(a.counter, 1)

    return run


@compiled_once
def pack_lanes_kernel(bits: int, lanes: int) -> Any:
    """Compiled packing user -> lanes."""
    return compile_kernel(make_lanes(bits, lanes, 1), f"pack_lanes_f{bits}_v{lanes}")


@compiled_once
def unpack_lanes_kernel(bits: int, lanes: int) -> Any:
    """Compiled unpacking lanes -> user."""
    return compile_kernel(make_lanes(bits, lanes, 0), f"unpack_lanes_f{bits}_v{lanes}")


@compiled_once
def pack_flat_kernel(bits: int, lanes: int) -> Any:
    """Compiled packing of images into flat phase planes."""
    return compile_kernel(make_pack_flat(bits, lanes), f"pack_flat_f{bits}_v{lanes}")


@compiled_once
def gather_kernel(bits: int, lanes: int) -> Any:
    """Compiled gathering of vectors."""
    return compile_kernel(make_gather(bits, lanes), f"gather_f{bits}_v{lanes}")
