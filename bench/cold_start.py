"""What is paid once: imports, compiling, first calls, plans.

Every figure but that of plans comes from new processes. A measurement is seconds, one for each repeat, and facts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench import dlmc, workloads
from bench.machine import ROOT

Measured = tuple[list[float], dict[str, Any]]
Job = Callable[[], Any]
Clock = Callable[[], float]


def _in_new_process(program: str, cache: Path | None = None) -> Any:
    """What a program prints last, which is JSON; with a kernel cache of its own where one is given."""
    paths = [str(ROOT), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    if cache is not None:
        cache.mkdir(mode=0o700, exist_ok=True)
        environment["FASTSPARSE_CACHE_DIR"] = str(cache)
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "the process failed")
    return json.loads(done.stdout.splitlines()[-1])


# ------------------------------------------------------------------------------------------------------ new processes

_PREPARE = "import time, numba, numpy as np, scipy.sparse as sp\nstarted = time.perf_counter()\n"
_REPORT = "\nprint(time.perf_counter() - started)\n"
_MATRIX = """
import fastsparse as fs
rng = np.random.default_rng(0)
W = fs.csr(sp.random_array((2048, 512), density=0.1, dtype=np.float32, rng=rng))
X = rng.standard_normal((512, 1024), dtype=np.float32)
started = time.perf_counter()
"""
_IMPORT = _PREPARE + "import fastsparse" + _REPORT
_FIRST_CALL = _PREPARE + _MATRIX + "fs.spmm(W, X)" + _REPORT
_CONVOLUTION = """
import fastsparse as fs
rng = np.random.default_rng(0)
W = fs.csr(sp.random_array((64, 576), density=0.1, dtype=np.float32, rng=rng))
x, grad = (rng.standard_normal((BATCH, 64, 28, 28), dtype=np.float32) for _ in range(2))
started = time.perf_counter()
"""
_CONV = _PREPARE + _CONVOLUTION.replace("BATCH", "1") + "fs.conv2d(x, W, kernel_size=3, padding=1)" + _REPORT
_BACKWARD = (
    _PREPARE
    + _CONVOLUTION.replace("BATCH", "16")
    + "fs.conv2d_backward(grad, x, W, kernel_size=3, padding=1)"
    + _REPORT
)
_STEP = """
from fastsparse import nn, training
model = nn.Sequential(nn.SparseLinear(784, 256, sparsity=0.9, rng=0), nn.ReLU(), nn.SparseLinear(256, 10, rng=1))
optimizer = training.SGD(model.parameters(), 0.1)
x, labels = np.ones((64, 784), np.float32), np.arange(64) % 10
started = time.perf_counter()
model.backward(training.cross_entropy(model(x), labels)[1], need_input=False)
optimizer.step()
"""
_TRAINING = _PREPARE + _STEP + _REPORT
_WARMUP = _PREPARE + "import fastsparse as fs\nstarted = time.perf_counter()\nfs.warmup()" + _REPORT
_DEMO = _PREPARE + "from fastsparse.cli import main\nassert main(['demo', '--report', 'REPORT']) == 0" + _REPORT


@dataclass(frozen=True)
class Start:
    """What a new process does: a program that prints its seconds last; whether its kernel cache is empty at first.

    whole : the seconds are those of the process, with its start and imports
    """

    name: str
    program: str
    cold: bool
    repeats: int = 5
    target: float = 0.0
    whole: bool = False


STARTS = [
    Start("import fastsparse, beyond numba and scipy.sparse", _IMPORT, cold=False, target=0.2),
    Start("first SpMM of a process, warm cache", _FIRST_CALL, cold=False, target=0.5),
    Start("first conv2d of a process, warm cache", _CONV, cold=False, target=0.5),
    Start("first training step of a process, warm cache", _TRAINING, cold=False, target=1),
    Start("process with a first SpMM, empty cache", _FIRST_CALL, cold=True, repeats=3, target=1.5, whole=True),
    Start("process with a first conv2d, empty cache", _CONV, cold=True, repeats=3, target=1.5, whole=True),
    Start("process with a first conv2d_backward, empty cache", _BACKWARD, cold=True, repeats=3, target=4, whole=True),
    Start("warmup(), empty cache", _WARMUP, cold=True, repeats=1, target=90),
]
DEMOS = [
    Start("whole demo, warm cache", _DEMO, cold=False, repeats=1, target=60),
    Start("whole demo, empty cache", _DEMO, cold=True, repeats=1, target=35, whole=True),
]


def start(case: Start, clock: Clock) -> Measured:
    """Seconds by the wall clock. A warm cache is filled by one run that does not count."""
    with tempfile.TemporaryDirectory() as directory:
        program = case.program.replace("REPORT", str(Path(directory) / "report.html"))
        caches = [Path(directory) / f"cache{i if case.cold else 0}" for i in range(case.repeats)]
        if not case.cold:
            _in_new_process(program, caches[0])
        seconds = []
        for cache in caches:
            started = time.perf_counter()
            inside = float(_in_new_process(program, cache))
            seconds.append(time.perf_counter() - started if case.whole else inside)
    return seconds, {"target": f"{case.target:g} s"}


# -------------------------------------------------------------------------------------------------------------- plans

_FRESH_PLANS = 7


@dataclass(frozen=True)
class Plan:
    """Layers whose plans are wanted: one random matrix, or every pruned convolution of ResNet-50."""

    name: str
    files: tuple[Path, ...] = ()


def plans(directory: Path | None) -> list[Plan]:
    """One layer; and a network where its patterns are at hand."""
    found = [Plan("2048x512-N64-90%")]
    pruned = directory and next((p for p in sorted(directory.rglob("0.9")) if "rn50" in p.parts), None)
    if pruned:
        found.append(Plan("all of ResNet-50, batch 1, 90%", tuple(sorted(pruned.glob("*.smtx")))))
    return found


def plan(case: Plan, clock: Clock) -> Measured:
    """Time of a first call on a new pattern beyond that of the second: planning and packing the values.

    A first pass over all layers does not count: it loads the kernels.
    """
    seconds = []
    for turn in range(1 + (3 if case.files else _FRESH_PLANS)):
        jobs = _layer_jobs(case)
        total = 0.0
        for job in jobs:
            first, second = _seconds(job, clock), min(_seconds(job, clock), _seconds(job, clock))
            total += first - second
        if turn:
            seconds.append(max(total, 0.0))
    return seconds, {"layers": len(jobs)}


def _layer_jobs(case: Plan) -> list[Job]:
    """Calls on matrices that nobody has seen."""
    import fastsparse as fs

    if not case.files:
        product = workloads.Spmm(2048, 512, 64)
        weight, x = fs.csr(product.weight), product.x
        return [lambda: fs.spmm(weight, x)]
    return [_layer_job(file) for file in case.files]


def _layer_job(file: Path) -> Job:
    import fastsparse as fs

    _, columns, _ = dlmc.shape_of(file)
    rng = np.random.default_rng(0)
    geometry = dlmc.convolution_of(file)
    if file.stem.startswith("final"):
        weight = fs.csr(workloads.pruned_convolution(file, columns, rng))
        features = rng.standard_normal(columns, dtype=np.float32)
        return lambda: fs.spmm(weight, features)
    side, kernel, stride = geometry or (224, 7, 2)
    channels = columns // kernel**2
    weight = fs.csr(workloads.pruned_convolution(file, channels, rng))
    x = rng.standard_normal((1, channels, side, side), dtype=np.float32)
    return lambda: fs.conv2d(x, weight, kernel_size=kernel, stride=stride, padding=kernel // 2)


def _seconds(job: Job, clock: Clock) -> float:
    started = clock()
    job()
    return clock() - started
