"""Scaled dot-product attention of several heads."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse.ops.target import Target, target_for
from fastsparse.runtime.buffers import address, readable
from fastsparse.runtime.launch import Arguments, Launch
from fastsparse.runtime.memo import bounded_cache
from fastsparse_kernels import attention as kernels

Array = NDArray[Any]


def attend(q: Array, k: Array, v: Array, heads: int, causal: bool, y: Array, mask: Array | None = None) -> None:
    """y = softmax(Q K^T / sqrt(length) + mask) V per head.

    q, y : (samples, queries, heads * length); k, v : (samples, keys, heads * length); y contiguous
    mask : (samples, keys), 0 or -inf; a query that sees no key gets zeros
    """
    if y.size:
        q, k, v = readable(q), readable(k), readable(v)
        samples, queries, width = q.shape
        launch = prepare(samples, heads, width, queries, k.shape[1], causal, target_for(q.dtype))
        hidden = None if mask is None else readable(mask)
        launch.run(*map(address, (q, k, v)), 0 if hidden is None else address(hidden), address(y))


@bounded_cache
def prepare(samples: int, heads: int, width: int, queries: int, keys: int, causal: bool, target: Target) -> Launch:
    """Attention of contiguous arrays of `width` columns; operands q, k, v, mask (0: none), y."""
    length = width // heads
    scale = np.array([length**-0.5], np.float32 if target.bits == 32 else np.float64)
    scratch = -(-kernels.scratch_bytes(length, keys, target.bits, target.lanes) // 64) * 64
    arguments = Arguments(
        kernels.ATTENTION,
        heads=heads,
        length=length,
        queries=queries,
        keys=keys,
        causal=int(causal),
        scale=scale,
    )
    return Launch(
        kernels.attention_kernel(target.bits, target.lanes), arguments, ("q", "k", "v", "mask", "y"), target.loop,
        tasks=samples * heads,
        flops=4.0 * samples * queries * keys * width, scratch=scratch,
        label=("attention", f"{samples}x{heads}x{queries}x{keys}x{length}", "", "row-major"),
    )  # fmt: skip
