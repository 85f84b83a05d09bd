"""Sparse samples through a sparse layer, with a dense result: x @ W.T."""

from __future__ import annotations

import numpy as np

from bench.providers import OURS, Call, Provider
from bench.workloads import SparseInput


def _fastsparse(case: SparseInput, threads: int) -> Call:
    import fastsparse as fs

    weight, x, out = fs.csr(case.weight), case.x, np.empty((case.batch, case.outputs), np.float32)
    return lambda: fs.linear(x, weight, out=out)


def _scipy(case: SparseInput, threads: int) -> Call:
    x, transposed = case.x, case.weight.T
    return lambda: (x @ transposed).toarray()


def _scipy_csr(case: SparseInput, threads: int) -> Call:
    x, transposed = case.x, case.weight.T.tocsr()
    return lambda: (x @ transposed).toarray()


PROVIDERS = [
    Provider(OURS, _fastsparse),
    Provider("scipy (x @ W.T).toarray()", _scipy),
    Provider("scipy, W.T as CSR beforehand", _scipy_csr),
]
