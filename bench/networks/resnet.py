"""ResNet-50 (v1.5: the stride is in the 3x3 convolution) with pruned convolutions and classifier.

The first convolution is dense. Patterns are those of the Deep Learning Matrix Collection where its folder is given (see
`bench/dlmc.py`), and random ones of 90% sparsity otherwise.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from bench.dlmc import read_smtx
from bench.networks.writer import Mask, Writer

BLOCKS = (3, 4, 6, 3)
CLASSES = 1000
_FOLDER = "rn50/magnitude_pruning/0.9"


def _file(group: int, block: int, part: str) -> str:
    where = f"projection_block_group{group}" if block == 0 else f"group{group}_{block}_1"
    name = where if block else f"group_{where}"
    return f"bottleneck_{part}_block_{name}.smtx"


def _pattern(path: Path, shape: tuple[int, ...]) -> Mask:
    """Mask of a weight OIHW or (out, in) from a file of the collection."""
    indptr, indices, (rows, columns) = read_smtx(path)
    mask = np.zeros((rows, columns), bool)
    mask[np.repeat(np.arange(rows), np.diff(indptr)), indices] = True
    if len(shape) == 2:
        return mask
    out, channels, height, width = shape
    return mask.reshape(out, height, width, channels).transpose(0, 3, 1, 2)


def resnet50(dlmc: Path | None = None, seed: int = 0, width: int = 64, size: int = 224) -> onnx.ModelProto:
    """The ONNX model: images (N, 3, size, size) to logits (N, 1000).

    width : 64 in ResNet-50; smaller ones, without patterns from files, are for tests
    """
    writer = Writer("resnet50", seed)

    def pattern(file: str, *shape: int) -> Mask:
        return writer.pruned(*shape) if dlmc is None else _pattern(dlmc / _FOLDER / file, shape)

    def convolution(x: str, mask: Mask, name: str, stride: int = 1, gain: float = 1.0) -> str:
        return writer.batch_norm(writer.conv(x, mask, name, stride), len(mask), f"{name}.norm", gain)

    def relu(x: str, name: str) -> str:
        return writer.node("Relu", x, name=f"{name}.relu")

    x = writer.input("images", ["N", 3, size, size])
    x = relu(convolution(x, np.ones((width, 3, 7, 7), bool), "stem", 2), "stem")
    x, channels = writer.node("MaxPool", x, name="pool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]), width
    for group, count in enumerate(BLOCKS, 1):
        middle = width << (group - 1)
        for block in range(count):
            stride, name = 2 if group > 1 and block == 0 else 1, f"group{group}.block{block}"
            y, before = x, channels
            for part, kernel, step in (("1", 1, 1), ("2", 3, stride)):
                mask = pattern(_file(group, block, part), middle, before, kernel, kernel)
                y = relu(convolution(y, mask, f"{name}.conv{part}", step), f"{name}.conv{part}")
                before = middle
            mask = pattern(_file(group, block, "3"), 4 * middle, middle, 1, 1)
            y = convolution(y, mask, f"{name}.conv3", gain=0.3)
            if block == 0:
                file = f"bottleneck_projection_block_group_projection_block_group{group}.smtx"
                x = convolution(x, pattern(file, 4 * middle, channels, 1, 1), f"{name}.shortcut", stride, 0.7)
            x, channels = relu(writer.node("Add", y, x, name=f"{name}.add"), name), 4 * middle
    mask = pattern("final_dense.smtx", CLASSES, channels)
    return writer.model(writer.linear(writer.mean(x), mask, "classifier", gain=1.0), ["N", CLASSES])
