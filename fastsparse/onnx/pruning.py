"""Magnitude pruning of ONNX models: the smallest weights of products become zero. For trying, not for accuracy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastsparse.files import FileFormatError
from fastsparse.onnx.model import Array
from fastsparse.onnx.reader import load_proto
from fastsparse.onnx.tensors import array_of
from fastsparse.runtime.atomic_file import write_bytes
from fastsparse.sparsity.patterns import count_nonzeros, erdos_renyi
from fastsparse.sparsity.selection import largest
from fastsparse.text_table import text_table

_FLOATS = (1, 10, 11)  # float32, float16, float64
_FILE_LIMIT = 2**31 - 1  # of protocol buffers


@dataclass(frozen=True)
class PrunedWeight:
    """A weight: the node that multiplies by it, its shape, and nonzeros before and after."""

    layer: str
    weight: str
    shape: tuple[int, ...]
    before: int
    after: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class _Found:
    layer: str
    tensor: Any  # the TensorProto, to be written to
    array: Array
    name: str


def prune_onnx(
    source: Any,
    target: Any,
    sparsity: float,
    *,
    scope: str = "layer",
    exclude: Iterable[str] = (),
    erk: bool = False,
) -> list[PrunedWeight]:
    """Write a model whose products have lost their smallest weights.

    Parameters
    ----------
    source, target : path
        ONNX files; `target` is replaced in one step.
    sparsity : float in [0, 1)
        Share of zeros afterwards. Zeros that are there count; what is sparser stays as it is.
    scope : {"layer", "global"}
        Of each weight, or of all together.
    exclude : names of nodes or of weights
    erk : bool
        Share the nonzeros among layers as Erdos-Renyi-kernel does, so that small layers stay denser.

    Returns
    -------
    list of PrunedWeight

    Raises
    ------
    ValueError
        When an argument does not fit, or nothing can be pruned. `target` has not been touched then.
    FileFormatError, OSError
        When `source` is damaged or a file cannot be read or written.
    """
    if scope not in ("layer", "global"):
        raise ValueError(f"scope is {scope!r}, expected 'layer' or 'global'")
    if erk and scope == "global":
        raise ValueError("erk is for scope 'layer', got 'global'")
    count_nonzeros(1, sparsity)
    proto = load_proto(source)
    found = _chosen(list(_weights(proto)), set(exclude))
    masks = _masks([np.abs(f.array.reshape(-1)) for f in found], [f.array.shape for f in found], sparsity, scope, erk)
    results = []
    for f, mask in zip(found, masks):
        before = int(np.count_nonzero(f.array))
        kept = np.where(mask.reshape(f.array.shape), f.array, f.array.dtype.type(0))
        _store(f.tensor, kept)
        results.append(PrunedWeight(f.layer, f.name, f.array.shape, before, int(np.count_nonzero(kept))))
    if proto.ByteSize() > _FILE_LIMIT:
        raise ValueError(f"the pruned model takes more than {_FILE_LIMIT} bytes, which an ONNX file cannot hold")
    content = proto.SerializeToString()
    write_bytes(target, content)
    return results


def _weights(proto: Any) -> Iterator[_Found]:
    """Constant weights of Conv, Gemm and MatMul, each once."""
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Constant" and node.output:
            for attribute in node.attribute:
                if attribute.name == "value":
                    tensors[node.output[0]] = attribute.t
    seen: set[str] = set()
    for i, node in enumerate(proto.graph.node):
        positions = {"Conv": (1,), "Gemm": (1,), "MatMul": (0, 1)}.get(node.op_type, ())
        for position in positions:
            name = node.input[position] if position < len(node.input) else ""
            tensor = tensors.get(name)
            if tensor is None or name in seen or tensor.data_type not in _FLOATS or len(tensor.dims) < 2:
                continue
            seen.add(name)
            if tensor.data_location:
                raise FileFormatError(f"weight {name!r} lies in another file, which prune does not read")
            yield _Found(node.name or f"{node.op_type}_{i}", tensor, array_of(tensor, f"weight {name!r}"), name)


def _chosen(found: list[_Found], exclude: set[str]) -> list[_Found]:
    known = {name for f in found for name in (f.layer, f.name)}
    unknown = sorted(exclude - known)
    if unknown:
        raise ValueError(f"exclude names {unknown[0]!r}, which is no node with a weight and no weight")
    left = [f for f in found if not exclude & {f.layer, f.name}]
    if not left:
        raise ValueError("the model has no constant weight of a Conv, Gemm or MatMul to prune")
    for f in left:
        if not np.isfinite(f.array).all():
            raise ValueError(f"weight {f.name!r} holds NaN or infinite numbers")
    return left


def _masks(
    scores: Sequence[Array], shapes: Sequence[tuple[int, ...]], sparsity: float, scope: str, erk: bool
) -> list[Array]:
    """Which elements of every weight stay."""
    sizes = [len(s) for s in scores]
    if scope == "global":
        kept = largest(np.concatenate(scores), count_nonzeros(sum(sizes), sparsity))
        return np.split(kept, np.cumsum(sizes)[:-1])
    if erk:
        counts = [round(share * size) for share, size in zip(erdos_renyi(shapes, sparsity), sizes)]
    else:
        counts = [count_nonzeros(size, sparsity) for size in sizes]
    return [largest(s, count) for s, count in zip(scores, counts)]


def _store(tensor: Any, array: Array) -> None:
    """Put numbers into a TensorProto, as raw bytes."""
    for field in ("float_data", "int32_data", "double_data"):
        tensor.ClearField(field)
    tensor.raw_data = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def summary(results: Sequence[PrunedWeight]) -> str:
    """A table of what was pruned."""
    rows = []
    for r in results:
        shape, share = "x".join(map(str, r.shape)), f"{1 - r.after / r.size:.1%}"
        rows.append((r.layer, r.weight, shape, f"{r.after:,}", f"{r.size:,}", share))
    after, size = sum(r.after for r in results), sum(r.size for r in results)
    rows.append(("all", "", "", f"{after:,}", f"{size:,}", f"{1 - after / max(1, size):.1%}"))
    return text_table(("layer", "weight", "shape", "nonzeros", "of", "sparsity"), rows, text=3, total=True)
