"""What the tests of layer kernels share: running a kernel, NaN-guarded arrays, error units."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from fastsparse.ops.target import Target
from fastsparse.runtime.buffers import address
from fastsparse.runtime.launch import Arguments, BoundLaunch
from fastsparse_kernels import compiler
from fastsparse_kernels.numba_internals import KernelCFunc
from tests.checking import target

Array = NDArray[Any]
DTYPES = ["float32", "float64"]


def bits_of(dtype: Any) -> int:
    return np.dtype(dtype).itemsize * 8


def lanes_of(dtype: Any) -> int:
    return compiler.lanes(bits_of(dtype))


@functools.cache
def target_of(dtype: Any, threads: int = 1) -> Target:
    """A target of so many threads, which share the smallest work."""
    return target(bits_of(dtype), lanes_of(dtype), threads, parallel_flops=0)


def unit(dtype: Any) -> float:
    """The unit round-off u."""
    return float(np.finfo(dtype).eps) / 2


def compiled(function: Any, arguments: int) -> Any:
    """A C function of int64 arguments."""
    code = KernelCFunc(function, types.void(*[types.int64] * arguments))
    code.compile()
    return code


def run_kernel(kernel: Any, record_type: Any, tasks: int, workers: int = 1, **fields: Any) -> None:
    """Run all tasks; arrays among the fields stand for their addresses."""
    words = {name: address(v) if isinstance(v, np.ndarray) else int(v) for name, v in fields.items()}
    BoundLaunch(kernel.address, Arguments(record_type, **words), tasks, 1e9).run(workers, slice_flops=1e9)


class Guarded:
    """An array filled with NaN, of a size that need not fit vectors, between margins that must stay NaN."""

    def __init__(self, shape: Any, dtype: Any, margin: int = 64) -> None:
        size = int(np.prod(shape))
        self._whole = np.full(size + 2 * margin, np.nan, dtype)
        self._margin = margin
        self.inside = self._whole[margin : margin + size].reshape(shape)

    def intact(self) -> bool:
        """Nothing was written outside."""
        margins = self._whole[: self._margin], self._whole[len(self._whole) - self._margin :]
        return all(bool(np.isnan(part).all()) for part in margins)
