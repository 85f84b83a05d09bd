"""Dense convolution and its gradients against the oracle within rounding."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import fastsparse as fs
from fastsparse.ops import dense
from fastsparse_kernels import reference as ref

GEOMETRIES = [
    dense.Geometry((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)),
    dense.Geometry((3, 2), (2, 1), ((1, 2), (0, 1)), (1, 2), 2),
    dense.Geometry((1, 1), (2, 2), ((0, 0), (0, 0)), (1, 1)),
    dense.Geometry((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 4),
    dense.Geometry((4,), (3,), ((2, 0),), (1,), 2),
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("parts", [False, True])
def test_convolution_is_the_oracle(
    geometry: dense.Geometry, dtype: str, parts: bool, monkeypatch: Any, rng: Any
) -> None:
    if parts:
        monkeypatch.setattr(dense, "_BUFFER_BYTES", 4096)
    x = rng.normal(size=(5, 4, 7, 6)[: 2 + len(geometry.kernel)]).astype(dtype)
    weight = rng.normal(size=(8, 4 // geometry.groups, *geometry.kernel)).astype(dtype)
    bias = rng.normal(size=8).astype(dtype)
    W = fs.csr(weight.reshape(8, -1))
    parts_of = (W.indptr, W.indices, W.data, W.shape)
    absolute = (W.indptr, W.indices, abs(W.data), W.shape)
    window: dict[str, Any] = {
        "kernel_size": geometry.kernel,
        "stride": geometry.stride,
        "padding": geometry.padding,
        "dilation": geometry.dilation,
        "groups": geometry.groups,
    }
    y = dense.conv(x, weight, bias, geometry)
    abs_sum = ref.conv(*absolute, abs(x), **window, bias=abs(bias))
    assert np.all(abs(y - ref.conv(*parts_of, x, **window, bias=bias)) <= ref.bound(W.shape[1], abs_sum, dtype))
    dy = rng.normal(size=y.shape).astype(dtype)
    grads = dense.conv_backward(dy, x, weight, geometry, True)
    want = ref.conv_backward(dy, *parts_of, x, **window)
    abs_sums = ref.conv_backward(abs(dy), *absolute, abs(x), **window)
    for got, right, total in zip(grads, want, abs_sums, strict=True):
        assert got is not None
        assert got.dtype == dtype
        assert np.all(abs(got.reshape(right.shape) - right) <= ref.bound(dy.size, total, dtype))
    assert dense.conv_backward(dy, x, weight, geometry, False)[0] is None


def test_the_buffer_is_the_thread_s_own_and_small(rng: Any) -> None:
    geometry, padded = GEOMETRIES[0], rng.normal(size=(4, 12, 12, 3))
    mine = dense._columns(padded, geometry, (10, 10))
    assert np.shares_memory(mine, dense._columns(padded, geometry, (10, 10)))
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(dense._columns, padded, geometry, (10, 10)).result()
    assert not np.shares_memory(mine, other)
    huge = rng.normal(size=(4, 402, 402, 1))  # 46 MB of columns
    assert not np.shares_memory(dense._columns(huge, geometry, (400, 400)), dense._columns(padded, geometry, (10, 10)))
    assert dense._buffers.columns.nbytes <= 16 << 20
