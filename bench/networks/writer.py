"""Writing ONNX models node by node, and drawing pruned weights."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]
OPSET, IR_VERSION = 17, 9


def random_mask(rng: np.random.Generator, shape: tuple[int, ...], sparsity: float) -> NDArray[np.bool_]:
    """A mask with exactly the share of nonzeros that is asked for."""
    size = math.prod(shape)
    mask = np.zeros(size, bool)
    mask[rng.permutation(size)[: max(1, round(size * (1 - sparsity)))]] = True
    return mask.reshape(shape)


def drawn(rng: np.random.Generator, mask: NDArray[np.bool_], gain: float = 2.0) -> NDArray[np.float32]:
    """Normal values at a mask (out, ...), sized by He's rule at the nonzeros, which keeps variances."""
    per_row = max(1.0, mask.sum() / len(mask))
    values = rng.standard_normal(mask.shape, np.float32) * np.float32(math.sqrt(gain / per_row))
    return np.where(mask, values, np.float32(0))


class Writer:
    """A model being written: every method gives the name of what it computes."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, shape: list[str | int], kind: int = TensorProto.FLOAT) -> str:
        """An input; sizes that are names are free."""
        self._inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def weight(self, array: Array, name: str) -> str:
        """A constant."""
        self._weights.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
        return name

    def node(self, operator: str, *inputs: str, name: str, **attributes: Any) -> str:
        """A node of one output."""
        self._nodes.append(helper.make_node(operator, list(inputs), [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def batch_norm(self, x: str, parameters: dict[str, Array], name: str) -> str:
        """BatchNormalization with gamma, beta, mean and var."""
        names = [self.weight(parameters[part], f"{name}.{part}") for part in ("gamma", "beta", "mean", "var")]
        return self.node("BatchNormalization", x, *names, name=name, epsilon=1e-5)

    def model(self, output: str, shape: list[str | int]) -> onnx.ModelProto:
        """The model, checked."""
        outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)]
        graph = helper.make_graph(self._nodes, self._name, self._inputs, outputs, self._weights)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="fastsparse"
        )
        onnx.checker.check_model(model)
        return model


def norm_parameters(rng: np.random.Generator, channels: int, gain: float = 1.0) -> dict[str, Array]:
    """Statistics and parameters of a batch norm as a trained one might have them."""

    def near(value: float, spread: float) -> Array:
        return rng.uniform(value - spread, value + spread, channels).astype(np.float32)

    return {"gamma": near(gain, 0.2 * gain), "beta": near(0, 0.1), "mean": near(0, 0.2), "var": near(1, 0.3)}
