"""Model files: the same bits come back; writing is atomic (F1); damage is one documented error (F2)."""

from __future__ import annotations

import json
import os
import pickle
import stat
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import fastsparse as fs
from fastsparse import files, nn
from fastsparse.nn.spec import LAYERS

pytest.importorskip("bench.fuzz_files")
guarded = pytest.importorskip("bench.guarded")
ROOT = Path(__file__).parents[1]


def _small() -> nn.Sequential:
    return nn.Sequential(nn.SparseLinear(8, 4, sparsity=0.5, rng=0), nn.ReLU())


def _everything() -> nn.Sequential:
    rng = np.random.default_rng(0)
    f64: Any = {"dtype": "float64", "rng": rng}
    return nn.Sequential(
        nn.SparseConv2d(2, 4, (3, 2), (1, 2), ((1, 0), (2, 2)), (1, 2), 2, sparsity=0.4, activation="silu", **f64),
        nn.Conv2d(4, 4, 3, padding=1, bias=False, **f64),
        nn.BatchNorm2d(4, 1e-3, 0.3, dtype="float64"),
        *[
            layer()
            for layer in (
                nn.ReLU6,
                nn.LeakyReLU,
                nn.Tanh,
                nn.SiLU,
                nn.Hardswish,
                nn.Hardsigmoid,
                nn.GELU,
                nn.ReLU,
                nn.Sigmoid,
            )
        ],
        nn.GELU("tanh"),
        nn.MaxPool2d(2, 1, ((1, 1), (0, 1))),
        nn.AvgPool2d(2),
        nn.AdaptiveAvgPool2d((3, 2)),
        nn.Residual(nn.Sequential(nn.Conv2d(4, 4, 1, **f64), nn.ReLU()), activation="tanh"),
        nn.Residual(nn.SparseConv2d(4, 2, 1, **f64), nn.Conv2d(4, 2, 1, **f64)),
        nn.Flatten(),
        nn.Dropout(0.3, rng=0),
        nn.SparseLinear(12, 6, False, sparsity=0.5, activation="relu", **f64),
        nn.LayerNorm(6, 1e-4, dtype="float64"),
        nn.BatchNorm1d(6, dtype="float64"),
        nn.Linear(6, 3, activation="tanh", **f64),
        nn.Softmax(),
    )


@pytest.mark.R8
def test_a_model_comes_back_to_the_bit(tmp_path: Path, rng: Any) -> None:
    model, x = _everything(), rng.normal(size=(4, 2, 6, 7))
    model(x)  # moves the running statistics
    path = tmp_path / "model.safetensors"
    fs.save(model, path)
    again = fs.load(path)
    assert repr(again) == repr(model)
    assert not any(module.training for _, module in again.named_modules())
    np.testing.assert_array_equal(again(x), model.eval()(x))
    for (name, want), (other, got) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert name == other
        assert got.pattern == want.pattern
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got.value, want.value)
        assert got.value.flags.writeable
    fs.save(again, str(tmp_path / "again.safetensors"))
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_every_layer_can_be_saved(tmp_path: Path) -> None:
    joined = nn.Concat(None, nn.Upsample((1, 2), "bilinear"), None)
    grown = nn.SparseConvTranspose2d(2, 4, (3, 2), 3, 1, (2, 0), 2, False, rng=0)
    convs = nn.SparseConv1d(2, 3, 2, rng=0), nn.SparseConv3d(2, 3, 2, rng=0)
    table = nn.Embedding(4, 3, positions=5, sparse=True, rng=0)
    attention = nn.MultiheadAttention(4, 2, causal=True, output=nn.Linear(4, 4, rng=0), rng=0)
    encoder = nn.TransformerEncoderLayer(4, 2, 6, rng=0)
    others = nn.Sequential(*convs, joined, grown, table, attention, encoder, nn.RMSNorm(4))
    saved: set[str] = set()
    for model in (_everything(), others):
        fs.save(model, tmp_path / "m")
        assert repr(fs.load(tmp_path / "m")) == repr(model)
        saved |= {type(module).__name__ for _, module in model.named_modules()}
    assert saved == set(LAYERS)


def test_a_loaded_model_trains_on(tmp_path: Path) -> None:
    fs.save(_small(), tmp_path / "m")
    model = fs.load(tmp_path / "m").train()
    y = model(np.ones((3, 8), "f"))
    model.backward(np.ones_like(y))
    fs.training.SGD(model.parameters(), 0.1).step()
    assert not np.array_equal(model(np.ones((3, 8), "f")), y)


def test_parameters_that_are_one_stay_one(tmp_path: Path) -> None:
    layers: Any = [nn.SparseLinear(6, 6, rng=0), nn.Linear(6, 6, rng=1), nn.SparseLinear(6, 6, rng=2), nn.Linear(6, 6)]
    layers[2].values, layers[3].weight = layers[0].values, layers[1].weight
    model = nn.Sequential(layers[0], nn.Residual(layers[1]), *layers[2:])
    fs.save(model, tmp_path / "m")
    again: Any = fs.load(tmp_path / "m")
    assert again[2].values is again[0].values
    assert again[3].weight is again[1].body.weight
    assert again[3].bias is not again[1].body.bias
    np.testing.assert_array_equal(again(np.eye(6, dtype="f")), model.eval()(np.eye(6, dtype="f")))


@pytest.mark.F2
@pytest.mark.parametrize(
    "tied",
    [
        ["0.bias"], {"0.bias": 1}, {"0.bias": "2.bias"}, {"2.bias": "0.bias"}, {"0.values": "0.bias"}, {"x": "0.bias"},
        {"1.values": "0.values"},
    ],
)  # fmt: skip
def test_what_cannot_be_one_parameter_is_refused(tied: Any, tmp_path: Path) -> None:
    model = nn.Sequential(nn.SparseLinear(6, 4, rng=0), nn.SparseLinear(4, 6, rng=1))
    metadata = {"architecture": files.to_spec(model), "tied": tied}
    files.write(tmp_path / "m", "model", model.state_dict(), metadata)
    with pytest.raises(fs.FileFormatError, match=r"tied is .*, expected names|expected two of one shape and pattern"):
        fs.load(tmp_path / "m")


def test_any_safetensors_reader_finds_the_arrays(tmp_path: Path) -> None:
    model = _small()
    fs.save(model, tmp_path / "m.safetensors")
    arrays = load_file(tmp_path / "m.safetensors")
    assert set(arrays) == {"0.values", "0.bias", "0.indptr", "0.indices"}
    np.testing.assert_array_equal(arrays["0.values"], model[0].values.value)
    header = (tmp_path / "m.safetensors").read_bytes()
    length = struct.unpack("<Q", header[:8])[0]
    metadata = json.loads(json.loads(header[8 : 8 + length])["__metadata__"]["fastsparse"])
    assert metadata["format"] == "fastsparse model"
    assert metadata["format_version"] == 1
    assert metadata["architecture"]["children"]["0"]["arguments"]["out_features"] == 4


# --- F1 -----------------------------------------------------------------------------------------


@pytest.mark.F1
def test_what_cannot_be_saved_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    fs.save(_small(), path)
    old = path.read_bytes()
    with pytest.raises(ValueError, match="entry 'x' has dtype complex64, expected one of float32"):
        files.write(path, "model", {"x": np.ones(3, np.complex64)}, {})
    with pytest.raises(TypeError):
        files.write(path, "model", {}, {"x": object()})
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["m.safetensors"]


@pytest.mark.F1
def test_arrays_of_any_layout_are_aligned_and_come_back(tmp_path: Path) -> None:
    arrays = {
        "bytes": np.arange(3, dtype=np.uint8), "none": np.zeros((0, 3)), "scalar": np.array(2.0),
        "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T, "gaps": np.arange(9)[::3],
        "other": np.arange(3, dtype=">i4"),
    }  # fmt: skip
    files.write(tmp_path / "f", "test", arrays, {})
    found, _ = files.read(tmp_path / "f", "test")
    assert set(found) == set(arrays)
    for name, array in found.items():
        assert array.shape == arrays[name].shape
        assert array.dtype == arrays[name].dtype.newbyteorder("=")
        np.testing.assert_array_equal(array, arrays[name])
    assert len((tmp_path / "f").read_bytes()) % 8 == sum(a.nbytes for a in arrays.values()) % 8


@pytest.mark.F1
def test_saving_follows_the_umask_and_symbolic_links(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    fs.save(_small(), tmp_path / "real" / "m")
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "real" / "m").stat().st_mode) == 0o666 & ~umask
    (tmp_path / "link").symlink_to(tmp_path / "real" / "m")
    fs.save(_everything(), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert len(fs.load(tmp_path / "real" / "m")) == len(_everything())


class Trap:
    """What unpickling it does is seen."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, ("sprung",)


def test_compile_says_what_opens_a_file_of_ours(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    path = tmp_path / "model.safetensors"
    fs.save(nn.Sequential(nn.Linear(4, 2, rng=0)), path)
    with pytest.raises(fs.FileFormatError, match=r"no ONNX model but a file of fastsparse, for fs\.load or fs\.load"):
        fs.compile(path)


@pytest.mark.F1
def test_pickle_is_never_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "m"
    for content in (pickle.dumps(Trap()), pickle.dumps({"architecture": Trap()}, protocol=0)):
        path.write_bytes(content)
        for load in (fs.load, fs.load_engine):
            with pytest.raises(fs.FileFormatError):
                load(path)
    with path.open("wb") as file:
        np.save(file, np.array([Trap()], dtype=object), allow_pickle=True)
    with pytest.raises(fs.FileFormatError):
        fs.load(path)
    assert not (tmp_path / "sprung").exists()


# --- F2 -----------------------------------------------------------------------------------------


@pytest.mark.F2
def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    path = tmp_path / "m"
    fs.save(_small(), path)
    data, want = path.read_bytes(), fs.load(path).state_dict()
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 0x01 << place % 8
        path.write_bytes(changed)
        try:
            got = fs.load(path).state_dict()
        except fs.FileFormatError:
            continue
        assert chr(data[place]).isspace(), place  # the header's padding
        assert all(np.array_equal(got[name], want[name]) for name in want)


@pytest.mark.F2
def test_every_cut_is_found(tmp_path: Path) -> None:
    path = tmp_path / "m"
    fs.save(_small(), path)
    data = path.read_bytes()
    for length in range(0, len(data), 3):
        path.write_bytes(data[:length])
        with pytest.raises(fs.FileFormatError):
            fs.load(path)


@pytest.mark.F2
@pytest.mark.F4
@pytest.mark.parametrize("name", ["model", "engine", "graph"])
def test_f2_f4_damaged_and_hostile_files_are_refused_or_run(name: str) -> None:
    failures: list[str] = []
    counts = guarded.supervise("fuzz_files", name, 0, 0, 160, failures.append)
    assert not failures
    assert counts["refused"] > 60
    assert counts["ran"] > 10


HUGE = """
import json, resource, sys
import numpy as np
import fastsparse as fs
from fastsparse import files, nn
from bench.fuzz_files import limit_memory

path = sys.argv[1]
fs.save(nn.Sequential(nn.Linear(4, 4)), path)
try:
    fs.load(path)
finally:
    limit_memory(64 << 20)
arrays, metadata = files.read(path, "model")

def attempt(layer, arguments, arrays):
    spec = {"type": "Sequential", "arguments": {}, "children": {"0": {"type": layer, "arguments": arguments}}}
    files.write(path, "model", arrays, {"architecture": spec})
    try:
        fs.load(path)
    except fs.FileFormatError:
        return
    sys.exit(f"loaded {layer} {arguments}")

for n in (2**20, 2**31, 2**40, 2**62, 2**63, 10**30):
    attempt("Linear", {"in_features": n, "out_features": n}, arrays)
    attempt("Linear", {"in_features": 4, "out_features": n}, arrays)
    attempt("Conv2d", {"in_channels": n, "out_channels": 4, "kernel_size": n}, arrays)
    attempt("BatchNorm2d", {"num_features": n}, arrays)
    attempt("LayerNorm", {"normalized_shape": [n, n]}, arrays)
    attempt("Embedding", {"num_embeddings": n, "embedding_dim": 4}, arrays)
    small = {"0.indptr": np.zeros(5, np.int64), "0.indices": np.zeros(0, np.int32), "0.values": np.zeros(0, "f")}
    attempt("SparseLinear", {"in_features": 4, "out_features": n}, small)
    attempt("SparseLinear", {"in_features": n, "out_features": n}, small)
    attempt("SparseConv2d", {"in_channels": 4, "out_channels": n, "kernel_size": 3}, small)
    attempt("SparseConvTranspose2d", {"in_channels": 4, "out_channels": n, "kernel_size": 3}, small)
    attempt("Concat", {"count": n}, {})
    attempt("MultiheadAttention", {"embed_dim": n, "num_heads": 1, "causal": False}, {})
deep = {"type": "ReLU", "arguments": {}}
for _ in range(200):
    deep = {"type": "Sequential", "arguments": {}, "children": {"0": deep}}
files.write(path, "model", {}, {"architecture": deep})
try:
    fs.load(path)
except fs.FileFormatError as error:
    assert "nested more than 64 layers deep" in str(error), error
else:
    sys.exit("loaded a deep one")
files.write(path, "model", {}, {"architecture": "X"})
text = open(path, "rb").read()
print("done")
"""


@pytest.mark.F2
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs a limit on memory as Linux has it")
def test_huge_declared_shapes_take_no_memory(run_python: Callable[..., Any], tmp_path: Path) -> None:
    assert run_python(HUGE, str(tmp_path / "m"), OPENBLAS_NUM_THREADS="1").stdout == "done\n"


SPARSE = {"indptr": np.zeros(5, np.int64), "indices": np.zeros(0, np.int32), "values": np.zeros(0, "f")}
DECLARED: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("Linear", {"in_features": 4, "out_features": 2**20}, {"weight": np.zeros((4, 4), "f")}),
    ("Conv2d", {"in_channels": 64, "out_channels": 64, "kernel_size": 16}, {}),
    ("BatchNorm2d", {"num_features": 2**20}, {}),
    ("LayerNorm", {"normalized_shape": 2**20}, {}),
    ("Embedding", {"num_embeddings": 2**20, "embedding_dim": 4}, {}),
    ("SparseLinear", {"in_features": 4, "out_features": 2**20}, SPARSE),
    ("SparseLinear", {"in_features": 2**20, "out_features": 4, "sparsity": 0.0}, {"values": np.zeros(0, "f")}),
]


@pytest.mark.F2
@pytest.mark.parametrize(("layer", "arguments", "arrays"), DECLARED)
def test_what_a_file_declares_is_not_allocated(layer: str, arguments: Any, arrays: Any, tmp_path: Path) -> None:
    _written(tmp_path / "m", {"type": layer, "arguments": arguments}, arrays)
    tracemalloc.start()
    try:
        with pytest.raises(fs.FileFormatError):
            fs.load(tmp_path / "m")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 500_000  # each of them declares at least 4 MB


def _written(path: Path, architecture: Any, arrays: dict[str, Any] | None = None) -> None:
    files.write(path, "model", {} if arrays is None else arrays, {"architecture": architecture})


LINEAR = {"in_features": 2, "out_features": 1, "bias": False}
CSR = {"indptr": np.array([0, 1]), "indices": np.array([1], np.int32), "values": np.ones(1, "f")}
HOSTILE: list[tuple[Any, dict[str, Any], str]] = [
    ({"type": "os.system", "arguments": {"x": 1}}, {}, "the model has the type 'os.system', expected a layer of fast"),
    ({"type": "Module", "arguments": {}}, {}, "the model has the type 'Module', expected a layer of fastsparse.nn"),
    ({"type": ["ReLU"], "arguments": {}}, {}, "the model has the type ['ReLU'], expected a layer"),
    ([], {}, "the description of the model is not an object with type, arguments and children"),
    ({"type": "ReLU", "arguments": [], "children": {}}, {}, "the arguments and children of the model are not objects"),
    ({"type": "ReLU", "arguments": {"training": 1}}, {}, "ReLU() takes no arguments"),
    (
        {"type": "ReLU", "arguments": {}, "children": {"0": {"type": "ReLU", "arguments": {}}}},
        {},
        "ReLU() takes no arguments",
    ),
    (
        {"type": "Sequential", "arguments": {}, "children": {"x": {"type": "ReLU", "arguments": {}}}},
        {},
        "the children of the model are ['x'], which do not fit the type Sequential",
    ),
    ({"type": "SparseLinear", "arguments": LINEAR}, {}, "there is no entry 'indptr'"),
    (
        {"type": "SparseLinear", "arguments": LINEAR},
        {**CSR, "indices": np.array([2], np.int32)},
        "indices[0] is 2, expected 0 <= column < 2 to match shape (1, 2)",
    ),
    (
        {"type": "SparseLinear", "arguments": LINEAR},
        {**CSR, "indptr": np.array([0, 2])},
        "indptr[1] is 2, expected 1, the length of indices",
    ),
    (
        {"type": "SparseLinear", "arguments": LINEAR},
        {**CSR, "values": np.ones(2, "f")},
        "state entry 'values' has shape (2,), expected (1,)",
    ),
    (
        {"type": "SparseLinear", "arguments": {**LINEAR, "activation": "swosh"}},
        CSR,
        "activation is 'swosh', expected one of",
    ),
    (
        {"type": "SparseLinear", "arguments": LINEAR},
        {**CSR, "extra": np.ones(1)},
        "state has the entry 'extra', which the model does not have",
    ),
]


@pytest.mark.F2
@pytest.mark.parametrize(("architecture", "arrays", "message"), HOSTILE)
def test_hostile_files_are_refused_with_the_reason(
    architecture: Any, arrays: Any, message: str, tmp_path: Path
) -> None:
    _written(tmp_path / "m", architecture, arrays)
    with pytest.raises(fs.FileFormatError) as caught:
        fs.load(tmp_path / "m")
    prefix = f"{tmp_path / 'm'} is damaged or not a fastsparse file: "
    assert str(caught.value).startswith(prefix)
    assert message in str(caught.value)


@pytest.mark.F2
def test_other_files_are_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / "m"
    save_file({"x": np.ones(3)}, path)
    with pytest.raises(fs.FileFormatError, match="its metadata is not that of fastsparse"):
        fs.load(path)
    path.write_bytes(b"PK\x03\x04" * 100)
    with pytest.raises(fs.FileFormatError, match="is damaged or not a fastsparse file"):
        fs.load(path)
    files.write(path, "model", {}, {"architecture": {"type": "ReLU", "arguments": {}}})
    path.write_bytes(path.read_bytes().replace(b'format_version\\": 1', b'format_version\\": 2'))
    with pytest.raises(fs.FileFormatError, match="its format version is 2, expected 1"):
        fs.load(path)
    with pytest.raises(FileNotFoundError):
        fs.load(tmp_path / "none")
    with pytest.raises(OSError):  # noqa: PT011
        fs.load(tmp_path)


@pytest.mark.F2
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="FIFOs are POSIX's")
def test_what_is_no_file_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for load in (fs.load, fs.load_engine):
        for path in (tmp_path / "fifo", "/dev/null"):
            with pytest.raises(fs.FileFormatError, match="is no regular file"):
                load(path)
