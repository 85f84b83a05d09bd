"""Models whose images are NHWC between convolutions, as exporters of TensorFlow and Keras leave them: every convolution
stands between two transpositions, at which the kernels' regions would end."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from fastsparse.onnx.model import Model, density
from fastsparse.onnx.reader import read
from fastsparse.onnx.sessions import message, onnxruntime, serialised

_ORDERS = ([0, 2, 3, 1], [0, 3, 1, 2])
_MANY = 4  # transpositions
_LARGEST = 2**30  # bytes of constants


def in_one_order(model: Model, densest: float) -> Model:
    """The model in one order of axes, as onnxruntime's optimiser moves and joins transpositions.

    Models without sparse convolutions, and those of which it cannot take the transpositions away, stay as they are.
    """
    before, library = _transpositions(model), onnxruntime()
    if before < _MANY or library is None or not _has_sparse_convolutions(model, densest):
        return model
    if sum(getattr(constant, "nbytes", 0) for constant in model.constants.values()) > _LARGEST:
        return model
    try:
        made = _optimised(model, library)
    except Exception:  # what is wrong with the model is said where it is compiled
        return model
    same = [[value.name for value in ends] for ends in (made.inputs, made.outputs)]
    if same != [[value.name for value in ends] for ends in (model.inputs, model.outputs)]:
        return model
    return made if _transpositions(made) * 2 <= before else model


def _transpositions(model: Model) -> int:
    """How many change the order of an image's axes."""
    return sum(node.op == "Transpose" and list(node.get("perm") or ()) in _ORDERS for node in model.nodes)


def _has_sparse_convolutions(model: Model, densest: float) -> bool:
    weights = [model.constant(node.inputs[1]) for node in model.nodes if node.op == "Conv" and len(node.inputs) > 1]
    return any(weight is not None and density(weight) <= densest for weight in weights)


def _optimised(model: Model, library: Any) -> Model:
    """By the optimisations of onnxruntime that keep to ONNX's own operators."""
    options = library.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = library.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        options.optimized_model_filepath = str(path)
        content = serialised(message(model)[0])
        library.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        return read(path)
