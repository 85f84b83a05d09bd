"""Attention against its oracle: lengths and numbers of keys around vectors, causal or not, on several threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastsparse as fs
from fastsparse.ops import attention as ops
from fastsparse.ops.target import tuned
from fastsparse_kernels import reference as ref
from tests.kernels.support import DTYPES, Guarded, unit

# Samples, heads, length of a head, queries, keys.
SIZES = [
    (2, 3, 1, 1, 1), (1, 1, 15, 3, 16), (3, 2, 16, 17, 17), (1, 2, 17, 4, 65), (2, 1, 64, 5, 63), (1, 3, 65, 2, 130),
    (2, 2, 33, 9, 2),
]  # fmt: skip


def attend(q: Any, k: Any, v: Any, heads: int, causal: bool, threads: int = 1, hidden: Any = None) -> Any:
    y = Guarded(q.shape, q.dtype)
    mask = None if hidden is None else Guarded(hidden.shape, q.dtype)
    if mask is not None:
        mask.inside[...] = np.where(hidden, -np.inf, 0)
    with tuned(parallel_flops=0), fs.threads(threads):
        ops.attend(q, k, v, heads, causal, y.inside, None if mask is None else mask.inside)
    assert y.intact()
    return y.inside


@pytest.mark.R1
@pytest.mark.R3
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("sizes", SIZES)
def test_attention(rng, dtype, causal, masked, sizes):
    samples, heads, length, queries, keys = sizes
    shapes = [(samples, rows, heads * length) for rows in (queries, keys, keys)]
    q, k, v = (rng.normal(size=shape).astype(dtype) for shape in shapes)
    hidden = rng.random((samples, keys)) < 0.5 if masked else None
    if hidden is not None:
        hidden[0] = rng.random() < 0.5  # all of them, or none
        v[hidden] *= 1e3  # which nobody sees
    y = attend(q, k, v, heads, causal, hidden=hidden)
    want = ref.attention(q, k, v, heads, causal=causal, hidden=hidden)
    # A score is off by the rounding of its sum; a result by that of a mean of V's rows, and of their weights.
    score = (length + 3) * unit(dtype) * ref.attention_scores(abs(q), abs(k), heads).max()
    seen = abs(v) if hidden is None else abs(v)[~hidden]
    bound = (2 * score + (keys + 12) * unit(dtype)) * seen.max(initial=0)
    assert (abs(y - want) <= bound).all()
    np.testing.assert_array_equal(attend(q, k, v, heads, causal, threads=2, hidden=hidden), y)
    last = None if hidden is None else hidden[-1:]
    np.testing.assert_array_equal(attend(q[-1:], k[-1:], v[-1:], heads, causal, hidden=last), y[-1:])
    if not masked and causal and queries == keys > 1:  # what comes later changes nothing
        k[:, -1], v[:, -1] = 1e3, np.nan
        np.testing.assert_array_equal(attend(q, k, v, heads, causal)[:, :-1], y[:, :-1])


@pytest.mark.R3
@pytest.mark.parametrize("keys", [1, 15, 16, 17, 64, 70])
def test_padding_at_the_end_changes_no_bit(rng, keys):
    q, k, v = (rng.normal(size=(2, rows, 24)).astype("f") for rows in (5, keys + 19, keys + 19))
    hidden = np.broadcast_to(np.arange(keys + 19) >= keys, (2, keys + 19))
    alone = attend(q, np.ascontiguousarray(k[:, :keys]), np.ascontiguousarray(v[:, :keys]), 3, False)
    np.testing.assert_array_equal(attend(q, k, v, 3, False, hidden=hidden), alone)


def test_small_integers_are_exact(rng):
    """Equal scores give the mean of V's rows."""
    v = rng.integers(-8, 9, (2, 16, 6)).astype("f")
    zeros = np.zeros((2, 16, 6), "f")
    np.testing.assert_array_equal(attend(zeros, zeros, v, 2, False), np.broadcast_to(v.mean(1, keepdims=True), v.shape))
