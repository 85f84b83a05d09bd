"""Convolution layers over one, two or three axes, as thin subclasses of one class."""

from __future__ import annotations

import math
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from fastsparse import checks, functional
from fastsparse.arguments import Axes, Padding, as_cast, padding_pairs, per_axis
from fastsparse.checks import Seed
from fastsparse.csr import CSR, Pattern, csr
from fastsparse.nn import initial
from fastsparse.nn.linear import PatternMaker, SparseWeight, Weighted
from fastsparse.nn.parameter import Parameter
from fastsparse.ops import activations, dense
from fastsparse.ops.sums import channel_sums
from fastsparse.sparsity.growth import ConvolutionGradient

Array = NDArray[Any]
SparseConvolution = TypeVar("SparseConvolution", bound="_SparseConv")
_FUNCTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}

# A dense convolution with at most this many inputs per output, and a batch of at least this many samples, runs as a
# sparse one with all weights: im2col would copy more than it computes. 1.5 to 6 times faster up to 28 x 28 pixels.
_FEW_INPUTS = 160
_MANY_SAMPLES = 16


class _Convolution(Weighted):
    """What sparse and dense convolutions share: the window's geometry.

    Attributes
    ----------
    in_channels, out_channels, groups : int
    kernel_size, stride, dilation : tuple of int, one per axis
    padding : tuple of one pair (before, after) per axis
    """

    _axes: ClassVar[int]

    def _set_window(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Axes,
        stride: Axes,
        padding: Padding,
        dilation: Axes,
        groups: int,
    ) -> None:
        self.in_channels = checks.integer(in_channels, "in_channels")
        self.out_channels = checks.integer(out_channels, "out_channels")
        self.kernel_size = per_axis(kernel_size, self._axes, "kernel_size", 1)
        self.stride = per_axis(stride, self._axes, "stride", 1)
        self.padding = padding_pairs(padding, self._axes)
        self.dilation = per_axis(dilation, self._axes, "dilation", 1)
        self.groups = checks.integer(groups, "groups")
        for name in ("in_channels", "out_channels"):
            if (channels := getattr(self, name)) % self.groups:
                raise ValueError(f"groups is {self.groups}, expected a divisor of {name} = {channels}")

    def _window(self) -> dict[str, Any]:
        """Keyword arguments of the convolution functions."""
        names = ("kernel_size", "stride", "padding", "dilation", "groups")
        return {name: getattr(self, name) for name in names}

    def _geometry(self) -> dense.Geometry:
        """The window as dense convolutions take it."""
        return dense.Geometry(self.kernel_size, self.stride, self.padding, self.dilation, self.groups)

    def _checked(self, x: ArrayLike, dtype: np.dtype[Any]) -> Array:
        array = as_cast(x, dtype, "x", "the layer")
        if array.ndim != self._axes + 2 or array.shape[1] != self.in_channels:
            sizes = ", ".join(("L",) if self._axes == 1 else "DHW"[-self._axes :])
            raise ValueError(f"x has shape {array.shape}, expected (N, {self.in_channels}, {sizes}) to match the layer")
        return array


class _SparseConv(_Convolution, SparseWeight):
    """Convolution whose weight is sparse: time and memory follow its nonzeros.

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size : int or one int per axis
    stride, dilation : int or one int per axis
    padding : int, one int per axis, or one pair (before, after) per axis
    groups : int
        A divisor of both channel counts.
    bias : bool
    sparsity : float in [0, 1)
        Share of weights that do not exist; they are chosen at random.
    pattern : Pattern (out_channels, in_channels / groups * prod(kernel_size)), or a function of that shape, optional
        Where the weights are, instead of `sparsity`; columns run (input channel, kernel offsets).
    activation : str, optional
        Applied while the output is still in registers; see ``fastsparse.functional.ACTIVATIONS``.
    dtype : float32 or float64
    rng : None, int or Generator
        For the pattern and the initial values, which are normal with variance 2 / (nonzeros of the row).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Axes,
        stride: Axes = 1,
        padding: Padding = 0,
        dilation: Axes = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        sparsity: float = 0.9,
        pattern: Pattern | PatternMaker | None = None,
        activation: str | None = None,
        dtype: DTypeLike = "float32",
        rng: Seed = None,
    ) -> None:
        self._set_window(in_channels, out_channels, kernel_size, stride, padding, dilation, groups)
        shape = (self.out_channels, self.in_channels // self.groups * math.prod(self.kernel_size))
        self._set_weight(shape, bias, sparsity, pattern, activation, dtype, rng)

    @classmethod
    def from_dense(
        cls: type[SparseConvolution],
        weight: ArrayLike,
        bias: ArrayLike | None = None,
        *,
        stride: Axes = 1,
        padding: Padding = 0,
        dilation: Axes = 1,
        groups: int = 1,
        activation: str | None = None,
    ) -> SparseConvolution:
        """Make a layer of the nonzeros of `weight`.

        Parameters
        ----------
        weight : array (out, in / groups, *kernel)
            float64 stays, other types become float32.
        bias : array (out,), optional
        stride, padding, dilation, groups, activation
            As for the constructor.
        """
        matrix, (out, channels, *kernel) = _flat(weight, cls._axes, "(out, in / groups, *kernel)")
        window: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        return cls._with_weight(matrix, bias, channels * groups, out, kernel, activation=activation, **window)

    def forward(self, x: ArrayLike) -> Array:
        """x (N, in_channels, *spatial) -> (N, out_channels, *output spatial)."""
        matrix = self.values.matrix()
        array, bias, window, run = self._checked(x, matrix.dtype), self._bias(), self._window(), _FUNCTIONS[self._axes]
        return self._activated(array, lambda activation: run(array, matrix, bias, **window, activation=activation))

    def backward(self, dy: Array, *, need_input: bool = True) -> Array | None:
        x, grad = self._gradient(dy)
        if self.values.watched:
            self.values.keep(ConvolutionGradient(grad, x, self._geometry()))
        grad_x, grad_values, grad_bias = functional.conv_backward(
            grad, x, self.values.matrix(), **self._window(), need_input=need_input
        )
        self._gather(grad_values, grad_bias)
        return grad_x


class SparseConv1d(_SparseConv):
    __doc__ = _SparseConv.__doc__
    _axes = 1


class SparseConv2d(_SparseConv):
    __doc__ = _SparseConv.__doc__
    _axes = 2


class SparseConv3d(_SparseConv):
    __doc__ = _SparseConv.__doc__
    _axes = 3


class SparseConvTranspose2d(_Convolution, SparseWeight):
    """Transposed convolution whose weight is sparse: with a stride it makes images larger, as decoders do.

    Its forward pass is the gradient of a `SparseConv2d` at its input. Dumoulin and Visin, A guide to convolution
    arithmetic for deep learning, arXiv:1603.07285, section 4.

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size, stride, dilation : int or (height, width)
    padding : int, (height, width), or ((top, bottom), (left, right))
        What is cut off the result's edges.
    output_padding : int or (height, width)
        Rows and columns added behind the result, fewer than `stride`.
    groups : int
        A divisor of both channel counts.
    bias : bool
    sparsity : float in [0, 1)
        Share of weights that do not exist; they are chosen at random.
    pattern : Pattern (in_channels, out_channels / groups * kernel area), or a function of that shape, optional
        Where the weights are, instead of `sparsity`; columns run (output channel, kernel offsets).
    activation : str, optional
        Applied while the output is still in registers; see ``fastsparse.functional.ACTIVATIONS``.
    dtype : float32 or float64
    rng : None, int or Generator
        For the pattern and the initial values, which are normal with variance 2 / (mean number of nonzeros that an
        output adds up).
    """

    _axes = 2

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Axes,
        stride: Axes = 1,
        padding: Padding = 0,
        output_padding: Axes = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Axes = 1,
        *,
        sparsity: float = 0.9,
        pattern: Pattern | PatternMaker | None = None,
        activation: str | None = None,
        dtype: DTypeLike = "float32",
        rng: Seed = None,
    ) -> None:
        self._set_window(in_channels, out_channels, kernel_size, stride, padding, dilation, groups)
        self.output_padding = per_axis(output_padding, 2, "output_padding", 0)
        if any(more >= s for more, s in zip(self.output_padding, self.stride)):
            raise ValueError(f"output_padding is {output_padding!r}, expected less than the stride {self.stride}")
        shape = (self.in_channels, self.out_channels // self.groups * math.prod(self.kernel_size))
        self._set_weight(shape, bias, sparsity, pattern, activation, dtype, rng, self.out_channels)
        added = self.values.value.size / (self.out_channels * math.prod(self.stride))
        row = self.values.value.size / self.in_channels
        initial.scale(self.values.value, math.sqrt(row / added) if added else 1.0)

    @classmethod
    def from_dense(
        cls,
        weight: ArrayLike,
        bias: ArrayLike | None = None,
        *,
        stride: Axes = 1,
        padding: Padding = 0,
        output_padding: Axes = 0,
        groups: int = 1,
        dilation: Axes = 1,
        activation: str | None = None,
    ) -> SparseConvTranspose2d:
        """Make a layer of the nonzeros of `weight`.

        Parameters
        ----------
        weight : array (in, out / groups, height, width), as torch.nn.ConvTranspose2d has it
            float64 stays, other types become float32.
        bias : array (out,), optional
        stride, padding, output_padding, groups, dilation, activation
            As for the constructor.
        """
        matrix, (channels, out, *kernel) = _flat(weight, 2, "(in, out / groups, height, width)")
        window: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        window["output_padding"] = output_padding
        return cls._with_weight(matrix, bias, channels, out * groups, kernel, activation=activation, **window)

    def forward(self, x: ArrayLike) -> Array:
        """x (N, in_channels, H, W) -> (N, out_channels, output H, output W)."""
        matrix = self.values.matrix()
        array, bias, window = self._checked(x, matrix.dtype), self._bias(), self._window()
        return self._activated(
            array,
            lambda activation: functional.conv_transpose2d(
                array, matrix, bias, **window, output_padding=self.output_padding, activation=activation
            ),
        )

    def backward(self, dy: Array, *, need_input: bool = True) -> Array | None:
        x, grad = self._gradient(dy)
        matrix, window = self.values.matrix(), self._window()
        if self.values.watched:
            self.values.keep(ConvolutionGradient(x, grad, self._geometry()))
        _, grad_values, _ = functional.conv2d_backward(x, grad, matrix, **window, need_input=False)
        self._gather(grad_values, channel_sums(grad))
        return functional.conv2d(grad, matrix, **window) if need_input else None


class Conv2d(_Convolution):
    """Dense convolution.

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size, stride, dilation : int or (height, width)
    padding : int, (height, width), or ((top, bottom), (left, right))
    groups : int
        A divisor of both channel counts.
    bias : bool
    activation : str, optional
    dtype : float32 or float64
    rng : None, int or Generator
        For the initial values, which are normal with variance 2 / (in_channels / groups * kernel area).
    """

    _axes = 2

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Axes,
        stride: Axes = 1,
        padding: Padding = 0,
        dilation: Axes = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        activation: str | None = None,
        dtype: DTypeLike = "float32",
        rng: Seed = None,
    ) -> None:
        self._set_window(in_channels, out_channels, kernel_size, stride, padding, dilation, groups)
        self._set_activation(activation)
        kind = checks.float_dtype(dtype)
        shape = (self.out_channels, self.in_channels // self.groups, *self.kernel_size)
        self._pattern = _full_pattern(shape)
        self.weight = Parameter(initial.kaiming(shape, kind, checks.generator(rng)))
        self._set_bias(bias, self.out_channels, kind)

    def forward(self, x: ArrayLike) -> Array:
        """x (N, in_channels, H, W) -> (N, out_channels, output H, output W)."""
        array = self._checked(x, self.weight.dtype)
        if min(self._geometry().output(array.shape[2:])) < 1:
            raise ValueError(
                f"x has shape {array.shape}, expected a height and width in which a window of size {self.kernel_size} "
                f"fits with padding {self.padding} and dilation {self.dilation}"
            )
        return self._activated(array, lambda activation: self._product(array, activation))

    def _matrix(self, samples: int) -> CSR | None:
        """The weight as a full CSR matrix, where that is faster; else None."""
        if self._pattern is None or samples < _MANY_SAMPLES:
            return None
        return CSR._trusted(self._pattern, np.ascontiguousarray(self.weight.value).reshape(-1))

    def _product(self, x: Array, activation: str | None) -> Array:
        matrix, bias = self._matrix(len(x)), self._bias()
        if matrix is not None:
            return functional.conv2d(x, matrix, bias, **self._window(), activation=activation)
        y = dense.conv(x, self.weight.value, bias, self._geometry())
        return y if activation is None else activations.activate(activation, y)

    def backward(self, dy: Array, *, need_input: bool = True) -> Array | None:
        x, grad = self._gradient(dy)
        grad_x, grad_weight, grad_bias = self._gradients(grad, x, need_input)
        self.weight.accumulate(grad_weight.reshape(self.weight.shape))
        if self.bias is not None:
            self.bias.accumulate(grad_bias)
        return grad_x

    def _gradients(self, grad: Array, x: Array, need_input: bool) -> tuple[Array | None, Array, Array]:
        matrix = self._matrix(len(x))
        if matrix is None:
            return dense.conv_backward(grad, x, self.weight.value, self._geometry(), need_input)
        return functional.conv_backward(grad, x, matrix, **self._window(), need_input=need_input)


def _flat(weight: ArrayLike, axes: int, expected: str) -> tuple[CSR, tuple[int, ...]]:
    """A convolution's dense weight as a matrix of its nonzeros, and its shape."""
    full = checks.real_array(weight, "weight")
    if full.ndim != axes + 2:
        raise ValueError(f"weight has shape {full.shape}, expected {axes + 2} axes {expected}")
    return csr(full.reshape(len(full), -1)), full.shape


def _full_pattern(shape: tuple[int, ...]) -> Pattern | None:
    """All weights of a dense convolution with few inputs per output; None for one with many."""
    rows, columns = shape[0], math.prod(shape[1:])
    if columns > _FEW_INPUTS:
        return None
    indices = np.tile(np.arange(columns, dtype=np.int32), rows)
    return Pattern._trusted(np.arange(rows + 1) * columns, indices, (rows, columns))
