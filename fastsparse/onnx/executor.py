"""Running a model that was cut: steps in their order, on memory that the kernels and the library share.

The first call for some shapes runs step by step and sees what tensors between steps are; from then on they have fixed
addresses, and the library writes there. Where sizes depend on numbers they differ from call to call, and every call
runs step by step.
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fastsparse.engine import workspace as programs
from fastsparse.engine.passes import optimised
from fastsparse.engine.program import Program
from fastsparse.engine.schedule import Buffer, Schedule, assign_memory
from fastsparse.engine.trial import Trial
from fastsparse.onnx import sessions
from fastsparse.onnx.folding import Info
from fastsparse.onnx.lowering import Region, Specialised
from fastsparse.onnx.model import TYPES, Array, Model, Node, Shape, Value, code_of, copied
from fastsparse.onnx.partition import arranged, host_outputs
from fastsparse.onnx.sessions import Session
from fastsparse.runtime.buffers import address
from fastsparse.runtime.memo import Memoized
from fastsparse_kernels.compiler import aligned_empty

_MOST_THREADS = os.cpu_count() or 1  # of a session: more would wait for one another
_NUMBERS = tuple(kind for kind in TYPES.values() if kind.kind != "O")

ScheduleOf = Callable[[Program, int, int], Schedule]  # of a program, a batch and a number of workers
Values = dict[str, Any]
Addresses = Mapping[str, int]  # of tensors, by name
Tensors = dict[str, tuple[Shape, np.dtype[Any]]]  # their shapes and types
Call = Callable[[Addresses], None]


class Step:
    """Nodes that run in one go, with the names of tensors that they read and write."""

    nodes: list[Node]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def run(self, values: Values, workers: int) -> None:
        """Run on what is in `values`, and add the results."""
        raise NotImplementedError

    def bound(self, fixed: Addresses, tensors: Tensors, workers: int) -> tuple[Call, int]:
        """A call for tensors of these shapes and types, and bytes of its own memory.

        fixed : addresses of tensors that stay where they are; a call gets those of the others
        """
        names, fixed = (*self.inputs, *self.outputs), dict(fixed)

        def call(others: Addresses) -> None:
            arrays = _arrays({**fixed, **others}, names, tensors)
            values = dict(arrays)
            self.run(values, workers)
            for name in self.outputs:
                np.copyto(arrays[name], values[name])

        return call, 0


class Host(Step):
    """Nodes that the library runs; its sessions are made when a number of threads is first used."""

    def __init__(
        self, model: Model, infos: Mapping[str, Info], nodes: Sequence[Node], outputs: Sequence[str], spinning: bool
    ) -> None:
        self.nodes = list(nodes)
        made = {name for node in nodes for name in node.writes}
        read = dict.fromkeys(name for node in nodes for name in node.reads)
        self.inputs = tuple(name for name in read if name not in made and name not in model.constants)
        self.outputs = tuple(outputs)
        self._spinning = spinning
        types = {name: infos[name].proto for name in (*self.inputs, *self.outputs) if name in infos}
        part = model.part(nodes, self.inputs, self.outputs, types)
        self._part = replace(part, outputs=tuple(map(_of_any_shape, part.outputs)))
        declared = {value.name for value in model.inputs}
        self._inner = [value for value in self._part.inputs if value.name not in declared]
        self._sessions: dict[tuple[int, int], Session] = {}

    def session(self, workers: int) -> Session:
        """The session for a number of threads."""
        key = sessions.generation[0], workers
        found = self._sessions.get(key)
        if found is None:
            threads = min(workers, _MOST_THREADS)
            if threads < workers:
                return self._sessions.setdefault(key, self.session(threads))
            made = Session(self._part, threads=threads, spinning=self._spinning)
            found = self._sessions.setdefault(key, made)
        return found

    def run(self, values: Values, workers: int) -> None:
        feeds = {name: values[name] for name in self.inputs}
        for value in self._inner:
            x, kind = feeds[value.name], value.proto.type.tensor_type
            if isinstance(x, np.ndarray) and not _fits(kind, x.shape):
                kind.ClearField("shape")  # ONNX's inference says other sizes than the library has: it is told none
                self._sessions.clear()
        found = self.session(workers).run(feeds)
        values.update(zip(self.outputs, found))

    def bound(self, fixed: Addresses, tensors: Tensors, workers: int) -> tuple[Call, int]:
        session = self.session(workers)
        binding = session.binding()
        if binding is None or not session.may_write({name: tensors[name][0] for name in session.outputs}):
            return super().bound(fixed, tensors, workers)
        late: list[tuple[str, Callable[[int], None]]] = []
        for method, names in ((binding.bind_input, session.inputs), (binding.bind_output, session.outputs)):
            for name in names:
                shape, dtype = tensors[name]
                bind = functools.partial(method, name, sessions.device(), code_of(dtype), shape)
                if name in fixed:
                    bind(fixed[name])
                else:
                    late.append((name, bind))
        run, last = session.bound_run(binding), [0] * len(late)

        def call(others: Addresses) -> None:
            for i, (name, bind) in enumerate(late):
                if last[i] != others[name]:
                    bind(others[name])
                    last[i] = others[name]
            run()

        return call if late else lambda others: run(), 0


def _of_any_shape(output: Value) -> Value:
    """An output without the sizes that a model declares: where it has others, the library refuses to write them."""
    if output.proto is None or not output.proto.type.HasField("tensor_type"):
        return output
    proto = copied(output.proto)
    proto.type.tensor_type.ClearField("shape")
    return replace(output, proto=proto)


def _fits(kind: Any, shape: Shape) -> bool:
    """Whether an array of this shape is of a type."""
    if not kind.HasField("shape"):
        return True
    sizes = kind.shape.dim
    return len(sizes) == len(shape) and all(n == d.dim_value for d, n in zip(sizes, shape) if d.HasField("dim_value"))


class Kernels(Step, Memoized):
    """A region that the kernels run, by a program for each set of shapes; what does not fit goes to the library."""

    def __init__(self, region: Region, twin: Host, schedule_of: ScheduleOf) -> None:
        self.region, self.twin = region, twin
        self.nodes, self.inputs, self.outputs = region.nodes, region.inputs, region.outputs
        self._schedule_of = schedule_of
        self._plans = programs.PoolStore()

    def plan(self, shapes: Sequence[Shape], workers: int) -> tuple[Specialised, programs.Pool] | None:
        """The program for inputs of these shapes, with its workspaces; None where the library runs them."""
        key = tuple(shapes), workers
        known: tuple[tuple[Specialised, programs.Pool] | None] | None = self._plans.get(key)
        if known is not None:
            return known[0]
        found = self.region.specialised(dict(zip(self.inputs, shapes)))
        made = None
        if found is not None:
            # Programs after all passes are kept in a store of their own: batches of all sizes share them.
            found.program = self.cached(found.key, optimised, found.program)
            made = found, programs.Pool(self._schedule_of(found.program, found.samples, workers))
        kept: tuple[tuple[Specialised, programs.Pool] | None] = self._plans.put(key, (made,), made and made[1])
        return kept[0]

    def forget(self) -> None:
        """Plan anew when it is next called."""
        self._plans.clear()

    def run(self, values: Values, workers: int) -> None:
        arrays = {name: values[name] for name in self.inputs}
        plan = self.plan([array.shape for array in arrays.values()], workers)
        if plan is None:
            self.twin.run(values, workers)
            return
        (found, pool), kind = plan, arrays[self.inputs[0]].dtype
        dtype, samples = found.program.dtype, found.samples
        x = [np.ascontiguousarray(arrays[name], dtype).reshape(samples, -1) for name in found.inputs]
        results = [np.empty(shape, dtype) for shape in found.outputs]
        with pool.workspace() as workspace:
            workspace.run(x, [y.reshape(samples, -1) for y in results])
        with np.errstate(over="ignore"):
            values.update((name, y.astype(kind, copy=False)) for name, y in zip(self.outputs, results))

    def bound(self, fixed: Addresses, tensors: Tensors, workers: int) -> tuple[Call, int]:
        plan = self.plan([tensors[name][0] for name in self.inputs], workers)
        if plan is None or {tensors[name][1] for name in (*self.inputs, *self.outputs)} != {plan[0].program.dtype}:
            return super().bound(fixed, tensors, workers)  # the library runs it, or it has to convert
        found, space = plan[0], plan[1].make()
        names = (*found.inputs, *self.outputs)
        run, addresses = space.bound(found.samples, [fixed.get(name, 0) for name in names])
        late = [(i, name) for i, name in enumerate(names[: len(addresses)]) if name not in fixed]

        def call(others: Addresses) -> None:
            for i, name in late:
                addresses[i] = others[name]
            run()

        call.keep = space  # type: ignore[attr-defined]  # the memory whose addresses the launches have
        return call, space.nbytes


@dataclass(eq=False)
class Plan:
    """Steps of a model, in an order in which they can run, with the names of what goes in and comes out."""

    steps: list[Step]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @functools.cached_property
    def whole(self) -> Host | None:
        """The library's only step, where it runs all."""
        only = self.steps[0] if len(self.steps) == 1 else None
        return only if isinstance(only, Host) and only.outputs == self.outputs else None

    @property
    def kernels(self) -> list[Kernels]:
        return [step for step in self.steps if isinstance(step, Kernels)]

    def run(self, values: Values, workers: int) -> list[Any]:
        """Step by step; `values` has all tensors between steps afterwards."""
        for step in self.steps:
            step.run(values, workers)
        return [values[name] for name in self.outputs]


def make_plan(
    model: Model, infos: Mapping[str, Info], regions: Sequence[Region], schedule_of: ScheduleOf,
    known: Sequence[Kernels] = (),
) -> Plan:  # fmt: skip
    """The plan that runs these regions by the kernels, and the rest by the library; `known` steps are taken again."""
    inputs, outputs = tuple(v.name for v in model.inputs), tuple(v.name for v in model.outputs)
    steps: list[Step] = []
    again = {step.region.key: step for step in known}
    constants = [name for name in dict.fromkeys(outputs) if name in model.constants]
    if not regions:
        made = {name for node in model.nodes for name in node.writes}.union(constants)
        wanted = [name for name in dict.fromkeys(outputs) if name in made]
        return Plan([Host(model, infos, model.nodes, wanted, True)] if wanted else [], inputs, outputs)
    if constants:
        steps.append(Host(model, infos, [], constants, False))
    for part in arranged(model.nodes, regions):
        group = part.nodes if isinstance(part, Region) else part
        twin_of = list(part.outputs) if isinstance(part, Region) else host_outputs(group, model.nodes, outputs)
        if not twin_of:
            continue
        if isinstance(part, Region) and part.key in again:
            steps.append(again[part.key])
            continue
        host = Host(model, infos, group, twin_of, False)
        steps.append(Kernels(part, host, schedule_of) if isinstance(part, Region) else host)
    return Plan(steps, inputs, outputs)


# ---------------------------------------------------------------- fixed addresses


class Frame:
    """Offsets of tensors between steps, as a first call saw their shapes."""

    def __init__(self, plan: Plan, values: Mapping[str, Any]) -> None:
        self.steps = plan.steps
        lives: dict[str, tuple[int, int]] = {}
        for i, step in enumerate(self.steps):
            lives.update((name, (lives[name][0], i)) for name in step.inputs if name not in plan.inputs)
            lives.update((name, (i, i)) for name in step.outputs)
        inner = [name for name in lives if name not in plan.outputs]
        self.shapes: Tensors = {name: (values[name].shape, values[name].dtype) for name in (*lives, *plan.inputs)}
        offsets, self.nbytes = assign_memory([Buffer(values[name].nbytes, *lives[name]) for name in inner])
        self.offsets = dict(zip(inner, offsets))

    @staticmethod
    def pool(plan: Plan, values: Mapping[str, Any], workers: int) -> programs.Pool | None:
        """Workspaces for tensors as a first call left them; None unless all of them are arrays of numbers, none empty,
        and each result is written by one step."""
        made = [name for step in plan.steps for name in step.outputs]
        names = {*made, *plan.inputs, *(name for step in plan.steps for name in step.inputs)}
        whole = len(set(plan.outputs).intersection(made)) == len(plan.outputs)
        arrays = [values[name] for name in names]
        if not whole or any(not isinstance(a, np.ndarray) or a.dtype not in _NUMBERS or a.size == 0 for a in arrays):
            return None
        return programs.Pool(Frame(plan, values), make=functools.partial(Workspace, workers=workers))


class Workspace:
    """Memory of one call, with the kernels and the library's sessions bound to it.

    The kernels find out by themselves how many workers are faster. So do calls with the threads of the library's
    steps, which do not spin beside the kernels' and gain little where cores do not share a cache.
    """

    def __init__(self, frame: Frame, workers: int) -> None:
        self.memory = aligned_empty((frame.nbytes + 64,), np.uint8)
        start = address(self.memory)
        inner = {name: start + offset for name, offset in frame.offsets.items()}
        bound = [step.bound(inner, frame.shapes, workers) for step in frame.steps]
        self.nbytes = self.memory.nbytes + sum(size for _, size in bound)
        self._ways, self._trial = [[call for call, _ in bound]], Trial()
        if workers > 1 and sessions.onnxruntime() is not None and any(isinstance(step, Host) for step in frame.steps):
            alone = [step.bound(inner, frame.shapes, 1) if isinstance(step, Host) else own
                     for step, own in zip(frame.steps, bound)]  # fmt: skip
            self._ways.append([call for call, _ in alone])

    def run(self, values: Mapping[str, Any], results: Mapping[str, Array]) -> None:
        """Run on the user's arrays."""
        ends = {name: address(array) for name, array in (*values.items(), *results.items())}

        def run(calls: Sequence[Call]) -> None:
            for call in calls:
                call(ends)

        if len(self._ways) == 1:
            run(self._ways[0])
        else:
            self._trial.run([functools.partial(run, calls) for calls in self._ways])


def _arrays(addresses: Addresses, names: Sequence[str], tensors: Tensors) -> dict[str, Array]:
    """The tensors at these addresses."""
    found = {}
    for name in names:
        shape, dtype = tensors[name]
        memory: Any = (ctypes.c_char * (math.prod(shape) * dtype.itemsize)).from_address(addresses[name])
        found[name] = np.frombuffer(memory, dtype).reshape(shape)
    return found
