"""Small files of other libraries, and changes of what stands in them, for `bench.fuzz_files`.

A change leaves the container whole (checksums, lengths, the wire format), so that it reaches the code that reads what
is inside: fields of protocol buffers, words of flatbuffers, opcodes of pickles, entries of headers.
"""

from __future__ import annotations

import io
import json
import pickletools
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from bench.damage import HUGE, change, changed_arrays, damaged, with_other_header
from bench.own_files import random_onnx

Rng = np.random.Generator
_NUMBERS = (*HUGE, -1, 0, 1, 2, 3, 7, 255, 2**31 - 1, -(2**31), -(2**63))


def pruned(rng: Rng, *shape: int, dtype: str = "float32") -> Any:
    """Normal numbers of which four fifths are zero."""
    return np.where(rng.random(shape) < 0.8, 0, rng.standard_normal(shape)).astype(dtype)


# ---------------------------------------------------------------- safetensors


def save_safetensors(path: Path, rng: Rng) -> None:
    """Dense, sparse and masked weights, and ones as compressed-tensors packs them."""
    w = pruned(rng, int(rng.integers(1, 14)), int(rng.integers(1, 22)))
    kept = w != 0
    packed = {
        "l.weight.compressed": w[kept], "l.weight.bitmask": np.packbits(kept, axis=1, bitorder="little"),
        "l.weight.shape": np.array(w.shape), "l.weight.row_offsets": np.cumsum(kept.sum(1)) - kept.sum(1),
    }  # fmt: skip
    masked = {
        "m.weight_orig": np.ones((3, 4), "f"), "m.weight_mask": np.eye(3, 4, dtype="f"),
        "p.parametrizations.weight.original": np.ones((2, 5)), "p.parametrizations.weight.0.mask": np.eye(2, 5) > 0,
    }  # fmt: skip
    plain = {"sparse": pruned(rng, 6, 9), "half": pruned(rng, 4, 5, dtype="float16"), "bias": np.ones(12, "f")}
    parts = [part for part in (packed, masked, plain) if rng.random() < 0.6] or [packed]
    save_file({name: array for part in parts for name, array in part.items()}, path)


def save_shards(path: Path, rng: Rng) -> None:
    """An index, as Hugging Face has it, with its files beside it."""
    names = [f"model-{n}.safetensors" for n in range(int(rng.integers(1, 4)))]
    where = {}
    for i, name in enumerate(names):
        arrays = {f"l{i}.weight": pruned(rng, 4, 6), f"l{i}.bias": np.ones(4, "f")}
        save_file(arrays, path.parent / name)
        where.update(dict.fromkeys(arrays, name))
    path.write_text(json.dumps({"metadata": {"total_size": 112 * len(names)}, "weight_map": where}), "ascii")


def changed_json(data: bytes, rng: Rng) -> bytes:
    """JSON with one to three of its values changed."""
    holder = {"all": json.loads(data)}
    for _ in range(rng.integers(1, 4)):
        if "all" in holder:
            change(holder, "all", rng)
    return json.dumps(holder.get("all")).encode()


def changed_safetensors(data: bytes, rng: Rng) -> bytes:
    """Another header, or other arrays under a header that fits them."""
    if rng.random() < 0.5:
        return with_other_header(data, rng)
    from safetensors.numpy import load, save

    arrays = load(data)
    for _ in range(rng.integers(1, 4)):
        if arrays:
            changed_arrays(arrays, rng)
    return save({name: np.ascontiguousarray(array) for name, array in arrays.items()})


# ---------------------------------------------------------------- torch.save


def save_torch(path: Path, rng: Rng) -> None:
    """A checkpoint with a state_dict: parameters, views of one storage, a sparse matrix."""
    from tests.test_weights_files import TorchFile, mapping, numbers, state_dict, text

    file = TorchFile()
    w, held = pruned(rng, 12, 20), np.arange(1, 25, dtype=np.float32)
    rows, columns = np.nonzero(w)
    parts = [file.tensor(np.stack([rows, columns])), file.tensor(w[rows, columns])]
    size = b"ctorch\nSize\n(" + numbers(w.shape) + b"tR"
    layout = b"ctorch.serialization\n_get_layout\n(" + text("torch.sparse_coo") + b"tR"
    tensors = {
        "w": file.tensor(w), "b": b"ctorch._utils\n_rebuild_parameter\n(" + file.tensor(np.ones(12)) + b"\x88}tR",
        "transposed": file.tensor(held, shape=(4, 6), strides=(1, 4)),
        "part": file.tensor(held, offset=5, shape=(3,), strides=(2,)),
        "sparse": b"ctorch._utils\n_rebuild_sparse_tensor\n(" + layout + b"(" + b"".join([*parts, size]) + b"ttR",
        "a.weight_orig": file.tensor(w), "a.weight_mask": file.tensor((w != 0).astype("f")),
    }  # fmt: skip
    chosen = {name: tensor for name, tensor in tensors.items() if rng.random() < 0.6}
    file.write(path, mapping({"epoch": b"K\x07", "state_dict": state_dict(chosen)}))


def changed_torch(data: bytes, rng: Rng) -> bytes:
    """An archive with other opcodes in its pickle, or other entries."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [(info.filename, archive.read(info)) for info in archive.infolist()]
    for _ in range(rng.integers(1, 4)):
        place = 0 if rng.random() < 0.7 else int(rng.integers(len(entries)))
        name, content = entries[place]
        kind = rng.integers(5)
        if name.endswith(".pkl") and kind < 4:
            content = _other_opcodes(content, rng)
        elif kind == 0:
            name = entries[int(rng.integers(len(entries)))][0]
        elif kind == 1:
            content = content[: int(rng.integers(len(content) + 1))]
        elif kind == 2:
            content = content * 2
        else:
            content = damaged(content or b"\0", rng)
        entries[place] = name, content
    made = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(made, "w") as archive:
        warnings.simplefilter("ignore")  # a name that is there twice
        for name, content in entries:
            archive.writestr(name, content)
    return made.getvalue()


def _other_opcodes(content: bytes, rng: Rng) -> bytes:
    """A pickle with opcodes dropped, repeated, exchanged, or with other numbers."""
    try:
        starts = [position for _, _, position in pickletools.genops(content) if position is not None]
    except ValueError:  # it was changed before
        return damaged(content, rng)
    parts = [content[a:b] for a, b in zip(starts, [*starts[1:], len(content)])]
    at, other = (int(i) for i in rng.integers(len(parts), size=2))
    kind = rng.integers(5)
    if kind == 0:
        del parts[at]
    elif kind == 1:
        parts.insert(at, parts[other])
    elif kind == 2:
        parts[at], parts[other] = parts[other], parts[at]
    elif kind == 3:
        parts[at] = parts[other]
    else:
        integers = [i for i, part in enumerate(parts) if part[:1] == b"J"]
        if integers:
            number = int(_NUMBERS[rng.integers(len(_NUMBERS))])
            parts[integers[rng.integers(len(integers))]] = b"\x8a\x0e" + number.to_bytes(14, "little", signed=True)
    return b"".join(parts)


# ---------------------------------------------------------------- TFLite


def save_tflite(path: Path, rng: Rng) -> None:
    """Some of the operators that detectors on phones have, with sparse, half and quantised weights."""
    from tests.tflite.files import Writer

    w = Writer()
    parts = (_tflite_convolutions, _tflite_depthwise, _tflite_pixels, _tflite_rows, _tflite_mixed)
    inputs, outputs = parts[int(rng.integers(len(parts)))](w, rng)
    path.write_bytes(w.finish(inputs, outputs))


_PLAIN = {"Padding": 1, "DilationHFactor": 1, "DilationWFactor": 1, "StrideH": 1, "StrideW": 1}
Ends = tuple[list[int], list[int]]  # inputs and outputs


def _tflite_convolutions(w: Any, rng: Rng) -> Ends:
    x = w.tensor((1, 8, 8, 3))
    y = w.add("PAD", [x, w.constant(np.array([[0, 0], [0, 1], [0, 1], [0, 0]], np.int32))], (1, 9, 9, 3))
    y = w.add("CONV_2D", [y, w.constant(pruned(rng, 8, 3, 3, 3))], (1, 4, 4, 8), "Conv2DOptions",
              **{**_PLAIN, "StrideH": 2, "StrideW": 2, "FusedActivationFunction": 1})  # fmt: skip
    z = w.add("DENSIFY", [w.sparse(pruned(rng, 8, 1, 1, 8), ("u1", "u2", "i4")[rng.integers(3)])], (8, 1, 1, 8))
    bias = w.constant(rng.standard_normal(8).astype("f"))
    return [x], [w.add("CONV_2D", [y, z, bias], (1, 4, 4, 8), "Conv2DOptions", **_PLAIN)]


def _tflite_depthwise(w: Any, rng: Rng) -> Ends:
    x = w.tensor((1, 4, 4, 8))
    half = w.add("DEQUANTIZE", [w.constant(pruned(rng, 1, 3, 3, 8, dtype="float16"))], (1, 3, 3, 8))
    z = w.add("DEPTHWISE_CONV_2D", [x, half], (1, 4, 4, 8), "DepthwiseConv2DOptions", DepthMultiplier=1,
              **{**_PLAIN, "Padding": 0})  # fmt: skip
    y = w.add("ADD", [x, z], (1, 4, 4, 8), "AddOptions")
    return [x], [w.add("CONCATENATION", [y, z], (1, 4, 4, 16), "ConcatenationOptions", Axis=3)]


def _tflite_pixels(w: Any, rng: Rng) -> Ends:
    x = w.tensor((1, 4, 4, 16))
    y = w.add("MAX_POOL_2D", [x], (1, 2, 2, 16), "Pool2DOptions", Padding=1, StrideH=2, StrideW=2, FilterHeight=2,
              FilterWidth=2)  # fmt: skip
    y = w.add("DEPTH_TO_SPACE", [y], (1, 4, 4, 4), "DepthToSpaceOptions", BlockSize=2)
    y = w.add("RESIZE_BILINEAR", [y, w.constant(np.array([8, 8], np.int32))], (1, 8, 8, 4), "ResizeBilinearOptions",
              HalfPixelCenters=True)  # fmt: skip
    return [x], [w.add("MEAN", [y, w.constant(np.array([1, 2], np.int32))], (1, 4), "ReducerOptions", KeepDims=False)]


def _tflite_rows(w: Any, rng: Rng) -> Ends:
    x = w.tensor((1, 2, 2, 4))
    flat = w.add("RESHAPE", [x, w.constant(np.array([4, 4], np.int32))], (4, 4), "ReshapeOptions")
    table = w.constant((rng.integers(-9, 9, (6, 4))).astype(np.int8), scale=np.full(6, 0.1, "f"), axis=0)
    y = w.add("FULLY_CONNECTED", [flat, table, -1], (4, 6), "FullyConnectedOptions", FusedActivationFunction=3)
    z = w.add("FULLY_CONNECTED", [y, w.sparse(pruned(rng, 5, 6), block=((1, 2),))], (4, 5), "FullyConnectedOptions")
    return [x], [w.add("SOFTMAX", [z], (4, 5), "SoftmaxOptions", Beta=1.0), y]


def _tflite_mixed(w: Any, rng: Rng) -> Ends:
    x, bias = w.tensor((1, 5, 4, 2)), w.constant(rng.standard_normal(6).astype("f"))
    y = w.add("CONV_2D", [x, w.sparse(pruned(rng, 6, 3, 3, 2)), bias], (1, 3, 2, 6), "Conv2DOptions",
              **{**_PLAIN, "FusedActivationFunction": 1})  # fmt: skip
    z = w.add("AVERAGE_POOL_2D", [y], (1, 3, 2, 6), "Pool2DOptions", Padding=0, StrideH=1, StrideW=1, FilterHeight=3,
              FilterWidth=2)  # fmt: skip
    return [x], [w.add("ADD", [y, z], (1, 3, 2, 6), "AddOptions", FusedActivationFunction=1)]


def changed_words(data: bytes, rng: Rng) -> bytes:
    """A flatbuffer with one to three of its numbers replaced: by others that are there, neighbours, or extreme ones."""
    array = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        size = int(rng.choice(np.array([1, 2, 4, 4, 4, 8])))
        at, other = (int(i) * size for i in rng.integers(len(array) // size, size=2))
        value = int.from_bytes(array[at : at + size], "little")
        kind = rng.integers(3)
        if kind == 0:
            value = int.from_bytes(array[other : other + size], "little")
        elif kind == 1:
            value += int(rng.choice(np.array([-4, -1, 1, 4])))
        else:
            value = int(_NUMBERS[rng.integers(len(_NUMBERS))])
        array[at : at + size] = (value % 2 ** (8 * size)).to_bytes(size, "little")
    return bytes(array)


# ---------------------------------------------------------------- ONNX


def save_onnx(path: Path, rng: Rng) -> None:
    """A random model, some of whose weights lie in a file beside it."""
    from onnx import TensorProto

    model = random_onnx(rng)
    held = [tensor for tensor in model.graph.initializer if tensor.raw_data and rng.random() < 0.1]
    data = b""
    for tensor in held:
        for key, value in (("location", "data.bin"), ("offset", len(data)), ("length", len(tensor.raw_data))):
            tensor.external_data.add(key=key, value=str(value))
        data += tensor.raw_data
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
    if held:
        (path.parent / "data.bin").write_bytes(data)
    path.write_bytes(model.SerializeToString())


def changed_onnx(data: bytes, rng: Rng) -> bytes:
    """A model with one to three fields of its messages changed."""
    from onnx import ModelProto

    model = ModelProto()
    model.ParseFromString(data)
    for _ in range(rng.choice(np.array([1, 1, 1, 2, 3]))):
        places = list(_fields(model))
        _change_field(*places[rng.integers(len(places))], places, rng)
    return bytes(model.SerializeToString())


def _fields(message: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (message, field descriptor) of all fields that are set, inside others, too."""
    for field, value in message.ListFields():
        yield message, field
        if field.message_type is not None:
            for inner in value if _repeated(field) else [value]:
                yield from _fields(inner)


def _repeated(field: Any) -> bool:
    return bool(field.is_repeated) if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED


def _change_field(message: Any, field: Any, places: list[tuple[Any, Any]], rng: Rng) -> None:
    value = getattr(message, field.name)
    if _repeated(field):
        kind, at = rng.integers(5), int(rng.integers(len(value)))
        if kind == 0:
            del value[at]
        elif kind == 1:
            value.extend([value[at]])
        elif kind == 2:
            items = [value[i] for i in rng.permutation(len(value))]
            copies = [item.__deepcopy__() for item in items] if field.message_type is not None else items
            del value[:]
            value.extend(copies)
        elif field.message_type is None:
            value[at] = _other_value(field, value[at], places, rng)
        return
    if field.message_type is not None or rng.random() < 0.15:
        message.ClearField(field.name)
    else:
        try:
            setattr(message, field.name, _other_value(field, value, places, rng))
        except ValueError:  # no number of an enumeration
            message.ClearField(field.name)


def _other_value(field: Any, value: Any, places: list[tuple[Any, Any]], rng: Rng) -> Any:
    """Another value of a field's type: one that stands elsewhere, a neighbour, or an extreme one."""
    if field.cpp_type == field.CPPTYPE_STRING:
        if field.type == field.TYPE_BYTES and rng.random() < 0.5:
            return damaged(value or b"\0", rng)
        same = [getattr(m, f.name) for m, f in places if f.type == field.type and not _repeated(f)]
        same += [item for m, f in places if f.type == field.type and _repeated(f) for item in getattr(m, f.name)]
        return [*same, type(value)()][rng.integers(len(same) + 1)]
    if isinstance(value, float):
        return float(rng.choice(np.array([np.nan, np.inf, -1.0, 0.0, 1e30])))
    numbers = [n for n in (*_NUMBERS, value - 1, value + 1) if _fits(field, n)]
    return numbers[rng.integers(len(numbers))]


def _fits(field: Any, number: int) -> bool:
    low, high = {
        field.CPPTYPE_INT32: (-(2**31), 2**31 - 1), field.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
        field.CPPTYPE_UINT64: (0, 2**64 - 1), field.CPPTYPE_UINT32: (0, 2**32 - 1),
    }.get(field.cpp_type, (0, 3))  # fmt: skip
    return low <= number <= high
