"""Windows of convolutions and pooling as ONNX describes them: kernels, strides, pads, dilations, auto_pad."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastsparse.onnx.model import Node, Shape

SAME = ("SAME_UPPER", "SAME_LOWER")  # of auto_pad
_LARGEST = 2**31 - 1


@dataclass(frozen=True)
class Window:
    """How a window moves, one entry per spatial axis. `outputs` are the sizes of the result."""

    kernel: Shape
    stride: Shape
    dilation: Shape
    pads: tuple[tuple[int, int], ...]
    outputs: Shape


def window(node: Node, spatial: Sequence[int], weight: Sequence[int] | None = None) -> Window | None:
    """The window of a pooling, or of a convolution with a weight of this shape, on images of this size.

    None where it does not fit, or the attributes describe none: the library says so in its own words.
    """
    axes = len(spatial)

    def numbers(name: str, count: int, default: int) -> Shape:
        return tuple(int(n) for n in node.get(name) or (default,) * count)

    named = numbers("kernel_shape", 0, 1)
    kernel = named if weight is None else tuple(weight[2:])
    stride, dilation, given = numbers("strides", axes, 1), numbers("dilations", axes, 1), numbers("pads", 2 * axes, 0)
    if (
        not axes
        or named not in ((), kernel)
        or [*map(len, (kernel, stride, dilation, given))] != [*[axes] * 3, 2 * axes]
    ):
        return None
    if min(*kernel, *stride, *dilation) < 1 or min(given) < 0 or max(*kernel, *stride, *dilation, *given) > _LARGEST:
        return None
    auto, ceil = node.get("auto_pad", "NOTSET"), bool(node.get("ceil_mode", 0))
    pads, outputs = list[tuple[int, int]](), list[int]()
    for i, (n, k, d, s) in enumerate(zip(spatial, kernel, dilation, stride)):
        span = d * (k - 1) + 1
        if auto in SAME:
            out = -(-n // s)
            total = max(0, (out - 1) * s + span - n)
            small, large = total // 2, total - total // 2
            pads.append((small, large) if auto == "SAME_UPPER" else (large, small))
        else:
            before, after = (0, 0) if auto == "VALID" else (given[i], given[i + axes])
            free = n + before + after - span
            out = (-(-free // s) if ceil else free // s) + 1
            if ceil and (out - 1) * s >= n + before:
                out -= 1  # the last window would begin behind the image
            pads.append((before, after))
        if out < 0 or (n + sum(pads[-1]) < span and not ceil and out > 0):
            return None
        outputs.append(out)
    return Window(kernel, stride, dilation, tuple(pads), tuple(outputs))
