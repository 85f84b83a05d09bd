"""BLAS has one thread while ONNX's own evaluator uses it, and as many as before behind that."""

from __future__ import annotations

import numpy as np
import pytest
import threadpoolctl
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from fastsparse.onnx import sessions
from tests.onnx import models

BLAS = threadpoolctl.ThreadpoolController().select(user_api="blas")
found = pytest.mark.skipif(len(BLAS) == 0, reason="NumPy has a BLAS of one thread")


@pytest.mark.T3
@found
def test_the_evaluator_has_one_thread_of_blas(monkeypatch):
    monkeypatch.setattr(sessions, "onnxruntime", lambda: None)
    seen, run = [], ReferenceEvaluator.run

    def noted(*arguments):
        seen.append({library["num_threads"] for library in BLAS.info()})
        return run(*arguments)

    monkeypatch.setattr(ReferenceEvaluator, "run", noted)
    engine = models.on_kernels(_model(True, False), threads=1)
    with BLAS.limit(limits=2):
        engine.run([np.ones((4, 64), "float32")])
        assert {library["num_threads"] for library in BLAS.info()} == {2}
    assert seen
    assert all(threads == {1} for threads in seen)


def _model(product: bool, sparse: bool):
    """x through a sparse layer, or times its transpose, or both."""
    rng = np.random.default_rng(0)
    weight = np.where(rng.random((64, 64)) < 0.9, 0, rng.standard_normal((64, 64))).astype(np.float32)
    nodes, last, size = [], "x", 64
    if sparse:
        nodes.append(helper.make_node("MatMul", [last, "w"], ["h"]))
        last = "h"
    if product:
        nodes.append(helper.make_node("Transpose", [last], ["t"]))
        nodes.append(helper.make_node("MatMul", [last, "t"], ["p"]))
        last, size = "p", 4
    nodes.append(helper.make_node("Relu", [last], ["y"]))
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, n])] for name, n in (("x", 64), ("y", size))]
    graph = helper.make_graph(nodes, "g", *ends, [numpy_helper.from_array(weight, "w")] if sparse else [])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


@found
@pytest.mark.parametrize(
    ("installed", "product", "sparse", "held"),
    [(False, True, True, True), (False, True, False, True), (False, False, True, False), (True, True, True, False)],
)
def test_engines_hold_blas_where_they_need_to(monkeypatch, installed, product, sparse, held):
    """Without onnxruntime NumPy's BLAS computes what is no kernel's."""
    seen, one = [], sessions.one_blas_thread

    def noted():
        seen.append(True)
        return one()

    monkeypatch.setattr(sessions, "one_blas_thread", noted)
    if not installed:
        monkeypatch.setattr(sessions, "onnxruntime", lambda: None)
    model = _model(product, sparse)
    engine = models.on_kernels(model, threads=1)
    x = np.random.default_rng(0).standard_normal((4, 64)).astype("float32")
    assert max(models.shares(engine.run([x]), models.reference(model, [x]))) < 1e-6
    assert bool(seen) == held
    seen.clear()
    report = str(engine.report())
    assert bool(seen) == held, "what the report times is what a call does"
    assert ("onnx.reference" in report) != installed
