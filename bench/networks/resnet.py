"""ResNet-50 (v1.5: the stride is in the 3x3 convolution) with pruned convolutions, as ONNX and as layers of fastsparse.

The first convolution is dense. Patterns are those of the Deep Learning Matrix Collection where its folder is given (see
`bench/dlmc.py`), and random ones of 90% sparsity otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from bench.dlmc import read_smtx
from bench.networks.writer import Array, Writer, drawn, norm_parameters, random_mask
from fastsparse import nn

BLOCKS = (3, 4, 6, 3)
SPARSITY = 0.9
_FOLDER = "rn50/magnitude_pruning/0.9"


@dataclass(frozen=True)
class Convolution:
    """A convolution with the batch norm behind it."""

    name: str
    weight: Array  # OIHW
    stride: int
    norm: dict[str, Array]

    @property
    def padding(self) -> int:
        return int(self.weight.shape[2]) // 2


@dataclass(frozen=True)
class Block:
    """A bottleneck: three convolutions, and one on the shortcut of the first block of a group."""

    body: tuple[Convolution, Convolution, Convolution]
    shortcut: Convolution | None


@dataclass(frozen=True)
class Weights:
    """All of the network."""

    stem: Convolution
    blocks: list[Block]
    classifier: Array  # (classes, features)
    bias: Array


def _file(group: int, block: int, part: str) -> str:
    where = f"projection_block_group{group}" if block == 0 else f"group{group}_{block}_1"
    name = where if block else f"group_{where}"
    return f"bottleneck_{part}_block_{name}.smtx"


def _pattern(dlmc: Path | None, name: str, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Mask of a weight OIHW or (out, in)."""
    if dlmc is None:
        return random_mask(rng, shape, SPARSITY)
    indptr, indices, (rows, columns) = read_smtx(dlmc / _FOLDER / name)
    mask = np.zeros((rows, columns), bool)
    mask[np.repeat(np.arange(rows), np.diff(indptr)), indices] = True
    if len(shape) == 2:
        return mask
    out, channels, height, width = shape
    return mask.reshape(out, height, width, channels).transpose(0, 3, 1, 2)


def weights(dlmc: Path | None, seed: int = 0, width: int = 64, classes: int = 1000) -> Weights:
    """Draw all weights. `width` is 64 in ResNet-50; smaller ones, without patterns from files, are for tests."""
    rng = np.random.default_rng(seed)

    def convolution(
        name: str, file: str, shape: tuple[int, int, int], stride: int = 1, gain: float = 1.0
    ) -> Convolution:  # fmt: skip
        out, channels, kernel = shape
        mask = _pattern(dlmc, file, (out, channels, kernel, kernel), rng)
        return Convolution(name, drawn(rng, mask), stride, norm_parameters(rng, out, gain))

    stem_mask = np.ones((width, 3, 7, 7), bool)
    stem = Convolution("stem", drawn(rng, stem_mask), 2, norm_parameters(rng, width))
    blocks, channels = [], width
    for group, count in enumerate(BLOCKS, 1):
        middle = width << (group - 1)
        for block in range(count):
            stride = 2 if group > 1 and block == 0 else 1
            name = f"group{group}.block{block}"
            body = (
                convolution(f"{name}.conv1", _file(group, block, "1"), (middle, channels, 1)),
                convolution(f"{name}.conv2", _file(group, block, "2"), (middle, middle, 3), stride),
                convolution(f"{name}.conv3", _file(group, block, "3"), (4 * middle, middle, 1), gain=0.3),
            )
            shortcut = None
            if block == 0:
                file = f"bottleneck_projection_block_group_projection_block_group{group}.smtx"
                shortcut = convolution(f"{name}.shortcut", file, (4 * middle, channels, 1), stride, 0.7)
            blocks.append(Block(body, shortcut))
            channels = 4 * middle
    classifier = drawn(rng, _pattern(dlmc, "final_dense.smtx", (classes, channels), rng), gain=1.0)
    return Weights(stem, blocks, classifier, rng.uniform(-0.1, 0.1, classes).astype(np.float32))


def resnet50(dlmc: Path | None = None, seed: int = 0, width: int = 64, size: int = 224) -> onnx.ModelProto:
    """The ONNX model: images (N, 3, size, size) to logits (N, 1000)."""
    net, writer = weights(dlmc, seed, width), Writer("resnet50")

    def convolution(x: str, c: Convolution) -> str:
        kernel = list(c.weight.shape[2:])
        y = writer.node(
            "Conv", x, writer.weight(c.weight, f"{c.name}.weight"), name=c.name, kernel_shape=kernel,
            strides=[c.stride] * 2, pads=[c.padding] * 4,
        )  # fmt: skip
        return writer.batch_norm(y, c.norm, f"{c.name}.norm")

    def relu(x: str, name: str) -> str:
        return writer.node("Relu", x, name=f"{name}.relu")

    x = relu(convolution(writer.input("images", ["N", 3, size, size]), net.stem), "stem")
    x = writer.node("MaxPool", x, name="pool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for block in net.blocks:
        y = x
        for c in block.body[:2]:
            y = relu(convolution(y, c), c.name)
        y = convolution(y, block.body[2])
        passed = x if block.shortcut is None else convolution(x, block.shortcut)
        name = block.body[0].name.rpartition(".")[0]
        x = relu(writer.node("Add", y, passed, name=f"{name}.add"), name)
    x = writer.node("Flatten", writer.node("GlobalAveragePool", x, name="mean"), name="flatten", axis=1)
    names = writer.weight(net.classifier, "classifier.weight"), writer.weight(net.bias, "classifier.bias")
    logits = writer.node("Gemm", x, *names, name="classifier", transB=1)
    return writer.model(logits, ["N", len(net.bias)])


def resnet50_model(dlmc: Path | None = None, seed: int = 0, width: int = 64) -> nn.Sequential:
    """The same network of fastsparse's layers, in evaluation mode."""
    net = weights(dlmc, seed, width)

    def convolution(c: Convolution) -> Iterator[nn.Module]:
        layer: Any
        options: dict[str, Any] = {"stride": c.stride, "padding": c.padding}
        if c.weight.all():
            out, channels, *kernel = c.weight.shape
            layer = nn.Conv2d(channels, out, tuple(kernel), bias=False, rng=0, **options)
            layer.weight.value = c.weight
        else:
            layer = nn.SparseConv2d.from_dense(c.weight, **options)
        yield layer
        norm = nn.BatchNorm2d(len(c.weight))
        norm.weight.value, norm.bias.value = c.norm["gamma"], c.norm["beta"]
        norm.running_mean, norm.running_var = c.norm["mean"], c.norm["var"]
        yield norm

    layers: list[nn.Module] = [*convolution(net.stem), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)]
    for block in net.blocks:
        first, second, third = block.body
        body = nn.Sequential(*convolution(first), nn.ReLU(), *convolution(second), nn.ReLU(), *convolution(third))
        shortcut = None if block.shortcut is None else nn.Sequential(*convolution(block.shortcut))
        layers.append(nn.Residual(body, shortcut, "relu"))
    classifier = nn.SparseLinear.from_dense(net.classifier, bias=net.bias)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(), classifier).eval()
