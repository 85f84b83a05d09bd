"""Layers on rows in engines: layer norm, softmax, and embeddings, whose input is integers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastsparse as fs
from fastsparse import nn, training
from tests.engine.networks import exact
from tests.engine.poison import poisoned

ROWS, LENGTH, DIMENSIONS = 11, 5, 6


def model(dtype: str = "float32") -> nn.Sequential:
    table = nn.Embedding(ROWS, DIMENSIONS, dtype=dtype, rng=0)
    features = LENGTH * DIMENSIONS
    return nn.Sequential(
        nn.Sequential(table, nn.Dropout(0.5, rng=0)),
        nn.LayerNorm(DIMENSIONS, dtype=dtype),
        nn.Flatten(),
        nn.SparseLinear(features, 20, sparsity=0.5, activation="relu", dtype=dtype, rng=0),
        nn.LayerNorm(20, dtype=dtype),
        nn.Linear(20, 3, dtype=dtype, rng=0),
        nn.Softmax(),
    ).eval()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("batch", [1, 4, 40])
def test_integers_go_in(dtype: str, batch: int, rng: Any, tmp_path: Any) -> None:
    network = model(dtype)
    engine = fs.compile(network, (batch, LENGTH))
    engine.save(tmp_path / "engine.safetensors")
    again = fs.load_engine(tmp_path / "engine.safetensors")
    assert (engine.input_shape, engine.output_shape) == ((batch, LENGTH), (batch, 3)) == (again.input_shape, (batch, 3))
    for kind in ("int64", "uint8", ">i4"):
        x = rng.integers(0, ROWS, (batch, LENGTH)).astype(kind)
        want, bound = exact(network, x, np.dtype(dtype))
        y = engine(x)
        assert y.dtype == dtype
        assert (abs(y - want) <= bound).all()
        assert (abs(network(x) - want) <= bound).all()
        np.testing.assert_array_equal(again(x), y)


def test_one_integer_a_sample(rng: Any) -> None:
    network = nn.Sequential(nn.Embedding(7, 9, rng=0), nn.SparseLinear(9, 4, sparsity=0.3, rng=0))
    x = rng.integers(0, 7, 6)
    np.testing.assert_allclose(fs.compile(network, (6,))(x), network(x), rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match=r"input_shape is \(\), expected at least \(batch,\)"):
        fs.compile(network, ())


def test_an_embedding_alone_gives_its_rows(rng: Any) -> None:
    network = nn.Sequential(nn.Embedding(7, 9, rng=0))
    x = rng.integers(0, 7, (6, 4))
    np.testing.assert_array_equal(fs.compile(network, (6, 4))(x), network(x))


def test_the_engine_keeps_a_table_of_its_own(rng: Any) -> None:
    network = model()
    engine = fs.compile(network, (4, LENGTH))
    x = rng.integers(0, ROWS, (4, LENGTH))
    before = engine(x)
    next(iter(network.named_parameters()))[1].value = np.zeros((ROWS, DIMENSIONS), "f4")
    np.testing.assert_array_equal(engine(x), before)


def test_bad_integers_are_refused() -> None:
    engine = fs.compile(model(), (4, LENGTH))
    with pytest.raises(TypeError, match=r"^x has dtype float32, expected integers$"):
        engine(np.zeros((4, LENGTH), "f4"))
    for value in (-1, ROWS):
        with pytest.raises(ValueError, match=rf"^x goes from .*, expected 0 to {ROWS - 1}$"):
            engine(np.full((4, LENGTH), value))
    with pytest.raises(ValueError, match=rf"^x has shape \(4, 3\), expected \(N, {LENGTH}\) as compiled$"):
        engine(np.zeros((4, 3), int))


def test_the_report_has_every_layer() -> None:
    report = fs.compile(model(), (4, LENGTH)).report()
    found = [(row.operator, row.kernel) for row in report.rows if row.operator]
    assert [operator for operator, _ in found] == [
        "Embedding", "LayerNorm", "SparseLinear", "LayerNorm", "Linear", "Softmax",
    ]  # fmt: skip
    assert found[0][1] == "rows of a table"
    assert found[-1][1] == "row by row"
    assert fs.compile(model(), (4, LENGTH)).benchmark(0.01).calls >= 3


def test_what_cannot_be_compiled_is_named() -> None:
    late = nn.Sequential(nn.ReLU(), nn.Embedding(3, 2, rng=0))
    with pytest.raises(fs.UnsupportedOperatorError, match=r"layer 1 is an Embedding, .* as the first layer"):
        fs.compile(late, (1, 4))
    inside = nn.Sequential(nn.Residual(nn.Embedding(3, 2, rng=0)))
    with pytest.raises(fs.UnsupportedOperatorError, match=r"layer 0\.body is an Embedding"):
        fs.compile(inside, (1, 4))
    with pytest.raises(fs.UnsupportedOperatorError, match="a Softmax is along axis 1 of 4, expected the last one"):
        fs.compile(nn.Sequential(nn.Softmax(1)), (1, 3, 4, 5))
    with pytest.raises(ValueError, match=r"layer 0 \(LayerNorm\) an x of \(N, 3, 4\), expected \(N, ..., 5\)"):
        fs.compile(nn.Sequential(nn.LayerNorm(5)), (1, 3, 4))


@pytest.mark.parametrize("field", ["embedding", "scale", "eps"])
def test_damaged_descriptions_are_refused(field: str) -> None:
    from fastsparse.engine import serial

    arrays: dict[str, Any] = {}
    plain = serial.to_plain(fs.compile(model(), (4, LENGTH))._program, arrays)
    if field == "embedding":
        arrays[plain["lookups"][0]["table"]] = np.ones((3, 7), "f4")
    else:
        norm = next(node["operator"] for node in plain["nodes"] if node["operator"]["type"] == "LayerNorm")
        if field == "eps":
            norm["eps"] = -1.0
        else:
            arrays[norm["scale"]] = arrays[norm["shift"]] = np.ones(4, "f4")
    with pytest.raises(ValueError, match=r"embedding|gives shape|eps"):
        serial.from_plain(plain, arrays)


def gpt(dtype: str = "float32") -> nn.Sequential:
    layers = [
        nn.TransformerEncoderLayer(12, 3, 20, norm_first=True, causal=True, sparsity=0.6, dtype=dtype, rng=seed)
        for seed in range(2)
    ]
    table = nn.Embedding(ROWS, 12, positions=LENGTH, dtype=dtype, rng=0)
    return nn.Sequential(table, *layers, nn.RMSNorm(12, dtype=dtype), nn.Linear(12, ROWS, dtype=dtype, rng=1)).eval()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("batch", [1, 2, 19])
def test_a_gpt_of_sparse_layers(dtype: str, batch: int, rng: Any, tmp_path: Any) -> None:
    network = gpt(dtype)
    engine = fs.compile(network, (batch, LENGTH))
    x = rng.integers(0, ROWS, (batch, LENGTH))
    want = network(x)
    assert abs(engine(x) - want).max() <= 64 * np.finfo(dtype).eps * abs(want).max()
    engine.save(tmp_path / "engine")
    np.testing.assert_array_equal(fs.load_engine(tmp_path / "engine")(x), engine(x))
    x[:, -1] = (x[:, -1] + 1) % ROWS  # a later token changes nothing before it
    np.testing.assert_array_equal(engine(x)[:, :-1], fs.load_engine(tmp_path / "engine")(x)[:, :-1])
    assert abs(engine(x)[:, :-1] - want[:, :-1]).max() <= 64 * np.finfo(dtype).eps * abs(want).max()


def test_positions_are_checked() -> None:
    engine = fs.compile(gpt(), (1, LENGTH - 1))
    with pytest.raises(ValueError, match=rf"expected \(N, {LENGTH - 1}\) as compiled"):
        engine(np.zeros((1, LENGTH), int))
    with pytest.raises(ValueError, match=rf"expected \(N, tokens\) with at most {LENGTH} tokens"):
        fs.compile(gpt(), (1, LENGTH + 1))
    with pytest.raises(ValueError, match=rf"^x has shape \(1, {LENGTH + 1}\), expected \(N, tokens\) with at most"):
        gpt()(np.zeros((1, LENGTH + 1), int))
    with pytest.raises(ValueError, match=r"MultiheadAttention\) an x of \(N, 5, 6\), expected \(N, tokens, 4\)"):
        fs.compile(nn.Sequential(nn.MultiheadAttention(4, 2, rng=0)), (1, 5, 6))


def _two_texts() -> nn.Sequential:
    one = nn.Sequential(nn.Embedding(9, 4, rng=0), nn.Flatten(), nn.SparseLinear(20, 3, sparsity=0.5, rng=0))
    other = nn.Sequential(nn.Embedding(9, 6, positions=3, rng=1), nn.Flatten())
    return nn.Sequential(nn.Concat(one, other), nn.Linear(21, 2, rng=2))


SEVERAL: dict[str, tuple[Callable[[], nn.Sequential], list[tuple[int, ...]], int]] = {
    "features": (
        lambda: nn.Sequential(
            nn.Concat(nn.SparseLinear(5, 4, sparsity=0.5, rng=0), None, nn.Tanh()),
            nn.SparseLinear(13, 4, sparsity=0.5, activation="relu", rng=1),
        ),
        [(5,), (6,), (3,)],
        0,
    ),
    "images": (
        lambda: nn.Sequential(nn.Residual(nn.SparseConv2d(2, 4, 3, padding=1, rng=0), None, "relu"), nn.Flatten()),
        [(2, 5, 6), (4, 5, 6)],
        0,
    ),
    "cross-attention": (
        lambda: nn.Sequential(nn.MultiheadAttention(12, 2, sparsity=0.5, rng=0), nn.Linear(12, 3, rng=1)),
        [(5, 12), (8, 12)],
        0,
    ),
    "texts": (_two_texts, [(5,), (3,)], 9),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_several_inputs(name: str, rng: Any, tmp_path: Any) -> None:
    make, shapes, rows = SEVERAL[name]
    network, batch = make(), 3
    engine = fs.compile(network.eval(), [(batch, *shape) for shape in shapes])
    assert engine.input_shapes == tuple((batch, *shape) for shape in shapes)
    for count in (batch, 1, 18):
        x = [rng.integers(0, rows, (count, *s)) if rows else rng.normal(size=(count, *s)) for s in shapes]
        want = network(tuple(x))
        np.testing.assert_allclose(engine(tuple(x)), want, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(engine.run(x)[0], engine(tuple(x)))
    engine.save(tmp_path / "engine")
    np.testing.assert_array_equal(fs.load_engine(tmp_path / "engine").run(x)[0], engine.run(x)[0])
    assert engine.benchmark(0.01).calls >= 3
    with pytest.raises(ValueError, match=f"x is one array, expected a tuple of {len(shapes)}, the inputs"):
        engine(x[0])
    with pytest.raises(ValueError, match=f"inputs has 1 arrays, expected {len(shapes)}"):
        engine.run(x[:1])
    with pytest.raises(ValueError, match=r"x\[1\] has shape \(17, "):
        engine((x[0], x[1][1:], *x[2:]))
    y = network.train()(tuple(x))
    dx = network.backward(np.ones_like(y), need_input=not rows)
    assert rows or [part.shape for part in dx] == [part.shape for part in x]


@pytest.mark.R8
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("cross", [False, True])
def test_padded_keys(causal: bool, cross: bool, rng: Any, tmp_path: Any) -> None:
    attention = nn.MultiheadAttention(12, 2, causal=causal, sparsity=0.5, rng=0)
    network = nn.Sequential(attention, nn.LayerNorm(12)).eval()
    shapes = [(5, 12), (8, 12), (8,)] if cross else [(8, 12), (8,)]
    engine = fs.compile(network, [(3, *shape) for shape in shapes])
    for count in (3, 1, 18):
        *x, mask = (rng.normal(size=(count, *shape)).astype("f") for shape in shapes)
        mask = mask > np.linspace(-2, 2, count)[:, None]  # from all keys to none
        want = network((*x, mask))
        np.testing.assert_allclose(engine((*x, mask)), want, rtol=1e-5, atol=1e-5)
        engine.save(tmp_path / "engine")
        np.testing.assert_array_equal(fs.load_engine(tmp_path / "engine")((*x, mask)), engine((*x, mask)))
    assert engine.benchmark(0.01).calls >= 3
    assert engine.report()
    onnxruntime = pytest.importorskip("onnxruntime")
    fs.to_onnx(engine, tmp_path / "attention.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "attention.onnx", providers=["CPUExecutionProvider"])
    names = [source.name for source in session.get_inputs()]
    (found,) = session.run(None, dict(zip(names, (*x, mask), strict=True)))
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-4)
    with pytest.raises(TypeError, match=r"^x\[\d\] has dtype float32, expected booleans"):
        engine((*x, mask.astype("f")))
    with pytest.raises(ValueError, match=r"MultiheadAttention\) a mask of \(N, 7\), expected \(N, 8\)"):
        fs.compile(network, [(3, *shape) for shape in (*shapes[:-1], (7,))])
    with pytest.raises(ValueError, match=r"MultiheadAttention\) has 3 inputs, expected 1 or 2, and a mask"):
        fs.compile(network, [(3, 8, 12)] * 3)


@pytest.mark.R8
@pytest.mark.parametrize("segments", [False, True])
def test_padding_in_a_stack_of_encoders(segments: bool, rng: Any, tmp_path: Any) -> None:
    """Embeddings do not get the mask and all attention does: eager, trained, saved, compiled, and through ONNX."""
    words, kinds = nn.Embedding(10, 8, positions=6, rng=0), nn.Embedding(2, 8, rng=1)
    encoders = [nn.TransformerEncoderLayer(8, 2, 12, 0.0, norm_first=bool(i), sparsity=0.5, rng=i) for i in (0, 1)]
    first = nn.Residual(words, kinds) if segments else words
    model = nn.Sequential(first, *encoders, nn.Flatten(), nn.Linear(48, 3, rng=2))
    padding = np.arange(6) >= np.array([6, 4, 1, 2])[:, None]
    x = (rng.integers(0, 10, (4, 6)), *[rng.integers(0, 2, (4, 6))] * segments, padding)
    optimizer = training.Adam(model.parameters(), 1e-2)
    training.fit(model, (x, np.arange(4) % 3), epochs=2, batch_size=2, optimizer=optimizer, progress=False)
    want = model(x)
    assert np.abs(model((*x[:-1], np.zeros_like(padding))) - want).max() > 1e-3
    fs.save(model, tmp_path / "model")
    np.testing.assert_array_equal(fs.load(tmp_path / "model")(x), want)
    engine = fs.compile(model, [(4, 6)] * len(x), tune=False)
    np.testing.assert_allclose(engine(x), want, rtol=1e-5, atol=1e-5)
    engine.save(tmp_path / "engine")
    np.testing.assert_array_equal(fs.load_engine(tmp_path / "engine")(x), engine(x))
    onnxruntime = pytest.importorskip("onnxruntime")
    fs.to_onnx(engine, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    names = [source.name for source in session.get_inputs()]
    np.testing.assert_allclose(session.run(None, dict(zip(names, x, strict=True)))[0], want, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(fs.compile(tmp_path / "model.onnx", tune=False).run(list(x))[0], want, 1e-4, 1e-4)


def test_inputs_that_do_not_fit_are_named() -> None:
    joined = nn.Sequential(nn.Concat(None, nn.ReLU()))
    with pytest.raises(ValueError, match=r"layer 0 \(Concat\) has 3 inputs for 2 branches"):
        fs.compile(joined, [(1, 2), (1, 3), (1, 4)])
    with pytest.raises(ValueError, match="expected one batch size for all inputs"):
        fs.compile(joined, [(1, 2), (2, 3)])
    with pytest.raises(ValueError, match=r"layer 0 \(ReLU\) has 2 inputs by input_shape, expected one"):
        fs.compile(nn.Sequential(nn.ReLU()), [(1, 2), (1, 3)])
    with pytest.raises(ValueError, match="x is a tuple of 3 arrays, expected 2, one for each branch"):
        joined((np.ones((1, 2)),) * 3)
    shared = nn.Sequential(nn.Concat(None, nn.Embedding(4, 2, rng=0)))  # whose other branch reads the integers
    with pytest.raises(fs.UnsupportedOperatorError, match=r"layer 0\.1 is an Embedding"):
        fs.compile(shared, (1, 2))


@pytest.mark.R7
@pytest.mark.R8
@pytest.mark.parametrize("batch", [1, 2, 9, 16, 17])
def test_a_sample_of_one_row(batch: int, rng: Any) -> None:
    """(1, features) is a row, and no plane of one channel."""
    convs = [nn.SparseConv1d(channels, 1, 1, sparsity=0, rng=channels) for channels in (2, 8)]
    network = nn.Sequential(nn.Residual(*convs), nn.SparseLinear(12, 3, sparsity=0.3, rng=0)).eval()
    x = tuple(rng.standard_normal((batch, channels, 12)).astype(np.float32) for channels in (2, 8))
    with poisoned():
        y = fs.compile(network, [one.shape for one in x], tune=False)(x)
    np.testing.assert_allclose(y, network(x), rtol=1e-5, atol=1e-5)
