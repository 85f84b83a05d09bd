"""Real pruned patterns from files in the `.smtx` format of the Deep Learning Matrix Collection.

T. Gale, M. Zaharia, C. Young, E. Elsen, "Sparse GPU Kernels for Deep Learning", SC 2020.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Structure = tuple[NDArray[np.int32], NDArray[np.int32], tuple[int, int]]

TRANSFORMER_COLUMNS = (256, 1024)
RESNET_BATCHES = (1, 16)


@lru_cache(maxsize=4)
def read_smtx(path: Path) -> Structure:
    """Row pointers, sorted column indices and shape of one file: three lines of text."""
    rows, columns, nonzeros = shape_of(path)
    with path.open(encoding="ascii") as file:
        file.readline()
        try:
            indptr = np.array(file.readline().split(), dtype=np.int32)
            indices = np.array(file.readline().split(), dtype=np.int32)
        except ValueError as error:
            raise ValueError(f"{path} is not an .smtx file: {error}") from None
    lengths = np.diff(indptr)
    if len(indptr) != rows + 1 or not len(indices) == nonzeros == indptr[-1] or lengths.min(initial=0) < 0:
        raise ValueError(f"{path} says {rows} rows and {nonzeros} nonzeros, which its other lines contradict")
    indices = indices[np.lexsort((indices, np.repeat(np.arange(rows), lengths)))]
    for part in (indptr, indices):
        part.setflags(write=False)  # files are read once and shared
    return indptr, indices, (rows, columns)


def shape_of(path: Path) -> tuple[int, int, int]:
    """Rows, columns and nonzeros, from the first line of a file."""
    with path.open(encoding="ascii") as file:
        try:
            rows, columns, nonzeros = (int(part) for part in file.readline().split(","))
        except ValueError as error:
            raise ValueError(f"{path} is not an .smtx file: {error}") from None
    return rows, columns, nonzeros


def columns_of(path: Path) -> list[int]:
    """Columns N each layer meets: output positions times batch for ResNet-50, sequence positions for Transformer."""
    if not path.stem.startswith(("bottleneck", "initial", "final")):
        return list(TRANSFORMER_COLUMNS)
    side = _resnet_side(path.stem)
    return [side * side * batch for batch in RESNET_BATCHES]


def convolution_of(path: Path) -> tuple[int, int, int] | None:
    """Side of the input, kernel size and stride of a ResNet-50 layer with a 3x3 or 1x1 kernel; None for others.

    The 3x3 layer and the shortcut of a group's first block have the group's stride.
    """
    stem = path.stem
    if not stem.startswith("bottleneck"):
        return None
    kernel = 3 if stem.startswith("bottleneck_2") else 1
    first = "projection_block" in stem and not stem.endswith("group1")
    stride = 2 if first and stem.startswith(("bottleneck_2", "bottleneck_projection")) else 1
    return stride * _resnet_side(stem), kernel, stride


def _resnet_side(stem: str) -> int:
    """Height and width of a ResNet-50 layer's output (stride in the 3x3 layers, 224 x 224 images)."""
    if stem.startswith("initial"):
        return 112
    if stem.startswith("final"):
        return 1
    group = re.search(r"group(\d)", stem)
    if group is None:
        raise ValueError(f"{stem!r} names no group of ResNet-50 blocks")
    side = 56 >> (int(group[1]) - 1)
    before_stride = stem.startswith("bottleneck_1") and "projection" in stem and group[1] != "1"
    return 2 * side if before_stride else side
