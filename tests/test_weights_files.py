"""`fs.load_weights`: what other libraries save comes back to the bit, and damage is a FileFormatError."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import fastsparse as fs

ROOT = Path(__file__).parents[1]


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert isinstance(found[name], fs.CSR) == (array.ndim == 2 and array.dtype.kind == "f" and (array == 0).any())
        held = found[name].toarray() if isinstance(found[name], fs.CSR) else found[name]
        assert held.dtype == array.dtype
        np.testing.assert_array_equal(held, array)


def pruned(shape=(12, 20), dtype="float32"):
    rng = np.random.default_rng(0)
    return np.where(rng.random(shape) < 0.8, 0, rng.normal(size=shape)).astype(dtype)


# ---------------------------------------------------------------- safetensors


def write_safetensors(path, entries):
    """entries : (name, safetensors' type, array of the stored bits)."""
    header, body = {}, b""
    for name, dtype, array in entries:
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": [len(body), len(body) + array.nbytes]}
        body += array.tobytes()
    text = json.dumps(header).encode()
    Path(path).write_bytes(struct.pack("<Q", len(text)) + text + body)


@pytest.mark.parametrize("dtype", ["f8", "f4", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?"])
def test_safetensors(tmp_path, dtype):
    arrays = {"a": (np.arange(12) % 5).reshape(3, 4).astype(dtype) + np.ones((), dtype), "none": np.ones((0, 3), dtype)}
    arrays["one"] = np.ones((), dtype)
    save_file(arrays, tmp_path / "a.safetensors", {"format": "pt"})
    same(fs.load_weights(tmp_path / "a.safetensors"), arrays)


def test_half_precision_becomes_float32(tmp_path):
    w = pruned()
    bits = (w.view(np.uint32) >> 16).astype(np.uint16)
    write_safetensors(tmp_path / "a", [("b", "BF16", bits), ("h", "F16", w.astype(np.float16))])
    found = fs.load_weights(tmp_path / "a")
    same(found, {"b": (bits.astype(np.uint32) << 16).view(np.float32), "h": w.astype(np.float16).astype(np.float32)})


def entry(**changes):
    return {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16], **changes}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"a": entry(shape=[2, 3])}, "shape (2, 3) lies in bytes 0 to 16, expected 24"),
        ({"a": entry(shape=[2**40, 2**40])}, "expected sizes of at least 0"),
        ({"a": entry(shape=[2, -2])}, "expected sizes of at least 0"),
        ({"a": entry(shape=[1] * 99)}, "99 axes"),
        ({"a": entry(data_offsets=[4, 20])}, "lies in bytes 4 to 20"),
        ({"a": entry(data_offsets=[-4, 12])}, "lies in bytes -4 to 12"),
        ({"a": entry(dtype="F8_E4M3")}, "dtype 'F8_E4M3', expected one of F64"),
        ({"a": {"dtype": "F32"}}, "is damaged"),
        ({"a": 3}, "is damaged"),
        ([], "is damaged"),
    ],
)  # fmt: skip
def test_headers_that_do_not_fit(tmp_path, header, message):
    text = json.dumps(header).encode().ljust(64)
    text = text.replace(b"[]", b"{]") if header == [] else text
    (tmp_path / "a").write_bytes(struct.pack("<Q", len(text)) + text + bytes(16))
    with pytest.raises(fs.FileFormatError, match=re.escape(message)):
        fs.load_weights(tmp_path / "a")


# ---------------------------------------------------------------- torch.save


STORAGES = {"float32": "Float", "float64": "Double", "float16": "Half", "int64": "Long", "bool": "Bool"}


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def numbers(values):
    return b"(" + b"".join(b"J" + struct.pack("<i", n) for n in values) + b"t"


class TorchFile:
    """A file as torch.save writes it: a zip archive with a pickle and one entry for each storage."""

    def __init__(self):
        self.storages = {}

    def tensor(self, array, kind=None, offset=0, shape=None, strides=None, size=None):
        """Opcodes that rebuild a tensor of the storage that an array's memory is."""
        key = str(len(self.storages))
        self.storages[key] = array.tobytes()
        strides = [n // array.itemsize for n in array.strides] if strides is None else strides
        storage = b"(" + text("storage") + f"ctorch\n{kind or STORAGES[array.dtype.name]}Storage\n".encode()
        storage += text(key) + text("cpu") + numbers([array.size if size is None else size])[1:-1] + b"tQ"
        place = b"J" + struct.pack("<i", offset) + numbers(array.shape if shape is None else shape) + numbers(strides)
        return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + place + b"\x89ccollections\nOrderedDict\n)RtR"

    def write(self, path, content, compression=zipfile.ZIP_STORED):
        with zipfile.ZipFile(path, "w", compression) as archive:
            archive.writestr("archive/data.pkl", b"\x80\x02" + content + b".")
            archive.writestr("archive/byteorder", "little")
            for key, data in self.storages.items():
                archive.writestr(f"archive/data/{key}", data)


def mapping(items):
    return b"}(" + b"".join(text(name) + value for name, value in items.items()) + b"u"


def state_dict(items):
    """An OrderedDict with its attribute _metadata."""
    filled = b"ccollections\nOrderedDict\n)R(" + b"".join(text(name) + value for name, value in items.items())
    return filled + b"u" + mapping({"_metadata": b"}"}) + b"b"


@pytest.mark.parametrize("dtype", STORAGES)
def test_state_dicts(tmp_path, dtype):
    file = TorchFile()
    arrays = {"a.weight": np.arange(1, 13).reshape(3, 4).astype(dtype), "a.bias": np.ones(3, dtype)}
    arrays["w"] = pruned(dtype=dtype)
    file.write(tmp_path / "a.pt", state_dict({name: file.tensor(array) for name, array in arrays.items()}))
    wide = "float32" if dtype == "float16" else dtype
    same(fs.load_weights(tmp_path / "a.pt"), {name: array.astype(wide) for name, array in arrays.items()})


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_checkpoints(tmp_path, key):
    file, w = TorchFile(), pruned()
    inner = state_dict({"w": b"ctorch._utils\n_rebuild_parameter\n(" + file.tensor(w) + b"\x88}tR", "step": b"K\x03"})
    other = b"cargparse\nNamespace\n)\x81" + mapping({"lr": b"G" + struct.pack(">d", 0.1)}) + b"b"
    file.write(tmp_path / "a.pt", mapping({"epoch": b"K\x07", key: inner, "arguments": other, "best": file.tensor(w)}))
    same(fs.load_weights(tmp_path / "a.pt"), {"w": w})


def test_views_of_a_storage(tmp_path):
    file, held = TorchFile(), np.arange(1, 25, dtype=np.float32)
    views = {
        "transposed": file.tensor(held, shape=(4, 6), strides=(1, 4)),
        "part": file.tensor(held, offset=5, shape=(3,), strides=(2,)),
        "expanded": file.tensor(held, shape=(5, 2), strides=(0, 1)),
        "empty": file.tensor(held, offset=24, shape=(0, 7), strides=(7, 1)),
    }
    file.write(tmp_path / "a.pt", state_dict(views))
    same(
        fs.load_weights(tmp_path / "a.pt"),
        {
            "transposed": held.reshape(6, 4).T,
            "part": held[5:10:2],
            "expanded": np.broadcast_to(held[:2], (5, 2)),
            "empty": np.ones((0, 7), np.float32),
        },
    )


@pytest.mark.parametrize("layout", ["coo", "csr"])
def test_sparse_tensors_of_torch(tmp_path, layout):
    file, W = TorchFile(), fs.csr(pruned())
    rows = np.repeat(np.arange(12), np.diff(W.indptr))
    places = [np.stack([rows, W.indices]).astype(np.int64)] if layout == "coo" else [W.indptr, W.indices.astype("i8")]
    parts = [file.tensor(np.ascontiguousarray(array)) for array in (*places, W.data)]
    size = b"ctorch\nSize\n(" + numbers(W.shape) + b"tR"
    order = [*parts, size]
    name = b"ctorch.serialization\n_get_layout\n(" + text(f"torch.sparse_{layout}") + b"tR"
    tensor = b"ctorch._utils\n_rebuild_sparse_tensor\n(" + name + b"(" + b"".join(order) + b"ttR"
    file.write(tmp_path / "a.pt", mapping({"w": tensor}))
    same(fs.load_weights(tmp_path / "a.pt"), {"w": W.toarray()})


def test_code_in_pickles_does_not_run(tmp_path):
    file, mark = TorchFile(), tmp_path / "ran"
    call = b"cos\nmkdir\n(" + text(str(mark)) + b"tR"
    file.write(tmp_path / "a.pt", mapping({"w": file.tensor(pruned()), "evil": call}))
    assert list(fs.load_weights(tmp_path / "a.pt")) == ["w"]
    file.write(tmp_path / "b.pt", call)
    with pytest.raises(fs.FileFormatError, match=r"an object of os\.mkdir, expected a state_dict"):
        fs.load_weights(tmp_path / "b.pt")
    assert not mark.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": (12, 21)}, "reaches to element"),
        ({"offset": -1}, "offset -1"),
        ({"offset": 1}, "reaches to element 240 of a storage of 240"),
        ({"strides": (20, -1)}, "expected sizes of at least 0"),
        ({"strides": (20,)}, "strides (20,)"),
        ({"shape": (2**30, 20), "strides": (0, 1)}, "repeats the elements"),
        ({"size": 241}, "has 960 bytes, expected 964"),
        ({"kind": "Quantized"}, "expected one of DoubleStorage"),
    ],
)
def test_tensors_that_do_not_fit_their_storage(tmp_path, changes, message):
    file = TorchFile()
    file.write(tmp_path / "a.pt", mapping({"w": file.tensor(pruned(), **changes)}))
    with pytest.raises(fs.FileFormatError, match=re.escape(message)):
        fs.load_weights(tmp_path / "a.pt")


def test_other_files_of_torch(tmp_path):
    file = TorchFile()
    module = b"ctorch.nn.modules.linear\nLinear\n)\x81}b"
    for content, message in ((module, r"expected a state_dict: torch\.save\(model\.state_dict"), (b"}", "no tensors")):
        file.write(tmp_path / "a.pt", content)
        with pytest.raises(fs.FileFormatError, match=message):
            fs.load_weights(tmp_path / "a.pt")
    file.write(tmp_path / "a.pt", mapping({"w": file.tensor(pruned())}), zipfile.ZIP_DEFLATED)
    with pytest.raises(fs.FileFormatError, match="not compressed"):
        fs.load_weights(tmp_path / "a.pt")
    (tmp_path / "old.pt").write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.")
    with pytest.raises(fs.FileFormatError, match=r"PyTorch's format before 1\.6"):
        fs.load_weights(tmp_path / "old.pt")


@pytest.mark.F2
@pytest.mark.parametrize("field", ["compressed", "uncompressed", "both"])
def test_sizes_of_a_zip_entry_beyond_the_file_are_refused_before_memory_is_taken(tmp_path, field):
    file, path = TorchFile(), tmp_path / "a.pt"
    file.write(path, mapping({"w": file.tensor(pruned())}))
    data, refused = path.read_bytes(), 0
    at = data.find(b"PK\1\2")
    while at >= 0:  # an entry of the directory: its sizes stand behind 20 bytes
        first = {"compressed": 20, "uncompressed": 24, "both": 20}[field]
        huge = (2**30).to_bytes(4, "little") * (2 if field == "both" else 1)
        path.write_bytes(data[: at + first] + huge + data[at + first + len(huge) :])
        tracemalloc.start()
        with pytest.raises(fs.FileFormatError):
            fs.load_weights(path)
        assert tracemalloc.get_traced_memory()[1] < 2**24
        tracemalloc.stop()
        at, refused = data.find(b"PK\1\2", at + 4), refused + 1
    assert refused == 3


# ---------------------------------------------------------------- masks and bitmasks


NAMES = [
    ("a.weight_orig", "a.weight_mask"),
    ("a.parametrizations.weight.original", "a.parametrizations.weight.0.mask"),
]


@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize("mask_type", ["float32", "bool"])
def test_masks_are_applied(tmp_path, names, mask_type):
    w = np.random.default_rng(1).normal(size=(6, 8)).astype("f")
    mask = (np.arange(48).reshape(6, 8) % 4 == 0).astype(mask_type)
    w[0, 1] = np.inf  # behind the mask
    save_file({names[0]: w, names[1]: mask, "b_mask": np.ones(3, "f")}, tmp_path / "a")
    same(fs.load_weights(tmp_path / "a"), {"a.weight": np.where(mask, w, 0), "b_mask": np.ones(3, "f")})
    save_file({names[0]: w, names[1]: mask[:2]}, tmp_path / "a")
    with pytest.raises(fs.FileFormatError, match=r"has shape \(2, 8\), expected \(6, 8\)"):
        fs.load_weights(tmp_path / "a")


def bitmask(w):
    kept = w != 0
    return {
        "l.weight.compressed": w[kept], "l.weight.bitmask": np.packbits(kept, axis=1, bitorder="little"),
        "l.weight.shape": np.array(w.shape), "l.weight.row_offsets": np.cumsum(kept.sum(1)) - kept.sum(1),
    }  # fmt: skip


@pytest.mark.parametrize("written", ["l", "l.weight"])  # the library's writer leaves "weight" out
@pytest.mark.parametrize("shape", [(12, 20), (3, 16), (5, 1)])
def test_bitmasks_of_compressed_tensors(tmp_path, shape, written):
    w = pruned(shape)
    w[-1, -1] = 1
    parts = {name.replace("l.weight", written): part for name, part in bitmask(w).items()}
    save_file({**parts, "l.bias": np.ones(3, "f")}, tmp_path / "a")
    same(fs.load_weights(tmp_path / "a"), {"l.weight": w, "l.bias": np.ones(3, "f")})
    save_file({**parts, "l.weight": w}, tmp_path / "a")
    with pytest.raises(fs.FileFormatError, match="is stored twice"):
        fs.load_weights(tmp_path / "a")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("shape", lambda a: a + 9, "expected two sizes, uint8 (21, 4)"),
        ("shape", lambda a: a[:1], "expected two sizes"),
        ("shape", lambda a: -a, "expected sizes of at least 0"),
        ("bitmask", lambda a: a[:, :-1].copy(), "expected two sizes, uint8 (12, 3)"),
        ("bitmask", lambda a: a | 128, "points outside of shape (12, 20)"),
        ("bitmask", lambda a: a | 1, "its bitmask has"),
        ("compressed", lambda a: a[1:], "values, its bitmask has"),
        ("compressed", lambda a: a.astype("i4"), "expected two sizes, uint8 (12, 3) and floats"),
    ],
)
def test_bitmasks_that_do_not_fit(tmp_path, name, change, message):
    parts = bitmask(pruned())
    save_file({**parts, f"l.weight.{name}": change(parts[f"l.weight.{name}"])}, tmp_path / "a")
    with pytest.raises(fs.FileFormatError, match=re.escape(message)):
        fs.load_weights(tmp_path / "a")


# ---------------------------------------------------------------- shards


def write_shards(folder, places=None):
    w = pruned()
    shards = {"model-1.safetensors": {"a.weight_orig": np.ones((12, 20), "f"), "a.bias": np.ones(12, "f")},
              "model-2.safetensors": {"a.weight_mask": (w != 0).astype("f")}}  # fmt: skip
    for file, arrays in shards.items():
        save_file(arrays, folder / file)
    weight_map = places or {name: file for file, arrays in shards.items() for name in arrays}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return {"a.weight": (w != 0).astype("f"), "a.bias": np.ones(12, "f")}


def test_shards_with_an_index(tmp_path):
    expected = write_shards(tmp_path)
    same(fs.load_weights(tmp_path), expected)
    same(fs.load_weights(tmp_path / "model.safetensors.index.json"), expected)


def test_links_of_hugging_faces_cache(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0a1b"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    expected = write_shards(snapshot)
    for i, path in enumerate(sorted(snapshot.iterdir())):
        path.rename(blobs / str(i))
        path.symlink_to(os.path.relpath(blobs / str(i), snapshot))
    same(fs.load_weights(snapshot), expected)


@pytest.mark.parametrize("place", ["../a.safetensors", "/etc/passwd", "", "none.safetensors", "out/a.safetensors"])
def test_shards_in_other_places(tmp_path, place):
    inside = tmp_path / "inside"
    (inside / "real").mkdir(parents=True)
    save_file({"a.bias": np.ones(3)}, tmp_path / "a.safetensors")
    (inside / "out").symlink_to(tmp_path)
    write_shards(inside, {"a.bias": place})
    with pytest.raises(fs.FileFormatError, match=f"shard '{re.escape(place)}'"):
        fs.load_weights(inside)


@pytest.mark.parametrize(
    "weight_map", [{"b": "model-1.safetensors"}, [], {"a": 3}, {"a": "model.safetensors.index.json"}]
)
def test_indexes_that_do_not_fit(tmp_path, weight_map):
    write_shards(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(fs.FileFormatError):
        fs.load_weights(tmp_path)


# ---------------------------------------------------------------- damage


def valid_files(folder):
    save_file({"a": pruned(), **bitmask(pruned())}, folder / "safetensors")
    file = TorchFile()
    file.write(folder / "torch", state_dict({"a": file.tensor(pruned()), "b": file.tensor(np.ones(3))}))
    write_shards(folder)
    return [folder / "safetensors", folder / "torch", folder / "model.safetensors.index.json"]


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_damage_is_one_error(tmp_path, kind):
    path = valid_files(tmp_path)[kind]
    content, rng, refused = path.read_bytes(), np.random.default_rng(kind), 0
    for _ in range(250):
        damaged = bytearray(content)
        if rng.random() < 0.3:
            del damaged[rng.integers(len(damaged)) :]
        else:
            for at in rng.integers(min(len(damaged), rng.choice([60, 2000])), size=rng.integers(1, 4)):
                damaged[at] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            fs.load_weights(path)
        except fs.FileFormatError as error:
            assert str(path) in str(error) or "shard" in str(error) or "tensor" in str(error)  # noqa: PT017
            refused += 1
    assert refused > 50


MEMORY = """
import sys
import fastsparse as fs
from bench.fuzz_files import limit_memory
fs.load_weights(sys.argv[1])
limit_memory(256 << 20)
for path in sys.argv[2:]:
    try:
        fs.load_weights(path)
    except fs.FileFormatError:
        continue
    sys.exit(f"loaded {path}")
"""


@pytest.mark.F2
def test_what_stands_in_many_places_is_not_taken_many_times(tmp_path):
    """Pickles and headers say in a few bytes again what took many: memory and time follow the file's size."""
    w = np.ones(2**20, np.float32)
    entry = {"dtype": "F32", "shape": [2**20], "data_offsets": [0, w.nbytes]}
    header = json.dumps({str(i): entry for i in range(500)}).encode()
    (tmp_path / "overlapping").write_bytes(struct.pack("<Q", len(header)) + header + w.tobytes())
    for name, shape, stride in (("views", 2**20, 1), ("expanded", 2**24, 0)):
        file = TorchFile()
        tensor = file.tensor(w, shape=(shape,), strides=(stride,))
        file.write(tmp_path / name, state_dict({str(i): tensor for i in range(500)}))
    nested = b")" + b"2\x86" * 60  # 2**60 empty tuples
    rebuild, kind, place = b"ctorch._utils\n_rebuild_", b"ctorch\nFloatStorage\n", text("0") + text("cpu") + b"K\x01tQ"
    pairs = b"](" + b"".join(b"J" + struct.pack("<i", n) + b"K\x00\x86" for n in range(50000)) + b"eq\xff"
    pickles = {
        "class": nested + nested + b"\x93",
        "storage": b"(" + text("storage") + nested + place,
        "shape": rebuild + b"tensor_v2\n((" + text("storage") + kind + place + b"K\0" + nested * 2 + b"tR",
        "layout": rebuild + b"sparse_tensor\n" + nested + nested + b"\x86R",
        "dicts": pairs + b"(" + b"ccollections\nOrderedDict\nh\xff\x85R" * 3000 + b"l",
        "stack": b"N" * 200000 + b"(t" * 200000,
    }  # fmt: skip
    for name, content in pickles.items():
        file = TorchFile()
        file.storages["0"] = b"0000"
        file.write(tmp_path / name, mapping({"w": content}))
    valid = valid_files(tmp_path)[1]
    paths = [str(tmp_path / name) for name in ("overlapping", "views", "expanded", *pickles)]
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(valid), *paths], capture_output=True, text=True, timeout=300, check=False,
        cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_archives_that_point_before_the_file(tmp_path):
    path = valid_files(tmp_path)[1]
    content = bytearray(path.read_bytes())
    directory = content.rindex(b"PK\x05\x06")
    content[directory + 12 : directory + 16] = struct.pack("<I", 2**31)  # size of the central directory
    path.write_bytes(content)
    with pytest.raises(fs.FileFormatError, match="is damaged"):
        fs.load_weights(path)


def test_what_is_no_file_of_weights(tmp_path):
    with pytest.raises(FileNotFoundError):
        fs.load_weights(tmp_path / "nothing")
    with pytest.raises(fs.FileFormatError, match=r"is a folder without model\.safetensors\.index\.json"):
        fs.load_weights(tmp_path)
    for content in (b"", b"hello, this is text", b"\0" * 100):
        (tmp_path / "a").write_bytes(content)
        with pytest.raises(fs.FileFormatError, match="is none of them, expected a safetensors file"):
            fs.load_weights(tmp_path / "a")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(fs.FileFormatError, match="no regular file"):
        fs.load_weights(tmp_path / "fifo")
