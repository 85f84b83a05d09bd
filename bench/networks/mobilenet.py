"""MobileNetV1: the 1x1 convolutions pruned to 90%, the 3x3 depthwise ones, the first one and the classifier dense."""

from __future__ import annotations

import numpy as np
import onnx

from bench.networks.writer import Writer, drawn, norm_parameters, random_mask

SPARSITY = 0.9
# Output channels and stride of every pair of a depthwise and a pointwise convolution.
PAIRS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))


def mobilenet(seed: int = 0, size: int = 224) -> onnx.ModelProto:
    """The ONNX model: images (N, 3, size, size) to logits (N, 1000)."""
    rng, writer = np.random.default_rng(seed), Writer("mobilenet")
    low, high = writer.weight(np.float32(0), "zero"), writer.weight(np.float32(6), "six")

    def convolution(
        x: str, mask: np.ndarray[tuple[int, ...], np.dtype[np.bool_]], stride: int, groups: int, name: str
    ) -> str:
        weight = writer.weight(drawn(rng, mask), f"{name}.weight")
        kernel = mask.shape[2]
        y = writer.node(
            "Conv", x, weight, name=name, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[kernel // 2] * 4,
            group=groups,
        )  # fmt: skip
        y = writer.batch_norm(y, norm_parameters(rng, len(mask)), f"{name}.norm")
        return writer.node("Clip", y, low, high, name=f"{name}.relu6")

    x = writer.input("images", ["N", 3, size, size])
    x, channels = convolution(x, np.ones((32, 3, 3, 3), bool), 2, 1, "stem"), 32
    for i, (out, stride) in enumerate(PAIRS, 1):
        x = convolution(x, np.ones((channels, 1, 3, 3), bool), stride, channels, f"depthwise{i}")
        x = convolution(x, random_mask(rng, (out, channels, 1, 1), SPARSITY), 1, 1, f"pointwise{i}")
        channels = out
    x = writer.node("Flatten", writer.node("GlobalAveragePool", x, name="mean"), name="flatten", axis=1)
    weight = writer.weight(drawn(rng, np.ones((1000, channels), bool), gain=1.0), "classifier.weight")
    bias = writer.weight(rng.uniform(-0.1, 0.1, 1000).astype(np.float32), "classifier.bias")
    return writer.model(writer.node("Gemm", x, weight, bias, name="classifier", transB=1), ["N", 1000])
