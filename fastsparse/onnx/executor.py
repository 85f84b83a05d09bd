"""Running plans: workspaces with the memory of one call, and a bounded pool of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np

from fastsparse.engine import workspace as programs
from fastsparse.onnx import blas
from fastsparse.onnx.model import Array
from fastsparse.onnx.ops import OPERATORS
from fastsparse.onnx.planning import NONE, Plan, Step
from fastsparse_kernels.compiler import aligned_empty


class Workspace:
    """Memory of one call of a plan, with all that a call needs but the user's arrays."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.memory = aligned_empty((plan.nbytes + 64,), np.uint8)
        self.arrays: list[Array | None] = [None] * len(plan.names)
        for t, array in plan.constants.items():
            self.arrays[t] = array
        for t, offset in plan.buffers.items():
            size = int(np.prod(plan.shapes[t])) * plan.dtypes[t].itemsize
            self.arrays[t] = self.memory[offset : offset + size].view(plan.dtypes[t]).reshape(plan.shapes[t])
        # Segments of equal schedules never run at the same time in one workspace.
        self.programs = {
            i: programs.Workspace(step.schedule) for i, step in enumerate(plan.steps) if step.schedule is not None
        }
        # Where BLAS and the kernels take turns; networks without hosts need not ask, those without kernels do not mind.
        mixed = self.programs and any(step.node is not None and not step.view for step in plan.steps)
        self.blas: Callable[[], AbstractContextManager[None]] = blas.one_thread if mixed else nullcontext
        self.late = {*plan.inputs, *plan.direct}  # tensors that depend on where the user's arrays are
        self._calls: dict[int, Callable[[], None]] = {}
        for i, step in enumerate(plan.steps):
            if step.view and not self.late.intersection(step.inputs):
                self._view(step)
                continue
            if step.view:
                self.late.update(step.outputs)
            self._calls[id(step)] = self._made_call(i, step)

    @property
    def nbytes(self) -> int:
        """Bytes of memory for activations and scratch."""
        return self.memory.nbytes + sum(space.nbytes for space in self.programs.values())

    def run(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        """outputs = model(inputs); all C-contiguous and of the plan's shapes."""
        self.set_arrays(inputs, outputs)
        with np.errstate(all="ignore"), self.blas():
            for call in self._calls.values():
                call()
            for t, position in self.plan.copied:
                np.copyto(outputs[position], self._array(t))
        for t in self.late:  # the user's arrays are not held longer than the call
            self.arrays[t] = None

    def set_arrays(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        """Say where the user's arrays are."""
        arrays = self.arrays
        for t, array in zip(self.plan.inputs, inputs):
            arrays[t] = array
        for t, position in self.plan.direct.items():
            arrays[t] = outputs[position]

    def _array(self, t: int) -> Array:
        found = self.arrays[t]
        assert found is not None
        return found

    def call(self, step: Step) -> None:
        """Run one step, for measuring."""
        self._calls[id(step)]()

    def _made_call(self, index: int, step: Step) -> Callable[[], None]:
        if step.view:
            return lambda: self._view(step)
        if step.node is not None:
            return self._host(step)
        assert step.segment is not None
        space, samples = self.programs[index], step.segment.samples
        sources, targets = step.inputs, step.outputs

        def run() -> None:
            # A program takes its batch from the first axis.
            space.run(
                [self._array(t).reshape(samples, -1) for t in sources],
                [self._array(t).reshape(samples, -1) for t in targets],
            )

        return run

    def _view(self, step: Step) -> None:
        assert step.node is not None
        view = OPERATORS[step.node.op].view
        assert view is not None
        with np.errstate(all="ignore"):
            found = view(step.node, self._inputs(step))
        for t, array in zip(step.outputs, found):
            self.arrays[t] = array

    def _inputs(self, step: Step) -> list[Array | None]:
        return [None if t == NONE else self.arrays[t] for t in step.inputs]

    def _host(self, step: Step) -> Callable[[], None]:
        node, arrays = step.node, self.arrays
        assert node is not None
        run, outputs = OPERATORS[node.op].run, step.outputs

        def call() -> None:
            try:
                run(node, self._inputs(step), [arrays[t] for t in outputs])  # type: ignore[misc]
            except (IndexError, TypeError, ValueError) as error:
                raise ValueError(f"{node} cannot be computed: {error}") from error

        return call


class Pool(programs.Pool):
    """Workspaces of one plan: made when needed, at most `limit`, and handed round."""

    def __init__(self, plan: Plan, limit: int) -> None:
        self.plan = plan
        super().__init__(plan, limit)  # type: ignore[arg-type]

    def _take(self) -> Workspace:  # type: ignore[override]
        with self._changed:
            while not self._free:
                if self._made < self._limit:
                    self._made += 1
                    break
                self._changed.wait()
            else:
                return self._free.pop()  # type: ignore[return-value]
        try:
            return Workspace(self.plan)
        except BaseException:
            with self._changed:
                self._made -= 1
                self._changed.notify()
            raise
