"""What random cases are drawn with: every draw is noted, so that a case can be printed, replayed and made smaller.

A case is a seed and steps, each a list of small integers, its number and what it drew:

    {"seed": [3, 12], "steps": [[0, 2, 0, 1], [1, 4], [3, 7, 1, 1]]}

Steps draw from numbers of their own, so the others stay as they are when one is left out. What a draw can choose starts
with the simplest: a case becomes smaller by less steps and by smaller integers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

Case = dict[str, Any]


class Draws:
    """Draws of a step.

    Parameters
    ----------
    seed : of this step
    told : what it drew, when it is replayed; zeros follow where more is drawn

    Attributes
    ----------
    numbers : a generator for values of arrays, which are not noted
    """

    def __init__(self, seed: Sequence[int], told: Sequence[int] | None = None) -> None:
        self._rng, self.numbers = np.random.default_rng(seed), np.random.default_rng([*seed, 1])
        self._told, self.drawn = told, list[int]()

    def below(self, count: int) -> int:
        """One of the integers from 0, less than `count`."""
        if self._told is None:
            value = int(self._rng.integers(count))
        else:
            at = len(self.drawn)
            value = min(self._told[at], count - 1) if at < len(self._told) else 0
        self.drawn.append(value)
        return value

    def chance(self, share: float) -> bool:
        """True for this share of all draws."""
        if self._told is None:
            self.drawn.append(int(self._rng.random() < share))
            return bool(self.drawn[-1])
        return bool(self.below(2))

    def between(self, least: int, most: int) -> int:
        """One of the integers from `least` to `most`."""
        return least + self.below(most - least + 1)

    def one(self, *among: Any) -> Any:
        """One of the arguments."""
        return among[self.below(len(among))]

    def either(self, a: Any, b: Any) -> tuple[Any, Any]:
        """Both in one of the two orders."""
        return (b, a) if self.chance(0.5) else (a, b)

    def divisor(self, number: int, *others: int) -> int:
        """A divisor of the number, or one of the others."""
        return int(self.one(*others, *(n for n in range(1, number + 1) if number % n == 0)))

    def padding(self, most: int) -> tuple[int, int]:
        """In front and behind, at most `most`: none, on one side, the same on both, or any."""
        if not most:
            return 0, 0
        kind, a, b = self.below(6), self.between(0, most), self.between(0, most)
        return ((0, 0), (0, max(1, b)), (0, max(1, b)), (max(1, a), 0), (a, a), (a, b))[kind]


class Steps:
    """The steps of a case, in turn: those that it tells, or new ones, which it is told.

    Attributes
    ----------
    first, d : draws of the first step, number 0, which is about the whole, and of the one that is being drawn
    """

    def __init__(self, case: Case) -> None:
        self.seed, self._told = case["seed"], case.get("steps")
        self._draws = dict[int, Draws]()
        self.first = self._step(0, self._told and self._told[0][1:])

    def _step(self, number: int, told: Sequence[int] | None) -> Draws:
        self.d = self._draws[number] = Draws([*self.seed, number], told)
        return self.d

    def rest(self, count: int) -> Iterator[None]:
        """The steps that follow, `count` new ones where none are told."""
        for number, *told in self._told[1:] if self._told else ([n] for n in range(1, count + 1)):
            self._step(number, told if self._told else None)
            yield

    def tell(self, case: Case) -> None:
        """Let the case have what was drawn."""
        case["steps"] = [[number, *draws.drawn] for number, draws in self._draws.items()]


def shrunk(case: Case, fails: Callable[[Case], str], seconds: float = 20.0) -> Case:
    """A smaller case that fails, too: found by leaving out steps and lowering draws, one at a time."""
    end, again = time.monotonic() + seconds, True
    while again:
        again = False
        for smaller in _smaller(case):
            if time.monotonic() > end:
                return case
            if fails(smaller):
                case, again = smaller, True
                break
    return case


def _smaller(case: Case) -> Iterator[Case]:
    steps = case["steps"]
    yield from ({**case, "steps": steps[:count]} for count in range(1, len(steps)))
    yield from ({**case, "steps": steps[:i] + steps[i + 1 :]} for i in range(1, len(steps)))
    for i, step in enumerate(steps):
        for j in range(1, len(step)):
            for value in sorted({0, step[j] // 2, step[j] - 1} & set(range(step[j]))):
                yield {**case, "steps": [*steps[:i], [*step[:j], value, *step[j + 1 :]], *steps[i + 1 :]]}


# ---------------------------------------------------------------- windows


class Windows(NamedTuple):
    """Windows over images: of each axis the kernel, stride, padding in front and behind, dilation; and how many."""

    kernel: list[int]
    stride: list[int]
    padding: list[tuple[int, int]]
    dilation: list[int]
    out: list[int]

    @property
    def pads(self) -> list[int]:
        """As ONNX has them: all in front, then all behind."""
        return [side for sides in zip(*self.padding, strict=True) for side in sides]


def windows_out(n: int, kernel: int, stride: int, padding: Sequence[int], dilation: int = 1, ceil: bool = False) -> int:
    """Outputs along an axis; not positive where no window fits."""
    free = n + sum(padding) - dilation * (kernel - 1) - 1
    out = (-(-free // stride) if ceil else free // stride) + 1
    return out - 1 if ceil and (out - 1) * stride >= n + padding[0] else out


def windows(
    draws: Draws, spatial: Sequence[int], kernels: Sequence[int] = (1, 1, 2, 3, 3, 4, 5), *,
    pads: Callable[[int], int] = lambda kernel: 2, dilations: Sequence[int] = (1, 1, 1, 1, 2, 3), ceil: bool = False,
    tiling: float = 0.3, strides: Sequence[int] = (1, 1, 1, 2, 3),
) -> Windows:  # fmt: skip
    """Windows that fit into the image.

    Parameters
    ----------
    pads : the most padding on a side, for a kernel
    tiling : share of axes whose stride is the kernel
    """
    found: list[tuple[Any, ...]] = []
    same = int(draws.one(*kernels)) if draws.chance(0.6) else 0
    for n in spatial:
        kernel, dilation = same or int(draws.one(*kernels)), int(draws.one(*dilations))
        stride = kernel if draws.chance(tiling) else int(draws.one(*strides))
        padding = draws.padding(pads(kernel))
        while windows_out(n, kernel, stride, padding, dilation, ceil) < 1:
            kernel, dilation = (kernel, 1) if dilation > 1 else (kernel - 1, 1)
            padding = (min(padding[0], pads(kernel)), min(padding[1], pads(kernel)))
        found.append((kernel, stride, padding, dilation, windows_out(n, kernel, stride, padding, dilation, ceil)))
    return Windows(*map(list, zip(*found, strict=True)))


class Transposed(NamedTuple):
    """Windows of a transposed convolution, with what is added behind each axis."""

    kernel: list[int]
    stride: list[int]
    padding: list[tuple[int, int]]
    dilation: list[int]
    more: list[int]
    out: list[int]

    pads = Windows.pads


def transposed_windows(draws: Draws, spatial: Sequence[int]) -> Transposed:
    """Those of which something is left."""
    found: list[tuple[Any, ...]] = []
    for n in spatial:
        kernel, stride, dilation = draws.between(1, 4), int(draws.one(1, 1, 2, 2, 3)), int(draws.one(1, 1, 1, 2))
        more, padding = draws.below(stride), draws.padding(3)
        whole = (n - 1) * stride + dilation * (kernel - 1) + 1 + more
        while sum(padding) >= whole:
            padding = (max(0, padding[0] - 1), max(0, padding[1] - 1))
        found.append((kernel, stride, padding, dilation, more, whole - sum(padding)))
    return Transposed(*map(list, zip(*found, strict=True)))


def groups(draws: Draws, channels: int, ones: int = 4) -> int:
    """Groups of a convolution; `ones` and the depthwise one are likelier."""
    return draws.divisor(channels, *[1] * ones, channels)
