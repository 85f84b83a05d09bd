"""Diagnostics of kernels: the machine code of their inner loops, and the FMA peak that their speed is compared with.

    python -m fastsparse_kernels.diagnostics spmm 32 16 4 1 0

prints the loops with fused multiply-adds of the SpMM kernel for float32, 16 lanes and 4 vectors per tile. Expected on
x86, per nonzero: one shuffle and T `vfmadd231` with a memory operand; one load of weights and one of offsets for every
four nonzeros; no spills.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

from . import sddmm, simd, spmm, spmv
from .compiler import compile_kernel, compiled_once, kernel_arguments, set_cache_directories
from .numba_internals import assembly
from .simd.math import fma, lanewise

ACCUMULATORS = 12  # independent sums: more than latency times FMAs per cycle

PEAK = kernel_arguments(
    "rounds",  # every task does ACCUMULATORS * VL * rounds multiply-adds
    "sink",  # float [slots, ACCUMULATORS, VL], which keeps the work from being optimised away
)
_arguments = simd.arguments_view(PEAK)
_step = lanewise(lambda total: fma(total, 0.5, 1.0), 1)


@compiled_once
def peak_kernel(bits: int, lanes: int) -> Any:
    """Kernel with arguments PEAK."""
    vector = lanes * bits // 8

    def peak(arguments, slot):  # type: ignore[no-untyped-def]
        a = _arguments(arguments)
        for _task in simd.tasks(arguments):
            total = simd.zeros(ACCUMULATORS, lanes, bits)
            for _ in range(a.rounds):
                total = _step(total)
            simd.store(total, a.sink + slot * ACCUMULATORS * vector)

    return compile_kernel(peak, f"peak_f{bits}_v{lanes}")


# ---------------------------------------------------------------- assembly

KERNELS: dict[str, Callable[..., Any]] = {
    "spmm": spmm.spmm_kernel, "spmv": spmv.spmv_kernel, "sddmm": sddmm.sddmm_kernel,
    "sddmm_runs": sddmm.sddmm_runs_kernel,
}  # fmt: skip
_LABEL = re.compile(r"^(\.?\w+):")
_JUMP = re.compile(r"^\tj\w+\t(\.?\w+)")


def inner_loops(assembly: str, instruction: str = "vfmadd") -> list[list[str]]:
    """Straight-line loops that hold `instruction`: from a label to the jump back to it, as lists of instructions."""
    loops: list[list[str]] = []
    body: list[str] = []
    label = None
    for line in assembly.splitlines():
        found = _LABEL.match(line)
        if found:
            label, body = found.group(1), []
            continue
        if not line.startswith("\t") or line.startswith("\t."):
            continue
        body.append(line.strip().replace("\t", " "))
        jump = _JUMP.match(line)
        if jump:
            if jump.group(1) == label and any(instruction in text for text in body):
                loops.append(body)
            label, body = None, []
    return loops


def assembly_of(name: str, *arguments: int) -> str:
    """Compile a variant anew, without the cache, and return its assembly."""
    set_cache_directories()
    return assembly(KERNELS[name](*arguments))


def main(arguments: list[str]) -> int:
    """Print the inner loops of the kernel named on the command line."""
    if len(arguments) < 2 or arguments[0] not in KERNELS or not all(text.isdigit() for text in arguments[1:]):
        print(f"usage: python -m fastsparse_kernels.diagnostics {{{','.join(KERNELS)}}} INTEGER...", file=sys.stderr)
        return 2
    for number, loop in enumerate(inner_loops(assembly_of(arguments[0], *map(int, arguments[1:])))):
        print(f"loop {number}:", *loop, sep="\n    ")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
