"""Whole networks against other engines: `python -m bench.end_to_end [--dlmc DIR] [--deepsparse PYTHON]`.

The networks of `bench.networks` go through `fs.compile`, onnxruntime and, where `--deepsparse` names the interpreter of
an environment that has it (Python 3.11, `pip install deepsparse==1.8`), DeepSparse. Arrays of the caller go in and come
out. Outputs are compared first; then everybody runs in turn, round after round, with as many threads.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from tqdm import tqdm

import fastsparse as fs
from bench.measure import pinned
from bench.networks.bert import bert
from bench.networks.mlp import mlp
from bench.networks.mobilenet import mobilenet
from bench.networks.resnet import resnet50
from fastsparse import launch
from fastsparse.atomic_file import write_text

Seconds = Callable[[int], list[float]]  # times of so many calls
BLOCK_SECONDS = 0.25  # of calls by one engine before the next one's turn
SEQUENCE = 128


class Case(NamedTuple):
    """A network, its batch sizes, and what the input of one sample looks like."""

    build: Callable[[Path | None], onnx.ModelProto]
    batches: tuple[int, ...]
    sample: tuple[int, ...]


CASES = {
    "resnet50": Case(lambda dlmc: resnet50(dlmc, 0), (1, 16), (3, 224, 224)),
    "mobilenet": Case(lambda dlmc: mobilenet(0), (1,), (3, 224, 224)),
    "bert": Case(lambda dlmc: bert(0), (1, 8), (SEQUENCE, 768)),
    "mlp": Case(lambda dlmc: mlp(0), (1, 64), (2048,)),
}


def timed(call: Callable[[], Any]) -> Seconds:
    """Times of calls in this process."""

    def seconds(count: int) -> list[float]:
        found = []
        for _ in range(count):
            start = time.perf_counter()
            call()
            found.append(time.perf_counter() - start)
        return found

    return seconds


def onnxruntime_call(path: Path, x: Any, threads: int) -> Callable[[], Any]:
    """onnxruntime, dense."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda: session.run(None, {name: x})[0]


class DeepSparse:
    """The worker in the other environment."""

    def __init__(self, python: str, path: Path, x: Any, threads: int, directory: Path) -> None:
        source, target = directory / "x.npy", directory / "y.npy"
        np.save(source, x)
        script = Path(__file__).with_name("deepsparse_worker.py")
        command = [python, str(script), str(path), str(len(x)), str(threads), str(source), str(target)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        while (line := self._read()) != "ready":
            if not line:
                raise RuntimeError(f"DeepSparse ended with exit code {self._process.wait()}")
        self.output = np.load(target)

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def seconds(self, count: int) -> list[float]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        found: list[float] = json.loads(self._read())
        return found

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def alternate(engines: dict[str, Seconds], rounds: int) -> dict[str, list[float]]:
    """Mean seconds per call of every engine in every round."""
    counts = {}
    for name, seconds in engines.items():
        once = min(seconds(2))
        counts[name] = max(1, round(BLOCK_SECONDS / once))
    times: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(rounds):
        for name, seconds in engines.items():
            seconds(1)  # caches and threads are another engine's
            times[name].append(statistics.mean(seconds(counts[name])))
    return times


def difference(ours: Any, other: Any) -> float:
    """Largest difference, relative to the largest output."""
    return float(np.abs(ours - other).max() / np.abs(other).max())


def measure(path: Path, case: Case, batch: int, options: argparse.Namespace, directory: Path) -> list[dict[str, Any]]:
    """Rows of one network on one batch size."""
    x = np.random.default_rng(1).standard_normal((batch, *case.sample), np.float32)
    threads = options.threads
    start = time.perf_counter()
    engine = fs.compile(str(path), input_shape=x.shape, threads=threads, tune=False)
    untuned = time.perf_counter() - start
    start = time.perf_counter()
    engine = fs.compile(str(path), input_shape=x.shape, threads=threads, tune=True)
    tuned = time.perf_counter() - start
    y = engine(x)
    engines: dict[str, Seconds] = {"fastsparse": timed(lambda: engine(x))}
    dense = onnxruntime_call(path, x, threads)
    differences = {"fastsparse": 0.0, "onnxruntime": difference(y, dense())}
    engines["onnxruntime"] = timed(dense)
    other = None
    if options.deepsparse:
        other = DeepSparse(options.deepsparse, path, x, threads, directory)
        differences["DeepSparse"] = difference(y, other.output)
        engines["DeepSparse"] = other.seconds
    try:
        times = alternate(engines, options.rounds)
    finally:
        if other is not None:
            other.close()
    return [
        {
            "batch": batch, "threads": threads, "engine": name, "seconds": seconds, "difference": differences[name],
            "faster": statistics.median(r / o for r, o in zip(seconds, times["fastsparse"])),
            "compile": [untuned, tuned] if name == "fastsparse" else None,
        }
        for name, seconds in times.items()
    ]  # fmt: skip


def _line(row: dict[str, Any]) -> str:
    ms = [1e3 * seconds for seconds in row["seconds"]]
    cells = f"{row['faster']:.2f}x | {row['difference']:.1e}"
    if row["compile"] is not None:
        cells = "compiled in {:.1f} s, | tuned in {:.1f} s".format(*row["compile"])
    times = f"{statistics.median(ms):.2f} | {min(ms):.2f}"
    return f"| {row['network']} | {row['batch']} | {row['engine']} | {times} | {cells} |"


def main(argv: Sequence[str] | None = None) -> int:
    """Time whole networks and print a table."""
    parser = argparse.ArgumentParser(prog="python -m bench.end_to_end", description=__doc__)
    parser.add_argument("--dlmc", type=Path, metavar="DIR", help="real patterns for ResNet-50; random ones otherwise")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), metavar="NAME")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--deepsparse", metavar="PYTHON", help="interpreter of an environment with DeepSparse")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rounds")
    options = parser.parse_args(argv)
    options.threads = launch.workers_for(options.threads)
    print("| network | batch | engine | median ms | minimum ms | fastsparse is faster by | largest difference |")
    print("|---|---:|---|---:|---:|---:|---:|", flush=True)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name, pinned(options.threads):
        for network in tqdm(options.only, unit="network", leave=False, disable=not sys.stderr.isatty()):
            case, path = CASES[network], Path(name) / f"{network}.onnx"
            onnx.save(case.build(options.dlmc), path)
            for batch in case.batches:
                for row in measure(path, case, batch, options, Path(name)):
                    rows.append({"network": network, **row})
                    print(_line(rows[-1]), flush=True)
    if options.json:
        write_text(options.json, json.dumps(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
