"""Timing the engine of an ONNX or TFLite model, and other engines on the same inputs: `fastsparse bench MODEL`."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any

import numpy as np
from tqdm import tqdm

from fastsparse import extras, html_page
from fastsparse.engine.report import Benchmark, summed_up
from fastsparse.onnx.engine import GraphEngine, compile_onnx
from fastsparse.onnx.model import Array
from fastsparse.runtime.threads import threads as fastsparse_threads
from fastsparse.runtime.threads import usable_threads
from fastsparse.text_table import text_table
from fastsparse.tflite.to_onnx import model_of as tflite_model
from fastsparse.timing import latencies, ratio

BASELINES = ("onnxruntime", "litert")
_PACKAGES = {"onnxruntime": "onnxruntime", "litert": "ai-edge-litert"}
_MODULES = {"onnxruntime": "onnxruntime", "litert": "ai_edge_litert"}
_COLUMNS = ("batch", "engine", "p50", "p95", "p99", "samples/s", "fastsparse is", "largest difference")
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


def race(
    path: str | os.PathLike[str],
    batches: Sequence[int | None],
    against: Sequence[str],
    seconds: float,
    threads: int,
    shapes: dict[str, tuple[int, ...]] | None = None,
    progress: bool = True,
) -> list[Result]:
    """Time the model on batches in interleaved rounds, with equal threads for all and with the caller's arrays.

    Results are compared before anything is timed. A batch of None is that of the model or of `shapes`, which are for
    inputs whose sizes the model leaves open, else 1.
    """
    if "litert" in against and not _is_tflite(path):
        raise ValueError(f"{os.fspath(path)} is no TFLite model, which is what litert runs")
    for name in against:
        if not extras.installed(_MODULES[name]):
            raise ModuleNotFoundError(f"--against {name} needs {_PACKAGES[name]}: pip install {_PACKAGES[name]}")
    source = tflite_model(path) if _is_tflite(path) else path
    threads = usable_threads(threads)  # baselines would start as many as they are told
    results: list[Result] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(fastsparse_threads(threads))
        bar = stack.enter_context(tqdm(batches, "compile", disable=not progress, unit="batch size", leave=False))
        engine = compile_onnx(source, shapes, threads=threads, tune=False)
        baselines = {name: _BASELINES[name](path if name == "litert" else source, threads) for name in against}
        for batch in bar:
            inputs = engine.random_inputs(batch)
            count = batch or (len(inputs[0]) if inputs and inputs[0].ndim else 1)
            bar.set_description(f"batch {count}")
            engine.prepare([x.shape for x in inputs], tune=True)
            outputs = engine.run(inputs)
            differences: dict[str, float] = {}
            calls: dict[str, Callable[[], object]] = {"fastsparse": partial(engine.run, inputs)}
            for name, run in baselines.items():
                differences[name] = max(map(_relative, outputs, run(engine, inputs)), default=0.0)
                calls[name] = partial(run, engine, inputs)
            found = latencies(calls, seconds)
            medians = {name: [median(taken) for taken in rounds] for name, rounds in found.items()}
            for name, rounds in found.items():
                times = summed_up([second for taken in rounds for second in taken], count)
                faster = ratio(medians[name], medians["fastsparse"]) if name in baselines else None
                results.append(Result(count, name, times, faster, differences.get(name)))
    return results


def _relative(ours: Array, other: Any) -> float:
    """Largest difference, relative to the largest of the other's numbers."""
    a, b = np.asarray(ours, np.float64), np.asarray(other, np.float64)
    if a.shape != b.shape:
        return float("inf")
    if not a.size:
        return 0.0
    return float(np.max(np.abs(a - b)) / (np.max(np.abs(b)) or 1.0))


def _is_tflite(path: str | os.PathLike[str]) -> bool:
    return os.fspath(path).endswith(".tflite")


def _onnxruntime(model: Any, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    source = os.fspath(model) if isinstance(model, (str, os.PathLike)) else model.SerializeToString()
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return lambda engine, inputs: list(session.run(None, dict(zip(engine.input_names, inputs))))


def _litert(path: str | os.PathLike[str], threads: int) -> Run:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(os.fspath(path), num_threads=threads)
    sources, results = ([end["index"] for end in ends] for ends in
                        (interpreter.get_input_details(), interpreter.get_output_details()))  # fmt: skip
    shapes: list[tuple[int, ...]] = []

    def run(engine: GraphEngine, inputs: list[Array]) -> list[Any]:
        found = [x.shape for x in inputs]
        if found != shapes:
            for source, shape in zip(sources, found):
                interpreter.resize_tensor_input(source, shape)
            interpreter.allocate_tensors()
            shapes[:] = found
        for source, x in zip(sources, inputs):
            interpreter.set_tensor(source, x)
        interpreter.invoke()
        return [interpreter.get_tensor(result) for result in results]

    return run


_BASELINES: dict[str, Callable[[Any, int], Run]] = {"onnxruntime": _onnxruntime, "litert": _litert}


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
        f"{r.times.throughput:,.1f}", "" if r.faster is None else f"{r.faster:.2f}x as fast",
        "" if r.difference is None else f"{r.difference:.1e}",
    )  # fmt: skip
