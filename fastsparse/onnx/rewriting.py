"""What is rewritten before a graph is cut: activations as one node, known shapes and pads, sums that drift."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from fastsparse.onnx.activations import with_activations
from fastsparse.onnx.folding import Info
from fastsparse.onnx.lowering import SAME, window
from fastsparse.onnx.model import Model, Node, code_of, copied
from fastsparse.onnx.reader import free_name

# onnxruntime has no float64 for these, and onnx.reference is wrong for some images, axes, groups or types.
_IN_FLOAT32 = ("ConvTranspose", "GlobalLpPool", "Hardmax", "LRN", "MaxUnpool", "MeanVarianceNormalization", "Resize")
_MANY = 65536  # rows from which on a sum of them needs more precision than float32 has


def simplified(model: Model, infos: Mapping[str, Info]) -> Model:
    """The model with each activation as one node, and without nodes that nothing needs.

    New shapes that inference proves, whatever the open sizes of `infos` are, become constants.
    """
    constants = dict(model.constants)
    nodes = [_with_known_shape(node, infos, constants) for node in with_activations(model, infos)]
    nodes = [_in_another_type(_with_pads(node, infos), model, infos) for node in nodes]
    nodes = [_as_maximum(node, model, infos) for node in nodes]
    needed, kept = {value.name for value in model.outputs}, list[Node]()
    for node in reversed(nodes):
        if needed.intersection(node.writes):
            kept.append(node)
            needed.update(node.reads)
    return replace(model, nodes=tuple(kept[::-1]), constants=constants)


def _with_known_shape(node: Node, infos: Mapping[str, Info], constants: dict[str, Any]) -> Node:
    """A Reshape to the first size of its input and numbers, as one with a constant shape, added to `constants`."""
    if node.op != "Reshape" or node.version < 5 or len(node.inputs) != 2 or node.inputs[1] in constants:
        return node
    before, after = infos.get(node.inputs[0]), infos.get(node.outputs[0])
    if before is None or after is None or not before.shape or not after.shape:
        return node
    first, *rest = after.shape
    if first is None or first != before.shape[0] or not all(isinstance(n, int) for n in rest):
        return node
    name = free_name(f"{node.outputs[0]}.shape", {*constants, *infos})
    constants[name] = np.array([first if isinstance(first, int) else 0, *rest], np.int64)
    proto = copied(node.protos[0])
    proto.input[1] = name
    del proto.attribute[:]
    return replace(node, inputs=(node.inputs[0], name), protos=(proto,), attributes={})


def _in_another_type(node: Node, model: Model, infos: Mapping[str, Info]) -> Node:
    """A node through casts of its inputs and its result, where its own type gives wrong numbers."""
    info = infos.get(node.inputs[0]) if node.inputs else None
    if info is None or info.dtype is None:
        return node
    exact = node.op == "ConvTranspose" and node.get("group", 1) == 1 and node.get("auto_pad") not in SAME
    if node.op in _IN_FLOAT32 and info.dtype in (np.float64, np.float16) and not exact:
        inside: np.dtype[Any] = np.dtype(np.float32)
    elif node.op in ("ReduceMean", "ReduceSum") and info.dtype == np.float32 and _drifts(node, model, info):
        inside = np.dtype(np.float64)
    else:
        return node
    (proto,), taken, casts = node.protos, {*model.constants, *infos}, []
    inner = copied(proto)

    def cast(source: str, target: str, kind: np.dtype[Any]) -> Any:
        made = type(proto)(op_type="Cast", input=[source], output=[target])
        made.attribute.add(name="to", type=2, i=code_of(kind))
        return made

    for i, name in enumerate(node.inputs):
        if name in infos and infos[name].dtype == info.dtype:
            inner.input[i] = free_name(f"{node.outputs[0]}.before{i}", taken)
            casts.append(cast(name, inner.input[i], inside))
    inner.output[0] = free_name(f"{node.outputs[0]}.after", taken)
    return replace(node, protos=(*casts, inner, cast(inner.output[0], node.outputs[0], info.dtype)))


def _as_maximum(node: Node, model: Model, infos: Mapping[str, Info]) -> Node:
    """A PRelu of constant slopes as max(slope * x, x), or min for slopes above 1: that takes a tenth of the time.

    The same numbers, infinities and NaN but for slopes of 0, which stay. Where both operands are zeros the library
    takes the second, x, for its sign.
    """
    if node.op != "PRelu" or node.version < 9 or len(node.inputs) != 2:  # whose slopes are broadcast, as Max's operands
        return node
    x, info, slopes = node.inputs[0], infos.get(node.inputs[0]), model.array(node.inputs[1])
    if slopes is None or slopes.dtype != np.float32 or not np.isfinite(slopes).all() or not slopes.all():
        return node
    shape = () if info is None or info.shape is None else info.shape[-slopes.ndim :] if slopes.ndim else ()
    if len(shape) != slopes.ndim or any(n not in (1, size) for n, size in zip(slopes.shape, shape)):
        return node
    (proto,), taken, protos = node.protos, {*model.constants, *infos}, list[Any]()

    def add(op: str, inputs: list[str], output: str = "") -> str:
        name = output or free_name(f"{node.outputs[0]}.{op}{len(protos)}", taken)
        protos.append(type(proto)(op_type=op, input=inputs, output=[name]))
        return name

    steep = slopes > 1
    for op, these in (("Max", ~steep), ("Min", steep)):
        if not these.any():
            continue
        factors = node.inputs[1]
        if not these.all():
            factors = add("Constant", [])
            value = protos[-1].attribute.add(name="value", type=4).t
            value.dims.extend(slopes.shape)
            value.data_type, value.raw_data = code_of(slopes.dtype), np.where(these, slopes, 1).astype("<f4").tobytes()
        last = op == "Min" or not steep.any()
        x = add(op, [add("Mul", [x, factors]), x], node.outputs[0] if last else "")
    return replace(node, protos=tuple(protos))


def _drifts(node: Node, model: Model, info: Info) -> bool:
    """Whether it sums very many rows: added one by one in float32 they would drift."""
    if info.fixed is None:
        return False
    axes = node.get("axes")
    if axes is None and len(node.inputs) > 1:
        axes = model.array(node.inputs[1])
    rank = len(info.fixed)
    summed = {int(a) % rank for a in (range(rank) if axes is None else np.ravel(axes))} if rank else set()
    return rank - 1 not in summed and math.prod(info.fixed[a] for a in summed) >= _MANY


def _with_pads(node: Node, infos: Mapping[str, Info]) -> Node:
    """A dilated window with auto_pad, as one with pads: onnxruntime refuses dilations beside SAME_UPPER."""
    if node.op not in ("Conv", "MaxPool", "AveragePool", "LpPool") or node.get("auto_pad") not in SAME:
        return node
    if all(n == 1 for n in node.get("dilations") or (1,)):
        return node
    x, weight = (infos.get(name) for name in (*node.inputs, "")[:2])
    shape = weight.fixed if weight is not None and node.op == "Conv" else None
    if x is None or x.shape is None or (node.op == "Conv" and shape is None):
        return node
    sizes = [n if isinstance(n, int) else None for n in x.shape[2:]]
    strides = node.get("strides") or (1,) * len(sizes)
    if any(n is None and s != 1 for n, s in zip(sizes, strides)):
        return node  # the pads follow from sizes that are open
    found = window(node, [1 if n is None else n for n in sizes], shape)
    if found is None:
        return node
    proto = copied(node.protos[0])
    kept = [a for a in proto.attribute if a.name not in ("auto_pad", "pads")]
    del proto.attribute[:]
    proto.attribute.extend(kept)
    pads = [pad for side in zip(*found.pads) for pad in side]
    proto.attribute.add(name="pads", type=7, ints=pads)
    attributes = {name: value for name, value in node.attributes.items() if name != "auto_pad"}
    return replace(node, attributes={**attributes, "pads": pads}, protos=(proto,))
