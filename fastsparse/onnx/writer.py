"""Writing ONNX models node by node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastsparse.onnx.reader import free_name

OPSET, _IR = 17, 8


class GraphWriter:
    """Nodes and constants of a model, gathered one by one.

    dtype : of constants that are floats; None leaves them as they are
    """

    def __init__(self, dtype: np.dtype[Any] | None = None) -> None:
        self.dtype = dtype
        self.nodes: list[Any] = []
        self.tensors: list[Any] = []
        self.sparse_tensors: list[Any] = []
        self.taken: set[str] = set()  # names

    def name(self, stem: str) -> str:
        """A name for a constant."""
        return free_name(f"{stem}.{len(self.tensors) + len(self.sparse_tensors)}", self.taken)

    def constant(self, array: Any, stem: str, dtype: Any = None) -> str:
        """Name of a constant; floats get the model's type, or `dtype`."""
        from onnx import numpy_helper

        held, kind = np.asarray(array), dtype or self.dtype
        held = held.astype(kind) if kind is not None and held.dtype.kind == "f" else held
        name = self.name(stem)
        self.tensors.append(numpy_helper.from_array(np.ascontiguousarray(held).reshape(held.shape), name))
        return name

    def node(self, op: str, *inputs: Any, output: str = "", **attributes: Any) -> str:
        """A node's output. Inputs are names, or numbers that become constants; those at the end that are None are left
        out."""
        from onnx import helper

        name = free_name(f"{op}_{len(self.nodes)}", self.taken)
        names = [x if isinstance(x, str) else self.constant(x, name) for x in inputs if x is not None]
        self.nodes.append(helper.make_node(op, names, [output or name], name, **attributes))
        return output or name

    def value(self, name: str, shape: Any, dtype: Any) -> Any:
        """An input or output of the model."""
        from onnx import helper

        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)

    def model(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> Any:
        """The model from values to values."""
        from onnx import helper

        graph = helper.make_graph(
            self.nodes, "fastsparse", inputs, outputs, self.tensors, sparse_initializer=self.sparse_tensors
        )  # fmt: skip
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, producer_name="fastsparse", opset_imports=opsets, ir_version=_IR)
