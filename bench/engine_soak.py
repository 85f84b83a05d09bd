"""Many Python threads on one engine: `python -m bench.engine_soak MODEL.onnx [--callers 16] [--seconds 60]`.

Every caller takes inputs in turn and compares the result, bit for bit, with what one caller got alone. Memory is looked
at after the first tenth and at the end. Without a model, a small convolutional network is compiled.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import fastsparse as fs
from fastsparse import nn

INPUTS = 8
GROWTH = 8 * 2**20  # bytes of memory that may come and go


def small_network() -> tuple[nn.Sequential, tuple[int, ...]]:
    """A network with convolutions, a pooling and a linear layer, and its input's shape."""
    return nn.Sequential(
        nn.SparseConv2d(3, 32, 3, padding=1, activation="relu", rng=0), nn.MaxPool2d(2),
        nn.SparseConv2d(32, 64, 3, padding=1, activation="relu", rng=1), nn.Flatten(),
        nn.SparseLinear(64 * 64, 10, rng=2),
    ), (1, 3, 16, 16)  # fmt: skip


def resident_bytes() -> int:
    """Memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def soak(engine: Any, inputs: list[Any], callers: int, seconds: float) -> int:
    """Run; returns 0 when every result was right and memory stayed flat."""
    expected = [engine.run([x])[0] for x in inputs]
    calls, wrong = [0] * callers, [0] * callers
    end = time.monotonic() + seconds

    def work(caller: int) -> None:
        i = caller
        while time.monotonic() < end:
            i = (i + 1) % len(inputs)
            wrong[caller] += not np.array_equal(engine.run([inputs[i]])[0], expected[i])
            calls[caller] += 1

    threads = [threading.Thread(target=work, args=(caller,)) for caller in range(callers)]
    for thread in threads:
        thread.start()
    time.sleep(seconds / 10)
    before = resident_bytes()
    for thread in threads:
        thread.join()
    grown = resident_bytes() - before
    summary = f"{callers} callers, {seconds:.0f} s: {sum(calls)} calls, {sum(wrong)} wrong"
    print(f"{summary}; memory grew by {grown / 2**20:.1f} MB")
    return int(sum(wrong) > 0 or min(calls) == 0 or grown > GROWTH)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit 1 when a result was wrong, a caller never got its turn, or memory grew."""
    parser = argparse.ArgumentParser(prog="python -m bench.engine_soak", description=__doc__)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--callers", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args(argv)
    if options.model is None:
        model, shape = small_network()
        engine: Any = fs.compile(model, shape)
    else:
        engine = fs.compile(str(options.model))
        shape = engine.input_shape
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal(shape, np.float32) for _ in range(INPUTS)]
    return soak(engine, inputs, options.callers, options.seconds)


if __name__ == "__main__":
    sys.exit(main())
