"""Measurements: the time of a call, and the peak of one core."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import numpy as np

from fastsparse.runtime.launch import Arguments, BoundLaunch
from fastsparse_kernels import compiler, diagnostics


def seconds(call: Callable[[], object]) -> float:
    """Time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@functools.cache
def peak_flops(bits: int) -> float:
    """Peak of one core in multiplications and additions per second, measured once per process."""
    return measured_peak(bits)


def measured_peak(bits: int) -> float:
    """Peak of one core at this moment; clock rates vary."""
    lanes, rounds = compiler.lanes(bits), 50_000
    sink = compiler.aligned_empty((diagnostics.ACCUMULATORS * lanes * bits // 8,), np.uint8)
    arguments = Arguments(diagnostics.PEAK, rounds=rounds, sink=sink)
    kernel, flops = diagnostics.peak_kernel(bits, lanes), 2.0 * diagnostics.ACCUMULATORS * lanes * rounds
    launch = BoundLaunch(kernel.address, arguments, 1, flops, kernel)
    return flops / min(seconds(lambda: launch.run(1, flops)) for _ in range(20))
