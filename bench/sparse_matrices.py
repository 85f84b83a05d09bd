"""Matrices that are not layers: graphs, grids, text, genes, tall and wide ones. fastsparse against SciPy and MKL.

python -m bench.sparse_matrices [--dtype float64] [--threads 2] [--transposed] [--sddmm] [--panels]

It stands beside the harness: what is measured here is also the first call on a new pattern, and products that allocate.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

import fastsparse as fs
from bench.baselines import mkl
from fastsparse.ops.target import tuned

Matrix = sp.csr_array


def _from_coordinates(rows: NDArray[np.int64], columns: NDArray[np.int64], shape: tuple[int, int]) -> Matrix:
    """A matrix with normally distributed values at the given coordinates; duplicates count once."""
    index = np.unique(rows * np.int64(shape[1]) + columns)
    row, column = np.divmod(index, shape[1])
    indptr = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=shape[0]))])
    values = np.random.default_rng(1).standard_normal(len(index))
    return sp.csr_array((values, column.astype(np.int32), indptr.astype(np.int32)), shape=shape)


def uniform(rows: int, columns: int, nonzeros: int) -> Matrix:
    """Coordinates drawn uniformly."""
    random = np.random.default_rng(0)
    return _from_coordinates(random.integers(0, rows, nonzeros), random.integers(0, columns, nonzeros), (rows, columns))


def power_law(nodes: int, degree: int, exponent: float = 2.1) -> Matrix:
    """A graph whose in- and out-degrees follow a power law, nodes in random order."""
    random = np.random.default_rng(0)
    weights = np.arange(1, nodes + 1) ** (-1 / (exponent - 1))
    weights /= weights.sum()
    ends = [random.permutation(nodes)[random.choice(nodes, nodes * degree, p=weights)] for _ in range(2)]
    return _from_coordinates(*ends, (nodes, nodes))


def grid(side: int) -> Matrix:
    """The five-point stencil on a square grid."""
    line = sp.diags_array([1.0, 1.0, 1.0], offsets=[-1, 0, 1], shape=(side, side))
    one = sp.eye_array(side)
    pattern = (sp.kron(line, one) + sp.kron(one, line)).tocoo()
    return _from_coordinates(pattern.row.astype(np.int64), pattern.col.astype(np.int64), pattern.shape)


def permutation(size: int) -> Matrix:
    """One nonzero in every row and column."""
    return _from_coordinates(np.arange(size), np.random.default_rng(0).permutation(size), (size, size))


def text(documents: int, words: int, length: int) -> Matrix:
    """Documents of `length` words drawn by Zipf's law, the frequent words first."""
    random = np.random.default_rng(0)
    weights = 1.0 / np.arange(1, words + 1)
    drawn = random.choice(words, documents * length, p=weights / weights.sum())
    return _from_coordinates(np.repeat(np.arange(documents), length), drawn, (documents, words))


MATRICES: dict[str, Callable[[], Matrix]] = {
    "random graph": lambda: uniform(200_000, 200_000, 1_000_000),
    "power-law graph": lambda: power_law(100_000, 10),
    "grid": lambda: grid(400),
    "permutation": lambda: permutation(200_000),
    "text": lambda: text(10_000, 50_000, 80),
    "genes": lambda: uniform(5_000, 3_000, 1_200_000),
    "wide": lambda: uniform(1_000, 1_000_000, 1_000_000),
    "tall": lambda: uniform(1_000_000, 100, 3_000_000),
}


# ---------------------------------------------------------------- fastsparse against SciPy and MKL

LARGEST_BYTES = 2**31  # of X or Y; larger products are left out


@dataclass(frozen=True)
class Row:
    """Seconds of one product: `ours` with `out`, `allocating` without; `first`: the first call on a new pattern."""

    name: str
    columns: int
    ours: float
    allocating: float
    first: float
    baselines: dict[str, float]

    @property
    def ratio(self) -> float:
        """Of the better baseline to ours."""
        return min(self.baselines.values()) / self.ours


def _row(
    name: str, columns: int, first: Callable[[], object], calls: dict[str, Callable[[], object]],
    options: argparse.Namespace,
) -> Row:  # fmt: skip
    """Time calls in interleaved rounds, the fastest counts; `first` is the first call on a new pattern.

    A few calls follow each other; the first of them replaces what others left in the caches.
    """
    clock = time.thread_time if options.cpu_time else time.perf_counter

    def once(call: Callable[[], object]) -> float:
        begin = clock()
        call()
        return clock() - begin

    calls["out"]()
    first_call = once(first)
    seconds = dict.fromkeys(calls, np.inf)
    for _ in range(options.rounds):
        for call_name, call in calls.items():
            call()
            seconds[call_name] = min(seconds[call_name], *(once(call) for _ in range(3)))
    ours = seconds.pop("out")
    return Row(name, columns, ours, seconds.pop("allocating", ours), first_call, seconds)


def product(name: str, matrix: Matrix, columns: int, options: argparse.Namespace) -> Row:
    """Time W @ X, or W.T @ X."""
    dtype, transposed = np.dtype(options.dtype), options.transposed
    matrix = matrix.astype(dtype)
    product = matrix.T if transposed else matrix
    rng = np.random.default_rng(0)
    x = rng.standard_normal((product.shape[1], columns), dtype)
    x = x[:, 0].copy() if columns == 1 else x
    x = np.asfortranarray(x) if options.column_major else x
    out = np.empty((product.shape[0], *x.shape[1:]), dtype)
    weight, first = fs.csr(matrix), fs.csr(matrix)
    weight = weight.T if transposed else weight
    calls: dict[str, Callable[[], object]] = {
        "out": lambda: fs.spmm(weight, x, out=out),
        "allocating": lambda: fs.spmm(weight, x),
        "scipy": lambda: product @ x,
    }
    if mkl.available() and not options.column_major:
        calls["mkl"] = mkl.spmm(matrix, x, options.threads, transposed=transposed)
    return _row(name, columns, lambda: fs.spmm(first.T if transposed else first, x, out=out), calls, options)


def sampled(name: str, matrix: Matrix, columns: int, options: argparse.Namespace) -> Row:
    """Time SDDMM against a loop over row blocks in NumPy, and torch.sparse.sampled_addmm where there is torch."""
    dtype = np.dtype(options.dtype)
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((size, columns), dtype) for size in matrix.shape)
    pattern, first = fs.csr(matrix).pattern, fs.csr(matrix).pattern
    rows, indices = pattern.rows(), matrix.indices

    def loop() -> NDArray[np.floating]:
        values = np.empty(len(rows), dtype)
        for start in range(0, len(rows), 4096):
            part = slice(start, start + 4096)
            np.einsum("ij,ij->i", a[rows[part]], b[indices[part]], out=values[part])
        return values

    calls: dict[str, Callable[[], object]] = {"out": lambda: fs.sddmm(pattern, a, b.T), "numpy": loop}
    if find_spec("torch"):
        import torch

        torch.set_num_threads(options.threads)
        sparse = torch.sparse_csr_tensor(
            *(torch.from_numpy(part.astype(np.int32)) for part in (matrix.indptr, matrix.indices)),
            torch.zeros(matrix.nnz, dtype=getattr(torch, dtype.name)),
            matrix.shape,
        )
        left, right = torch.from_numpy(a), torch.from_numpy(b).T
        calls["torch"] = lambda: torch.sparse.sampled_addmm(sparse, left, right, beta=0.0)
    return _row(name, columns, lambda: fs.sddmm(first, a, b.T), calls, options)


def line(row: Row) -> str:
    """One line of the table, times in milliseconds."""
    baselines = "".join(f"{who:>8} {1e3 * seconds:9.3f}" for who, seconds in row.baselines.items())
    ours = f"{1e3 * row.ours:9.3f} {1e3 * row.allocating:10.3f} {1e3 * row.first:9.3f}"
    return f"{row.name:16} {row.columns:4} {ours}{baselines} {row.ratio:7.2f}x"


def main(arguments: list[str] | None = None) -> None:
    """Print a table, the geometric mean and the worst of the ratios."""
    parser = argparse.ArgumentParser(prog="python -m bench.sparse_matrices", description=__doc__)
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--columns", type=int, nargs="+", default=[1, 4, 16, 64, 256])
    parser.add_argument("--matrices", nargs="+", choices=MATRICES, default=list(MATRICES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--transposed", action="store_true", help="W.T @ X")
    parser.add_argument("--column-major", action="store_true", help="X in Fortran order, against SciPy only")
    parser.add_argument("--sddmm", action="store_true", help="(A @ B) at the nonzeros, in place of products")
    parser.add_argument("--cpu-time", action="store_true", help="of the calling thread, for a busy machine")
    parser.add_argument("--panels", action="store_true", help="never stream: the path of layers, for comparison")
    options = parser.parse_args(arguments)
    choice = {"stream_margin": 0.0, "slice_nonzeros": -1.0} if options.panels else {}
    with fs.threads(options.threads), tuned(**choice):
        _measure(options)


def _measure(options: argparse.Namespace) -> None:
    print(f"{'matrix':16} {'N':>4} {'out= ms':>9} {'allocating':>10} {'first':>9}  baselines, best baseline / ours")
    rows = []
    for name in options.matrices:
        matrix = MATRICES[name]()
        for columns in options.columns:
            if max(matrix.shape) * columns * np.dtype(options.dtype).itemsize <= LARGEST_BYTES:
                rows.append((sampled if options.sddmm else product)(name, matrix, columns, options))
                print(line(rows[-1]), flush=True)
    ratios = np.array([row.ratio for row in rows])
    print(f"geometric mean {np.exp(np.log(ratios).mean()):.2f}x, worst {ratios.min():.2f}x")


if __name__ == "__main__":
    main()
