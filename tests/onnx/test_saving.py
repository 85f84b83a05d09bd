"""Engines of ONNX models in files: the same bits without the ONNX package, and no trust in what a file says."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import fastsparse as fs
from fastsparse import files
from tests.onnx import models


def compiled(name: str, **options: Any) -> Any:
    shapes = {"encoder": [(2, 6), (2, 6)]}
    return models.on_kernels(getattr(models, name)(), shapes.get(name), **options)


@pytest.mark.R8
@pytest.mark.parametrize("name", ["residual_network", "mobile_network", "u_network", "encoder", "perceptron"])
def test_engines_come_back_to_the_bit(name, tmp_path):
    engine = compiled(name, tune=False)
    engine.save(tmp_path / "engine")
    again = fs.load_engine(tmp_path / "engine")
    assert (again.input_names, again.output_names) == (engine.input_names, engine.output_names)
    assert again.input_shapes == engine.input_shapes
    assert again.output_shapes == engine.output_shapes  # before the first call
    assert again.output_shape == engine.output_shape
    for batch in (1, 3):
        inputs = engine.random_inputs(batch)
        for y, z in zip(again.run(inputs), engine.run(inputs), strict=True):
            np.testing.assert_array_equal(y, z)


def test_without_the_package_onnx_engines_come_back_to_the_bit(tmp_path, run_python):
    """onnxruntime is enough."""
    pytest.importorskip("onnxruntime")
    for name in ("mobile_network", "u_network", "encoder"):
        engine = compiled(name, tune=False)
        engine.save(tmp_path / name)
        inputs = engine.random_inputs(3)
        np.savez(tmp_path / f"{name}.npz", *inputs, *engine.run(inputs))
    run_python("""
import sys
from pathlib import Path
sys.modules["onnx"] = None
import numpy as np, fastsparse as fs
for path in Path(sys.argv[1]).glob("*.npz"):
    engine = fs.load_engine(path.with_suffix(""))
    arrays = list(np.load(path).values())
    assert engine.output_shapes is not None and engine._plan().kernels
    outputs = engine.run(arrays[: len(engine.input_names)])
    for y, z in zip(outputs, arrays[len(engine.input_names) :], strict=True):
        np.testing.assert_array_equal(y, z)
""", tmp_path)  # fmt: skip


def test_without_any_library_the_error_says_what_is_missing(tmp_path, run_python):
    compiled("u_network", tune=False).save(tmp_path / "engine")
    run_python("""
import sys
sys.modules["onnx"] = sys.modules["onnxruntime"] = None
import numpy as np, fastsparse as fs
try:
    fs.load_engine(sys.argv[1])(np.ones((1, 3, 16, 16), np.float32))
except ImportError as error:
    raise SystemExit("needs onnxruntime, or onnx" not in str(error)) from None
raise SystemExit("no ImportError")
""", tmp_path / "engine")  # fmt: skip


def test_what_tuning_chose_is_kept(tmp_path, monkeypatch):
    engine = compiled("residual_network", tune=False)
    engine.prepare([x.shape for x in engine.random_inputs(20)], tune=True)
    engine.save(tmp_path / "engine")
    again = fs.load_engine(tmp_path / "engine")
    assert again._choices == engine._choices != {}


def _message(change: Any) -> Any:
    """Change the message that the model is kept in."""

    def changed(arrays: Any, found: Any) -> None:
        message = onnx.load_from_string(arrays["model"].tobytes())
        change(message.graph)
        arrays["model"] = np.frombuffer(message.SerializeToString(), np.uint8)

    return changed


def _constants(change: Any) -> Any:
    return lambda arrays, found: change(found["model"]["constants"])


HOSTILE = {
    "no message": lambda arrays, found: arrays.update(model=np.zeros(9, np.uint8)),
    "written twice": _message(lambda graph: graph.node.append(graph.node[0])),
    "no outputs": _message(lambda graph: graph.ClearField("output")),
    "output nobody writes": _message(lambda graph: setattr(graph.output[0], "name", "nothing")),
    "reads what is not there": _message(lambda graph: graph.node[0].input.append("nothing")),
    "constant that is missing": _constants(lambda constants: constants.popitem()),
    "constant of no type": _constants(lambda constants: next(iter(constants.values())).update(dtype="object")),
    "constant of no shape": _constants(lambda constants: next(iter(constants.values())).update(shape=[-1])),
    "sparse constant of another shape": _constants(
        lambda constants: next(c for c in constants.values() if "sparse" in c).update(shape=[1, 2])
    ),
    "no model": lambda arrays, found: found["model"].clear(),
    "library": lambda arrays, found: found.update(library=3),
    "input shapes": lambda arrays, found: found.update(input_shapes={"x": [1, 2]}),
}


@pytest.mark.F2
@pytest.mark.F4
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused(name, tmp_path):
    compiled("residual_network").save(tmp_path / "engine")
    arrays, found = files.read(tmp_path / "engine", "engine")
    arrays = dict(arrays)
    found = copy.deepcopy({k: v for k, v in found.items() if k not in ("format", "format_version")})
    HOSTILE[name](arrays, found)
    files.write(tmp_path / "engine", "engine", arrays, found)
    with pytest.raises(fs.FileFormatError, match="engine is damaged"):
        fs.load_engine(tmp_path / "engine")


def test_what_the_library_runs_is_kept(tmp_path):
    engine = compiled("residual_network")
    (step,) = engine._plan().kernels
    engine._library = tuple(name for node in step.nodes[:3] for name in node.outputs)
    engine._choose(False)
    engine.save(tmp_path / "engine")
    again = fs.load_engine(tmp_path / "engine")
    assert again._library == engine._library


def test_constants_of_every_type_come_back(tmp_path):
    kinds = (
        "float32",
        "float64",
        "float16",
        "int8",
        "uint8",
        "int16",
        "uint16",
        "int32",
        "uint32",
        "int64",
        "uint64",
        "bool",
    )
    tensors = [numpy_helper.from_array(np.arange(6).reshape(2, 3).astype(kind), kind) for kind in kinds]
    tensors.append(helper.make_tensor("bfloat16", TensorProto.BFLOAT16, [2], [1.0, 2.0]))
    outputs = [helper.make_tensor_value_info(t.name, t.data_type, None) for t in tensors[:-1]]
    outputs.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, None))
    node = helper.make_node("Cast", ["bfloat16"], ["y"], to=TensorProto.FLOAT)
    graph = helper.make_graph([node], "g", [], outputs, tensors)
    engine = fs.compile(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    engine.save(tmp_path / "engine")
    for kind, found in zip((*kinds, "float32"), fs.load_engine(tmp_path / "engine").run([]), strict=True):
        assert found.dtype == kind
        np.testing.assert_array_equal(found, [1, 2] if found.ndim == 1 else np.arange(6).reshape(2, 3).astype(kind))
