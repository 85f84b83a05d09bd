"""Engines of ONNX models in files: the same bits without the ONNX package, and no trust in what a file says."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

import fastsparse as fs
from fastsparse import files
from tests.onnx import models


def compiled(name: str, **options: Any) -> Any:
    shapes = {"encoder": [(2, 6), (2, 6)]}
    return fs.compile(getattr(models, name)(), shapes.get(name), **options)


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


def test_loading_needs_no_onnx(tmp_path, run_python):
    compiled("residual_network", tune=False).save(tmp_path / "engine")
    run_python(
        "import sys; sys.modules['onnx'] = None\n"
        "import fastsparse as fs\n"
        "engine = fs.load_engine(sys.argv[1])\n"
        "engine.run(engine.random_inputs(1))",
        str(tmp_path / "engine"),
    )


def test_what_tuning_chose_is_kept(tmp_path, monkeypatch):
    engine = compiled("residual_network", tune=False)
    engine.prepare([x.shape for x in engine.random_inputs(20)], tune=True)
    engine.save(tmp_path / "engine")
    again = fs.load_engine(tmp_path / "engine")
    assert again._choices == engine._choices != {}


def _nodes(change: Any) -> Any:
    return lambda model: change(model["nodes"])


HOSTILE = {
    "unknown operator": _nodes(lambda nodes: nodes[0].update(op="System")),
    "reads the future": _nodes(lambda nodes: nodes.reverse()),
    "written twice": _nodes(lambda nodes: nodes.append(nodes[0])),
    "no outputs": lambda model: model.update(outputs=[]),
    "output nobody writes": lambda model: model["outputs"][0].update(name="nothing"),
    "dtype": lambda model: model["inputs"][0].update(dtype="object"),
    "constant that is missing": lambda model: next(iter(model["constants"].values())).clear(),
    "attribute": _nodes(lambda nodes: nodes[0]["attributes"].update(strides=[None])),
    "version": _nodes(lambda nodes: nodes[0].update(version="17")),
    "no model": lambda model: model.clear(),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused(name, tmp_path):
    compiled("residual_network", tune=False).save(tmp_path / "engine")
    arrays, found = files.read(tmp_path / "engine", "engine")
    found = copy.deepcopy({k: v for k, v in found.items() if k not in ("format", "format_version")})
    HOSTILE[name](found["model"])
    files.write(tmp_path / "engine", "engine", arrays, found)
    with pytest.raises(fs.FileFormatError, match="engine is damaged"):
        fs.load_engine(tmp_path / "engine")


def test_constants_of_every_type_come_back():
    from fastsparse.onnx import serial
    from fastsparse.onnx.model import Model, Value

    kinds = ("float32", "float64", "float16", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
    constants: dict[str, Any] = {kind: np.arange(6).reshape(2, 3).astype(kind) for kind in kinds}
    constants["bool"], constants["scalar"] = np.array([True, False]), np.array(3, np.int64)
    value = Value("x", np.dtype("float32"), ("N", None, 3))
    arrays: dict[str, Any] = {}
    again = serial.from_plain(serial.to_plain(Model((), constants, (value,), (value,)), arrays), arrays)
    assert again.inputs == (value,)
    for name, array in constants.items():
        assert again.constants[name].dtype == array.dtype
        np.testing.assert_array_equal(again.constants[name], array)
    plain = serial.to_plain(Model((), constants, (value,), (value,)), arrays := {})
    name = plain["constants"]["bool"]["array"]
    arrays[name] = np.array([2, 0], np.uint8)
    with pytest.raises(ValueError, match="truth value"):
        serial.from_plain(plain, arrays)
