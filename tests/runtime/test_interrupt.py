"""Contract T4: Ctrl-C ends a long call, because no launch of a kernel is long."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

import fastsparse as fs
from fastsparse.ops.target import tuned
from fastsparse.runtime import launch
from fastsparse_kernels import parallel
from tests.checking import PATTERNS, matrix, numbers, same_bits

pytestmark = [pytest.mark.T4, pytest.mark.filterwarnings("error")]


def calls(rng: np.random.Generator) -> dict[str, tuple[Any, float]]:
    """Calls that use each kernel, with the floating-point operations of the product."""
    W = matrix(rng, PATTERNS["scattered"](rng, (120, 90)), "float32")
    F = matrix(rng, PATTERNS["scattered"](rng, (24, 6 * 9)), "float32")
    X, grad = numbers(rng, (90, 700), "float32"), numbers(rng, (700, 120), "float32")
    x = matrix(rng, PATTERNS["scattered"](rng, (700, 90)), "float32").to_scipy()
    one, many = numbers(rng, (2, 6, 40, 41), "float32"), numbers(rng, (40, 6, 9, 10), "float32")
    wide, dy = numbers(rng, (8, 90, 50), "float32"), numbers(rng, (40, 24, 9, 10), "float32")
    tall = matrix(rng, PATTERNS["scattered"](rng, (700, 90)), "float32")
    padded: Any = {"kernel_size": 3, "padding": 1}
    return {
        "spmm": (lambda: fs.spmm(W, X), 2 * W.nnz * 700),
        "spmm of columns": (lambda: fs.spmm(W, np.asfortranarray(X)), 2 * W.nnz * 700),
        "spmv": (lambda: fs.spmm(tall, X[:, 0], activation="tanh"), 2 * tall.nnz),
        "linear": (lambda: fs.linear(X.T, W), 2 * W.nnz * 700),
        "linear_backward": (lambda: fs.linear_backward(grad, X.T, W)[1], 4 * W.nnz * 700),
        "sddmm": (lambda: fs.sddmm(W.pattern, grad.T, X.T).data, 2 * W.nnz * 700),
        "sparse linear": (lambda: fs.linear(x, W), 2 * x.nnz * W.nnz / 90),
        "sparse gradient": (lambda: fs.linear_backward(grad, x, W, need_input=False)[1], 2 * x.nnz * W.nnz / 90),
        "padded conv": (lambda: fs.conv2d(one, F, **padded), 4 * F.nnz * 40 * 41),
        "pointwise conv": (lambda: fs.conv1d(wide, W, kernel_size=1), 2 * W.nnz * 400),
        "conv of a batch": (lambda: fs.conv2d(many, F, **padded), 2 * F.nnz * 90 * 40),
        "conv2d_backward": (lambda: fs.conv2d_backward(dy, many, F, **padded)[1], 4 * F.nnz * 90 * 40),
    }


NAMES = list(calls(np.random.default_rng(0)))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_long_work_is_launched_in_slices(rng, monkeypatch, name, threads):
    """As many launches as the work has slices, and the same bits."""
    expected = calls(rng)[name][0]()
    launches = []
    launch.expect_launcher(False)  # once in a process: what they call is replaced below
    launch.expect_launcher(True)
    serial, shared = parallel.run_serial(), parallel.run_parallel()
    monkeypatch.setattr(parallel, "run_serial", lambda: lambda *a: (launches.append(1), serial(*a)))
    monkeypatch.setattr(parallel, "run_parallel", lambda: lambda *a: (launches.append(a[4]), shared(*a)))
    call, flops = calls(np.random.default_rng(20240607))[name]
    with tuned(parallel_flops=0, slice_flops=flops / 4), fs.threads(threads):
        assert same_bits(call(), expected)
    assert sum(launches) >= 4


def test_parts_of_a_weight_gradient_are_the_whole(rng):
    """Parts by batches, and by runs of positions inside one batch, sum in the order of the whole."""
    W = matrix(rng, PATTERNS["scattered"](rng, (5, 3 * 9)), "float64")
    for samples in (1, 20, 100):
        x, dy = numbers(rng, (samples, 3, 13, 11), "float64"), numbers(rng, (samples, 5, 13, 11), "float64")
        with fs.threads(1):
            expected = fs.conv2d_backward(dy, x, W, kernel_size=3, padding=1)[1]
            for slice_flops in (1, 1000, 20_000, 200_000):
                with tuned(slice_flops=slice_flops):
                    assert same_bits(fs.conv2d_backward(dy, x, W, kernel_size=3, padding=1)[1], expected)


LONG = """
import faulthandler, os, signal, sys, threading
faulthandler.dump_traceback_later(600, exit=True)  # a hang ends with a traceback
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells tell what they start with & to ignore it
import numpy as np
import fastsparse as fs
from numpy.lib.stride_tricks import as_strided

# A minute of work or more in little memory: all rows of X are one.
rng = np.random.default_rng(1)
rows, columns, samples = 64, 2**16, 2**18
indptr, indices = np.arange(rows + 1) * columns // 2, np.tile(np.arange(0, columns, 2), rows)
W = fs.CSR(indptr, indices, np.ones(rows * columns // 2, "f4"), (rows, columns))
row = np.ones(samples, np.float32)
X = as_strided(row, (columns, samples), (0, 4))
out = np.full((rows, samples), np.nan, np.float32)
fs.spmm(W, X[:, :1024])  # compiles, which Ctrl-C may not end
with fs.threads(int(sys.argv[1])):
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        fs.spmm(W, X, out=out)
        print("finished")
    except KeyboardInterrupt:
        print("interrupted", bool(np.isnan(out).any()))
    print(bool((fs.spmm(W, X[:, :1024]) == columns // 2).all()))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="os.kill ends the process there")
@pytest.mark.parametrize("threads", [1, 2])
def test_ctrl_c_ends_a_long_call(run_python, threads):
    assert run_python(LONG, str(threads)).stdout.split() == ["interrupted", "True", "True"]
