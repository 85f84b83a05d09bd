"""Timing an ONNX model's engine, and other engines on the same inputs: `fastsparse bench MODEL.onnx`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
from tqdm import tqdm

from fastsparse import launch, runtime
from fastsparse.engine.report import Benchmark, timed_calls
from fastsparse.onnx.engine import GraphEngine, compile_onnx
from fastsparse.onnx.model import Array

RIVALS = ("onnxruntime",)
_HEADER = ("batch", "engine", "p50", "p95", "p99", "samples/s", "faster", "largest difference")


@dataclass(frozen=True)
class Result:
    """One engine on one batch size; `difference` is the largest, relative to the largest output of the rival."""

    batch: int
    engine: str
    times: Benchmark
    difference: float | None = None


def require(against: Sequence[str]) -> None:
    """Say which packages are missing."""
    missing = [name for name in ("onnx", *against) if find_spec(name) is None]
    if missing:
        raise ImportError(f"this needs {', '.join(missing)}: pip install {' '.join(missing)}")


def race(
    path: str | os.PathLike[str],
    batches: Sequence[int],
    against: Sequence[str],
    seconds: float,
    threads: int,
    shapes: dict[str, tuple[int, ...]] | None = None,
    progress: bool = True,
) -> list[Result]:
    """Time the model on batches, with equal threads on all sides and with the caller's arrays in and out.

    Results are compared before anything is timed. `shapes` are for inputs whose sizes the model leaves open.
    """
    require(against)
    threads = launch.workers_for(threads)  # rivals would start as many as they are told
    results: list[Result] = []
    steps = len(batches) * (1 + len(against))
    with tqdm(total=steps, disable=not progress, unit="run", leave=False) as bar, _blas(threads):
        bar.set_description("compile")
        engine: GraphEngine | None = None
        rivals = {name: _RIVALS[name](path, threads) for name in against}
        for batch in batches:
            bar.set_description(f"fastsparse, batch {batch}")
            if engine is None:
                engine = compile_onnx(path, shapes, threads=threads, tune=False)
            inputs = engine.random_inputs(batch)
            engine.prepare([x.shape for x in inputs], tune=True)
            outputs = engine.run(inputs)
            results.append(Result(batch, "fastsparse", timed_calls(partial(engine.run, inputs), batch, seconds)))
            bar.update()
            for name, rival in rivals.items():
                bar.set_description(f"{name}, batch {batch}")
                found = rival(engine, inputs)
                difference = max(map(_relative, outputs, found), default=0.0)
                times = timed_calls(partial(rival, engine, inputs), batch, seconds)
                results.append(Result(batch, name, times, difference))
                bar.update()
    return results


def _relative(ours: Array, other: Any) -> float:
    """Largest difference, relative to the largest of the other's numbers."""
    a, b = np.asarray(ours, np.float64), np.asarray(other, np.float64)
    if a.shape != b.shape:
        return float("inf")
    if not a.size:
        return 0.0
    top = float(np.max(np.abs(b)))
    return float(np.max(np.abs(a - b))) / (top or 1.0)


def _onnxruntime(path: str | os.PathLike[str], threads: int) -> Callable[[GraphEngine, list[Array]], list[Any]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    return lambda engine, inputs: list(session.run(None, dict(zip(engine.input_names, inputs))))


_RIVALS: dict[str, Callable[[Any, int], Callable[[GraphEngine, list[Array]], list[Any]]]] = {
    "onnxruntime": _onnxruntime
}


@contextlib.contextmanager
def _blas(threads: int) -> Iterator[None]:
    """Give BLAS, which host steps use, as many threads as the engines, where that can be said."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(runtime.threads(threads))
        if find_spec("threadpoolctl") is not None:
            from threadpoolctl import threadpool_limits

            stack.enter_context(threadpool_limits(threads))
        yield


def table(results: Sequence[Result]) -> str:
    """Rows per batch size; `faster` is the rival's median over ours."""
    ours = {r.batch: r.times.p50 for r in results if r.engine == "fastsparse"}
    rows = [_HEADER]
    for r in results:
        rival = r.difference is not None
        rows.append((
            str(r.batch), r.engine, f"{r.times.p50:.3f} ms", f"{r.times.p95:.3f} ms", f"{r.times.p99:.3f} ms",
            f"{r.times.throughput:,.1f}", f"{r.times.p50 / ours[r.batch]:.2f}x" if rival else "",
            f"{r.difference:.1e}" if rival else "",
        ))  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADER))]
    lines = [
        "  ".join(cell.ljust(w) if i == 1 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])
