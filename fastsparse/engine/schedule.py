"""Schedules: the steps that run a program on one batch size, before any memory is given to them.

A step reads one or two places and writes one; a place is a buffer and a byte offset in it, or an array of the user's.
The same schedule is bound to each workspace by filling in addresses.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

from fastsparse.engine.program import Node
from fastsparse.launch import Call

SAMPLES = 0  # variables of a call: number of samples, then addresses of the user's arrays, inputs before outputs

Place = tuple[int, int]  # buffer, offset; buffer -1 - k is the user's array k
MakeCall = Callable[..., Call]  # addresses of the sources, the target and scratch


def user_place(array: int) -> Place:
    """The place of the user's array of that number."""
    return -1 - array, 0


def variable_of(place: Place) -> int | None:
    """The variable that holds the address of a place of the user's; None for places in buffers."""
    return -place[0] if place[0] < 0 else None


@dataclass(frozen=True)
class Patch:
    """A field of the step's record that depends on the call: variables[variable] + offset + task * per_task."""

    field: str
    variable: int
    offset: int
    per_task: int


@dataclass(frozen=True, eq=False)
class Step:
    """One kernel call. `kernel` says in words what runs; `scratch` is in bytes per worker."""

    name: str
    kernel: str
    node: Node | None
    sources: tuple[Place, ...]
    target: Place
    make: MakeCall
    scratch: int = 0
    patches: tuple[Patch, ...] = ()


@dataclass(frozen=True, eq=False)
class Buffer:
    """Memory that steps need. Contents that must be zero and stay zero have a `layout` that says where: buffers share
    memory only with those of an equal one.

    over : a buffer whose memory this one may take over while the same step still reads it, element by element
    """

    size: int
    first: int  # the first step that writes it, in any order that lifetimes are compared in
    last: int
    layout: Hashable = None
    over: int = -1


@dataclass(frozen=True, eq=False)
class Schedule:
    """Steps of one task, and how tasks are shared.

    per_worker : every worker runs all steps on tasks of its own, with memory of its own; otherwise tasks follow one
        another and the workers share each step.
    """

    steps: list[Step]
    buffers: list[Buffer]
    tasks: int
    workers: int
    per_worker: bool

    @property
    def slots(self) -> int:
        """Copies of the memory that a workspace needs."""
        return min(self.workers, self.tasks) if self.per_worker else 1


def _may_replace(buffer: Buffer, old: Buffer) -> bool:
    """Whether the step that writes the buffer is the last one that reads the old one, of the same size and layout."""
    return old.last == buffer.first and (old.size, old.layout) == (buffer.size, buffer.layout)


def assign_memory(buffers: list[Buffer]) -> tuple[list[int], int]:
    """Offset of every buffer in one piece of memory, and its size: buffers whose lives do not meet share theirs."""
    slots: list[tuple[Hashable, int, int]] = []  # layout, size, last use
    chosen = [0] * len(buffers)
    for index in sorted(range(len(buffers)), key=lambda i: buffers[i].first):
        buffer = buffers[index]
        free = [i for i, (layout, _, last) in enumerate(slots) if layout == buffer.layout and last < buffer.first]
        if buffer.over >= 0 and _may_replace(buffer, buffers[buffer.over]):
            best = chosen[buffer.over]
            slots[best] = (buffer.layout, slots[best][1], buffer.last)
        elif free:
            # The smallest that is large enough, else the largest.
            best = min(free, key=lambda i: (slots[i][1] < buffer.size, abs(slots[i][1] - buffer.size)))
            slots[best] = (buffer.layout, max(slots[best][1], buffer.size), buffer.last)
        else:
            best = len(slots)
            slots.append((buffer.layout, buffer.size, buffer.last))
        chosen[index] = best
    starts, end = [], 0
    for _, size, _ in slots:
        starts.append(end)
        end += -(-size // 64) * 64 + 64  # an odd number of lines apart, so that buffers do not share cache sets
    return [starts[i] for i in chosen], end
