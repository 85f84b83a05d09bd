"""Compiled networks in files: the program or the ONNX model, and what tuning chose, so that it is done once."""

from __future__ import annotations

import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from fastsparse import checks
from fastsparse.engine.choosing import to_json
from fastsparse.files import write
from fastsparse.ops.target import target_for
from fastsparse.runtime.atomic_file import PathLike

KIND = "engine"


def save_engine(path: PathLike, engine: Any, described: dict[str, Any], arrays: dict[str, Any]) -> None:
    """Write an engine: what it says of itself, its arrays, and its choices."""
    choices = [[list(key), to_json(choice)] for key, choice in engine._choices.items()]
    found = {"threads": engine._threads, "lanes": lanes_of(engine.dtype), "choices": choices, **described}
    write(checks.path(path), KIND, arrays, found)


def pickled(engine: Any) -> tuple[Any, ...]:
    """What an engine's `__reduce__` returns: the bytes of the file that `save` writes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "engine.safetensors")
        engine.save(path)
        return unpickled, (path.read_bytes(),)


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
