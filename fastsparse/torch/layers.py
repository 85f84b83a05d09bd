"""Layers with sparse weights, as torch.nn.Modules.

The values are one dense parameter (nnz,), so that optimizers, ``state_dict``, ``deepcopy``, pickling, clipping,
checkpointing and DistributedDataParallel treat them as any other; where they stand is in the buffers `indptr` and
`indices`. An initialised layer costs memory for its nonzeros alone.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from fastsparse import checks
from fastsparse.arguments import per_axis
from fastsparse.csr import CSR, Pattern
from fastsparse.sparsity.patterns import mask_pattern, random_pattern
from fastsparse.torch import operators
from fastsparse.torch.evolving import follow_optimizers

Array = NDArray[Any]
Layer = TypeVar("Layer", bound="SparseLayer")

_FLOATS = torch.float32, torch.float64, torch.float16, torch.bfloat16
_PADDING_MODES = "zeros", "reflect", "replicate", "circular"


class SparseLayer(nn.Module):
    """What layers with a sparse weight share.

    Attributes
    ----------
    values : Parameter (nnz,)
        In the order of the pattern: row by row, columns rising.
    bias : Parameter (out,) or None
    indptr, indices : buffers
        The pattern in compressed sparse rows, (out + 1,) and (nnz,).
    """

    values: nn.Parameter
    bias: nn.Parameter | None
    indptr: Tensor
    indices: Tensor
    _columns: int

    def _set_weight(
        self, shape: tuple[int, int], bias: bool, sparsity: float, pattern: Pattern | None, device: Any, dtype: Any
    ) -> None:
        device = torch.get_default_device() if device is None else device
        if str(device).partition(":")[0] != "cpu":
            raise ValueError(f"device is {checks.shown(device)}, expected the CPU")
        dtype = torch.get_default_dtype() if dtype is None else dtype
        if not isinstance(dtype, torch.dtype) or dtype not in _FLOATS:
            raise TypeError(f"dtype is {checks.shown(dtype)}, expected one of {', '.join(map(str, _FLOATS))}")
        bias = checks.flag(bias, "bias")
        if pattern is None:
            pattern = random_pattern(shape, sparsity, rng=int(torch.randint(2**63 - 1, ())))
        if not isinstance(pattern, Pattern):
            raise TypeError(f"pattern is {type(pattern).__name__}, expected fastsparse.Pattern")
        if pattern.shape != shape:
            raise ValueError(f"pattern has shape {pattern.shape}, expected {shape} to match the layer")
        self._columns = shape[1]
        self.register_buffer("indptr", torch.from_numpy(pattern.indptr.copy()))
        self.register_buffer("indices", torch.from_numpy(pattern.indices.copy()))
        self.values = nn.Parameter(torch.empty(pattern.nnz, dtype=dtype, device="cpu"))
        self.register_parameter(
            "bias", nn.Parameter(torch.empty(shape[0], dtype=dtype, device="cpu")) if bias else None
        )
        self.reset_parameters()
        follow_optimizers()

    def reset_parameters(self) -> None:
        """Draw normal values of variance 2 / (nonzeros of the row); the bias is 0. Kaiming He et al., ICCV 2015."""
        counts = self.indptr.diff()
        deviation = torch.repeat_interleave((2.0 / counts.clamp(min=1)).sqrt(), counts)
        with torch.no_grad():
            self.values.copy_(torch.randn(len(self.values)) * deviation)
            if self.bias is not None:
                self.bias.zero_()

    @property
    def pattern(self) -> Pattern:
        """Where the values stand in the matrix (out, in), or (out, in / groups * kernel)."""
        return operators.structure_of(self.indptr, self.indices, self._columns).pattern

    def matrix(self) -> CSR:
        """A copy of the current weight, as a matrix of fastsparse."""
        values = self.values.detach()
        values = values if values.dtype == torch.float64 else values.to(torch.float32)
        return CSR._trusted(self.pattern, values.numpy().copy())

    @property
    def weight(self) -> Tensor:
        """The weight as a torch.sparse_csr tensor with these values, for code that asks for its type or shape."""
        shape = len(self.indptr) - 1, self._columns
        return torch.sparse_csr_tensor(self.indptr, self.indices.long(), self.values, shape, check_invariants=False)

    @property
    def sparsity(self) -> float:
        """Share of the weight's elements that are not stored."""
        return 1.0 - len(self.indices) / max(1, (len(self.indptr) - 1) * self._columns)

    def _dense_weight(self) -> Tensor:
        weight = torch.zeros(len(self.indptr) - 1, self._columns, dtype=self.values.dtype)
        rows = torch.repeat_interleave(torch.arange(len(weight)), self.indptr.diff())
        weight[rows, self.indices.long()] = self.values.detach()
        return weight

    def _take(self, weight: Tensor, bias: Tensor | None, like: nn.Module) -> None:
        """The values of a dense `weight` (out, columns) at the pattern, and what else belongs to the layer `like`."""
        pattern = self.pattern
        with torch.no_grad():
            rows = torch.from_numpy(pattern.rows())
            self.values.copy_(weight.detach()[rows, self.indices.long()])
            if self.bias is not None and bias is not None:
                self.bias.copy_(bias.detach())
        self.values.requires_grad_(_trainable(like, "weight"))
        if self.bias is not None:
            self.bias.requires_grad_(_trainable(like, "bias"))
        self.train(like.training)

    def _adopt(self, pattern: Pattern, values: Array) -> None:
        """Move to another pattern; the parameter stays the same object, which optimizers hold."""
        self.indptr.data = torch.from_numpy(pattern.indptr.copy())
        self.indices.data = torch.from_numpy(pattern.indices.copy())
        self.values.grad = None
        new, dtype = torch.from_numpy(np.ascontiguousarray(values)), self.values.dtype
        if len(new) != len(self.values):
            # A graph that is still alive holds the parameter's node for gradients, which expects the old size. torch
            # makes a new node for another type.
            self.values.data = torch.empty(0, dtype=torch.float32 if dtype == torch.float64 else torch.float64)
        self.values.data = new.to(dtype)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool, missing_keys: Any,
        unexpected_keys: Any, error_msgs: list[str],
    ) -> None:  # fmt: skip
        """Take a checked pattern, which may have another number of nonzeros."""
        indptr, indices, values = (state_dict.get(f"{prefix}{name}") for name in ("indptr", "indices", "values"))
        if indptr is not None and indices is not None and values is not None and indptr.shape == self.indptr.shape:
            try:
                pattern = operators.checked_pattern(indptr.cpu(), indices.cpu(), self._columns)
                if values.shape != (pattern.nnz,):
                    raise ValueError(f"values has shape {tuple(values.shape)}, expected ({pattern.nnz},)")
            except ValueError as error:
                error_msgs.append(f"{prefix.rstrip('.') or type(self).__name__}: {error}")
                return
            if len(values) != len(self.values):
                self._adopt(pattern, np.zeros(pattern.nnz))
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        follow_optimizers()

    def _weight_of(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """values, bias, indptr and indices, for an x that is where they are."""
        parameters, buffers = self._parameters, self._buffers  # a third of the time that four attributes take
        values: Any = parameters.get("values")
        if values is None:  # pruned by torch.nn.utils.prune, which computes an attribute before each call
            values = self.values
        if not isinstance(x, Tensor):
            raise TypeError(f"x is {type(x).__name__}, expected a Tensor")
        if not (x.is_cpu and values.is_cpu) and not (x.is_meta and values.is_meta):
            raise ValueError(f"x is on {x.device} and the layer on {values.device}, expected both on the CPU")
        bias = parameters.get("bias")
        if bias is None and "bias" not in parameters:
            bias = self.bias
        return values, bias, buffers["indptr"], buffers["indices"]


def _trainable(layer: nn.Module, name: str) -> bool:
    parameter = getattr(layer, f"{name}_orig", getattr(layer, name, None))
    return parameter is None or parameter.requires_grad


class SparseLinear(SparseLayer):
    """Linear layer whose weight is sparse: time and memory follow its nonzeros.

    Parameters
    ----------
    in_features, out_features : int
    bias : bool
    sparsity : float in [0, 1)
        Share of weights that do not exist; they are chosen at random (``torch.manual_seed`` decides).
    pattern : fastsparse.Pattern (out_features, in_features), optional
        Where the weights are, instead of `sparsity`.
    device : the CPU, or None
    dtype : float32, float64, float16 or bfloat16, optional
        Products of the last two are computed in float32.

    Notes
    -----
    Inputs in float16 and bfloat16, under autocast or not, are converted once and the result has the type of the
    input. There is no second derivative.

    Examples
    --------
    >>> import torch, fastsparse.torch as fst
    >>> layer = fst.SparseLinear(100, 10, sparsity=0.9)
    >>> layer(torch.zeros(3, 100)).shape, layer.values.shape
    (torch.Size([3, 10]), torch.Size([100]))
    """

    _prepared: operators.PreparedLinear | None = None  # for calls like the last one
    _decoded = False  # whether that one had no gradient: what a first call plans is not worth keeping

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        sparsity: float = 0.9,
        pattern: Pattern | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        (self.in_features,) = per_axis(in_features, 1, "in_features", 1)
        (self.out_features,) = per_axis(out_features, 1, "out_features", 1)
        self._set_weight((self.out_features, self.in_features), bias, sparsity, pattern, device, dtype)

    @classmethod
    def from_dense(cls, linear: nn.Module, mask: Any = None) -> SparseLinear:
        """Make a layer of the nonzeros of a torch.nn.Linear, or of Hugging Face's Conv1D.

        Parameters
        ----------
        linear : torch.nn.Linear
            Pruned by ``torch.nn.utils.prune`` or a parametrization with a mask, its mask says where the weights are.
        mask : Tensor (out, in), optional
            Where the weights are; by default where they are not zero.
        """
        weight, found = effective_weight(_module(linear, "linear"))
        pattern = mask_pattern(_mask(weight, found if mask is None else mask))
        bias = getattr(linear, "bias", None)
        out_features, in_features = weight.shape
        layer = cls(in_features, out_features, bias is not None, pattern=pattern, dtype=weight.dtype)
        layer._take(weight, bias, linear)
        return layer

    def to_dense(self) -> nn.Linear:
        """A torch.nn.Linear with the same weights, and zeros."""
        dense = nn.Linear(self.in_features, self.out_features, self.bias is not None, dtype=self.values.dtype)
        _give(self, dense, self._dense_weight())
        return dense

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in_features) -> (..., out_features).

        x may be a sparse tensor (batch, in_features), of bags of words for example: as an nn.EmbeddingBag that sums,
        weighted by the values of x. Then time follows the nonzeros of both, and x has no gradient.
        """
        prepared, decoding = None, not (torch.is_grad_enabled() or torch.compiler.is_compiling())
        if decoding:
            prepared = self._prepared
        if prepared is not None and isinstance(x, Tensor):
            parameters, buffers = self._parameters, self._buffers
            tensors: Any = parameters.get("values"), parameters.get("bias"), buffers["indptr"], buffers["indices"]
            y = prepared(x, tensors)
            if y is not None:
                return y
        weight = self._weight_of(x)
        if x.ndim == 0 or x.shape[-1] != self.in_features:
            raise ValueError(f"x has shape {tuple(x.shape)}, expected (..., {self.in_features})")
        y = operators.linear(x, *weight, self.in_features)
        if decoding and self._decoded:
            self.__dict__["_prepared"] = operators.prepared_linear(x, weight, self.in_features)
        self.__dict__["_decoded"] = decoding
        return y

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"sparsity={self.sparsity:.3g}"
        )


class _SparseConv(SparseLayer):
    """Convolution whose weight is sparse: time and memory follow its nonzeros.

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size, stride, dilation : int or one per axis
    padding : int, one per axis, "same" or "valid"
    groups : int
    bias : bool
    padding_mode : {"zeros", "reflect", "replicate", "circular"}
    sparsity : float in [0, 1)
        Share of weights that do not exist; they are chosen at random (``torch.manual_seed`` decides).
    pattern : fastsparse.Pattern (out_channels, in_channels / groups * product of kernel_size), optional
        Where the weights are, instead of `sparsity`.
    device : the CPU, or None
    dtype : float32, float64, float16 or bfloat16, optional
        Products of the last two are computed in float32.
    """

    _dense: ClassVar[type[Any]]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        padding_mode: str = "zeros",
        sparsity: float = 0.9,
        pattern: Pattern | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        axes = (nn.Conv1d, nn.Conv2d, nn.Conv3d).index(self._dense) + 1
        in_channels = checks.integer(in_channels, "in_channels")
        out_channels, groups = checks.integer(out_channels, "out_channels"), checks.integer(groups, "groups")
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels % groups:
                raise ValueError(f"groups is {groups}, expected a divisor of {name} = {channels}")
        kernel_size, stride = per_axis(kernel_size, axes, "kernel_size", 1), per_axis(stride, axes, "stride", 1)
        dilation = per_axis(dilation, axes, "dilation", 1)
        if isinstance(padding, str):
            padding = checks.choice(padding, "padding", ("same", "valid"))
        else:
            padding = per_axis(padding, axes, "padding", 0)
        padding_mode = checks.choice(padding_mode, "padding_mode", _PADDING_MODES)
        bias = checks.flag(bias, "bias")
        with torch.device("meta"):  # torch checks the arguments, and says in which form it keeps them
            like = self._dense(
                in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode
            )
        self.in_channels, self.out_channels, self.groups = like.in_channels, like.out_channels, like.groups
        self.kernel_size, self.stride, self.dilation = like.kernel_size, like.stride, like.dilation
        self.padding, self.padding_mode = like.padding, padding_mode
        around = list(like._reversed_padding_repeated_twice)  # of the last axis first
        self._around = around
        pairs = [(around[i], around[i + 1]) for i in range(0, len(around), 2)][::-1]
        self._window_padding = [n for pair in pairs for n in (pair if padding_mode == "zeros" else (0, 0))]
        shape = self.out_channels, self.in_channels // self.groups * math.prod(self.kernel_size)
        self._set_weight(shape, bias, sparsity, pattern, device, dtype)

    @classmethod
    def from_dense(cls: type[Layer], conv: nn.Module, mask: Any = None) -> Layer:
        """Make a layer of the nonzeros of a torch convolution; see ``SparseLinear.from_dense``."""
        weight, found = effective_weight(_module(conv, "conv"))
        pattern = mask_pattern(_mask(weight, found if mask is None else mask))
        c: Any = conv
        layer = cls(
            c.in_channels, c.out_channels, c.kernel_size, c.stride, c.padding, c.dilation, c.groups,
            c.bias is not None, padding_mode=c.padding_mode, pattern=pattern, dtype=weight.dtype,
        )  # fmt: skip
        layer._take(weight.reshape(len(weight), -1), c.bias, conv)
        return layer

    def to_dense(self) -> Any:
        """The torch convolution with the same weights, and zeros."""
        dense = self._dense(
            self.in_channels, self.out_channels, self.kernel_size, self.stride, self.padding, self.dilation,
            self.groups, self.bias is not None, self.padding_mode, dtype=self.values.dtype,
        )  # fmt: skip
        _give(self, dense, self._dense_weight().reshape(dense.weight.shape))
        return dense

    def forward(self, x: Tensor) -> Tensor:
        """x (N, in_channels, *spatial) -> (N, out_channels, *output spatial); without N, too."""
        weight = self._weight_of(x)
        axes = len(self.kernel_size)
        if x.ndim not in (axes + 1, axes + 2) or x.shape[-axes - 1] != self.in_channels:
            raise ValueError(f"x has shape {tuple(x.shape)}, expected ([N,] {self.in_channels}, {'*, ' * (axes - 1)}*)")
        single = x.ndim == axes + 1
        if single:
            x = x.unsqueeze(0)
        if self.padding_mode != "zeros":
            x = F.pad(x, self._around, mode=self.padding_mode)
        y = operators.conv(
            x, *weight, list(self.kernel_size), list(self.stride), self._window_padding, list(self.dilation),
            self.groups,
        )  # fmt: skip
        return y.squeeze(0) if single else y

    def extra_repr(self) -> str:
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"]
        parts += [f"padding={self.padding}"] if any(self._around) else []
        parts += [f"dilation={self.dilation}"] if set(self.dilation) != {1} else []
        parts += [f"groups={self.groups}"] if self.groups != 1 else []
        return ", ".join([*parts, f"bias={self.bias is not None}", f"sparsity={self.sparsity:.3g}"])


class SparseConv1d(_SparseConv):
    __doc__ = _SparseConv.__doc__
    _dense = nn.Conv1d


class SparseConv2d(_SparseConv):
    __doc__ = _SparseConv.__doc__
    _dense = nn.Conv2d


class SparseConv3d(_SparseConv):
    __doc__ = _SparseConv.__doc__
    _dense = nn.Conv3d


def _give(sparse: SparseLayer, dense: Any, weight: Tensor) -> None:
    with torch.no_grad():
        dense.weight.copy_(weight)
        if sparse.bias is not None:
            dense.bias.copy_(sparse.bias)
            dense.bias.requires_grad_(sparse.bias.requires_grad)
    dense.weight.requires_grad_(sparse.values.requires_grad)
    dense.train(sparse.training)


# ------------------------------------------------------------------------------------------------- dense weights


def is_transposed(layer: nn.Module) -> bool:
    """Whether it is Hugging Face's Conv1D: a linear layer that keeps its weight as (in, out)."""
    return type(layer).__name__ == "Conv1D" and hasattr(layer, "nf")


def _module(layer: Any, name: str) -> nn.Module:
    if not isinstance(layer, nn.Module):
        raise TypeError(f"{name} is {checks.shown(layer)}, expected a torch.nn.Module")
    return layer


def effective_weight(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    """The weight that a dense layer multiplies with, (out, ...), and its mask where it is being pruned.

    Raises
    ------
    ValueError
        When the layer is not on the CPU, or another parametrization than a mask makes its weight.
    """
    reason = why_not_plain(layer)
    if reason:
        raise ValueError(f"the layer's weight is {reason}")
    mask = getattr(layer, "weight_mask", None)
    if mask is not None:
        weight = layer.weight_orig * mask
    else:
        weight = layer.weight
        masks = [m for m in map(_parametrization_mask, _parametrizations(layer)) if m is not None]
        mask = masks[0] if masks else None
    weight = weight.detach()
    if is_transposed(layer):
        weight, mask = weight.T, None if mask is None else mask.T
    return weight, mask


def why_not_plain(layer: nn.Module) -> str | None:
    """Why the nonzeros of a layer's weight cannot be taken for the layer's; None when they can."""
    if any(_parametrization_mask(p) is None for p in _parametrizations(layer)):
        kinds = ", ".join(type(p).__name__ for p in _parametrizations(layer))
        return f"made by a parametrization ({kinds}), expected a mask or none"
    if "bias" in getattr(layer, "parametrizations", ()):
        return "beside a bias that a parametrization makes, expected a parameter"
    weight = getattr(layer, "weight_orig", None)
    weight = getattr(layer, "weight", None) if weight is None else weight
    if not isinstance(weight, Tensor):
        return "missing, expected a tensor"
    if "weight" not in layer._parameters and not hasattr(layer, "weight_mask") and not _parametrizations(layer):
        return "made by a hook, expected a parameter"
    if weight.device.type != "cpu":
        return f"on {weight.device}, expected the CPU"
    if weight.dtype not in _FLOATS:
        return f"of {weight.dtype}, expected floating-point numbers"
    return None


def _parametrizations(layer: nn.Module) -> list[nn.Module]:
    known = getattr(layer, "parametrizations", None)
    return list(known["weight"]) if known is not None and "weight" in known else []


def _parametrization_mask(parametrization: nn.Module) -> Tensor | None:
    mask = getattr(parametrization, "mask", None)
    return mask if isinstance(mask, Tensor) else None


def _mask(weight: Tensor, mask: Any) -> Array:
    """`mask` as an array (out, columns), by default where the weight is not zero."""
    try:
        found = torch.as_tensor(weight if mask is None else mask).detach()
        shape = found.shape
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"mask is {checks.shown(mask)}, expected a tensor: {error}") from error
    if shape != weight.shape:
        raise ValueError(f"mask has shape {tuple(shape)}, expected {tuple(weight.shape)} to match the weight")
    array: Array = (found != 0).reshape(len(found), -1).numpy()
    return array
