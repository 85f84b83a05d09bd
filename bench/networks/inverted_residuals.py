"""MobileNetV3-small and EfficientNet-B0: 1x1 convolutions pruned to 90%, those of squeeze and excitation, too.

Dense are the depthwise convolutions, the first one and the classifiers. Batch norm is folded, as exporters do it.
Sources: Howard et al., arXiv:1905.02244, table 2; Tan and Le, arXiv:1905.11946, table 1.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import onnx

from bench.networks.writer import Writer, drawn, random_mask

SPARSITY = 0.9


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
        self.rng, self.writer, self.name = np.random.default_rng(seed), Writer(name), name

    def activation(self, kind: str, x: str, name: str) -> str:
        """An activation as torch's exporter writes it."""
        if kind == "silu":
            return self.writer.node(
                "Mul", x, self.writer.node("Sigmoid", x, name=f"{name}.sigmoid"), name=f"{name}.silu"
            )
        return self.writer.node({"relu": "Relu", "hardswish": "HardSwish"}[kind], x, name=f"{name}.{kind}")

    def convolution(
        self, x: str, shape: tuple[int, ...], name: str, stride: int = 1, groups: int = 1, dense: bool = False,
        gain: float = 2.0,
    ) -> str:  # fmt: skip
        """A convolution that keeps the size, but for its stride."""
        mask = np.ones(shape, bool) if dense else random_mask(self.rng, shape, SPARSITY)
        weight = self.writer.weight(drawn(self.rng, mask, gain), f"{name}.weight")
        bias = self.writer.weight(self.rng.uniform(-0.1, 0.1, shape[0]).astype(np.float32), f"{name}.bias")
        kernel = shape[2]
        return self.writer.node(
            "Conv", x, weight, bias, name=name, kernel_shape=[kernel] * 2, strides=[stride] * 2,
            pads=[kernel // 2] * 4, group=groups,
        )  # fmt: skip

    def block(self, x: str, channels: int, b: Block, name: str) -> str:
        """An inverted residual: wide, depthwise, gated, narrow."""
        y = x
        if b.expanded != channels:
            y = self.convolution(y, (b.expanded, channels, 1, 1), f"{name}.expand")
            y = self.activation(b.activation, y, f"{name}.expand")
        y = self.convolution(
            y, (b.expanded, 1, b.kernel, b.kernel), f"{name}.depthwise", b.stride, b.expanded, dense=True
        )  # fmt: skip
        y = self.activation(b.activation, y, f"{name}.depthwise")
        if b.squeeze:
            y = self.gated(y, b, name)
        y = self.convolution(y, (b.out, b.expanded, 1, 1), f"{name}.project", gain=4.0)
        return self.writer.node("Add", x, y, name=f"{name}.add") if b.stride == 1 and channels == b.out else y

    def gated(self, x: str, b: Block, name: str) -> str:
        """Squeeze and excitation: channels times what two layers make of their means."""
        g = self.writer.node("GlobalAveragePool", x, name=f"{name}.squeeze")
        g = self.convolution(g, (b.squeeze, b.expanded, 1, 1), f"{name}.squeeze1")
        g = self.activation("silu" if b.activation == "silu" else "relu", g, f"{name}.squeeze1")
        g = self.convolution(g, (b.expanded, b.squeeze, 1, 1), f"{name}.squeeze2")
        if b.activation == "silu":
            g = self.writer.node("Sigmoid", g, name=f"{name}.gate")
        else:
            g = self.writer.node("HardSigmoid", g, name=f"{name}.gate", alpha=1 / 6, beta=0.5)
        return self.writer.node("Mul", g, x, name=f"{name}.gated")

    def classifier(self, x: str, sizes: tuple[int, ...], kind: str) -> onnx.ModelProto:
        """The mean of the image, and linear layers."""
        x = self.writer.node("Flatten", self.writer.node("GlobalAveragePool", x, name="mean"), name="flatten", axis=1)
        for i, (k, n) in enumerate(itertools.pairwise(sizes)):
            weight = self.writer.weight(drawn(self.rng, np.ones((n, k), bool), gain=1.0), f"classifier{i}.weight")
            bias = self.writer.weight(self.rng.uniform(-0.1, 0.1, n).astype(np.float32), f"classifier{i}.bias")
            x = self.writer.node("Gemm", x, weight, bias, name=f"classifier{i}", transB=1)
            if i + 2 < len(sizes):
                x = self.activation(kind, x, f"classifier{i}")
        return self.writer.model(x, ["N", sizes[-1]])


def _built(
    name: str, seed: int, size: int, stem: int, blocks: list[Block], head: int, sizes: tuple[int, ...], kind: str
) -> onnx.ModelProto:
    net = _Network(name, seed)
    x = net.writer.input("images", ["N", 3, size, size])
    x = net.activation(kind, net.convolution(x, (stem, 3, 3, 3), "stem", 2, dense=True), "stem")
    channels = stem
    for i, b in enumerate(blocks):
        x = net.block(x, channels, b, f"block{i}")
        channels = b.out
    x = net.activation(kind, net.convolution(x, (head, channels, 1, 1), "head"), "head")
    return net.classifier(x, (head, *sizes), kind)


def mobilenet_v3_small(seed: int = 0, size: int = 224) -> onnx.ModelProto:
    """The ONNX model: images (N, 3, size, size) to logits (N, 1000)."""
    return _built("mobilenet-v3-small", seed, size, 16, _small(), 576, (1024, 1000), "hardswish")


def efficientnet_b0(seed: int = 0, size: int = 224) -> onnx.ModelProto:
    """The ONNX model: images (N, 3, size, size) to logits (N, 1000)."""
    return _built("efficientnet-b0", seed, size, 32, _b0(), 1280, (1000,), "silu")
