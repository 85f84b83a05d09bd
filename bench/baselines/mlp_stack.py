"""Linear layers one after the other on one sample, y = W8 ... W1 x, by every library."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from bench.baselines import OURS, Baseline, Call, onnx_model, onnx_session, products
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


def _layer_by_layer(setup: Callable[[Any, int], Call]) -> Callable[[MlpStack, int], Call]:
    """Products one after the other; each reads the array in which the one before keeps its result."""

    def setup_all(case: MlpStack, threads: int) -> Call:
        calls: list[Call] = []
        y = case.x
        for weight in case.weights:
            calls.append(setup(SimpleNamespace(weight=weight, x=y, m=case.size), threads))
            y = calls[-1]()

        def multiply() -> np.ndarray:
            for call in calls:
                y = call()
            return y

        return multiply

    return setup_all


def _scipy(case: MlpStack, threads: int) -> Call:
    def multiply() -> np.ndarray:
        y = case.x
        for weight in case.weights:
            y = weight @ y
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
    Baseline("fastsparse spmv", _layer_by_layer(products.fastsparse)),
    Baseline("scipy", _scipy),
    Baseline("numpy dense", _layer_by_layer(products.numpy_dense)),
    Baseline("MKL sparse", _layer_by_layer(products.mkl_sparse), needs=("mkl",)),
    Baseline("onnxruntime dense", _onnxruntime, needs=("onnxruntime", "onnx")),
]
