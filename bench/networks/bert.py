"""A BERT-base-sized encoder with 90% sparse linear layers, in the style that exporters write."""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import TensorProto

from bench.networks.writer import Writer


class _Encoder:
    def __init__(self, width: int, heads: int, hidden: int, seed: int) -> None:
        self.width, self.heads, self.hidden, self.w = width, heads, hidden, Writer("bert", seed)
        self.constants = {
            name: self.w.constant(np.float32(value), name)
            for name, value in (
                ("one", 1), ("two", 2), ("half", 0.5), ("root_two", math.sqrt(2)), ("epsilon", 1e-12),
                ("root_of_size", math.sqrt(width // heads)),
            )
        }  # fmt: skip
        self.split = self.w.constant(np.array([0, 0, heads, width // heads]), "split_heads")
        self.joined = self.w.constant(np.array([0, 0, width]), "join_heads")

    def linear(self, x: str, inputs: int, outputs: int, name: str, gain: float = 1.0) -> str:
        """MatMul with a weight (in, out), then Add, bias first as torch exports it."""
        weight = self.w.drawn(self.w.pruned(outputs, inputs), gain).T
        y = self.w.node("MatMul", x, self.w.constant(weight, f"{name}.weight"), name=f"{name}.matmul")
        return self.w.node("Add", self.w.near(0, 0.1, outputs, f"{name}.bias"), y, name=f"{name}.add")

    def norm(self, x: str, name: str) -> str:
        """Layer normalisation in eight nodes, as exporters write it before opset 17."""
        w, c = self.w, self.constants
        gamma, beta = w.near(1, 0.2, self.width, f"{name}.weight"), w.near(0, 0.1, self.width, f"{name}.bias")
        centred = w.node("Sub", x, w.node("ReduceMean", x, name=f"{name}.mean", axes=[-1]), name=f"{name}.centred")
        square = w.node("Pow", centred, c["two"], name=f"{name}.square")
        variance = w.node("ReduceMean", square, name=f"{name}.variance", axes=[-1])
        deviation = w.node("Sqrt", w.node("Add", variance, c["epsilon"], name=f"{name}.add"), name=f"{name}.sqrt")
        normal = w.node("Div", centred, deviation, name=f"{name}.div")
        return w.node("Add", w.node("Mul", normal, gamma, name=f"{name}.scaled"), beta, name=f"{name}.shifted")

    def gelu(self, x: str, name: str) -> str:
        """x (1 + erf(x / sqrt 2)) / 2."""
        w, c = self.w, self.constants
        erf = w.node("Erf", w.node("Div", x, c["root_two"], name=f"{name}.div"), name=f"{name}.erf")
        product = w.node("Mul", x, w.node("Add", erf, c["one"], name=f"{name}.add"), name=f"{name}.mul")
        return w.node("Mul", product, c["half"], name=f"{name}.half")

    def attention(self, x: str, name: str) -> str:
        w = self.w

        def heads(part: str, order: list[int]) -> str:
            y = self.linear(x, self.width, self.width, f"{name}.{part}")
            y = w.node("Reshape", y, self.split, name=f"{name}.{part}.reshape")
            return w.node("Transpose", y, name=f"{name}.{part}.transpose", perm=order)

        query, key = heads("query", [0, 2, 1, 3]), heads("key", [0, 2, 3, 1])
        value = heads("value", [0, 2, 1, 3])
        scores = w.node("MatMul", query, key, name=f"{name}.scores")
        scores = w.node("Div", scores, self.constants["root_of_size"], name=f"{name}.scaled")
        mixed = w.node("MatMul", w.node("Softmax", scores, name=f"{name}.softmax", axis=-1), value, name=f"{name}.mix")
        mixed = w.node("Transpose", mixed, name=f"{name}.transpose", perm=[0, 2, 1, 3])
        mixed = w.node("Reshape", mixed, self.joined, name=f"{name}.reshape")
        return self.linear(mixed, self.width, self.width, f"{name}.output")

    def layer(self, x: str, name: str) -> str:
        attended = self.w.node("Add", self.attention(x, f"{name}.attention"), x, name=f"{name}.residual1")
        x = self.norm(attended, f"{name}.norm1")
        y = self.gelu(self.linear(x, self.width, self.hidden, f"{name}.inner", 2.0), f"{name}.gelu")
        y = self.linear(y, self.hidden, self.width, f"{name}.outer")
        return self.norm(self.w.node("Add", y, x, name=f"{name}.residual2"), f"{name}.norm2")


def bert(
    seed: int = 0, layers: int = 12, width: int = 768, heads: int = 12, hidden: int = 3072, *, ids: bool = False,
    vocabulary: int = 30522,
) -> onnx.ModelProto:  # fmt: skip
    """The ONNX model: hidden states (batch, sequence, width), or with `ids` the ids of tokens, to hidden states."""
    encoder = _Encoder(width, heads, hidden, seed)
    if ids:
        tokens = encoder.w.input("ids", ["batch", "sequence"], TensorProto.INT64)
        table = encoder.w.rng.standard_normal((vocabulary, width), np.float32)
        x = encoder.w.node("Gather", encoder.w.constant(table, "embedding"), tokens, name="embed", axis=0)
    else:
        x = encoder.w.input("hidden", ["batch", "sequence", width])
    x = encoder.norm(x, "norm0")
    for i in range(layers):
        x = encoder.layer(x, f"layer{i}")
    return encoder.w.model(x, ["batch", "sequence", width])
