"""Whole networks of `bench.networks` by engines: arrays of the caller go in and come out."""

from __future__ import annotations

import contextlib
import functools
import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.baselines import OURS, Baseline, Call, onnx_session
from bench.workloads import Network

# Largest difference to onnxruntime's output, relative to its largest number. Not a bound of rounding errors: engines
# fold batch norms into weights before they round, and DeepSparse may transform convolutions.
SAME = 1e-4


@functools.lru_cache(maxsize=1)  # the engines of one workload come one after the other
def _written(network: str, dlmc: Path | None) -> tuple[Any, str]:
    """A folder that lives as long as somebody has it, and the network's file in it."""
    import onnx

    from bench.networks import BUILDERS

    folder = tempfile.TemporaryDirectory()
    path = str(Path(folder.name) / f"{network}.onnx")
    onnx.save(BUILDERS[network](dlmc), path)
    return folder, path


def expected(case: Network) -> list[tuple[Any, ...]]:
    """onnxruntime's output, or the reference evaluator's of the package onnx."""
    _, path = _written(case.network, case.dlmc)
    try:
        session = onnx_session(path, 1)
    except ImportError:
        from onnx.reference import ReferenceEvaluator

        session = ReferenceEvaluator(path)
        (y,) = session.run(None, {session.input_names[0]: case.x})
    else:
        (y,) = session.run(None, {session.get_inputs()[0].name: case.x})
    return [(y, SAME * np.abs(y).max())]


def _fastsparse(case: Network, threads: int) -> Call:
    import fastsparse as fs

    _, path = _written(case.network, case.dlmc)
    facts = {}
    for words, tune in (("compiled in", False), ("tuned in", True)):
        begin = time.perf_counter()
        engine = fs.compile(path, input_shape=case.x.shape, threads=threads, tune=tune)
        facts[words] = f"{time.perf_counter() - begin:.1f} s"
    return _with_facts(lambda: engine(case.x), facts)


def _onnxruntime(case: Network, threads: int) -> Call:
    _, path = _written(case.network, case.dlmc)
    session = onnx_session(path, threads)
    name = session.get_inputs()[0].name
    return _with_facts(lambda: session.run(None, {name: case.x})[0], {})


def _with_facts(call: Call, facts: dict[str, str]) -> Call:
    call.facts = facts  # type: ignore[attr-defined]
    return call


class _DeepSparse:
    """DeepSparse in an environment of its own (Python 3.11, `pip install deepsparse==1.8`), driven over pipes."""

    def __init__(self, case: Network, threads: int) -> None:
        assert case.deepsparse is not None
        self._folder, path = tempfile.TemporaryDirectory(), _written(case.network, case.dlmc)[1]
        source, target = (Path(self._folder.name) / name for name in ("x.npy", "y.npy"))
        np.save(source, case.x)
        script = Path(__file__).parents[1] / "deepsparse_worker.py"
        command = [case.deepsparse, str(script), path, str(case.batch), str(threads), str(source), str(target)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        while (line := self._read()) != "ready":
            if not line:
                raise RuntimeError(f"DeepSparse ended with exit code {self._process.wait()}")
        self._output = np.load(target)

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def __call__(self) -> None:
        self.elapsed(1)

    def elapsed(self, count: int) -> float:
        """Seconds of so many calls, measured over there."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        return sum(json.loads(self._read()))

    def result(self) -> np.ndarray:
        """Its output."""
        return self._output

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self._process.communicate()


def _deepsparse(case: Network, threads: int) -> Call | None:
    return _DeepSparse(case, threads) if case.deepsparse else None


ENGINES = [
    Baseline(OURS, _fastsparse, needs=("onnx",)),
    Baseline("onnxruntime", _onnxruntime, needs=("onnx", "onnxruntime")),
    Baseline("DeepSparse", _deepsparse, needs=("onnx",)),
]
