"""Cache lines that move between workers, counted from plans: `python -m bench.locality`.

A network is planned for so many workers, and nothing is run. For every step, the lines of activations that each worker
reads and writes follow from the kernel arguments and from the tasks that the worker owns. A line moves when a worker
reads what another one wrote last, unless it has read it since, and when it writes a line that only others hold. Caches
are of any size here, nothing is stolen, and the network ran before: what is counted is what cores that share no cache
send each other in every call. Weights are only read, so they stay where they are; arrays of the caller's are left out.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

LINE = 64
BASE = 1 << 40  # where the memory of activations is said to be; scratch lies behind it
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
    held = np.zeros((workers, size // LINE + 1), bool)
    written = np.zeros(size // LINE + 1, bool)
    read = taken = barriers = 0
    for _ in range(2):
        read = taken = barriers = 0
        for step in schedule.steps:
            places = (*step.sources, step.target)
            bound = step.bound(tuple(0 if b < 0 else BASE + offsets[b] + more for b, more in places), 2 * BASE)
            sharing = workers if bound.flops >= schedule.heuristics.parallel_flops else 1
            barriers += sharing > 1
            all_touched = [
                _touched(step, bound, _part(bound.tasks, sharing, w), schedule, offsets, size) for w in range(sharing)
            ]
            for w, (reads, _) in enumerate(all_touched):
                read += int((reads & written & ~held[w]).sum())
                held[w] |= reads
            for w, (_, writes) in enumerate(all_touched):
                taken += int((held.any(0) & writes & ~held[w]).sum())
                held[:, writes] = False
                held[w] |= writes
                written |= writes
    tasks = schedule.tasks
    return Traffic(read * tasks, taken * tasks, size, barriers * tasks, named)


def _touched(
    step: Any, bound: Any, tasks: NDArray[np.int64], schedule: Any, offsets: Sequence[int], size: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Lines that some tasks of a step read, and those that they write."""
    from fastsparse.ops.spatial_tiles import Gather
    from fastsparse.ops.spmm import SpmmPlan

    reads, writes = _Lines(size), _Lines(size)
    plan = next((k for k in _flat(step.launch.keep.get("plan")) if isinstance(k, SpmmPlan | Gather)), None)
    words = bound.arguments

    def field(name: str) -> int:
        return int(words.words[words.word(name)])

    if not len(tasks):
        pass
    elif isinstance(plan, SpmmPlan):
        _spmm(plan, field, tasks, reads, writes)
    elif isinstance(plan, Gather):
        _gather(plan, field, tasks, reads, writes)
    else:  # channels or rows one after the other, in memory and in tasks
        for lines, (buffer, more) in (*((reads, place) for place in step.sources), (writes, step.target)):
            if buffer >= 0:
                whole = schedule.buffers[buffer].size - more
                first, end = (whole * int(task) // bound.tasks for task in (tasks[0], tasks[-1] + 1))
                lines.mark(BASE + offsets[buffer] + more + np.arange(first, end, LINE), LINE)
    return reads.touched, writes.touched


def _flat(kept: Any) -> list[Any]:
    return [item for part in kept for item in _flat(part)] if isinstance(kept, tuple) else [kept]


# ------------------------------------------------------------------------------------------------- kernels


def _spmm(plan: Any, field: Any, tasks: NDArray[np.int64], reads: _Lines, writes: _Lines) -> None:
    """Tasks are (batch, tile, row group): the offsets of the group's nonzeros at T positions, and the group's rows."""
    operator, tiles, groups = plan.operator, plan.tiles, plan.operator.groups
    blocks, first = operator.blocks, operator.entries[:, 0]
    for group in np.unique(tasks % groups):
        columns = [
            np.unique(operator.offsets[first[operator.segments[s]] : first[operator.segments[s + 4]]].astype(np.int64))
            + operator.columns.bases[b]
            for b, s in enumerate(range(group * blocks * 4, (group + 1) * blocks * 4, 4))
        ]
        offsets = np.unique(np.concatenate(columns))
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


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m bench.locality", description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=WORKERS)
    parser.add_argument("--dlmc", type=Path, metavar="DIR", help="patterns of ResNet-50; random ones otherwise")
    parser.add_argument("-k", default="", help="networks whose names have this in them")
    options = parser.parse_args(arguments)
    os.environ["NUMBA_NUM_THREADS"] = str(max(options.workers))  # plans are for no more workers than that
    print(f"{'network':>10} batch workers  MB read  MB taken  barriers  MB of activations  schedule")
    for network, batch, sample in CASES:
        if options.k in network:
            found = programs(network, batch, sample, options.dlmc)
            for workers in options.workers:
                parts = [traffic(program, batch, workers) for program in found]
                moved, taken, memory, barriers = (
                    sum(getattr(part, name) for part in parts) for name in ("read", "taken", "memory", "barriers")
                )
                print(
                    f"{network:>10} {batch:5} {workers:7} {moved * LINE / 1e6:8.2f} {taken * LINE / 1e6:9.2f} "
                    f"{barriers:9} {memory / 1e6:18.1f}  {', '.join(part.choice for part in parts)}",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
