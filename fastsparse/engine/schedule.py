"""Schedules: the steps that run a program on one batch size, before any memory is given to them.

A step reads one or two views and writes one; a view is a buffer and a byte offset in it, or an array of the user's.
The same schedule is bound to each workspace by filling in addresses.

Memory around an image in a buffer (contract R7): no number of a result depends on memory that nobody has written.
Each layout keeps this in its own way:

user (plain)    Images and features are contiguous; no lane behind the last number is stored in a result.
padded          Padded planes have `Zeros` around the image, written once, when memory is allocated. Steps write the
                positions of the image alone, so the zeros stay. Planes without padding and the slack behind the last
                plane are undefined; phase planes are zeroed by the step that packs them.
batch-blocked   Padded planes have `Zeros`, too. Lanes of samples that a group lacks are undefined: lanes never meet.
spatial tiles   The halo, and what hangs over the image's end, are defined by the writer, in an exchange behind its
                step, if some reader looks there (`Reading.exchanged`); a gather for one reader fills all that this
                reader looks at. Positions of a result that hang over its own image are computed from undefined numbers
                and are undefined themselves.
scratch         Undefined when a step begins.

The tests run schedules with NaN wherever memory is undefined.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastsparse.engine.program import Node
from fastsparse.ops.heuristics import Heuristics
from fastsparse.runtime.launch import Launch

SAMPLES = 0  # variables of a call: number of samples, then addresses of the user's arrays, inputs before outputs

View = tuple[int, int]  # buffer, offset; buffer -1 - k is the user's array k


@dataclass(frozen=True)
class Patch:
    """An argument of the step's kernel that depends on the call: variables[variable] + offset + task * per_task."""

    field: str
    variable: int
    offset: int
    per_task: int


@dataclass(frozen=True, eq=False)
class Step:
    """One launch. `kernel` says in words what runs, `operands` what the launch calls the sources and the target."""

    name: str
    kernel: str
    node: Node | None
    sources: tuple[View, ...]
    target: View
    launch: Launch
    operands: tuple[str, ...] = ("x", "y")
    patches: tuple[Patch, ...] = ()


@dataclass(frozen=True)
class Zeros:
    """Where a buffer of padded planes is zero for good: everywhere in its planes but at the image's positions.

    Strides, sizes and the corner are in bytes. The number of channels is the buffer's own: buffers of more and of fewer
    channels have the same zeros as far as both reach.
    """

    channel_stride: int
    image_stride: int  # between images or groups of samples; 0 in buffers of a single one
    spatial: tuple[int, ...]
    strides: tuple[int, ...]
    corner: int
    position: int  # bytes of one position

    def mask(self, size: int) -> NDArray[np.bool_]:
        """Which of a buffer's bytes are zero, bool [size]."""
        one = np.ones(self.channel_stride, bool)
        at = np.full((), self.corner)
        for n, stride in zip(self.spatial, self.strides, strict=True):
            at = np.add.outer(at, np.arange(n) * stride)
        one[np.add.outer(at.ravel(), np.arange(self.position))] = False
        image = self.image_stride or size
        found = np.zeros(size, bool)
        for start in range(0, size, image):
            for channel in range(start, min(start + image, size) - self.channel_stride + 1, self.channel_stride):
                found[channel : channel + self.channel_stride] = one
        return found


@dataclass(frozen=True, eq=False)
class Buffer:
    """Memory that steps need. Buffers share memory only with those of equal `zeros`.

    plane : bytes between channels. Workers that share steps own parts of the planes, so that buffers share memory only
        with those of equal planes: otherwise a worker would write where another one wrote before
    over : a buffer whose memory this one may take over while the same step still reads it, element by element
    """

    size: int
    first: int  # the first step that writes it, in any order that lifetimes are compared in
    last: int
    zeros: Zeros | None = None
    over: int = -1
    plane: int = 0


@dataclass(frozen=True, eq=False)
class Schedule:
    """Steps of one task, and how tasks are shared.

    per_worker : every worker runs all steps on tasks of its own, with memory of its own; otherwise tasks follow one
        another and the workers share each step.
    alone : the same program on one worker, where that may be faster: see `engine.trial`
    """

    steps: list[Step]
    buffers: list[Buffer]
    tasks: int
    workers: int
    per_worker: bool
    heuristics: Heuristics
    alone: Schedule | None = None

    @property
    def owned(self) -> bool:
        """Whether workers own parts of the planes."""
        return not self.per_worker and self.workers > 1

    @property
    def slots(self) -> int:
        """Copies of the memory that a workspace needs."""
        return min(self.workers, self.tasks) if self.per_worker else 1


def _may_replace(buffer: Buffer, old: Buffer) -> bool:
    """Whether the step that writes the buffer is the last one that reads the old one, of the same size and zeros."""
    return old.last == buffer.first and (old.size, old.zeros) == (buffer.size, buffer.zeros)


def assign_memory(buffers: list[Buffer], owned: bool = False) -> tuple[list[int], int]:
    """Offset of every buffer in one piece of memory, and its size: buffers whose lives do not meet share theirs.

    owned : whether workers own parts of planes, see `Buffer.plane`
    """
    slots: list[tuple[tuple[Zeros | None, int], int, int]] = []  # zeros and plane, size, last use
    chosen = [0] * len(buffers)
    for index in sorted(range(len(buffers)), key=lambda i: buffers[i].first):
        buffer = buffers[index]
        kind = buffer.zeros, buffer.plane if owned else 0
        free = [i for i, (of_slot, _, last) in enumerate(slots) if of_slot == kind and last < buffer.first]
        if buffer.over >= 0 and _may_replace(buffer, buffers[buffer.over]):
            best = chosen[buffer.over]
            slots[best] = (kind, slots[best][1], buffer.last)
        elif free:
            # The smallest that is large enough, else the largest.
            best = min(free, key=lambda i: (slots[i][1] < buffer.size, abs(slots[i][1] - buffer.size)))
            slots[best] = (kind, max(slots[best][1], buffer.size), buffer.last)
        else:
            best = len(slots)
            slots.append((kind, buffer.size, buffer.last))
        chosen[index] = best
    starts, end = [], 0
    for _, size, _ in slots:
        starts.append(end)
        end += -(-size // 64) * 64 + 64  # an odd number of lines apart, so that buffers do not share cache sets
    return [starts[i] for i in chosen], end
