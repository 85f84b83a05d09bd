"""The fuzzer of functions, some cases of it, and what it finds."""

from __future__ import annotations

import sys

import numpy as np
import pytest

if not sys.platform.startswith("linux"):
    pytest.skip("guard pages need mprotect", allow_module_level=True)
bench = pytest.importorskip("bench.fuzz_functions")
guarded = pytest.importorskip("bench.guarded")


@pytest.mark.R1
@pytest.mark.R3
@pytest.mark.R4
@pytest.mark.R5
@pytest.mark.R7
def test_random_calls_in_guarded_memory():
    """A longer run is a command, `python -m bench.fuzz_functions`."""
    failures: list[str] = []
    counts = guarded.supervise("fuzz_functions", "calls", 5, 0, 150, failures.append)
    assert not failures
    assert sum(counts.values()) == 150


@pytest.mark.parametrize("beside", ["behind", "in front"])
def test_touching_a_guard_page_ends_the_worker(beside, run_python):
    code = f"""
import ctypes
from bench.guarded import guarded
array = guarded((3, 5), "float32", front={beside == "in front"})
assert (array != array).all()
print("inside", flush=True)
ctypes.string_at(array.ctypes.data + ({"-1" if beside == "in front" else "array.nbytes"}), 1)
print("outside")
"""
    done = run_python(code, check=False)
    assert done.returncode == -11
    assert done.stdout == "inside\n"


def test_wrong_numbers_and_other_bits_are_found(monkeypatch):
    number = next(n for n in range(1000) if (case := bench.Case(5, n)).kind == "numbers"
                  and case.one(*bench.CASES) is bench.spmm)  # fmt: skip
    plain = bench.fs.spmm

    def wrong(*args, **kwargs):
        y = plain(*args, **kwargs)
        y.flat[-1] += 1e-3 * max(1, np.abs(y).max())
        return y

    monkeypatch.setattr(bench.fs, "spmm", wrong)
    monkeypatch.setattr(bench.fs, "matmul", wrong)
    monkeypatch.setattr(bench.CSR, "__matmul__", wrong)
    with pytest.raises(AssertionError):
        bench.outcome(5, number)
