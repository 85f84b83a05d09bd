"""The engine of an ONNX model: planned for each set of input shapes when it is first used, safe in any number of
threads."""

from __future__ import annotations

import operator
import os
import threading
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from fastsparse.engine.choosing import Choice, chosen, scheduled
from fastsparse.engine.report import Benchmark, Report, timed_calls
from fastsparse.engine.saving import save_engine
from fastsparse.engine.schedule import Schedule
from fastsparse.onnx.arguments import check_fit, checked_input, checked_outputs, checked_shapes
from fastsparse.onnx.executor import Pool
from fastsparse.onnx.folding import fold_batch_norms
from fastsparse.onnx.model import Array, Model, Shape
from fastsparse.onnx.partition import Partitioner, Segment
from fastsparse.onnx.patterns import simplified
from fastsparse.onnx.planning import planned
from fastsparse.onnx.reader import read
from fastsparse.onnx.report import measured
from fastsparse.onnx.serial import to_plain
from fastsparse.onnx.specialise import ParametersNeeded, folded, specialised
from fastsparse.runtime.threads import checked_threads, usable_threads
from fastsparse.runtime.threads import threads as fastsparse_threads

_KEPT_PLANS = 8  # sets of shapes whose plans and workspaces are kept
_WORKSPACES = 8  # calls of one plan that run at once; more wait
_KEPT_CHOICES = 256

# One lock serves all engines, as in fastsparse.engine.engine: held for a dictionary access, and over fork().
_lock = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


def compile_onnx(
    source: Any, input_shape: Any = None, *, threads: int | None = None, tune: bool = True,
    allow_external_data: bool = False,
) -> GraphEngine:  # fmt: skip
    """Compile an ONNX model; see `fastsparse.compile`."""
    model = fold_batch_norms(folded(read(source, allow_external_data=allow_external_data)))
    shapes = checked_shapes(model.inputs, input_shape)
    threads = None if threads is None else checked_threads(threads)
    engine = GraphEngine(model, shapes, threads)
    engine._first_plan(tune)
    return engine


class GraphEngine:
    """A compiled ONNX model; made by `fastsparse.compile`.

    Attributes
    ----------
    input_names, output_names : tuple of str
    input_shapes : dict of str to tuple of int
        For the shapes it was compiled for.
    """

    def __init__(self, model: Model, shapes: Mapping[str, Shape], threads: int | None) -> None:
        self._model = model
        self._threads = threads
        self._partitioner = Partitioner()
        self._plans: OrderedDict[Hashable, Pool] = OrderedDict()
        self._tuned: set[Hashable] = set()  # the plans whose schedules were measured
        self._parameters: frozenset[str] = frozenset()  # inputs on whose numbers shapes depend
        self._tune_again = False  # measure at the first call for the compiled shapes
        self._choices: OrderedDict[Hashable, Choice] = OrderedDict()
        self.input_names = tuple(v.name for v in model.inputs)
        self.output_names = tuple(v.name for v in model.outputs)
        self.input_shapes = dict(shapes)
        self._output_shapes: dict[str, Shape] | None = None

    @property
    def output_shapes(self) -> dict[str, Shape] | None:
        """For the input shapes it was compiled for; None when they depend on the numbers in an input."""
        if self._output_shapes is None and not self._parameters:
            try:
                graph = specialised(self._model, self.input_shapes, {})
            except ParametersNeeded as needed:
                self._parameters = needed.names
            else:
                self._output_shapes = {name: graph.infos[name].shape for name in graph.outputs}
        return self._output_shapes

    @property
    def input_shape(self) -> Shape:
        """Shape of the first input, as compiled."""
        return self.input_shapes[self.input_names[0]]

    @property
    def output_shape(self) -> Shape:
        """Shape of the first output, as compiled."""
        if self.output_shapes is None:
            raise ValueError("the model's output shapes depend on the numbers in an input")
        return self.output_shapes[self.output_names[0]]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the first input."""
        return self._model.inputs[0].dtype

    # ------------------------------------------------------------------------------------------

    def __call__(self, x: Any, *, out: Array | None = None) -> Array:
        """Run a model of one input and give its first output.

        Parameters
        ----------
        x : array_like
            Of the model's shape; sizes that the model leaves open may differ from call to call.
        out : ndarray, optional
            Where to write the result: C-contiguous, of the output's dtype, apart from x.

        Raises
        ------
        TypeError, ValueError
            When x or out does not fit; nothing has been computed then.
        """
        if len(self.input_names) != 1:
            raise TypeError(f"the model has {len(self.input_names)} inputs: call engine.run([...])")
        if out is not None and len(self.output_names) != 1:
            raise TypeError(f"the model has {len(self.output_names)} outputs: call engine.run([...], out=[...])")
        return self.run([x], out=None if out is None else [out])[0]

    def run(self, inputs: Sequence[Any] | Mapping[str, Any], *, out: Sequence[Array] | None = None) -> list[Array]:
        """Run the model on its inputs and give all its outputs, in the order of the names.

        Parameters
        ----------
        inputs : sequence of array_like, or dict by name
        out : sequence of ndarray, optional
            One for each output.

        Raises
        ------
        TypeError, ValueError
            When an array does not fit; nothing has been computed then.
        """
        arrays = self._checked(inputs)
        pool = self._pool(arrays, tune=False)
        plan = pool.plan
        shapes, dtypes = [plan.shapes[t] for t in plan.outputs], [plan.dtypes[t] for t in plan.outputs]
        results = checked_outputs(out, self.output_names, shapes, dtypes, arrays)
        with self._thread_count(), pool.workspace() as workspace:
            workspace.run(arrays, results)
        return results

    def prepare(self, input_shape: Any = None, *, tune: bool = False) -> None:
        """Plan for input shapes now, instead of at their first call; with `tune` by measuring."""
        shapes = self.input_shapes if input_shape is None else checked_shapes(self._model.inputs, input_shape)
        with self._pool(self._random(shapes), tune).workspace():
            pass

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save the engine, with what tuning chose, as safetensors; `fastsparse.load_engine` reads it.

        Parameters
        ----------
        path : path
            Replaced in one step when it exists.
        """
        arrays: dict[str, Any] = {}
        shapes = {name: list(shape) for name, shape in self.input_shapes.items()}
        save_engine(path, self, {"model": to_plain(self._model, arrays), "input_shapes": shapes}, arrays)

    def report(self, batch: int | None = None) -> Report:
        """Measure every step on random numbers and tell what was done with each node.

        Parameters
        ----------
        batch : int, optional
            Size of the first axis of all inputs that the model leaves open there; default: as compiled.

        Returns
        -------
        Report
            To be printed.
        """
        inputs = self._random(self._with_batch(batch))
        with self._thread_count(), self._pool(inputs, False).workspace() as workspace:
            return measured(workspace, inputs)  # type: ignore[arg-type]

    def benchmark(self, seconds: float = 5.0, *, batch: int | None = None) -> Benchmark:
        """Call the engine for some seconds.

        Returns
        -------
        Benchmark
            p50, p95, p99 (milliseconds per call) and throughput (samples per second), to be printed.
        """
        inputs = self.random_inputs(batch)
        count = inputs[0].shape[0] if inputs and inputs[0].ndim else 1
        return timed_calls(lambda: self.run(inputs), count, seconds)

    def random_inputs(self, batch: int | None = None) -> list[Array]:
        """Inputs to try the model on: normally distributed numbers, and zeros and ones where it takes integers."""
        return self._random(self._with_batch(batch))

    # ------------------------------------------------------------------------------------------

    def _with_batch(self, batch: int | None) -> dict[str, Shape]:
        shapes = dict(self.input_shapes)
        if batch is None:
            return shapes
        count = operator.index(batch)
        if count < 1:
            raise ValueError(f"batch is {batch}, expected a positive integer")
        for value in self._model.inputs:
            if value.shape is None or (value.shape and isinstance(value.shape[0], str)):
                shapes[value.name] = (count, *shapes[value.name][1:])
            elif value.shape and value.shape[0] != count:
                raise ValueError(f"batch is {count}, but input {value.name!r} has shape {value.shape} in the model")
        return shapes

    def _random(self, shapes: Mapping[str, Shape]) -> list[Array]:
        rng = np.random.default_rng(0)
        return [
            rng.standard_normal(shapes[v.name]).astype(v.dtype)
            if v.dtype.kind == "f"
            else rng.integers(0, 2, shapes[v.name]).astype(v.dtype)
            for v in self._model.inputs
        ]

    def _checked(self, inputs: Sequence[Any] | Mapping[str, Any]) -> list[Array]:
        names = self.input_names
        if isinstance(inputs, Mapping):
            if set(inputs) != set(names):
                raise ValueError(f"inputs has {', '.join(map(repr, inputs))}, expected {', '.join(map(repr, names))}")
            inputs = [inputs[name] for name in names]
        if len(inputs) != len(names):
            raise ValueError(f"inputs has {len(inputs)} arrays, expected {len(names)}, for {', '.join(names)}")
        arrays = [checked_input(value, x) for value, x in zip(self._model.inputs, inputs)]
        sizes: dict[str, tuple[int, str]] = {}
        for value, array in zip(self._model.inputs, arrays):
            check_fit(value, array.shape, sizes, "the shape")
        return arrays

    def _thread_count(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._threads is None else fastsparse_threads(self._threads)

    # ------------------------------------------------------------------------------------------

    def _first_plan(self, tune: bool) -> None:
        """Plan for the shapes it is compiled for; what depends on the numbers in inputs is planned at calls."""
        if self.output_shapes is not None:
            self.prepare(tune=tune)

    def _pool(self, inputs: Sequence[Array], tune: bool) -> Pool:
        workers = usable_threads(self._threads)
        while True:
            parameters = {n: a for n, a in zip(self.input_names, inputs) if n in self._parameters}
            key = (*(a.shape for a in inputs), workers, *((n, a.tobytes()) for n, a in parameters.items()))
            with _lock:
                pool = self._plans.get(key)
                if pool is not None and (not tune or key in self._tuned):
                    self._plans.move_to_end(key)
                    return pool
            shapes = {name: array.shape for name, array in zip(self.input_names, inputs)}
            tune = tune or (self._tune_again and shapes == self.input_shapes)
            try:
                made = self._planned(shapes, {n: a.copy() for n, a in parameters.items()}, workers, tune)
            except ParametersNeeded as needed:
                self._parameters |= needed.names
                continue
            with _lock:
                pool = self._plans.setdefault(key, made)
                if tune:
                    self._plans[key] = pool = made
                    self._tuned.add(key)
                self._plans.move_to_end(key)
                while len(self._plans) > _KEPT_PLANS:
                    self._tuned.discard(self._plans.popitem(last=False)[0])
            return pool

    def _planned(self, shapes: Mapping[str, Shape], parameters: Mapping[str, Array], workers: int, tune: bool) -> Pool:
        graph = simplified(specialised(self._model, shapes, parameters))
        parts = self._partitioner.parts(graph)
        plan = planned(graph, parts, lambda segment: self._schedule(segment, workers, tune))
        return Pool(plan, _WORKSPACES)

    def _schedule(self, segment: Segment, workers: int, tune: bool) -> Schedule:
        """The segment's schedule. What was measured once is taken for all segments of the same sizes."""
        program, samples = segment.program, segment.samples
        key = (samples, workers, program.shapes, round(program.useful_flops() / 1e5))
        with _lock:
            known = self._choices.get(key)
        choice = chosen(program, samples, workers, tune and known is None, known)
        with _lock:
            if tune:
                self._choices[key] = choice
            while len(self._choices) > _KEPT_CHOICES:
                self._choices.popitem(last=False)
        return scheduled(program, samples, workers, choice)
