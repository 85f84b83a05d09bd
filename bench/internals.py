"""All that the benchmarks use of fastsparse's internals: the peak of a core, and layers whose data stay packed.

Input and output of such layers are in the kernels' layouts, as between the layers of a compiled network.
A network of one layer is lowered as `fastsparse.compile` does it, for the whole batch at once. Before a convolution
stands one that changes nothing, so that the layer finds its input as other layers leave it. The timed call runs what
comes behind that: exchanging halos or splitting planes into phases for strides, and the products; packing the user's
array before and unpacking behind them is left out. What the products wrote is checked by a run of the whole network,
which uses the very same launches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

import fastsparse as fs
from bench.workloads import Conv, Spmm
from fastsparse.engine import program as programs
from fastsparse.engine.choosing import Choice, choices, scheduled
from fastsparse.engine.split import Split
from fastsparse.engine.workspace import Workspace
from fastsparse.ops import linear, spmm
from fastsparse.ops.geometry import ConvGeometry
from fastsparse.ops.target import target_for
from fastsparse.runtime import measure
from fastsparse.runtime.buffers import address
from fastsparse_kernels.compiler import aligned_empty


def measured_peak() -> float:
    """Multiplications and additions per second of one core in float32, as it is now."""
    return measure.measured_peak(32)


class Resident:
    """Runs a layer on planes that are packed already."""

    def __init__(self, operator: programs.Operator, x: np.ndarray, out_shape: tuple[int, ...], threads: int) -> None:
        shape, nodes = x.shape[1:], list[programs.Node]()
        if isinstance(operator, programs.Conv):
            nodes.append(programs.Node("before", _nothing(shape), (0,), 1))
        nodes.append(programs.Node("layer", operator, (len(nodes),), len(nodes) + 1))
        shapes = (*(shape for _ in nodes), out_shape[1:])
        program = programs.Program(shapes, (0,), (len(nodes),), tuple(nodes), np.dtype(np.float32))
        batch = len(x)
        layout = choices(program, batch, threads, tune=False)[0].layout
        groups = -(-batch // target_for(program.dtype, threads).lanes) if layout == "batch-blocked" else batch
        schedule = scheduled(program, batch, threads, Choice(layout, Split(False, groups, groups)))
        self._x, self._y = np.ascontiguousarray(x), np.full(out_shape, np.nan, np.float32)
        self._workspace = Workspace(schedule)
        self._workspace.run(self._x, self._y)
        self._steps = _of_the_layer(schedule.steps)

    def __call__(self) -> None:
        """The layer alone."""
        for index in self._steps:
            self._workspace.run_step(index)

    def result(self) -> np.ndarray:
        """Packing, products and unpacking."""
        self._y.fill(np.nan)
        self._workspace.run(self._x, self._y)
        return self._y


def _nothing(shape: tuple[int, ...]) -> programs.Conv:
    """The convolution that gives its input."""
    channels, *spatial = shape
    ones, none = (1,) * len(spatial), ((0, 0),) * len(spatial)
    geometry = ConvGeometry(channels, channels, tuple(spatial), ones, ones, none, ones, 1)
    return programs.Conv(fs.csr(np.eye(channels, dtype=np.float32)), None, geometry)


def _of_the_layer(steps: Sequence[Any]) -> list[int]:
    """The steps behind the product that stands before a convolution, up to unpacking; of other layers, the product."""
    before = [i for i, step in enumerate(steps) if step.node is not None and step.node.name == "before"]
    if not before:
        return [i for i, step in enumerate(steps) if step.node is not None and "pack" not in step.kernel]
    return [i for i, step in enumerate(steps) if i > before[0] and step.name != "output"]


def convolution(case: Conv, threads: int) -> Resident:
    """A convolution from planes to planes."""
    sides = (case.side, case.side)
    geometry = ConvGeometry(
        case.channels, case.out, sides, (case.kernel,) * 2, (case.stride,) * 2, ((case.padding,) * 2,) * 2, (1, 1), 1
    )
    return Resident(programs.Conv(fs.csr(case.weight), None, geometry), case.x, case.out_shape, threads)


class _Panels:
    """W @ X for columns of X that lie in panels, as `fs.linear` has them between packing and unpacking."""

    def __init__(self, weight: fs.CSR, x: np.ndarray, threads: int) -> None:
        with fs.threads(threads):
            target, samples = target_for(weight.dtype, threads), len(x)
            width = spmm.panel_width(weight.pattern, samples, target)
            groups = -(-samples // target.lanes)
            packing = spmm.panel_packing(groups, weight.shape[1], x.strides[0], width, target)
            self._product = linear._panels_product(weight, groups, width, None, target)
            self._x = aligned_empty((packing.panel_bytes,), np.uint8)
            packing.launch.run(address(x), address(self._x), samples)
        self._panels = aligned_empty((self._product.panel_bytes,), np.uint8)
        self._y = np.empty((samples, weight.shape[0]), np.float32)

    def __call__(self) -> None:
        """The product alone."""
        self._product.launch.run(address(self._x), address(self._panels), 0)

    def result(self) -> np.ndarray:
        """The product, and unpacking."""
        self._panels.view(np.float32).fill(np.nan)
        self._y.fill(np.nan)
        self()
        self._product.unpack.run(address(self._panels), address(self._y), len(self._y))
        return self._y.T


def product(case: Spmm, threads: int) -> _Panels:
    """W @ X, from panels of X to panels of W @ X."""
    return _Panels(fs.csr(case.weight), np.ascontiguousarray(case.x.T), threads)
