"""The inner loop is what it is meant to be: the speed of everything hangs on these few instructions."""

from __future__ import annotations

import platform

import pytest

from fastsparse_kernels import compiler, diagnostics

x86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="x86 assembly")

SCRIPT = """
import sys
from fastsparse_kernels import compiler, diagnostics
for loop in diagnostics.inner_loops(diagnostics.assembly_of("spmm", 32, compiler.lanes(32), int(sys.argv[1]), 1, 0)):
    print(";".join(loop))
"""


@x86
@pytest.mark.parametrize("count", [4, 7])
def test_spmm_loop_is_few_loads_and_fma_from_memory(run_python, count):
    if compiler.vector_bytes() < 32:
        pytest.skip("no FMA on this CPU")
    # A process of its own: this one must go on using the cache.
    result = run_python(SCRIPT, str(count))
    loops = [line.split(";") for line in result.stdout.splitlines()]
    assert len(loops) >= 2, "a loop for rows that end in their block, and one for those that do not"
    for loop in loops:
        fma = [text for text in loop if text.startswith("vfmadd")]
        assert len(fma) == 4 * count
        assert all("(" in text for text in fma), "every multiply-add reads its vector from memory"
        reads = [text for text in loop if "(" in text and not text.startswith(("vfmadd", "lea"))]
        assert sum("vbroadcast" in text for text in reads) == 1, "one load brings four weights"
        integers = 0 if compiler.vector_bytes() == 64 else 2
        assert sum("%r" in text.rsplit(",")[-1] for text in reads) == integers
        assert len(reads) == 1 + (integers or 1), "and one vector, or two integers, bring four offsets"
        assert not [text for text in loop if "%rsp" in text], "no spills"
        assert len([text for text in loop if text[0] != "#"]) <= 4 * count + 22, "nothing else of weight in the loop"


def test_inner_loops_finds_backward_jumps_only():
    text = "f:\n.L1:\n\tvfmadd231ps\t(%rax), %zmm0, %zmm1\n\tjne\t.L1\n.L2:\n\tvfmadd231ps\t%zmm0\n\tjmp\t.L1\n"
    assert diagnostics.inner_loops(text) == [["vfmadd231ps (%rax), %zmm0, %zmm1", "jne .L1"]]
