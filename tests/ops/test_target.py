"""Narrower vectors than this CPU's: the kernels are the same text, and what contract R3 promises has the same bits."""

from __future__ import annotations

import platform

import pytest
from llvmlite import binding

from bench.machine import AVX2

pytestmark = [pytest.mark.R3, pytest.mark.C5]

CODE = """
import hashlib, sys
import numpy as np
import fastsparse as fs
from fastsparse.ops.target import tuned
from fastsparse_kernels import compiler

rates = (0.0, 0.0, 0.0, 1.0)  # tiles of four vectors: one variant of each kernel, to be compiled quickly
names = "tile_rate", "window_tile_rate", "short_row_tile_rate", "in_place_tile_rate", "dense_tile_rate"
tuned(**dict.fromkeys(names, rates)).__enter__()
dtype, rng = sys.argv[1], np.random.default_rng(3)
W = fs.csr((rng.random((20, 54)) < 0.3) * rng.standard_normal((20, 54)), dtype)
X, bias = rng.standard_normal((54, 41)).astype(dtype), rng.standard_normal(20).astype(dtype)
images, grad = rng.standard_normal((18, 6, 8, 7)).astype(dtype), rng.standard_normal((41, 20)).astype(dtype)
digest = hashlib.sha256()


def product(**form):
    # With one column: which form it takes depends on the vector length, the bits of each do not.
    with tuned(**form):
        return [fs.spmm(W, X[:, 0], bias=bias, activation=name) for name in (None, "gelu")]


for result in (
    fs.spmm(W, X, bias=bias, activation="gelu"),
    fs.spmm(W, np.asfortranarray(X), bias=bias),
    *product(slice_nonzeros=-1.0),
    *product(slice_nonzeros=float("inf"), slice_room=float("inf"), streamed_calls=0),
    *product(slice_nonzeros=float("inf"), slice_room=float("inf"), streamed_calls=2),
    fs.spmm(fs.csr(W.toarray()[:5]), X, activation="gelu"),  # reads X in place
    fs.linear(X.T, W, bias, activation="relu"),
    fs.linear_backward(grad, X.T, W)[0],
    fs.conv2d(images, W, bias, kernel_size=3, padding=1),
    fs.conv2d(images[:1], W, bias, kernel_size=3, stride=2, padding=1),
):
    digest.update(np.ascontiguousarray(result).tobytes())
sums = np.abs(grad.T) @ np.abs(X.T)  # 41 products each
error = np.abs(fs.linear_backward(grad, X.T, W)[1] - (grad.T.astype("longdouble") @ X.T)[W.toarray() != 0])
assert (error <= 42 * np.finfo(dtype).eps / 2 * 1.001 * sums[W.toarray() != 0]).all()
print(compiler.vector_bytes(), digest.hexdigest())
"""
CPUS = {
    "AVX2": (32, {name: AVX2[name] for name in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES")}),
    "SSE": (16, {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": None}),
}


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the names are those of x86")
@pytest.mark.parametrize(("name", "dtype"), [("AVX2", "float32"), ("SSE", "float64")])
def test_narrower_vectors_give_the_same_bits(run_python, name, dtype):
    features = binding.get_host_cpu_features()
    if name == "AVX2" and not (features.get("avx2") and features.get("fma")):
        pytest.skip("this CPU has no AVX2")
    width, environment = CPUS[name]
    expected = run_python(CODE, dtype, NUMBA_CPU_NAME=None, NUMBA_CPU_FEATURES=None).stdout.split()
    assert run_python(CODE, dtype, **environment).stdout.split() == [str(width), expected[1]]
