"""TFLite models as ONNX models: images become NCHW once, at the input, and NHWC where a model looks at their order.

Inputs and outputs keep the shapes and the order of axes that they have in the TFLite file.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse.engine.program import UnsupportedOperatorError
from fastsparse.files import FileFormatError
from fastsparse.onnx.writer import GraphWriter
from fastsparse.tflite.reader import Model, Operator, Tensor, read

Array = NDArray[Any]

_TO_NCHW, _TO_NHWC = (0, 3, 1, 2), (0, 2, 3, 1)
# ActivationFunctionType.
_FUSED = {0: None, 1: "RELU", 2: "RELU_N1_TO_1", 3: "RELU6", 4: "TANH"}
_UNARY = {
    "RELU": "Relu", "TANH": "Tanh", "LOGISTIC": "Sigmoid", "HARD_SWISH": "HardSwish", "ELU": "Elu", "ABS": "Abs",
    "EXP": "Exp", "NEG": "Neg", "SQRT": "Sqrt", "FLOOR": "Floor", "CEIL": "Ceil", "LOG": "Log",
}  # fmt: skip
_BINARY = {"ADD": "Add", "SUB": "Sub", "MUL": "Mul", "DIV": "Div", "MAXIMUM": "Max", "MINIMUM": "Min", "POW": "Pow"}
_CLIPPED = {"RELU6": (0.0, 6.0), "RELU_N1_TO_1": (-1.0, 1.0), "RELU_0_TO_1": (0.0, 1.0)}
_FEW = 64  # numbers
_REDUCED = {"MEAN": "ReduceMean", "SUM": "ReduceSum", "REDUCE_MAX": "ReduceMax"}


def model_of(path: str | os.PathLike[str]) -> Any:
    """The onnx.ModelProto of a TFLite file.

    Raises
    ------
    FileFormatError
        When the file is damaged, or no TFLite model.
    UnsupportedOperatorError
        Naming the first operator that is not known, or that computes with quantised numbers.
    OSError
        When it cannot be read.
    """
    model = read(path)
    try:
        return _Writer(model).proto()
    except (FileFormatError, UnsupportedOperatorError, MemoryError):
        raise
    except Exception as error:  # options and shapes that contradict each other
        raise FileFormatError(f"{os.fspath(path)} is damaged: {type(error).__name__}: {error}") from error


class _Writer(GraphWriter):
    """Writes one model; tensors are numbers, as in the TFLite file, and names in the ONNX model."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self._model = model
        self.taken.update(tensor.name for tensor in model.tensors)
        self._same: dict[int, tuple[Array, str]] = {}  # constants by their ids
        self._names: dict[tuple[int, bool], str] = {}  # by tensor, and whether in NCHW
        self.constants = {i: tensor.constant for i, tensor in enumerate(model.tensors) if tensor.constant is not None}
        self.zero_pads: dict[int, tuple[int, Array]] = {}  # what a padded image was before, and pads (2, 2) of it
        self._fixed_batch = False

    # ---------------------------------------------------------------- the model

    def proto(self) -> Any:
        model = self._model
        for i in model.inputs:
            self._names[i, False] = model.tensors[i].name
        for operator in model.operators:
            self._convert(operator)
        for i in model.outputs:
            if (name := self.plain(i)) != model.tensors[i].name:
                self.node("Identity", name, output=model.tensors[i].name)
        return self.model(*([self._value(model.tensors[i]) for i in ends] for ends in (model.inputs, model.outputs)))

    def _value(self, tensor: Tensor) -> Any:
        """An input or output of the model, whose first size is open where samples stay apart."""
        sizes: list[Any] = [f"{tensor.name}.{axis}" if n == -1 else n for axis, n in enumerate(tensor.shape)]
        if sizes and tensor.shape[0] in (1, -1) and not self._fixed_batch:
            sizes[0] = "N"
        return self.value(tensor.name, sizes, tensor.dtype)

    def _convert(self, operator: Operator) -> None:
        kind = operator.kind
        inputs = [self._model.tensors[i] for i in operator.inputs if i >= 0]
        if kind in ("DEQUANTIZE", "DENSIFY") and operator.inputs[0] in self.constants:
            self.constants[operator.outputs[0]] = self.constants[operator.inputs[0]]
            return
        for tensor in inputs:
            if tensor.quantised and tensor.constant is None:
                raise UnsupportedOperatorError(
                    f"operator {kind} computes with quantised numbers ({tensor.name!r}), and fs.compile takes TFLite "
                    "models whose activations are float32"
                )
        write = _OPERATORS.get(kind)
        if write is None:
            raise UnsupportedOperatorError(
                f"operator {kind} is not supported in TFLite models, expected one of {', '.join(sorted(_OPERATORS))}"
            )
        write(self, operator)

    # ---------------------------------------------------------------- tensors and nodes

    def shape(self, i: int) -> tuple[int, ...]:
        """The shape in the file."""
        return self.constants[i].shape if i in self.constants else self._model.tensors[i].shape

    def is_image(self, i: int) -> bool:
        """Whether it is computed, and has four axes."""
        return i not in self.constants and len(self.shape(i)) == 4

    def known(self, operator: Operator, position: int, what: str) -> Array:
        """The numbers of an input that has to be known."""
        if position >= len(operator.inputs) or operator.inputs[position] not in self.constants:
            raise UnsupportedOperatorError(f"{operator} has {what} that depend on numbers, expected constants")
        return self.constants[operator.inputs[position]]

    def named(self, i: int, nchw: bool = False) -> str:
        """A tensor's name, as an image in NCHW or as in the file; transposed when it is there the other way only."""
        if i in self.constants:
            return self.constant(self.constants[i], self.name_of(i))
        found = self._names.get((i, nchw))
        if found is None:
            other = self._names.get((i, not nchw))
            if other is None or len(self.shape(i)) != 4:
                raise ValueError(f"tensor {self.name_of(i)!r} is read before it is written")
            found = self._names[i, nchw] = self.node("Transpose", other, perm=_TO_NCHW if nchw else _TO_NHWC)
        return found

    def constant(self, array: Any, stem: str, dtype: Any = None) -> str:
        """Name of a constant, kept once."""
        known = self._same.get(id(array))
        if known is None:
            known = self._same[id(array)] = array, super().constant(array, stem, dtype)
        return known[1]

    def name_of(self, i: int) -> str:
        """In the file."""
        return self._model.tensors[i].name

    def image(self, i: int) -> str:
        """Name of a tensor of four axes in NCHW."""
        return self.named(i, True)

    def plain(self, i: int) -> str:
        """Name of a tensor in the order of the file."""
        return self.named(i)

    def result(self, operator: Operator, name: str, nchw: bool) -> None:
        """Take what a node wrote for the operator's output, behind the activation that is fused into it."""
        code = operator.options("FusedActivationFunction") if operator.kind in _WITH_ACTIVATION else None
        if (code or 0) not in _FUSED:
            raise UnsupportedOperatorError(f"{operator} has the fused activation {code}, which is not supported")
        fused = _FUSED[code or 0]
        self._names[operator.outputs[0], nchw] = name if fused is None else self.activation(fused, name)

    def activation(self, kind: str, x: str) -> str:
        """An activation's node."""
        if kind in _CLIPPED:
            return self.node("Clip", x, *map(np.float32, _CLIPPED[kind]))
        return self.node(_UNARY[kind], x)

    def batch_moves(self) -> None:
        """Say that an operator treats samples of a batch unlike each other."""
        self._fixed_batch = True

    # ---------------------------------------------------------------- padding

    def padded(self, operator: Operator, kernel: tuple[int, int]) -> tuple[str, list[int]]:
        """Input and pads (top, left, bottom, right) of a window; a PAD with zeros before it is taken in."""
        source = operator.inputs[0]
        steps = (operator.options("StrideH"), operator.options("StrideW"))
        if operator.options("Padding") == 1:  # VALID
            if source in self.zero_pads and "POOL" not in operator.kind:
                source, outside = self.zero_pads[source]
                return self.image(source), [int(n) for n in outside.T.reshape(-1)]
            return self.image(source), [0, 0, 0, 0]
        dilations = [operator.options(f"Dilation{axis}Factor") or 1 if "CONV" in operator.kind else 1 for axis in "HW"]
        before, after = [], []
        for size, width, step, dilation in zip(self.shape(source)[1:3], kernel, steps, dilations):
            total = max((-(-size // step) - 1) * step + (width - 1) * dilation + 1 - size, 0)
            before.append(total // 2)
            after.append(total - total // 2)
        return self.image(source), before + after


def _pad(writer: _Writer, operator: Operator) -> None:
    source = operator.inputs[0]
    pads = writer.known(operator, 1, "pads").astype(np.int64)
    if pads.shape != (len(writer.shape(source)), 2):
        raise ValueError(f"PAD has pads of shape {pads.shape} for an input of shape {writer.shape(source)}")
    value = writer.known(operator, 2, "values") if operator.kind == "PADV2" else np.zeros((), np.float32)
    nchw = writer.is_image(source)
    if nchw and not value.any() and not pads[[0, 3]].any():
        writer.zero_pads[operator.outputs[0]] = source, pads[1:3]
    ordered = pads[list(_TO_NCHW)] if nchw else pads
    if pads[:1].any():
        writer.batch_moves()
    fill = value.reshape(()) if value.any() else None
    writer.result(operator, writer.node("Pad", writer.named(source, nchw), ordered.T.reshape(-1), fill), nchw)


def _convolution(writer: _Writer, operator: Operator) -> None:
    weight = writer.known(operator, 1, "weights")
    if weight.ndim != 4 or weight.dtype != np.float32:
        raise ValueError(f"{operator} has weights of shape {weight.shape} and type {weight.dtype}")
    channels = writer.shape(operator.inputs[0])[3]
    if operator.kind == "CONV_2D":
        ordered = weight.transpose(0, 3, 1, 2)
        groups, rest = divmod(channels, weight.shape[3])
    else:
        ordered = weight.transpose(3, 0, 1, 2)
        groups, rest = channels, weight.shape[3] % channels
    if rest or groups < 1:
        raise ValueError(f"{operator} has weights of shape {weight.shape} for {channels} channels")
    x, pads = writer.padded(operator, (weight.shape[1], weight.shape[2]))
    made = writer.node(
        "Conv", x, ordered, _bias(writer, operator), kernel_shape=weight.shape[1:3], pads=pads, group=groups,
        strides=[operator.options("StrideH"), operator.options("StrideW")],
        dilations=[operator.options("DilationHFactor"), operator.options("DilationWFactor")],
    )  # fmt: skip
    writer.result(operator, made, True)


def _transposed_convolution(writer: _Writer, operator: Operator) -> None:
    """Inputs: the output's shape, weights (out, height, width, in), x and perhaps biases.

    What the padding leaves over of an axis lies half before the output and, where it is odd, more behind it.
    """
    shape, weight = (writer.known(operator, i, what) for i, what in enumerate(("an output shape", "weights")))
    source = operator.inputs[2]
    x = writer.shape(source)
    if weight.ndim != 4 or weight.dtype != np.float32 or shape.shape != (4,) or len(x) != 4 or weight.shape[3] != x[3]:
        raise ValueError(f"{operator} has weights of shape {weight.shape} and an output of {shape} for {x}")
    strides = [operator.options("StrideH"), operator.options("StrideW")]
    before, after, more = [], [], []
    for size, kernel, stride, given in zip(x[1:3], weight.shape[1:3], strides, shape[1:3].tolist()):
        rest = (size - 1) * stride + kernel - given
        before.append(max(rest, 0) // 2)
        after.append(max(rest, 0) - before[-1])
        more.append(max(-rest, 0))
    if any(n >= stride for n, stride in zip(more, strides)):
        raise ValueError(f"{operator} has an output of {shape}, which is larger than strides of {strides} reach")
    made = writer.node(
        "ConvTranspose", writer.image(source), weight.transpose(3, 0, 1, 2), _bias(writer, operator, 3),
        kernel_shape=weight.shape[1:3], pads=before + after, output_padding=more, strides=strides,
    )  # fmt: skip
    writer.result(operator, made, True)


def _bias(writer: _Writer, operator: Operator, position: int = 2) -> Array | None:
    given = len(operator.inputs) > position and operator.inputs[position] >= 0
    return writer.known(operator, position, "biases") if given else None


def _pool(writer: _Writer, operator: Operator) -> None:
    kernel = operator.options("FilterHeight"), operator.options("FilterWidth")
    x, pads = writer.padded(operator, kernel)
    strides = [operator.options("StrideH"), operator.options("StrideW")]
    kind = "MaxPool" if operator.kind == "MAX_POOL_2D" else "AveragePool"  # whose mean leaves the pads out in both
    writer.result(operator, writer.node(kind, x, kernel_shape=kernel, pads=pads, strides=strides), True)


def _fully_connected(writer: _Writer, operator: Operator) -> None:
    weight = writer.known(operator, 1, "weights")
    source = operator.inputs[0]
    shape, keep = writer.shape(source), bool(operator.options("KeepNumDims"))
    if weight.ndim != 2 or operator.options("WeightsFormat"):
        raise ValueError(f"FULLY_CONNECTED has weights of shape {weight.shape}")
    x = writer.plain(source)
    if not (keep or len(shape) == 2):
        if math.prod(shape[1:]) != weight.shape[1]:
            writer.batch_moves()
        x = writer.node("Reshape", x, np.array([-1, weight.shape[1]]))
    bias = _bias(writer, operator)
    if keep and len(shape) != 2:
        made = writer.node("MatMul", x, weight.T)
        made = made if bias is None else writer.node("Add", made, bias)
    else:
        made = writer.node("Gemm", x, weight, bias, transB=1)
    writer.result(operator, made, False)


def _unary(writer: _Writer, operator: Operator) -> None:
    nchw = writer.is_image(operator.inputs[0])
    x = writer.named(operator.inputs[0], nchw)
    if operator.kind == "LEAKY_RELU":
        made = writer.node("LeakyRelu", x, alpha=float(operator.options("Alpha")))
    elif operator.kind == "SQUARE":
        made = writer.node("Mul", x, x)
    elif operator.kind == "RSQRT":
        made = writer.node("Reciprocal", writer.node("Sqrt", x))
    elif operator.kind in ("DEQUANTIZE", "QUANTIZE", "DENSIFY"):
        raise UnsupportedOperatorError(f"{operator} of numbers that the model computes is not supported")
    else:
        made = writer.activation(operator.kind, x)
    writer.result(operator, made, nchw)


def _batch_matmul(writer: _Writer, operator: Operator) -> None:
    """Matrices of the last two axes; the others are broadcast."""
    first, second = operator.inputs
    names = [writer.plain(first), writer.plain(second)]
    for k, (i, field) in enumerate(((first, "AdjX"), (second, "AdjY"))):
        if operator.options(field):
            rank = len(writer.shape(i))
            names[k] = writer.node("Transpose", names[k], perm=[*range(rank - 2), rank - 1, rank - 2])
    shapes = writer.shape(first), writer.shape(second)
    alike = len(shapes[0]) == len(shapes[1]) and not {first, second} & writer.constants.keys()
    weights = second in writer.constants and math.prod(shapes[1][:-2]) == 1
    if len(shapes[0]) < max(3, len(shapes[1])) or not (alike or weights):
        writer.batch_moves()
    writer.result(operator, writer.node("MatMul", *names), False)


def _logistic(writer: _Writer, operator: Operator) -> None:
    """1 / (1 + exp(-x)) of few numbers, which a model may decide by: onnxruntime's Sigmoid says 0 for 1e-9."""
    if math.prod(writer.shape(operator.inputs[0])) > _FEW:
        _unary(writer, operator)
        return
    nchw = writer.is_image(operator.inputs[0])
    power = writer.node("Exp", writer.node("Neg", writer.named(operator.inputs[0], nchw)))
    made = writer.node("Add", power, writer.constant(np.float32(1), "one"))
    writer.result(operator, writer.node("Reciprocal", made), nchw)


def _softmax(writer: _Writer, operator: Operator) -> None:
    nchw, beta = writer.is_image(operator.inputs[0]), operator.options("Beta")
    x = writer.named(operator.inputs[0], nchw)
    if beta is not None and beta != 1:
        x = writer.node("Mul", x, np.float32(beta))
    writer.result(operator, writer.node("Softmax", x, axis=1 if nchw else -1), nchw)


def _elementwise(writer: _Writer, operator: Operator) -> None:
    if len(operator.inputs) != 2:
        raise ValueError(f"{operator} has {len(operator.inputs)} inputs")
    nchw = any(map(writer.is_image, operator.inputs))
    if nchw and not all(i in writer.constants or writer.is_image(i) for i in operator.inputs):
        nchw = False  # numbers of fewer axes are broadcast in the order of the file
    names = [_operand(writer, i, nchw) for i in operator.inputs]
    if operator.kind == "PRELU":
        made = writer.node("PRelu", *names)
    elif operator.kind == "SQUARED_DIFFERENCE":
        difference = writer.node("Sub", *names)
        made = writer.node("Mul", difference, difference)
    else:
        made = writer.node(_BINARY[operator.kind], *names)
    writer.result(operator, made, nchw)


def _operand(writer: _Writer, i: int, nchw: bool) -> str:
    """An operand that is broadcast; constants get the axes of images."""
    constant = writer.constants.get(i)
    if constant is None or not nchw:
        return writer.named(i, nchw)
    wide = constant.reshape((1,) * (4 - constant.ndim) + constant.shape)
    return writer.constant(wide.transpose(_TO_NCHW), writer.name_of(i))


def _resize(writer: _Writer, operator: Operator) -> None:
    height, width = (int(n) for n in writer.known(operator, 1, "sizes").reshape(-1))
    x = writer.image(operator.inputs[0])
    channels = writer.shape(operator.inputs[0])[3]
    linear = operator.kind == "RESIZE_BILINEAR"
    mode = "asymmetric"
    if operator.options("AlignCorners"):
        mode = "align_corners"
    elif operator.options("HalfPixelCenters"):
        mode = "half_pixel"
    options = {} if linear else {"nearest_mode": "floor" if mode == "asymmetric" else "round_prefer_ceil"}
    rows, columns = writer.shape(operator.inputs[0])[1:3]
    scales = np.array([1, 1, height / rows, width / columns], np.float32)
    exact = all(int(np.floor(np.float32(n) * s)) == m for n, s, m in zip((rows, columns), scales[2:], (height, width)))
    if exact and mode != "align_corners":  # leaves the batch open
        sizes: list[Any] = ["", scales]
    else:
        writer.batch_moves()
        sizes = ["", "", np.array([1, channels, height, width])]
    made = writer.node(
        "Resize", x, *sizes, mode="linear" if linear else "nearest", coordinate_transformation_mode=mode, **options
    )
    writer.result(operator, made, True)


def _depth_to_space(writer: _Writer, operator: Operator) -> None:
    x, size = writer.image(operator.inputs[0]), operator.options("BlockSize")
    writer.result(operator, writer.node("DepthToSpace", x, blocksize=size, mode="DCR"), True)


def _reshape(writer: _Writer, operator: Operator) -> None:
    source, old = operator.inputs[0], writer.shape(operator.inputs[0])
    if operator.kind == "RESHAPE" and len(operator.inputs) > 1:
        new = [int(n) for n in writer.known(operator, 1, "shapes").reshape(-1)]
    else:  # what the operators say of their results
        new = list(writer.shape(operator.outputs[0]))
    if any(n < -1 or n == 0 for n in new) or new.count(-1) > 1:
        raise ValueError(f"{operator} has the shape {new}")
    if new and old and new[0] == old[0]:
        new[0] = 0  # as it comes
    else:
        writer.batch_moves()
    made = writer.node("Reshape", writer.plain(source), np.array(new, np.int64))
    writer.result(operator, made, False)


def _concatenation(writer: _Writer, operator: Operator) -> None:
    rank = len(writer.shape(operator.outputs[0]))
    axis = operator.options("Axis") % rank
    nchw = rank == 4
    names = []
    for i in operator.inputs:
        constant = writer.constants.get(i)
        turned = constant is not None and nchw
        names.append(_operand(writer, i, nchw) if turned else writer.named(i, nchw))
    if axis == 0 or any(i in writer.constants for i in operator.inputs):
        writer.batch_moves()
    writer.result(operator, writer.node("Concat", *names, axis=_TO_NCHW.index(axis) if nchw else axis), nchw)


def _reduce(writer: _Writer, operator: Operator) -> None:
    source = operator.inputs[0]
    rank = len(writer.shape(source))
    axes = sorted({int(n) % rank for n in writer.known(operator, 1, "axes").reshape(-1)})
    keep = bool(operator.options("KeepDims"))
    if 0 in axes:
        writer.batch_moves()
    nchw = writer.is_image(source) and (keep or axes == [1, 2])
    if nchw:
        axes = sorted(_TO_NCHW.index(axis) for axis in axes)
    kind, x = _REDUCED[operator.kind], writer.named(source, nchw)
    if kind == "ReduceSum":  # whose axes are an input in this opset
        made = writer.node(kind, x, np.array(axes), keepdims=int(keep))
    else:
        made = writer.node(kind, x, axes=axes, keepdims=int(keep))
    writer.result(operator, made, nchw and keep)


def _transpose(writer: _Writer, operator: Operator) -> None:
    order = [int(n) for n in writer.known(operator, 1, "orders").reshape(-1)]
    if order[:1] != [0]:
        writer.batch_moves()
    writer.result(operator, writer.node("Transpose", writer.plain(operator.inputs[0]), perm=order), False)


def _strided_slice(writer: _Writer, operator: Operator) -> None:
    shape = writer.shape(operator.inputs[0])
    if operator.options("EllipsisMask") or operator.options("NewAxisMask"):
        raise UnsupportedOperatorError("operator STRIDED_SLICE with an ellipsis or new axes is not supported")
    begins, ends, steps = (writer.known(operator, k, "bounds").reshape(-1).astype(int) for k in (1, 2, 3))
    shrunk, bounds = [], []
    for axis, (begin, end, step) in enumerate(zip(begins, ends, steps)):
        bit = 1 << axis
        if operator.options("ShrinkAxisMask") & bit:
            shrunk.append(axis)
            begin, end, step = begin, begin + 1 or shape[axis], 1
        else:
            begin = (0 if step > 0 else shape[axis] - 1) if operator.options("BeginMask") & bit else begin
            end = (shape[axis] if step > 0 else -shape[axis] - 1) if operator.options("EndMask") & bit else end
        if axis == 0 and (axis in shrunk or (begin, step) != (0, 1) or end < shape[0]):
            writer.batch_moves()
        elif axis == 0:
            end = 2**31 - 1
        bounds.append((begin, end, axis, step))
    made = writer.node("Slice", writer.plain(operator.inputs[0]), *(np.array(n, np.int64) for n in zip(*bounds)))
    if shrunk:
        made = writer.node("Squeeze", made, np.array(shrunk))
    writer.result(operator, made, False)


_WITH_ACTIVATION = {
    "CONV_2D", "DEPTHWISE_CONV_2D", "MAX_POOL_2D", "AVERAGE_POOL_2D", "FULLY_CONNECTED", "ADD", "SUB", "MUL", "DIV",
    "CONCATENATION", "TRANSPOSE_CONV",
}  # fmt: skip
_OPERATORS: dict[str, Callable[[_Writer, Operator], None]] = {
    **dict.fromkeys((*_UNARY, *_CLIPPED, "LEAKY_RELU", "SQUARE", "RSQRT", "DEQUANTIZE", "DENSIFY"), _unary),
    **dict.fromkeys((*_BINARY, "PRELU", "SQUARED_DIFFERENCE"), _elementwise),
    **dict.fromkeys(("PAD", "PADV2"), _pad),
    **dict.fromkeys(("CONV_2D", "DEPTHWISE_CONV_2D"), _convolution),
    **dict.fromkeys(("MAX_POOL_2D", "AVERAGE_POOL_2D"), _pool),
    **dict.fromkeys(("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"), _resize),
    **dict.fromkeys(("RESHAPE", "SQUEEZE", "EXPAND_DIMS"), _reshape),
    **dict.fromkeys(_REDUCED, _reduce),
    "TRANSPOSE_CONV": _transposed_convolution,
    "LOGISTIC": _logistic,
    "BATCH_MATMUL": _batch_matmul,
    "FULLY_CONNECTED": _fully_connected,
    "SOFTMAX": _softmax,
    "DEPTH_TO_SPACE": _depth_to_space,
    "CONCATENATION": _concatenation,
    "TRANSPOSE": _transpose,
    "STRIDED_SLICE": _strided_slice,
}
