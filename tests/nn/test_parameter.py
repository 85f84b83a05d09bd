"""Parameters: versions, and values that follow their nonzeros to another pattern."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastsparse as fs
from fastsparse.nn import Parameter


def _pattern(mask: np.ndarray) -> fs.Pattern:
    return fs.csr(mask.astype("f")).pattern


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 7), st.floats(0, 1), st.floats(0, 1))
def test_values_and_state_follow_their_nonzeros(seed: int, rows: int, columns: int, p: float, q: float) -> None:
    rng = np.random.default_rng(seed)
    old, new = rng.random((rows, columns)) < p, rng.random((rows, columns)) < q
    numbers = rng.normal(size=(rows, columns))
    parameter = Parameter(numbers[old], _pattern(old))
    parameter.state["velocity"] = 10 * numbers[old]
    parameter.grad = numbers[old]
    version = parameter.version
    parameter.replace_pattern(_pattern(new))
    np.testing.assert_array_equal(parameter.matrix().toarray(), np.where(old & new, numbers, 0))
    np.testing.assert_array_equal(parameter.state["velocity"], 10 * np.where(old, numbers, 0)[new])
    assert parameter.grad is None
    assert parameter.version > version
    assert parameter.pattern == _pattern(new)


def test_a_source_says_where_values_come_from() -> None:
    parameter = Parameter(np.array([1.0, 2.0]), fs.Pattern([0, 2], [0, 2], (1, 4)))
    parameter.replace_pattern(fs.Pattern([0, 3], [0, 1, 3], (1, 4)), np.array([0, -1, -1]))
    np.testing.assert_array_equal(parameter.value, [1.0, 0.0, 0.0])
    with pytest.raises(ValueError, match=r"^source goes from -1 to 3, expected -1 to 2$"):
        parameter.replace_pattern(fs.Pattern([0, 2], [0, 1], (1, 4)), np.array([-1, 3]))
    with pytest.raises(ValueError, match=r"^source has shape \(1,\), expected \(2,\), one for each new nonzero$"):
        parameter.replace_pattern(fs.Pattern([0, 2], [0, 1], (1, 4)), np.array([0]))
    with pytest.raises(ValueError, match=r"^pattern has shape \(1, 5\), expected \(1, 4\)$"):
        parameter.replace_pattern(fs.Pattern([0, 0], [], (1, 5)))
    np.testing.assert_array_equal(parameter.value, [1.0, 0.0, 0.0])


def test_assigning_copies_checks_and_counts() -> None:
    parameter = Parameter(np.zeros(3, np.float32))
    array = parameter.value
    parameter.value = [1, 2, 3]
    assert parameter.value is array
    assert parameter.version == 1
    parameter.value -= np.float32(1)
    assert parameter.version == 2
    with pytest.raises(ValueError, match=r"^value has shape \(2,\), expected \(3,\)$"):
        parameter.value = [1, 2]
    np.testing.assert_array_equal(array, [0, 1, 2])


@pytest.mark.parametrize("density", [0.01, 0.05, 0.3])
def test_the_matrix_is_built_once_and_follows_the_values(density: float, rng: Any) -> None:
    """Whatever form the product with so many columns takes."""
    mask = rng.random((200, 300)) < density
    pattern = _pattern(mask)
    parameter = Parameter(rng.normal(size=pattern.nnz).astype(np.float32), pattern)
    matrix, X = parameter.matrix(), rng.normal(size=(300, 40)).astype(np.float32)
    assert parameter.matrix() is matrix
    for _ in range(2):
        dense = np.zeros(mask.shape, np.float32)
        dense[mask] = parameter.value
        for columns in (1, 5, 40):
            np.testing.assert_allclose(parameter.matrix() @ X[:, :columns], dense @ X[:, :columns], atol=1e-4)
        np.testing.assert_array_equal(parameter.matrix().T.toarray(), dense.T)
        np.testing.assert_allclose(X.T @ parameter.matrix().T, X.T @ dense.T, atol=1e-4)
        parameter.value = rng.normal(size=pattern.nnz)
    assert parameter.matrix() is matrix


def test_a_dense_parameter_has_no_matrix() -> None:
    with pytest.raises(TypeError, match=r"^a dense parameter has no sparse matrix$"):
        Parameter(np.zeros(3)).matrix()
