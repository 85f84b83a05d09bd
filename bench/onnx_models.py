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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

import numpy as np
import onnx
import onnxruntime

import fastsparse as fs
from bench.baselines import onnx_session
from fastsparse import timing
from fastsparse.onnx import pruning
from fastsparse.onnx.engine import GraphEngine
from fastsparse.text_table import text_table

# Where a model leaves sizes open, by its axes: the first of them that onnxruntime takes.
_SIZES = [{4: (1, 3, n, m), 3: (1, 1, 128), 2: (1, k)} for n, m, k in ((320, 320, 512), (48, 320, 512), (64, 64, 64))]
_SECONDS = 0.6  # of both sides together


@dataclass(frozen=True)
class Result:
    """One model, dense or pruned: largest relative difference, milliseconds of a call, onnxruntime's time over ours."""

    name: str
    difference: float
    ours: float
    theirs: float
    ratio: float
    compiled: float
    kernels: int


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
    baseline = onnx_session(str(path), threads)
    feeds = inputs_for(baseline)
    begin = time.perf_counter()
    engine: GraphEngine = fs.compile(path, {n: x.shape for n, x in feeds.items()}, threads=threads, tune=tune)
    compiled = time.perf_counter() - begin
    wanted = baseline.run(None, feeds)
    for _ in range(2):  # as it comes, and on memory that is shared
        difference = max((relative(a, b) for a, b in zip(engine.run(feeds), wanted)), default=0.0)
    calls = {"ours": lambda: engine.run(feeds), "theirs": lambda: baseline.run(None, feeds)}
    ours, theirs = timing.interleaved(calls, seconds=_SECONDS, rounds=(7, 1000)).values()
    kernels = len(engine._for(engine._checked(feeds))._plan().kernels)
    ratio = timing.ratio(theirs, ours)
    return Result(path.stem, difference, median(ours) * 1e3, median(theirs) * 1e3, ratio, compiled, kernels)


def relative(ours: Any, theirs: Any) -> float:
    """Largest difference, relative to the largest number."""
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if a.shape != b.shape:
        return math.inf
    return float(np.abs(a - b).max(initial=0)) / (float(np.abs(b).max(initial=0)) or 1.0)


def table(kind: str, results: Sequence[Result]) -> str:
    """A row per model, and worst and geometric mean."""
    header = (kind, "difference", "ours ms", "onnxruntime ms", "ratio", "compile s", "regions")
    rows = [
        (r.name, f"{r.difference:.1e}", f"{r.ours:.3f}", f"{r.theirs:.3f}", f"{r.ratio:.2f}", f"{r.compiled:.2f}",
         str(r.kernels))
        for r in results
    ]  # fmt: skip
    if results:
        ratios, far = [r.ratio for r in results], max(r.difference for r in results)
        rows.append(("geometric mean", f"{far:.1e}", "", "", f"{geometric_mean(ratios):.2f}", "", ""))
        rows.append(("worst", "", "", "", f"{min(ratios):.2f}", "", ""))
    return text_table(header, rows, text=1)


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
                print(f"{kind}: {results[-1].name} {results[-1].ratio:.2f}x", flush=True)
    for kind, results in every.items():
        print(f"\n{table(kind, results)}")
        failed += sum(r.difference > 1e-4 for r in results)
    print(f"\nonnx {onnx.__version__}, onnxruntime {onnxruntime.__version__}, {args.threads} thread(s)")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
