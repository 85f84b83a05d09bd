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
from fastsparse.nn.activations import activation_gradient, run_fused
from fastsparse.nn.linear import PatternMaker, SparseWeight
from fastsparse.nn.module import Module, check_gradient
from fastsparse.nn.parameter import Parameter
from fastsparse.ops import activations, dense
from fastsparse.ops.sums import channel_sums
from fastsparse.sparsity.growth import ConvolutionGradient

Array = NDArray[Any]
_FUNCTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
SparseConvolution = TypeVar("SparseConvolution", bound="_SparseConv")

# A dense convolution with at most this many inputs per output, and a batch of at least this many samples, runs as a
# sparse one with all weights: im2col would copy more than it computes. 1.5 to 6 times faster up to 28 x 28 pixels.
_FEW_INPUTS = 160
_MANY_SAMPLES = 16


class _Window:
    """Checked geometry of a convolution over `axes` axes."""

    def __init__(
        self,
        axes: int,
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
        self.kernel_size = per_axis(kernel_size, axes, "kernel_size", 1)
        self.stride = per_axis(stride, axes, "stride", 1)
        self.padding = padding_pairs(padding, axes)
        self.dilation = per_axis(dilation, axes, "dilation", 1)
        self.groups = checks.integer(groups, "groups")
        for name, channels in (("in_channels", self.in_channels), ("out_channels", self.out_channels)):
            if channels % self.groups:
                raise ValueError(f"groups is {self.groups}, expected a divisor of {name} = {channels}")

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """(out, in / groups, *kernel)."""
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    def config(self) -> dict[str, Any]:
        """Constructor arguments in JSON types."""
        return {
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "kernel_size": list(self.kernel_size),
            "stride": list(self.stride),
            "padding": [list(pair) for pair in self.padding],
            "dilation": list(self.dilation),
            "groups": self.groups,
        }

    def geometry(self) -> dense.Geometry:
        """The window as dense convolutions take it."""
        return dense.Geometry(self.kernel_size, self.stride, self.padding, self.dilation, self.groups)

    def keywords(self) -> dict[str, Any]:
        """Keyword arguments of the convolution functions."""
        return {
            "kernel_size": self.kernel_size,
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
        }


class _Convolution(Module):
    """What sparse and dense convolutions share: the window's geometry, readable as attributes."""

    _axes: ClassVar[int]
    _window: _Window

    @property
    def in_channels(self) -> int:
        """Channels of the input."""
        return self._window.in_channels

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        return self._window.out_channels

    @property
    def kernel_size(self) -> tuple[int, ...]:
        """Size of the window, one int per axis."""
        return self._window.kernel_size

    @property
    def stride(self) -> tuple[int, ...]:
        """Step of the window, one int per axis."""
        return self._window.stride

    @property
    def padding(self) -> tuple[tuple[int, int], ...]:
        """Zeros around the input, one pair (before, after) per axis."""
        return self._window.padding

    @property
    def dilation(self) -> tuple[int, ...]:
        """Distance of the window's elements, one int per axis."""
        return self._window.dilation

    @property
    def groups(self) -> int:
        """Number of groups of channels that do not see each other."""
        return self._window.groups


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
        self._window = _Window(self._axes, in_channels, out_channels, kernel_size, stride, padding, dilation, groups)
        out, *rest = self._window.weight_shape
        self._set_weight((out, math.prod(rest)), bias, sparsity, pattern, activation, dtype, rng)

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
        full = checks.real_array(weight, "weight")
        if full.ndim != cls._axes + 2:
            raise ValueError(
                f"weight has shape {full.shape}, expected {cls._axes + 2} axes (out, in / groups, *kernel)"
            )
        matrix = csr(full.reshape(len(full), -1))
        layer = cls(
            full.shape[1] * groups,
            full.shape[0],
            full.shape[2:],
            stride,
            padding,
            dilation,
            groups,
            bias is not None,
            pattern=matrix.pattern,
            activation=activation,
            dtype=matrix.dtype,
        )
        layer._take_weight(matrix, bias)
        return layer

    def forward(self, x: ArrayLike) -> Array:
        """x (N, in_channels, *spatial) -> (N, out_channels, *output spatial)."""
        matrix, bias, keywords = self.values.matrix(), self._bias(), self._window.keywords()
        x, run = as_cast(x, self.values.dtype, "x", "the layer"), _FUNCTIONS[self._axes]
        if x.ndim != self._axes + 2 or x.shape[1] != self.in_channels:
            sizes = ", ".join(("L",) if self._axes == 1 else "DHW"[-self._axes :])
            raise ValueError(f"x has shape {x.shape}, expected (N, {self.in_channels}, {sizes}) to match the layer")
        y, kept = run_fused(
            lambda activation: run(x, matrix, bias, **keywords, activation=activation),
            self.activation,
            self.training,
        )
        self._keep((x, kept, y.shape))
        return y

    def backward(self, dy: Array, *, need_input: bool = True) -> Array | None:
        x, kept, shape = self._taken()
        grad = activation_gradient(self.activation, check_gradient(dy, shape, self.values.dtype), kept)
        if self.values.watched:
            self.values.keep(ConvolutionGradient(grad, x, self._window.geometry()))
        grad_x, grad_values, grad_bias = functional.conv_backward(
            grad, x, self.values.matrix(), **self._window.keywords(), need_input=need_input
        )
        self._gather(grad_values, grad_bias)
        return grad_x

    def config(self) -> dict[str, Any]:
        return {**self._window.config(), **self._common_config()}


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
        # The window of the convolution that is transposed: from the layer's output to its input.
        self._window = _Window(2, out_channels, in_channels, kernel_size, stride, padding, dilation, groups)
        self.output_padding = per_axis(output_padding, 2, "output_padding", 0)
        if any(more >= s for more, s in zip(self.output_padding, self.stride)):
            raise ValueError(f"output_padding is {output_padding!r}, expected less than the stride {self.stride}")
        rows, *rest = self._window.weight_shape
        shape = (rows, math.prod(rest))
        self._set_weight(shape, bias, sparsity, pattern, activation, dtype, rng, self.out_channels)
        added = self.values.value.size / (self.out_channels * math.prod(self.stride))
        row = self.values.value.size / rows
        initial.scale(self.values.value, math.sqrt(row / added) if added else 1.0)

    @property
    def in_channels(self) -> int:
        """Channels of the input."""
        return self._window.out_channels

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        return self._window.in_channels

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
        full = checks.real_array(weight, "weight")
        if full.ndim != 4:
            raise ValueError(f"weight has shape {full.shape}, expected 4 axes (in, out / groups, height, width)")
        matrix = csr(full.reshape(len(full), -1))
        layer = cls(
            len(full),
            full.shape[1] * groups,
            full.shape[2:],
            stride,
            padding,
            output_padding,
            groups,
            bias is not None,
            dilation,
            pattern=matrix.pattern,
            activation=activation,
            dtype=matrix.dtype,
        )
        layer._take_weight(matrix, bias)
        return layer

    def forward(self, x: ArrayLike) -> Array:
        """x (N, in_channels, H, W) -> (N, out_channels, output H, output W)."""
        matrix, bias, keywords = self.values.matrix(), self._bias(), self._window.keywords()
        x = as_cast(x, self.values.dtype, "x", "the layer")
        y, kept = run_fused(
            lambda activation: functional.conv_transpose2d(
                x, matrix, bias, **keywords, output_padding=self.output_padding, activation=activation
            ),
            self.activation,
            self.training,
        )
        self._keep((x, kept, y.shape))
        return y

    def backward(self, dy: Array, *, need_input: bool = True) -> Array | None:
        x, kept, shape = self._taken()
        grad = activation_gradient(self.activation, check_gradient(dy, shape, self.values.dtype), kept)
        matrix, keywords = self.values.matrix(), self._window.keywords()
        if self.values.watched:
            self.values.keep(ConvolutionGradient(x, grad, self._window.geometry()))
        _, grad_values, _ = functional.conv2d_backward(x, grad, matrix, **keywords, need_input=False)
        self._gather(grad_values, channel_sums(grad))
        return functional.conv2d(grad, matrix, **keywords) if need_input else None

    def config(self) -> dict[str, Any]:
        window = {**self._window.config(), "in_channels": self.in_channels, "out_channels": self.out_channels}
        return {**window, "output_padding": list(self.output_padding), **self._common_config()}


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
        window = _Window(self._axes, in_channels, out_channels, kernel_size, stride, padding, dilation, groups)
        functional.check_activation(activation)
        kind = checks.float_dtype(dtype)
        self._window, self.activation, self._pattern = window, activation, _full_pattern(window.weight_shape)
        self._geometry = window.geometry()
        self.weight = Parameter(initial.kaiming(window.weight_shape, kind, checks.generator(rng)))
        use_bias = checks.flag(bias, "bias")
        self.bias = Parameter(initial.constant(window.out_channels, 0.0, kind)) if use_bias else None

    def forward(self, x: ArrayLike) -> Array:
        """x (N, in_channels, H, W) -> (N, out_channels, output H, output W)."""
        array = self._checked(x)
        y, kept = run_fused(lambda activation: self._product(array, activation), self.activation, self.training)
        self._keep((array, kept, y.shape))
        return y

    def _checked(self, x: ArrayLike) -> Array:
        array = as_cast(x, self.weight.dtype, "x", "the layer")
        if array.ndim != self._axes + 2 or array.shape[1] != self.in_channels:
            raise ValueError(f"x has shape {array.shape}, expected (N, {self.in_channels}, H, W) to match the layer")
        if min(self._geometry.output(array.shape[2:])) < 1:
            raise ValueError(
                f"x has shape {array.shape}, expected a height and width in which a window of size {self.kernel_size} "
                f"fits with padding {self.padding} and dilation {self.dilation}"
            )
        return array

    def _matrix(self, samples: int) -> CSR | None:
        """The weight as a full CSR matrix, where that is faster; else None."""
        if self._pattern is None or samples < _MANY_SAMPLES:
            return None
        return CSR._trusted(self._pattern, np.ascontiguousarray(self.weight.value).reshape(-1))

    def _product(self, x: Array, activation: str | None) -> Array:
        matrix, bias = self._matrix(len(x)), None if self.bias is None else self.bias.value
        if matrix is not None:
            return functional.conv2d(x, matrix, bias, **self._window.keywords(), activation=activation)
        y = dense.conv(x, self.weight.value, bias, self._geometry)
        return y if activation is None else activations.activate(activation, y)

    def backward(self, dy: Array, *, need_input: bool = True) -> Array | None:
        x, kept, shape = self._taken()
        grad = activation_gradient(self.activation, check_gradient(dy, shape, self.weight.dtype), kept)
        grad_x, grad_weight, grad_bias = self._gradients(grad, x, need_input)
        self.weight.accumulate(grad_weight.reshape(self.weight.shape))
        if self.bias is not None:
            self.bias.accumulate(grad_bias)
        return grad_x

    def _gradients(self, grad: Array, x: Array, need_input: bool) -> tuple[Array | None, Array, Array]:
        matrix = self._matrix(len(x))
        if matrix is None:
            return dense.conv_backward(grad, x, self.weight.value, self._geometry, need_input)
        return functional.conv_backward(grad, x, matrix, **self._window.keywords(), need_input=need_input)

    def config(self) -> dict[str, Any]:
        return {
            **self._window.config(),
            "bias": self.bias is not None,
            "activation": self.activation,
            "dtype": self.weight.dtype.name,
        }


def _full_pattern(shape: tuple[int, ...]) -> Pattern | None:
    """All weights of a dense convolution with few inputs per output; None for one with many."""
    rows, columns = shape[0], math.prod(shape[1:])
    if columns > _FEW_INPUTS:
        return None
    indices = np.tile(np.arange(columns, dtype=np.int32), rows)
    return Pattern._trusted(np.arange(rows + 1) * columns, indices, (rows, columns))
