"""MobileNets and EfficientNet: 1x1 convolutions pruned to 90%, those of squeeze and excitation, too.

Dense are the depthwise convolutions, the first one and the classifiers. Sources: Howard et al., arXiv:1704.04861,
table 1; Howard et al., arXiv:1905.02244, table 2; Tan and Le, arXiv:1905.11946, table 1.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import onnx

from bench.networks.writer import Writer

# Of MobileNetV1: output channels and stride of every pair of a depthwise and a pointwise convolution.
PAIRS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))


def mobilenet(seed: int = 0, size: int = 224) -> onnx.ModelProto:
    """MobileNetV1: images (N, 3, size, size) to logits (N, 1000)."""
    writer = Writer("mobilenet", seed)
    limits = writer.constant(np.float32(0), "zero"), writer.constant(np.float32(6), "six")

    def convolution(x: str, mask: np.ndarray, name: str, stride: int = 1, groups: int = 1) -> str:
        y = writer.batch_norm(writer.conv(x, mask, name, stride, groups), len(mask), f"{name}.norm")
        return writer.node("Clip", y, *limits, name=f"{name}.relu6")

    x, channels = writer.input("images", ["N", 3, size, size]), 32
    x = convolution(x, np.ones((channels, 3, 3, 3), bool), "stem", 2)
    for i, (out, stride) in enumerate(PAIRS, 1):
        x = convolution(x, np.ones((channels, 1, 3, 3), bool), f"depthwise{i}", stride, channels)
        x, channels = convolution(x, writer.pruned(out, channels, 1, 1), f"pointwise{i}"), out
    logits = writer.linear(writer.mean(x), np.ones((1000, channels), bool), "classifier", gain=1.0)
    return writer.model(logits, ["N", 1000])


# ---------------------------------------------------------------- inverted residuals; batch norm is folded


@dataclass(frozen=True)
class Block:
    """kernel of the depthwise convolution, expanded channels, output channels, numbers of the squeeze or 0, activation,
    stride."""

    kernel: int
    expanded: int
    out: int
    squeeze: int
    activation: str
    stride: int


def _small() -> list[Block]:
    """Blocks of MobileNetV3-small."""
    rows = (
        (3, 16, 16, 8, "relu", 2), (3, 72, 24, 0, "relu", 2), (3, 88, 24, 0, "relu", 1),
        (5, 96, 40, 24, "hardswish", 2), *((5, 240, 40, 64, "hardswish", 1),) * 2, (5, 120, 48, 32, "hardswish", 1),
        (5, 144, 48, 40, "hardswish", 1), (5, 288, 96, 72, "hardswish", 2), *((5, 576, 96, 144, "hardswish", 1),) * 2,
    )  # fmt: skip
    return [Block(*row) for row in rows]


def _b0() -> list[Block]:
    """Blocks of EfficientNet-B0."""
    found, channels = [], 32
    stages = (
        (1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3), (6, 5, 1, 112, 3), (6, 5, 2, 192, 4),
        (6, 3, 1, 320, 1),
    )  # fmt: skip
    for expansion, kernel, stride, out, repeats in stages:
        for i in range(repeats):
            found.append(Block(kernel, channels * expansion, out, channels // 4, "silu", 1 if i else stride))
            channels = out
    return found


class _Network:
    def __init__(self, name: str, seed: int) -> None:
        self.writer = Writer(name, seed)

    def activation(self, kind: str, x: str, name: str) -> str:
        """An activation as torch's exporter writes it."""
        node = self.writer.node
        if kind == "silu":
            return node("Mul", x, node("Sigmoid", x, name=f"{name}.sigmoid"), name=f"{name}.silu")
        return node({"relu": "Relu", "hardswish": "HardSwish"}[kind], x, name=f"{name}.{kind}")

    def pointwise(self, x: str, out: int, channels: int, name: str, gain: float = 2.0) -> str:
        """A pruned convolution with a kernel of one pixel."""
        return self.writer.conv(x, self.writer.pruned(out, channels, 1, 1), name, gain=gain, bias=True)

    def block(self, x: str, channels: int, b: Block, name: str) -> str:
        """An inverted residual: wide, depthwise, gated, narrow."""
        y = x
        if b.expanded != channels:
            y = self.activation(
                b.activation, self.pointwise(y, b.expanded, channels, f"{name}.expand"), f"{name}.expand"
            )  # fmt: skip
        mask = np.ones((b.expanded, 1, b.kernel, b.kernel), bool)
        y = self.writer.conv(y, mask, f"{name}.depthwise", b.stride, b.expanded, bias=True)
        y = self.activation(b.activation, y, f"{name}.depthwise")
        if b.squeeze:
            y = self.gated(y, b, name)
        y = self.pointwise(y, b.out, b.expanded, f"{name}.project", gain=4.0)
        return self.writer.node("Add", x, y, name=f"{name}.add") if b.stride == 1 and channels == b.out else y

    def gated(self, x: str, b: Block, name: str) -> str:
        """Squeeze and excitation: channels times what two layers make of their means."""
        g = self.writer.node("GlobalAveragePool", x, name=f"{name}.squeeze")
        g = self.pointwise(g, b.squeeze, b.expanded, f"{name}.squeeze1")
        g = self.activation("silu" if b.activation == "silu" else "relu", g, f"{name}.squeeze1")
        g = self.pointwise(g, b.expanded, b.squeeze, f"{name}.squeeze2")
        if b.activation == "silu":
            g = self.writer.node("Sigmoid", g, name=f"{name}.gate")
        else:
            g = self.writer.node("HardSigmoid", g, name=f"{name}.gate", alpha=1 / 6, beta=0.5)
        return self.writer.node("Mul", g, x, name=f"{name}.gated")


def _built(
    name: str, seed: int, size: int, stem: int, blocks: list[Block], head: int, sizes: tuple[int, ...], kind: str
) -> onnx.ModelProto:
    net = _Network(name, seed)
    writer = net.writer
    x = writer.conv(writer.input("images", ["N", 3, size, size]), np.ones((stem, 3, 3, 3), bool), "stem", 2, bias=True)
    x, channels = net.activation(kind, x, "stem"), stem
    for i, b in enumerate(blocks):
        x, channels = net.block(x, channels, b, f"block{i}"), b.out
    x = writer.mean(net.activation(kind, net.pointwise(x, head, channels, "head"), "head"))
    for i, (k, n) in enumerate(itertools.pairwise((head, *sizes))):
        x = writer.linear(x, np.ones((n, k), bool), f"classifier{i}", gain=1.0)
        if i + 1 < len(sizes):
            x = net.activation(kind, x, f"classifier{i}")
    return writer.model(x, ["N", sizes[-1]])


def mobilenet_v3_small(seed: int = 0, size: int = 224) -> onnx.ModelProto:
    """MobileNetV3-small: images (N, 3, size, size) to logits (N, 1000)."""
    return _built("mobilenet-v3-small", seed, size, 16, _small(), 576, (1024, 1000), "hardswish")


def efficientnet_b0(seed: int = 0, size: int = 224) -> onnx.ModelProto:
    """EfficientNet-B0: images (N, 3, size, size) to logits (N, 1000)."""
    return _built("efficientnet-b0", seed, size, 32, _b0(), 1280, (1000,), "silu")
