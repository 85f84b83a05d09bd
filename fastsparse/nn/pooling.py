"""Pooling layers over images (N, C, H, W)."""

from __future__ import annotations

from typing import Any

from numpy.typing import ArrayLike, NDArray

from fastsparse.arguments import Axes, Padding, padding_pairs, per_axis
from fastsparse.nn.activations import floating
from fastsparse.nn.module import Module, check_gradient
from fastsparse.ops import pooling as pooling_ops

Array = NDArray[Any]


def _image(x: ArrayLike) -> Array:
    array = floating(x)
    if array.ndim != 4 or min(array.shape[2:]) < 1:
        raise ValueError(f"x has shape {array.shape}, expected (N, C, H, W) with H and W at least 1")
    return array


_PARAMETERS = """
    Parameters
    ----------
    kernel_size : int or (height, width)
    stride : int or (height, width), optional
        Default: kernel_size.
    padding : int, (height, width), or ((top, bottom), (left, right))
        At most half the window.
    """


class _Pool2d(Module):
    """A window that moves over the image."""

    def __init__(self, kernel_size: Axes, stride: Axes | None = None, padding: Padding = 0) -> None:
        height, width = per_axis(kernel_size, 2, "kernel_size", 1)
        self.kernel_size = (height, width)
        down, right = self.kernel_size if stride is None else per_axis(stride, 2, "stride", 1)
        self.stride = (down, right)
        rows, columns = padding_pairs(padding, 2)
        self.padding = (rows, columns)
        if any(2 * side > k for pair, k in zip(self.padding, self.kernel_size) for side in pair):
            raise ValueError(f"padding is {padding!r}, expected at most half of kernel_size {self.kernel_size}")

    def _checked(self, x: ArrayLike) -> Array:
        array = _image(x)
        height, width = array.shape[2:]
        if min(pooling_ops.pooled_size((height, width), self.kernel_size, self.stride, self.padding)) < 1:
            raise ValueError(
                f"x has shape {array.shape}, expected a height and width in which a window of size "
                f"{self.kernel_size} fits with padding {self.padding}"
            )
        return array


class MaxPool2d(_Pool2d):
    __doc__ = f"""Largest of each window; padding never wins, NaN always does, the first of equals gets the gradient.
{_PARAMETERS}"""

    def forward(self, x: ArrayLike) -> Array:
        """x (N, C, H, W) -> (N, C, output H, output W)."""
        array = self._checked(x)
        window = (self.kernel_size, self.stride, self.padding)
        if not self.training:
            return pooling_ops.max_pool2d(array, *window)
        y, index = pooling_ops.max_pool2d_with_index(array, *window)
        self._keep((index, array.shape[2:], array.dtype))
        return y

    def backward(self, dy: Array, *, need_input: bool = True) -> Array | None:
        index, spatial, dtype = self._taken()
        grad = check_gradient(dy, index.shape, dtype)
        if not need_input:
            return None
        return pooling_ops.max_pool2d_backward(grad, index, spatial, self.kernel_size, self.stride, self.padding)


class AvgPool2d(_Pool2d):
    __doc__ = f"""Mean of each window, the zeros of the padding included.
{_PARAMETERS}"""

    def forward(self, x: ArrayLike) -> Array:
        """x (N, C, H, W) -> (N, C, output H, output W)."""
        array = self._checked(x)
        y = pooling_ops.avg_pool2d(array, self.kernel_size, self.stride, self.padding)
        self._keep((array.shape[2:], y.shape, y.dtype))
        return y

    def backward(self, dy: Array, *, need_input: bool = True) -> Array | None:
        spatial, shape, dtype = self._taken()
        grad = check_gradient(dy, shape, dtype)
        if not need_input:
            return None
        return pooling_ops.avg_pool2d_backward(grad, spatial, self.kernel_size, self.stride, self.padding)


class AdaptiveAvgPool2d(Module):
    """Means over windows that split the image as evenly as possible.

    Parameters
    ----------
    output_size : int or (height, width)
        Size of the output.
    """

    def __init__(self, output_size: Axes) -> None:
        height, width = per_axis(output_size, 2, "output_size", 1)
        self.output_size = (height, width)

    def forward(self, x: ArrayLike) -> Array:
        """x (N, C, H, W) -> (N, C, *output_size)."""
        array = _image(x)
        y = pooling_ops.adaptive_avg_pool2d(array, self.output_size)
        self._keep((array.shape[2:], y.shape, y.dtype))
        return y

    def backward(self, dy: Array, *, need_input: bool = True) -> Array | None:
        spatial, shape, dtype = self._taken()
        grad = check_gradient(dy, shape, dtype)
        return pooling_ops.adaptive_avg_pool2d_backward(grad, spatial) if need_input else None
