"""From layers to a program: one function per kind of layer, in one table.

Values are copied in evaluation mode's form, so the program is a snapshot: training on changes nothing in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Union

import numpy as np
from numpy.typing import NDArray

from fastsparse import nn
from fastsparse.arguments import transposed_geometry
from fastsparse.csr import CSR, csr
from fastsparse.engine import resampling
from fastsparse.engine.program import (
    Activate,
    Add,
    Attention,
    Concat,
    Conv,
    LayerNorm,
    Linear,
    Lookup,
    Node,
    Operator,
    PaddingMask,
    Pool,
    Program,
    Reshape,
    Scale,
    Shape,
    Softmax,
    UnsupportedOperatorError,
)
from fastsparse.nn.activations import Activation
from fastsparse.nn.containers import masks_last, masks_memory
from fastsparse.ops.geometry import ConvGeometry
from fastsparse.ops.pooling import adaptive_windows, windows

Array = NDArray[Any]
# Operators one after the other with the shapes that they give; none for a layer that changes nothing.
Translated = list[tuple[Operator, Shape]]
Tensors = Union[int, "tuple[int, ...]"]  # what a layer reads: one tensor, or several


def program_of(model: nn.Module, *inputs: Shape) -> Program:
    """The program of a network of Sequentials, Residuals and Concats, layer by layer.

    Parameters
    ----------
    *inputs : shapes of a sample of each input

    Raises
    ------
    UnsupportedOperatorError
        Naming the first layer that is not known.
    ValueError
        When a layer does not fit the shape that reaches it.
    TypeError
        When layers have different dtypes.
    """
    build = _Building(list(inputs), [], model.common_dtype(), [None] * len(inputs), set())
    sources = tuple(range(len(inputs)))
    output = build.layer("", model, sources[0] if len(sources) == 1 else sources)
    return Program(tuple(build.shapes), sources, (output,), tuple(build.nodes), build.dtype, tuple(build.lookups))


@dataclass
class _Building:
    """A program while layers are added to it."""

    shapes: list[Shape]
    nodes: list[Node]
    dtype: np.dtype[Any]
    lookups: list[Lookup | PaddingMask | None]  # of each input
    shared: set[int]  # tensors that several branches read

    def layer(self, name: str, layer: nn.Module, x: Tensors) -> int:
        """Add a layer that reads tensor x, or several, and give the tensor that it writes."""
        if isinstance(layer, nn.Sequential) and len(layer):
            alone, children = masks_memory(layer, x), layer.children()
            x, mask = self._without_mask(layer, x)
            for child, inner in children:
                x = self.layer(f"{name}.{child}" if name else child, inner, _with_mask(inner, x, mask))
                mask = () if alone else mask
            assert isinstance(x, int)
            return x
        if isinstance(layer, nn.Residual):
            return self._residual(name, layer, x)
        if isinstance(layer, nn.Concat):
            return self._concat(name, layer, x)
        if isinstance(layer, nn.MultiheadAttention):
            return self._attention(name, layer, x)
        if not isinstance(x, int):
            if isinstance(layer, nn.Sequential):
                raise ValueError("an empty Sequential has several inputs, expected one")
            kind = type(layer).__name__
            raise ValueError(f"layer {name or 'model'} ({kind}) has {len(x)} inputs by input_shape, expected one")
        if isinstance(layer, nn.Sequential):
            return x
        if isinstance(layer, nn.Embedding):
            return self._embedding(name, layer, x)
        for operator, shape in _translated(name or "model", layer, self.shapes[x], self.dtype):
            x = self._node(name or "model", layer, operator, shape, (x,))
        return x

    def _embedding(self, name: str, layer: nn.Embedding, x: int) -> int:
        """Its table becomes the program's: integers are only what the user gives."""
        if x >= len(self.lookups) or self.lookups[x] is not None or x in self.shared:
            raise UnsupportedOperatorError(
                f"layer {name} is an Embedding, which fs.compile supports as the first layer that reads an input"
            )
        shape, position = self.shapes[x], layer.position
        if position is not None and (len(shape) != 1 or shape[0] > len(position.value)):
            raise ValueError(
                f"input_shape gives layer {name} (Embedding) an x of {_shown(shape)}, expected (N, tokens) with at "
                f"most {len(position.value)} tokens"
            )
        self.lookups[x] = Lookup(layer.weight.value.copy(), None if position is None else position.value.copy())
        self.shapes[x] = (*shape, layer.embedding_dim)
        return x

    def _attention(self, name: str, layer: nn.MultiheadAttention, x: Tensors) -> int:
        where = f"layer {name or 'model'} (MultiheadAttention)"
        inputs = [x] if isinstance(x, int) else list(x)
        mask = inputs.pop() if len(inputs) > 1 and len(self.shapes[inputs[-1]]) == 1 else None
        if len(inputs) > 2:
            raise ValueError(f"{where} has {len(inputs)} inputs, expected 1 or 2, and a mask")
        source, memory = inputs[0], inputs[-1]
        for shape in (self.shapes[source], self.shapes[memory]):
            if len(shape) != 2 or shape[1] != layer.embed_dim:
                got = _shown(shape)
                raise ValueError(f"input_shape gives {where} an x of {got}, expected (N, tokens, {layer.embed_dim})")
        dot = f"{name}." if name else ""
        parts = (("query", source), ("key", memory), ("value", memory))
        ends = tuple(self.layer(f"{dot}{part}", getattr(layer, part), t) for part, t in parts)
        if mask is not None:
            if mask >= len(self.lookups) or isinstance(self.lookups[mask], Lookup) or mask in self.shared:
                raise UnsupportedOperatorError(f"{where} has a mask that is not an input of the model of its own")
            if self.shapes[mask] != self.shapes[memory][:1]:
                (keys,) = self.shapes[mask]
                raise ValueError(
                    f"input_shape gives {where} a mask of (N, {keys}), expected (N, {self.shapes[memory][0]})"
                )
            self.lookups[mask] = PaddingMask()
            ends = (*ends, mask)
        operator = Attention(layer.num_heads, layer.causal)
        y = self._node(name or "model", layer, operator, self.shapes[ends[0]], ends)
        return self.layer(f"{dot}output", layer.output, y)

    def _concat(self, name: str, layer: nn.Concat, x: Tensors) -> int:
        ends = []
        for i, (branch, t) in enumerate(zip(layer.branches, self._sources(name, layer, x, len(layer.branches)))):
            ends.append(t if branch is None else self.layer(f"{name}.{i}" if name else str(i), branch, t))
        shapes = [self.shapes[t] for t in ends]
        if any(shape[1:] != shapes[0][1:] for shape in shapes):
            told = " and ".join(map(_shown, shapes))
            where = f"layer {name or 'model'} (Concat)"
            raise ValueError(f"{where} joins {told}, expected equal shapes but for the second axis")
        shape = (sum(shape[0] for shape in shapes), *shapes[0][1:])
        return self._node(name or "model", layer, Concat(), shape, tuple(ends))

    def _sources(self, name: str, layer: nn.Module, x: Tensors, count: int) -> tuple[int, ...]:
        """What each branch of a layer reads: the same tensor, or of several inputs one each."""
        if isinstance(x, int):
            self.shared.add(x)
            return (x,) * count
        if len(x) != count:
            kind = type(layer).__name__
            raise ValueError(
                f"layer {name or 'model'} ({kind}) has {len(x)} inputs for {count} branches, expected as many"
            )
        return x

    def _without_mask(self, layer: nn.Module, x: Tensors) -> tuple[Tensors, tuple[int, ...]]:
        """Inputs of a container, and the padding mask among them, as `Sequential` has it."""
        if isinstance(x, int) or not masks_last(layer, [len(self.shapes[t]) + 1 for t in x]):
            return x, ()
        return (x[0] if len(x) == 2 else x[:-1]), x[-1:]

    def _residual(self, name: str, layer: nn.Residual, x: Tensors) -> int:
        x, mask = self._without_mask(layer, x)
        ends = []
        for (child, inner), t in zip(
            (("body", layer.body), ("shortcut", layer.shortcut)), self._sources(name, layer, x, 2)
        ):
            dot = f"{name}.{child}" if name else child
            ends.append(t if inner is None else self.layer(dot, inner, _with_mask(inner, t, mask)))
        body, passed = ends
        if self.shapes[body] != self.shapes[passed]:
            shapes = [_shown(self.shapes[t]) for t in (body, passed)]
            raise ValueError(f"layer {name or 'model'} (Residual) adds {shapes[0]} and {shapes[1]}, expected one shape")
        return self._node(name or "model", layer, Add(layer.activation), self.shapes[body], (body, passed))

    def _node(self, name: str, layer: nn.Module, operator: Operator, shape: Shape, inputs: tuple[int, ...]) -> int:
        self.shapes.append(shape)
        output = len(self.shapes) - 1
        self.nodes.append(Node(f"{name} {type(layer).__name__}", operator, inputs, output))
        return output


def _shown(shape: Shape) -> str:
    """The shape of a batch of such samples, for messages."""
    return "(" + ", ".join(map(str, ("N", *shape))) + ")"


def _with_mask(layer: nn.Module, x: Tensors, mask: tuple[int, ...]) -> Tensors:
    """What a layer reads when its container has a mask."""
    if not mask or not layer.takes_mask():
        return x
    return (*((x,) if isinstance(x, int) else x), *mask)


def _translated(name: str, layer: nn.Module, shape: Shape, dtype: np.dtype[Any]) -> Translated:
    for kinds, translate in _TABLE:
        if isinstance(layer, kinds):
            try:
                steps = translate(layer, shape)
                return [(_in_type(operator, dtype), after) for operator, after in steps]
            except _ShapeError as error:
                got, kind = _shown(shape), type(layer).__name__
                raise ValueError(f"input_shape gives layer {name} ({kind}) an x of {got}, expected {error}") from None
    raise UnsupportedOperatorError(f"layer {name} is a {type(layer).__name__}, which fs.compile does not support yet")


class _ShapeError(ValueError):
    """What a layer expected of its input's shape."""


def _bias(layer: Any) -> Array | None:
    return None if layer.bias is None else layer.bias.value.copy()


def _weight(layer: Any) -> tuple[CSR, bool]:
    """A layer's weight as a matrix, and whether it is written as a dense layer."""
    if isinstance(layer, nn.Linear | nn.Conv2d):
        return csr(layer.weight.value.reshape(len(layer.weight.value), -1)), True
    return layer.weight, False


def _linear(layer: nn.SparseLinear | nn.Linear, shape: Shape) -> Translated:
    if shape[-1:] != (layer.in_features,):
        raise _ShapeError(f"(N, ..., {layer.in_features})")
    weight, dense = _weight(layer)
    operator = Linear(weight, _bias(layer), layer.activation, dense, math.prod(shape[:-1]))
    return [(operator, (*shape[:-1], layer.out_features))]


def _conv(layer: Any, shape: Shape) -> Translated:
    axes = len(layer.kernel_size)
    if len(shape) != axes + 1 or shape[0] != layer.in_channels:
        raise _ShapeError(f"(N, {layer.in_channels}, {', '.join(('L',) if axes == 1 else 'DHW'[-axes:])})")
    geometry = ConvGeometry(
        layer.in_channels, layer.out_channels, shape[1:], layer.kernel_size, layer.stride, layer.padding,
        layer.dilation, layer.groups,
    )  # fmt: skip
    if min(geometry.out_spatial) < 1:
        raise _ShapeError(f"an image in which a window of {layer.kernel_size} fits")
    weight, dense = _weight(layer)
    operator = Conv(weight, _bias(layer), geometry, layer.activation, dense)
    return [(operator, (layer.out_channels, *geometry.out_spatial))]


def _conv_transpose(layer: nn.SparseConvTranspose2d, shape: Shape) -> Translated:
    if len(shape) != 3 or shape[0] != layer.in_channels:
        raise _ShapeError(f"(N, {layer.in_channels}, H, W)")
    weight, probe = layer.weight, np.empty((1, *shape), np.bool_)
    window = layer.kernel_size, layer.stride, layer.padding, layer.output_padding, layer.dilation, layer.groups
    try:
        _, geometry = transposed_geometry(probe, weight, *window)
    except ValueError:
        raise _ShapeError(f"an image that is larger than the padding {layer.padding} cuts off") from None
    return resampling.transposed(weight, _bias(layer), geometry, layer.activation)


def _upsample(layer: nn.Upsample, shape: Shape) -> Translated:
    if len(shape) != 3:
        raise _ShapeError("(N, C, H, W)")
    make = resampling.repeated if layer.mode == "nearest" else resampling.interpolated
    return make(shape, layer.scale_factor)


def _in_type(operator: Operator, dtype: np.dtype[Any]) -> Operator:
    """The operator with weights of the program's type, which those of layers without parameters are not yet."""
    if not isinstance(operator, Conv) or operator.weight.dtype == dtype:
        return operator
    w = operator.weight
    return replace(operator, weight=CSR(w.indptr, w.indices, w.data.astype(dtype), w.shape))


def _batch_norm(layer: Any, shape: Shape) -> Translated:
    axes = (1, 2) if isinstance(layer, nn.BatchNorm1d) else (3,)
    if len(shape) not in axes or shape[0] != layer.num_features:
        raise _ShapeError(f"{layer.num_features} channels and {' or '.join(str(n - 1) for n in axes)} spatial axes")
    wide = np.float64
    scale = layer.weight.value.astype(wide) / np.sqrt(layer.running_var.astype(wide) + layer.eps)
    return [(Scale(scale, layer.bias.value.astype(wide) - layer.running_mean.astype(wide) * scale), shape)]


def _activation(layer: Any, shape: Shape) -> Translated:
    return [(Activate(layer.activation), shape)]


def _row_norm(layer: nn.LayerNorm | nn.RMSNorm, shape: Shape) -> Translated:
    sizes = layer.normalized_shape
    if len(shape) < len(sizes) or shape[-len(sizes) :] != sizes:
        raise _ShapeError("(N, ..., " + ", ".join(map(str, sizes)) + ")")
    return [(LayerNorm(layer.weight.value.copy(), _bias(layer), float(layer.eps)), shape)]


def _softmax(layer: nn.Softmax, shape: Shape) -> Translated:
    if layer.axis not in (-1, len(shape)):
        raise UnsupportedOperatorError(
            f"a Softmax is along axis {layer.axis} of {len(shape) + 1}, expected the last one, as fs.compile supports"
        )
    return [(Softmax(), shape)]


def _pool(layer: Any, shape: Shape) -> Translated:
    if len(shape) != 3:
        raise _ShapeError("(N, C, H, W)")
    channels, *spatial = shape
    if isinstance(layer, nn.AdaptiveAvgPool2d):
        tables = adaptive_windows((spatial[0], spatial[1]), layer.output_size)
    else:
        tables = windows((spatial[0], spatial[1]), layer.kernel_size, layer.stride, layer.padding)
    if min(tables.out_spatial) < 1:
        raise _ShapeError(f"an image in which a window of {layer.kernel_size} fits")
    return [(Pool("max" if isinstance(layer, nn.MaxPool2d) else "mean", tables), (channels, *tables.out_spatial))]


_TABLE: list[tuple[tuple[type[nn.Module], ...], Callable[[Any, Shape], Translated]]] = [
    ((nn.SparseLinear, nn.Linear), _linear),
    ((nn.SparseConv1d, nn.SparseConv2d, nn.SparseConv3d, nn.Conv2d), _conv),
    ((nn.SparseConvTranspose2d,), _conv_transpose),
    ((nn.Upsample,), _upsample),
    ((nn.BatchNorm1d, nn.BatchNorm2d), _batch_norm),
    ((Activation,), _activation),
    ((nn.LayerNorm, nn.RMSNorm), _row_norm),
    ((nn.Softmax,), _softmax),
    ((nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d), _pool),
    ((nn.Flatten,), lambda layer, shape: [] if len(shape) == 1 else [(Reshape(), (math.prod(shape),))]),
    ((nn.Dropout,), lambda layer, shape: []),
]
