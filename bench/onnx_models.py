"""Trained ONNX files against onnxruntime: `python -m bench.onnx_models DIR`.

Every .onnx file below DIR goes through `fs.compile` as it is and pruned to 90%, on random inputs, on one thread. What
is printed: the largest difference from onnxruntime, relative to the largest output, and onnxruntime's time over ours.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

import fastsparse as fs
from fastsparse.onnx import pruning
from fastsparse.onnx.engine import GraphEngine

# Where a model leaves sizes open, by its axes: the first of them that onnxruntime takes.
_SIZES = [{4: (1, 3, n, m), 3: (1, 1, 128), 2: (1, k)} for n, m, k in ((320, 320, 512), (48, 320, 512), (64, 64, 64))]
_SECONDS = 0.6  # of both sides together


@dataclass(frozen=True)
class Result:
    """One model, dense or pruned: largest relative difference, and milliseconds of one call."""

    name: str
    difference: float
    ours: float
    theirs: float
    compiled: float
    kernels: int

    @property
    def ratio(self) -> float:
        """onnxruntime's time over ours."""
        return self.theirs / self.ours


def session(path: Path, threads: int) -> Any:
    """onnxruntime's session of a file."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def inputs_for(found: Any) -> dict[str, Any]:
    """Random numbers for all inputs: of the model's shapes, with usual sizes where it leaves them open."""
    rng, feeds = np.random.default_rng(0), dict[str, Any]()
    for sizes in _SIZES:
        for value in found.get_inputs():
            usual = sizes.get(len(value.shape), (1,) * len(value.shape))
            shape = [n if isinstance(n, int) and n > 0 else m for n, m in zip(value.shape, usual)]
            if value.name == "sr":  # a sampling rate
                feeds[value.name] = np.full(shape, 16000, np.int64)
            elif "float" in value.type:
                kind = np.float16 if "16" in value.type else np.float32
                feeds[value.name] = rng.standard_normal(shape).astype(kind)
            else:
                feeds[value.name] = rng.integers(0, 2, shape).astype(value.type[7:-1])
        with contextlib.suppress(Exception):
            found.run(None, feeds)
            break
    return feeds


def compared(path: Path, threads: int, tune: bool = True) -> Result:
    """Compile a file, and compare with onnxruntime."""
    baseline = session(path, threads)
    feeds = inputs_for(baseline)
    begin = time.perf_counter()
    engine: GraphEngine = fs.compile(path, {n: x.shape for n, x in feeds.items()}, threads=threads, tune=tune)
    compiled = time.perf_counter() - begin
    wanted = baseline.run(None, feeds)
    for _ in range(2):  # as it comes, and on memory that is shared
        difference = max((relative(a, b) for a, b in zip(engine.run(feeds), wanted)), default=0.0)
    ours, theirs = interleaved(lambda: engine.run(feeds), lambda: baseline.run(None, feeds))
    kernels = len(engine._for(engine._checked(feeds))._plan().kernels)
    return Result(path.stem, difference, ours * 1e3, theirs * 1e3, compiled, kernels)


def relative(ours: Any, theirs: Any) -> float:
    """Largest difference, relative to the largest number."""
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if a.shape != b.shape:
        return math.inf
    return float(np.abs(a - b).max(initial=0)) / (float(np.abs(b).max(initial=0)) or 1.0)


def interleaved(first: Callable[[], Any], second: Callable[[], Any]) -> tuple[float, float]:
    """Medians of two calls that take turns."""
    times: tuple[list[float], list[float]] = ([], [])
    begin = time.perf_counter()
    while len(times[0]) < 7 or time.perf_counter() - begin < _SECONDS:
        for call, taken in zip((first, second), times):
            start = time.perf_counter()
            call()
            taken.append(time.perf_counter() - start)
    return float(np.median(times[0])), float(np.median(times[1]))


def table(kind: str, results: Sequence[Result]) -> str:
    """A row per model, and worst and geometric mean."""
    lines = [f"{kind:40} {'difference':>10} {'ours ms':>9} {'ort ms':>9} {'ratio':>6} {'compile s':>9} {'regions':>7}"]
    lines += [
        f"{r.name[:40]:40} {r.difference:10.1e} {r.ours:9.3f} {r.theirs:9.3f} {r.ratio:6.2f} "
        f"{r.compiled:9.2f} {r.kernels:7}"
        for r in results
    ]
    if results:
        mean = math.exp(sum(math.log(r.ratio) for r in results) / len(results))
        worst, far = min(r.ratio for r in results), max(r.difference for r in results)
        lines.append(f"{'geometric mean / worst / difference':40} {mean:.2f}x / {worst:.2f}x / {far:.1e}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run all files; 1 when one fails or differs by more than 1e-4."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("-k", dest="only", default="", help="only files whose paths contain this")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-tune", action="store_true")
    args = parser.parse_args(argv)
    failed, every = 0, {"dense": list[Result](), "pruned to 90%": list[Result]()}
    with tempfile.TemporaryDirectory() as folder:
        for path in sorted(p for p in args.folder.rglob("*.onnx") if args.only in str(p)):
            for kind, results in every.items():
                try:
                    model = path
                    if kind != "dense":
                        model = Path(folder) / path.name
                        pruning.prune_onnx(path, model, 0.9)
                    results.append(compared(model, args.threads, not args.no_tune))
                except Exception as error:  # reported, and counted
                    failed += "no constant weight" not in str(error)
                    print(f"FAILED {kind} {path}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
                    continue
                print(table(kind, results[-1:]).splitlines()[1], kind, flush=True)
    for kind, results in every.items():
        print(f"\n{table(kind, results)}")
        failed += sum(r.difference > 1e-4 for r in results)
    print(f"\nonnx {onnx.__version__}, onnxruntime {onnxruntime.__version__}, {args.threads} thread(s)")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
