"""Prepared launches: what a call keeps for the next one like it must not show, slices, and what is printed of them."""

from __future__ import annotations

import gc
import re
import threading
from typing import Any

import numpy as np
import pytest
from numba import config

import fastsparse as fs
from fastsparse import nn
from fastsparse.engine.choosing import Choice, scheduled
from fastsparse.engine.split import Split
from fastsparse.engine.workspace import Workspace
from fastsparse.ops.target import tuned
from fastsparse.runtime import launch
from fastsparse.runtime.launch import Arguments, BoundLaunch
from fastsparse_kernels import parallel, sequence
from tests.checking import ACTIVATIONS, DTYPES

ROWS, COLUMNS = 21, 34


def matrix(rng: np.random.Generator, dtype: Any, density: float = 0.3) -> Any:
    dense = rng.standard_normal((ROWS, COLUMNS)) * (rng.random((ROWS, COLUMNS)) < density)
    return dense.astype(dtype)


def layouts(rng: np.random.Generator, n: int, dtype: Any) -> dict[str, Any]:
    """X (COLUMNS, n), each in another layout."""
    wide = rng.standard_normal((COLUMNS, 2 * n + 1)).astype(dtype)
    tall = rng.standard_normal((n, COLUMNS + 3)).astype(dtype)
    return {
        "row-major": np.ascontiguousarray(wide[:, :n]),
        "part of rows": wide[:, 1 : n + 1],
        "every second": wide[:, : 2 * n : 2],
        "upside down": wide[::-1, :n],
        "column-major": tall[:, :COLUMNS].T,
        "contiguous columns": np.asfortranarray(wide[:, :n]),
        "one for all rows": np.broadcast_to(wide[:1, :n], (COLUMNS, n)),
    }


@pytest.mark.R3
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("density", [0.1, 0.3])  # X is read in place, and packed
def test_calls_in_any_order_are_those_of_a_fresh_matrix(rng, density, dtype):
    """Shapes, layouts, biases and activations take turns on one matrix, in two orders; another never saw a call."""
    dense = matrix(rng, dtype, density)
    W = fs.csr(dense)
    biases = [None, *rng.standard_normal((2, ROWS)).astype(dtype)]
    calls = [
        (X, bias, activation)
        for n in (1, 3, 8, 50)
        for X in layouts(rng, n, dtype).values()
        for bias in biases
        for activation in (None, "relu", "gelu")
    ]
    for i in (*rng.permutation(len(calls)), *rng.permutation(len(calls))):
        X, bias, activation = calls[i]
        fresh = fs.csr(dense)
        expected = fs.spmm(fresh, X, bias=bias, activation=activation)
        assert np.array_equal(fs.spmm(W, X, bias=bias, activation=activation), expected)
        assert np.array_equal(
            fs.linear(X.T, W, bias, activation=activation), fs.linear(X.T, fresh, bias, activation=activation)
        )


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_bias_is_that_of_its_call_alone(rng, activation):
    W, X = fs.csr(matrix(rng, "float32")), rng.standard_normal((COLUMNS, 9)).astype("float32")
    without = fs.spmm(W, X, activation=activation)
    with_bias = fs.spmm(W, X, bias=np.full(ROWS, 3.0, np.float32), activation=activation)
    assert not np.array_equal(with_bias, without)
    assert np.array_equal(fs.spmm(W, X, activation=activation), without)


def test_values_are_those_of_the_matrix(rng):
    W, X = fs.csr(matrix(rng, "float64")), rng.standard_normal((COLUMNS, 9))
    for x in (X, X[:, 0], np.asfortranarray(X)):
        once = fs.spmm(W, x)
        assert np.array_equal(fs.spmm(W.with_data(2 * W.data), x), 2 * once)
        assert np.array_equal(fs.spmm(W, x), once)


def test_a_layer_sees_its_values_change(rng):
    layer = fs.nn.SparseLinear(COLUMNS, ROWS, bias=False, rng=0).eval()
    for x in rng.standard_normal((3, 1, COLUMNS)).astype("float32"), rng.standard_normal((9, COLUMNS)):
        x = x.astype("float32")
        before = layer(x)
        layer.values.value *= 2
        assert np.array_equal(layer(x), 2 * before)


def test_what_was_forgotten_is_made_again(rng):
    """More shapes than a matrix keeps calls for; what is left of their memory is overwritten."""
    W = fs.csr(matrix(rng, "float32"))
    X = rng.standard_normal((COLUMNS, 90)).astype("float32")
    for turn in range(2):
        for n in range(2, 90):
            expected = fs.spmm(W, X)[:, :n]
            assert np.array_equal(fs.spmm(W, X[:, :n].copy()), expected), (turn, n)
            assert np.array_equal(fs.linear(X[:, :n].T, W), expected.T), (turn, n)
        gc.collect()


@pytest.mark.T1
@pytest.mark.parametrize("shape", [(COLUMNS,), (COLUMNS, 8), (COLUMNS, 49)])
def test_threads_share_what_is_kept(rng, shape):
    """Eight threads repeat one call, each with an input, a bias and an output of its own."""
    W = fs.csr(matrix(rng, "float32"))
    wrong: list[int] = []
    start = threading.Barrier(8)

    def repeat(X: Any, bias: Any, expected: Any) -> None:
        out = np.empty_like(expected)
        start.wait()
        for i in range(300):
            out.fill(np.nan)
            fs.spmm(W, X, bias=bias, out=out)
            if not np.array_equal(out, expected):
                wrong.append(i)

    threads = []
    for _ in range(8):
        X, bias = rng.standard_normal(shape).astype("float32"), rng.standard_normal(ROWS).astype("float32")
        threads.append(threading.Thread(target=repeat, args=(X, bias, fs.spmm(W, X, bias=bias))))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(("tasks", "threads", "slices"), [(2, 2, 1), (7, 2, 3), (8, 1, 8), (100, 2, 10)])
def test_slices_keep_every_worker_busy(monkeypatch, tasks, threads, slices):
    """Long calls are cut for Ctrl-C, but never into pieces of fewer tasks than workers."""
    ranges: list[Any] = []
    arguments = Arguments(np.dtype([("counter", np.int64), ("stop", np.int64)]))

    def run(*given: Any) -> None:
        ranges.append(given[-2:])

    monkeypatch.setattr(launch, "available_workers", lambda threads: threads)
    monkeypatch.setattr(parallel, "run_parallel", lambda: run)
    monkeypatch.setattr(parallel, "run_serial", lambda: run)
    kernel = sequence.sequence_kernel().address
    BoundLaunch(kernel, arguments, tasks, 1e9 * threads * 10).run(threads, slice_flops=1e9)
    assert len(ranges) == slices
    assert [start for start, _ in ranges] == [0, *(stop for _, stop in ranges[:-1])]
    assert ranges[-1][1] == tasks
    assert all(stop - start >= threads for start, stop in ranges)


# ------------------------------------------------------------------------------------------------ FASTSPARSE_VERBOSE

VERBOSE = """
import numpy as np
import fastsparse as fs

W = fs.csr(np.tri(40, 90, 30, dtype=np.float32))
F = fs.csr(np.ones((6, 27), np.float32))
images = np.ones((3, 3, 8, 9), np.float32)
model = fs.nn.Sequential(fs.nn.SparseLinear(90, 40, pattern=W.pattern), fs.nn.ReLU())
calls = {
    "spmm": lambda: fs.spmm(W, np.ones((90, 33), np.float32), activation="gelu"),
    "spmv": lambda: fs.spmm(W, np.ones(90, np.float32)),
    "linear": lambda: fs.linear(np.ones((33, 90), np.float32), W, activation="relu"),
    "conv": lambda: fs.conv2d(images, F, kernel_size=3, padding=1),
    "sddmm": lambda: fs.sddmm(W.pattern, np.ones((40, 33), np.float32), np.ones((33, 90), np.float32)),
    "activation": lambda: fs.nn.ReLU()(images),
}
for name, call in calls.items():
    print("##", name, file=sys.stderr, flush=True)
    call()
print(W.nnz)
"""


def test_verbose_prints_a_line_for_every_launch(run_python):
    """Operation, sizes, nonzeros, layout and kernel, threads and time, as numbers."""
    done = run_python("import sys\n" + VERBOSE, FASTSPARSE_VERBOSE="1", FASTSPARSE_NUM_THREADS="2")
    nonzeros = done.stdout.strip()
    lines: dict[str, list[str]] = {}
    for line in done.stderr.splitlines():
        if line.startswith("## "):
            lines[line[3:]] = []
        elif not line.startswith("fastsparse: compiling kernels"):  # said where that takes long
            lines[list(lines)[-1]].append(line)
    for name, found in lines.items():
        assert found, f"nothing was printed for {name}"
        for line in found:
            parts = line.split(",")
            assert parts[0] == "fastsparse", line
            assert re.fullmatch(r"threads [12]", parts[-2]), line
            assert re.fullmatch(r"[0-9.e+-]+ ms", parts[-1]), line
            assert float(parts[-1].removesuffix(" ms")) > 0
    operations = {name: [line.split(",")[1] for line in found] for name, found in lines.items()}
    assert operations["spmm"] == ["spmm"]
    assert operations["spmv"] == ["spmv"]
    assert operations["linear"] == ["pack", "linear", "unpack"]
    assert operations["conv"] == ["pack", "conv"]
    assert operations["sddmm"] == ["pack", "pack", "sddmm"]
    assert operations["activation"] == ["activation"]
    for name in ("spmm", "spmv", "linear", "sddmm"):
        assert any(f"nnz {nonzeros}" in line for line in lines[name]), lines[name]
    for name, fields in {
        "spmm": ("40x90 by", "row-major", "tile", "gelu"),
        "spmv": ("spmv,40x90,nnz",),
        "linear": ("40x90 by", "batch-blocked", "relu"),
        "conv": ("6x27 by", "padded NCHW", "tile"),
        "sddmm": ("40x90 by 64", "run"),
        "activation": ("648", "relu"),
    }.items():
        assert any(all(field in line for field in fields) for line in lines[name]), (name, lines[name])
    assert "3x3x8x9" in lines["conv"][0] or "3x3x8" in lines["conv"][0]


@pytest.mark.parametrize("value", [None, "", "0", "false", "No", " off "])
def test_without_verbose_nothing_is_printed(run_python, value):
    code = "import numpy as np, fastsparse as fs; fs.spmm(fs.csr(np.eye(3)), np.ones((3, 2)))"
    assert run_python(code, FASTSPARSE_VERBOSE=value).stderr == ""


def test_engines_are_verbose_too(run_python):
    """One line for each step of the network, or for all where every worker runs them on samples of its own."""
    code = """
import sys
import numpy as np
import fastsparse as fs
model = fs.nn.Sequential(fs.nn.SparseLinear(90, 40, sparsity=0.5, rng=0), fs.nn.ReLU())
for batch, threads in ((1, 1), (40, 1), (40, 2)):
    engine = fs.compile(model, (batch, 90), threads=threads, tune=False)
    print("##", file=sys.stderr, flush=True)
    y = engine(np.ones((batch, 90), np.float32))
    assert np.array_equal(engine(np.ones((batch, 90), np.float32)), y)
"""
    done = run_python(code, FASTSPARSE_VERBOSE="1")
    operations = [[line.split(",")[1] for line in part.splitlines()] for part in done.stderr.split("##\n")[1:]]
    assert operations[0] == 2 * ["spmv"]
    for found in operations[1:]:
        assert found in (2 * ["network"], 2 * ["pack", "spmm", "unpack"])


@pytest.mark.skipif(config.NUMBA_NUM_THREADS < 2, reason="one worker")
def test_a_worker_has_the_same_scratch_in_all_launches(rng, monkeypatch):
    """In calls and in an engine. What another worker wrote comes from its cache, or was fetched ahead by its core."""
    launches: list[launch.Launch] = []
    prepare = launch.Launch.__init__

    def noted(self: launch.Launch, *args: Any, **fields: Any) -> None:
        prepare(self, *args, **fields)
        launches.append(self)

    monkeypatch.setattr(launch.Launch, "__init__", noted)
    W = fs.csr((rng.standard_normal((64, 576)) * (rng.random((64, 576)) < 0.3)).astype(np.float32))
    x = rng.standard_normal((16, 64, 6, 6)).astype(np.float32)
    with tuned(parallel_flops=0), fs.threads(2):
        y = fs.conv2d(x, W, kernel_size=3, padding=1)
        fs.conv2d_backward(y, x, W, kernel_size=3, padding=1)
        fs.linear(x.reshape(16 * 4, 576), W)
        layers = (nn.SparseConv2d(64, 64, 3, sparsity=0.8, rng=0), nn.SparseConv2d(64, 8, 1, sparsity=0.8, rng=0))
        program = fs.compile(nn.Sequential(*layers).eval(), (1, 64, 20, 20), tune=False)._program
        space = Workspace(scheduled(program, 1, 2, Choice("padded", Split(False, 1, 1))))
    for arguments in (
        [each.arguments for each in launches if each.threads > 1],
        [each.arguments for each in space.launches[0]],
    ):
        words = [each.words[each.word("scratch_stride")] for each in arguments if "scratch" in each.index]
        strides = {stride for stride in words if stride}
        assert len(strides) == 1
        assert strides.pop() % 4096 == 0
