"""What is waited for once: plans, first calls of new processes; and the memory that a first call takes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench import dlmc, startup, workloads
from bench.machine import ROOT
from bench.providers import OURS

if TYPE_CHECKING:
    from bench.catalog import Chosen

Measured = tuple[dict[str, list[float]], dict[str, Any]]
Job = Callable[[], Any]
Clock = Callable[[], float]

_FRESH_PLANS = 7


@dataclass(frozen=True)
class Plan:
    """Layers whose plans are wanted: one random matrix, or every pruned convolution of ResNet-50."""

    name: str
    files: tuple[Path, ...] = ()


def plans(chosen: Chosen) -> list[Plan]:
    """One layer; and a network where its patterns are at hand."""
    found = [Plan("2048x512-N64-90%")]
    directory = chosen.dlmc and next((p for p in sorted(chosen.dlmc.rglob("0.9")) if "rn50" in p.parts), None)
    if directory:
        found.append(Plan("all of ResNet-50, batch 1, 90%", tuple(sorted(directory.glob("*.smtx")))))
    return found


def planning(case: Plan, clock: Clock = time.perf_counter) -> Measured:
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
    return {OURS: seconds}, {"layers": len(jobs)}


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


# --------------------------------------------------------------------------------------------- memory, new processes

MEMORY = workloads.SPARSE_INPUTS

# The peak of resident memory during the call, beyond what was there before and the output. Another, small, product
# loads the kernels first. Writing 5 to clear_refs starts the peak anew (Linux).
_MEMORY_PROGRAM = """
import gc
from bench.workloads import SparseInput
from bench.providers.sparse_input import PROVIDERS
def resident(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) * 1024
def setup(case):
    return PROVIDERS[0].setup(case, 1)
setup(SparseInput(4, 100, 8, 0.9, 0.9))()
call = setup(SparseInput({fields}))
gc.collect()
open("/proc/self/clear_refs", "w").write("5")
before = resident("VmRSS")
out = call()
print(resident("VmHWM") - before - out.nbytes)
"""


def memory(case: workloads.SparseInput, clock: Clock = time.perf_counter) -> Measured:
    """Bytes beyond x, W and the output in the first call of a process; None where the system does not tell."""
    if not Path("/proc/self/clear_refs").exists():
        return {}, {"bytes_beyond": None}
    fields = ", ".join(repr(getattr(case, name)) for name in case.__dataclass_fields__)
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    done = subprocess.run(
        [sys.executable, "-c", _MEMORY_PROGRAM.format(fields=fields)], env=os.environ | {"PYTHONPATH": paths},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "the process failed")
    return {}, {"bytes_beyond": int(done.stdout.split()[-1])}


def starting(wait: startup.Wait, clock: Clock = time.perf_counter) -> Measured:
    """Seconds that new processes wait, by the wall clock."""
    return {OURS: startup.measure(wait)}, {}
