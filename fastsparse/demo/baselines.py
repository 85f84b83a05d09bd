"""The same network by SciPy's sparse products and by dense NumPy: what one would write without fastsparse.

Both lower a convolution to one product: `sliding_window_view` shows the windows of the padded input, one copy brings
them into a preallocated buffer (im2col), and W @ buffer does the rest. Activations are kept as (C, H, W, N), images
innermost: the windows are then long contiguous runs (about four times faster to copy than from NCHW), the product
leaves its output in the layout the next layer wants, and nothing is ever transposed. All buffers are allocated once;
dense products, biases, maxima and pooling write into them (SciPy's product has no `out`).

A network is a list of stages: weights, biases and geometry, with batch norm folded into the weights and biases before
it, as the compiler does, so that baselines share every trained number with the compiled network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import scipy.sparse as sp
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Backend = Literal["scipy", "numpy"]
Floats = NDArray[np.floating]
Step = Callable[[], None]
# A stage's product: its matrix and the preallocated buffer it multiplies.
Multiply = Callable[[], Floats]


@dataclass(frozen=True)
class Convolution:
    """Stride-1 convolution with bias and optional relu.

    Attributes
    ----------
    weight : csr_array of shape (out, in * kernel * kernel)
        Columns run (input channel, row, column), as in OIHW.
    bias : ndarray of shape (out,)
    kernel, padding : int
    relu : bool
    """

    weight: sp.csr_array
    bias: Floats
    kernel: int
    padding: int
    relu: bool = False

    @property
    def in_channels(self) -> int:
        """Channels of the input."""
        return int(self.weight.shape[1]) // self.kernel**2


@dataclass(frozen=True)
class Product:
    """Linear layer `weight @ x + bias` with optional relu; `weight` is (out, in)."""

    weight: sp.csr_array
    bias: Floats
    relu: bool = False


@dataclass(frozen=True)
class MaxPool:
    """Maximum over squares of `size`, stride `size`."""

    size: int


Stage = Convolution | Product | MaxPool


def fold_scale(stage: Convolution | Product, scale: Floats, shift: Floats) -> Convolution | Product:
    """The stage followed by `y * scale + shift` for each output row; the pattern stays as it is."""
    old = stage.weight
    data = old.data * np.repeat(scale, np.diff(old.indptr)).astype(old.dtype)
    weight = sp.csr_array((data, old.indices, old.indptr), shape=old.shape)
    return replace(stage, weight=weight, bias=(stage.bias * scale + shift).astype(old.dtype))


def with_relu(stage: Stage) -> Stage:
    """The stage with a relu at its end; a maximum of rectified values needs no second relu."""
    if isinstance(stage, MaxPool):
        raise ValueError("relu after a pooling stage is not supported: put it before the pooling")
    return replace(stage, relu=True)


class Baseline:
    """A network run for a fixed batch size.

    Parameters
    ----------
    stages : sequence of Stage
        At least one; `MaxPool` sides must divide the image.
    input_shape : tuple (N, C, H, W)
    backend : {"scipy", "numpy"}
        Sparse or dense products.
    dtype : dtype, optional
        Floating dtype of the weights and of all activations.

    Notes
    -----
    Memory is O(N * C * k * k * H * W) for the widest im2col buffer of each layer. Not safe to call from two threads.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        input_shape: tuple[int, int, int, int],
        backend: Backend,
        dtype: np.dtype | type = np.float32,
    ) -> None:
        self._backend = backend
        self._dtype = np.dtype(dtype)
        self._input_shape = input_shape
        self._steps: list[Step] = []
        self._products: list[Multiply] = []
        n, c, h, w = input_shape
        first_padding = _padding(stages[0])
        self._padded_input = self._zeros(c, h + 2 * first_padding, w + 2 * first_padding, n)
        self._input = _inside(self._padded_input, first_padding)
        padded = self._padded_input
        for stage, following in zip(stages, [*stages[1:], None]):
            padded = self._add(stage, padded, _padding(following))
        self._output = padded.reshape(-1, n)

    def __call__(self, x: Floats) -> Floats:
        """Run a batch (N, C, H, W); returns a new array (N, outputs)."""
        if x.shape != self._input_shape:
            raise ValueError(f"x has shape {x.shape}, expected {self._input_shape}")
        np.copyto(self._input, x.transpose(1, 2, 3, 0))
        for step in self._steps:
            step()
        return np.ascontiguousarray(self._output.T)

    def products(self) -> None:
        """Run the matrix products alone, on the im2col buffers the last call left: no copy, bias, relu or pooling."""
        for multiply in self._products:
            multiply()

    def _zeros(self, *shape: int) -> Floats:
        return np.zeros(shape, self._dtype)

    def _add(self, stage: Stage, source: Floats, padding: int) -> Floats:
        """Append the steps of `stage`; returns its padded output (C, H, W, N), the next stage's input."""
        if isinstance(stage, MaxPool):
            return self._add_pool(stage, source, padding)
        if isinstance(stage, Convolution):
            return self._add_convolution(stage, source, padding)
        return self._add_product(stage, source)

    def _add_pool(self, stage: MaxPool, source: Floats, padding: int) -> Floats:
        size = stage.size
        c, h, w, n = source.shape
        if h % size or w % size:
            raise ValueError(f"pooling of size {size} does not divide an image of shape ({h}, {w})")
        padded = self._zeros(c, h // size + 2 * padding, w // size + 2 * padding, n)
        target = _inside(padded, padding)
        corners = [source[:, i::size, j::size] for i in range(size) for j in range(size)]

        def pool() -> None:
            np.copyto(target, corners[0])
            for corner in corners[1:]:
                np.maximum(target, corner, out=target)

        self._steps.append(pool)
        return padded

    def _add_convolution(self, stage: Convolution, source: Floats, padding: int) -> Floats:
        windows = sliding_window_view(source, (stage.kernel, stage.kernel), axis=(1, 2)).transpose(0, 4, 5, 1, 2, 3)
        columns = np.empty(windows.shape, self._dtype)
        _, _, _, h, w, n = windows.shape
        multiply = self._multiply(stage, columns.reshape(-1, h * w * n))
        padded = self._zeros(stage.weight.shape[0], h + 2 * padding, w + 2 * padding, n)
        finish = self._finish(stage, _inside(padded, padding))

        def convolve() -> None:
            np.copyto(columns, windows)
            finish(multiply())

        self._steps.append(convolve)
        return padded

    def _add_product(self, stage: Product, source: Floats) -> Floats:
        n = source.shape[-1]
        multiply = self._multiply(stage, source.reshape(-1, n))
        target = self._zeros(stage.weight.shape[0], 1, 1, n)
        finish = self._finish(stage, target)
        self._steps.append(lambda: finish(multiply()))
        return target

    def _multiply(self, stage: Convolution | Product, columns: Floats) -> Multiply:
        weight = stage.weight.astype(self._dtype)
        if self._backend == "scipy":
            multiply: Multiply = lambda: weight @ columns  # noqa: E731
        else:
            dense = weight.toarray()
            out = np.empty((dense.shape[0], columns.shape[1]), self._dtype)
            multiply = lambda: np.matmul(dense, columns, out=out)  # noqa: E731
        self._products.append(multiply)
        return multiply

    def _finish(self, stage: Convolution | Product, target: Floats) -> Callable[[Floats], None]:
        """Bias and relu on their way into `target` (out, H, W, N)."""
        bias = stage.bias.astype(self._dtype).reshape(-1, 1, 1, 1)

        def finish(product: Floats) -> None:
            np.add(product.reshape(target.shape), bias, out=target)
            if stage.relu:
                np.maximum(target, 0, out=target)

        return finish


def _padding(stage: Stage | None) -> int:
    return stage.padding if isinstance(stage, Convolution) else 0


def _inside(padded: Floats, padding: int) -> Floats:
    return padded[:, padding : padded.shape[1] - padding, padding : padded.shape[2] - padding]
