"""Launching layouts: user arrays <-> lanes, panels and flat planes. A part of `launch`: nothing is validated here."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse.launch import Call, Record, Template, address, run_call
from fastsparse.plan import policy
from fastsparse.plan.conv import FlatConv
from fastsparse.plan.flat import FlatPlanes
from fastsparse.plan.lanes import LanesPlanes
from fastsparse.plan.linear import Machine
from fastsparse.plan.parts import Gather
from fastsparse_kernels import layouts

PACK_CHUNK = 512  # positions that one packing task moves


def pack_lanes_call(
    user: int, sample_stride: int, channel_stride: int, planes: LanesPlanes, lanes: int, samples: int, m: Machine
) -> Call:
    """user[sample, channel, position] -> lanes planes. Addresses and strides in bytes, positions contiguous."""
    return _lanes_call(
        layouts.pack_batch_blocked_kernel, user, sample_stride, channel_stride, planes, lanes, samples, m
    )


def unpack_lanes_call(
    lanes: int, planes: LanesPlanes, user: int, sample_stride: int, channel_stride: int, samples: int, m: Machine
) -> Call:
    """Lanes planes -> user[sample, channel, position]."""
    return _lanes_call(
        layouts.unpack_batch_blocked_kernel, user, sample_stride, channel_stride, planes, lanes, samples, m
    )


def _lanes_call(
    kernel: Any,
    user: int,
    sample_stride: int,
    channel_stride: int,
    planes: LanesPlanes,
    lanes: int,
    samples: int,
    m: Machine,
) -> Call:
    chunks = max(1, -(-planes.positions // PACK_CHUNK))
    record = Record(
        layouts.BATCH_BLOCKED,
        channels=planes.channels,
        chunks=chunks,
        chunk=PACK_CHUNK,
        positions=planes.positions,
        samples=samples,
        user=user,
        user_sample_stride=sample_stride,
        user_channel_stride=channel_stride,
        nontemporal=policy.is_far(samples * planes.channels * planes.positions * m.size, m.l3_bytes),
        blocked=lanes,
        blocked_group_stride=planes.group_stride,
        blocked_channel_stride=planes.channel_stride,
        panel_groups=planes.panel_groups,
        panel_stride=planes.panel_stride or planes.group_stride,
        offsets=address(planes.places) if len(planes.places) else 0,
        padding_offsets=address(planes.borders),
        padding_count=len(planes.borders),
    )
    groups = -(-samples // m.lanes)
    if kernel is layouts.pack_batch_blocked_kernel:  # panels are packed whole, with zeros behind the samples, for SDDMM
        groups = -(-groups // planes.panel_groups) * planes.panel_groups
    # Moving an element costs about as much as four FMAs.
    flops = 4.0 * groups * m.lanes * planes.channels * planes.positions
    return Call(kernel(m.bits, m.lanes), record, groups * planes.channels * chunks, flops)


def pack_lanes(
    user: int, sample_stride: int, channel_stride: int, planes: LanesPlanes, lanes: int, samples: int, m: Machine
) -> None:
    """Run `pack_lanes_call`."""
    run_call(pack_lanes_call(user, sample_stride, channel_stride, planes, lanes, samples, m), m.workers)


def unpack_lanes(
    lanes: int, planes: LanesPlanes, user: int, sample_stride: int, channel_stride: int, samples: int, m: Machine
) -> None:
    """Run `unpack_lanes_call`."""
    run_call(unpack_lanes_call(lanes, planes, user, sample_stride, channel_stride, samples, m), m.workers)


def pack_lanes_template(sample_stride: int, planes: LanesPlanes, samples: int, m: Machine) -> Template:
    """Packing rows of samples, from the user's address to that of the lanes."""
    call = pack_lanes_call(0, sample_stride, 0, planes, 0, samples, m)
    return Template(call, "user", "blocked", m.workers, keep=planes)


def unpack_lanes_template(sample_stride: int, planes: LanesPlanes, samples: int, m: Machine) -> Template:
    """Unpacking into rows of samples, from the address of the lanes to the user's."""
    call = unpack_lanes_call(0, planes, 0, sample_stride, 0, samples, m)
    return Template(call, "blocked", "user", m.workers, keep=planes)


def pack_flat_call(
    user: int,
    image_stride: int,
    channel_stride: int,
    plan: FlatConv | FlatPlanes,
    channels: int,
    flat: int,
    images: int,
    m: Machine,
    sources: NDArray[np.int64] | None = None,
) -> Call:
    """user[image, channel, ...] -> zero-padded phase planes.

    sources : bytes from the user's channel to each of its rows; by default they follow one another
    """
    record = Record(
        layouts.PADDED_NCHW,
        channels=channels,
        rows=plan.rows,
        row_length=plan.row_length,
        phases=len(plan.firsts),
        step=plan.step,
        user=user,
        user_image_stride=image_stride,
        user_channel_stride=channel_stride,
        source_offsets=0 if sources is None else address(sources),
        planes=flat,
        plane_image_stride=channels * plan.channel_stride,
        plane_channel_stride=plan.channel_stride,
        channel_vectors=plan.channel_stride // m.vector,
        firsts=address(plan.firsts),
        row_offsets=address(plan.places),
    )
    flops = 1.0 * images * channels * plan.channel_stride / m.size
    return Call(layouts.pack_padded_kernel(m.bits, m.lanes), record, images * channels, flops)


def gather_call(
    plan: Gather, x: int, x_strides: tuple[int, int], y: int, y_strides: tuple[int, int], channels: int, images: int,
    m: Machine,
) -> Call:  # fmt: skip
    """Gather every channel of x into one of y; strides of images and channels in bytes."""
    vectors = len(plan.targets)
    chunks = max(1, -(-vectors // PACK_CHUNK))
    record = Record(
        layouts.GATHER,
        channels=channels,
        chunks=chunks,
        chunk=PACK_CHUNK,
        vectors=vectors,
        x=x,
        x_image_stride=x_strides[0],
        x_channel_stride=x_strides[1],
        y=y,
        y_image_stride=y_strides[0],
        y_channel_stride=y_strides[1],
        source_offsets=address(plan.sources),
        target_offsets=address(plan.targets),
        fill=address(plan.other),
        last_lanes=plan.last_lanes,
    )
    flops = 8.0 * images * channels * vectors * m.lanes
    return Call(layouts.gather_vectors_kernel(m.bits, m.lanes), record, images * channels * chunks, flops)


def pack_flat(
    user: int, image_stride: int, channel_stride: int, plan: FlatConv, channels: int, flat: int, images: int, m: Machine
) -> None:
    """Run `pack_flat_call`."""
    run_call(pack_flat_call(user, image_stride, channel_stride, plan, channels, flat, images, m), m.workers)
