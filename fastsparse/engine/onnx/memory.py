"""Memory of a plan: buffers whose lives do not meet share theirs."""

from __future__ import annotations

from dataclasses import dataclass

_ALIGNMENT = 64


@dataclass
class Life:
    """Bytes that are needed from one step to another, both included."""

    size: int
    first: int
    last: int


def assigned(lives: list[Life]) -> tuple[list[int], int]:
    """Offset of every buffer in one piece of memory, and its size.

    The largest come first, each at the lowest place where nothing that lives at the same time lies (first fit
    decreasing; Pisarchyk and Lee, Efficient Memory Management for Deep Neural Net Inference, 2020).
    """
    offsets = [0] * len(lives)
    placed: list[int] = []
    total = 0
    for index in sorted(range(len(lives)), key=lambda i: (-lives[i].size, lives[i].first)):
        life = lives[index]
        size = -(-max(life.size, 1) // _ALIGNMENT) * _ALIGNMENT
        at = 0
        for other in sorted((i for i in placed if _meet(lives[i], life)), key=lambda i: offsets[i]):
            if offsets[other] >= at + size:
                break
            at = max(at, offsets[other] + -(-max(lives[other].size, 1) // _ALIGNMENT) * _ALIGNMENT)
        offsets[index] = at
        placed.append(index)
        total = max(total, at + size)
    return offsets, total


def _meet(a: Life, b: Life) -> bool:
    return a.first <= b.last and b.first <= a.last
