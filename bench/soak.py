"""Slow evidence: minutes of concurrent calls, forks and interrupts, and arrays past 4 GB, on every threading layer.

`python -m bench.soak --minutes 10` runs threads that call everything at random and compare every result, bit for bit,
with what one thread computed before; meanwhile children are forked and compute too, and calls are interrupted.
Resident memory must not grow. `--large` multiplies with an X of more than 4 GB (6 GB of address space, little of it
touched). `--engine MODEL.onnx` has the threads call one engine instead, of a small network where no model is named. The
exit code is 1 when anything was wrong.
"""

from __future__ import annotations

import argparse
import faulthandler
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import sparse

import fastsparse as fs

LAYERS = ("tbb", "omp", "workqueue")
Call = Callable[[], Any]


def cases(seed: int) -> list[Call]:
    """Calls of every kind on matrices of many sizes, large enough for parallel regions or not."""
    rng = np.random.default_rng(seed)
    found: list[Call] = []
    for dtype, size in itertools.product(("float32", "float64"), (40, 150, 400)):
        rows, columns, samples = (int(n) for n in rng.integers(size // 2, size, 3))
        W = fs.csr(rng.standard_normal((rows, columns)) * (rng.random((rows, columns)) < 0.15), dtype)
        X, G = rng.standard_normal((columns, samples)).astype(dtype), rng.standard_normal((samples, rows)).astype(dtype)
        x = sparse.csr_array(X.T * (X.T > 0.5))
        bias = rng.standard_normal(rows).astype(dtype)
        F = fs.csr(rng.standard_normal((16, 8 * 9)) * (rng.random((16, 72)) < 0.3), dtype)
        images = rng.standard_normal((int(rng.integers(1, 40)), 8, size // 10, size // 9)).astype(dtype)
        conv = {"kernel_size": 3, "padding": 1, "stride": int(rng.integers(1, 3))}
        dy = fs.conv2d(images, F, **conv)
        found += [
            lambda W=W, X=X, b=bias: fs.spmm(W, X, bias=b, activation="gelu"),
            lambda W=W, X=X: fs.spmm(W, np.asfortranarray(X)),
            lambda W=W, X=X: fs.spmm(W, X[:, 0]),
            lambda W=W, X=X, b=bias: fs.linear(X.T, W, b, activation="relu"),
            lambda W=W, X=X, G=G: fs.linear_backward(G, X.T, W),
            lambda W=W, x=x, b=bias: fs.linear(x, W, b),
            lambda W=W, x=x, G=G: fs.linear_backward(G, x, W),
            lambda F=F, i=images, c=conv: fs.conv2d(i, F, **c),
            lambda F=F, i=images, c=conv: fs.conv2d(i[:1], F, **c),
            lambda F=F, i=images, c=conv, dy=dy: fs.conv2d_backward(dy, i, F, **c),
            lambda W=W, X=X, G=G: fs.sddmm(W.pattern, G.T, X.T).data,
            lambda W=W, X=X: fs.csr(W.to_scipy()) @ X,  # a pattern without plans
        ]
    return found


def bits(result: Any) -> bytes:
    """All numbers of a result."""
    return b"".join(np.ascontiguousarray(a).tobytes() for a in (result if isinstance(result, tuple) else (result,)))


def resident() -> int:
    """Resident memory in bytes (0 where the system does not tell)."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


class Soak:
    """Threads that compute and compare, until told to stop."""

    def __init__(self, seed: int) -> None:
        self.calls = cases(seed)
        with fs.threads(1):
            self.expected = [bits(call()) for call in self.calls]
        self.stop = threading.Event()
        self.done = 0
        self.wrong: list[str] = []

    def check(self, rng: np.random.Generator) -> None:
        """One call, with some number of threads."""
        i = int(rng.integers(len(self.calls)))
        with fs.threads(int(rng.integers(1, 5))):
            if bits(self.calls[i]()) != self.expected[i]:
                self.wrong.append(f"call {i}")
        self.done += 1

    def work(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            while not self.stop.is_set():
                self.check(rng)
        except BaseException as error:
            self.wrong.append(repr(error))
            raise

    def fork(self, seed: int) -> None:
        """A child computes while other threads of the parent do."""
        child = os.fork()
        if not child:
            faulthandler.dump_traceback_later(120, exit=True)
            code = 9
            try:
                here = Soak.__new__(Soak)
                here.calls, here.expected, here.wrong, here.done = self.calls, self.expected, [], 0
                rng = np.random.default_rng(seed)
                for _ in range(10):
                    here.check(rng)
                code = 1 if here.wrong else 0
            finally:
                os._exit(code)
        status = os.waitpid(child, 0)[1]
        if status:
            self.wrong.append(f"child ended with status {status}")

    def interrupt(self, seed: int) -> None:
        """Ctrl-C somewhere in this (the main) thread's calls; everything works afterwards."""
        rng = np.random.default_rng(seed)
        timer = threading.Timer(float(rng.random()) * 0.2, os.kill, (os.getpid(), signal.SIGINT))
        try:
            timer.start()
            while timer.is_alive():
                self.check(rng)
            time.sleep(10)
            self.wrong.append("an interrupt was lost")
        except KeyboardInterrupt:
            timer.join()


def soak(minutes: float, threads: int, seed: int) -> int:
    """Run one layer in this process."""
    faulthandler.register(signal.SIGUSR1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells tell what they start with & to ignore it
    state = Soak(seed)
    workers = [threading.Thread(target=state.work, args=(seed + 1 + i,)) for i in range(threads)]
    for worker in workers:
        worker.start()
    end, memory, rounds = time.monotonic() + 60 * minutes, [], 0
    try:
        while time.monotonic() < end and not state.wrong:
            rounds += 1
            state.fork(seed + 1000 + rounds)
            state.interrupt(seed + 2000 + rounds)
            memory.append(resident())
            time.sleep(0.3)
    finally:
        state.stop.set()
        for worker in workers:
            worker.join()
    layer = fs.show_config(file=sys.stderr)["threading_layer"]
    settled, last = max(memory[: len(memory) // 3 + 1], default=0), memory[-1] if memory else 0
    if last > 1.15 * settled + 20e6:
        state.wrong.append(f"memory grew from {settled / 1e6:.0f} to {last / 1e6:.0f} MB")
    print(f"{layer}: {state.done} calls, {rounds} forks and interrupts, {settled / 1e6:.0f} -> {last / 1e6:.0f} MB")
    for problem in sorted(set(state.wrong)):
        print(f"{layer}: WRONG: {problem}")
    return 1 if state.wrong else 0


def large() -> int:
    """X of more than 4 GB, of which only the rows that count are touched before the product."""
    rows, columns = 2**16 + 5, 2**14 + 3
    X = np.zeros((rows, columns), np.float32)
    W = fs.CSR([0, 2, 3], [3, rows - 1, rows - 2], np.array([1, 2, 3], np.float32), (2, rows))
    X[3], X[rows - 1], X[rows - 2] = np.arange(columns) % 100, 7, np.arange(columns) % 50
    expected = np.stack([X[3] + 14, 3 * X[rows - 2]])
    right = np.array_equal(fs.spmm(W, X), expected)
    x = np.zeros((columns, rows), np.float32)
    x[:, 3], x[:, rows - 1], x[:, rows - 2] = X[3], 7, X[rows - 2]
    del X
    right &= np.array_equal(fs.linear(x, W).T, expected)
    print(f"X of {x.nbytes / 2**30:.1f} GB: {'right' if right else 'WRONG'}")
    return 0 if right else 1


def engine(model: str, minutes: float, threads: int) -> int:
    """Threads that call one engine, and compare every output with what one of them got alone."""
    from fastsparse import nn

    if model:
        found: Any = fs.compile(model)
        shape = found.input_shape
    else:
        shape = (1, 3, 16, 16)
        network = nn.Sequential(
            nn.SparseConv2d(3, 32, 3, padding=1, activation="relu", rng=0), nn.MaxPool2d(2),
            nn.SparseConv2d(32, 64, 3, padding=1, activation="relu", rng=1), nn.Flatten(),
            nn.SparseLinear(64 * 64, 10, rng=2),
        )  # fmt: skip
        found = fs.compile(network, shape)
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal(shape, np.float32) for _ in range(8)]
    expected = [bits(found.run([x])[0]) for x in inputs]
    calls, wrong, end = [0] * threads, [0] * threads, time.monotonic() + 60 * minutes

    def work(caller: int) -> None:
        while time.monotonic() < end:
            i = (caller + calls[caller]) % len(inputs)
            wrong[caller] += bits(found.run([inputs[i]])[0]) != expected[i]
            calls[caller] += 1

    workers = [threading.Thread(target=work, args=(caller,)) for caller in range(threads)]
    for worker in workers:
        worker.start()
    time.sleep(6 * minutes)  # a tenth
    before = resident()
    for worker in workers:
        worker.join()
    grown = resident() - before
    print(f"{threads} callers: {sum(calls)} calls, {sum(wrong)} wrong; memory grew by {grown / 2**20:.1f} MB")
    return int(sum(wrong) > 0 or min(calls) == 0 or grown > 8 * 2**20)


def main() -> int:
    """Run the layers in processes of their own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=3.0, help="for each layer")
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--large", action="store_true", help="multiply arrays of more than 4 GB as well")
    parser.add_argument("--engine", nargs="?", const="", metavar="MODEL.onnx", help="call an engine instead")
    parser.add_argument("--layer", choices=LAYERS, help="this layer only, in this process")
    options = parser.parse_args()
    if options.engine is not None:
        return engine(options.engine, options.minutes, options.threads)
    if options.layer:
        return soak(options.minutes, options.threads, options.seed)
    failed = large() if options.large else 0
    for layer in LAYERS:
        environment = {**os.environ, "NUMBA_THREADING_LAYER": "default" if layer == "tbb" else layer}
        arguments = [f"--minutes={options.minutes}", f"--threads={options.threads}", f"--seed={options.seed}"]
        failed |= subprocess.call([sys.executable, "-m", "bench.soak", f"--layer={layer}", *arguments], env=environment)
    return failed


if __name__ == "__main__":
    sys.exit(main())
