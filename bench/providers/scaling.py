"""fastsparse on more threads than one against fastsparse on one; user arrays in and out."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np

from bench.providers import OURS, Call, Provider, conv, spmm
from bench.workloads import Conv, Spmm


def counts() -> list[int]:
    """1, 2, 4, ... and all processors."""
    most = os.cpu_count() or 1
    return sorted({most, *(1 << i for i in range(most.bit_length()))})


def _on(count: int) -> Callable[[Spmm | Conv, int], Call]:
    def setup(case: Spmm | Conv, threads: int) -> Call:
        import fastsparse as fs

        ours = (spmm.PROVIDERS if isinstance(case, Spmm) else conv.PROVIDERS)[0]
        call = ours.setup(case, count)

        def run() -> np.ndarray:
            with fs.threads(count):
                return call()

        return run

    return setup


def threads_of(provider: str) -> int:
    """The number in a provider's name."""
    return counts()[-1] if provider == OURS else int(provider.split()[-2])


ONE = f"{OURS}, 1 thread"
_MOST = Provider(OURS, _on(counts()[-1]))
PROVIDERS = [_MOST, *[Provider(f"{OURS}, {n} thread{'s' * (n > 1)}", _on(n)) for n in counts()[:-1]]]
