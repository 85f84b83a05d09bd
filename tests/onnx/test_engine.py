"""Engines of ONNX models: names, shapes, results in place, threads, memory, and what their errors say."""

from __future__ import annotations

import sys
import threading
import tracemalloc
from itertools import groupby

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from scipy import sparse

import fastsparse as fs
from fastsparse.engine import choosing, trial
from fastsparse.engine.workspace import MOST_WORKSPACES
from fastsparse.onnx import executor
from fastsparse.onnx.estimates import Costs
from tests.onnx import models


@pytest.fixture
def network():
    return models.on_kernels(models.residual_network())


def _image(rng, batch=2):
    return rng.standard_normal((batch, 3, 32, 32)).astype("float32")


def _two_in_two_out():
    """y = relu(a W), z = y + b: outputs of a segment and of the host, and an input of integers that is an output."""
    b = models.Builder()
    y = b.add("Relu", b.add("MatMul", "a", b.weight(40, 30)))
    z = b.add("Sub", y, "b")
    same = b.add("Identity", "n")
    model = b.model({"a": ["N", 40], "b": ["N", 30], "n": [3]}, [y, z, same], dtypes={"n": TensorProto.INT64})
    model.graph.output[2].type.tensor_type.elem_type = TensorProto.INT64
    return model


def test_a_path_and_a_model_give_the_same(rng, tmp_path):
    model = models.residual_network()
    path = models.saved(model, tmp_path / "model.onnx")
    x = _image(rng)
    first, second = fs.compile(path, tune=False), fs.compile(model, tune=False)
    np.testing.assert_array_equal(first(x), second(x))
    assert first.input_shape == (1, 3, 32, 32)
    assert first.output_shape == (1, 10)
    assert first.dtype == np.float32
    assert first.input_names == ("x",)


def test_several_inputs_and_outputs(rng):
    model = _two_in_two_out()
    engine = fs.compile(model)
    assert engine.input_names == ("a", "b", "n")
    assert engine.output_names == tuple(v.name for v in model.graph.output)
    assert engine.output_shapes == dict(zip(engine.output_names, [(1, 30), (1, 30), (3,)]))
    y, z, n = engine.output_names
    assert repr(engine) == f"<GraphEngine a (1, 40), b (1, 30), n (3,) -> {y} (1, 30), {z} (1, 30), {n} (3,), float32>"
    inputs = [rng.standard_normal((5, n)).astype("float32") for n in (40, 30)] + [np.array([7, 8, 9])]
    found, wanted = engine.run(inputs), models.reference(model, inputs)
    assert max(models.shares(found, wanted)) < 1e-6
    named = engine.run(dict(zip(engine.input_names, inputs)))
    for a, b in zip(found, named):
        np.testing.assert_array_equal(a, b)
    assert found[2] is not inputs[2]
    with pytest.raises(TypeError, match=r"the model has 3 inputs: call engine.run\(\[...\]\)"):
        engine(inputs[0])


@pytest.mark.R4
def test_out_is_written_in_place(rng, network):
    x = _image(rng)
    out = np.full((2, 10), np.nan, np.float32)
    assert network(x, out=out) is out
    np.testing.assert_array_equal(out, network(x))
    engine = fs.compile(_two_in_two_out())
    inputs = [rng.standard_normal((2, n)).astype("float32") for n in (40, 30)] + [np.array([7, 8, 9])]
    outs = [np.empty((2, 30), np.float32), np.empty((2, 30), np.float32), np.empty(3, np.int64)]
    found = engine.run(inputs, out=outs)
    assert all(a is b for a, b in zip(found, outs))
    for a, b in zip(found, engine.run(inputs)):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda e, x: e(x[:, :2]), ValueError, r"the shape is \(2, 2, 32, 32\) for 'x', expected \(N, 3, 32, 32\)"),
        (lambda e, x: e(x.astype("complex64")), TypeError, "x has dtype complex64, expected float32 to match"),
        (lambda e, x: e(x, out=np.empty((3, 10), "f4")), ValueError, r"out has shape \(3, 10\)"),
        (lambda e, x: e(x, out=x), ValueError, "out has shape"),
        (lambda e, x: e.run([x, x]), ValueError, "inputs has 2 arrays, expected 1, for x"),
        (lambda e, x: e.run({"z": x}), ValueError, "inputs has 'z', expected 'x'"),
        (lambda e, x: e.run([x], out=[]), ValueError, "out has"),
        (lambda e, x: e.report(batch=0), ValueError, "batch is 0, expected an integer of at least 1"),
        (lambda e, x: e.prepare([(0, 3, 32, 32)]), ValueError, "expected sizes of at least 1"),
    ],
)
def test_what_does_not_fit(call, error, message, rng, network):
    with pytest.raises(error, match=message):
        call(network, _image(rng))


@pytest.mark.parametrize(
    ("shape", "error", "message"),
    [
        ((1, 4, 32, 32), ValueError, r"input_shape is \(1, 4, 32, 32\) for 'x', expected \(N, 3, 32, 32\)"),
        ((1, 3, 32), ValueError, "input_shape is"),
        ({"y": (1, 3, 32, 32)}, ValueError, "input_shape names 'y', expected some of 'x'"),
        ("abcd", TypeError, "input_shape is 'abcd', expected a tuple of integers"),
    ],
)
def test_input_shapes_that_do_not_fit(shape, error, message):
    with pytest.raises(error, match=message):
        fs.compile(models.residual_network(), shape)


def test_what_is_missing_is_named_all_at_once():
    message = r"input 'ids' has shape \(N, L\), input 'mask' has shape \(N, L\) in the model: give input_shape"
    with pytest.raises(ValueError, match=message):
        fs.compile(models.encoder())
    # One shape says what the name stands for.
    assert fs.compile(models.encoder(), {"ids": (2, 8)}, tune=False).input_shapes["mask"] == (2, 8)
    unnamed = models.encoder()
    for source in unnamed.graph.input:
        for size in source.type.tensor_type.shape.dim:
            size.ClearField("dim_param")
    with pytest.raises(ValueError, match=r"input 'ids' has shape \(\?, \?\), input 'mask' has shape \(\?, \?\) in the"):
        fs.compile(unnamed)


def test_equal_names_of_sizes_are_a_hint(rng):
    b = models.Builder()
    engine = fs.compile(b.model({"x": ["N", 3], "y": ["N", 3]}, [b.add("Add", "x", "y")]))
    x, y = (rng.standard_normal((n, 3)).astype("float32") for n in (4, 1))
    np.testing.assert_array_equal(engine.run([x, y])[0], x + y)


@pytest.mark.parametrize("size", [-1, "?"])
def test_open_sizes_as_some_exporters_write_them(size, rng):
    b = models.Builder()
    model = b.model({"x": [size, size, 8]}, [b.add("MatMul", "x", b.weight(8, 4))])
    engine = fs.compile(model, (2, 5, 8), tune=False)
    for shape in ((2, 5, 8), (3, 1, 8)):
        assert engine(rng.standard_normal(shape).astype("float32")).shape == (*shape[:2], 4)


def test_float64_arrays_are_cast(rng, network):
    x = _image(rng)
    np.testing.assert_array_equal(network(x.astype("float64")), network(x))


def test_sparse_matrices_become_dense():
    b = models.Builder()
    engine = fs.compile(b.model({"x": ["N", 40]}, [b.add("MatMul", "x", b.weight(40, 30))]), (3, 40), tune=False)
    x = sparse.random_array((3, 40), density=0.3, dtype=np.float32, rng=0)
    for given in (x, x.tocsr(), x.astype("float64"), sparse.csc_matrix(x), fs.csr(x)):
        np.testing.assert_array_equal(engine(given), engine(x.toarray()))
        np.testing.assert_array_equal(engine.run({"x": given})[0], engine(x.toarray()))


def test_empty_names_at_the_end_of_inputs():
    """onnxruntime ends the process over a LayerNormalization whose bias is an empty name."""
    b = models.Builder()
    h = b.add("MatMul", "x", b.weight(40, 30))
    then = helper.make_graph([helper.make_node("LayerNormalization", [h, "scale", ""], ["z"])], "then", [], [_any("z")])
    other = helper.make_graph([helper.make_node("Identity", [h], ["z"])], "else", [], [_any("z")])
    b.constants.append(numpy_helper.from_array(np.ones(30, "float32"), "scale"))
    y = b.add("LayerNormalization", h, "scale", "")
    branched = b.add("If", "c", then_branch=then, else_branch=other)
    model = b.model({"x": ["N", 40], "c": []}, [y, branched], dtypes={"c": TensorProto.BOOL})
    first, second = fs.compile(model, {"x": (3, 40)}, tune=False).run([np.eye(3, 40, dtype="float32"), np.array(True)])
    np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(first.std(axis=1), 1, rtol=1e-2)


def test_types_that_only_the_reference_has():
    """Of these operators onnxruntime has no float64, and ONNX's own evaluator gives wrong numbers."""
    x = np.random.default_rng(0).standard_normal((2, 8, 5, 6))
    squares = np.pad(x**2, ((0, 0), (1, 1), (0, 0), (0, 0)))
    across = sum(squares[:, i : i + 8] for i in range(3))
    rows = np.linspace(0, 4, 10)
    low, share = np.minimum(rows.astype(int), 3), rows - np.minimum(rows.astype(int), 3)
    mean, deviation = x.mean(axis=(0, 2, 3), keepdims=True), x.std(axis=(0, 2, 3), keepdims=True)
    wanted = {
        "LRN": ({"size": 3, "alpha": 0.3}, x / (1 + 0.1 * across) ** 0.75),
        "MeanVarianceNormalization": ({}, (x - mean) / deviation),
        "GlobalLpPool": ({}, np.sqrt((x**2).sum(axis=(2, 3), keepdims=True))),
        "Hardmax": ({"axis": 1}, _first_of_all(x)),
        "Resize": (
            {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
            x[:, :, low] * (1 - share)[:, None] + x[:, :, low + 1] * share[:, None],
        ),
    }
    for op, (attributes, right) in wanted.items():
        for dtype in ("float64", "float16"):
            b = models.Builder(dtype)
            scales = (b.constant([], "float32"), b.constant([1, 1, 2, 1], "float32")) if op == "Resize" else ()
            model = b.model({"x": ["N", 8, 5, 6]}, [b.add(op, "x", *scales, **attributes)], opset=11)
            found = fs.compile(model, x.shape, tune=False)(x.astype(dtype))
            assert found.dtype == dtype
            np.testing.assert_allclose(found, right, rtol=1e-2 if dtype == "float16" else 1e-5, atol=5e-3, err_msg=op)


def test_formats_of_messages_newer_than_the_library_are_read(rng):
    b = models.Builder()
    model, x = b.model({"x": ["N", 8]}, [b.add("MatMul", "x", b.weight(8, 8))]), np.ones((2, 8), np.float32)
    wanted = models.reference(model, [x])[0]
    model.ir_version = 99
    np.testing.assert_allclose(fs.compile(model, x.shape, tune=False)(x), wanted, rtol=1e-6)


@pytest.mark.parametrize("shape", [(64, 5), (64, 32)])
def test_products_with_dequantised_weights_do_not_round_their_inputs(rng, shape):
    b, w = models.Builder(), rng.integers(-127, 128, shape).astype(np.int8)
    weight = b.add("DequantizeLinear", b.constant(w, "int8"), b.constant(0.01), b.constant(0, "int8"))
    x = rng.standard_normal((3, 64)).astype(np.float32)
    found = fs.compile(b.model({"x": ["N", 64]}, [b.add("MatMul", "x", weight)]), x.shape, tune=False)(x)
    np.testing.assert_allclose(found, x.astype(float) @ (w * 0.01), rtol=1e-5, atol=1e-5)


def test_transposed_convolutions_in_groups_that_only_the_reference_has():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 4, 6)), rng.standard_normal((4, 3, 2))  # two groups of two channels, six results
    right = np.zeros((2, 6, 2 * 5 + 3 + 1))
    for c, i, k in np.ndindex(4, 6, 2):
        right[:, 3 * (c // 2) : 3 * (c // 2) + 3, 2 * i + 3 * k] += np.multiply.outer(x[:, c, i], w[c, :, k])
    b = models.Builder("float64")
    model = b.model(
        {"x": ["N", 4, 6]}, [b.add("ConvTranspose", "x", b.constant(w), group=2, dilations=[3], strides=[2])]
    )
    np.testing.assert_allclose(fs.compile(model, x.shape, tune=False)(x), right, rtol=1e-4, atol=1e-5)


def _first_of_all(x):
    """Hardmax before opset 13: one maximum of all that is behind an axis."""
    flat = x.reshape(len(x), -1)
    return (np.arange(flat.shape[1]) == flat.argmax(axis=1)[:, None]).reshape(x.shape)


def _any(name):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)


def test_other_models_are_refused():
    with pytest.raises(TypeError, match="model is a int, expected a fastsparse"):
        fs.compile(3, (1, 2))


@pytest.mark.R3
def test_bits_do_not_depend_on_threads_or_batch(rng):
    x = _image(rng, 9)
    engine = fs.compile(models.residual_network(), tune=False)
    whole = engine(x)
    with fs.threads(1):
        np.testing.assert_array_equal(engine(x), whole)
    np.testing.assert_array_equal(engine(x[3:5]), whole[3:5])


@pytest.mark.T6
def test_plans_are_bounded(rng, network):
    (step,) = network._plan().kernels
    stores = network._frames, step._plans
    for batch in range(1, 14):
        network(_image(rng, batch))
        if batch == 4:
            for store in stores:
                store.limit = store.nbytes
    for store in stores:
        assert 1 <= len(store) <= 4
        assert len(store) == 1 or store.nbytes <= store.limit


def test_a_plan_is_tuned_when_asked_for(network, monkeypatch):
    """Once, although there is one by estimate already."""
    asked = []
    found = choosing.chosen
    monkeypatch.setattr(
        choosing, "chosen", lambda p, b, w, tune, known: asked.append(tune) or found(p, b, w, tune, known)
    )
    network.prepare([(16, 3, 32, 32)])
    network.prepare([(16, 3, 32, 32)], tune=True)
    network.prepare([(16, 3, 32, 32)], tune=True)
    network.prepare([(16, 3, 32, 32)])
    assert [tune for tune, _ in groupby(asked)] == [False, True, False]  # for one worker, too, where that is tried


@pytest.mark.T1
def test_sixteen_threads_share_an_engine(rng):
    engine = models.on_kernels(models.encoder(), [(2, 8), (2, 8)])
    inputs = [(rng.integers(0, 50, (1 + i % 3, 8)), np.ones((1 + i % 3, 8), np.int64)) for i in range(16)]
    wanted = [engine.run(pair) for pair in inputs]
    wrong: list[int] = []

    def work(i):
        for _ in range(25):
            found = engine.run(inputs[i])
            if not all((a == b).all() for a, b in zip(found, wanted[i])):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert all(pool._made <= MOST_WORKSPACES for pool in engine._frames.pools)


@pytest.mark.parametrize("make", [fs.compile, models.on_kernels])
def test_calls_allocate_only_their_outputs(make, rng, monkeypatch):
    monkeypatch.undo()  # np.empty as it is
    engine = make(models.encoder(width=64), [(8, 128), (8, 128)], tune=False)
    inputs = [rng.integers(0, 50, (8, 128)), np.ones((8, 128), np.int64)]
    outs = engine.run(inputs)
    engine.run(inputs, out=outs)
    activation = outs[0].nbytes
    tracemalloc.start()
    for _ in range(3):
        engine.run(inputs, out=outs)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < activation / 2


def test_calls_hold_no_array_of_the_user(rng, network):
    x = _image(rng)
    network(x)
    before = sys.getrefcount(x)
    y, own = network(x), np.zeros(1)
    assert sys.getrefcount(x) == before
    assert sys.getrefcount(y) == sys.getrefcount(own)


def test_shapes_may_depend_on_the_numbers_in_an_input(rng):
    b = models.Builder()
    y = b.add("Reshape", b.add("Relu", "x"), "shape")
    model = b.model({"x": [4, 6], "shape": [2]}, [y], dtypes={"shape": TensorProto.INT64})
    engine = fs.compile(model)
    assert engine.output_shapes is None
    x = rng.standard_normal((4, 6)).astype("float32")
    for shape in ((24, 1), (3, 8), (2, -1), (3, 8)):
        (found,) = engine.run([x, np.array(shape)])
        np.testing.assert_array_equal(found, np.maximum(x, 0).reshape(shape))
    with pytest.raises(ValueError, match=r"the model cannot be computed: .*n1"):
        engine.run([x, np.array([5, 5])])


@pytest.mark.parametrize("make", [fs.compile, models.on_kernels])
def test_sizes_may_depend_on_numbers(make, rng):
    """Rows that are not zero go through a sparse layer: other ones, and more of them, at every call."""
    b = models.Builder()
    chosen = b.add(
        "Compress", "x", b.add("Cast", b.add("ReduceMax", b.add("Abs", "x"), axes=[1], keepdims=0), to=9), axis=0
    )
    model = b.model({"x": [8, 64]}, [b.add("Relu", b.add("MatMul", chosen, b.weight(64, 128)))])
    engine = make(model, tune=False)
    assert engine.output_shapes is None
    for count in (8, 3, 3, 0, 5):
        x = np.zeros((8, 64), np.float32)
        x[rng.permutation(8)[:count]] = rng.standard_normal((count, 64))
        (found,) = engine.run([x])
        assert found.shape == (count, 128)
        np.testing.assert_allclose(found, models.reference(model, [x])[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", ["input", "constant", "twice", "view"])
def test_outputs_that_no_step_writes(case, rng):
    b = models.Builder()
    x = rng.standard_normal((2, 3)).astype("float32")
    y = b.add("Relu", "x")
    constant = b.constant(x + 1)
    view = b.add("Transpose", y)
    outputs = {"input": ["x", y], "constant": [constant, y], "twice": [y, y], "view": [view, y]}[case]
    model = b.model({"x": ["N", 3]}, outputs)
    found = fs.compile(model).run([x])
    relu = np.maximum(x, 0)
    wanted = {"input": [x, relu], "constant": [x + 1, relu], "twice": [relu, relu], "view": [relu.T, relu]}[case]
    for a, b in zip(found, wanted):
        np.testing.assert_array_equal(a, b)
    assert not np.may_share_memory(found[0], found[1])
    assert not np.may_share_memory(found[0], x)


def test_sequences_that_follow_from_constants(rng):
    b = models.Builder()
    numbers = np.arange(4, dtype="float32")
    y, z = b.conv("x", 3, 4), b.add("SequenceConstruct", b.constant(numbers))
    model = b.model({"x": [1, 3, 6, 10]}, [y, z])
    model.graph.output[1].type.sequence_type.elem_type.tensor_type.elem_type = TensorProto.FLOAT
    engine, x = models.on_kernels(model), rng.standard_normal((1, 3, 6, 10)).astype("float32")
    for _ in range(2):
        found = engine.run([x])[1]
        assert isinstance(found, list)
        np.testing.assert_array_equal(found, [numbers])


@pytest.mark.parametrize("make", [fs.compile, models.on_kernels])
def test_indices_out_of_range_are_told(make):
    engine = make(models.encoder(), [(1, 8), (1, 8)], tune=False)
    mask = np.ones((1, 8), np.int64)
    with pytest.raises(ValueError, match=r"the model cannot be computed: .*Gather"):
        engine.run([np.full((1, 8), 50), mask])
    assert np.isfinite(engine.run([np.full((1, 8), 49), mask])[0]).all()


@pytest.mark.T2
@pytest.mark.parametrize("who", ["kernels", "library"])
def test_runs_in_a_forked_child(who, run_python, tmp_path):
    path = models.saved(models.residual_network(), tmp_path / "model.onnx")
    code = """
import os, sys
import numpy as np
import fastsparse as fs
from fastsparse.onnx.engine import compile_onnx
from fastsparse.onnx.estimates import KERNELS_FIRST, Costs
engine = compile_onnx(sys.argv[1], tune=False, threads=2, costs=KERNELS_FIRST if sys.argv[2] == "kernels" else Costs())
x = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype("float32")
y = engine(x)
child = os.fork()
if child == 0:
    raise SystemExit(0 if (engine(x) == y).all() else 3)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    run_python(code, path, who)


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize(
    ("kernel", "stride", "sizes"),
    [((3, 3), (1, 1), (13, 17)), ((3, 1), (2, 3), (13, 17)), ((1, 4), (1, 2), (13, 17)), ((3, 3), (1, 1), ("H", "W"))],
)
def test_dilations_beside_auto_pad(auto_pad, kernel, stride, sizes, rng):
    """onnxruntime refuses them, wherever a convolution is its own."""
    dilation, image = (2, 3), (13, 17)
    pads: list[list[int]] = [[], []]
    for n, k, s, d in zip(image, kernel, stride, dilation, strict=True):
        total = max(0, (-(-n // s) - 1) * s + d * (k - 1) + 1 - n)
        small, large = total // 2, total - total // 2
        for side, pad in zip(pads, (small, large) if auto_pad == "SAME_UPPER" else (large, small), strict=True):
            side.append(pad)

    def model(**how):
        b = models.Builder(seed=1)
        weight = b.weight(8, 3, *kernel, sparsity=0)
        y = b.add("Conv", "x", weight, strides=stride, dilations=dilation, kernel_shape=kernel, **how)
        return b.model({"x": ["N", 3, *sizes]}, [b.add("Relu", y)])

    engine = fs.compile(model(auto_pad=auto_pad), (1, 3, *image), tune=False)
    x = rng.standard_normal((2, 3, *image)).astype("float32")
    assert max(models.shares(engine.run([x]), models.reference(model(pads=pads[0] + pads[1]), [x]))) < 1e-5


def test_threads_of_the_library_are_tried(monkeypatch, rng):
    """Its steps beside the kernels run on all threads or on one, whichever is faster: with the same sums."""
    taken = []

    class Either(trial.Trial):
        def run(self, ways):
            taken.append(len(ways))
            ways[len(taken) % 2]()

    monkeypatch.setattr(executor, "Trial", Either)
    b = models.Builder()
    y = b.add(
        "Softmax", b.linear(b.add("TopK", b.linear("x", 40, 30), b.constant([20], "int64"), outputs=2)[0], 20, 30)
    )
    model = b.model({"x": ["N", 40]}, [y])
    engine = models.compile_onnx(model, (3, 40), threads=2, tune=False, costs=Costs(region=0, crossing=0, always=True))
    assert engine._plan().kernels
    assert engine._plan().whole is None
    x = rng.standard_normal((3, 40)).astype("float32")
    for _ in range(4):
        np.testing.assert_allclose(engine(x), models.reference(model, [x])[0], rtol=1e-4, atol=1e-6)
    assert taken == [2, 2, 2]
