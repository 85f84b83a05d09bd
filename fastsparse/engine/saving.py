"""Compiled networks in files: the program or the ONNX model, and what tuning chose, so that it is done once."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastsparse import launch
from fastsparse.atomic_file import PathLike
from fastsparse.engine.choosing import to_json
from fastsparse.files import write

KIND = "engine"


def save_engine(path: PathLike, engine: Any, described: dict[str, Any], arrays: dict[str, Any]) -> None:
    """Write an engine: what it says of itself, its arrays, and its choices."""
    choices = [[list(key), to_json(choice)] for key, choice in engine._choices.items()]
    found = {"threads": engine._threads, "lanes": lanes_of(engine.dtype), "choices": choices, **described}
    write(path, KIND, arrays, found)


def lanes_of(dtype: np.dtype[Any]) -> int:
    """Lanes of this CPU, for the numbers that kernels compute with."""
    known = dtype if dtype.name in ("float32", "float64") else np.dtype(np.float32)
    return launch.machine(known, 1).lanes
