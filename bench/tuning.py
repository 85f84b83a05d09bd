"""Whether tuning chooses well in any state of the machine: `python -m bench.tuning`.

A network is compiled with tuning, again and again: as the machine is, beside a program that keeps one core busy, and
with all workers on one core, where several workers gain nothing. Behind every compilation all choices are timed in
interleaved rounds, in the same state: the one that was taken should be within 5% of the best.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from statistics import median
from typing import Any

import numpy as np

import fastsparse as fs
from bench import harness
from fastsparse import nn
from fastsparse.engine.choosing import choices, scheduled
from fastsparse.engine.workspace import Workspace
from fastsparse.runtime.measure import seconds

WITHIN = 1.05
ROUNDS = 15


def network() -> nn.Sequential:
    """Bottleneck blocks on 28 x 28 and 14 x 14, as in ResNet-50."""
    layers: list[Any] = []
    at, width = 128, 64
    for stage in range(2):
        for block in range(2):
            stride = 2 if stage and not block else 1
            kernels = ((at, width, 1, 1), (width, width, 3, stride), (width, 4 * width, 1, 1))
            for inputs, outputs, kernel, step in kernels:
                layers.append(
                    nn.SparseConv2d(
                        inputs,
                        outputs,
                        kernel,
                        stride=step,
                        padding=kernel // 2,
                        sparsity=0.9,
                        activation="relu",
                        rng=0,
                    )
                )
            at = 4 * width
        width *= 2
    return nn.Sequential(*layers).eval()


@contextlib.contextmanager
def state(name: str) -> Iterator[None]:
    """The machine as it is, with one core busy, or with all threads of this process on one core."""
    cores = sorted(os.sched_getaffinity(0))
    if name == "busy":
        busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        os.sched_setaffinity(busy.pid, {cores[-1]})
        try:
            yield
        finally:
            busy.kill()
            busy.wait()
        return
    masks = harness.thread_masks()
    try:
        if name == "one core":
            for thread in masks:
                harness.move(thread, {cores[0]})
        yield
    finally:
        for thread, mask in masks.items():
            harness.move(thread, mask)


def loss(model: nn.Sequential, x: np.ndarray, threads: int) -> float:
    """How much longer the choice of a fresh compilation takes than the best one."""
    engine = fs.compile(model, x.shape, threads=threads)
    program, batch = engine._program, len(x)
    (taken,) = engine._choices.values()
    y = np.empty((batch, *engine.output_shape[1:]), x.dtype)
    spaces = {c: Workspace(scheduled(program, batch, threads, c)) for c in choices(program, batch, threads, True)}
    times: dict[Any, list[float]] = {choice: [] for choice in spaces}
    for _ in range(ROUNDS):
        for choice, space in spaces.items():
            times[choice].append(seconds(partial(space.run, x, y)))
    return median(a / b for a, b in zip(times[taken], min(times.values(), key=median), strict=True))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 where a choice was not within 5% of the best."""
    parser = argparse.ArgumentParser(prog="python -m bench.tuning", description=__doc__)
    parser.add_argument("--count", type=int, default=20, help="compilations in every state (default 20)")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--states", nargs="+", default=["quiet", "busy", "one core"])
    options = parser.parse_args(arguments)
    model = network()
    x = np.random.default_rng(0).standard_normal((options.batch, 128, 28, 28)).astype(np.float32)
    fs.compile(model, x.shape, threads=options.threads)(x)  # kernels, and threads that can be moved
    missed = 0
    for name in options.states:
        with state(name):
            losses = [loss(model, x, options.threads) for _ in range(options.count)]
        good = sum(found <= WITHIN for found in losses)
        missed += options.count - good
        print(f"{name}: {good} of {options.count} within 5% of the best; worst {max(losses):.2f}", flush=True)
    return int(missed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
