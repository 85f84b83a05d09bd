"""Windows of convolutions and pooling as ONNX describes them: kernels, strides, pads, dilations, auto_pad."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastsparse.onnx.model import Node, Shape

SAME = ("SAME_UPPER", "SAME_LOWER")  # of auto_pad
_LARGEST = 2**31 - 1


class WindowError(ValueError):
    """A window that does not fit its image, or attributes that describe none."""


@dataclass(frozen=True)
class Window:
    """How a window moves, one entry per spatial axis. `outputs` are the sizes of the result."""

    kernel: Shape
    stride: Shape
    dilation: Shape
    pads: tuple[tuple[int, int], ...]
    outputs: Shape


def _numbers(node: Node, name: str, count: int, default: int, lowest: int) -> Shape:
    found = tuple(int(n) for n in node.get(name) or (default,) * count)
    if len(found) != count or any(not lowest <= n <= _LARGEST for n in found):
        raise WindowError(f"{name} is {list(found)}, expected {count} integers of at least {lowest}")
    return found


def kernel_of(node: Node, weight_shape: Sequence[int]) -> Shape:
    """The window of a convolution with this weight."""
    kernel = tuple(int(n) for n in weight_shape[2:])
    named = node.get("kernel_shape")
    if named is not None and tuple(named) != kernel:
        raise WindowError(f"kernel_shape is {list(named)}, expected {list(kernel)} to match the weight")
    return kernel


def window(node: Node, spatial: Sequence[int], kernel: Shape | None = None) -> Window:
    """The window of a convolution or pooling on images of this size."""
    axes = len(spatial)
    if kernel is None:
        if "kernel_shape" not in node.attributes:
            raise WindowError("it has no kernel_shape")
        kernel = _numbers(node, "kernel_shape", axes, 1, 1)
    if len(kernel) != axes or axes == 0:
        raise WindowError(f"its window {kernel} does not fit images with {axes} axes")
    stride, dilation = _numbers(node, "strides", axes, 1, 1), _numbers(node, "dilations", axes, 1, 1)
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation)]
    auto = node.get("auto_pad", "NOTSET")
    ceil = bool(node.get("ceil_mode", 0))
    pads: list[tuple[int, int]] = []
    outputs = []
    for i, (n, span, s) in enumerate(zip(spatial, spans, stride)):
        if auto in SAME:
            out = -(-n // s)
            total = max(0, (out - 1) * s + span - n)
            small, large = total // 2, total - total // 2
            pads.append((small, large) if auto == "SAME_UPPER" else (large, small))
        else:
            given = _numbers(node, "pads", 2 * axes, 0, 0)
            before, after = (0, 0) if auto == "VALID" else (given[i], given[i + axes])
            free = n + before + after - span
            out = (-(-free // s) if ceil else free // s) + 1
            if ceil and (out - 1) * s >= n + before:
                out -= 1  # the last window would begin behind the image
            pads.append((before, after))
        if out < 0 or (n + sum(pads[-1]) < span and not ceil and out > 0):
            raise WindowError(f"a window of {kernel} does not fit an image of {tuple(spatial)}")
        outputs.append(max(0, out))
    return Window(kernel, stride, dilation, tuple(pads), tuple(outputs))
