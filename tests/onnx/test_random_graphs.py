"""Random graphs of what the kernels run and what they do not, against onnxruntime itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from tests.onnx import models

onnxruntime = pytest.importorskip("onnxruntime")


class _Graph:
    """Tensors of images or rows; every step adds a node, or a few, to one of the last tensors."""

    def __init__(self, seed: int) -> None:
        self.b, self.rng = models.Builder(seed=seed), np.random.default_rng(seed)
        self.images = bool(self.rng.integers(3))
        size = tuple(int(n) for n in self.rng.integers(4, 20, 2))
        self.shape = (int(self.rng.integers(1, 6)), *size) if self.images else (int(self.rng.integers(1, 40)),)
        self.tensors = [("x", self.shape)]

    def model(self, nodes: int) -> Any:
        for _ in range(nodes):
            name, shape = self.tensors[-1 - int(self.rng.integers(min(3, len(self.tensors))))]
            kinds = ["activation", "host", "scale", "sum", "concat", "branch"]
            kinds += ["conv", "conv", "pool", "squeeze"] if len(shape) == 3 else ["linear", "linear"]
            made = getattr(self, f"_{self.rng.choice(kinds)}")(name, shape)
            if made is not None:
                self.tensors.append(made)
        if len(self.tensors[-1][1]) == 3 and self.rng.integers(2):
            name, shape = self.tensors[-1]
            flat = self.b.add("Flatten", name)
            self.tensors.append(self._linear(flat, (int(np.prod(shape)),)))
        outputs = [self.tensors[-1][0]]
        outputs += [name for name, _ in self.tensors[1:-1] if self.rng.random() < 0.1 and name not in outputs]
        return self.b.model({"x": ["N", *self.shape]}, outputs)

    def _conv(self, name: str, shape: Any) -> Any:
        channels, out = shape[0], int(self.rng.integers(1, 12))
        groups = channels if self.rng.integers(4) == 0 else 1
        out = channels if groups > 1 else out
        kernel, stride = int(self.rng.integers(1, 4)), int(self.rng.integers(1, 3))
        pads = [int(n) for n in self.rng.integers(0, 2, 4)]
        sizes = [(n + pads[i] + pads[i + 2] - kernel) // stride + 1 for i, n in enumerate(shape[1:])]
        if min(sizes) < 1:
            return None
        weight = self.b.weight(out, channels // groups, kernel, kernel, sparsity=float(self.rng.choice([0, 0.8])))
        inputs = [name, weight, self.b.vector(out)][: 2 + int(self.rng.integers(2))]
        y = self.b.add("Conv", *inputs, strides=[stride] * 2, pads=pads, group=groups)
        return (self.b.norm(y, out) if self.rng.integers(3) == 0 else y), (out, *sizes)

    def _linear(self, name: str, shape: Any) -> Any:
        out = int(self.rng.integers(1, 30))
        return self.b.linear(name, shape[-1], out), (out,)

    def _pool(self, name: str, shape: Any) -> Any:
        if min(shape[1:]) < 3:
            return None
        op, pad = str(self.rng.choice(["MaxPool", "AveragePool"])), int(self.rng.integers(2))
        sizes = tuple((n + 2 * pad - 3) // 2 + 1 for n in shape[1:])
        y = self.b.add(op, name, kernel_shape=[3, 3], strides=[2, 2], pads=[pad] * 4)
        return y, (shape[0], *sizes)

    def _squeeze(self, name: str, shape: Any) -> Any:
        gate = self.b.add("Conv", self.b.add("GlobalAveragePool", name), self.b.weight(shape[0], shape[0], 1, 1))
        return self.b.add("Mul", name, self.b.add(str(self.rng.choice(["Sigmoid", "HardSigmoid"])), gate)), shape

    def _activation(self, name: str, shape: Any) -> Any:
        op = str(self.rng.choice(["Relu", "Sigmoid", "Tanh", "silu", "LeakyRelu", "Clip", "HardSwish"]))
        if op == "silu":
            return self.b.add("Mul", name, self.b.add("Sigmoid", name)), shape
        if op == "Clip":
            return self.b.add("Clip", name, self.b.constant(0), self.b.constant(6)), shape
        return self.b.add(op, name), shape

    def _host(self, name: str, shape: Any) -> Any:
        return self.b.add(str(self.rng.choice(["Sin", "Softsign", "Abs", "Identity", "Softmax"])), name), shape

    def _scale(self, name: str, shape: Any) -> Any:
        axes = (1,) * (len(shape) - 1)
        size = (shape[0], *axes) if self.rng.integers(2) else ()
        constant = self.b.constant(self.rng.uniform(0.5, 1.5, size).astype("float32"))
        op = str(self.rng.choice(["Add", "Mul", "Sub", "Div"]))
        forwards = op == "Div" or self.rng.integers(2)  # what is divided by is never near zero
        return self.b.add(op, *[name, constant][:: 1 if forwards else -1]), shape

    def _sum(self, name: str, shape: Any) -> Any:
        others = [n for n, s in self.tensors if s == shape and n != name]
        return (self.b.add("Add", name, others[int(self.rng.integers(len(others)))]), shape) if others else None

    def _concat(self, name: str, shape: Any) -> Any:
        others = [(n, s) for n, s in self.tensors if s[1:] == shape[1:] and n != name]
        if not others or shape[0] > 30:
            return None
        other, more = others[int(self.rng.integers(len(others)))]
        return self.b.add("Concat", name, other, axis=1), (shape[0] + more[0], *shape[1:])

    def _branch(self, name: str, shape: Any) -> Any:
        """An If that reads what is outside of its branches."""
        flag = self.b.add("Greater", self.b.add("ReduceSum", name, keepdims=0), self.b.constant(0))
        graphs = []
        for op in ("Neg", "Abs"):
            value = helper.make_tensor_value_info(f"{op}{len(self.b.nodes)}", TensorProto.FLOAT, None)
            graphs.append(helper.make_graph([helper.make_node(op, [name], [value.name])], op, [], [value]))
        return self.b.add("If", flag, then_branch=graphs[0], else_branch=graphs[1]), shape


def wrong(seed: int) -> str | None:
    """What is wrong with the engine of a random graph, on two batches, twice each."""
    rng = np.random.default_rng(seed)
    model = _Graph(seed).model(int(rng.integers(1, 14)))
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim][1:]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    engine = models.on_kernels(model, (1, *shape), threads=int(rng.integers(1, 3)))
    for batch in (1, int(rng.integers(2, 20))):
        x = rng.standard_normal((batch, *shape)).astype("float32")
        wanted = session.run(None, {"x": x})
        for _ in range(2):
            found = engine.run([x])
            if [y.shape for y in found] != [z.shape for z in wanted]:
                return f"seed {seed}, batch {batch}: shapes differ"
            for y, z in zip(found, wanted):
                off = float(np.abs(y - z).max(initial=0)) / max(1.0, float(np.abs(z).max(initial=0)))
                if not off < 2e-5:
                    return f"seed {seed}, batch {batch}: off by {off:.1e}"
    return None


@pytest.mark.R8
@pytest.mark.parametrize("first", range(0, 120, 30))
def test_random_graphs(first):
    assert not [text for seed in range(first, first + 30) if (text := wrong(seed)) is not None]
