"""Random patterns: exact counts, every element equally likely, memory that follows the nonzeros."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastsparse as fs
from fastsparse.sparsity import erdos_renyi, random_pattern


@given(st.integers(0, 40), st.integers(0, 40), st.floats(0, 1, exclude_max=True), st.integers(0, 2**32 - 1))
def test_the_number_of_nonzeros_is_exact_and_the_structure_valid(m: int, n: int, sparsity: float, seed: int) -> None:
    pattern = random_pattern((m, n), sparsity, rng=seed)
    assert pattern.nnz == math.floor(m * n * (1 - sparsity) + 0.5)
    assert fs.Pattern(pattern.indptr, pattern.indices, pattern.shape) == pattern
    assert pattern == random_pattern((m, n), sparsity, rng=seed)


@pytest.mark.parametrize("sparsity", [0.9, 0.5, 0.3])
def test_every_element_is_equally_likely(sparsity: float) -> None:
    rng, draws = np.random.default_rng(0), 4000
    hits = np.zeros((6, 5))
    together = np.zeros((30, 30))
    for _ in range(draws):
        pattern = random_pattern((6, 5), sparsity, rng=rng)
        mask = np.zeros((6, 5))
        mask[pattern.rows(), pattern.indices] = 1
        hits += mask
        together += np.outer(mask, mask)
    count = random_pattern((6, 5), sparsity).nnz
    p, q = count / 30, count / 30 * (count - 1) / 29
    assert np.all(abs(hits / draws - p) < 5 * math.sqrt(p * (1 - p) / draws))
    pairs = together[~np.eye(30, dtype=bool)] / draws
    assert np.all(abs(pairs - q) < 6 * math.sqrt(q * (1 - q) / draws))


def test_a_large_pattern_takes_memory_for_its_nonzeros_only(run_python: Callable[..., Any]) -> None:
    code = """
import resource
from fastsparse.sparsity import random_pattern
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
pattern = random_pattern((50_000, 10_000), 0.99, rng=0)
assert pattern.nnz == 5_000_000
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    assert int(run_python(code).stdout) < 200  # MB; a mask of bytes would take 500, a dense matrix 2000


REFUSED: list[tuple[Any, Any, type[Exception], str]] = [
    ((3, 3), 1.0, ValueError, "sparsity is 1.0, expected a number in [0, 1)"),
    ((3, 3), -0.1, ValueError, "sparsity is -0.1, expected a number in [0, 1)"),
    ((3, 3), float("nan"), ValueError, "sparsity is nan, expected a number in [0, 1)"),
    ((3, 3), None, TypeError, "sparsity is None, expected a number in [0, 1)"),
    ((3, -3), 0.5, ValueError, "shape is (3, -3), expected two non-negative integers below 2**63"),
    ((3,), 0.5, ValueError, "shape is (3,), expected two non-negative integers (rows, columns)"),
    ((2**40, 2**40), 0.5, ValueError, f"shape is {(2**40, 2**40)}, expected two non-negative integers with a product"),
]


@pytest.mark.parametrize(("shape", "sparsity", "error", "message"), REFUSED)
def test_bad_arguments_are_named(shape: Any, sparsity: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        random_pattern(shape, sparsity)
    assert str(caught.value).startswith(message)


SHAPES = st.lists(st.lists(st.integers(1, 60), min_size=2, max_size=4), min_size=1, max_size=8)


@given(SHAPES, st.floats(0, 0.999), st.booleans())
def test_densities_add_up_to_exactly_the_whole(shapes: Any, sparsity: float, kernel: bool) -> None:
    densities = erdos_renyi(shapes, sparsity, kernel=kernel)
    sizes = [math.prod(shape) for shape in shapes]
    assert all(0 <= density <= 1 for density in densities)
    counts = [
        random_pattern((shape[0], math.prod(shape[1:])), 1 - density, rng=0).nnz if density else 0
        for shape, density in zip(shapes, densities, strict=True)
    ]
    assert counts == [round(density * size) for density, size in zip(densities, sizes, strict=True)]
    assert sum(counts) == math.floor(sum(sizes) * (1 - sparsity) + 0.5)


@pytest.mark.parametrize("kernel", [True, False])
def test_densities_are_in_proportion_until_full(kernel: bool) -> None:
    shapes = [(64, 3, 3, 3), (128, 64, 3, 3), (256, 128, 3, 3), (10, 256)]
    densities = erdos_renyi(shapes, 0.9, kernel=kernel)
    used = [shape if kernel else shape[:2] for shape in shapes]
    ratios = [d * math.prod(u) / sum(u) for d, u in zip(densities, used, strict=True)]
    free = [i for i, d in enumerate(densities) if d < 1]
    full = [i for i, d in enumerate(densities) if d == 1]
    assert free
    assert np.ptp([ratios[i] for i in free]) < 0.01 * ratios[free[0]]
    # A full layer would have wanted more than all of itself.
    assert all(ratios[free[0]] * sum(used[i]) / math.prod(used[i]) > 1 for i in full)


def test_bad_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"^shapes\[1\] is \(3,\), expected at least two positive integers"):
        erdos_renyi([(3, 4), (3,)], 0.5)
    with pytest.raises(ValueError, match=r"^sparsity is 1, expected a number in \[0, 1\)$"):
        erdos_renyi([(3, 4)], 1)
