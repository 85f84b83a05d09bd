"""What a core can do at most: fused multiply-adds on registers, nothing else. Reports show shares of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import simd
from .build import compile_kernel, compiled_once, kernel_record
from .simd_math import fma, lanewise

CHAINS = 12  # independent sums: more than latency times FMAs per cycle

PEAK = kernel_record(
    "rounds",  # every task does CHAINS * VL * rounds multiply-adds
    "sink",  # float [slots, CHAINS, VL], so that nothing is optimised away
)
_arguments = simd.record_view(PEAK)
_step = lanewise(lambda total: fma(total, 0.5, 1.0), 1)


def make_peak(bits: int, lanes: int) -> Callable[..., None]:
    """Kernel of record PEAK."""
    vector = lanes * bits // 8

    def peak(arguments, slot):  # type: ignore[no-untyped-def]
        a = _arguments(arguments)
        task = simd.fetch_add(a.counter, 1)
        while task < a.stop:
            total = simd.zeros(CHAINS, lanes, bits)
            for _ in range(a.rounds):
                total = _step(total)
            simd.store(total, a.sink + slot * CHAINS * vector)
            task = simd.fetch_add(a.counter, 1)

    return peak


@compiled_once
def peak_kernel(bits: int, lanes: int) -> Any:
    """The compiled variant."""
    return compile_kernel(make_peak(bits, lanes), f"peak_f{bits}_v{lanes}")
