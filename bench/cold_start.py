"""What is paid once: imports, compiling, first calls, plans; and the memory of a first call and of training.

Every figure but that of plans comes from new processes. A measurement is seconds, one for each repeat, and facts.
"""

from __future__ import annotations

import json
import os
import resource
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


# ------------------------------------------------------------------------------------------------------------- memory


def memory(case: workloads.SparseInput, clock: Clock) -> Measured:
    """Bytes beyond x, W and the output in the first call of a process."""
    return _called("first_call", *(getattr(case, name) for name in case.__dataclass_fields__))


def training_memory(case: workloads.TrainingMemory, clock: Clock) -> Measured:
    """Peak memory of training one large sparse layer, stage by stage, beyond what importing fastsparse takes."""
    return _called("training", *(getattr(case, name) for name in case.__dataclass_fields__))


def _called(function: str, *arguments: Any) -> Measured:
    call = f"cold_start.{function}(*{arguments!r})"
    seconds, facts = _in_new_process(f"import json\nfrom bench import cold_start\nprint(json.dumps({call}))")
    return [seconds], facts


def first_call(*fields: Any) -> tuple[float, dict[str, Any]]:
    """In a process of its own: seconds and memory of a sparse product. Another, small one loads the kernels first."""
    from bench.baselines.products import SPARSE_INPUT
    from bench.workloads import SparseInput

    SPARSE_INPUT[0].setup(SparseInput(4, 100, 8, 0.9, 0.9), 1)()
    call = SPARSE_INPUT[0].setup(SparseInput(*fields), 1)
    before = _peak(anew=True)
    started = time.perf_counter()
    out = call()
    seconds = time.perf_counter() - started
    return seconds, {"bytes beyond": _peak() - before - out.nbytes}


def training(
    inputs: int, outputs: int, sparsity: float, batch: int, need_input: bool, steps: int
) -> tuple[float, dict[str, Any]]:
    """In a process of its own: seconds of some steps, and peaks in MB after each stage."""
    import fastsparse as fs
    from fastsparse import nn

    before, peaks = _peak(anew=True), dict[str, str]()

    def done(stage: str) -> None:
        peaks.setdefault(f"MB after {stage}", f"{(_peak() - before) / 1e6:.0f}")

    model = nn.SparseLinear(inputs, outputs, sparsity=sparsity, rng=0)
    done("layer")
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((batch, inputs), dtype=np.float32), rng.integers(0, outputs, batch)
    optimizer = fs.training.SGD(model.parameters(), 0.01, 0.9)
    done("batch and optimizer")
    started = time.perf_counter()
    for _ in range(steps):
        optimizer.zero_grad()
        output = model(x)
        done("forward")
        _, grad = fs.training.cross_entropy(output, y)
        model.backward(grad, need_input=need_input)
        done("backward")
        optimizer.step()
        done("update")
    seconds = time.perf_counter() - started
    done(f"{steps} steps")
    return seconds, {"MB after import": f"{before / 1e6:.0f}", **peaks}


def _peak(*, anew: bool = False) -> int:
    """Largest resident memory of this process in bytes, so far; `anew`, where Linux can do that, from now on."""
    if not Path("/proc/self/clear_refs").exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if anew:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
