"""Every kernel family of the registry against its reference, in seconds: what `fastsparse info --check` does."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from fastsparse import functional, nn
from fastsparse.csr import CSR, csr
from fastsparse.engine.from_model import program_of
from fastsparse.engine.lowering import batch_blocked, padded, spatial_tiles
from fastsparse.engine.passes import optimised
from fastsparse.engine.workspace import Workspace
from fastsparse.nn.shape import padding_mask
from fastsparse.ops import activations, attention, depthwise, gates, norm, optimizers, pooling, recurrent, softmax, spmv
from fastsparse.ops.layouts import user_planes
from fastsparse.ops.target import target_for, tuned
from fastsparse.runtime.buffers import address
from fastsparse.runtime.executable import runs_code
from fastsparse_kernels import reference as ref
from fastsparse_kernels.registry import FAMILIES

Array = NDArray[Any]
DTYPES = ("float32", "float64")
SAMPLES = 40
ACTIVATIONS = tuple(name for name in activations.ACTIVATIONS if name is not None)
_CONV: dict[str, Any] = {"kernel_size": (3, 3), "stride": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1)}
_POOL: tuple[Any, ...] = (3, 2), (2, 1), ((1, 0), (0, 1))


class Comparison(NamedTuple):
    """A result, what it should be, and the largest error it may have."""

    got: Array
    want: Array
    bound: Any


class Case:
    """Numbers for all checks of a type."""

    def __init__(self, dtype: str) -> None:
        self.rng = np.random.default_rng(0)
        self.dtype, self.unit = np.dtype(dtype), float(np.finfo(dtype).eps) / 2
        self.W = self.matrix((37, 61), 0.3)
        self.x, self.grad = self.normal(SAMPLES, 61), self.normal(SAMPLES, 37)
        self.images, self.filters = self.normal(1, 3, 9, 11), self.matrix((8, 27), 0.4)

    def normal(self, *shape: int) -> Array:
        """Numbers to compute with."""
        return self.rng.standard_normal(shape).astype(self.dtype)

    def matrix(self, shape: tuple[int, int], density: float) -> CSR:
        """A matrix with an empty row."""
        dense = self.normal(*shape) * (self.rng.random(shape) < density)
        dense[shape[0] // 2] = 0
        return csr(dense)

    def near(self, got: Any, want: Any, error: float = 64) -> Comparison:
        """A comparison within so many units of rounding of the largest number."""
        want = np.asarray(want, np.float64)
        return Comparison(np.asarray(got), want, error * self.unit * max(1.0, float(abs(want).max(initial=0))))

    def product(self, got: Array, W: CSR, X: Array, bias: Array | None = None) -> Comparison:
        """A comparison of W @ X + bias within contract R1."""
        fields = W.indptr, W.indices
        total = ref.spmm(*fields, abs(W.data), W.shape, abs(X), None if bias is None else abs(bias))
        return Comparison(got, ref.spmm(*fields, W.data, W.shape, X, bias), ref.bound(W.shape[1], total, self.dtype))


Check = Callable[[Case], Iterator[Comparison]]


def _spmm(c: Case) -> Iterator[Comparison]:
    bias, full = c.normal(37), csr(c.normal(8, 20))
    for columns in (3, 17, 100, 333):
        X = c.normal(61, columns)
        yield c.product(functional.spmm(c.W, X, bias=bias), c.W, X, bias)
        yield c.product(functional.spmm(full, X[:20]), full, X[:20])


def _coded_spmm(c: Case) -> Iterator[Comparison]:
    x, bias = c.normal(16 * SAMPLES, 61), c.normal(37)
    if runs_code():
        want = ref.spmm(c.W.indptr, c.W.indices, c.W.data, c.W.shape, x.T, bias).T
        yield _run(c, batch_blocked.schedule, nn.SparseLinear.from_dense(c.W, bias), x, want)


def _spmv(c: Case) -> Iterator[Comparison]:
    x = c.normal(61)
    with tuned(lookup_nonzeros=2**40, slice_nonzeros=-1.0):
        yield c.product(functional.spmm(c.W, x), c.W, x)


def _slices(c: Case) -> Iterator[Comparison]:
    x = c.normal(61)
    for W in (c.matrix((130, 61), 0.05), c.matrix((16, 61), 1.0)):  # rows of any length, and of one
        with tuned(lookup_nonzeros=2**40, slice_nonzeros=math.inf, slice_room=math.inf, streamed_calls=1):
            for _ in range(2):  # the first call is streamed
                yield c.product(functional.spmm(W, x), W, x)


def _lookup(c: Case) -> Iterator[Comparison]:
    target, W, x = target_for(c.dtype, 1), c.matrix((130, 200), 0.3), c.normal(200)
    plan, y = spmv.plan_lookup(W.pattern, target), np.empty(130, c.dtype)
    if plan is None:
        raise AssertionError("there is no plan")
    narrow_w, narrow_x = ((n.view(np.uint32) & 0xFFFF0000).view(np.float32) for n in (W.data, x))  # bfloat16 numbers
    for matrix, given in ((W, x), (W.with_data(narrow_w), x), (W.with_data(narrow_w), narrow_x)):
        launch = spmv.with_values(spmv.prepare(plan, target), plan, plan.pack(matrix.data))
        launch.run(address(given), address(y))
        yield c.product(y, matrix, given)


def _sddmm(c: Case) -> Iterator[Comparison]:
    A, B = c.grad.T.copy(), c.x
    W = c.W
    total = ref.sddmm(W.indptr, W.indices, abs(A), abs(B))
    got = functional.sddmm(W.pattern, A, B).data
    yield Comparison(got, ref.sddmm(W.indptr, W.indices, A, B), ref.bound(SAMPLES, total, c.dtype))


def _streamed_spmm(c: Case) -> Iterator[Comparison]:
    with tuned(stream_margin=math.inf, stream_small_bytes=-1):
        for columns in (3, 17, 100, 333):
            X = c.normal(61, columns)
            yield c.product(functional.spmm(csr(c.W), X), c.W, X)


def _streamed_sddmm(c: Case) -> Iterator[Comparison]:
    with tuned(stream_margin=math.inf, stream_small_bytes=-1):
        yield from _sddmm(c)


def _gate(c: Case) -> Iterator[Comparison]:
    target, y, factors = target_for(c.dtype, 1), np.empty_like(c.images), c.normal(1, 3)
    image = user_planes(3, (9, 11), target)
    launch = gates.prepare(image, (0, y.itemsize), image, 3, 1, target, by_lane=False)
    launch.run(address(c.images), address(factors), address(y))
    yield c.near(y, c.images * factors[:, :, None, None])


def _recurrent_cell(c: Case) -> Iterator[Comparison]:
    for kind in recurrent.GATES:
        x, u, before = (c.normal(*shape) for shape in ((recurrent.GATES[kind], 37), (recurrent.GATES[kind], 37), (37,)))
        after, h = np.empty_like(before), np.empty_like(before)
        launch = recurrent.prepare(kind, 37, 1, (0, 0), target_for(c.dtype, 1))
        launch.run(*map(address, (x, u, before, after)), 0, address(h))
        want, state = ref.cell(kind, x, u, before)
        yield c.near(h, want)
        if kind == "lstm":
            yield c.near(after, state)


def _conv(c: Case) -> Iterator[Comparison]:
    W, x = c.filters, c.images
    fields = W.indptr, W.indices
    got = functional.conv2d(x, W, kernel_size=3, padding=1)
    total = ref.conv(*fields, abs(W.data), W.shape, abs(x), **_CONV)
    yield Comparison(got, ref.conv(*fields, W.data, W.shape, x, **_CONV), ref.bound(27, total, c.dtype))


def _conv_gradient(c: Case) -> Iterator[Comparison]:
    W, x = c.filters, c.images
    grad = c.normal(1, 8, 9, 11)
    found = functional.conv2d_backward(grad, x, W, kernel_size=3, padding=1)
    wanted = ref.conv_backward(grad, W.indptr, W.indices, W.data, W.shape, x, **_CONV)
    for got, want in zip(found, wanted):
        yield c.near(got, want, 1000)


def _linear(c: Case) -> Iterator[Comparison]:
    yield c.product(functional.linear(c.x, c.W).T, c.W, c.x.T)


def _sparse_input(c: Case) -> Iterator[Comparison]:
    x = sparse.csr_matrix(c.x * (c.rng.random(c.x.shape) < 0.2))
    yield c.product(functional.linear(x, c.W).T, c.W, x.toarray().T)


def _sparse_input_gradient(c: Case) -> Iterator[Comparison]:
    x = sparse.csr_matrix(c.x * (c.rng.random(c.x.shape) < 0.2))
    _, got, _ = functional.linear_backward(c.grad, x, c.W, need_input=False)
    yield c.near(got, ref.sddmm(c.W.indptr, c.W.indices, c.grad.T, x.toarray()), 1000)


def _tile_activation(c: Case) -> Iterator[Comparison]:
    X = c.normal(61, 33)
    exact = ref.spmm(c.W.indptr, c.W.indices, c.W.data, c.W.shape, X)
    for name in ACTIVATIONS:
        yield c.near(functional.spmm(c.W, X, activation=name), ref.apply_activation(name, exact), 200)


def _activation(c: Case) -> Iterator[Comparison]:
    for name in ACTIVATIONS:
        yield c.near(activations.activate(name, c.x), ref.activate(name, c.x))


def _activation_gradient(c: Case) -> Iterator[Comparison]:
    dy = c.normal(*c.x.shape)
    for name in ACTIVATIONS:
        kept = activations.activate(name, c.x) if name in activations.FROM_OUTPUT else c.x
        yield c.near(activations.activate_backward(name, dy, kept), ref.activate_grad(name, dy, c.x))


def _pooling(c: Case) -> Iterator[Comparison]:
    yield c.near(pooling.max_pool2d(c.images, *_POOL), ref.max_pool(c.images, *_POOL), 0)
    yield c.near(pooling.max_pool2d_with_index(c.images, *_POOL)[0], ref.max_pool(c.images, *_POOL), 0)
    yield c.near(pooling.avg_pool2d(c.images, *_POOL), ref.avg_pool(c.images, *_POOL))


def _pooling_gradient(c: Case) -> Iterator[Comparison]:
    y, index = pooling.max_pool2d_with_index(c.images, *_POOL)
    dy, spatial = c.normal(*y.shape), (9, 11)
    want = ref.max_pool_backward(dy, c.images, *_POOL)
    yield c.near(pooling.max_pool2d_backward(dy, index, spatial, *_POOL), want)
    want = ref.avg_pool_backward(dy, c.images, *_POOL)
    yield c.near(pooling.avg_pool2d_backward(dy, spatial, *_POOL), want)


def _run(c: Case, schedule: Any, layer: nn.Module, x: Array, want: Array) -> Comparison:
    """A layer of an engine, in the layout of a schedule."""
    program = optimised(program_of(nn.Sequential(layer), x.shape[1:]))
    y = np.empty(want.shape, c.dtype)
    Workspace(schedule(program, len(x), target_for(c.dtype, 1))).run(x, y)
    return c.near(y, want, 1000)


def _blocked_pooling(c: Case) -> Iterator[Comparison]:
    x = c.normal(SAMPLES, 3, 9, 11)
    layer = nn.SparseConv2d(3, 3, 1, sparsity=0, bias=False, dtype=c.dtype, rng=0)
    layer.values.value = np.eye(3, dtype=c.dtype).ravel()
    for pool, oracle in ((nn.MaxPool2d(*_POOL), ref.max_pool), (nn.AvgPool2d(*_POOL), ref.avg_pool)):
        yield _run(c, batch_blocked.schedule, nn.Sequential(layer, pool), x, oracle(x, *_POOL))


def _gather(c: Case) -> Iterator[Comparison]:
    layer = nn.SparseConv2d(3, 8, 3, padding=1, sparsity=0.5, bias=False, dtype=c.dtype, rng=0)
    W = layer.weight
    want = ref.conv(W.indptr, W.indices, W.data, W.shape, c.images, **_CONV)
    yield _run(c, spatial_tiles.schedule, layer, c.images, want)


def _windows(c: Case, width: int, side: int, stride: int) -> Comparison:
    """A depthwise convolution of an image of so many columns."""
    pad = side // 2
    layer = nn.SparseConv2d(
        3, 3, side, padding=pad, stride=stride, groups=3, sparsity=0, bias=False, dtype=c.dtype, rng=0
    )
    W, x = layer.weight, c.normal(1, 3, 9, width)
    want = ref.conv(
        W.indptr, W.indices, W.data, W.shape, x, kernel_size=(side, side), stride=(stride, stride),
        padding=((pad, pad),) * 2, dilation=(1, 1), groups=3,
    )  # fmt: skip
    return _run(c, padded.schedule, layer, x, want)


def _depthwise(c: Case) -> Iterator[Comparison]:
    for window in depthwise.WINDOWS:
        yield _windows(c, 37, *window)


def _narrow_depthwise(c: Case) -> Iterator[Comparison]:
    for side, stride in depthwise.WINDOWS:
        for columns in (7, 14):  # two channels to a vector, and one
            yield _windows(c, columns * stride, side, stride)


def _interpolation(c: Case) -> Iterator[Comparison]:
    x = c.normal(1, 3, 5, 2 * target_for(c.dtype, 1).lanes + 1)
    yield _run(c, padded.schedule, nn.Upsample(2, "bilinear"), x, ref.interpolate(x.astype(np.float64), (2, 2)))


def _blocked_interpolation(c: Case) -> Iterator[Comparison]:
    x = c.normal(SAMPLES, 3, 5, 4)
    layer = nn.Upsample((2, 3), "bilinear")
    yield _run(c, batch_blocked.schedule, layer, x, ref.interpolate(x.astype(np.float64), (2, 3)))


def _batch_norm(c: Case) -> Iterator[Comparison]:
    gamma, beta, eps = c.normal(5), c.normal(5), 1e-5
    for shape in ((SAMPLES, 5), (4, 5, 7, 3)):
        x = c.normal(*shape)
        y, _, _ = norm.batch_norm_train(x, gamma, beta, eps)
        yield c.near(y, ref.batch_norm(x, gamma, beta, eps)[0])


def _batch_norm_gradient(c: Case) -> Iterator[Comparison]:
    gamma, eps = c.normal(5), 1e-5
    for shape in ((SAMPLES, 5), (4, 5, 7, 3)):
        x, dy = c.normal(*shape), c.normal(*shape)
        _, mean, variance = norm.batch_norm_train(x, gamma, gamma, eps)
        found = norm.batch_norm_backward(dy, x, gamma, mean, variance, eps)
        for got, want in zip(found, ref.batch_norm_backward(dy, x, gamma, eps)):
            yield c.near(got, want, 1000)


def _softmax(c: Case) -> Iterator[Comparison]:
    yield c.near(softmax.softmax(c.x), ref.softmax(c.x))


def _attention(c: Case) -> Iterator[Comparison]:
    q, k, v = (c.normal(2, rows, 3 * 21) for rows in (5, 19, 19))
    padding = np.arange(19) >= np.array([[11], [0]])  # some keys, and all
    for causal, hidden in itertools.product((False, True), (None, padding)):
        y = np.empty_like(q)
        mask = None if hidden is None else padding_mask(hidden, c.dtype, "mask")
        attention.attend(q, k, v, 3, causal, y, mask)
        yield c.near(y, ref.attention(q, k, v, 3, causal=causal, hidden=hidden), 1000)


def _layer_norm(c: Case) -> Iterator[Comparison]:
    gamma, beta = c.normal(61), c.normal(61)
    yield c.near(norm.layer_norm(c.x, gamma, beta, 1e-5), ref.layer_norm(c.x, gamma, beta, 1e-5))


def _sgd(c: Case) -> Iterator[Comparison]:
    value, grad, rate, momentum, decay = c.x.ravel(), c.normal(c.x.size), 0.1, 0.9, 0.01
    total = grad.astype(np.float64) + decay * value
    for velocity, nesterov in ((None, False), (c.normal(c.x.size), False), (c.normal(c.x.size), True)):
        moved = 0.0 if velocity is None else momentum * velocity.astype(np.float64)
        step = total + momentum * (moved + total) if nesterov else moved + total
        got = value.copy()
        optimizers.sgd_step(got, grad, velocity, rate, momentum, nesterov, decay)
        yield c.near(got, value - rate * step)


def _adam(c: Case) -> Iterator[Comparison]:
    value, grad = c.x.ravel().copy(), c.normal(c.x.size)
    first, second = c.normal(value.size), abs(c.normal(value.size))
    mean = 0.9 * first.astype(np.float64) + 0.1 * grad
    square = 0.999 * second.astype(np.float64) + 0.001 * grad.astype(np.float64) ** 2
    want = value - 0.01 * (mean / (1 - 0.9**3)) / (np.sqrt(square / (1 - 0.999**3)) + 1e-8)
    optimizers.adam_step(value, grad, first, second, 0.01, (0.9, 0.999), 1e-8, 0.0, False, 3)
    yield c.near(value, want)


CHECKS: dict[str, Check] = {
    "spmm": _spmm, "spmm by code": _coded_spmm, "spmv": _spmv, "spmv by slices": _slices,
    "spmv by register lookup": _lookup, "sddmm": _conv_gradient, "sddmm on contiguous runs": _sddmm,
    "streaming spmm": _streamed_spmm, "streaming sddmm": _streamed_sddmm, "sparse input": _sparse_input,
    "sparse input gradient": _sparse_input_gradient, "pack and unpack batch-blocked": _linear,
    "pack padded NCHW": _conv, "gather vectors": _gather, "activation of a tile": _tile_activation,
    "activation": _activation, "activation gradient": _activation_gradient, "pooling": _pooling,
    "pooling gradient": _pooling_gradient, "pooling of batch-blocked arrays": _blocked_pooling,
    "depthwise convolution": _depthwise, "depthwise convolution of narrow images": _narrow_depthwise,
    "interpolation": _interpolation, "interpolation of batch-blocked arrays": _blocked_interpolation, "gate": _gate,
    "recurrent cell": _recurrent_cell, "batch norm": _batch_norm, "batch norm gradient": _batch_norm_gradient,
    "softmax": _softmax, "attention": _attention, "layer norm": _layer_norm, "sgd": _sgd, "adam": _adam,
}  # fmt: skip


def check_kernels() -> Iterator[tuple[str, str]]:
    """Run every family of the registry that this CPU has: its name and type, and what is wrong, "" for nothing."""
    for dtype in DTYPES:
        case = Case(dtype)
        target = target_for(case.dtype, 1)
        for family in FAMILIES:
            if family.arguments(target.bits, target.lanes):
                yield f"{family.name} ({dtype})", _wrong(CHECKS[family.name], case)


def _wrong(check: Check, case: Case) -> str:
    try:
        for got, want, bound in check(case):
            error = abs(got.astype(np.float64) - want)
            many = int(np.count_nonzero(~(error <= bound)))
            if got.dtype != case.dtype or many:
                return f"{many} of {got.size} numbers are off, by up to {np.nanmax(error):.3g}"
    except Exception as problem:
        return f"{type(problem).__name__}: {problem}"
    return ""
