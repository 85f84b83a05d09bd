"""Eight linear layers in a row, one sample or a few: y = W8 ... W1 x, by everybody."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from bench.providers import OURS, Call, Provider
from bench.providers import mkl as mkl_library
from bench.workloads import Chain


def _compiled(case: Chain, threads: int) -> Call:
    import fastsparse as fs
    from fastsparse import nn

    layers = []
    for weight in case.weights:
        layer = nn.SparseLinear(case.size, case.size, bias=False, pattern=fs.csr(weight).pattern)
        layer.values.value[...] = weight.data
        layers.append(layer)
    engine = fs.compile(nn.Sequential(*layers), (1, case.size), threads=threads)
    x, out = case.x.reshape(1, -1), np.empty((1, case.size), np.float32)
    return lambda: engine(x, out=out).reshape(-1)


def _one_by_one(case: Chain, threads: int) -> Call:
    import fastsparse as fs

    weights = [fs.csr(weight) for weight in case.weights]
    outs = [np.empty(case.size, np.float32) for _ in weights]

    def multiply() -> np.ndarray:
        y = case.x
        for weight, out in zip(weights, outs):
            y = fs.spmm(weight, y, out=out)
        return y

    return multiply


def _scipy(case: Chain, threads: int) -> Call:
    return _in_turn(case, case.weights)


def _numpy(case: Chain, threads: int) -> Call:
    return _in_turn(case, [weight.toarray() for weight in case.weights])


def _in_turn(case: Chain, weights: list[Any]) -> Call:
    def multiply() -> np.ndarray:
        y = case.x
        for weight in weights:
            y = weight @ y
        return y

    return multiply


def _mkl(case: Chain, threads: int) -> Call:
    calls: list[Callable[[], np.ndarray]] = []
    y = case.x
    for weight in case.weights:
        calls.append(mkl_library.spmm(weight, y, threads))
        y = calls[-1]()  # the next layer reads where this one writes

    def multiply() -> np.ndarray:
        for call in calls:
            y = call()
        return y

    return multiply


def _onnxruntime(case: Chain, threads: int) -> Call:
    import onnx
    import onnxruntime

    names = [f"t{i}" for i in range(len(case.weights) + 1)]
    nodes = [onnx.helper.make_node("Gemm", [a, f"w{a}"], [b], transB=1) for a, b in itertools.pairwise(names)]
    weights = [onnx.numpy_helper.from_array(w.toarray(), f"w{a}") for w, a in zip(case.weights, names)]
    ends = [
        onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, (1, case.size)) for n in (names[0], names[-1])
    ]
    graph = onnx.helper.make_graph(nodes, "chain", [ends[0]], [ends[1]], weights)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = {names[0]: case.x.reshape(1, -1)}
    return lambda: session.run(None, feed)[0].reshape(-1)


PROVIDERS = [
    Provider(OURS, _compiled),
    Provider("fastsparse spmv", _one_by_one),
    Provider("scipy", _scipy),
    Provider("numpy dense", _numpy),
    Provider("MKL sparse", _mkl, needs=("mkl",)),
    Provider("onnxruntime dense", _onnxruntime, needs=("onnxruntime", "onnx")),
]
