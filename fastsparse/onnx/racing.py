"""Timing an ONNX model's engine, and other engines on the same inputs: `fastsparse bench MODEL.onnx`."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from statistics import median
from typing import Any

import numpy as np
from tqdm import tqdm

from fastsparse import html_page
from fastsparse.engine.report import Benchmark, summed_up
from fastsparse.onnx.engine import GraphEngine, compile_onnx
from fastsparse.onnx.model import Array
from fastsparse.runtime.threads import threads as fastsparse_threads
from fastsparse.runtime.threads import usable_threads
from fastsparse.text_table import text_table
from fastsparse.timing import latencies, ratio

BASELINES = ("onnxruntime",)
_COLUMNS = ("batch", "engine", "p50", "p95", "p99", "samples/s", "faster", "largest difference")
_TEXT = 2  # columns of text

Run = Callable[[GraphEngine, list[Array]], list[Any]]


@dataclass(frozen=True)
class Result:
    """One engine on one batch size.

    Attributes
    ----------
    batch : int
    engine : str
    times : Benchmark
    faster : float or None
        Of a baseline: how many times faster fastsparse is, the median of the ratios within a round.
    difference : float or None
        Of a baseline: the largest difference to its outputs, relative to the largest of them.
    """

    batch: int
    engine: str
    times: Benchmark
    faster: float | None = None
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
    """Time the model on batches in interleaved rounds, with equal threads for all and with the caller's arrays.

    Results are compared before anything is timed. `shapes` are for inputs whose sizes the model leaves open.
    """
    require(against)
    threads = usable_threads(threads)  # baselines would start as many as they are told
    results: list[Result] = []
    with tqdm(batches, "compile", disable=not progress, unit="batch size", leave=False) as bar, _blas(threads):
        engine = compile_onnx(path, shapes, threads=threads, tune=False)
        baselines = {name: _BASELINES[name](path, threads) for name in against}
        for batch in bar:
            bar.set_description(f"batch {batch}")
            inputs = engine.random_inputs(batch)
            engine.prepare([x.shape for x in inputs], tune=True)
            outputs = engine.run(inputs)
            differences: dict[str, float | None] = {"fastsparse": None}
            calls: dict[str, Callable[[], object]] = {"fastsparse": partial(engine.run, inputs)}
            for name, run in baselines.items():
                differences[name] = max(map(_relative, outputs, run(engine, inputs)), default=0.0)
                calls[name] = partial(run, engine, inputs)
            found = latencies(calls, seconds)
            medians = {name: [median(taken) for taken in rounds] for name, rounds in found.items()}
            for name, rounds in found.items():
                times = summed_up([second for taken in rounds for second in taken], batch)
                faster = ratio(medians[name], medians["fastsparse"]) if name in baselines else None
                results.append(Result(batch, name, times, faster, differences[name]))
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


def _onnxruntime(path: str | os.PathLike[str], threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    return lambda engine, inputs: list(session.run(None, dict(zip(engine.input_names, inputs))))


_BASELINES: dict[str, Callable[[Any, int], Run]] = {"onnxruntime": _onnxruntime}


@contextlib.contextmanager
def _blas(threads: int) -> Iterator[None]:
    """Give BLAS, which host steps use, as many threads as the engines, where that can be said."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(fastsparse_threads(threads))
        if find_spec("threadpoolctl") is not None:
            from threadpoolctl import threadpool_limits

            stack.enter_context(threadpool_limits(threads))
        yield


def table(results: Sequence[Result]) -> str:
    """The results as text."""
    return text_table(_COLUMNS, [_cells(r) for r in results], text=_TEXT)


def page(path: str | os.PathLike[str], results: Sequence[Result], threads: int) -> str:
    """The results as a page of HTML."""
    rounds = f"Interleaved rounds, threads for every engine: {threads}; arrays of the caller go in and come out."
    return html_page.page(
        f"{os.path.basename(path)}: measured",
        html_page.paragraph(rounds),
        html_page.table(_COLUMNS, [_cells(r) for r in results], text=_TEXT),
    )


def to_json(path: str | os.PathLike[str], results: Sequence[Result], threads: int) -> str:
    """The results as one object of JSON; times are in milliseconds."""
    return json.dumps({"model": os.fspath(path), "threads": threads, "results": [asdict(r) for r in results]}, indent=1)


def _cells(r: Result) -> tuple[str, ...]:
    return (
        str(r.batch), r.engine, f"{r.times.p50:.3f} ms", f"{r.times.p95:.3f} ms", f"{r.times.p99:.3f} ms",
        f"{r.times.throughput:,.1f}", "" if r.faster is None else f"{r.faster:.2f}x",
        "" if r.difference is None else f"{r.difference:.1e}",
    )  # fmt: skip
