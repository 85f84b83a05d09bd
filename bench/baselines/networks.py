"""Whole networks by engines, those of `bench.networks` and ONNX files: arrays of the caller go in and come out."""

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

from bench.baselines import OURS, Baseline, Call, onnx_session, with_facts
from bench.workloads import ModelFile, Network

# Largest difference to onnxruntime's output, relative to its largest number. Not a bound of rounding errors: engines
# fold batch norms into weights before they round, and DeepSparse may transform convolutions.
SAME = 1e-4
# Where a file leaves sizes open, by the input's axes: the first of them that onnxruntime takes.
_SIZES = [{4: (1, 3, n, m), 3: (1, 1, 128), 2: (1, k)} for n, m, k in ((320, 320, 512), (48, 320, 512), (64, 64, 64))]


@functools.lru_cache(maxsize=1)  # the engines of one workload come one after the other
def _written(case: Network | ModelFile) -> tuple[Any, str]:
    """A folder that lives as long as somebody has it, and the model's file; "" where there is nothing to prune."""
    import onnx

    from bench.networks import BUILDERS
    from fastsparse.onnx.pruning import prune_onnx

    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name) / "model.onnx"
    if isinstance(case, Network):
        onnx.save(BUILDERS[case.network](case.dlmc), path)
    elif not case.pruned:
        path = case.path
    else:
        try:
            prune_onnx(case.path, path, 0.9)
        except ValueError as error:
            if "no constant weight" not in str(error):
                raise
            return folder, ""
    return folder, str(path)


@functools.lru_cache(maxsize=1)
def _fed(case: Network | ModelFile) -> tuple[dict[str, Any], list[Any]]:
    """Inputs, and the outputs of onnxruntime, or of the reference evaluator of the package onnx."""
    _, path = _written(case)
    try:
        session = onnx_session(path, 1)
    except ImportError:
        from onnx.reference import ReferenceEvaluator

        session = ReferenceEvaluator(path)
        feeds = {session.input_names[0]: case.x}
    else:
        feeds = {session.get_inputs()[0].name: case.x} if isinstance(case, Network) else _random_inputs(session)
    return feeds, session.run(None, feeds)


def _random_inputs(session: Any) -> dict[str, Any]:
    """Random numbers for all inputs: of the model's shapes, with usual sizes where it leaves them open."""
    rng, feeds = np.random.default_rng(0), dict[str, Any]()
    for sizes in _SIZES:
        for value in session.get_inputs():
            usual = sizes.get(len(value.shape), (1,) * len(value.shape))
            shape = [n if isinstance(n, int) and n > 0 else m for n, m in zip(value.shape, usual)]
            if value.name == "sr":  # a sampling rate
                feeds[value.name] = np.full(shape, 16000, np.int64)
            elif "float" in value.type:
                feeds[value.name] = rng.standard_normal(shape).astype(np.float16 if "16" in value.type else np.float32)
            else:
                feeds[value.name] = rng.integers(0, 2, shape).astype(value.type[7:-1])
        with contextlib.suppress(Exception):
            session.run(None, feeds)
            break
    return feeds


def expected(case: Network | ModelFile) -> list[tuple[Any, ...]] | None:
    """The outputs."""
    if not _written(case)[1]:
        return None
    return [(y, SAME * (np.abs(y).max(initial=0) or 1.0)) for y in map(np.asarray, _fed(case)[1])]


def _fastsparse(case: Network | ModelFile, threads: int) -> Call | None:
    import fastsparse as fs

    _, path = _written(case)
    if not path:
        return None
    facts, (feeds, outputs) = {}, _fed(case)
    for words, tune in (("compiled in", False), ("tuned in", True)):
        begin = time.perf_counter()
        engine = fs.compile(path, {name: x.shape for name, x in feeds.items()}, threads=threads, tune=tune)
        facts[words] = f"{time.perf_counter() - begin:.1f} s"
    engine.run(feeds)  # a second call runs on memory that is shared
    pairs = zip(engine.run(feeds), outputs)
    off = [
        np.abs(np.subtract(a, b, dtype=np.float64)).max(initial=0) / (np.abs(b).max(initial=0) or 1) for a, b in pairs
    ]
    return with_facts(lambda: engine.run(feeds), facts | {"difference": f"{max(off, default=0):.1e}"})


def _onnxruntime(case: Network | ModelFile, threads: int) -> Call | None:
    _, path = _written(case)
    if not path:
        return None
    session, (feeds, _) = onnx_session(path, threads), _fed(case)
    return lambda: session.run(None, feeds)


class _DeepSparse:
    """DeepSparse in an environment of its own (Python 3.11, `pip install deepsparse==1.8`), driven over pipes."""

    def __init__(self, case: Network, threads: int) -> None:
        assert case.deepsparse is not None
        self._folder, path = tempfile.TemporaryDirectory(), _written(case)[1]
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
