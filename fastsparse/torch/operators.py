"""The operators behind the layers: ``torch.ops.fastsparse.linear``, ``conv`` and their backward twins.

An operator takes tensors alone: the values (nnz,), and the pattern as indptr and indices. What is built for a pattern
(plans) and for its current values (packed values) is kept per storage of `indices`, so that it serves eager calls and
compiled graphs alike, and is made anew when one of these tensors has changed.

The operators are defined with ``torch.library.define`` and ``impl``, and differentiated by an ``autograd.Function``
around them: a call costs half of what one by ``torch.library.custom_op`` does (pytorch#177109).
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.multiprocessing.reductions import StorageWeakRef

from fastsparse import functional
from fastsparse.arguments import checked_geometry
from fastsparse.csr import CSR, Pattern
from fastsparse.ops import conv as conv_ops
from fastsparse.ops import dense, spmv
from fastsparse.ops import linear as linear_ops
from fastsparse.ops.sums import batch_sum, channel_sums
from fastsparse.ops.target import Target, target_for, tuned_heuristics
from fastsparse.runtime import buffers
from fastsparse.runtime.launch import Launch
from fastsparse.runtime.threads import get_num_threads, threads
from fastsparse.sparsity.growth import ConvolutionGradient, FullGradient, LinearGradient

Array = NDArray[Any]

_KERNEL_TYPES = torch.float32, torch.float64
_CONVERTED = torch.float16, torch.bfloat16
_SAMPLES = 32  # values that are compared to notice changes which torch does not count


# ------------------------------------------------------------------------------------------------- patterns and values


class Structure:
    """What is kept for one pair of indptr and indices.

    Attributes
    ----------
    pattern : Pattern
    watched : bool
        Whether backward passes put what the full gradient can be computed from into `gradients`.
    """

    def __init__(self, indptr: Tensor, indices: Tensor, columns: int) -> None:
        # Held, it keeps the storage's number from being given to another one.
        self._storage = StorageWeakRef(indices.untyped_storage())
        self.indices = weakref.ref(indices, _forget)
        self._tensors = _identities(indptr, indices)
        self.pattern = checked_pattern(indptr, indices, columns)
        self.columns = columns
        self.watched = False
        self.gradients: list[FullGradient] = []
        self._values: _Values | None = None
        self._bias: tuple[int, Array] | None = None
        self._product: tuple[object, CSR, Launch | None] | None = None

    @property
    def expired(self) -> bool:
        """Whether nobody has the indices any more."""
        return bool(self._storage.expired())

    def current(self, indptr: Tensor, indices: Tensor, columns: int) -> bool:
        """Whether the tensors still hold this pattern."""
        tensors, pattern = _identities(indptr, indices), self.pattern
        if tensors == self._tensors and columns == self.columns:
            return True
        # Written to, maybe with what was there: DistributedDataParallel does so at each step.
        same = (
            pattern.shape == (len(indptr) - 1, columns)
            and np.array_equal(_array(indptr), pattern.indptr)
            and np.array_equal(_array(indices), pattern.indices)
        )
        if same:
            self._tensors = tensors
        return same

    def matrix(self, values: Tensor, fresh: bool | None) -> CSR:
        """The matrix, which shares the memory of the values; what is packed of them follows their changes.

        fresh : True in a forward pass with gradient: whatever may have changed the values. False: changes are those
            that torch counts, and of the others (through ``.data`` or NumPy) those that some of the values show. None
            in a backward pass, where the forward pass was fresh: those that torch counts.
        """
        known, identity = self._values, _identity(values)
        if (
            known is None
            or identity[0] != known.identity[0]
            or values.dtype is not known.dtype
            or values.numel() != len(known.array)
        ):
            known = self._values = _Values(values, self.pattern)
        elif fresh or known.identity != identity or (fresh is not None and known.sample_changed()):
            known.update(values, sampled=fresh is False)
        return known.matrix

    def bias(self, bias: Tensor | None, matrix: CSR) -> Array | None:
        """A view of the bias, made once: it keeps the memory, so that no other tensor has its address."""
        if bias is None:
            return None
        known = self._bias
        if known is None or known[0] != bias.data_ptr() or len(known[1]) != bias.numel():
            array = _input(bias, matrix, "bias")
            if array.shape != matrix.shape[:1]:
                raise ValueError(f"bias has shape {array.shape}, expected ({matrix.shape[0]},)")
            if not array.flags.c_contiguous:
                return np.ascontiguousarray(array)
            known = self._bias = bias.data_ptr(), array
        return known[1]

    def product(self, matrix: CSR) -> Launch:
        """The product with one sample; looked up once from the second call on, as a first one plans for itself."""
        how, known = _how(), self._product
        again = known is not None and known[0] == how and known[1] is matrix
        launch = known[2] if known is not None and again else None
        if launch is None:
            launch = spmv.launch(matrix, None, _target(matrix), held=again)
            self._product = how, matrix, launch if again else None
        return launch


class _Values:
    """The memory of a layer's values, held so that no other tensor gets its address, and the matrix over it."""

    def __init__(self, values: Tensor, pattern: Pattern) -> None:
        self.dtype, self.array = values.dtype, _array(_storable(values))
        if self.array.shape != (pattern.nnz,):
            raise ValueError(f"values has shape {self.array.shape}, expected ({pattern.nnz},), one for each nonzero")
        self.given = np.ascontiguousarray(_array(_computable(values)))
        self.matrix = CSR._trusted(pattern, self.given, changing=True)
        self._samples = self.array[:: max(1, -(-len(self.array) // _SAMPLES))]
        self.identity = _identity(values)
        self._sample: bytes | None = self._samples.tobytes()

    def sample_changed(self) -> bool:
        """Whether some of the values show that the memory was written to."""
        return self._sample != self._samples.tobytes()

    def update(self, values: Tensor, sampled: bool) -> None:
        """Take over what was written.

        sampled : whether to take the sample, which costs a miss of the caches for each number; without it, the next
            call that asks for it updates once more
        """
        if self.given is not self.array:
            np.copyto(self.given, _array(_computable(values)))
        self.identity = _identity(values)
        self._sample = self._samples.tobytes() if sampled else None
        self.matrix._values_changed()


def _computable(values: Tensor) -> Tensor:
    """In a type that kernels compute in."""
    return values.detach().float() if values.dtype in _CONVERTED else values.detach()


def _storable(values: Tensor) -> Tensor:
    """The same memory in a type that NumPy has."""
    return values.detach().view(torch.int16) if values.dtype in _CONVERTED else values.detach()


Identity = tuple[int, object]
Weight = tuple[Tensor, Tensor | None, Tensor, Tensor]  # values, bias, indptr, indices


def _identity(tensor: Tensor) -> Identity:
    """Changes when a tensor has other memory, or has been written to in a way that torch counts."""
    try:
        return tensor.data_ptr(), tensor._version
    except RuntimeError:  # made in inference mode: nothing is counted, so anything may have been written
        return tensor.data_ptr(), object()


def _identities(one: Tensor, other: Tensor) -> tuple[object, ...]:
    """Of two tensors: one call takes less time than two."""
    try:
        return one.data_ptr(), one._version, other.data_ptr(), other._version
    except RuntimeError:
        return *_identity(one), *_identity(other)


def _array(tensor: Tensor) -> Array:
    """A view of a tensor's memory."""
    return tensor.detach().numpy()


def checked_pattern(indptr: Tensor, indices: Tensor, columns: int) -> Pattern:
    """The pattern in these tensors, copied.

    Raises
    ------
    ValueError
        When they contradict each other, or columns do not rise strictly in every row: values would change places.
    """
    pattern = Pattern(_array(indptr), _array(indices), (len(indptr) - 1, columns))
    if not np.array_equal(pattern.indices, _array(indices)):
        raise ValueError("indices is not sorted and unique in every row, expected columns that rise strictly")
    return pattern


_structures: dict[int, Structure] = {}


def _forget(indices: weakref.ref[Tensor]) -> None:
    """Drop what is kept for indices that are gone, which is memory of the layer and more."""
    for key, structure in list(_structures.items()):
        if structure.indices is indices:
            _structures.pop(key, None)


def structure_of(indptr: Tensor, indices: Tensor, columns: int) -> Structure:
    """What is kept for these tensors; made anew when they hold another pattern than before."""
    key = indices.untyped_storage()._cdata
    structure = _structures.get(key)
    if structure is None or not structure.current(indptr, indices, columns):
        for old in [k for k, s in list(_structures.items()) if s.expired]:
            _structures.pop(old, None)
        structure = _structures[key] = Structure(indptr, indices, columns)
    return structure


def _target(matrix: CSR) -> Target:
    """As many threads as torch and fastsparse both allow: one inside of DataLoader workers, for example."""
    return target_for(matrix.dtype, min(get_num_threads(), torch.get_num_threads()))


def _input(x: Tensor, matrix: CSR, name: str) -> Array:
    x = x.resolve_neg()  # the imaginary part of a conjugate is negated when somebody reads it
    array = x.detach().numpy() if x.requires_grad else x.numpy()
    if array.dtype != matrix.dtype:
        raise TypeError(f"{name} has dtype {array.dtype}, expected {matrix.dtype} to match values")
    return array if array.flags.aligned else array.copy()


# ------------------------------------------------------------------------------------------------- operators

_library = torch.library.Library("fastsparse", "DEF")
_library.define(
    "linear(Tensor x, Tensor values, Tensor? bias, Tensor indptr, Tensor indices, int in_features, bool fresh) "
    "-> Tensor"
)
_library.define(
    "linear_backward(Tensor grad, Tensor x, Tensor values, Tensor indptr, Tensor indices, int in_features, "
    "bool need_input) -> (Tensor, Tensor, Tensor)"
)
_WINDOW = "int[] kernel_size, int[] stride, int[] padding, int[] dilation, int groups"
_library.define(
    f"conv(Tensor x, Tensor values, Tensor? bias, Tensor indptr, Tensor indices, {_WINDOW}, bool fresh) -> Tensor"
)
_library.define(
    f"conv_backward(Tensor grad, Tensor x, Tensor values, Tensor indptr, Tensor indices, {_WINDOW}, bool need_input) "
    "-> (Tensor, Tensor, Tensor)"
)


@torch.library.impl(_library, "linear", "CPU")
def _linear(
    x: Tensor, values: Tensor, bias: Tensor | None, indptr: Tensor, indices: Tensor, in_features: int, fresh: bool
) -> Tensor:
    structure = structure_of(indptr, indices, in_features)
    matrix = structure.matrix(values, fresh)
    added, at = structure.bias(bias, matrix), x.data_ptr()
    shape = *x.shape[:-1], matrix.shape[0]
    one = 0 < x.numel() == in_features and x.shape[-1:] == (in_features,)
    y = np.empty(shape, matrix.dtype) if one else buffers.array(shape, matrix.dtype)
    if not (
        one and x.dtype is values.dtype in _KERNEL_TYPES and x.is_contiguous() and not (at % x.itemsize or x.is_neg())
    ):
        rows = linear_ops.as_rows(_samples(x, matrix))  # not for one sample: a view takes as long as the product
        at = buffers.address(rows)
    if one:
        structure.product(matrix).run(at, buffers.address(y), buffers.optional_address(added))
    elif y.size:
        linear_ops.forward(matrix, rows, y, added, None, _target(matrix))
    return torch.from_numpy(y)


def _samples(x: Tensor, matrix: CSR) -> Array:
    array = _input(x, matrix, "x")
    if array.ndim == 0 or array.shape[-1] != matrix.shape[1]:
        raise ValueError(f"x has shape {array.shape}, expected (..., {matrix.shape[1]})")
    return array


@torch.library.impl(_library, "linear_backward", "CPU")
def _linear_backward(
    grad: Tensor, x: Tensor, values: Tensor, indptr: Tensor, indices: Tensor, in_features: int, need_input: bool
) -> tuple[Tensor, Tensor, Tensor]:
    structure = structure_of(indptr, indices, in_features)
    matrix = structure.matrix(values, None)
    array, dy = _samples(x, matrix), _input(grad, matrix, "grad")
    if dy.shape != (*array.shape[:-1], matrix.shape[0]):
        raise ValueError(f"grad has shape {dy.shape}, expected {(*array.shape[:-1], matrix.shape[0])}")
    grad_rows, x_rows = linear_ops.as_rows(dy), linear_ops.as_rows(array)
    if structure.watched:
        structure.gradients.append(LinearGradient(grad_rows.copy(), x_rows.copy()))
    grad_x, grad_values = linear_ops.backward(grad_rows, x_rows, matrix, need_input, _target(matrix))
    return _results(None if grad_x is None else grad_x.reshape(array.shape), grad_values, batch_sum(grad_rows))


def _results(grad_x: Array | None, grad_values: Array, grad_bias: Array) -> tuple[Tensor, Tensor, Tensor]:
    """As tensors; an empty one for a gradient that nobody needs."""
    grad_x = np.empty(0, grad_values.dtype) if grad_x is None else grad_x
    return torch.from_numpy(grad_x), torch.from_numpy(grad_values), torch.from_numpy(grad_bias)


def _geometry(
    x: Tensor, values: Tensor, indptr: Tensor, indices: Tensor, kernel_size: list[int], stride: list[int],
    padding: list[int], dilation: list[int], groups: int, fresh: bool | None,
) -> tuple[Structure, CSR, Array, Any]:  # fmt: skip
    """Checked operands of a convolution."""
    if x.ndim != len(kernel_size) + 2:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected {len(kernel_size) + 2} axes (N, C, *spatial)")
    structure = structure_of(indptr, indices, _columns(x, kernel_size, groups))
    matrix = structure.matrix(values, fresh)
    array, geometry = checked_geometry(
        len(kernel_size), _input(x, matrix, "x"), matrix, tuple(kernel_size), tuple(stride), tuple(_pairs(padding)),
        tuple(dilation), groups,
    )  # fmt: skip
    return structure, matrix, array, geometry


def _columns(x: Tensor, kernel_size: list[int], groups: int) -> int:
    columns = x.shape[1] // groups
    for size in kernel_size:
        columns *= size
    return columns


def _pairs(padding: list[int]) -> list[tuple[int, int]]:
    return list(zip(padding[::2], padding[1::2]))


@torch.library.impl(_library, "conv", "CPU")
def _conv(
    x: Tensor, values: Tensor, bias: Tensor | None, indptr: Tensor, indices: Tensor, kernel_size: list[int],
    stride: list[int], padding: list[int], dilation: list[int], groups: int, fresh: bool,
) -> Tensor:  # fmt: skip
    structure, matrix, array, geometry = _geometry(
        x, values, indptr, indices, kernel_size, stride, padding, dilation, groups, fresh
    )
    y = buffers.array((len(array), geometry.out_channels, *geometry.out_spatial), matrix.dtype)
    if y.size:
        conv_ops.forward(array, matrix, geometry, structure.bias(bias, matrix), None, y, _target(matrix))
    return torch.from_numpy(y)


@torch.library.impl(_library, "conv_backward", "CPU")
def _conv_backward(
    grad: Tensor, x: Tensor, values: Tensor, indptr: Tensor, indices: Tensor, kernel_size: list[int],
    stride: list[int], padding: list[int], dilation: list[int], groups: int, need_input: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    structure, matrix, array, geometry = _geometry(
        x, values, indptr, indices, kernel_size, stride, padding, dilation, groups, None
    )
    dy, expected = _input(grad, matrix, "grad"), (len(array), geometry.out_channels, *geometry.out_spatial)
    if dy.shape != expected:
        raise ValueError(f"grad has shape {dy.shape}, expected {expected}")
    dy = np.ascontiguousarray(dy)
    if structure.watched:
        window = dense.Geometry(tuple(kernel_size), tuple(stride), geometry.padding, tuple(dilation), groups)
        structure.gradients.append(ConvolutionGradient(dy.copy(), array.copy(), window))
    if not dy.size or not array.size:
        grad_x, grad_values = np.zeros(array.shape, matrix.dtype), np.zeros(matrix.nnz, matrix.dtype)
        return _results(grad_x if need_input else None, grad_values, channel_sums(dy))
    found, grad_values = conv_ops.backward(dy, array, matrix, geometry, need_input, _target(matrix))
    return _results(found, grad_values, channel_sums(dy))


# ------------------------------------------------------------------------------------------------- fake kernels


@torch.library.register_fake("fastsparse::linear", lib=_library)
def _(
    x: Tensor, values: Tensor, bias: Tensor | None, indptr: Tensor, indices: Tensor, in_features: int, fresh: bool
) -> Tensor:
    return x.new_empty((*x.shape[:-1], indptr.shape[0] - 1))


@torch.library.register_fake("fastsparse::linear_backward", lib=_library)
def _(
    grad: Tensor, x: Tensor, values: Tensor, indptr: Tensor, indices: Tensor, in_features: int, need_input: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return _fake_gradients(x, indptr, indices, need_input)


def _fake_gradients(x: Tensor, indptr: Tensor, indices: Tensor, need_input: bool) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape if need_input else 0), x.new_empty(indices.shape), x.new_empty(indptr.shape[0] - 1)


@torch.library.register_fake("fastsparse::conv", lib=_library)
def _(
    x: Tensor, values: Tensor, bias: Tensor | None, indptr: Tensor, indices: Tensor, kernel_size: list[int],
    stride: list[int], padding: list[int], dilation: list[int], groups: int, fresh: bool,
) -> Tensor:  # fmt: skip
    sizes = [
        (n + before + after - d * (k - 1) - 1) // s + 1
        for n, k, s, (before, after), d in zip(x.shape[2:], kernel_size, stride, _pairs(padding), dilation)
    ]
    return x.new_empty((x.shape[0], indptr.shape[0] - 1, *sizes))


@torch.library.register_fake("fastsparse::conv_backward", lib=_library)
def _(
    grad: Tensor, x: Tensor, values: Tensor, indptr: Tensor, indices: Tensor, kernel_size: list[int],
    stride: list[int], padding: list[int], dilation: list[int], groups: int, need_input: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _fake_gradients(x, indptr, indices, need_input)


# ------------------------------------------------------------------------------------------------- autograd

_ops = torch.ops.fastsparse
_dispatch_modes = torch._C._len_torch_dispatch_stack


_PLAIN = Tensor, nn.Parameter


def _unobserved(x: Tensor, values: Tensor) -> bool:
    """Whether numbers are computed, and nobody looks at which operators run: compilers, tracers, modes, subclasses."""
    return not (
        type(x) not in _PLAIN
        or type(values) not in _PLAIN
        or x.is_meta
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or _dispatch_modes()
        or torch._C._are_functorch_transforms_active()
    )


def _chosen(operator: Any, kernel: Callable[..., Any], x: Tensor, values: Tensor) -> Callable[..., Any]:
    """The kernel itself, or the operator where somebody may look at which operators run. The way through torch's
    dispatcher takes as long as 20 launches of kernels."""
    return kernel if _unobserved(x, values) else operator


class PreparedLinear:
    """A linear layer's product with one sample, without gradients, as decoding asks for it at each token.

    What `linear` looks up in every call was found out before. Between large layers, whose weights go through the
    caches, an object that a call looks at costs more than what it does with it.

    Parameters
    ----------
    tensors : values, bias, indptr and indices
        The product holds until somebody writes to them.
    in_features : int
    """

    __slots__ = ("_columns", "_how", "_kind", "_launch", "_state", "_tensors", "_values")

    def __init__(self, tensors: Weight, in_features: int) -> None:
        values, bias, indptr, indices = tensors
        structure = structure_of(indptr, indices, in_features)
        matrix = structure.matrix(values, False)
        kind = _kind(values)
        structure.bias(bias if bias is None or bias.dtype is kind else bias.to(kind), matrix)  # which checks it
        self._tensors, self._columns, self._values = tensors, in_features, structure._values
        self._launch, self._how = spmv.launch(matrix, None, _target(matrix), held=True), _how()
        self._kind, self._state = kind, _state(tensors)

    def __call__(self, x: Tensor, tensors: Weight) -> Tensor | None:
        """x (..., in_features) -> (..., out); None where `linear` has to compute it, or to refuse x."""
        held, known, given = self._tensors, self._values, x.dtype
        if (
            not _unobserved(x, held[0])
            or known is None
            or any(map(operator.is_not, tensors, held))
            or self._state != _state(held)
            or self._how != _how()
            or known.sample_changed()
            or (given is not self._kind and not (given in _CONVERTED and self._kind is torch.float32))
            or not x.is_cpu
            or x.layout is not torch.strided
            or x.shape[-1:] != (self._columns,)
            or x.numel() != self._columns
        ):
            return None
        numbers = x if given is self._kind else x.to(self._kind)
        at, bias = numbers.data_ptr(), tensors[1]
        if bias is not None and bias.dtype is not self._kind:
            bias = bias.to(self._kind)  # in each call: it may have been written to
        if at % numbers.itemsize or not numbers.is_contiguous() or numbers.is_neg():
            return None
        y = np.empty((*x.shape[:-1], known.matrix.shape[0]), known.matrix.dtype)
        self._launch.run(at, buffers.address(y), 0 if bias is None else bias.data_ptr())
        product = torch.from_numpy(y)
        return product if given is self._kind else product.to(given)

    def __reduce__(self) -> Any:
        """Copies and pickles of a layer prepare their own."""
        return type(None), ()


def prepared_linear(x: Tensor, tensors: Weight, in_features: int) -> PreparedLinear | None:
    """The product of calls like one with this x, or None where they are of another kind."""
    values, bias, _, _ = tensors
    fits = x.numel() == in_features and _unobserved(x, values) and values.is_cpu and x.layout is torch.strided
    if not fits or (bias is not None and (_kind(bias) is not _kind(values) or not bias.is_contiguous())):
        return None
    return PreparedLinear(tensors, in_features)


def _kind(values: Tensor) -> torch.dtype:
    """The type that kernels compute in."""
    return torch.float32 if values.dtype in _CONVERTED else values.dtype


def _state(tensors: Weight) -> tuple[object, ...]:
    """Changes when somebody writes to one of these tensors in a way that torch counts, or gives it other memory."""
    values, bias, indptr, indices = tensors
    added = (0, 0) if bias is None else _identity(bias)
    return *_identities(values, indptr), *_identity(indices), added[0]


def _how() -> tuple[object, ...]:
    """What targets depend on."""
    return get_num_threads(), torch.get_num_threads(), tuned_heuristics()


def linear(x: Tensor, values: Tensor, bias: Tensor | None, indptr: Tensor, indices: Tensor, in_features: int) -> Tensor:
    """x @ W.T + bias for the matrix W of `values` at the pattern of `indptr` and `indices`; differentiable once.

    Parameters
    ----------
    x : Tensor (..., in_features), or a sparse one (batch, in_features), which has no gradient
        float32 or float64 like values; float16 and bfloat16 are converted once, and the result back.
    values : Tensor (nnz,)
    bias : Tensor (out,), optional
    indptr : int64 Tensor (out + 1,)
    indices : int32 Tensor (nnz,)
        Rising strictly in every row.
    in_features : int

    Returns
    -------
    Tensor (..., out)
        Of the type of x.
    """
    dense = x.layout is torch.strided
    if not dense and x.requires_grad and torch.is_grad_enabled():
        raise ValueError("x is sparse and requires a gradient, expected one that does not, or a dense x")
    if not dense:
        operators = _linear_of_sparse, _linear_of_sparse
        return _converted(_SparseInputFunction, operators, x, values, bias, indptr, indices, in_features)
    operators = _ops.linear.default, _linear
    return _converted(_LinearFunction, operators, x, values, bias, indptr, indices, in_features)


def conv(
    x: Tensor, values: Tensor, bias: Tensor | None, indptr: Tensor, indices: Tensor, kernel_size: list[int],
    stride: list[int], padding: list[int], dilation: list[int], groups: int,
) -> Tensor:  # fmt: skip
    """Convolution over ``len(kernel_size)`` axes; see `linear`. `padding` is before and after, for one axis after the
    other."""
    window = kernel_size, stride, padding, dilation, groups
    operators = _ops.conv.default, _conv
    return _converted(_ConvFunction, operators, x, values, bias, indptr, indices, *window)


def _converted(
    function: Any, operators: tuple[Any, Any], x: Tensor, values: Tensor, bias: Tensor | None, *rest: Any
) -> Tensor:
    """An operator, or its kernel, on types that kernels know; through autograd where there is something to
    differentiate."""
    kind, given = _kind(values), x.dtype
    if given != kind:
        if given not in _CONVERTED or kind is not torch.float32:
            raise TypeError(f"x has dtype {given}, expected {kind} to match the layer's values (use .to)")
        x = x.to(kind)
    if bias is not None and bias.dtype != kind:
        bias = bias.to(kind)
    if (
        torch.is_grad_enabled()
        and (x.requires_grad or values.requires_grad or (bias is not None and bias.requires_grad))
        and not torch.jit.is_tracing()
    ):  # which keeps operators, and no functions of autograd
        y = function.apply(x, values, bias, *rest)
    else:
        y = _chosen(*operators, x, values)(x, values, bias, *rest, False)
    return y if given == kind else y.to(given)


def _linear_of_sparse(x: Tensor, values: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    """The operator's result for sparse x; no operator of torch's, whose compiler knows no sparse tensors."""
    return _SparseInputFunction.apply(x, values, bias, *rest[:-1])


class _SparseInputFunction(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, indptr: Tensor, indices: Tensor, in_features: int
    ) -> Tensor:
        rows = x.detach().to_sparse_csr()
        arrays = (rows.values(), rows.col_indices(), rows.crow_indices())
        ctx.x = sparse.csr_array(tuple(map(_array, arrays)), shape=tuple(x.shape))
        ctx.save_for_backward(values, indptr, indices)
        structure = structure_of(indptr, indices, in_features)
        matrix = structure.matrix(values, bool(ctx.needs_input_grad[1]))
        with threads(_target(matrix).threads):
            return torch.from_numpy(functional.linear(ctx.x, matrix, structure.bias(bias, matrix)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        values, indptr, indices = ctx.saved_tensors
        structure = structure_of(indptr, indices, ctx.x.shape[1])
        matrix = structure.matrix(values, None)
        dy = _input(grad, matrix, "grad")
        if structure.watched:
            structure.gradients.append(LinearGradient(dy.copy(), ctx.x))
        with threads(_target(matrix).threads):
            _, grad_values, grad_bias = functional.linear_backward(dy, ctx.x, matrix, need_input=False)
        found = torch.from_numpy(grad_values).to(values.dtype)
        return None, found, torch.from_numpy(grad_bias) if ctx.needs_input_grad[2] else None, None, None, None


class _LinearFunction(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
        ctx.save_for_backward(x, values, *rest[:2])
        ctx.rest = rest[2:]
        return _chosen(_ops.linear.default, _linear, x, values)(x, values, bias, *rest, True)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return _backward(_ops.linear_backward.default, _linear_backward, ctx, grad)


class _ConvFunction(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
        ctx.save_for_backward(x, values, *rest[:2])
        ctx.rest = rest[2:]
        return _chosen(_ops.conv.default, _conv, x, values)(x, values, bias, *rest, True)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return _backward(_ops.conv_backward.default, _conv_backward, ctx, grad)


def _backward(operator: Any, kernel: Callable[..., Any], ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """Gradients of x, values and bias, and None for the rest."""
    x, values, indptr, indices = ctx.saved_tensors
    need_input, need_values, need_bias = ctx.needs_input_grad[:3]
    operator = _chosen(operator, kernel, grad, values)
    arguments = grad, x, values, indptr, indices, *ctx.rest, need_input
    if torch.is_grad_enabled():  # create_graph=True
        grad_x, grad_values, grad_bias = _Gradients.apply(operator, *arguments)
    else:
        grad_x, grad_values, grad_bias = operator(*arguments)
    return (
        grad_x if need_input else None,
        grad_values.to(values.dtype) if need_values else None,
        grad_bias if need_bias else None,
        *(None,) * (2 + len(ctx.rest)),
    )


class _Gradients(Function):
    """The backward pass of an operator, where somebody may want its derivative."""

    @staticmethod
    def forward(ctx: Any, operator: Any, *arguments: Any) -> Any:
        return operator(*arguments)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise NotImplementedError(
            "fastsparse's layers have no second derivatives: their gradients cannot be differentiated"
        )
