"""The machine code of a kernel's inner loops, for people and for tests.

    python -m fastsparse_kernels.assembly spmm 32 16 4 1 0 0

prints the loops with fused multiply-adds of the SpMM kernel for float32, 16 lanes and 4 vectors per tile. What to look
for on x86: per nonzero one shuffle and T `vfmadd231` with a memory operand, weights read four and offsets two at a
time, no move to or from the stack.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

from . import sddmm, sddmm_runs, spmm, spmv

KERNELS: dict[str, Callable[..., Callable[..., Any]]] = {
    "spmm": spmm.make_spmm,
    "spmv": spmv.make_spmv,
    "sddmm": sddmm.make_sddmm,
    "sddmm_runs": sddmm_runs.make_sddmm_runs,
}
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
    """Compile a variant anew, past the cache, and give its assembly."""
    from .build import compile_kernel, set_cache_directory

    set_cache_directory(lambda: None)
    return str(compile_kernel(KERNELS[name](*arguments), f"{name}_inspected")._library.get_asm_str())


def main(arguments: list[str]) -> int:
    """Print the inner loops of the kernel named on the command line."""
    if len(arguments) < 2 or arguments[0] not in KERNELS or not all(text.isdigit() for text in arguments[1:]):
        print(f"usage: python -m fastsparse_kernels.assembly {{{','.join(KERNELS)}}} INTEGER...", file=sys.stderr)
        return 2
    for number, loop in enumerate(inner_loops(assembly_of(arguments[0], *map(int, arguments[1:])))):
        print(f"loop {number}:", *loop, sep="\n    ")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
