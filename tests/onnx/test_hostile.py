"""Files that are damaged, hostile or break the rules of ONNX: one clear error, and no memory for what they claim."""

from __future__ import annotations

import sys
import tracemalloc

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import fastsparse as fs
from fastsparse.onnx import reader
from fastsparse.onnx.reader import read
from tests.onnx import models

pytestmark = pytest.mark.F3


def _model(nodes, *, initializers=(), outputs=("y",), inputs=None, opset=17):
    sources = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (inputs or {"x": [2, 3]}).items()]
    results = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs]
    graph = helper.make_graph(list(nodes), "g", sources, results, list(initializers))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def _node(op, inputs, outputs, **attributes):
    return helper.make_node(op, inputs, outputs, name=attributes.pop("name", "n"), **attributes)


def _tensor(name="w", shape=(4,), raw=None, kind=TensorProto.FLOAT):
    tensor = TensorProto(name=name, data_type=kind, dims=shape)
    if raw is not None:
        tensor.raw_data = raw
    return tensor


ADD = [_node("Add", ["x", "w"], ["y"])]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (_model([_node("Relu", ["z"], ["y"])]), r"node 'n' \(Relu\) reads 'z', which nothing writes"),
        (_model([_node("Relu", ["x"], ["y"]), _node("Tanh", ["x"], ["y"])]), "tensor 'y' is written twice"),
        (_model([_node("Relu", ["x"], ["x"])], outputs=("x",)), "tensor 'x' is written twice"),
        (_model([_node("Relu", ["x"], ["z"])]), "output 'y' is written by nothing"),
        (_model([_node("Relu", ["x"], ["z"])], outputs=()), "the model has no outputs"),
        (
            _model([_node("Add", ["x", "b"], ["a"]), _node("Relu", ["a"], ["b"], name="m")], outputs=("b",)),
            r"node 'n' \(Add\) waits for itself: the graph has a cycle",
        ),
        (_model(ADD, initializers=[_tensor(raw=b"123")]), r"'w' of shape \(4,\) has 3 bytes, expected 16"),
        (_model(ADD, initializers=[_tensor()]), r"'w' of shape \(4,\) has 0 numbers, expected 4"),
        (_model(ADD, initializers=[_tensor(shape=(-1,))]), r"'w' has shape \(-1,\), expected sizes of at least 0"),
        (_model(ADD, initializers=[_tensor(shape=(2**40, 2**40))]), "takes more than 4611686018427387904 bytes"),
        (_model(ADD, initializers=[_tensor(shape=(2**40,))]), "has 0 numbers, expected 1099511627776"),
        (_model(ADD, initializers=[_tensor(shape=(1,) * 99, raw=b"1234")]), "'w' has 99 axes"),
        (_model(ADD, initializers=[_tensor(shape=(1,), raw=b"1234")] * 2), "initializer 'w' is there twice"),
    ],
)
def test_broken_graphs(model, message):
    with pytest.raises(fs.FileFormatError, match=message):
        fs.compile(model)


@pytest.mark.parametrize(
    "nodes",
    [
        [_node("Fly", ["x"], ["y"], name="wing")],
        [_node("Relu", ["x"], ["y"], domain="com.else")],
        [_node("Cast", ["x"], ["y"], to=99)],
        [_node("If", ["x"], ["y"])],
        [_node("Concat", ["x", "x"], ["y"], axis=7)],
        [_node("Transpose", ["x"], ["y"], perm=[0, 0])],
        [_node("Relu", [], ["y"])],
        [_node("Relu", ["x"], ["y", "z"])],
        [_node("Cast", ["x"], ["y"])],
        [_node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2])],
        [_node("MatMul", ["x", "x"], ["y"])],
        [_node("Gemm", ["x", "x"], ["y"])],
    ],
)
def test_nodes_that_do_not_fit(nodes):
    """The library says why, when the model is compiled or at the latest when it runs."""
    told = r"(?i)onnxruntime|rules of ONNX|expected at least 1"
    with pytest.raises((ValueError, fs.UnsupportedOperatorError), match=told):
        fs.compile(_model(nodes))(np.ones((2, 3), "float32"))


def _shape_of(*sizes):
    return [numpy_helper.from_array(np.array(sizes, np.int64), "w")]


@pytest.mark.parametrize(
    ("op", "sizes", "inputs"),
    [
        ("ConstantOfShape", (2**20, 2**20), ["w"]),
        ("Expand", (2**30, 2**30, 2, 3), ["x", "w"]),
        ("Tile", (2**40, 2**40), ["x", "w"]),
        ("Pad", (2**50, 0, 0, 0), ["x", "w"]),
    ],
)
def test_huge_shapes_are_refused_before_memory_is_taken(op, sizes, inputs):
    model = _model([_node(op, inputs, ["y"])], initializers=_shape_of(*sizes))
    with pytest.raises(fs.FileFormatError, match=rf"node 'n' \({op}\) .* takes more than \d+ bytes"):
        fs.compile(model)


def test_many_small_constants_are_bounded(monkeypatch):
    monkeypatch.setattr("fastsparse.onnx.folding._memory", lambda: 2**20)
    nodes = [_node("ConstantOfShape", ["w"], [f"t{i}"], name=f"n{i}") for i in range(64)]
    model = _model([*nodes, _node("Sum", [f"t{i}" for i in range(64)], ["y"])], initializers=_shape_of(100, 100))
    with pytest.raises(fs.FileFormatError, match="which takes more than 1048576 bytes"):
        fs.compile(model)


def test_nodes_are_bounded(monkeypatch):
    monkeypatch.setattr(reader, "MOST_NODES", 10)
    nodes = [_node("Relu", [f"t{i}"], [f"t{i + 1}"], name=f"n{i}") for i in range(11)]
    with pytest.raises(fs.FileFormatError, match="the model has 11 nodes, expected at most 10"):
        read(_model(nodes, inputs={"t0": [1]}, outputs=("t11",)))


def _with_functions(bodies):
    model = _model([helper.make_node("f0", ["x"], ["y"], domain="own", name="call")])
    model.opset_import.append(helper.make_opsetid("own", 1))
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    for name, nodes in bodies.items():
        model.functions.append(helper.make_function("own", name, ["a"], ["b"], nodes, imports))
    return model


def test_functions_are_put_in_place(rng):
    twice = [helper.make_node("Add", ["a", "a"], ["c"]), helper.make_node("Relu", ["c"], ["b"])]
    x = rng.standard_normal((2, 3)).astype("float32")
    np.testing.assert_array_equal(fs.compile(_with_functions({"f0": twice}))(x), np.maximum(2 * x, 0))


def test_functions_that_call_themselves_or_explode():
    itself = {"f0": [helper.make_node("f0", ["a"], ["b"], domain="own")]}
    with pytest.raises(fs.FileFormatError, match="function 'f0' calls itself"):
        read(_with_functions(itself))
    bodies = {"f40": [helper.make_node("Relu", ["a"], ["b"])]}
    for i in range(40):
        inner = f"f{i + 1}"
        bodies[f"f{i}"] = [
            helper.make_node(inner, ["a"], ["c"], domain="own"), helper.make_node(inner, ["c"], ["b"], domain="own")
        ]  # fmt: skip
    with pytest.raises(fs.FileFormatError, match="the model's functions make more than 100000 nodes"):
        read(_with_functions(bodies))


def test_a_long_chain_needs_no_deep_stack(rng):
    count = 5000
    assert count > sys.getrecursionlimit()
    nodes = [_node("Neg", [f"t{i}"], [f"t{i + 1}"], name=f"n{i}") for i in range(count)]
    model = _model(nodes, inputs={"t0": [3]}, outputs=(f"t{count}",))
    x = rng.standard_normal(3).astype("float32")
    np.testing.assert_array_equal(fs.compile(model)(x), x)


# ---------------------------------------------------------------- files


def test_files_that_are_no_models(tmp_path):
    path = tmp_path / "model.onnx"
    with pytest.raises(FileNotFoundError):
        fs.compile(str(path))
    for content in (b"", b"\x00" * 100, b"not a model at all", b"\xff" * 1000):
        path.write_bytes(content)
        with pytest.raises(fs.FileFormatError, match="is not an ONNX model, or damaged"):
            fs.compile(path)


def test_names_that_are_no_text(tmp_path):
    content = _model([_node("Relu", ["x"], ["y"], name="abcdef")]).SerializeToString()
    (tmp_path / "model.onnx").write_bytes(content.replace(b"abcdef", b"ab\xffdef"))
    with pytest.raises(fs.FileFormatError, match="the model is damaged"):
        fs.compile(tmp_path / "model.onnx")


def test_cut_and_changed_files_give_one_of_the_known_errors(tmp_path, rng):
    content = models.residual_network().SerializeToString()
    path = tmp_path / "model.onnx"
    known = (ValueError, TypeError, fs.UnsupportedOperatorError)  # FileFormatError is a ValueError
    outcomes = {"error": 0, "fine": 0}
    for trial in range(300):
        changed = bytearray(content)
        if trial % 3 == 0:
            del changed[int(rng.integers(1, len(changed))) :]
        else:  # outside of the weights, most of the time
            for _ in range(1 + trial % 4):
                changed[int(rng.integers(0, len(changed)))] = int(rng.integers(0, 256))
        path.write_bytes(changed)
        try:
            read(path)
            outcomes["fine"] += 1
        except known:
            outcomes["error"] += 1
    assert outcomes["error"] > 100


@pytest.mark.parametrize("seed", range(3))
def test_changed_structures_give_one_of_the_known_errors(seed):
    """Numbers, names and operators of the graph are exchanged; whatever compiles also runs."""
    rng = np.random.default_rng(seed)
    known = (ValueError, TypeError, fs.UnsupportedOperatorError)
    failed = 0
    for _ in range(40):
        model = models.mobile_network()
        node = model.graph.node[int(rng.integers(len(model.graph.node)))]
        other = model.graph.node[int(rng.integers(len(model.graph.node)))]
        kind = int(rng.integers(4))
        if kind == 0:
            node.op_type = other.op_type
        elif kind == 1 and node.input:
            node.input[int(rng.integers(len(node.input)))] = other.output[0]
        elif kind == 2 and node.attribute:
            attribute = node.attribute[int(rng.integers(len(node.attribute)))]
            attribute.i = int(rng.choice([-(2**63), -1, 0, 7, 2**63 - 1]))
            if attribute.ints:
                attribute.ints[0] = int(rng.choice([-(2**63), -1, 0, 2**31, 2**63 - 1]))
        else:
            tensor = model.graph.initializer[int(rng.integers(len(model.graph.initializer)))]
            tensor.dims[:] = [int(n) for n in rng.integers(0, 9, int(rng.integers(0, 5)))]
        try:
            engine = fs.compile(model, (2, 3, 16, 16), tune=False)
            engine.run(engine.random_inputs())
        except known:
            failed += 1
    assert failed > 5


def _external(folder, name="weights.bin"):
    """A model whose weights lie in another file."""
    folder.mkdir(exist_ok=True)
    onnx.save(models.perceptron(), folder / "model.onnx", save_as_external_data=True, location=name, size_threshold=100)
    return folder / "model.onnx"


def test_external_data_of_the_models_folder(tmp_path, rng):
    x = rng.standard_normal((2, 64)).astype("float32")
    expected = fs.compile(models.perceptron(), tune=False)(x)
    path = _external(tmp_path)
    np.testing.assert_array_equal(fs.compile(path, tune=False)(x), expected)
    with pytest.raises(fs.FileFormatError, match=r"lies in another file; it is read when .* allow_external_data=True"):
        fs.compile(path, allow_external_data=False)
    with pytest.raises(fs.FileFormatError, match="lies in another file"):
        fs.compile(onnx.load(path, load_external_data=False))
    (tmp_path / "weights.bin").write_bytes(b"short")
    with pytest.raises(fs.FileFormatError, match="does not hold"):
        fs.compile(path)


def test_external_data_behind_links(tmp_path, rng):
    """As Hugging Face's cache has them: names in one folder, contents in another one."""
    _external(tmp_path / "blobs")
    names = tmp_path / "snapshots" / "1"
    names.mkdir(parents=True)
    (names / "model.onnx").symlink_to("../../blobs/model.onnx")
    (names / "weights.bin").symlink_to("../../blobs/0123")
    (tmp_path / "blobs" / "weights.bin").rename(tmp_path / "blobs" / "0123")
    x = rng.standard_normal((2, 64)).astype("float32")
    expected = fs.compile(models.perceptron(), tune=False)(x)
    np.testing.assert_array_equal(fs.compile(names / "model.onnx", tune=False)(x), expected)
    # A link to the model alone, from elsewhere.
    (tmp_path / "blobs" / "weights.bin").symlink_to("0123")
    (tmp_path / "link.onnx").symlink_to("blobs/model.onnx")
    np.testing.assert_array_equal(fs.compile(tmp_path / "link.onnx", tune=False)(x), expected)


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "link.bin", "", "sub/../../secret.bin", "a\0b"])
def test_external_data_stays_in_the_folder_of_the_model(tmp_path, location):
    (tmp_path / "secret.bin").write_bytes(b"\x00" * 16)
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    tensor = _tensor(shape=(4,))
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    path = folder / "model.onnx"
    body = helper.make_graph(
        [_node("Identity", ["v"], ["z"])], "then", [], [helper.make_tensor_value_info("z", 1, None)]
    )
    tensor.name = "v"
    body.initializer.append(tensor)
    inside = [_node("If", ["c"], ["y"], then_branch=body, else_branch=body)]
    tensor.name = "w"
    for model in (_model(ADD, initializers=[tensor]), _model(inside, inputs={"c": []})):
        path.write_bytes(model.SerializeToString())
        with pytest.raises(fs.FileFormatError, match="expected a file in the folder of the model"):
            fs.compile(path)


# ---------------------------------------------------------------- sparse initializers


def _sparse(values, indices, dims, name="w"):
    return helper.make_sparse_tensor(
        numpy_helper.from_array(np.asarray(values, np.float32), name),
        numpy_helper.from_array(np.asarray(indices, np.int64), f"{name}_indices"),
        dims,
    )


@pytest.mark.parametrize("by_axes", [False, True])
@pytest.mark.parametrize("dims", [(64, 100), (6, 5)])
def test_sparse_initializers(rng, by_axes, dims):
    dense = np.where(rng.random(dims) < 0.9, 0, rng.standard_normal(dims)).astype("float32")
    places = np.argwhere(dense) if by_axes else np.flatnonzero(dense)
    model = _model([_node("MatMul", ["x", "w"], ["y"])], inputs={"x": ["N", dims[0]]})
    model.graph.sparse_initializer.append(_sparse(dense[dense != 0], places, dims))
    x = rng.standard_normal((3, dims[0])).astype("float32")
    np.testing.assert_allclose(fs.compile(model)(x), x @ dense, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("values", "indices", "dims"),
    [
        ([1, 2], [1, 1], (64, 100)),
        ([1, 2], [5, 1], (64, 100)),
        ([1, 2], [1, 6400], (64, 100)),
        ([1, 2], [-1, 1], (64, 100)),
        ([1, 2], [[0, 1], [0, 100]], (64, 100)),
        ([1, 2, 3], [0, 1], (64, 100)),
        ([1], [0], (2**40, 2**40)),
        ([1], [0], (2**33, 4)),
        ([1], [0], (2**28, 2)),
        ([1], [0], (2**40,)),
        ([1], [0], (-1, 5)),
        ([1], [0], (2**29, 2)),
        ([1], [0], (2**28,)),
        ([1], [0], (2, 2**28)),
    ],
)
def test_f3_f4_hostile_sparse_initializers(values, indices, dims):
    model = _model([_node("MatMul", ["x", "w"], ["y"])], inputs={"x": [1, 64]})
    model.graph.sparse_initializer.append(_sparse(values, indices, dims))
    with pytest.raises(fs.FileFormatError, match="sparse_initializer 'w'"):
        fs.compile(model)


def test_negative_sizes_of_inputs_are_open(rng):
    model = _model([_node("MatMul", ["x", "w"], ["y"])], inputs={"x": ["N", 4]}, initializers=[
        numpy_helper.from_array(rng.standard_normal((4, 3)).astype("float32"), "w")
    ])  # fmt: skip
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    engine = fs.compile(model)
    for batch in (1, 5):
        assert engine(np.ones((batch, 4), np.float32)).shape == (batch, 3)


@pytest.mark.parametrize("op", ["DepthToSpace", "Resize", "MaxPool"])
def test_images_of_any_size_take_no_memory_before_a_call(op):
    """Kernels gather by indices, eight bytes for each number of an image, and have tables of windows."""
    b = models.Builder()
    y = b.conv("x", 4, 4)
    scales = b.constant([1, 1, 2, 2], "float32")
    more = {"DepthToSpace": {"blocksize": 2}, "Resize": {"mode": "nearest"}, "MaxPool": {"kernel_shape": [1, 2]}}[op]
    y = b.add(op, y, *(["", scales] if op == "Resize" else []), **more)
    model = b.model({"x": [1, 4, 2, 2**23] if op == "MaxPool" else [1, 4, 2**12, 2**12]}, [y])
    tracemalloc.start()
    try:
        models.on_kernels(model)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_outputs_that_follow_from_constants_and_cannot_be_computed():
    b = models.Builder()
    y = b.add("Gather", b.vector(4), b.constant([7], "int64"))
    with pytest.raises(fs.FileFormatError, match="'t0_0' follows from constants, and the model cannot be computed"):
        fs.compile(b.model({"x": [1]}, [y]))


@pytest.mark.parametrize("kind", [onnx.AttributeProto.STRING, onnx.AttributeProto.UNDEFINED])
def test_attributes_of_another_type(kind):
    b = models.Builder()
    model = b.model({"x": [2, 4]}, [b.add("Gemm", "x", b.weight(4, 3), b.vector(3), alpha=0.5)])
    model.graph.node[0].attribute[0].type = kind
    with pytest.raises(fs.FileFormatError, match=r"'n0' \(Gemm\) has the attribute 'alpha' in another type"):
        fs.compile(model)


def test_pools_that_leave_nothing():
    """onnxruntime may end the process."""
    b = models.Builder()
    y = b.add("MaxPool", b.conv("x", 3, 4), kernel_shape=[6, 2], strides=[2, 2])
    with pytest.raises(fs.FileFormatError, match=r"makes an image of shape \(1, 4, 0, 2\)"):
        fs.compile(b.model({"x": [1, 3, 4, 4]}, [b.add("Softsign", y)]))


def test_constants_of_no_value_are_refused():
    with pytest.raises(fs.FileFormatError):
        fs.compile(_model([_node("Constant", [], ["w"], name="c"), *ADD]), tune=False)


def _names_in(message):
    """All strings in a message and those inside it."""
    for field, value in message.ListFields():
        for item in value if hasattr(value, "extend") else [value]:
            if field.type == field.TYPE_MESSAGE:
                yield from _names_in(item)
            elif field.type == field.TYPE_STRING:
                yield item


def test_names_that_are_no_text_are_refused(tmp_path):
    """Protocol buffers hand out bytes where a text is no UTF-8."""
    outside = _tensor("outside", (2, 3))
    outside.data_location = TensorProto.EXTERNAL
    outside.external_data.add(key="location", value="weights.bin")
    (tmp_path / "weights.bin").write_bytes(bytes(24))
    nodes = [
        _node("Add", ["x", "inside"], ["sum"]), _node("Add", ["sum", "outside"], ["ready"], name="second"),
        _node("Flatten", ["ready"], ["y"], axis=1, name="third"),
    ]  # fmt: skip
    constants = [numpy_helper.from_array(np.ones((2, 3), "f"), "inside"), outside]
    model = _model(nodes, initializers=constants, inputs={"x": ["samples", 3]})
    content, path = model.SerializeToString(), tmp_path / "m.onnx"
    refused = 0
    for text in sorted(set(_names_in(model)) - {""}):
        path.write_bytes(content.replace(text.encode(), b"\xff" * len(text)))
        try:
            fs.compile(path, tune=False)
        except (fs.FileFormatError, fs.UnsupportedOperatorError):
            refused += 1
    assert refused >= 9


def test_axes_that_are_no_vector_are_refused():
    node = _node("ReduceSum", ["x", "axis"], ["y"], keepdims=0)
    model = _model([node], initializers=[numpy_helper.from_array(np.array(0), "axis")], inputs={"x": [50, 3]})
    with pytest.raises(ValueError, match="axes"):
        fs.compile(model, tune=False)(np.ones((50, 3), "f"))
