"""ONNX's own backend suite: everything that onnxruntime passes, some of it here and all in `bench.onnx_suite`."""

from __future__ import annotations

import pytest

from bench import onnx_suite

state = pytest.importorskip("onnxruntime.capi.onnxruntime_pybind11_state")

# How many cases are in scope guards against a scope that shrinks unseen: of the onnx that this was written with.
_AT_LEAST = {
    "node": (20, 70),
    "simple": (1, 15),
    "pytorch-converted": (4, 12),
    "pytorch-operator": (2, 10),
    "real": (9, 1),
}


@pytest.mark.R8
@pytest.mark.parametrize("kind", onnx_suite.KINDS)
def test_everything_in_scope_passes(kind):
    every, least = _AT_LEAST[kind]
    tally = onnx_suite.run((kind,), every=every)[kind]
    known = max(schema.since_version for schema in state.get_all_operator_schema() if not schema.domain)
    opsets: list[int] = []

    def looks(model):
        opsets.extend(entry.version for entry in model.opset_import)
        raise NotImplementedError

    for case in onnx_suite.cases(kind, every=every):
        onnx_suite.failure(case, looks)
    assert not tally.failed
    assert tally.passed >= least - sum(opset > known for opset in opsets)  # which this onnxruntime refuses


@pytest.mark.R8
@pytest.mark.parametrize("axes", ["2d", "3d"])
def test_branches_of_which_some_results_are_constant(axes):
    """A node whose results follow from constants goes with all that read the others."""
    (case,) = onnx_suite.cases("node", f"test_affine_grid_{axes}_align_corners_expanded")
    assert onnx_suite.failure(case, onnx_suite.by_engine) is None
    assert onnx_suite.failure(case, onnx_suite.by_kernels) is None


def test_the_runner_sees_wrong_outputs():
    (case,) = onnx_suite.cases("pytorch-operator", "test_operator_addmm")
    assert onnx_suite.failure(case, onnx_suite.by_kernels) is None

    def wrong(model):
        run = onnx_suite.by_engine(model)
        return lambda inputs: [y + 0.01 for y in run(inputs)]

    assert "Not equal to tolerance" in onnx_suite.failure(case, wrong)


def test_the_table_names_reasons():
    tallies = {"node": onnx_suite.Tally(2, {"test_a": "ValueError: b"})}
    tallies["node"].outside["NotImplemented"] += 3
    text = onnx_suite.table(tallies)
    assert "3  NotImplemented" in text
    assert "FAILED node test_a: ValueError: b" in text
