"""Magnitude pruning of ONNX models: the smallest weights of products become zero. For trying, not for accuracy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastsparse.files import Folder
from fastsparse.onnx.model import EXTERNAL, Array, copied, put_outside
from fastsparse.onnx.reader import DOMAINS, graphs_of, load_proto, tensors_inside, whole
from fastsparse.runtime.atomic_file import check_writable, replacing
from fastsparse.sparsity.patterns import count_nonzeros, erdos_renyi
from fastsparse.sparsity.selection import largest
from fastsparse.text_table import text_table

_FLOATS = (1, 10, 11, 16)  # float32, float16, float64, bfloat16
_FILE_LIMIT = 2**31 - 1  # of protocol buffers
# Where operators have weights; and what hands a weight on as it is, to another type or in another shape.
_WEIGHTS = {"Conv": (1,), "ConvTranspose": (1,), "Gemm": (0, 1), "MatMul": (0, 1), "Einsum": (0, 1),
            "LSTM": (1, 2), "GRU": (1, 2), "RNN": (1, 2)}  # fmt: skip
_HANDED_ON = ("Identity", "Cast", "CastLike", "Transpose", "Unsqueeze", "Squeeze", "Reshape", "Flatten", "Slice",
              "Concat", "Split")  # fmt: skip
_QUANTISED = ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DequantizeLinear")
_FAMILIAR = ("Gather", "Add", "Mul", "Sub", "Div")  # operators of constants that are no products


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
class SkippedWeight:
    """What was left alone, and why."""

    layer: str
    weight: str
    why: str


@dataclass(frozen=True)
class Pruning:
    """What became of a model's weights."""

    weights: list[PrunedWeight]
    skipped: list[SkippedWeight]


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
) -> Pruning:
    """Write a model whose products have lost their smallest weights.

    Weights are those of convolutions (transposed ones, too), Gemm, MatMul, Einsum and recurrent layers, also in the
    bodies of If, Loop and Scan, and behind nodes that only convert or reshape them. A weight that others share, such as
    a head that is tied to an embedding, is pruned for all of them.

    Parameters
    ----------
    source, target : path
        ONNX files; `target` is replaced in one step. Where an ONNX file cannot hold the weights, they go to a file
        beside it, named like it with ``.data`` behind.
    sparsity : float in [0, 1)
        Share of zeros afterwards. Zeros that are there count; what is sparser stays as it is.
    scope : {"layer", "global"}
        Of each weight, or of all together.
    exclude : names of nodes or of weights
    erk : bool
        Share the nonzeros among layers as Erdos-Renyi-kernel does, so that small layers stay denser.

    Returns
    -------
    Pruning

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
    check_writable(target)
    proto, folder = load_proto(source)
    if proto is source:
        proto = copied(source)
    skipped: list[SkippedWeight] = []
    found = _chosen(list(_Weights(folder, skipped).of(proto)), set(exclude))
    shapes = [f.array.shape for f in found]
    masks = _masks([np.abs(f.array.astype(np.float64).reshape(-1)) for f in found], shapes, sparsity, scope, erk)
    results = []
    for f, mask in zip(found, masks):
        before = int(np.count_nonzero(f.array))
        kept = np.where(mask.reshape(f.array.shape), f.array, np.zeros((), f.array.dtype))
        _store(f.tensor, kept)
        results.append(PrunedWeight(f.layer, f.name, f.array.shape, before, int(np.count_nonzero(kept))))
    write_model(proto, Path(target), folder)
    return Pruning(results, skipped)


class _Weights:
    """Finds the constant weights of a model, each once, and says what it leaves alone."""

    def __init__(self, folder: Folder | None, skipped: list[SkippedWeight]) -> None:
        self.folder, self.skipped = folder, skipped
        self.seen: set[int] = set()

    def of(self, proto: Any) -> Iterator[_Found]:
        """Of the graph, and of the functions that it calls."""
        yield from self._in(proto.graph.node, proto.graph.initializer, proto.graph.sparse_initializer, {}, {})
        for function in proto.functions:
            yield from self._in(function.node, (), (), {}, {})

    def _in(
        self, nodes: Any, tensors: Any, sparse: Any, known: dict[str, Any], makers: dict[str, Any]
    ) -> Iterator[_Found]:
        known, makers = {**known, **{t.name: t for t in tensors}}, dict(makers)
        known |= {t.values.name: t for t in sparse}
        for node in nodes:
            if node.op_type == "Constant" and node.output:
                known.update((node.output[0], a.t) for a in node.attribute if a.name == "value")
            makers |= dict.fromkeys(node.output, node)
        for i, node in enumerate(nodes):
            layer = node.name or f"{node.op_type}_{i}"
            yield from self._of_node(node, layer, known, makers)
            for g in graphs_of(node):
                yield from self._in(g.node, g.initializer, g.sparse_initializer, known, makers)

    def _of_node(self, node: Any, layer: str, known: dict[str, Any], makers: dict[str, Any]) -> Iterator[_Found]:
        ours = node.domain in DOMAINS and node.op_type in _WEIGHTS
        for position, name in enumerate(node.input):
            if not name:
                continue
            weight, sources = ours and position in _WEIGHTS[node.op_type], _sources(name, known, makers)
            if weight and not sources and position == 1 and node.op_type not in ("MatMul", "Gemm", "Einsum"):
                self.skipped.append(SkippedWeight(layer, name, "it is computed when the model runs"))
            for source, behind in sources.items():
                if weight:
                    yield from self._weight(layer, source, known[source], behind)
                else:
                    self._other(node, layer, source, known[source])

    def _weight(self, layer: str, name: str, tensor: Any, behind: set[str]) -> Iterator[_Found]:
        """A weight, where it is one that can be pruned and was not met before."""
        if not hasattr(tensor, "data_type"):
            self.skipped.append(SkippedWeight(layer, name, "it is sparse in the model"))
        elif len(tensor.dims) >= 2 and id(tensor) not in self.seen:
            self.seen.add(id(tensor))
            if tensor.data_type not in _FLOATS or behind.intersection(_QUANTISED):
                self.skipped.append(SkippedWeight(layer, name, "it is quantised, or no floating-point numbers"))
            else:
                from onnx import numpy_helper

                array = numpy_helper.to_array(whole(tensor, f"weight {name!r}", self.folder))
                yield _Found(layer, tensor, array, name)

    def _other(self, node: Any, layer: str, name: str, tensor: Any) -> None:
        """Matrices of operators that are no products that are known here."""
        large = hasattr(tensor, "dims") and len(tensor.dims) >= 2 and math.prod(tensor.dims) >= 1024
        if large and node.op_type not in (*_HANDED_ON, *_FAMILIAR) and node.op_type not in _WEIGHTS:
            self.skipped.append(SkippedWeight(layer, name, f"{node.op_type} is no product that is pruned"))


def _sources(name: str, known: dict[str, Any], makers: dict[str, Any]) -> dict[str, set[str]]:
    """The constants that a tensor's numbers are, and the operators between; nothing where others are among them."""
    found, behind = dict[str, set[str]](), {name: set[str]()}
    waiting = [name]
    while waiting:
        name = waiting.pop(0)
        maker = makers.get(name)
        if name in known:
            found[name] = behind[name]
        elif maker is None or maker.op_type not in (*_HANDED_ON, *_QUANTISED) or not maker.input:
            return {}
        else:
            inputs = maker.input if maker.op_type == "Concat" else maker.input[:1]
            waiting += [source for source in dict.fromkeys(inputs) if source not in behind]
            behind.update({source: {*behind[name], maker.op_type} for source in inputs if source not in behind})
    return found


def _chosen(found: list[_Found], exclude: set[str]) -> list[_Found]:
    known = {name for f in found for name in (f.layer, f.name)}
    unknown = sorted(exclude - known)
    if unknown:
        raise ValueError(f"exclude names {unknown[0]!r}, which is no node with a weight and no weight")
    left = [f for f in found if not exclude & {f.layer, f.name}]
    if not left:
        raise ValueError(f"the model has no constant weight of {', '.join(_WEIGHTS)} to prune")
    for f in left:
        if not np.isfinite(f.array.astype(np.float64)).all():
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
    for field in ("float_data", "int32_data", "double_data", "external_data", "data_location"):
        tensor.ClearField(field)
    tensor.raw_data = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def write_model(proto: Any, target: Path, folder: Folder | None) -> None:
    """Write a model; what lay in other files goes into it, or, where that is too much, into one beside it."""
    every = [*proto.graph.initializer, *(t for node in proto.graph.node for t in tensors_inside(node))]
    every += [t for sparse in proto.graph.sparse_initializer for t in (sparse.values, sparse.indices)]
    for tensor in every:
        if tensor.data_location == EXTERNAL:
            tensor.CopyFrom(whole(tensor, f"tensor {tensor.name!r}", folder))
    if proto.ByteSize() <= _FILE_LIMIT:
        with replacing(target) as file:
            file.write(proto.SerializeToString())
        return
    beside = target.with_name(f"{target.name}.data")
    with replacing(beside) as data, replacing(target) as file:
        for tensor in proto.graph.initializer:
            size = len(tensor.raw_data)
            if size >= 1024:
                put_outside(tensor, beside.name, data.tell(), size)
                data.write(tensor.raw_data)
                tensor.ClearField("raw_data")
        file.write(proto.SerializeToString())


def summary(pruning: Pruning) -> str:
    """A table of what was pruned, and what was not."""
    results, rows = pruning.weights, []
    for r in results:
        shape, share = "x".join(map(str, r.shape)), f"{1 - r.after / r.size:.1%}"
        rows.append((r.layer, r.weight, shape, f"{r.after:,}", f"{r.size:,}", share))
    after, size = sum(r.after for r in results), sum(r.size for r in results)
    rows.append(("all", "", "", f"{after:,}", f"{size:,}", f"{1 - after / max(1, size):.1%}"))
    table = text_table(("layer", "weight", "shape", "nonzeros", "of", "sparsity"), rows, text=3, total=True)
    return "\n".join([table, *(f"left alone: {s.weight} of {s.layer}: {s.why}" for s in pruning.skipped)])
