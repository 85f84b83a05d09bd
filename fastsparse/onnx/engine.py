"""The engine of an ONNX model: what is sparse runs on the kernels, all else in the library, safe in any number of
threads."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastsparse import checks
from fastsparse.engine.base import BaseEngine
from fastsparse.engine.choosing import Choices
from fastsparse.engine.program import Program
from fastsparse.engine.report import Report
from fastsparse.engine.schedule import Schedule
from fastsparse.engine.workspace import Pool, PoolStore
from fastsparse.files import FileFormatError
from fastsparse.onnx import sessions
from fastsparse.onnx.arguments import (
    check_fit,
    checked_input,
    checked_results,
    checked_shapes,
    empty_input,
    random_input,
    shape_of,
    written,
)
from fastsparse.onnx.axes import in_one_order
from fastsparse.onnx.estimates import KERNELS_FIRST, Costs
from fastsparse.onnx.executor import Frame, Host, Kernels, Plan, Tensors, make_plan
from fastsparse.onnx.folding import check_sizes, folded, with_branches
from fastsparse.onnx.lowering import Lowering
from fastsparse.onnx.model import Array, Model, Shape
from fastsparse.onnx.partition import Cut
from fastsparse.onnx.reader import read
from fastsparse.onnx.report import measured
from fastsparse.onnx.rewriting import simplified
from fastsparse.onnx.serial import to_plain
from fastsparse.runtime import measure
from fastsparse.runtime.buffers import address, array
from fastsparse.runtime.memo import Memoized
from fastsparse.runtime.threads import checked_threads, usable_threads

_SECONDS = 0.6  # for tuning the programs of an engine, about
_EACH = 0.02  # for comparing one region
_WHOLE = 0.3  # for comparing the engine with the library alone
_GAIN = 0.97  # of the library's time: what the kernels must stay below
_CLEAR = 1.3  # long calls on which the kernels win by this factor are not repeated
_NUMBERS = 16  # of an input that may decide
_MOST_ENGINES, _MOST_KEYS = 8, 1024  # for cases of branches, and of what decides them
# Tensors of other types may be such that onnxruntime has no operators for them.
_LIBRARYS = [np.dtype(kind) for kind in ("float32", "float16", "int64", "int32", "bool", "uint8", "int8")]


def compile_onnx(
    source: Any, input_shape: Any = None, *, threads: int | None = None, tune: bool = True,
    allow_external_data: bool = True, costs: Costs | None = None,
) -> GraphEngine:  # fmt: skip
    """Compile an ONNX model; see `fastsparse.compile`. `costs` are what who runs what is estimated with."""
    costs = costs or Costs()
    model = in_one_order(read(source, allow_external_data=allow_external_data), costs.densest)
    threads = None if threads is None else checked_threads(threads)
    engine = GraphEngine(model, checked_shapes(model.inputs, input_shape), threads, costs)
    cases = engine._cases
    engine._choose(tune and (cases is None or not cases.by_shapes))
    if cases is not None:
        cases.tune = tune
        if cases.by_shapes:
            values = {value.name: empty_input(value, engine.input_shapes) for value in model.inputs}
            if cases.engine(values, now=True) is engine:  # the shapes have decided nothing
                engine._choose(tune)
    return engine


class GraphEngine(BaseEngine):
    """A compiled ONNX model; made by `fastsparse.compile`.

    Attributes
    ----------
    input_names, output_names : tuple of str
    input_shapes : dict of str to tuple of int
        For the shapes it was compiled for.
    output_shapes : dict of str to tuple of int, or None
        None when they depend on numbers.
    dtype : numpy.dtype
        Of the first input that is a tensor.
    """

    def __init__(self, model: Model, shapes: Mapping[str, Shape], threads: int | None, costs: Costs) -> None:
        self._model = model
        self._costs = costs
        self._threads = threads
        self.dtype = next((v.dtype for v in model.inputs if v.dtype is not None), np.dtype(np.float32))
        self.input_names = tuple(v.name for v in model.inputs)
        self.output_names = tuple(v.name for v in model.outputs)
        self.input_shapes = dict(shapes)
        self._fitting: dict[str, Shape | None] = dict.fromkeys(self.input_names)  # shapes that were checked last
        model, self._infos = folded(model)
        known = folded(model, shapes)[1]
        check_sizes(model, known)
        self._shapes = {name: info.fixed for name, info in known.items() if info.fixed is not None}
        self._simple = simplified(model, self._infos)
        self._lowering = Lowering(self._simple, self._infos, self._shapes, costs)
        complete = all(name in self._shapes for name in self.output_names)
        self.output_shapes = {name: self._shapes[name] for name in self.output_names} if complete else None
        self._library: tuple[str, ...] = ()  # what the library runs of what the kernels could, by first results
        self._reasons: dict[str, str] = {}
        self._budget = 0.0  # seconds of tuning that are left
        self._tune_again = False  # measure at the first call
        self._choices = Choices()
        self._cases = Cases(self, model) if _may_decide(model) else None
        self._frames = PoolStore()  # by shapes and workers; without a pool where steps run one by one
        self._plan_made: Plan | None = None

    def __repr__(self) -> str:
        outputs: Mapping[str, object] = self.output_shapes or dict.fromkeys(self.output_names, "of any shape")
        sides = (", ".join(f"{name} {shape}" for name, shape in side.items()) for side in (self.input_shapes, outputs))
        return f"<GraphEngine {' -> '.join(sides)}, {self.dtype}>"

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

    # ------------------------------------------------------------------------------------------

    def __call__(self, x: ArrayLike, *, out: Array | None = None) -> Array:
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
            When x or out does not fit, or a node cannot be computed; nothing has been written then.
        """
        if len(self.input_names) != 1:
            raise TypeError(f"the model has {len(self.input_names)} inputs: call engine.run([...])")
        if out is not None and len(self.output_names) != 1:
            raise TypeError(f"the model has {len(self.output_names)} outputs: call engine.run([...], out=[...])")
        return self.run([x], out=None if out is None else [out])[0]

    def run(self, inputs: Sequence[Any] | Mapping[str, Any], *, out: Sequence[Array] | None = None) -> list[Any]:
        """Run the model on its inputs and give all its outputs, in the order of the names.

        Parameters
        ----------
        inputs : sequence of array_like, or dict by name
            Of the model's types; float64 arrays are converted to float32 where the model wants that, and sparse
            matrices to dense arrays.
        out : sequence of ndarray, optional
            One for each output.

        Returns
        -------
        list of ndarray
            Outputs that are no tensors are lists or dicts, as onnxruntime gives them.

        Raises
        ------
        TypeError, ValueError
            When an array does not fit, or a node cannot be computed; nothing has been written then.
        """
        values = self._checked(inputs)
        engine = self if self._cases is None else self._cases.engine(values)
        return engine._run(values, out)

    def _run(self, values: dict[str, Any], out: Sequence[Array] | None) -> list[Any]:
        plan, workers = self._plan_made, usable_threads(self._threads)
        if plan is None or self._tune_again:
            plan = self._plan()
        whole = plan.whole
        if whole is not None and out is None:
            if len(values) != len(whole.inputs):  # some of them are read by nothing
                values = {name: values[name] for name in whole.inputs}
            return whole.session(workers).run(values)
        return self._run_framed(plan, values, workers, out)

    def prepare(self, input_shape: Any = None, *, tune: bool = False) -> None:
        """Plan for input shapes now, instead of at their first call; with `tune` by measuring."""
        shapes = self.input_shapes if input_shape is None else checked_shapes(self._model.inputs, input_shape)
        if tune:
            self._budget = _SECONDS
            for step in self._plan().kernels:
                step.forget()
            self._frames.clear()
        try:
            values = self._checked(self._random(shapes))
            self._for(values, now=True)._run(values, None)
        finally:
            self._budget = 0.0

    def report(self, batch: int | None = None) -> Report:
        """Measure every step on random numbers and tell who runs what.

        Parameters
        ----------
        batch : int, optional
            Size of the first axis of all inputs that the model leaves open there; default: as compiled.

        Returns
        -------
        Report
            To be printed.
        """
        values = self._checked(self._random(self._with_batch(batch)))
        engine = self._for(values, now=True)
        return measured(engine._plan(), values, self._workers(), engine._reasons)

    def random_inputs(self, batch: int | None = None) -> list[Array]:
        """Inputs to try the model on: normally distributed numbers, and zeros and ones where it takes integers."""
        return self._random(self._with_batch(batch))

    # ------------------------------------------------------------------------------------------

    def _described(self, arrays: dict[str, Any]) -> dict[str, Any]:
        cases = [] if self._cases is None else list(self._cases.engines.values())
        return {
            "model": to_plain(self._model, arrays),
            "input_shapes": {name: list(shape) for name, shape in self.input_shapes.items()},
            "library": sorted({name for engine in (self, *cases) for name in engine._library}),
            "kernels_first": self._costs == KERNELS_FIRST,
        }

    def _with_batch(self, batch: int | None) -> dict[str, Shape]:
        shapes = dict(self.input_shapes)
        if batch is None:
            return shapes
        count = checks.integer(batch, "batch")
        for value in self._model.inputs:
            if value.name not in shapes:
                continue
            if value.shape is None or (value.shape and isinstance(value.shape[0], str)):
                shapes[value.name] = (count, *shapes[value.name][1:])
            elif value.shape and value.shape[0] != count:
                raise ValueError(f"batch is {count}, but input {value.name!r} has shape {value.shape} in the model")
        return shapes

    def _random(self, shapes: Mapping[str, Shape]) -> list[Array]:
        rng = np.random.default_rng(0)
        return [random_input(value, shapes, rng) for value in self._model.inputs]

    def _checked(self, inputs: Sequence[Any] | Mapping[str, Any]) -> dict[str, Any]:
        names, fitting = self.input_names, self._fitting
        if type(inputs) is not list and isinstance(inputs, Mapping):
            if inputs.keys() != fitting.keys():
                raise ValueError(f"inputs has {', '.join(map(repr, inputs))}, expected {', '.join(map(repr, names))}")
            inputs = [inputs[name] for name in names]
        if len(inputs) != len(names):
            raise ValueError(f"inputs has {len(inputs)} arrays, expected {len(names)}, for {', '.join(names)}")
        values = {}
        for value, x in zip(self._model.inputs, inputs):
            name = value.name
            if type(x) is not np.ndarray or x.shape != fitting[name] or x.dtype != value.dtype or not x.flags.carray:
                x = checked_input(value, x)
                if value.shape is not None:
                    check_fit(value, x.shape, "the shape")
                    fitting[name] = x.shape
            values[name] = x
        return values

    def _for(self, values: Mapping[str, Any], now: bool = False) -> GraphEngine:
        """The engine that runs these inputs: another one where branches follow from them."""
        return self if self._cases is None else self._cases.engine(values, now)

    def _case(self, model: Model, shapes: Mapping[str, Shape], tune: bool) -> GraphEngine:
        """An engine for the model with some branches taken."""
        made = GraphEngine(model, {**self.input_shapes, **shapes}, self._threads, self._costs)
        made._library, made._choices, made._cases = self._library, self._choices, None
        made._choose(tune)
        return made

    def _workers(self) -> int:
        return usable_threads(self._threads)

    # ------------------------------------------------------------------------------------------

    def _cut(self, known: Sequence[Kernels] = ()) -> Plan:
        """The plan by estimate, and by what was measured before."""
        left = set(self._library)
        excluded = {id(node) for node in self._simple.nodes if left.intersection(node.writes)}
        regions = Cut(self._lowering).regions(excluded)
        return make_plan(self._simple, self._infos, regions, self._schedule, known)

    def _whole(self) -> Plan:
        """The plan that is the library's alone."""
        return make_plan(self._simple, self._infos, [], self._schedule)

    def _plan(self) -> Plan:
        if self._plan_made is None or self._tune_again:
            self._choose(self._tune_again)
        assert self._plan_made is not None
        return self._plan_made

    def _choose(self, tune: bool) -> None:
        """Cut the model; with `tune` what loses against the library when measured becomes the library's."""
        self._tune_again = False
        plan = self._cut()
        rare = any(info.dtype not in _LIBRARYS for info in self._infos.values())
        if self._costs == Costs() and (rare or sessions.onnxruntime() is None):
            whole = self._whole().whole
            if whole is not None and whole.session(self._workers()).library is None:
                self._costs = KERNELS_FIRST
                self._lowering = Lowering(self._simple, self._infos, self._shapes, self._costs)
                plan = self._cut()
        if tune and plan.kernels and sessions.onnxruntime() is not None and self._costs != KERNELS_FIRST:
            self._budget = _SECONDS
            try:
                plan = self._measured_plan(plan)
            finally:
                self._budget = 0.0
        for step in plan.steps:
            if isinstance(step, Host):
                step.session(self._workers())  # what the library refuses is said now
        self._plan_made = plan

    def _measured_plan(self, plan: Plan) -> Plan:
        """The plan without the regions that lose, or the one that is the library's alone, where that is faster."""
        workers = self._workers()
        try:
            values = self._checked(self.random_inputs())
            everything: dict[str, Any] = dict(values)
            plan.run(everything, workers)
        except (ValueError, TypeError):  # the model wants other numbers than random ones: the estimate stays
            return plan
        lost = [step for step in plan.kernels if not _wins(step, everything, workers, self._reasons)]
        if lost:
            why = f"{len(lost)} of {len(plan.kernels)} regions are slower on the kernels than in the library, measured"
            self._library, self._reasons[""] = _written(lost), why
            plan = self._cut(plan.kernels)
        if not plan.kernels:
            return plan
        whole = self._whole()
        assert whole.whole is not None
        session = whole.whole.session(workers)
        ours, library = _interleaved(
            lambda: self._run_framed(plan, dict(values), workers, None),
            lambda: session.run({n: values[n] for n in session.inputs}),
            _WHOLE,
        )
        self._reasons[""] = f"{ours * 1e3:.3f} ms measured, the library alone {library * 1e3:.3f} ms"
        if ours <= library * _GAIN:
            return plan
        self._library = _written(plan.kernels)
        return whole

    def _schedule(self, program: Program, samples: int, workers: int) -> Schedule:
        """A program's schedule. What was measured once is taken for all programs of the same sizes."""
        rest = program.shapes, round(program.useful_flops() / 1e5)
        tune = (samples, workers, *rest) not in self._choices.measured and self._budget > 0
        begin = time.perf_counter()
        made = self._choices.schedule(program, samples, workers, tune, rest)
        self._budget -= time.perf_counter() - begin if tune else 0.0
        return made

    # ------------------------------------------------------------------------------------------

    def _run_framed(self, plan: Plan, values: dict[str, Any], workers: int, out: Any) -> list[Any]:
        """By a first call step by step; from then on at fixed addresses, where all tensors are arrays of numbers."""
        given, names = list(values.values()), self.output_names
        key = (*map(shape_of, given), workers, sessions.generation[0], id(plan))
        pool: Pool | None = self._frames.get(key)
        if pool is not None:
            shapes = [pool.plan.shapes[name] for name in names]
            targets = [array(*s) for s in shapes] if out is None else checked_results(out, names, shapes, given)
            space = pool.take()
            try:
                space.run(values, dict(zip(names, targets)))
                return targets
            except Exception:  # sizes that depend on numbers, or what `plan.run` says
                self._frames.put(key, None, None, replace=True)
            finally:
                pool.give(space)
        seen = key in self._frames
        results = plan.run(values, workers)
        if not seen:
            made = Frame.pool(plan, values, workers)
            self._frames.put(key, made, made, replace=True)
        results = _distinct(results, given)
        return results if out is None else written(out, names, results, given)


def _distinct(results: Sequence[Any], given: Sequence[Any]) -> list[Any]:
    """The results, copied where they are the user's arrays or the same one twice."""
    seen, found = list(given), []
    for result in results:
        found.append(copy.deepcopy(result) if any(result is other for other in seen) else result)
        seen.append(result)
    return found


# ---------------------------------------------------------------- who runs what, by measuring


def _written(steps: Sequence[Kernels]) -> tuple[str, ...]:
    """Names of all tensors that steps write, also inside."""
    return tuple(sorted({name for step in steps for node in step.nodes for name in node.writes}))


def _wins(step: Kernels, values: dict[str, Any], workers: int, reasons: dict[str, str]) -> bool:
    """Whether the kernels run a step faster than the library, both on memory that stays where it is."""
    arrays = {name: np.require(values[name], requirements=["C", "A"]) for name in (*step.inputs, *step.twin.inputs)}
    arrays |= {name: values[name].copy() for name in step.outputs}
    addresses = {name: address(array) for name, array in arrays.items()}
    tensors: Tensors = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    (ours, _), (library, _) = (each.bound(addresses, tensors, workers) for each in (step, step.twin))
    times = _interleaved(lambda: ours({}), lambda: library({}), _EACH)
    reasons[step.outputs[0]] = f"{times[0] * 1e3:.3f} ms measured, the library {times[1] * 1e3:.3f} ms"
    return times[0] <= times[1] * _GAIN


def _interleaved(first: Callable[[], object], second: Callable[[], object], seconds: float) -> tuple[float, float]:
    """Least times of two calls that take turns, so that a machine that slows down slows both."""
    first(), first(), second()  # the second call is the first one on memory that is shared
    times = [measure.seconds(first)], [measure.seconds(second)]
    if times[0][0] * _CLEAR < times[1][0] and sum(map(sum, times)) > seconds / 10:
        return times[0][0], times[1][0]
    for _ in range(max(4, min(50, int(seconds / max(1e-6, times[0][0] + times[1][0]))))):
        times[0].append(measure.seconds(first))
        times[1].append(measure.seconds(second))
    return min(times[0]), min(times[1])


# ---------------------------------------------------------------- branches


class Cases(Memoized):
    """Engines of a model whose branches follow from shapes and small integers, such as a sampling rate: one per case.

    Which branches a call takes is found once for its shapes and integers, and looked up from then on. What comes for
    the first time, as it may be the last time, is run as the model says, with its branches in the library.
    """

    def __init__(self, engine: GraphEngine, model: Model) -> None:
        self._engine, self._model = engine, model
        self._numbers = _deciding(model)
        self.engines: dict[Hashable, GraphEngine] = {}  # by branches
        self._met = set[Hashable]()  # shapes and integers that came before
        self.tune = False

    @property
    def by_shapes(self) -> bool:
        """Whether no numbers decide."""
        return not self._numbers

    def engine(self, values: Mapping[str, Any], now: bool = False) -> GraphEngine:
        """The engine for these inputs; `now` finds it even if they come for the first time."""
        key = (*map(shape_of, values.values()), *(values[name].tobytes() for name in self._numbers))
        if key not in self._met:
            if len(self._met) >= _MOST_KEYS:
                self._met = set()
            self._met.add(key)
            if not now:
                return self._engine
        return self.cached(key, self._found, values)

    def _found(self, values: Mapping[str, Any]) -> GraphEngine:
        numbers, taken = {name: values[name].copy() for name in self._numbers}, dict[str, bool]()
        inputs = tuple(value for value in self._model.inputs if value.name not in numbers)
        shapes = {value.name: np.shape(values[value.name]) for value in inputs if value.dtype is not None}
        folded(replace(self._model, inputs=inputs, constants={**self._model.constants, **numbers}), shapes, taken)
        key = tuple(sorted(taken.items()))
        if not taken:
            return self._engine
        found = self.engines.get(key)
        if found is None:
            try:
                found = self._engine._case(with_branches(self._model, taken), shapes, self.tune)
            except FileFormatError:  # the library may refuse behind an If what it runs in its branches
                found = self._engine
            found = self.engines.setdefault(key, found)
            for oldest in list(self.engines)[:-_MOST_ENGINES]:
                self.engines.pop(oldest, None)
        return found


def _may_decide(model: Model) -> bool:
    """Whether the condition of any If follows from no more than shapes and inputs that may decide."""
    producers, given = model.producers(), {value.name for value in model.inputs}.difference(_deciding(model))

    def follows(condition: str) -> bool:
        waiting, seen = [condition], set[str]()
        while waiting:
            name = waiting.pop()
            if name in given:
                return False
            node = None if name in seen else producers.get(name)
            if node is not None and node.op not in ("Shape", "Size"):
                waiting.extend(node.reads)
            seen.add(name)
        return True

    return any(node.op == "If" and follows(node.inputs[0]) for node in model.nodes)


def _deciding(model: Model) -> tuple[str, ...]:
    """Inputs of a few integers, or truth values, from which conditions follow."""
    wanted = {name for node in model.nodes if node.op == "If" for name in node.reads}
    conditions = {node.inputs[0] for node in model.nodes if node.op == "If"}
    for node in reversed(model.nodes):
        if conditions.intersection(node.writes):
            conditions.update(node.reads)
    found = []
    for value in model.inputs:
        sizes = value.shape if value.shape is not None and all(isinstance(n, int) for n in value.shape) else None
        few = value.dtype is not None and value.dtype.kind in "iub" and sizes is not None
        if few and math.prod(sizes or ()) <= _NUMBERS and value.name in conditions | wanted:  # type: ignore[arg-type]
            found.append(value.name)
    return tuple(found)
