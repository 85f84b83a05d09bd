"""What the figures were measured on: processor, versions, commit, measured FMA peak and memory bandwidth."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np

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


def describe() -> dict[str, Any]:
    """Processor, vector width, versions and commit."""
    import fastsparse as fs

    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        found = fs.show_config(file=nowhere)
    return {
        "cpu": found["cpu"],
        "cpus": found["cpus"],
        "vector_bits": found["vector_bits"],
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "threading_layer": found["threading_layer"],
        "fastsparse": fs.__version__,
        "commit": commit(),
        "packages": {name: version(name) for name in PACKAGES},
        "environment": {name: os.environ[name] for name in AVX2 if name in os.environ},
    }


def peaks() -> dict[str, float]:
    """Of one core: multiply-adds per second on registers alone (as GF/s) and bytes per second from memory (as GB/s).

    Clocks wander by a fifth on shared machines: the best of two seconds counts, so that shares of it are not flattered.
    """
    from fastsparse import launch_engine

    fastest = 0.0
    for _ in range(20):
        fastest = max(fastest, launch_engine.measured_peak(32))
        time.sleep(0.1)
    return {"fma_gflops": fastest / 1e9, "bandwidth_gbs": _bandwidth() / 1e9}


def _bandwidth() -> float:
    """Bytes per second of a copy of arrays that no cache holds, read and written bytes both counted."""
    source = np.ones(_BANDWIDTH_BYTES // 8)
    target = np.zeros_like(source)
    fastest = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        np.copyto(target, source)
        fastest = min(fastest, time.perf_counter() - started)
    return 2 * source.nbytes / fastest


def version(package: str) -> str | None:
    """Version of an installed distribution."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


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
