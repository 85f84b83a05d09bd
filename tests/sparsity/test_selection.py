"""Choosing elements: running top-k, free elements, exchanged patterns, N:M and masks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastsparse as fs
from fastsparse.sparsity import mask_pattern, nm_pattern
from fastsparse.sparsity.selection import TopK, exchanged, free_elements

SEEDS = st.integers(0, 2**32 - 1)


def _mask(pattern: fs.Pattern) -> Any:
    mask = np.zeros(pattern.shape, bool)
    mask[pattern.rows(), pattern.indices] = True
    return mask


def _elements(pattern: fs.Pattern) -> Any:
    return np.flatnonzero(_mask(pattern))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(SEEDS, st.integers(1, 9), st.integers(1, 12), st.integers(0, 40), st.integers(1, 4), st.floats(0, 1))
def test_running_top_k_is_the_first_of_a_stable_sort(
    dtype: str, seed: int, rows: int, columns: int, count: int, block: int, p: float
) -> None:
    rng = np.random.default_rng(seed)
    matrix = rng.integers(-3, 4, (rows, columns)).astype(dtype)  # many equals
    matrix[rng.random(matrix.shape) < 0.1] = np.nan
    pattern = mask_pattern(rng.random(matrix.shape) < p)
    found = TopK(pattern, count, guess=True)
    for first in range(0, rows, block):
        found.offer(matrix[first : first + block].copy(), first)
    if not found.complete:
        found = TopK(pattern, count)
        for first in range(0, rows, block):
            found.offer(matrix[first : first + block].copy(), first)
        assert found.complete
    elements, best = found.result()
    scores = np.where(_mask(pattern) | np.isnan(matrix), -1, abs(matrix)).ravel()
    order = np.argsort(-scores, kind="stable")
    np.testing.assert_array_equal(elements, np.sort([i for i in order if scores[i] >= 0][:count]))
    np.testing.assert_array_equal(best, scores[elements])


@given(SEEDS, st.integers(0, 8), st.integers(0, 9), st.floats(0, 1))
def test_exchanged_patterns_are_valid_and_know_where_values_come_from(seed: int, m: int, n: int, p: float) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((m, n)) < p
    pattern = mask_pattern(mask)
    kept = rng.random(pattern.nnz) < 0.6
    free = m * n - pattern.nnz
    grown = free_elements(pattern, int(rng.integers(0, free + 1)), rng)
    assert not mask.ravel()[grown].any()
    assert np.all(np.diff(grown) > 0)
    new, source = exchanged(pattern, kept, grown)
    assert fs.Pattern(new.indptr, new.indices, new.shape) == new
    after = _mask(new)
    want = np.zeros(m * n, bool)
    want[_elements(pattern)[kept]] = want[grown] = True
    np.testing.assert_array_equal(after.ravel(), want)
    old = source >= 0
    np.testing.assert_array_equal(_elements(new)[old], _elements(pattern)[source[old]])
    np.testing.assert_array_equal(_elements(new)[~old], grown)


def test_free_places_are_equally_likely(rng: Any) -> None:
    pattern = mask_pattern(np.eye(5))
    hits, draws = np.zeros(25), 3000
    for _ in range(draws):
        hits[free_elements(pattern, 6, rng)] += 1
    assert not hits.reshape(5, 5).diagonal().any()
    p = 6 / 20
    assert np.all(abs(hits[_elements(mask_pattern(1 - np.eye(5)))] / draws - p) < 5 * math.sqrt(p * (1 - p) / draws))


@given(SEEDS, st.integers(0, 6), st.integers(0, 19), st.integers(1, 5), st.integers(1, 5))
def test_n_of_every_m(seed: int, rows: int, columns: int, n: int, m: int) -> None:
    n, m = min(n, m), max(n, m)
    pattern = nm_pattern((rows, columns), n, m, rng=seed)
    mask = np.zeros((rows, columns))
    mask[pattern.rows(), pattern.indices] = 1
    for first in range(0, columns, m):
        part = mask[:, first : first + m]
        assert np.all(part.sum(axis=1) == min(n, part.shape[1]))
    scores = np.random.default_rng(seed).normal(size=(rows, columns))
    chosen = nm_pattern((rows, columns), n, m, scores=scores)
    mask = np.zeros((rows, columns), bool)
    mask[chosen.rows(), chosen.indices] = True
    for first in range(0, columns, m):
        part, kept = abs(scores[:, first : first + m]), mask[:, first : first + m]
        np.testing.assert_array_equal(kept.sum(axis=1), min(n, part.shape[1]))
        for row, keep in zip(part, kept, strict=True):
            assert row[keep].min() >= row[~keep].max(initial=0)


def test_layers_take_both_kinds_of_pattern() -> None:
    layer = fs.nn.SparseLinear(16, 8, pattern=lambda shape: nm_pattern(shape, 2, 4, rng=0))
    assert layer.weight.nnz == 64
    kernel = np.zeros((4, 3, 3, 3))
    kernel[:, :, 1] = 1
    conv = fs.nn.SparseConv2d(3, 4, 3, pattern=mask_pattern(kernel))
    np.testing.assert_array_equal(conv.weight.toarray() != 0, kernel.reshape(4, -1) != 0)


REFUSED: list[tuple[Any, str]] = [
    (lambda: nm_pattern((4, 4), 3, 2), "n is 3, expected at most m = 2"),
    (lambda: nm_pattern((4, 4), 0, 2), "n is 0, expected an integer of at least 1"),
    (lambda: nm_pattern((4, 4), 1, 2, scores=np.ones(4)), "scores has shape (4,), expected (4, 4) to match shape"),
    (lambda: nm_pattern((1, 2), 1, 2, scores=[[np.nan, 1]]), "scores holds NaN, expected numbers"),
    (lambda: mask_pattern([True]), "mask has shape (1,) and dtype bool, expected numbers (rows, columns)"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_bad_arguments_are_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match="expected") as caught:
        call()
    assert str(caught.value) == message
