"""Eight linear layers of 2048 features at 90%, with ReLU between them."""

from __future__ import annotations

import onnx

from bench.networks.writer import Writer


def mlp(seed: int = 0, layers: int = 8, width: int = 2048) -> onnx.ModelProto:
    """The ONNX model: (N, width) to (N, width)."""
    writer = Writer("mlp", seed)
    x = writer.input("x", ["N", width])
    for i in range(layers):
        x = writer.linear(x, writer.pruned(width, width), f"layer{i}")
        if i < layers - 1:
            x = writer.node("Relu", x, name=f"layer{i}.relu")
    return writer.model(x, ["N", width])
