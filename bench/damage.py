"""Damage to files: of their bytes, and of what stands in them, for `bench.fuzz_files`."""

from __future__ import annotations

import copy
import json
import struct
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

Arrays = dict[str, Any]
Rng = np.random.Generator
HUGE = (2**31, 2**40, 2**62, 2**63, 2**64, 10**30)
ODD: tuple[Any, ...] = (
    *HUGE, -1, 0, 1, 2, 3, 7, 1.5, float("nan"), None, True, False, "x", "", "relu", [], {}, [1] * 9, {"a": [{}]},
)  # fmt: skip
DTYPES = ("float32", "float64", "int32", "int64", "uint8")


def damaged(data: bytes, rng: Rng) -> bytes:
    """A copy of `data` with flipped bits, a cut, a repeated, removed or overwritten piece, or another header length."""
    array = bytearray(data)
    kind = rng.integers(6)
    start, stop = sorted(int(n) for n in rng.integers(0, len(array) + 1, 2))
    if kind == 0:
        for place in rng.integers(0, len(array), int(rng.integers(1, 5))):
            array[place] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        del array[start:]
    elif kind == 2:
        del array[start : min(stop, start + 64)]
    elif kind == 3:
        array[start:start] = array[start : min(stop, start + 64)]
    elif kind == 4:
        array[start : start + 8] = rng.bytes(8)
    else:
        array[:8] = struct.pack("<Q", int(rng.choice(np.array([0, 1, 7, 100_000_000, 2**40, 2**63 - 1]))))
    return bytes(array)


def with_other_header(data: bytes, rng: Rng) -> bytes:
    """A copy of a safetensors file with a field of its header changed."""
    (length,) = struct.unpack("<Q", data[:8])
    holder = {"header": json.loads(data[8 : 8 + length])}
    change(holder, "header", rng)
    encoded = json.dumps(holder.get("header")).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data[8 + length :]


def hostile(arrays: Arrays, metadata: dict[str, Any], rng: Rng) -> tuple[Arrays, dict[str, Any]]:
    """Copies of the arrays, and the metadata, with one to three things changed that a digest does not reveal."""
    arrays, holder = {name: array.copy() for name, array in arrays.items()}, {"all": metadata}
    for _ in range(rng.choice(np.array([1, 1, 1, 2, 3]))):
        if arrays and rng.random() < 0.4:
            changed_arrays(arrays, rng)
        elif "all" in holder:
            change(holder, "all", rng)
    found = holder.get("all")
    return arrays, found if isinstance(found, dict) else {}


def changed_arrays(arrays: Arrays, rng: Rng) -> None:
    """Change one of the arrays in its place among them."""
    names = sorted(arrays)
    name, other = (names[i] for i in rng.integers(len(names), size=2))
    array, kind = arrays[name], rng.integers(9)
    if kind == 0:
        del arrays[name]
    elif kind == 1:
        arrays[name] = np.zeros((0, 2**50), array.dtype)
    elif kind == 2:
        with np.errstate(all="ignore"):
            arrays[name] = array.astype(DTYPES[rng.integers(len(DTYPES))])
    elif kind == 3:
        arrays[name], arrays[other] = arrays[other], array
    elif kind == 4:
        arrays[name] = array.reshape(-1)[: rng.integers(array.size + 1)]
    elif kind == 5:
        arrays[name] = np.concatenate([array, array[:1]]) if array.ndim else array.reshape(1)
    elif kind == 6:
        arrays[name] = array[None] if rng.random() < 0.5 else array.reshape(-1)
    elif kind == 7:
        arrays["another"] = array
    elif array.size:
        flat = array.reshape(-1)
        value = [rng.integers(-3, 4), rng.integers(-(2**63), 2**63), np.nan, np.inf, flat[rng.integers(flat.size)]]
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            flat[rng.integers(flat.size)] = np.asarray(value[rng.integers(len(value))]).astype(flat.dtype)


def change(holder: Any, key: Any, rng: Rng) -> None:
    """Change one value somewhere inside holder[key]."""
    places = list(_places(holder, key))
    inside, name = places[rng.integers(len(places))]
    other, another = places[rng.integers(len(places))]
    value, kind = inside[name], rng.integers(8)
    if kind == 0:
        del inside[name]
    elif kind == 1:
        inside[name] = copy.deepcopy(ODD[rng.integers(len(ODD))])
    elif kind == 2:
        inside[name] = copy.deepcopy(other[another])
    elif kind == 3:  # of two of one type
        same_type = [place for place in places if type(place[0][place[1]]) is type(value)]
        other, another = same_type[rng.integers(len(same_type))]
        inside[name] = copy.deepcopy(other[another])
    elif kind == 4 and isinstance(inside, list):
        inside.insert(int(rng.integers(len(inside) + 1)), copy.deepcopy(value))
    elif kind == 5 and isinstance(inside, list):
        position = int(rng.integers(len(inside)))
        inside[name], inside[position] = inside[position], inside[name]
    elif kind == 6 and isinstance(inside, dict):
        inside[f"{name}'"] = inside.pop(name)
    elif type(value) is int:
        inside[name] = value + int(rng.choice(np.array([-2, -1, 1, 2, 100])))
    elif isinstance(value, list):
        value.extend(copy.deepcopy(value))
    else:
        inside[name] = copy.deepcopy(ODD[rng.integers(len(ODD))])


def rewired(arrays: Arrays, metadata: dict[str, Any], rng: Rng) -> tuple[Arrays, dict[str, Any]]:
    """The metadata changed to another network of the same tensors, which keeps all rules as far as it is seen here."""
    program = metadata["program"]
    shapes, nodes = program["shapes"], program["nodes"]
    for _ in range(rng.integers(1, 5)):
        i = int(rng.integers(len(nodes)))
        node, kind = nodes[i], rng.integers(6)
        earlier = [*program["inputs"], *(n["output"] for n in nodes[:i])]
        operator = node["operator"]
        if kind == 0:
            slot = int(rng.integers(len(node["inputs"])))
            equal = [t for t in earlier if shapes[t] == shapes[node["inputs"][slot]]]
            node["inputs"][slot] = equal[rng.integers(len(equal))]
        elif kind == 1 and operator["type"] in ("Conv", "Linear"):
            equal = [t for t in earlier if shapes[t] == shapes[node["output"]]]
            node["inputs"][1:] = [equal[rng.integers(len(equal))]] if equal and len(node["inputs"]) == 1 else []
        elif kind == 2 and "activation" in operator:
            operator["activation"] = [None, "relu", "relu6", "tanh", "gelu"][rng.integers(5)]
        elif kind == 3 and operator["type"] == "Conv":
            _change_geometry(operator["geometry"], rng)
        elif kind == 4:
            _insert(program, i, rng)
        elif kind == 5:
            program["outputs"] = [[*earlier, node["output"]][rng.integers(len(earlier) + 1)]]
    while True:  # what nothing reads any more
        read = {t for n in nodes for t in n["inputs"]} | set(program["outputs"])
        if all(n["output"] in read for n in nodes):
            break
        nodes[:] = [n for n in nodes if n["output"] in read]
    text = json.dumps(nodes)
    return {name: array for name, array in arrays.items() if f'"{name}"' in text}, metadata


def _change_geometry(geometry: dict[str, Any], rng: Rng) -> None:
    """Another stride, dilation or padding that gives as many windows, where one is found."""
    for _ in range(20):
        name, axis = ("stride", "dilation", "padding")[rng.integers(3)], int(rng.integers(len(geometry["spatial"])))
        changed = copy.deepcopy(geometry)
        if name == "padding":
            changed[name][axis][rng.integers(2)] += int(rng.integers(-1, 4))
        else:
            changed[name][axis] = int(rng.choice(np.array([1, 2, 3, 5, 9, 1000, 2**31, 2**52])))
        if _windows(changed) == _windows(geometry) and min(map(min, changed["padding"])) >= 0:
            geometry.update(changed)
            return


def _windows(geometry: dict[str, Any]) -> list[int]:
    names = ("spatial", "kernel", "stride", "dilation", "padding")
    axes = zip(*(geometry[name] for name in names), strict=True)
    return [(n + sum(pads) - d * (k - 1) - 1) // s + 1 for n, k, s, d, pads in axes]


def _insert(program: dict[str, Any], position: int, rng: Rng) -> None:
    """A node behind another one, for all that read that one."""
    shapes, nodes = program["shapes"], program["nodes"]
    source, made = nodes[position]["output"], len(shapes)
    shape, inputs, operator = shapes[source], [source], {"type": "Activate", "name": "tanh"}
    kind = rng.integers(3)
    if kind == 0:
        inputs, operator = [source, source], {"type": "Add", "activation": "relu"}
    elif kind == 1 and len(shape) == 1:
        operator = {"type": "Reshape"}
    shapes.append(list(shape))
    for node in nodes[position + 1 :]:
        node["inputs"] = [made if t == source and rng.random() < 0.7 else t for t in node["inputs"]]
    program["outputs"] = [made if t == source else t for t in program["outputs"]]
    nodes.insert(position + 1, {"name": "inserted", "inputs": inputs, "output": made, "operator": operator})


def _places(holder: Any, key: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (holder, key) of every value inside holder[key], itself included."""
    yield holder, key
    value = holder[key]
    if isinstance(value, dict):
        for inner in value:
            yield from _places(value, inner)
    elif isinstance(value, list):
        for position in range(len(value)):
            yield from _places(value, position)
