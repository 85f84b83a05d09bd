"""Layers whose input and output stay in the kernels' layouts, as between the layers of a compiled network.

A network of one layer is lowered as `fastsparse.compile` does it, for the whole batch at once. The timed call runs the
layer's products; packing the user's array before and unpacking behind them is left out. What the products wrote is
checked by a run of the whole network, which uses the very same calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

import fastsparse as fs
from bench.workloads import Conv, Spmm
from fastsparse import launch
from fastsparse.engine import program as programs
from fastsparse.engine.flat import flat_schedule
from fastsparse.engine.lanes import lanes_schedule
from fastsparse.engine.split import Split
from fastsparse.engine.workspace import Workspace
from fastsparse.plan import policy
from fastsparse.plan.conv import Geometry


class Resident:
    """Runs a layer's products in planes that are packed already."""

    def __init__(self, operator: programs.Operator, x: np.ndarray, out_shape: tuple[int, ...], threads: int) -> None:
        shapes = (x.shape[1:], out_shape[1:])
        node = programs.Node("layer", operator, (0,), 1)
        program = programs.Program(shapes, (0,), (1,), (node,), np.dtype(np.float32))
        machine, batch = launch.machine(program.dtype, threads), len(x)
        if batch == 1 or (x.ndim > 2 and not policy.prefers_lanes(batch, machine.lanes)):
            schedule = flat_schedule(program, batch, machine, Split(False, batch, batch))
        else:
            groups = -(-batch // machine.lanes)
            schedule = lanes_schedule(program, batch, machine, Split(False, groups, groups))
        self._x, self._y = np.ascontiguousarray(x), np.full(out_shape, np.nan, np.float32)
        self._workspace = Workspace(schedule)
        self._workspace.run(self._x, self._y)
        self._products = _products(schedule.steps)

    def __call__(self) -> None:
        """The products alone."""
        for index in self._products:
            self._workspace.run_step(index)

    def result(self) -> np.ndarray:
        """Packing, products and unpacking."""
        self._y.fill(np.nan)
        self._workspace.run(self._x, self._y)
        return self._y


def _products(steps: Sequence[Any]) -> list[int]:
    """The steps of the layer itself. Packing planes is not; parting a plane into a strided window's phases is."""
    strided = any("phase" in step.kernel for step in steps)
    return [i for i, step in enumerate(steps) if strided or (step.node is not None and "pack" not in step.kernel)]


def convolution(case: Conv, threads: int) -> Resident:
    """A convolution from planes to planes."""
    sides = (case.side, case.side)
    geometry = Geometry(
        case.channels, case.out, sides, (case.kernel,) * 2, (case.stride,) * 2, ((case.padding,) * 2,) * 2, (1, 1), 1
    )
    return Resident(programs.Conv(fs.csr(case.weight), None, geometry), case.x, case.out_shape, threads)


def product(case: Spmm, threads: int) -> Resident:
    """W @ X, from panels of X to panels of W @ X."""
    operator = programs.Linear(fs.csr(case.weight), None)
    return _Transposed(operator, case.x.T, (case.n, case.m), threads)


class _Transposed(Resident):
    """Samples are columns of X."""

    def result(self) -> np.ndarray:
        return super().result().T
