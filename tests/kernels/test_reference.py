"""The oracles against independent dense NumPy, SciPy and finite differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from fastsparse_kernels import reference as ref

Array = NDArray[Any]

GEOMETRIES: list[dict[str, Any]] = [
    {"spatial": (9,), "kernel_size": (3,), "stride": (1,), "padding": ((1, 1),), "dilation": (1,), "groups": 1},
    {"spatial": (10,), "kernel_size": (2,), "stride": (3,), "padding": ((0, 2),), "dilation": (2,), "groups": 3},
    {
        "spatial": (6, 5),
        "kernel_size": (3, 2),
        "stride": (2, 1),
        "padding": ((1, 2), (0, 1)),
        "dilation": (1, 2),
        "groups": 1,
    },
    {
        "spatial": (5, 5),
        "kernel_size": (3, 3),
        "stride": (1, 1),
        "padding": ((1, 1), (1, 1)),
        "dilation": (1, 1),
        "groups": 6,
    },
    {
        "spatial": (4, 3, 5),
        "kernel_size": (2, 1, 3),
        "stride": (1, 2, 2),
        "padding": ((1, 0), (0, 0), (2, 1)),
        "dilation": (2, 1, 1),
        "groups": 2,
    },
]
CHANNELS, OUT = 6, 12


def _matrix(rng: np.random.Generator, shape: tuple[int, int], density: float = 0.4) -> sp.csr_array:
    dense = rng.normal(size=shape) * (rng.random(shape) < density)
    dense[0] = 0  # an empty row
    return sp.csr_array(dense)


def _parts(W: sp.csr_array) -> tuple[Array, Array, Array, tuple[int, int]]:
    return W.indptr, W.indices, W.data, W.shape


def _conv_case(rng: np.random.Generator, geometry: dict[str, Any]) -> tuple[sp.csr_array, Array, dict[str, Any]]:
    options = {k: v for k, v in geometry.items() if k != "spatial"}
    columns = CHANNELS // geometry["groups"] * int(np.prod(geometry["kernel_size"]))
    return _matrix(rng, (OUT, columns)), rng.normal(size=(2, CHANNELS, *geometry["spatial"])), options


def _dense_conv(
    W: Array, x: Array, *, kernel_size: Any, stride: Any, padding: Any, dilation: Any, groups: int
) -> Array:
    """Convolution by windows of the padded input and one product per group."""
    d = len(kernel_size)
    padded = np.pad(x, [(0, 0), (0, 0), *padding])
    reach = [(k - 1) * s + 1 for k, s in zip(kernel_size, dilation, strict=True)]
    windows = sliding_window_view(padded, reach, axis=tuple(range(2, 2 + d)))
    windows = windows[(..., *(slice(None, None, s) for s in dilation))]
    windows = windows[(slice(None), slice(None), *(slice(None, None, s) for s in stride))]
    out = []
    for weight, part in zip(np.split(W, groups), np.split(windows, groups, axis=1), strict=True):
        kernel = weight.reshape(len(weight), -1, *kernel_size)
        axes = [1, *range(2 + d, 2 + 2 * d)]
        out.append(np.moveaxis(np.tensordot(part, kernel, (axes, range(1, 2 + d))), -1, 1))
    return np.concatenate(out, axis=1)


@pytest.mark.parametrize("columns", [None, 0, 1, 5])
def test_spmm_is_the_dense_product(columns: int | None) -> None:
    rng = np.random.default_rng(0)
    W = _matrix(rng, (7, 9))
    X = rng.normal(size=9 if columns is None else (9, columns))
    bias = rng.normal(size=7)
    got = ref.spmm(*_parts(W), X, bias=bias)
    want = W.toarray() @ X + (bias if columns is None else bias[:, None])
    abs_sum = abs(W.toarray()) @ abs(X) + (abs(bias) if columns is None else abs(bias)[:, None])
    assert got.shape == want.shape
    assert np.all(abs(got - want) <= ref.bound(9, abs_sum, np.float64))


def test_spmm_never_multiplies_an_absent_weight() -> None:
    W = sp.csr_array(np.array([[0.0, 2.0], [0.0, 0.0]]))
    X = np.array([[np.inf, np.nan], [1.0, 2.0]])
    np.testing.assert_array_equal(ref.spmm(*_parts(W), X), [[2.0, 4.0], [0.0, 0.0]])


def test_results_are_wider_than_the_inputs() -> None:
    W = sp.csr_array(np.ones((2, 2), np.float32))
    assert ref.spmm(*_parts(W), np.ones((2, 2), np.float32)).dtype == np.float64
    assert ref.spmm(*_parts(W), np.ones((2, 2))).dtype == np.longdouble
    assert ref.spmm(*_parts(W), np.ones(2, np.float32), np.ones(2, np.float32), "silu").dtype == np.float64
    x = np.ones((2, 3), np.float32)
    assert {a.dtype for a in ref.batch_norm(x, x[0], x[0], 1e-5)} == {np.dtype(np.float64)}


def test_sddmm_samples_the_product() -> None:
    rng = np.random.default_rng(1)
    W = _matrix(rng, (5, 8))
    A, B = rng.normal(size=(5, 11)), rng.normal(size=(11, 8))
    got = ref.sddmm(W.indptr, W.indices, A, B)
    rows = np.repeat(np.arange(5), np.diff(W.indptr))
    abs_sum = (abs(A) @ abs(B))[rows, W.indices]
    assert np.all(abs(got - (A @ B)[rows, W.indices]) <= ref.bound(11, abs_sum, np.float64))


def test_linear_and_its_gradients() -> None:
    rng = np.random.default_rng(2)
    W = _matrix(rng, (5, 8))
    x, grad, bias = rng.normal(size=(2, 3, 8)), rng.normal(size=(2, 3, 5)), rng.normal(size=5)
    dense = W.toarray()
    got = ref.linear(x, *_parts(W), bias)
    assert np.all(abs(got - (x @ dense.T + bias)) <= ref.bound(8, abs(x) @ abs(dense.T) + abs(bias), np.float64))
    grad_x, grad_values, grad_bias = ref.linear_backward(grad, x, *_parts(W))
    assert np.all(abs(grad_x - grad @ dense) <= ref.bound(5, abs(grad) @ abs(dense), np.float64))
    want = np.einsum("abm,abk->mk", grad, x)[dense != 0]
    assert np.all(abs(grad_values - want) <= ref.bound(6, np.einsum("abm,abk->mk", abs(grad), abs(x))[dense != 0], "d"))
    assert np.all(abs(grad_bias - grad.sum((0, 1))) <= ref.bound(6, abs(grad).sum((0, 1)), np.float64))


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda g: f"{len(g['spatial'])}d-groups{g['groups']}")
def test_conv_is_the_windowed_product(geometry: dict[str, Any]) -> None:
    rng = np.random.default_rng(3)
    W, x, options = _conv_case(rng, geometry)
    bias = rng.normal(size=OUT)
    got = ref.conv(*_parts(W), x, **options, bias=bias)
    column = bias.reshape(-1, *(1 for _ in geometry["spatial"]))
    want = _dense_conv(W.toarray(), x, **options) + column
    abs_sum = _dense_conv(abs(W.toarray()), abs(x), **options) + abs(column)
    assert got.shape == want.shape
    assert np.all(abs(got - want) <= ref.bound(W.shape[1], abs_sum, np.float64))


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda g: f"{len(g['spatial'])}d-groups{g['groups']}")
def test_conv_gradients_are_the_adjoints(geometry: dict[str, Any]) -> None:
    """The dense convolution is linear in x and in W: its matrix, column by column, gives the gradients."""
    rng = np.random.default_rng(4)
    W, x, options = _conv_case(rng, geometry)
    grad = rng.normal(size=_dense_conv(W.toarray(), x, **options).shape)
    grad_x, grad_values, grad_bias = ref.conv_backward(grad, *_parts(W), x, **options)
    basis_x = np.eye(x[0].size).reshape(-1, *x.shape[1:])
    want_x = np.tensordot(
        grad, _dense_conv(W.toarray(), basis_x, **options), (range(1, grad.ndim), range(1, grad.ndim))
    )
    np.testing.assert_allclose(grad_x.astype(float), want_x.reshape(x.shape), rtol=1e-12, atol=1e-12)
    rows, cols = W.nonzero()
    want_values = []
    for row, col in zip(rows, cols, strict=True):
        unit = np.zeros(W.shape)
        unit[row, col] = 1
        want_values.append(np.sum(grad * _dense_conv(unit, x, **options)))
    np.testing.assert_allclose(grad_values.astype(float), want_values, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(grad_bias.astype(float), grad.sum((0, *range(2, grad.ndim))), rtol=1e-12, atol=1e-12)


def test_padding_zeros_are_multiplied_and_absent_weights_are_not() -> None:
    W = sp.csr_array(np.array([[np.inf, 0.0, 1.0]]))
    x = np.ones((1, 1, 3))
    options: dict[str, Any] = {"kernel_size": (3,), "stride": (1,), "padding": ((1, 1),), "dilation": (1,)}
    got = ref.conv(*_parts(W), x, **options)
    np.testing.assert_array_equal(got[0, 0], [np.nan, np.inf, np.inf])


@pytest.mark.parametrize("name", ref.ACTIVATIONS)
def test_activation_slopes_match_differences(name: str) -> None:
    z = np.array([-7.3, -2.9, -1.1, -0.2, 0.3, 1.7, 2.8, 4.4, 7.1])
    h = 1e-6
    slope = (ref.activate(name, z + h) - ref.activate(name, z - h)) / (2 * h)
    np.testing.assert_allclose(
        ref.activate_grad(name, np.full(9, 2.0), z).astype(float), 2 * slope, rtol=1e-7, atol=1e-9
    )


def test_activation_values_at_known_points() -> None:
    known = {
        "relu": (-2.0, 0.0),
        "relu6": (7.0, 6.0),
        "leaky_relu": (-2.0, -0.02),
        "sigmoid": (np.log(3.0), 0.75),
        "tanh": (np.log(2.0), 0.6),
        "gelu": (1.0, 0.8413447460685429),
        "gelu_tanh": (1.0, 0.8411919906082768),
        "silu": (np.log(3.0), 0.75 * np.log(3.0)),
        "hardswish": (1.0, 4 / 6),
        "hardsigmoid": (1.0, 4 / 6),
    }
    assert set(known) == set(ref.ACTIVATIONS)
    for name, (z, want) in known.items():
        assert float(ref.activate(name, np.array(z))) == pytest.approx(want, rel=1e-14), name
    with pytest.raises(KeyError, match="swosh"):
        ref.activate("swosh", np.zeros(1))


@pytest.mark.parametrize("name", ref.ACTIVATIONS)
def test_activations_pass_nan_on(name: str) -> None:
    assert np.isnan(ref.activate(name, np.array([np.nan])))[0]


def _pool_windows(x: Array, kernel_size: Any, stride: Any, padding: Any, fill: float) -> Array:
    padded = np.pad(x, [(0, 0), (0, 0), *padding], constant_values=fill)
    return sliding_window_view(padded, kernel_size, axis=(2, 3))[:, :, :: stride[0], :: stride[1]]


POOLS: list[tuple[Any, Any, Any]] = [
    ((2, 2), (2, 2), ((0, 0), (0, 0))),
    ((3, 2), (1, 2), ((1, 1), (0, 1))),
    ((3, 3), (2, 2), ((1, 1), (1, 1))),
]


@pytest.mark.parametrize("pool", POOLS)
def test_pooling_is_the_reduction_of_windows(pool: tuple[Any, Any, Any]) -> None:
    x = np.random.default_rng(5).normal(size=(2, 3, 7, 6))
    np.testing.assert_array_equal(ref.max_pool(x, *pool), _pool_windows(x, *pool, -np.inf).max((-2, -1)))
    want = _pool_windows(x, *pool, 0.0).mean((-2, -1))
    np.testing.assert_allclose(ref.avg_pool(x, *pool).astype(float), want, rtol=1e-14, atol=1e-15)
    counts = _pool_windows(np.ones_like(x), *pool, 0.0).sum((-2, -1))
    want = _pool_windows(x, *pool, 0.0).sum((-2, -1)) / counts
    np.testing.assert_allclose(ref.avg_pool(x, *pool, False).astype(float), want, rtol=1e-14, atol=1e-15)


def _differences(f: Any, x: Array, grad: Array, h: float = 1e-6) -> Array:
    out = np.zeros(x.size)
    for i in range(x.size):
        up, down = x.astype(np.longdouble), x.astype(np.longdouble)
        up.flat[i] += h
        down.flat[i] -= h
        out[i] = np.sum((f(up) - f(down)) * grad) / (2 * h)
    return out.reshape(x.shape)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("kind", ["max", "avg", "avg without padding"])
def test_pooling_gradients(pool: tuple[Any, Any, Any], kind: str) -> None:
    rng = np.random.default_rng(6)
    x = rng.permutation(2 * 30).reshape(1, 2, 6, 5) / 7.0
    extra = () if kind == "max" else (kind == "avg",)
    forward = ref.max_pool if kind == "max" else ref.avg_pool
    backward = ref.max_pool_backward if kind == "max" else ref.avg_pool_backward
    grad = rng.normal(size=forward(x, *pool, *extra).shape)
    got = backward(grad, x, *pool, *extra)
    want = _differences(lambda v: forward(v, *pool, *extra), x, grad)
    np.testing.assert_allclose(got.astype(float), want, rtol=1e-8, atol=1e-8)


def test_max_pool_gradient_takes_the_first_of_equals() -> None:
    got = ref.max_pool_backward(np.ones((1, 1, 1, 1)), np.zeros((1, 1, 2, 2)), (2, 2), (2, 2), ((0, 0), (0, 0)))
    np.testing.assert_array_equal(got[0, 0], [[1, 0], [0, 0]])


@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 2, 3)])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_batch_norm_and_its_gradients(shape: tuple[int, ...], mode: str) -> None:
    rng = np.random.default_rng(7)
    x, grad = rng.normal(1.0, 2.0, shape), rng.normal(size=shape)
    gamma, beta, mean, var = rng.normal(size=3), rng.normal(size=3), rng.normal(size=3), rng.random(3) + 0.5
    eps = 1e-5

    def forward(x: Array, gamma: Array, beta: Array) -> Array:
        if mode == "train":
            return ref.batch_norm(x, gamma, beta, eps)[0]
        return ref.batch_norm_eval(x, gamma, beta, mean, var, eps)

    y = np.moveaxis(forward(x, np.ones(3), np.zeros(3)), 1, 0).reshape(3, -1)
    if mode == "train":
        spread = np.moveaxis(x, 1, 0).reshape(3, -1).var(1)
        np.testing.assert_allclose(y.mean(1).astype(float), 0, atol=1e-14)
        np.testing.assert_allclose(y.var(1).astype(float), spread / (spread + eps), rtol=1e-12)
        grads = ref.batch_norm_backward(grad, x, gamma, eps)
    else:
        flat = np.moveaxis(x, 1, 0).reshape(3, -1)
        want = (flat - mean[:, None]) / np.sqrt(var + eps)[:, None]
        np.testing.assert_allclose(y.astype(float), want, rtol=1e-12)
        return
    arguments = [x, gamma, beta]
    for i, got in enumerate(grads):
        f = lambda v, i=i: forward(*[v if j == i else a for j, a in enumerate(arguments)])  # noqa: E731
        np.testing.assert_allclose(got.astype(float), _differences(f, arguments[i], grad), rtol=1e-6, atol=1e-7)
