"""What a call keeps for the next one like it must not show: neither in its result nor when it is made meanwhile."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastsparse as fs
from fastsparse.runtime.memo import Memo
from fastsparse.runtime.buffers import address
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


def test_addresses_are_those_of_numpy(rng):
    whole = rng.standard_normal((5, 6, 7))
    frozen = whole.view()
    frozen.flags.writeable = False
    arrays = [
        whole, whole[1:, 2:], whole[::-1, :, ::-1], whole.T, frozen, np.asfortranarray(whole[0]), np.empty(0),
        whole[5:], np.array(1.0), np.broadcast_to(whole[0, 0], (3, 7)), whole.astype("float32"), whole.view(np.uint8),
        whole[0].view(np.recarray), np.frombuffer(b"12345678", np.uint8)[3:],
        np.zeros(3, [("a", "i4"), ("b", "f8")])["b"],
    ]  # fmt: skip
    assert [address(array) for array in arrays] == [array.ctypes.data for array in arrays]


# ---------------------------------------------------------------- the store


def built(found: list[int], value: int) -> Callable[[], int]:
    return lambda: found.append(value) or value


def test_a_store_builds_once_and_forgets_the_oldest():
    memo, made = Memo(limit=3), []
    for key in (0, 1, 2, 0, 0, 3, 3, 0):
        assert memo.get(key, built(made, key)) == key
    assert made == [0, 1, 2, 3]
    assert memo.get(1, built(made, 1)) == 1, "asked for longest ago: gone when 3 came"
    assert memo.get(0, built(made, 0)) == 0
    assert made == [0, 1, 2, 3, 1]
    assert len(memo) == 3


def test_a_store_passes_arguments_on_and_keeps_nothing_of_a_failure():
    memo = Memo()
    with pytest.raises(ZeroDivisionError):
        memo.get("key", divmod, 7, 0)
    assert memo.get("key", divmod, 7, 2) == (3, 1)
    assert memo.get("key", divmod, 1, 1) == (3, 1)
    assert memo.get("other", divmod, 1, 1) == (1, 0)
