"""BLAS has one thread while an engine uses it and the kernels in turn, and as many as before behind that."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from fastsparse.onnx import blas, sessions
from tests.onnx import models

found = pytest.mark.skipif(blas._openblas() is None, reason="NumPy's BLAS is not OpenBLAS")


@pytest.fixture
def threads():
    """OpenBLAS's number of threads, 2 at first."""
    openblas = blas._openblas()
    assert openblas is not None
    get, put = openblas
    before = get()
    put(2)
    yield get
    put(before)


@pytest.mark.T3
@found
def test_one_thread_inside_and_as_before_behind(threads):
    many = threads()
    with blas.one_thread():
        assert threads() == 1
        with blas.one_thread():
            assert threads() == 1
        assert threads() == 1
    assert threads() == many
    with pytest.raises(KeyError), blas.one_thread():
        raise KeyError
    assert threads() == many


@found
def test_the_last_of_many_callers_sets_it_back(threads):
    many, inside, leave = threads(), threading.Barrier(5), threading.Event()

    def call():
        with blas.one_thread():
            inside.wait(60)
            leave.wait(60)

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    inside.wait(60)
    assert threads() == 1
    leave.set()
    for caller in callers:
        caller.join(60)
    assert threads() == many


@pytest.mark.T2
@found
@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork() is not of this system")
def test_a_child_forked_meanwhile_has_as_many_threads_as_before(threads):
    many, inside, leave = threads(), threading.Event(), threading.Event()

    def call():
        with blas.one_thread():
            inside.set()
            leave.wait(60)

    caller = threading.Thread(target=call)
    caller.start()
    inside.wait(60)
    child = os.fork()
    if child == 0:
        seen = threads()
        with blas.one_thread():
            held = threads()
        os._exit(0 if (seen, held, threads()) == (many, 1, many) else 1)
    leave.set()
    caller.join(60)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert threads() == many


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
def test_engines_hold_blas_where_they_need_to(threads, monkeypatch, installed, product, sparse, held):
    """Without onnxruntime NumPy's BLAS computes what is no kernel's."""
    seen, one = [], blas.one_thread

    def noted():
        seen.append(True)
        return one()

    monkeypatch.setattr(blas, "one_thread", noted)
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
