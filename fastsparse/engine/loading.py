"""Reading compiled networks that were saved.

Plans are made anew when they are first used: they depend on the CPU. A choice that does not fit it is made again.
"""

from __future__ import annotations

import warnings
from typing import Any

from fastsparse import checks
from fastsparse.engine import serial
from fastsparse.engine.base import KIND, lanes_of
from fastsparse.engine.choosing import Choice, from_json
from fastsparse.engine.engine import Engine
from fastsparse.engine.passes import check_optimised
from fastsparse.files import FileFormatError, damage, read
from fastsparse.onnx import serial as onnx_serial
from fastsparse.onnx.arguments import check_fit
from fastsparse.onnx.engine import GraphEngine
from fastsparse.onnx.estimates import KERNELS_FIRST, Costs
from fastsparse.runtime.atomic_file import PathLike
from fastsparse.runtime.threads import MOST_THREADS, usable_threads

Key = tuple[Any, ...]
Choices = list[tuple[Key, Choice]]


def load_engine(path: PathLike) -> Engine | GraphEngine:
    """Load an engine that its method `save` wrote.

    It is planned when it is first called. Choices that were measured on a CPU of other vectors, or for another number
    of threads, are measured again then; a warning says so.

    Raises
    ------
    FileFormatError
        When the file is damaged or holds no engine.
    OSError
        When it cannot be read.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np, fastsparse as fs
    >>> engine = fs.compile(fs.nn.Sequential(fs.nn.SparseLinear(64, 8, rng=0)), (4, 64))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     engine.save(os.path.join(folder, "engine.safetensors"))
    ...     again = fs.load_engine(os.path.join(folder, "engine.safetensors"))
    >>> x = np.ones((4, 64), np.float32)
    >>> (again(x) == engine(x)).all()
    np.True_
    """
    path = checks.path(path)
    arrays, found = read(path, KIND)
    with damage(path):
        threads = found["threads"]
        if threads is not None and (type(threads) is not int or not 1 <= threads <= MOST_THREADS):
            raise ValueError(f"the number of threads is {threads!r}, expected 1 to {MOST_THREADS}")
        lanes = found["lanes"]
        if type(lanes) is not int:
            raise ValueError(f"the number of lanes is {lanes!r}")
        choices = [(_key(key), from_json(choice)) for key, choice in found["choices"]]
        engine: Engine | GraphEngine
        if "program" in found:
            engine = _engine(found, arrays, threads)
        else:
            try:
                engine = _graph_engine(found, arrays, threads)
            except FileFormatError as error:  # of the model inside, whose file is this one
                raise ValueError(str(error)) from error
    _take_choices(engine, choices, lanes, path)
    return engine


def _engine(found: dict[str, Any], arrays: dict[str, Any], threads: int | None) -> Engine:
    program = serial.from_plain(found["program"], arrays)
    check_optimised(program)
    batch = found["batch"]
    if type(batch) is not int or not 1 <= batch < 2**31:
        raise ValueError(f"the batch size is {batch!r}, expected 1 to {2**31 - 1}")
    return Engine(program, batch, threads)


def _graph_engine(found: dict[str, Any], arrays: dict[str, Any], threads: int | None) -> GraphEngine:
    model = onnx_serial.from_plain(found["model"], arrays)
    shapes = {name: tuple(shape) for name, shape in found["input_shapes"].items()}
    known = {value.name for value in model.inputs if value.dtype is not None}
    library = found.get("library", [])
    if not isinstance(library, list) or not all(isinstance(name, str) for name in library):
        raise ValueError(f"the library's part is {library!r}, expected names")
    sizes = [n for shape in shapes.values() for n in shape]
    if set(shapes) != known or any(type(n) is not int or not 0 <= n < 2**31 for n in sizes):
        raise ValueError(f"the input shapes are {shapes}, which do not fit the model")
    for value in model.inputs:
        if value.name in shapes:
            check_fit(value, shapes[value.name])
    costs = KERNELS_FIRST if found.get("kernels_first") is True else Costs()
    engine = GraphEngine(model, shapes, threads, costs)
    engine._library = tuple(library)
    return engine


def _key(key: Any) -> Key:
    """What a choice is for: samples and workers, of graphs also what tells one segment from another."""
    if not isinstance(key, list) or len(key) < 2 or any(type(n) is not int or n < 1 for n in key[:2]):
        raise ValueError(f"{key!r} does not say what a choice is for")
    return tuple(map(_hashable, key))


def _hashable(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_hashable, value))
    if type(value) is not int:
        raise ValueError(f"{value!r} does not say what a choice is for")
    return value


def _take_choices(engine: Engine | GraphEngine, choices: Choices, lanes: int, path: PathLike) -> None:
    """Give the engine what was chosen for this CPU and number of threads, or have it choose again."""
    workers = usable_threads(engine._threads)
    have = lanes_of(engine.dtype)
    fitting = [(key, choice) for key, choice in choices if lanes == have]
    for key, choice in fitting:
        if isinstance(engine, Engine):
            engine._choices[key[0], key[1]] = choice
        else:
            engine._choices[key] = choice
    if choices and not any(key[1] == workers for key, _ in fitting):
        made = f"{lanes} lanes, {', '.join(sorted({str(key[1]) for key, _ in choices}))} threads"
        warnings.warn(
            f"{path} was tuned for {made}, and here are {have} lanes, {workers} threads: the first call measures anew",
            stacklevel=3,
        )
        engine._tune_again = True
