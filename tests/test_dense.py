"""Dense convolution and its gradients against the oracle within rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastsparse as fs
from fastsparse import dense
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


def test_threads_have_their_own_buffer(rng: Any) -> None:
    from concurrent.futures import ThreadPoolExecutor

    geometry = GEOMETRIES[0]
    weight = rng.normal(size=(8, 4, 3, 3)).astype("f")
    inputs = [rng.normal(size=(3, 4, 20, 20)).astype("f") for _ in range(16)]
    alone = [dense.conv(x, weight, None, geometry) for x in inputs]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda x: dense.conv(x, weight, None, geometry), inputs * 4))
    for got, want in zip(together, alone * 4, strict=True):
        np.testing.assert_array_equal(got, want)
