"""Cache lines that move between workers, counted from plans: `python -m bench.locality`.

A network is planned for so many workers, and nothing is run. For every step, the lines of activations that each worker
reads and writes follow from the kernel arguments and from the tasks that the worker owns. A line moves when a worker
reads what another one wrote last, unless it has read it since, and when it writes a line that only others hold. Caches
are of any size here, nothing is stolen, and the network ran before: what is counted is what cores that share no cache
send each other in every call. Weights are only read, so they stay where they are; arrays of the caller's are left out.
Scratch counts in networks. Convolutions on their own are counted likewise, over what they pack.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Touched = tuple[NDArray[np.bool_], NDArray[np.bool_]]  # lines of some memory that a worker reads and writes
LINE = 64
BASE = 1 << 40  # where the memory of activations is said to be; the scratch of networks lies behind it
WORKERS = (2, 8, 32, 128)
CASES = (("resnet50", 1, (3, 224, 224)), ("resnet50", 16, (3, 224, 224)), ("mlp", 1, (2048,)), ("mlp", 64, (2048,)))


@dataclass(frozen=True)
class Traffic:
    """What one call moves between workers, in lines."""

    read: int  # read from the cache of another worker
    taken: int  # written by one worker, held by others only
    memory: int  # bytes of activations, of all workers
    barriers: int
    choice: str


class _Lines:
    """The lines of some memory that one worker touches in a step."""

    def __init__(self, nbytes: int) -> None:
        self.touched = np.zeros(nbytes // LINE + 1, bool)

    def mark(self, addresses: Any, nbytes: int) -> None:
        """`nbytes` bytes at each of the addresses; those outside of the memory are not counted."""
        for more in {*range(0, nbytes, LINE), nbytes - 1}:
            index = (np.asarray(addresses) + (more - BASE)) // LINE
            self.touched[index[(index >= 0) & (index < len(self.touched))]] = True


def _part(tasks: int, workers: int, worker: int) -> NDArray[np.int64]:
    """The tasks of a step that a worker owns."""
    return np.arange(tasks * worker // workers, tasks * (worker + 1) // workers)


def traffic(program: Any, batch: int, workers: int) -> Traffic:
    """What one call of a program moves between so many workers, after another call."""
    from fastsparse.engine.choosing import choices, scheduled
    from fastsparse.engine.schedule import assign_memory

    choice = choices(program, batch, workers, tune=False)[0]
    schedule = scheduled(program, batch, workers, choice)
    offsets, size = assign_memory(schedule.buffers, schedule.owned)
    named = f"{choice.layout}, {schedule.tasks} tasks"
    if schedule.per_worker:  # tasks have memory of their own, and meet once
        return Traffic(0, 0, size * schedule.slots, 1, named)
    steps, scratch, begin = [], max(step.launch.scratch for step in schedule.steps), -(-size // 4096) * 4096
    for step in schedule.steps:
        views = (*step.sources, step.target)
        addresses = (0 if b < 0 else BASE + offsets[b] + more for b, more in views)
        bound = step.launch.bind(BASE + begin, scratch, **dict(zip(step.operands, addresses)))
        shared = workers if bound.flops >= schedule.heuristics.parallel_flops else 1
        parts = [_part(bound.tasks, shared, w) for w in range(shared)]
        end = begin + workers * scratch
        steps.append([_touched(step, bound, w, part, schedule, offsets, end) for w, part in enumerate(parts)])
    read, taken = _moved(steps, workers)
    tasks, barriers = schedule.tasks, sum(len(parts) > 1 for parts in steps)
    return Traffic(read * tasks, taken * tasks, size, barriers * tasks, named)


def _moved(steps: Sequence[Sequence[Touched]], workers: int) -> tuple[int, int]:
    """Lines read from others, and taken from them, in a call behind another one: steps are what each worker touches."""
    held = np.zeros((workers, len(steps[0][0][0])), bool)
    written = np.zeros(held.shape[1], bool)
    read = taken = 0
    for _ in range(2):
        read = taken = 0
        for parts in steps:
            for w, (reads, _) in enumerate(parts):
                read += int((reads & written & ~held[w]).sum())
                held[w] |= reads
            for w, (_, writes) in enumerate(parts):
                taken += int((held.any(0) & writes & ~held[w]).sum())
                held[:, writes] = False
                held[w] |= writes
                written |= writes
    return read, taken


def _touched(
    step: Any, bound: Any, worker: int, tasks: NDArray[np.int64], schedule: Any, offsets: Sequence[int], size: int
) -> Touched:
    """Lines that a worker's tasks of a step read, and those that they write."""
    reads, writes, words = _Lines(size), _Lines(size), bound.arguments
    if step.launch.scratch:
        begin = words.words[words.word("scratch")] + worker * words.words[words.word("scratch_stride")]
        writes.mark(begin + np.arange(0, step.launch.scratch, LINE), LINE)
    if len(tasks) and not _by_plan(step.launch, bound, tasks, reads, writes):
        # channels or rows one after the other, in memory and in tasks
        for lines, (buffer, more) in (*((reads, view) for view in step.sources), (writes, step.target)):
            if buffer >= 0:
                whole = schedule.buffers[buffer].size - more
                first, end = (whole * int(task) // bound.tasks for task in (tasks[0], tasks[-1] + 1))
                lines.mark(BASE + offsets[buffer] + more + np.arange(first, end, LINE), LINE)
    return reads.touched, writes.touched


def _by_plan(launch: Any, bound: Any, tasks: NDArray[np.int64], reads: _Lines, writes: _Lines) -> bool:
    """Mark what tasks touch by the launch's plan, if it has one that is known here."""
    from fastsparse.ops.sddmm import SddmmPlan
    from fastsparse.ops.spatial_tiles import Gather
    from fastsparse.ops.spmm import SpmmPlan

    words = bound.arguments
    marks = {SpmmPlan: _spmm, Gather: _gather, SddmmPlan: partial(_sddmm, launch.keep)}
    plan = next((kept for kept in _flat(launch.keep.get("plan")) if type(kept) in marks), None)

    def field(name: str) -> int:
        return int(words.words[words.word(name)])

    if plan is not None:
        marks[type(plan)](plan, field, tasks, reads, writes)
    elif "blocked" in words.index:
        _batch_blocked(launch, field, tasks, writes if launch.label[0] == "pack" else reads)
    return plan is not None or "blocked" in words.index


def _flat(kept: Any) -> list[Any]:
    return [item for part in kept for item in _flat(part)] if isinstance(kept, tuple) else [kept]


# ------------------------------------------------------------------------------------------------- kernels


def _offsets(operator: Any, group: int) -> NDArray[np.int64]:
    """All offsets of a row group's nonzeros."""
    blocks, first = operator.blocks, operator.entries[:, 0]
    columns = [
        np.unique(operator.offsets[first[operator.segments[s]] : first[operator.segments[s + 4]]].astype(np.int64))
        + operator.columns.bases[b]
        for b, s in enumerate(range(group * blocks * 4, (group + 1) * blocks * 4, 4))
    ]
    return np.unique(np.concatenate(columns))


def _spmm(plan: Any, field: Any, tasks: NDArray[np.int64], reads: _Lines, writes: _Lines) -> None:
    """Tasks are (batch, tile, row group), or (batch, row group, tile) where workers own rows: what is read are the
    offsets of the group's nonzeros at T positions, what is written the group's rows."""
    operator, tiles, groups = plan.operator, plan.tiles, plan.operator.groups
    if plan.by_rows:
        batch, part = np.divmod(tasks, groups * tiles.count)
        tasks = (batch * tiles.count + part % tiles.count) * groups + part // tiles.count
    for group in np.unique(tasks % groups):
        offsets = _offsets(operator, group)
        rows = np.arange(*operator.group_starts[group : group + 2]) * field("y_row_stride")
        for task in tasks[tasks % groups == group] // groups:
            batch, tile = divmod(int(task), tiles.count)
            more = batch * field("y_batch_stride")
            reads.mark(
                np.add.outer(offsets, tiles.x_offsets[tile]) + field("x") + batch * field("x_batch_stride"), LINE
            )
            at, nbytes = tiles.y_offsets[tile], LINE
            if not tiles.whole[tile]:
                pieces = tiles.pieces[slice(*tiles.tile_pieces[tile])]
                at, nbytes = pieces[:, 1], int(pieces[:, 2].max(initial=1)) * 4
            writes.mark(np.add.outer(rows, at) + field("y") + more, nbytes)
            if field("residual"):
                reads.mark(np.add.outer(rows, at) + field("residual") + more, nbytes)


def _gather(plan: Any, field: Any, tasks: NDArray[np.int64], reads: _Lines, writes: _Lines) -> None:
    """Tasks are (image, chunk of vectors, channel)."""
    channels, starts = field("channels"), plan.chunk_starts(field("chunks"))
    part, all_channels = tasks // channels, tasks % channels
    for chunk in np.unique(part % field("chunks")):
        of_chunk = part % field("chunks") == chunk
        image, channel = part[of_chunk] // field("chunks"), all_channels[of_chunk]
        vectors = slice(*starts[chunk : chunk + 2])
        sources = np.unique(plan.source_offsets[vectors] // LINE * LINE)
        x = field("x") + image * field("x_image_stride") + channel * field("x_channel_stride")
        y = field("y") + image * field("y_image_stride") + channel * field("y_channel_stride")
        reads.mark(np.add.outer(x, sources[sources >= 0]), LINE)
        writes.mark(np.add.outer(y, plan.target_offsets[vectors].astype(np.int64)), LINE)


def _batch_blocked(launch: Any, field: Any, tasks: NDArray[np.int64], blocked: _Lines) -> None:
    """Tasks are (group, chunk of positions, channel)."""
    channels, chunks, bounds = field("channels"), field("chunks"), launch.keep["chunk_positions"]
    offsets = launch.keep.get("offsets", np.arange(bounds[-1, 1]) * LINE)
    part, all_channels = tasks // channels, tasks % channels
    for of_chunk in np.unique(part):
        group, index = divmod(int(of_chunk), chunks)
        planes = all_channels[part == of_chunk] * field("blocked_channel_stride") + group * field(
            "blocked_group_stride"
        )
        begin, end, first = bounds[index]
        blocked.mark(np.add.outer(planes, offsets[first : first + end - begin]) + field("blocked"), LINE)


def _sddmm(kept: Any, plan: Any, field: Any, tasks: NDArray[np.int64], reads: _Lines, writes: _Lines) -> None:
    """Tasks are (part of the positions, row group): its rows of y, and x at its nonzeros, in the part's passes."""
    operator, steps = plan.operator, np.arange(plan.run_length)
    for part, group in zip(*np.divmod(tasks, operator.groups), strict=True):
        rows = np.arange(*operator.group_starts[group : group + 2]) * field("y_row_stride")
        offsets = _offsets(operator, int(group))
        for batch, run, end in kept["passes"][slice(*kept["part_passes"][part])]:
            count = min(end * plan.run_length, plan.positions) - run * plan.run_length
            for lines, at, runs, step, operand in (
                (reads, rows, plan.y_runs, plan.y_step, "y"), (reads, offsets, plan.x_runs, plan.x_step, "x"),
            ):  # fmt: skip
                found = np.add.outer(runs[run:end], steps * step).ravel()[:count]
                lines.mark(np.add.outer(at, found) + field(operand) + batch * field(f"{operand}_batch_stride"), LINE)


# ------------------------------------------------------------------------------------------------- convolutions


def convolution(workers: int) -> dict[str, Traffic]:
    """What the forward and the backward pass of a convolution move between so many workers."""
    import fastsparse as fs
    from fastsparse.ops import conv
    from fastsparse.ops.geometry import ConvGeometry
    from fastsparse.ops.spmm import UNALIGNED
    from fastsparse.ops.target import target_for

    target = target_for(np.dtype(np.float32), workers)
    images, channels, spatial = target.lanes, 128, (28, 28)
    rng = np.random.default_rng(0)
    W = fs.csr((rng.random((channels, channels * 9)) < 0.1).astype(np.float32))
    geometry = ConvGeometry(channels, channels, spatial, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1)
    forward = conv._prepared(W, geometry, images, None, target, UNALIGNED)
    plan, (back, *_) = conv._backward(W.pattern, geometry, images, True, target)
    x, y = BASE, BASE + max(forward.x_bytes, plan.x.group_stride, plan.dx.group_stride)
    dx = y + max(forward.y_bytes, plan.dy.group_stride)
    nbytes = dx - BASE + plan.dx.group_stride
    if plan.x.bands is None:
        dx = x
    assert len(forward.parts) == back.groups == 1
    part = forward.parts[0]
    assert part.pack is not None
    assert part.unpack is not None
    passes = {
        "forward": [(part.pack, {"blocked": x}), (part.products[0], {"x": x, "y": y}), (part.unpack, {"blocked": y})],
        "backward": [
            (back.pack_dy, {"blocked": y}), (back.pack_x, {"blocked": x}),
            *((launch, {"x": x, "y": y}) for launch in back.dw.launches),
            *((launch, {"x": y, "y": dx}) for launch in back.dx), (back.unpack_dx, {"blocked": dx}),
        ],
    }  # fmt: skip
    found = {}
    for name, launches in passes.items():
        steps = []
        for launch, operands in launches:
            bound, parts = launch.bind(2 * BASE, **operands), []
            for worker in range(workers):
                reads, writes = _Lines(nbytes), _Lines(nbytes)
                assert _by_plan(launch, bound, _part(bound.tasks, workers, worker), reads, writes)
                parts.append((reads.touched, writes.touched))
            steps.append(parts)
        named = f"{images}x{channels}x{spatial[0]}x{spatial[1]}, batch-blocked"
        found[name] = Traffic(*_moved(steps, workers), nbytes, len(steps), named)
    return found


# ------------------------------------------------------------------------------------------------- command


def programs(network: str, batch: int, sample: Sequence[int], dlmc: Path | None) -> list[Any]:
    """The programs of the regions that kernels run."""
    import onnx

    import fastsparse as fs
    from bench.networks import BUILDERS

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "network.onnx"))
        onnx.save(BUILDERS[network](dlmc), path)
        engine = fs.compile(path, input_shape=(batch, *sample), threads=1, tune=False)
    x = np.zeros((batch, *sample), np.float32)
    engine(x)
    found = []
    for step in engine._plan().kernels:
        plans = [entry[0] for entry, _, _ in step._plans._entries.values()]
        found += [plan[0].program for plan in plans if plan is not None]
    return found


def _print(name: str, batch: int, workers: int, parts: Sequence[Traffic]) -> None:
    read, taken, memory, barriers = (
        sum(getattr(part, name) for part in parts) for name in ("read", "taken", "memory", "barriers")
    )
    print(
        f"{name:>10} {batch:5} {workers:7} {read * LINE / 1e6:8.2f} {taken * LINE / 1e6:9.2f} {barriers:9} "
        f"{memory / 1e6:18.1f}  {', '.join(part.choice for part in parts)}",
        flush=True,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m bench.locality", description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=WORKERS)
    parser.add_argument("--dlmc", type=Path, metavar="DIR", help="patterns of ResNet-50; random ones otherwise")
    parser.add_argument("-k", default="", help="networks, and convolution, whose names have this in them")
    options = parser.parse_args(arguments)
    os.environ["NUMBA_NUM_THREADS"] = str(max(options.workers))  # plans are for no more workers than that
    print(f"{'network':>10} batch workers  MB read  MB taken  barriers  MB of activations  schedule")
    for network, batch, sample in CASES:
        if options.k in network:
            found = programs(network, batch, sample, options.dlmc)
            for workers in options.workers:
                _print(network, batch, workers, [traffic(program, batch, workers) for program in found])
    if options.k in "convolution":
        for workers in options.workers:
            for name, moved in convolution(workers).items():
                _print(f"conv {name[:5]}", 16, workers, [moved])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
