"""Eight linear layers of 2048 features at 90%, with ReLU between them."""

from __future__ import annotations

import numpy as np
import onnx

from bench.networks.writer import Writer, drawn, random_mask

SPARSITY = 0.9


def mlp(seed: int = 0, layers: int = 8, width: int = 2048) -> onnx.ModelProto:
    """The ONNX model: (N, width) to (N, width)."""
    rng, writer = np.random.default_rng(seed), Writer("mlp")
    x = writer.input("x", ["N", width])
    for i in range(layers):
        weight = writer.weight(drawn(rng, random_mask(rng, (width, width), SPARSITY)), f"layer{i}.weight")
        bias = writer.weight(rng.uniform(-0.1, 0.1, width).astype(np.float32), f"layer{i}.bias")
        x = writer.node("Gemm", x, weight, bias, name=f"layer{i}", transB=1)
        if i < layers - 1:
            x = writer.node("Relu", x, name=f"layer{i}.relu")
    return writer.model(x, ["N", width])
