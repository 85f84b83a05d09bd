"""What a new process waits for: imports, the first call, the kernel cache. Every figure from fresh processes.

`python -m bench.startup` prints them; `bench/test_startup.py` puts them beside the others.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent

_PREPARE = """
import time
import numba, numpy as np, scipy.sparse as sp
started = time.perf_counter()
"""
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
_WARMUP = _PREPARE + "import fastsparse as fs\nstarted = time.perf_counter()\nfs.warmup()" + _REPORT
_DEMO = _PREPARE + "from fastsparse.cli import main\nassert main(['demo', '--report', {report!r}]) == 0" + _REPORT


@dataclass(frozen=True)
class Wait:
    """One figure: what it is, the program that prints its seconds last, and whether its cache starts empty."""

    name: str
    program: str
    cold: bool
    repeats: int = 5
    target: float = 0.0


WAITS = [
    Wait("import fastsparse, beyond numba and scipy.sparse", _IMPORT, cold=False, target=0.2),
    Wait("first SpMM of a process, warm cache", _FIRST_CALL, cold=False, target=0.5),
    Wait("first SpMM of a process, empty cache", _FIRST_CALL, cold=True, repeats=1, target=10),
    Wait("warmup(), empty cache", _WARMUP, cold=True, repeats=1, target=90),
]
DEMOS = [
    Wait("whole demo, warm cache", _DEMO, cold=False, repeats=1, target=60),
    Wait("whole demo, empty cache", _DEMO, cold=True, repeats=1, target=120),
]


def measure(wait: Wait) -> list[float]:
    """Seconds of every repeat. A warm cache is filled by one run that does not count."""
    with tempfile.TemporaryDirectory() as directory:
        report = str(Path(directory) / "report.html")
        program = wait.program.replace("{report!r}", repr(report))
        if wait.cold:
            return [_run(program, Path(directory) / f"cache{i}") for i in range(wait.repeats)]
        cache = Path(directory) / "cache"
        _run(program, cache)
        return [_run(program, cache) for _ in range(wait.repeats)]


def _run(program: str, cache: Path) -> float:
    cache.mkdir(mode=0o700, exist_ok=True)
    paths = [str(_ROOT), str(_ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"FASTSPARSE_CACHE_DIR": str(cache), "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return float(done.stdout.split()[-1])


def main() -> None:
    """Print the figures one by one."""
    for wait in [*WAITS, *DEMOS]:
        seconds = measure(wait)
        print(f"{wait.name}: {statistics.median(seconds):.3f} s (target {wait.target} s)", flush=True)


if __name__ == "__main__":
    main()
