"""Softmax along the last axis."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from fastsparse.ops.norm import prepare_rows
from fastsparse.ops.target import Target, target_for
from fastsparse.runtime.buffers import address, in_place_out, readable
from fastsparse.runtime.launch import Launch
from fastsparse.runtime.memo import bounded_cache
from fastsparse_kernels import softmax as kernels

Array = NDArray[Any]


def softmax(x: Array, out: Array | None = None) -> Array:
    """exp(x) over its sum along the last axis; `out`, contiguous, may be x."""
    x = readable(x)
    y = in_place_out(out, x)
    if x.size:
        prepare(x.size // x.shape[-1], x.shape[-1], target_for(x.dtype)).run(address(x), address(y))
    return y


@bounded_cache
def prepare(rows: int, columns: int, target: Target) -> Launch:
    """Softmax of contiguous rows; operands x, y."""
    kernel = kernels.softmax_kernel(target.bits, target.lanes)
    return prepare_rows(kernel, kernels.SOFTMAX, ("x", "y"), rows, columns, target, "softmax")
