"""Programs as plain data: a description that JSON knows, and arrays by name.

A description has `dtype`, `shapes`, `inputs`, `outputs`, `nodes` and `lookups`, which are tables and positions. A
node has `name`, `inputs`, `output` and `operator`: its `type` and its fields. Arrays stand as their names; a weight is
`indptr`, `indices`, `data` and a shape; windows of pooling are their tables. What is read is checked as if it came from
a stranger.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse.csr import CSR
from fastsparse.engine.program import (
    Activate,
    Add,
    Attention,
    Concat,
    Conv,
    Gate,
    Gather,
    Interpolate,
    LayerNorm,
    Linear,
    Lookup,
    Node,
    Operator,
    PaddingMask,
    Pool,
    Program,
    Reshape,
    Scale,
    Shape,
    Softmax,
    size,
)
from fastsparse.ops.activations import ACTIVATIONS
from fastsparse.ops.geometry import ConvGeometry
from fastsparse.ops.interpolation import serves, takes
from fastsparse.ops.pooling import Windows

Array = NDArray[Any]
LARGEST_BYTES = 2**31  # of one sample of a tensor, padding included


# ---------------------------------------------------------------- writing


def to_plain(program: Program, arrays: dict[str, Array]) -> dict[str, Any]:
    """Describe a program; its arrays are added to `arrays`, each once."""
    names: dict[int, str] = {}

    def kept(array: Array | None) -> str | None:
        if array is None:
            return None
        if id(array) not in names:
            names[id(array)] = f"program.{len(names)}"
            arrays[names[id(array)]] = array
        return names[id(array)]

    def described(op: Operator) -> dict[str, Any]:
        found: dict[str, Any] = {"type": type(op).__name__}
        for field in fields(op):
            value = getattr(op, field.name)
            if isinstance(value, CSR):
                arrays_of = {name: kept(getattr(value, name)) for name in ("indptr", "indices", "data")}
                found[field.name] = {**arrays_of, "shape": list(value.shape)}
            elif isinstance(value, ConvGeometry):
                found[field.name] = {own.name: getattr(value, own.name) for own in fields(value) if own.init}
            elif isinstance(value, Windows):
                found |= {"spatial": list(value.spatial), "rows": kept(value.rows), "columns": kept(value.columns)}
            else:
                found[field.name] = kept(value) if isinstance(value, np.ndarray) else value
        return found

    lookups = [
        {"table": kept(made.table), "positions": kept(made.positions)} if isinstance(made, Lookup)
        else None if made is None else "mask"
        for made in program.lookups
    ]  # fmt: skip
    return {
        "lookups": lookups,
        "dtype": program.dtype.name,
        "shapes": [list(shape) for shape in program.shapes],
        "inputs": list(program.inputs),
        "outputs": list(program.outputs),
        "nodes": [
            {"name": n.name, "inputs": list(n.inputs), "output": n.output, "operator": described(n.operator)}
            for n in program.nodes
        ],
    }


# ---------------------------------------------------------------- reading


def from_plain(plain: Any, arrays: Mapping[str, Array]) -> Program:
    """The program that `to_plain` described.

    Raises
    ------
    ValueError, TypeError, KeyError
        When `plain` and `arrays` describe no program.
    """
    dtype = np.dtype(plain["dtype"])
    if dtype.name not in ("float32", "float64"):
        raise ValueError(f"the dtype is {dtype}, expected float32 or float64")
    shapes = tuple(_ints(shape, 1) for shape in plain["shapes"])
    for shape in shapes:
        if not shape or size(shape) * dtype.itemsize > LARGEST_BYTES:
            raise ValueError(f"a tensor has shape {shape}, expected one of at most {LARGEST_BYTES} bytes")
    inputs, outputs = _ints(plain["inputs"], 0), _ints(plain["outputs"], 0)
    written = set(inputs)
    if len(written) != len(inputs) or not inputs or not outputs or max(inputs) >= len(shapes):
        raise ValueError(f"the inputs are {inputs} and the outputs {outputs}, expected tensors")
    reader, nodes = _Reader(arrays, dtype), []
    lookups = tuple(reader.lookup(entry) for entry in plain["lookups"])
    if lookups and len(lookups) != len(inputs):
        raise ValueError(f"there are {len(lookups)} lookups for {len(inputs)} inputs")
    for t, lookup in zip(inputs, lookups):
        if isinstance(lookup, Lookup) and not _fits(lookup, shapes[t]):
            raise ValueError(f"the embedding has shape {lookup.table.shape}, which does not fit the input")
    for entry in plain["nodes"]:
        sources, (output,) = _ints(entry["inputs"], 0), _ints([entry["output"]], 0)
        if not isinstance(entry["name"], str):
            raise ValueError(f"a node has the name {entry['name']!r}")
        if not written.issuperset(sources) or output in written or output >= len(shapes):
            raise ValueError(f"node {entry['name']!r} reads {sources} and writes {output}, out of order")
        operator = reader.operator(entry["operator"])
        expected = _result(operator, [shapes[t] for t in sources])
        if shapes[output] != expected:
            raise ValueError(f"node {entry['name']!r} gives shape {expected}, but tensor {output} has {shapes[output]}")
        written.add(output)
        nodes.append(Node(entry["name"], operator, sources, output))
    if not written.issuperset(outputs):
        raise ValueError(f"the outputs are {outputs}, which nothing writes")
    unread = written.difference(inputs, outputs, *(node.inputs for node in nodes))
    if unread:
        raise ValueError(f"tensor {min(unread)} is written, but nothing reads it")
    if reader.used != set(arrays):
        raise ValueError(f"nothing reads the array {min(set(arrays) - reader.used)!r}")
    return Program(shapes, inputs, outputs, tuple(nodes), dtype, lookups)


def _ints(values: Any, least: int) -> tuple[int, ...]:
    if not isinstance(values, list | tuple) or not all(type(v) is int and least <= v < 2**53 for v in values):
        raise ValueError(f"{values!r} are not integers of at least {least}")
    return tuple(values)


class _Reader:
    """Reads operators, whose arrays are in `arrays`."""

    def __init__(self, arrays: Mapping[str, Array], dtype: np.dtype[Any]) -> None:
        self.arrays, self.dtype = arrays, dtype
        self.matrices: dict[tuple[str, ...], CSR] = {}
        self.used: set[str] = set()

    def array(self, name: str, dtype: Any, shape: Shape | None = None) -> Array:
        """An array of the expected type and shape."""
        found = self.arrays[name]
        if found.dtype != dtype or (shape is not None and found.shape != shape):
            raise ValueError(f"array {name!r} is {found.dtype} of shape {found.shape}, expected {dtype} of {shape}")
        self.used.add(name)
        return found

    def operator(self, entry: Any) -> Operator:
        make = _OPERATORS.get(entry["type"])
        if make is None:
            raise ValueError(f"an operator has the type {entry['type']!r}")
        return make(self, entry)

    def lookup(self, entry: Any) -> Lookup | PaddingMask | None:
        """What makes an input of integers or booleans."""
        if entry is None or entry == "mask":
            return None if entry is None else PaddingMask()
        positions = None if entry["positions"] is None else self.array(entry["positions"], self.dtype)
        return Lookup(self.array(entry["table"], self.dtype), positions)

    def scale(self, entry: Any) -> Scale:
        scale = self.array(entry["scale"], np.float64)
        return Scale(scale, self.array(entry["shift"], np.float64, scale.shape))

    def layer_norm(self, entry: Any) -> LayerNorm:
        scale, eps = self.array(entry["scale"], self.dtype), entry["eps"]
        if type(eps) is not float or not 0 <= eps < math.inf:
            raise ValueError(f"eps is {eps!r}, expected a number of at least 0")
        shift = None if entry["shift"] is None else self.array(entry["shift"], self.dtype, scale.shape)
        return LayerNorm(scale, shift, eps)

    def product(self, entry: Any) -> tuple[CSR, Array | None]:
        fields = [entry["weight"][name] for name in ("indptr", "indices", "data")]
        shape = _ints(entry["weight"]["shape"], 1)
        key = (*fields, str(shape))
        if key not in self.matrices:
            indptr, data = self.array(fields[0], np.int64), self.array(fields[2], self.dtype)
            indices = self.array(fields[1], self.arrays[fields[1]].dtype, data.shape)
            matrix = CSR(indptr, indices, data, shape)
            if matrix.nnz != data.size or not np.array_equal(matrix.indices, indices):
                raise ValueError(f"the columns {fields[1]!r} are unsorted or repeated, expected rising ones")
            self.matrices[key] = matrix
        bias = None if entry["bias"] is None else self.array(entry["bias"], self.dtype, shape[:1])
        return self.matrices[key], bias

    def geometry(self, entry: Any) -> ConvGeometry:
        axes = {name: _ints(entry[name], 1) for name in ("spatial", "kernel", "stride", "dilation")}
        padding = tuple(_ints(pair, 0) for pair in entry["padding"])
        channels, out, groups = _ints([entry["channels"], entry["out_channels"], entry["groups"]], 1)
        lengths = {len(values) for values in (*axes.values(), padding)}
        if len(lengths) != 1 or any(len(pair) != 2 for pair in padding) or channels % groups or out % groups:
            raise ValueError(f"{entry!r} is no convolution")
        geometry = ConvGeometry(channels, out, padding=padding, groups=groups, **axes)  # type: ignore[arg-type]
        if channels * math.prod(geometry.padded) * self.dtype.itemsize > LARGEST_BYTES or min(geometry.out_spatial) < 1:
            raise ValueError(f"{entry!r} is too large, or its window too large for its image")
        return geometry

    def pool(self, entry: Any) -> Pool:
        spatial = _ints(entry["spatial"], 1)
        tables = [self.array(entry[name], np.int64) for name in ("rows", "columns")]
        if entry["kind"] not in ("max", "mean") or len(spatial) != 2:
            raise ValueError(f"{entry!r} is no pooling")
        for extent, table in zip(spatial, tables, strict=True):
            fits = table.ndim == 2 and table.shape[1] == 3 and len(table) > 0
            if not fits or (table[:, 0] < 0).any() or (table[:, 1] > extent).any() or (table[:, 2] < 1).any():
                raise ValueError("windows of pooling are outside of the image")
            if (table[:, 0] >= table[:, 1]).any() or (np.diff(table[:, :2], axis=0) < 0).any():
                raise ValueError("windows of pooling are empty or out of order")
        rows, columns = (np.ascontiguousarray(table) for table in tables)
        return Pool(entry["kind"], Windows((spatial[0], spatial[1]), rows, columns))


def _fits(lookup: Lookup, shape: Shape) -> bool:
    """Whether a lookup gives samples of that shape."""
    table, positions = lookup.table, lookup.positions
    fits = table.ndim == 2 and table.size > 0 and shape[-1] == table.shape[1]
    if not fits or positions is None:
        return fits
    return len(shape) == 2 and positions.shape[1:] == table.shape[1:] and shape[0] <= len(positions)


def _int(value: Any) -> int:
    return _ints([value], 1)[0]


def _flag(entry: Any, name: str) -> bool:
    if type(entry[name]) is not bool:
        raise ValueError(f"{name} is {entry[name]!r}, expected true or false")
    return bool(entry[name])


def _rest(entry: Any) -> dict[str, Any]:
    return {"activation": _activation(entry["activation"]), "dense": _flag(entry, "dense")}


def _interpolate(entry: Any) -> Interpolate:
    factors, activation = _ints(entry["scale"], 1), _activation(entry["activation"])
    if not (serves(factors) and takes(activation)):
        raise ValueError(f"{entry!r} is no interpolation")
    return Interpolate(factors, activation)


def _activation(name: Any, optional: bool = True) -> Any:
    if name not in ACTIVATIONS or (name is None and not optional):
        raise ValueError(f"an activation is {name!r}")
    return name


def _result(op: Operator, shapes: list[Shape]) -> Shape | None:
    """The shape that an operator gives, None where the shapes do not fit it."""
    x, many = shapes[0] if shapes else (), isinstance(op, Conv | Linear | Interpolate)
    if isinstance(op, Concat):
        fits = bool(shapes) and len({shape[1:] for shape in shapes}) == 1
        return (sum(shape[0] for shape in shapes), *x[1:]) if fits else None
    if isinstance(op, Attention):
        fits = len(shapes) in (3, 4) and len(x) == 2 and len(shapes[1]) == 2 and shapes[1] == shapes[2]
        fits = fits and all(shape == shapes[1][:1] for shape in shapes[3:])
        return x if fits and shapes[1][1] == x[1] and x[1] % op.heads == 0 else None
    if not (len(shapes) == 1 or (len(shapes) == 2 and (many or isinstance(op, Add | Gate)))):
        return None
    found: Shape | None = x
    if isinstance(op, Conv):
        g, (rows, columns) = op.geometry, op.weight.shape
        taps = g.channels // g.groups * math.prod(g.kernel)
        fits = x == (g.channels, *g.spatial) and (rows, columns) == (g.out_channels, taps)
        found = (g.out_channels, *g.out_spatial) if fits else None
    elif isinstance(op, Linear):
        fits = x[-1:] == op.weight.shape[1:] and math.prod(x[:-1]) == op.rows
        found = (*x[:-1], op.weight.shape[0]) if fits else None
    elif isinstance(op, Pool):
        found = (x[0], *op.windows.out_spatial) if x[1:] == op.windows.spatial else None
    elif isinstance(op, Reshape):
        found = (size(x),)
    elif isinstance(op, Scale):
        found = x if op.scale.shape == op.shift.shape == x[:1] else None
    elif isinstance(op, LayerNorm):
        axes = op.scale.ndim
        found = x if 0 < axes <= len(x) and x[-axes:] == op.scale.shape else None
    elif isinstance(op, Add):
        found = x if len(shapes) == 2 and shapes[1] == x else None
    elif isinstance(op, Gather):
        fits = not (x[0] % op.blocks or op.shape[0] % op.blocks) and size(op.shape) == op.blocks * op.index.size
        inside = fits and op.index.ndim == 1 and op.index.min() >= 0 and op.index.max() < size(x) // op.blocks
        found = op.shape if inside else None
    elif isinstance(op, Interpolate):
        fits = len(x) == len(op.scale) + 1
        found = (x[0], *(n * s for n, s in zip(x[1:], op.scale, strict=True))) if fits else None
    elif isinstance(op, Gate):
        found = x if len(shapes) == 2 and len(x) > 1 and size(shapes[1]) == shapes[1][0] == x[0] else None
    return None if many and len(shapes) == 2 and shapes[1] != found else found


_OPERATORS: dict[str, Callable[[_Reader, Any], Operator]] = {
    "Conv": lambda r, e: Conv(*r.product(e), geometry=r.geometry(e["geometry"]), **_rest(e)),
    "Linear": lambda r, e: Linear(*r.product(e), **_rest(e), rows=_int(e["rows"])),
    "Scale": _Reader.scale,
    "Activate": lambda r, e: Activate(_activation(e["name"], False)),
    "Pool": _Reader.pool,
    "LayerNorm": _Reader.layer_norm,
    "Softmax": lambda r, e: Softmax(),
    "Reshape": lambda r, e: Reshape(),
    "Add": lambda r, e: Add(_activation(e["activation"])),
    "Gate": lambda r, e: Gate(),
    "Concat": lambda r, e: Concat(),
    "Gather": lambda r, e: Gather(r.array(e["index"], np.int64), _int(e["blocks"]), _ints(e["shape"], 1)),
    "Interpolate": lambda r, e: _interpolate(e),
    "Attention": lambda r, e: Attention(_int(e["heads"]), _flag(e, "causal")),
}
