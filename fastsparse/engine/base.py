"""What engines of all kinds have in common: they are measured, saved with what tuning chose, and pickled."""

from __future__ import annotations

import os
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse import checks
from fastsparse.engine.choosing import Choices, to_json
from fastsparse.engine.report import Benchmark, timed_calls
from fastsparse.files import write
from fastsparse.ops.target import target_for

KIND = "engine"
Array = NDArray[Any]


class BaseEngine:
    """Base class of engines."""

    dtype: np.dtype[Any]
    _threads: int | None
    _choices: Choices

    def run(self, inputs: Any, *, out: Any = None) -> list[Any]:
        """Run on a list of inputs and give a list of outputs."""
        raise NotImplementedError

    def random_inputs(self, batch: int | None = None) -> list[Array]:
        """Inputs to try the network on."""
        raise NotImplementedError

    def _described(self, arrays: dict[str, Any]) -> dict[str, Any]:
        """What a file says of the engine; its arrays are added to `arrays`."""
        raise NotImplementedError

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save the engine, with what tuning chose, as safetensors; `fastsparse.load_engine` reads it.

        Parameters
        ----------
        path : path
            Replaced in one step when it exists.
        """
        arrays: dict[str, Any] = {}
        described = self._described(arrays)
        choices = [[list(key), to_json(choice)] for key, choice in self._choices.items()]
        found = {"threads": self._threads, "lanes": lanes_of(self.dtype), "choices": choices, **described}
        write(checks.path(path), KIND, arrays, found)

    def __reduce__(self) -> tuple[Any, ...]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "engine.safetensors")
            self.save(path)
            return unpickled, (path.read_bytes(),)

    def benchmark(self, seconds: float = 5.0, *, batch: int | None = None) -> Benchmark:
        """Call the engine for some seconds.

        Returns
        -------
        Benchmark
            p50, p95, p99 (milliseconds per call) and throughput (samples per second), to be printed.
        """
        inputs = self.random_inputs(batch)
        count = len(inputs[0]) if inputs and inputs[0].ndim else 1
        return timed_calls(lambda: self.run(inputs), count, seconds)


def unpickled(content: bytes) -> Any:
    """An engine from the bytes of its file, checked as the file is."""
    load_engine = import_module("fastsparse.engine").load_engine  # which stands on this file
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "engine.safetensors")
        path.write_bytes(content)
        return load_engine(path)


def lanes_of(dtype: np.dtype[Any]) -> int:
    """Lanes of this CPU, for the numbers that kernels compute with."""
    known = dtype if dtype.name in ("float32", "float64") else np.dtype(np.float32)
    return target_for(known, 1).lanes
