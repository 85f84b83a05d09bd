"""Whether tuning chooses well in any state of the machine.

A network is compiled with tuning, again and again: as the machine is, beside a program that keeps one core busy, and
with all workers on one core, where several workers gain nothing. Behind every compilation the engine's calls and those
of all choices, on all workers and on one, are timed in interleaved rounds, in the same state: the engine, which takes
its choice for all workers or the one for one, whatever is faster, should be within 5% of the best. Both are timed again
for that: the least of several times is too low.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any

import numpy as np

import fastsparse as fs
from bench import machine
from bench.workloads import Tuning
from fastsparse import nn
from fastsparse.engine.choosing import choices, scheduled
from fastsparse.engine.workspace import Workspace
from fastsparse.timing import interleaved, ratio

_WITHIN = 1.05
_THREADS = 2
_ROUNDS, _BLOCK = 15, 0.004  # and seconds
_SETTLING = 0.3  # seconds of calls, in which an engine finds out how many workers pay


def _network() -> nn.Sequential:
    """Bottleneck blocks on 28 x 28 and 14 x 14, as in ResNet-50."""
    layers, channels = [], 128
    for width, first in ((64, 1), (64, 1), (128, 2), (128, 1)):
        for inputs, outputs, kernel, stride in (
            (channels, width, 1, 1), (width, width, 3, first), (width, 4 * width, 1, 1),
        ):  # fmt: skip
            words: dict[str, Any] = {"stride": stride, "padding": kernel // 2, "activation": "relu", "rng": 0}
            layers.append(nn.SparseConv2d(inputs, outputs, kernel, sparsity=0.9, **words))
        channels = 4 * width
    return nn.Sequential(*layers).eval()


@contextlib.contextmanager
def _state(name: str) -> Iterator[None]:
    """The machine as it is ("quiet"), with one core busy, or with all threads of this process on one core."""
    cores, masks = sorted(os.sched_getaffinity(0)), machine.thread_masks()
    busy = None
    try:
        if name == "busy":
            busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            os.sched_setaffinity(busy.pid, {cores[-1]})
        elif name == "one core":
            for thread in masks:
                machine.move(thread, {cores[0]})
        yield
    finally:
        for thread, mask in masks.items():
            machine.move(thread, mask)
        if busy is not None:
            busy.kill()
            busy.wait()


def measure(case: Tuning, clock: Callable[[], float]) -> tuple[list[float], dict[str, Any]]:
    """Seconds of the engines; how many were near to the best, and how far off the worst was."""
    model = _network()
    x = np.random.default_rng(0).standard_normal((1, 128, 28, 28)).astype(np.float32)
    with fs.threads(_THREADS):
        fs.compile(model, x.shape, threads=_THREADS)(x)  # kernels, and threads that can be moved
        with _state(case.name):
            found = [_chosen(model, x) for _ in range(case.count)]
    losses = [loss for _, loss in found]
    good = sum(loss <= _WITHIN for loss in losses)
    facts = {"within 5% of the best": f"{good} of {case.count}", "worst": f"{max(losses):.2f}"}
    return [seconds for seconds, _ in found], facts


def _chosen(model: nn.Sequential, x: np.ndarray) -> tuple[float, float]:
    """Seconds of a freshly compiled engine, and how much longer it takes than the best choice."""
    engine = fs.compile(model, x.shape, threads=_THREADS)
    y = np.empty((1, *engine.output_shape[1:]), x.dtype)
    with engine._pool(1).workspace() as space:
        end = time.perf_counter() + _SETTLING
        while time.perf_counter() < end:
            space.run(x, y)
        calls = {"engine": partial(space.run, x, y)}
        for workers in (1, _THREADS):
            for choice in choices(engine._program, 1, workers, True):
                made = Workspace(scheduled(engine._program, 1, workers, choice))
                calls[f"{workers}, {choice}"] = partial(made.run_on, workers, x, y)
        times = interleaved(calls, rounds=(_ROUNDS, _ROUNDS), block=_BLOCK)
        best = min(times, key=lambda name: median(times[name]))
        times = interleaved({name: calls[name] for name in ("engine", best)}, rounds=(_ROUNDS, _ROUNDS), block=_BLOCK)
    return median(times["engine"]), ratio(times["engine"], times[best])
