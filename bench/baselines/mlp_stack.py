"""Linear layers one after the other on one sample, y = W8 ... W1 x, by every library."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from bench.baselines import OURS, Baseline, Call, onnx_model, onnx_session
from bench.baselines import mkl as mkl_library
from bench.workloads import MlpStack


def _compiled(case: MlpStack, threads: int) -> Call:
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


def _one_by_one(case: MlpStack, threads: int) -> Call:
    import fastsparse as fs

    weights = [fs.csr(weight) for weight in case.weights]
    outs = [np.empty(case.size, np.float32) for _ in weights]

    def multiply() -> np.ndarray:
        y = case.x
        for weight, out in zip(weights, outs):
            y = fs.spmm(weight, y, out=out)
        return y

    return multiply


def _scipy(case: MlpStack, threads: int) -> Call:
    return _in_turn(case, case.weights)


def _numpy(case: MlpStack, threads: int) -> Call:
    return _in_turn(case, [weight.toarray() for weight in case.weights])


def _in_turn(case: MlpStack, weights: list[Any]) -> Call:
    def multiply() -> np.ndarray:
        y = case.x
        for weight in weights:
            y = weight @ y
        return y

    return multiply


def _mkl(case: MlpStack, threads: int) -> Call:
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


def _onnxruntime(case: MlpStack, threads: int) -> Call:
    import onnx

    names = [f"t{i}" for i in range(len(case.weights) + 1)]
    nodes = [onnx.helper.make_node("Gemm", [a, f"w{a}"], [b], transB=1) for a, b in itertools.pairwise(names)]
    weights = {f"w{name}": weight.toarray() for name, weight in zip(names, case.weights)}
    session = onnx_session(onnx_model(nodes, (names[0], (1, case.size)), (names[-1], (1, case.size)), weights), threads)
    feed = {names[0]: case.x.reshape(1, -1)}
    return lambda: session.run(None, feed)[0].reshape(-1)


MLP_STACK = [
    Baseline(OURS, _compiled),
    Baseline("fastsparse spmv", _one_by_one),
    Baseline("scipy", _scipy),
    Baseline("numpy dense", _numpy),
    Baseline("MKL sparse", _mkl, needs=("mkl",)),
    Baseline("onnxruntime dense", _onnxruntime, needs=("onnxruntime", "onnx")),
]
