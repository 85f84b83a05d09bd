"""W @ X by everybody: X row-major in, Y row-major out, `out` preallocated where the library takes one."""

from __future__ import annotations

import warnings

import numpy as np

from bench.providers import OURS, Call, Provider, resident, torch_on
from bench.providers import mkl as mkl_library
from bench.workloads import Spmm


def _fastsparse(case: Spmm, threads: int) -> Call:
    import fastsparse as fs

    weight, x = fs.csr(case.weight), case.x
    out = np.empty((case.m, *x.shape[1:]), np.float32)
    return lambda: fs.spmm(weight, x, out=out)


def _scipy(case: Spmm, threads: int) -> Call:
    weight, x = case.weight, case.x
    return lambda: weight @ x


def _numpy(case: Spmm, threads: int) -> Call:
    weight, x = case.weight.toarray(), case.x
    out = np.empty((case.m, *x.shape[1:]), np.float32)
    return lambda: np.matmul(weight, x, out=out)


def _mkl(case: Spmm, threads: int) -> Call:
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


PROVIDERS = [
    Provider(OURS, _fastsparse),
    Provider("scipy", _scipy),
    Provider("numpy dense", _numpy),
    Provider("MKL sparse", _mkl, needs=("mkl",)),
    Provider("torch dense", _torch_dense, needs=("torch",)),
    Provider("torch.sparse", _torch_sparse, needs=("torch",)),
]

# X and W @ X stay in panels; nobody else has them.
PANEL_PROVIDERS = [Provider(OURS, resident.product)]
