"""Microseconds that one small call takes, where the work is little and what surrounds it is all: one thread.

python -m bench.small_calls [--rounds 200]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping

import numpy as np
import scipy.sparse as sp

import fastsparse as fs
from bench.providers import mkl

BLOCK = 50  # calls between two looks at the clock
SIZE, DENSITY = 64, 0.1
COLUMNS = (1, 8, 16, 64)

Call = Callable[[], object]


def contenders() -> dict[str, dict[str, Call]]:
    """By workload: who does it, and the call that does it."""
    rng = np.random.default_rng(0)
    weight = sp.csr_array(sp.random(SIZE, SIZE, DENSITY, "csr", np.float32, rng=rng))
    matrix = fs.csr(weight)
    found: dict[str, dict[str, Call]] = {}
    for n in COLUMNS:
        x, y = rng.standard_normal((SIZE, n), np.float32), np.empty((SIZE, n), np.float32)
        found[f"spmm {SIZE}x{SIZE}, N = {n}"] = {
            "out": lambda x=x, y=y: fs.spmm(matrix, x, out=y),
            "@": lambda x=x: matrix @ x,
            "scipy": lambda x=x: weight @ x,
            **({"mkl": mkl.spmm(weight, x, 1)} if mkl.available() else {}),
        }
    for activation in (None, "relu"):
        layer = fs.nn.SparseLinear.from_dense(weight, np.zeros(SIZE, np.float32), activation=activation).eval()
        for batch in (1, 16):
            samples = rng.standard_normal((batch, SIZE), np.float32)
            found[f"SparseLinear, {activation}, batch {batch}"] = {"call": lambda x=samples, f=layer: f(x)}
    return found


def microseconds(calls: Mapping[str, Call], rounds: int) -> dict[str, float]:
    """Median over the rounds of a call's mean time; the contenders take turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            call()
            start = time.perf_counter()
            for _ in range(BLOCK):
                call()
            times[name].append((time.perf_counter() - start) / BLOCK)
    return {name: 1e6 * statistics.median(seconds) for name, seconds in times.items()}


def main() -> None:
    """Print one line for each workload."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    rounds = parser.parse_args().rounds
    with fs.threads(1):
        for workload, calls in contenders().items():
            found = microseconds(calls, rounds)
            print(f"{workload:<32}", *(f"{name} {value:6.1f} us" for name, value in found.items()), sep="  ")


if __name__ == "__main__":
    main()
