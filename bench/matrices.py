"""Matrices that are not layers, as workloads: graphs, grids, text, genes, tall and wide ones."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from bench.workloads import Workload


def _from_coordinates(rows: NDArray[np.int64], columns: NDArray[np.int64], shape: tuple[int, int]) -> sp.csr_array:
    """A matrix with normally distributed values at the given coordinates; duplicates count once."""
    index = np.unique(rows * np.int64(shape[1]) + columns)
    row, column = np.divmod(index, shape[1])
    indptr = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=shape[0]))])
    values = np.random.default_rng(1).standard_normal(len(index))
    return sp.csr_array((values, column.astype(np.int32), indptr.astype(np.int32)), shape=shape)


def uniform(rows: int, columns: int, nonzeros: int) -> sp.csr_array:
    """Coordinates drawn uniformly."""
    random = np.random.default_rng(0)
    return _from_coordinates(random.integers(0, rows, nonzeros), random.integers(0, columns, nonzeros), (rows, columns))


def power_law(nodes: int, degree: int, exponent: float = 2.1) -> sp.csr_array:
    """A graph whose in- and out-degrees follow a power law, nodes in random order."""
    random = np.random.default_rng(0)
    weights = np.arange(1, nodes + 1) ** (-1 / (exponent - 1))
    weights /= weights.sum()
    ends = [random.permutation(nodes)[random.choice(nodes, nodes * degree, p=weights)] for _ in range(2)]
    return _from_coordinates(*ends, (nodes, nodes))


def grid(side: int) -> sp.csr_array:
    """The five-point stencil on a square grid."""
    line = sp.diags_array([1.0, 1.0, 1.0], offsets=[-1, 0, 1], shape=(side, side))
    one = sp.eye_array(side)
    pattern = (sp.kron(line, one) + sp.kron(one, line)).tocoo()
    return _from_coordinates(pattern.row.astype(np.int64), pattern.col.astype(np.int64), pattern.shape)


def permutation(size: int) -> sp.csr_array:
    """One nonzero in every row and column."""
    return _from_coordinates(np.arange(size), np.random.default_rng(0).permutation(size), (size, size))


def text(documents: int, words: int, length: int) -> sp.csr_array:
    """Documents of `length` words drawn by Zipf's law, the frequent words first."""
    random = np.random.default_rng(0)
    weights = 1.0 / np.arange(1, words + 1)
    drawn = random.choice(words, documents * length, p=weights / weights.sum())
    return _from_coordinates(np.repeat(np.arange(documents), length), drawn, (documents, words))


MATRICES: dict[str, Callable[[], sp.csr_array]] = {
    "random graph": lambda: uniform(200_000, 200_000, 1_000_000),
    "power-law graph": lambda: power_law(100_000, 10),
    "grid": lambda: grid(400),
    "permutation": lambda: permutation(200_000),
    "text": lambda: text(10_000, 50_000, 80),
    "genes": lambda: uniform(5_000, 3_000, 1_200_000),
    "wide": lambda: uniform(1_000, 1_000_000, 1_000_000),
    "tall": lambda: uniform(1_000_000, 100, 3_000_000),
}


@functools.lru_cache(maxsize=1)
def _made(name: str) -> sp.csr_array:
    return MATRICES[name]()


@dataclass(frozen=True)
class MatrixProduct(Workload):
    """W @ X, or W.T @ X; and SDDMM, with A (rows, n) and B (columns, n), at the nonzeros of W."""

    matrix: str
    n: int
    dtype: str = "float32"
    form: str = "plain"  # or "transposed", "column-major" (X), "sddmm"

    @property
    def name(self) -> str:
        return f"{self.matrix} N{self.n}"

    @functools.cached_property
    def weight(self) -> sp.csr_array:
        """The matrix that multiplies, of SDDMM the pattern."""
        matrix = _made(self.matrix).astype(self.dtype)
        return matrix.T if self.form == "transposed" else matrix

    @functools.cached_property
    def x(self) -> NDArray[Any]:
        """The dense operand; of SDDMM that of the columns."""
        x = np.random.default_rng(0).standard_normal((self.weight.shape[1], self.n), self.dtype)
        x = x[:, 0].copy() if self.n == 1 and self.form != "sddmm" else x
        return np.asfortranarray(x) if self.form == "column-major" else x

    @functools.cached_property
    def a(self) -> NDArray[Any]:
        """The operand of the rows."""
        return np.random.default_rng(1).standard_normal((self.weight.shape[0], self.n), self.dtype)

    @property
    def flops(self) -> int:
        return 2 * self.weight.nnz * self.n


def products(form: str, dtype: str) -> list[MatrixProduct]:
    """All matrices, with 1 to 256 columns."""
    return [MatrixProduct(name, n, dtype, form) for name in MATRICES for n in (1, 4, 16, 64, 256)]
