"""Products with a sparse matrix by every library: X and Y row-major, `out` where the library takes one."""

from __future__ import annotations

import functools
import os
import time
import warnings
from collections.abc import Callable

import numpy as np

from bench.baselines import OURS, Baseline, Call, conv, torch_on, with_facts
from bench.baselines import mkl as mkl_library
from bench.matrices import MatrixProduct
from bench.workloads import Conv, LayerCall, SparseInput, Spmm
from fastsparse_kernels import reference


def fastsparse(case: Spmm, threads: int) -> Call:
    """fs.spmm into one array."""
    import fastsparse as fs

    weight, x = fs.csr(case.weight), case.x
    out = np.empty((case.m, *x.shape[1:]), np.float32)
    return lambda: fs.spmm(weight, x, out=out)


def _fastsparse_operator(case: Spmm, threads: int) -> Call:
    import fastsparse as fs

    weight, x = fs.csr(case.weight), case.x
    return lambda: weight @ x


def _scipy(case: Spmm, threads: int) -> Call:
    weight, x = case.weight, case.x
    return lambda: weight @ x


def numpy_dense(case: Spmm, threads: int) -> Call:
    """BLAS, zeros included."""
    weight, x = case.weight.toarray(), case.x
    out = np.empty((case.m, *x.shape[1:]), np.float32)
    return lambda: np.matmul(weight, x, out=out)


def mkl_sparse(case: Spmm, threads: int) -> Call:
    """Into one array, too."""
    return mkl_library.spmm(case.weight, case.x, threads)


def _torch_dense(case: Spmm, threads: int) -> Call:
    torch = torch_on(threads)

    weight, x = torch.from_numpy(case.weight.toarray()), torch.from_numpy(case.x)
    out = torch.empty((case.m, *x.shape[1:]))
    return lambda: torch.matmul(weight, x, out=out).numpy()


def _torch_sparse(case: Spmm, threads: int) -> Call:
    torch = torch_on(threads)

    w = case.weight
    parts = [torch.from_numpy(part) for part in (w.indptr, w.indices, w.data)]
    with warnings.catch_warnings():  # that the format is in beta
        warnings.simplefilter("ignore")
        weight = torch.sparse_csr_tensor(*parts, size=w.shape, check_invariants=True)
    x = torch.from_numpy(case.x)
    out = torch.empty((case.m, *x.shape[1:]))
    multiply = torch.mv if x.ndim == 1 else torch.mm
    return lambda: multiply(weight, x, out=out).numpy()


SPMM = [
    Baseline(OURS, fastsparse),
    Baseline("scipy", _scipy),
    Baseline("numpy dense", numpy_dense),
    Baseline("MKL sparse", mkl_sparse, needs=("mkl",)),
    Baseline("torch dense", _torch_dense, needs=("torch",)),
    Baseline("torch.sparse", _torch_sparse, needs=("torch",)),
]
# Of the DLMC dense NumPy stands for dense products: torch's would take as long again.
DLMC = [baseline for baseline in SPMM if baseline.name != "torch dense"]
SMALL_SPMM = [SPMM[0], Baseline("fastsparse @", _fastsparse_operator), SPMM[1], SPMM[3]]


def _layer(case: LayerCall, threads: int) -> Call:
    from fastsparse import nn

    bias = np.zeros(case.size, np.float32)
    layer, x = nn.SparseLinear.from_dense(case.weight, bias, activation=case.activation).eval(), case.x
    return lambda: layer(x)


SMALL_LAYERS = [Baseline(OURS, _layer)]


# ------------------------------------------------------------------------------------------------------ sparse samples


def _sparse_input(case: SparseInput, threads: int) -> Call:
    import fastsparse as fs

    weight, x, out = fs.csr(case.weight), case.x, np.empty((case.batch, case.outputs), np.float32)
    return lambda: fs.linear(x, weight, out=out)


def _sparse_input_scipy(case: SparseInput, threads: int) -> Call:
    x, transposed = case.x, case.weight.T
    return lambda: (x @ transposed).toarray()


def _sparse_input_scipy_csr(case: SparseInput, threads: int) -> Call:
    x, transposed = case.x, case.weight.T.tocsr()
    return lambda: (x @ transposed).toarray()


SPARSE_INPUT = [
    Baseline(OURS, _sparse_input),
    Baseline("scipy (x @ W.T).toarray()", _sparse_input_scipy),
    Baseline("scipy, W.T as CSR beforehand", _sparse_input_scipy_csr),
]


# ------------------------------------------------------------------------------------------- matrices of no layer


def _matrix(case: MatrixProduct, threads: int) -> Call:
    call, out = _matrix_call(case), np.empty((case.weight.shape[0], *case.x.shape[1:]), case.dtype)
    call(out=out)  # kernels are loaded
    begin = time.perf_counter()
    _matrix_call(case)(out=out)
    first = time.perf_counter() - begin
    return with_facts(lambda: call(out=out), {"first call": f"{first * 1e3:.2f} ms"})


def _matrix_allocating(case: MatrixProduct, threads: int) -> Call:
    return _matrix_call(case)


def _matrix_call(case: MatrixProduct) -> Call:
    import fastsparse as fs

    transposed = case.form == "transposed"
    weight = fs.csr(case.weight.T if transposed else case.weight)
    return functools.partial(fs.spmm, weight.T if transposed else weight, case.x)


def _matrix_mkl(case: MatrixProduct, threads: int) -> Call | None:
    if case.form == "column-major":
        return None
    transposed = case.form == "transposed"
    return mkl_library.spmm(case.weight.T if transposed else case.weight, case.x, threads, transposed=transposed)


MATRICES = [
    Baseline(OURS, _matrix),
    Baseline("fastsparse allocating", _matrix_allocating),
    Baseline("scipy", _scipy),
    Baseline("MKL sparse", _matrix_mkl, needs=("mkl",)),
]


def _sddmm(case: MatrixProduct, threads: int) -> Call:
    import fastsparse as fs

    pattern = fs.csr(case.weight).pattern
    return lambda: fs.sddmm(pattern, case.a, case.x.T).data


def _sddmm_numpy(case: MatrixProduct, threads: int) -> Call:
    """Block after block of nonzeros."""
    rows, columns = reference.row_of(case.weight.indptr), case.weight.indices

    def loop() -> np.ndarray:
        values = np.empty(len(rows), case.dtype)
        for start in range(0, len(rows), 4096):
            part = slice(start, start + 4096)
            np.einsum("ij,ij->i", case.a[rows[part]], case.x[columns[part]], out=values[part])
        return values

    return loop


def _sddmm_torch(case: MatrixProduct, threads: int) -> Call:
    torch, matrix = torch_on(threads), case.weight
    parts = [torch.from_numpy(part.astype(np.int32)) for part in (matrix.indptr, matrix.indices)]
    sparse = torch.sparse_csr_tensor(*parts, torch.zeros(matrix.nnz, dtype=getattr(torch, case.dtype)), matrix.shape)
    left, right = torch.from_numpy(case.a), torch.from_numpy(case.x).T
    return lambda: torch.sparse.sampled_addmm(sparse, left, right, beta=0.0).values().numpy()


SDDMM = [
    Baseline(OURS, _sddmm),
    Baseline("numpy", _sddmm_numpy),
    Baseline("torch.sparse", _sddmm_torch, needs=("torch",)),
]


# -------------------------------------------------------------------------------------------------------- more threads


def thread_counts() -> list[int]:
    """1, 2, 4, ... and all processors."""
    most = os.cpu_count() or 1
    return sorted({most, *(1 << i for i in range(most.bit_length()))})


def _on(count: int) -> Callable[[Spmm | Conv, int], Call]:
    def setup(case: Spmm | Conv, threads: int) -> Call:
        import fastsparse as fs

        call = (SPMM if isinstance(case, Spmm) else conv.PLAIN)[0].setup(case, count)

        def run() -> np.ndarray:
            with fs.threads(count):
                return call()

        return run

    return setup


def threads_of(name: str) -> int:
    """The number in a name of `THREADS`."""
    return thread_counts()[-1] if name == OURS else int(name.split()[-2])


ONE_THREAD = f"{OURS}, 1 thread"
# fastsparse on all processors against fastsparse on fewer; user arrays in and out.
THREADS = [
    Baseline(OURS, _on(thread_counts()[-1])),
    *[Baseline(f"{OURS}, {n} thread{'s' * (n > 1)}", _on(n)) for n in thread_counts()[:-1]],
]
