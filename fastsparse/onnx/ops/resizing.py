"""Resize: along one axis after the other, every output element a weighted sum of a few input elements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse.onnx.model import Array, Node
from fastsparse.onnx.table import Info, Misfit, Operator, axis_of, ints, like, value

Floats = NDArray[np.float64]


class _Target:
    """Sizes, scales and regions of every axis of a Resize."""

    def __init__(self, node: Node, inputs: Sequence[Any]) -> None:
        x = inputs[0]
        ndim = x.ndim
        if node.op == "Upsample" or node.version < 11:
            roi, scales, sizes = None, _scales(node, inputs, 1), None
        else:
            roi, scales, sizes = value(node, inputs, 1), _scales(node, inputs, 2), ints(node, inputs, 3)
        named = node.get("axes")
        axes = list(range(ndim)) if named is None else [axis_of(int(a), ndim) for a in named]
        given = sizes if scales is None else scales
        if given is None or len(given) != len(axes):
            raise Misfit(f"scales or sizes are {given}, expected one number for each of {len(axes)} axes")
        self.scales = np.ones(ndim)
        self.sizes = list(x.shape)
        self.regions = np.tile([0.0, 1.0], (ndim, 1))
        if scales is not None:
            for axis, scale in zip(axes, scales):
                self.scales[axis] = scale
                self.sizes[axis] = int(np.floor(x.shape[axis] * scale + 1e-9))
        else:
            assert sizes is not None
            self._from_sizes(x.shape, axes, sizes, node.get("keep_aspect_ratio_policy", "stretch"))
        if roi is not None and roi.size == 2 * len(axes):
            for i, axis in enumerate(axes):
                self.regions[axis] = roi[i], roi[i + len(axes)]

    def _from_sizes(self, shape: Sequence[int], axes: list[int], sizes: list[int], policy: str) -> None:
        ratios = [size / shape[axis] for axis, size in zip(axes, sizes)]
        if policy != "stretch":
            ratios = [min(ratios) if policy == "not_larger" else max(ratios)] * len(axes)
            sizes = [int(shape[axis] * ratio + 0.5) for axis, ratio in zip(axes, ratios)]
        for axis, size, ratio in zip(axes, sizes, ratios):
            self.scales[axis], self.sizes[axis] = ratio, size


def _scales(node: Node, inputs: Sequence[Any], position: int) -> list[float] | None:
    if "scales" in node.attributes:
        return [float(s) for s in node.attributes["scales"]]
    found = value(node, inputs, position)
    if found is None or not found.size:
        return None
    if not (np.isfinite(found).all() and (found > 0).all()):
        raise Misfit(f"scales are {found.tolist()}, expected positive numbers")
    return [float(s) for s in found.reshape(-1)]


def _resize_shape(node: Node, inputs: Sequence[Any]) -> list[Info]:
    return [like(inputs[0], _Target(node, inputs).sizes)]


# ---------------------------------------------------------------- coordinates


def _sources(node: Node, size: int, result: int, scale: float, region: Floats) -> Floats:
    """Where every output element lies in the input, as a fractional index."""
    at = np.arange(result, dtype=np.float64)
    length = scale * size
    default = "asymmetric" if node.op == "Upsample" or node.version < 11 else "half_pixel"
    mode = node.get("coordinate_transformation_mode", default)
    if mode == "align_corners":
        return at * (size - 1) / (length - 1) if length != 1 else np.zeros_like(at)
    if mode == "asymmetric":
        return at / scale
    if mode == "tf_crop_and_resize":
        start, end = region
        if length == 1:
            inside = np.full_like(at, (end - start) * (size - 1) / 2)
        else:
            inside = at * (end - start) * (size - 1) / (length - 1)
        return inside + start * (size - 1)
    centred: Floats = (at + 0.5) / scale - 0.5
    if mode == "half_pixel" or (mode == "pytorch_half_pixel" and length != 1):
        return centred
    if mode == "pytorch_half_pixel":
        return np.full_like(at, -0.5)
    if mode == "half_pixel_symmetric":
        return centred + size / 2 * (1 - result / length)
    raise Misfit(f"coordinate_transformation_mode is {mode!r}, which is not known")


def _nearest(node: Node, x: Floats) -> NDArray[np.int64]:
    mode = node.get("nearest_mode", "floor" if node.version < 11 else "round_prefer_floor")
    rounding: dict[str, Callable[[Floats], Floats]] = {
        "floor": np.floor,
        "ceil": np.ceil,
        "round_prefer_floor": lambda v: np.ceil(v - 0.5),
        "round_prefer_ceil": lambda v: np.floor(v + 0.5),
    }
    if mode not in rounding:
        raise Misfit(f"nearest_mode is {mode!r}, expected one of {', '.join(rounding)}")
    return rounding[mode](x).astype(np.int64)


def _triangle(x: Floats) -> Floats:
    return np.maximum(0.0, 1 - np.abs(x))


def _cubic(a: float) -> Callable[[Floats], Floats]:
    def weight(x: Floats) -> Floats:
        x = np.abs(x)
        inner = ((a + 2) * x - (a + 3)) * x * x + 1
        outer = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
        return np.where(x <= 1, inner, np.where(x < 2, outer, 0.0))

    return weight


def _taps(node: Node, x: Floats, size: int, scale: float) -> tuple[NDArray[np.int64], Floats]:
    """Indices and weights (outputs, taps) along one axis."""
    mode = node.get("mode", "nearest")
    if mode == "nearest":
        return np.clip(_nearest(node, x), 0, size - 1)[:, None], np.ones((len(x), 1))
    if mode in ("linear", "bilinear"):
        weight: Callable[[Floats], Floats] = _triangle
        reach = 1.0
    elif mode == "cubic":
        weight, reach = _cubic(float(node.get("cubic_coeff_a", -0.75))), 2.0
    else:
        raise Misfit(f"mode is {mode!r}, expected nearest, linear or cubic")
    narrow = min(scale, 1.0) if node.get("antialias", 0) else 1.0
    first = np.floor(x - reach / narrow).astype(np.int64) + 1
    index = first[:, None] + np.arange(int(np.ceil(2 * reach / narrow)) + 1)
    weights = weight((index - x[:, None]) * narrow)
    if node.get("exclude_outside", 0):
        weights = np.where((index >= 0) & (index < size), weights, 0.0)
    if node.get("exclude_outside", 0) or narrow < 1:
        weights = weights / weights.sum(1, keepdims=True)
    return np.clip(index, 0, size - 1), weights


def _resize(node: Node, inputs: Sequence[Any], outs: Sequence[Array]) -> None:
    x, out = inputs[0], outs[0]
    target = _Target(node, inputs)
    outside = np.zeros((1,) * x.ndim, np.bool_)
    current: Any = x
    for axis, (size, result) in enumerate(zip(x.shape, target.sizes)):
        scale = float(target.scales[axis])
        cropped = node.get("coordinate_transformation_mode") == "tf_crop_and_resize"
        if size == result and scale == 1 and not cropped:
            continue
        at = _sources(node, size, result, scale, target.regions[axis])
        index, weights = _taps(node, at, size, scale)
        shape = [1] * x.ndim
        shape[axis] = result
        if cropped:
            outside = outside | ((at < 0) | (at > size - 1)).reshape(shape)
        current = _weighted(current, axis, index, weights, shape)
    if outside.any():
        current = np.where(outside, node.get("extrapolation_value", 0.0), current)
    if out.dtype.kind in "iu":
        limits = np.iinfo(out.dtype)
        current = np.clip(
            np.rint(current) if np.asarray(current).dtype.kind == "f" else current, limits.min, limits.max
        )
    np.copyto(out, current, casting="unsafe")


def _weighted(x: Array, axis: int, index: NDArray[np.int64], weights: Floats, shape: list[int]) -> Array:
    if index.shape[1] == 1:
        return np.take(x, index[:, 0], axis)
    kind = x.dtype if x.dtype.kind == "f" and x.dtype != np.float16 else np.dtype(np.float32)
    total: Array | None = None
    for tap in range(index.shape[1]):
        factors = weights[:, tap].astype(kind).reshape(shape)
        if factors.any():
            part = np.take(x, index[:, tap], axis) * factors
            total = part if total is None else np.add(total, part, out=total)
    return np.take(x, index[:, 0], axis) * kind.type(0) if total is None else total


OPERATORS: dict[str, Operator] = {
    "Resize": Operator(_resize_shape, _resize),
    "Upsample": Operator(_resize_shape, _resize),
}
