"""What the tests of products share: patterns, ways to compute one product, and contract R1's bound."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import sparse

import fastsparse as fs
from fastsparse import functional
from fastsparse.ops.heuristics import WIDEST_TILE, Heuristics, heuristics_for
from fastsparse.ops.target import Target, tuned
from fastsparse_kernels import compiler, parallel
from fastsparse_kernels import reference as ref

Array = NDArray[Any]
Rng = np.random.Generator

DTYPES = ["float32", "float64"]
ACTIVATIONS = functional.ACTIVATIONS
# Largest slope of each activation: how much it can enlarge the error of what it is given.
SLOPES = {None: 1.0, "gelu": 1.13, "gelu_tanh": 1.13, "silu": 1.1, "hardswish": 1.5}


def lanes(dtype: Any) -> int:
    """VL for numbers of `dtype`."""
    return compiler.lanes(np.dtype(dtype).itemsize * 8)


def target(bits: int, lanes: int, threads: int = 1, **changes: Any) -> Target:
    """A target of any CPU, with its heuristics, some fields of which are changed."""
    return Target(bits, lanes, threads, replace(heuristics_for(bits // 8 * lanes), **changes))


TARGETS = [target(32, 16), target(64, 8, 4), target(32, 8, 2), target(64, 2, 3)]


# ---------------------------------------------------------------- patterns


def _scattered(rng: Rng, shape: tuple[int, int]) -> Array:
    return rng.random(shape) < 0.2


def _empty_rows(rng: Rng, shape: tuple[int, int]) -> Array:
    mask = _scattered(rng, shape)
    mask[::2] = False
    return mask


def _dense_row(rng: Rng, shape: tuple[int, int]) -> Array:
    mask = rng.random(shape) < 0.03
    mask[shape[0] // 2 : shape[0] // 2 + 1] = True
    return mask


def _banded(rng: Rng, shape: tuple[int, int]) -> Array:
    row, column = np.indices(shape)
    return abs(row - column) < 3


def _one_column(rng: Rng, shape: tuple[int, int]) -> Array:
    mask = np.zeros(shape, bool)
    mask[:, shape[1] - 1 :] = True
    return mask


def _lower_triangle(rng: Rng, shape: tuple[int, int]) -> Array:
    return np.tri(*shape, dtype=bool)


PATTERNS: dict[str, Callable[[Rng, tuple[int, int]], Array]] = {
    "scattered": _scattered,
    "empty rows": _empty_rows,
    "one dense row": _dense_row,
    "banded": _banded,
    "one column": _one_column,
    "lower triangle": _lower_triangle,
    "full": lambda rng, shape: np.ones(shape, bool),
    "empty": lambda rng, shape: np.zeros(shape, bool),
}


def matrix(rng: Rng, mask: Array, dtype: Any, integers: bool = False) -> fs.CSR:
    """Random values at the mask; small integers, zeros among them, when asked for."""
    rows, columns = np.nonzero(mask)
    indptr = np.concatenate([[0], np.cumsum(np.count_nonzero(mask, axis=1))])
    return fs.CSR(indptr, columns, numbers(rng, len(rows), dtype, integers), mask.shape)


def numbers(rng: Rng, shape: Any, dtype: Any, integers: bool = False) -> Array:
    """Numbers of very different sizes, none of them zero; or integers from -3 to 3."""
    if integers:
        return rng.integers(-3, 4, shape).astype(dtype)
    return (rng.standard_normal(shape) * 2.0 ** rng.integers(-8, 9, shape)).astype(dtype)


def parts(W: fs.CSR) -> tuple[Array, Array, Array, tuple[int, int]]:
    """What the oracles take."""
    return W.indptr, W.indices, W.data, W.shape


def with_values(W: fs.CSR, values: Any) -> fs.CSR:
    """W's pattern with other values, or one value everywhere."""
    return W.with_data(np.broadcast_to(np.asarray(values, W.dtype), W.nnz))


def fresh(W: fs.CSR) -> fs.CSR:
    """An equal matrix on a new pattern, which carries no plans."""
    return fs.CSR(*parts(W))


# ---------------------------------------------------------------- ways to compute activation(W @ X + bias)


def _strided(W: fs.CSR, X: Array, bias: Array | None, activation: str | None) -> Array:
    spread = np.full((2 * X.shape[0], 3 * X.shape[1]), np.nan, X.dtype)
    spread[::2, ::3] = X
    return fs.spmm(W, spread[::2, ::3], bias=bias, activation=activation)


def _linear(W: fs.CSR, X: Array, bias: Array | None, activation: str | None) -> Array:
    return fs.linear(np.ascontiguousarray(X.T), W, bias, activation=activation).T


def _sparse(W: fs.CSR, X: Array, bias: Array | None, activation: str | None) -> Array:
    """X with every element stored, zeros too."""
    samples, features = X.shape[1], X.shape[0]
    x = sparse.csr_array(
        (X.T.ravel(), np.tile(np.arange(features), samples), np.arange(samples + 1) * features), shape=X.shape[::-1]
    )
    return fs.linear(x, W, bias, activation=activation).T


def _pointwise(W: fs.CSR, X: Array, bias: Array | None, activation: str | None) -> Array:
    if X.shape[1] == 0:  # an image without a pixel has no window
        return fs.conv1d(X.T[:, :, None], W, bias, kernel_size=1, activation=activation)[:, :, 0].T
    return fs.conv1d(X[None], W, bias, kernel_size=1, activation=activation)[0]


def _padded(W: fs.CSR, X: Array, bias: Array | None, activation: str | None) -> Array:
    return fs.conv1d(X[None], W, bias, kernel_size=1, padding=1, activation=activation)[0][:, 1:-1]


def _phases(W: fs.CSR, X: Array, bias: Array | None, activation: str | None) -> Array:
    spread = np.full((1, X.shape[0], 2 * X.shape[1] + 1), np.nan, X.dtype)
    spread[..., 1::2] = X
    return fs.conv1d(spread, W, bias, kernel_size=1, stride=2, padding=((1, 0),), activation=activation)[0][:, 1:]


def _images(W: fs.CSR, X: Array, bias: Array | None, activation: str | None) -> Array:
    """One sample per column: batch-blocked, when the batch is large enough."""
    y = fs.conv2d(X.T[:, :, None, None], W, bias, kernel_size=1, activation=activation)
    return y[:, :, 0, 0].T


# All sum in ascending column order with one FMA per nonzero and the bias last: they give the same bits (contract R3).
# A single column goes through SpMV in those that are matrix products, which sums in another order.
WAYS: dict[str, Callable[[fs.CSR, Array, Array | None, str | None], Array]] = {
    "row-major": lambda W, X, b, a: fs.spmm(W, np.ascontiguousarray(X), bias=b, activation=a),
    "column-major": lambda W, X, b, a: fs.spmm(W, np.asfortranarray(X), bias=b, activation=a),
    "strided": _strided,
    "linear": _linear,
    "sparse": _sparse,
    "pointwise": _pointwise,
    "padded planes": _padded,
    "phase planes": _phases,
    "images": _images,
}
PRODUCTS = ("row-major", "column-major", "strided", "linear")  # take SpMV for a single column


# ---------------------------------------------------------------- plans that give the same bits (contract R3)


def fixed_width(width: int) -> dict[str, Any]:
    """Changes of heuristics after which all tiles have `width` vectors.

    All but in-place ones of fewer columns, and those of dense rows that would not fit the registers: they have one.
    """
    rates = tuple(float(count == width) for count in range(1, WIDEST_TILE + 1))
    names = ("tile_rate", "window_tile_rate", "short_row_tile_rate", "in_place_tile_rate", "dense_tile_rate")
    return dict.fromkeys(names, rates)


def fixed_blocks(inputs: int, width: int, dtype: Any) -> dict[str, Any]:
    """Changes after which tiles have `width` vectors and blocks so many inputs, or channels of 1x1 convolutions."""
    block = inputs * width * lanes(dtype) * np.dtype(dtype).itemsize
    return {
        **fixed_width(width), "l1_block_bytes": block, "l2_block_bytes": 0, "one_block": 1.0,
        "l1_bytes": -(-4 * block // 3), "sddmm_block_bytes": block, "sddmm_panel_bytes": block,
    }  # fmt: skip


_TINY = {"l1_block_bytes": 0, "l2_block_bytes": 0, "one_block": 1.0, "l1_bytes": 0, "sddmm_block_bytes": 0}
_SMALL = {"l1_block_bytes": 768, "l2_block_bytes": 0, "one_block": 1.0, "l1_bytes": 1024, "sddmm_block_bytes": 768}
_HUGE = dict.fromkeys(("l1_block_bytes", "l2_block_bytes", "l1_bytes", "sddmm_block_bytes", "sddmm_panel_bytes"), 2**50)
_USES = ("uses_in_place", "uses_in_l1", "uses_aligned")
EVERYWHERE, NOWHERE = -1.0, 1e30  # shares of a cache that every array exceeds, or none

# Changes of heuristics by name.
SETTINGS: dict[str, dict[str, Any]] = {
    **{f"T={width}": fixed_width(width) for width in range(1, WIDEST_TILE + 1)},
    "one input per block": _TINY,
    "few inputs per block": _SMALL,
    "one block": _HUGE,
    "every row a group": {"partial_bytes": 1, "group_rows": 1},
    "groups of three rows": {"partial_bytes": 1, "group_rows": 3},
    "rows one by one": {"interleaved_width": 0},
    "in place": dict.fromkeys(_USES, NOWHERE),
    "packed": dict.fromkeys(_USES, -1.0),
    "many tiles": {"many_vectors": 0},
    "non-temporal stores": {"far_share": EVERYWHERE},
    "one group per chunk": {"chunk_share": 0, "linear_chunk_groups": 1},
    "batch-blocked": {"layouts": ("batch-blocked",)},
    "planes": {"layouts": ("planes",)},
    "planes, in parts": {"layouts": ("planes",), "chunk_share": 0},
    "planes, workers own positions": {"layouts": ("planes",), "parallel_flops": 0, "owned_plane_bytes": 0},
    "slices": {"slice_flops": 500},
    "parallel": {"parallel_flops": 0},
    "serial": {"parallel_flops": 1e30},
    "small blocks, groups, parallel, slices": {
        **_SMALL, "partial_bytes": 1, "group_rows": 5, "parallel_flops": 0, "slice_flops": 3000,
    },
}  # fmt: skip


PACKING = ("packed", "in place")  # of row-major X


def choose(*settings: str, **changes: Any) -> AbstractContextManager[Heuristics]:
    """Let the code inside a ``with`` block make these choices of SETTINGS."""
    return tuned(**{name: value for setting in settings for name, value in SETTINGS[setting].items()}, **changes)


# ---------------------------------------------------------------- contracts R1 and R5


def assert_within(
    actual: Array, exact: Array, k: Any, abs_sum: Array, activation: str | None = None, label: Any = ""
) -> None:
    """Every element within the bound of `k` products and a bias whose absolute values sum up to `abs_sum`.

    exact : in a wide type, before the activation
    """
    assert actual.shape == exact.shape
    assert actual.dtype.isnative
    limit = ref.bound(k, abs_sum, actual.dtype)
    if activation is not None:
        rounding = 2 * np.finfo(actual.dtype).eps  # 4 u
        limit = SLOPES.get(activation, 1.0) * limit + rounding * np.maximum(1, abs(exact.astype(np.float64)))
        exact = ref.activate(activation, exact)
    error = abs(actual - exact)
    bad = ~(error <= limit)
    if bad.any():
        at = tuple(int(i) for i in np.argwhere(bad)[0])
        raise AssertionError(
            f"{label} {bad.sum()} of {bad.size}, first at {at}: {actual[at]} for {exact[at]} +- {limit[at]}"
        )


def assert_product(
    Y: Array, W: fs.CSR, X: Array, bias: Array | None = None, activation: str | None = None, label: Any = ""
) -> None:
    """Y is activation(W @ X + bias) within contract R1."""
    indptr, indices, values, shape = parts(W)
    exact = ref.spmm(indptr, indices, values, shape, X, bias)
    total = ref.spmm(indptr, indices, abs(values), shape, abs(X), None if bias is None else abs(bias))
    products = np.diff(indptr).reshape(-1, *(1,) * (X.ndim - 1))
    assert_within(Y, exact, products, total, activation, label)


def rounded(exact: Fraction, dtype: Any) -> Fraction:
    """To the nearest number of `dtype`, ties to even (no subnormals, no overflow)."""
    if exact == 0:
        return exact
    exponent = len(bin(abs(exact.numerator))) - len(bin(exact.denominator))
    unit = Fraction(2) ** (exponent - np.finfo(dtype).nmant)
    while abs(exact) >= unit * 2 ** (np.finfo(dtype).nmant + 1):
        unit *= 2
    while abs(exact) < unit * 2 ** np.finfo(dtype).nmant:
        unit /= 2
    return round(exact / unit) * unit


def same_bits(a: Array, b: Array) -> bool:
    """Equal shape, type and bits."""
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def assert_same_specials(actual: Array, expected: Array, label: Any = "") -> None:
    """NaN where NaN is expected, Inf of the same sign where Inf is, finite numbers elsewhere."""
    for kind in (np.isnan, np.isposinf, np.isneginf):
        assert np.array_equal(kind(actual), kind(expected)), (label, kind.__name__)


def watch_launches(monkeypatch: pytest.MonkeyPatch, look: Callable[[int, list[int]], None]) -> None:
    """Have `look` called with the kernel and the words of the arguments before each launch."""

    def watched(region: Callable[..., None]) -> Callable[[], Callable[..., None]]:
        def run(kernel: int, arguments: int, words: int, *rest: int) -> None:
            look(kernel, list((ctypes.c_int64 * words).from_address(arguments)))
            region(kernel, arguments, words, *rest)

        return lambda: run

    for name in ("run_serial", "run_parallel"):
        monkeypatch.setattr(parallel, name, watched(getattr(parallel, name)()))
