"""Writing ONNX models of pruned, randomly drawn weights, node by node."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]
Mask = NDArray[np.bool_]
OPSET, IR_VERSION = 17, 9
SPARSITY = 0.9  # of pruned weights


class Writer:
    """A model being written: methods give the name of what they compute, and draw the weights that it needs."""

    def __init__(self, name: str, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self._name = name
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, shape: list[str | int], kind: int = TensorProto.FLOAT) -> str:
        """An input; sizes that are names are free."""
        self._inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def constant(self, array: Array, name: str) -> str:
        """A constant."""
        self._weights.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
        return name

    def node(self, operator: str, *inputs: str, name: str, **attributes: Any) -> str:
        """A node of one output."""
        self._nodes.append(helper.make_node(operator, list(inputs), [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def pruned(self, *shape: int) -> Mask:
        """A random mask with exactly 1 - SPARSITY of nonzeros."""
        size = math.prod(shape)
        mask = np.zeros(size, bool)
        mask[self.rng.permutation(size)[: max(1, round(size * (1 - SPARSITY)))]] = True
        return mask.reshape(shape)

    def drawn(self, mask: Mask, gain: float = 2.0) -> NDArray[np.float32]:
        """Normal values at a mask (out, ...), sized by He's rule at the nonzeros, which keeps variances."""
        per_row = max(1.0, mask.sum() / len(mask))
        values = self.rng.standard_normal(mask.shape, np.float32) * np.float32(math.sqrt(gain / per_row))
        return np.where(mask, values, np.float32(0))

    def near(self, value: float, spread: float, size: int, name: str) -> str:
        """A constant of numbers about `value`, as biases and batch norms have them after training."""
        return self.constant(self.rng.uniform(value - spread, value + spread, size).astype(np.float32), name)

    def linear(self, x: str, mask: Mask, name: str, gain: float = 2.0) -> str:
        """x (N, in) through a linear layer with a weight at the mask (out, in)."""
        weight = self.constant(self.drawn(mask, gain), f"{name}.weight")
        return self.node("Gemm", x, weight, self.near(0, 0.1, len(mask), f"{name}.bias"), name=name, transB=1)

    def conv(
        self, x: str, mask: Mask, name: str, stride: int = 1, groups: int = 1, gain: float = 2.0, bias: bool = False
    ) -> str:  # fmt: skip
        """A convolution with a weight at the mask OIHW, which keeps the size but for its stride."""
        inputs = [x, self.constant(self.drawn(mask, gain), f"{name}.weight")]
        if bias:
            inputs.append(self.near(0, 0.1, len(mask), f"{name}.bias"))
        kernel = mask.shape[2]
        return self.node(
            "Conv", *inputs, name=name, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[kernel // 2] * 4,
            group=groups,
        )  # fmt: skip

    def batch_norm(self, x: str, channels: int, name: str, gain: float = 1.0) -> str:
        """BatchNormalization with statistics and parameters as a trained one might have them."""
        parts = ("gamma", gain, 0.2 * gain), ("beta", 0, 0.1), ("mean", 0, 0.2), ("var", 1, 0.3)
        names = [self.near(value, spread, channels, f"{name}.{part}") for part, value, spread in parts]
        return self.node("BatchNormalization", x, *names, name=name, epsilon=1e-5)

    def mean(self, x: str) -> str:
        """The mean of each channel of an image."""
        return self.node("Flatten", self.node("GlobalAveragePool", x, name="mean"), name="flatten", axis=1)

    def model(self, output: str, shape: list[str | int]) -> onnx.ModelProto:
        """The model, checked."""
        outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)]
        graph = helper.make_graph(self._nodes, self._name, self._inputs, outputs, self._weights)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="fastsparse"
        )
        onnx.checker.check_model(model)
        return model
