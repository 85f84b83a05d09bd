"""Contract I5: arrays that kernels write to are asked for where they enter; nothing changes when one is refused.

Functions are found by their signatures, so that a new one that writes has to be put into a table here.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import sparse

import fastsparse as fs
from fastsparse import functional, nn
from fastsparse.ops import activations, norm, optimizers, softmax
from fastsparse.runtime.buffers import share_memory
from tests.layouts import (
    Array,
    as_strided,
    bits,
    not_writable,
    spread,
    wrong_kinds,
    wrong_layouts,
)

pytestmark = pytest.mark.I5

# ---------------------------------------------------------------- out=

W = fs.csr(np.eye(4, 18, dtype=np.float32))
X = np.ones((3, 2, 5, 5), np.float32)
ENGINE_INPUT = np.ones((3, 18), np.float32)
WITH_OUT: dict[str, tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = {
    "functional.spmm": (fs.spmm, (W, np.ones((18, 5), np.float32)), {"bias": np.ones(4, np.float32)}),
    "functional.linear": (fs.linear, (np.ones((3, 18), np.float32), W), {"bias": np.ones(4, np.float32)}),
    "functional.matmul": (functional.matmul, (W, np.ones((18, 5), np.float32)), {}),
    "functional.product": (functional.product, (W, np.ones((18, 5), np.float32)), {"names": ("A", "X")}),
    "functional.conv1d": (fs.conv1d, (np.ones((3, 2, 12), np.float32), W), {"kernel_size": 9}),
    "functional.conv2d": (fs.conv2d, (X, W), {"kernel_size": 3}),
    "functional.conv3d": (fs.conv3d, (X[:, :, None], W), {"kernel_size": (1, 3, 3)}),
    "functional.conv_transpose2d": (fs.conv_transpose2d, (np.ones((3, 4, 3, 3), np.float32), W), {"kernel_size": 3}),
    "activations.activate": (activations.activate, ("gelu", np.ones((3, 18), np.float32)), {}),
    "softmax.softmax": (softmax.softmax, (np.ones((3, 18), np.float32),), {}),
    "norm.layer_norm": (
        norm.layer_norm, (np.ones((3, 4), np.float32), np.ones(4, np.float32), np.ones(4, np.float32), 1e-5),
        {},
    ),
}  # fmt: skip
MORE_WITH_OUT: dict[str, tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = {
    "spmv": (fs.spmm, (W, np.ones(18, np.float32)), {}),
    "sparse linear": (fs.linear, (sparse.csr_array(np.ones((3, 18), np.float32)), W), {}),
}


def test_the_table_of_out_is_complete() -> None:
    found = {
        f"{module.__name__.rpartition('.')[2]}.{name}"
        for module in (functional, activations, softmax, norm)
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if not name.startswith("_")
        and "out" in inspect.signature(function).parameters
        and function.__module__ == module.__name__
    }
    assert found == set(WITH_OUT)


@pytest.mark.parametrize("name", [*WITH_OUT, *MORE_WITH_OUT, "engine"])
def test_out_that_cannot_be_written_is_refused(name: str, tmp_path: Path) -> None:
    if name == "engine":
        engine = fs.compile(nn.Sequential(nn.SparseLinear(18, 4, rng=0)), ENGINE_INPUT.shape, threads=1, tune=False)
        function, arguments, keywords = engine, (ENGINE_INPUT,), {}
    else:
        function, arguments, keywords = {**WITH_OUT, **MORE_WITH_OUT}[name]
    expected = function(*arguments, **keywords)
    out = np.full_like(expected, 7)
    assert function(*arguments, **keywords, out=out) is out
    np.testing.assert_array_equal(out, expected)
    for kind, given in not_writable(out, tmp_path).items():
        before = bits(given)
        with pytest.raises((TypeError, ValueError), match=r"^out "):
            function(*arguments, **keywords, out=given)
        assert bits(given) == before, kind


@pytest.mark.parametrize("name", [*WITH_OUT, *MORE_WITH_OUT])
def test_out_that_lies_on_an_input_is_refused(name: str) -> None:
    function, arguments, keywords = {**WITH_OUT, **MORE_WITH_OUT}[name]
    shape = function(*arguments, **keywords).shape
    inputs = {
        i: a.data if sparse.issparse(a) else a
        for i, a in enumerate(arguments)
        if not isinstance(a, (float, str, fs.CSR))
    }
    for i, array in inputs.items():
        memory = np.ones(array.size + int(np.prod(shape)), np.float32)
        inside = memory[: array.size].reshape(array.shape)
        given = arguments[i].copy() if sparse.issparse(arguments[i]) else inside
        if sparse.issparse(given):
            given.data = inside
        out = memory[array.size - 1 :][: int(np.prod(shape))].reshape(shape)
        with pytest.raises(ValueError, match=r"^out shares memory"):
            function(*arguments[:i], given, *arguments[i + 1 :], **keywords, out=out)
        assert (memory == 1).all()


def test_out_between_the_rows_of_an_input_is_taken() -> None:
    """The bounds of both overlap, their elements do not."""
    memory = np.ones((18, 8), np.float32)
    product, out = fs.spmm(fs.csr(np.ones((1, 18), np.float32)), memory[:, :4]), memory[2:3, 4:]
    assert fs.spmm(fs.csr(np.ones((1, 18), np.float32)), memory[:, :4], out=out) is out
    np.testing.assert_array_equal(out, product)
    memory[...] = 1
    x, out = memory[:, :4].T, memory[3, 4:].reshape(4, 1)
    assert fs.linear(x, fs.csr(np.ones((1, 18), np.float32)), out=out) is out
    np.testing.assert_array_equal(out, np.full((4, 1), 18))


def test_layouts_too_hard_to_compare_count_as_shared() -> None:
    memory = np.zeros(1 << 20, np.uint8)
    shape, a = (5, 7, 11, 13, 3), (3 * 17 * 19, 5 * 23 * 3, 7 * 29, 11 * 2, 2)
    one = as_strided(memory, shape, a)
    other = as_strided(memory[1:], shape, tuple(2 * s for s in reversed(a)))
    assert share_memory(one, one)
    assert share_memory(one, other)
    assert not share_memory(memory[::2], memory[1::2])
    assert not share_memory(memory[:9], memory[9:])


def test_softmax_may_be_written_over_x() -> None:
    x = np.random.default_rng(0).normal(size=(3, 9)).astype("f")
    expected = softmax.softmax(x)
    assert softmax.softmax(x, out=x) is x
    np.testing.assert_array_equal(x, expected)


# ---------------------------------------------------------------- arrays that kernels get


def _array(*shape: int, dtype: Any = np.float32) -> Array:
    return np.ones(shape, dtype)


# For each function that changes its arguments: names of the arrays, those it writes behind a star, and the arguments.
KERNEL_CALLS: dict[str, dict[str, Any]] = {
    "sgd_step": {
        "value*": _array(9), "grad": _array(9), "velocity*": _array(9), "rate": 0.1, "momentum": 0.9, "nesterov": False,
        "weight_decay": 0.1,
    },
    "adam_step": {
        "value*": _array(9), "grad": _array(9), "first*": _array(9), "second*": _array(9), "rate": 0.1,
        "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1, "decoupled": False, "steps": 1,
    },
}  # fmt: skip


def test_the_table_of_kernel_calls_is_complete() -> None:
    found = {
        name
        for name, function in inspect.getmembers(optimizers, inspect.isfunction)
        if name.endswith("_step") and function.__module__ == optimizers.__name__
    }
    assert found == set(KERNEL_CALLS)


def _wrong_arguments(name: str, folder: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for starred, array in KERNEL_CALLS[name].items():
        argument = starred.rstrip("*")
        if not isinstance(array, np.ndarray) or argument == "value":
            continue  # the others are measured by these
        kinds = not_writable(array, folder) if starred != argument else {**wrong_layouts(array), **wrong_kinds(array)}
        for kind, given in kinds.items():
            arguments = {key.rstrip("*"): copy.deepcopy(value) for key, value in KERNEL_CALLS[name].items()}
            yield argument, kind, {**arguments, argument: given}


@pytest.mark.parametrize("name", KERNEL_CALLS)
def test_kernels_get_what_they_write_and_read_or_nothing_happens(name: str, tmp_path: Path) -> None:
    function = getattr(optimizers, name)
    for argument, kind, arguments in _wrong_arguments(name, tmp_path):
        before = {key: bits(value) for key, value in arguments.items() if isinstance(value, np.ndarray)}
        with pytest.raises((TypeError, ValueError), match=f"^{argument} "):
            function(**arguments)
        for key, value in before.items():
            assert arguments[key].tobytes() == value, (argument, kind, key)
    arguments = {key.rstrip("*"): copy.deepcopy(value) for key, value in KERNEL_CALLS[name].items()}
    with pytest.raises(ValueError, match=r"^value is .*C-contiguous"):
        function(**{**arguments, "value": spread(arguments["value"])})
