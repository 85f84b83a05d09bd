"""The compiled network by SciPy's sparse products and by dense NumPy: what one would write without fastsparse.

Both lower a convolution to one product: `sliding_window_view` shows the windows of the padded input, one copy brings
them into a preallocated buffer (im2col), and W @ buffer does the rest. Activations are kept as (C, H, W, N), images
innermost: the windows are then long contiguous runs (about four times faster to copy than from NCHW), the product
leaves its output in the layout the next layer wants, and nothing is ever transposed. All buffers are allocated once;
dense products, biases, maxima and pooling write into them (SciPy's product has no `out`).

What runs is the engine's own program, batch norm folded into weights: baselines share every number with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from fastsparse.engine.program import Conv, Linear, Pool, Program, Reshape
from fastsparse.ops.geometry import ConvGeometry

Backend = Literal["scipy", "numpy"]
Floats = NDArray[np.floating]


class Baseline:
    """A program of plain convolutions, linear layers and max pools in a row, for a fixed batch size.

    Plain are convolutions with stride, dilation and groups of 1, and pools whose windows divide the image.

    Parameters
    ----------
    program : Program
    batch : int
    backend : {"scipy", "numpy"}
        Sparse or dense products.

    Raises
    ------
    TypeError
        When the program has another operator.

    Notes
    -----
    Memory is O(N * C * k * k * H * W) for the widest im2col buffer of each layer. Not safe to call from two threads.
    """

    def __init__(self, program: Program, batch: int, backend: Backend) -> None:
        self._backend, self._dtype = backend, program.dtype
        self._steps: list[Callable[[], None]] = []
        self._products: list[Callable[[], Floats]] = []
        # Memory of every tensor as its reader wants it, with zeros around images, and the part that is written.
        self._held: dict[int, Floats] = {}
        self._inside: dict[int, Floats] = {}
        around = {n.inputs[0]: n.operator.geometry.padding for n in program.nodes if isinstance(n.operator, Conv)}
        for t, (channels, *spatial) in enumerate(program.shapes):
            pads = around.get(t, ((0, 0),) * len(spatial))
            sides = [n + sum(pair) for n, pair in zip(spatial, pads)]
            self._held[t] = np.zeros((channels, *sides, batch), self._dtype)
            inside = (slice(before, before + n) for (before, _), n in zip(pads, spatial))
            self._inside[t] = self._held[t][(slice(None), *inside)]
        for node in program.nodes:
            x, y = node.inputs[0], node.output
            if isinstance(node.operator, Conv) and _is_plain_conv(node.operator.geometry):
                self._add_conv(node.operator, self._held[x], self._inside[y])
            elif isinstance(node.operator, Linear):
                self._add_product(node.operator, self._held[x], self._inside[y])
            elif isinstance(node.operator, Pool) and _is_plain_max(node.operator):
                self._add_pool(node.operator, self._inside[x], self._inside[y])
            elif isinstance(node.operator, Reshape):
                self._held[y] = self._held[x].reshape(-1, batch)
            else:
                raise TypeError(f"the network holds {node.name!r}, which the baselines do not know")
        self._input, self._output = self._inside[program.inputs[0]], self._held[program.outputs[0]]

    def __call__(self, x: Floats) -> Floats:
        """Run a batch (N, C, H, W); returns a new array (N, outputs)."""
        expected = self._input.shape[-1:] + self._input.shape[:-1]
        if x.shape != expected:
            raise ValueError(f"x has shape {x.shape}, expected {expected}")
        np.copyto(self._input, np.moveaxis(x, 0, -1))
        for step in self._steps:
            step()
        return np.ascontiguousarray(self._output.T)

    def products(self) -> None:
        """Run the matrix products alone, on the im2col buffers the last call left: no copy, bias, relu or pooling."""
        for multiply in self._products:
            multiply()

    def _add_conv(self, op: Conv, x: Floats, y: Floats) -> None:
        windows = sliding_window_view(x, op.geometry.kernel, axis=(1, 2)).transpose(0, 4, 5, 1, 2, 3)
        columns = np.empty(windows.shape, self._dtype)
        self._steps.append(lambda: np.copyto(columns, windows))
        self._add_product(op, columns.reshape(op.weight.shape[1], -1), y)

    def _add_product(self, op: Conv | Linear, columns: Floats, y: Floats) -> None:
        """Product, bias and relu on their way into y."""
        if op.activation not in (None, "relu"):
            raise TypeError(f"the network has the activation {op.activation!r}, which the baselines do not know")
        multiply: Callable[[], Floats]
        if self._backend == "scipy":
            weight = op.weight.to_scipy()
            multiply = lambda: weight @ columns  # noqa: E731
        else:
            dense = op.weight.toarray()
            out = np.empty((len(dense), columns.shape[1]), self._dtype)
            multiply = lambda: np.matmul(dense, columns, out=out)  # noqa: E731
        bias = 0 if op.bias is None else op.bias.reshape(-1, *(1,) * (y.ndim - 1))

        def step() -> None:
            np.add(multiply().reshape(y.shape), bias, out=y)
            if op.activation:
                np.maximum(y, 0, out=y)

        self._products.append(multiply)
        self._steps.append(step)

    def _add_pool(self, op: Pool, x: Floats, y: Floats) -> None:
        height, width = (n // m for n, m in zip(x.shape[1:], y.shape[1:-1]))
        corners = [x[:, i::height, j::width] for i in range(height) for j in range(width)]
        self._steps.append(lambda: np.copyto(y, corners[0]))
        self._steps += [lambda corner=corner: np.maximum(y, corner, out=y) for corner in corners[1:]]  # type: ignore[misc]


def _is_plain_conv(geometry: ConvGeometry) -> bool:
    return {*geometry.stride, *geometry.dilation, geometry.groups} == {1}


def _is_plain_max(op: Pool) -> bool:
    """Whether the windows of a max pool divide the image, without overlap and rest."""
    for size, table in zip(op.windows.spatial, (op.windows.rows, op.windows.columns)):
        begins = np.linspace(0, size, len(table) + 1)
        if not (np.array_equal(table[:, 0], begins[:-1]) and np.array_equal(table[:, 1], begins[1:])):
            return False
    return op.kind == "max"
