"""What the figures were measured on: processor, versions, commit; measured peaks and the round trip of a cache line."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import threading
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from fastsparse.runtime import measure
from fastsparse.runtime.info import version

PACKAGES = ("numpy", "scipy", "numba", "llvmlite", "tbb", "mkl", "torch", "onnxruntime", "sparseprop", "sparselab")
ROOT = Path(__file__).resolve().parent.parent
# What holds every library to AVX2; fastsparse follows Numba's target, which has the CPU's features unless others are
# named.
AVX2 = {
    "NUMBA_CPU_NAME": "haswell",
    "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma,+bmi,+bmi2,+popcnt,+sse4.2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
}
_BANDWIDTH_BYTES = 1 << 28
_ROUND_TRIPS = 1000  # of a measurement: few enough that most measurements are not interrupted


def describe() -> dict[str, Any]:
    """Processor, vector width, versions and commit."""
    import fastsparse as fs

    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        found = fs.show_config(file=nowhere)
    return {
        **{name: found[name] for name in ("cpu", "cpus", "vector_bits", "threading_layer")},
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "version": fs.__version__,
        "commit": commit(),
        "packages": {name: version(name) for name in PACKAGES},
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "environment": {name: os.environ[name] for name in AVX2 if name in os.environ},
    }


def peaks(*, quick: bool = False) -> dict[str, float]:
    """Of one core: multiply-adds per second on registers alone (as GF/s) and bytes per second from memory (as GB/s).

    Clocks wander by a fifth on shared machines: the best of two seconds counts, so that shares of it are not flattered.
    """
    fastest = 0.0
    for _ in range(2 if quick else 20):
        fastest = max(fastest, measure.measured_peak(32))
        time.sleep(0.1)
    return {"fma_gflops": fastest / 1e9, "bandwidth_gbs": _bandwidth(2 if quick else 5) / 1e9}


def _bandwidth(repeats: int) -> float:
    """Bytes per second of a copy of arrays that no cache holds, read and written bytes both counted."""
    source = np.ones(_BANDWIDTH_BYTES // 8)
    target = np.zeros_like(source)
    fastest = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        np.copyto(target, source)
        fastest = min(fastest, time.perf_counter() - started)
    return 2 * source.nbytes / fastest


def commit() -> str:
    """The checkout's commit, marked when files were changed after it."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", ROOT, *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        dirty = "-dirty" if git("status", "--porcelain", "--untracked-files=no") else ""
        return git("rev-parse", "--short", "HEAD") + dirty
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


# ----------------------------------------------------------------------------------------- round trip of a cache line


def round_trip(seconds: float = 0.2) -> float | None:
    """Seconds in which a cache line goes from one core to another and back; None where there are not two to choose.

    50 to 80 ns where two cores share an L3 cache, 300 and more where they do not (other chiplet, other socket): work
    that is shared finely scales as this allows. The best of many short measurements counts.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(cores) < 2:
        return None
    play, line, fastest = _ping_pong(), np.zeros(32, np.int64), float("inf")
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds:
        line[:] = 0
        partner = threading.Thread(target=_on_core, args=(cores[1], play, line, 1))
        partner.start()
        took = _on_core(cores[0], play, line, 0)
        partner.join()
        fastest = min(fastest, took / _ROUND_TRIPS)
    return fastest


def _on_core(core: int, play: Any, line: np.ndarray, turn: int) -> float:
    """Seconds from the first exchange, when both threads run, to the last one."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        play(line, turn, 1)
        begin = time.perf_counter()
        play(line, turn, _ROUND_TRIPS)
        return time.perf_counter() - begin
    finally:
        os.sched_setaffinity(0, before)


@cache
def _ping_pong() -> Any:
    """A function (line, turn, count): `count` times wait until line[8] is even (turn 0) or odd (turn 1), and add one.

    Loads and stores are atomic: plain ones the compiler would move out of the loop.
    """

    def atomic(operation: str) -> Any:
        @intrinsic
        def access(typingctx: Any, array: Any, value: Any) -> Any:
            def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
                data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
                pointer = builder.gep(data, [ir.Constant(ir.IntType(64), 8)])
                if operation == "load":
                    return builder.load_atomic(pointer, "seq_cst", 8)
                builder.store_atomic(arguments[1], pointer, "seq_cst", 8)
                return arguments[1]

            return types.int64(array, types.int64), codegen

        return access

    load, store = atomic("load"), atomic("store")

    @njit(types.void(types.int64[::1], types.int64, types.int64), nogil=True)
    def play(line, turn, count):  # type: ignore[no-untyped-def]
        for _ in range(count):
            seen = load(line, 0)
            while seen % 2 != turn:
                seen = load(line, 0)
            store(line, seen + 1)

    return play


# ------------------------------------------------------------------------------------------------- cores of threads


@contextlib.contextmanager
def cores_apart() -> Iterator[None]:
    """Keep the main thread on one core and all other threads of the process on the others, whoever started them.

    Some kernels (seen on virtual machines) wake a pool's thread on the core of the thread that waits for it and leave
    it there, so that two threads are as fast as one, in some processes and not in others. Threads must have been
    started before: one that is started inside stays with the thread that starts it. Does nothing on one core and on
    systems that cannot do it.
    """
    masks = thread_masks()
    here = masks.get(os.getpid(), set())
    if len(here) < 2:
        yield
        return
    first, *others = sorted(here)
    try:
        for thread in masks:
            move(thread, {first} if thread == os.getpid() else set(others))
        yield
    finally:
        for thread, mask in masks.items():
            move(thread, mask)


def thread_masks() -> dict[int, set[int]]:
    """The cores each thread of this process may use, by the thread's number; empty where the system does not tell."""
    masks: dict[int, set[int]] = {}
    if hasattr(os, "sched_getaffinity"):
        with contextlib.suppress(OSError):
            for name in os.listdir("/proc/self/task"):
                with contextlib.suppress(ProcessLookupError):
                    masks[int(name)] = os.sched_getaffinity(int(name))
    return masks


def move(thread: int, cores: set[int]) -> None:
    with contextlib.suppress(OSError):  # it has ended, or a control group took the cores away
        os.sched_setaffinity(thread, cores)
