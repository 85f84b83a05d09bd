"""Random calls of functions and layers in guarded memory, against sums in a wider type (contracts R1 to R7).

    python -m bench.fuzz_functions --count 100000

Arguments in any layout, results, packed operands, panels and workspaces lie beside pages that nobody may touch and hold
NaN before they are written. A case's results are within the error bound, exact for small integers, of the same NaN and
Inf as the oracle's; R3's functions give the same bits a second time, under other choices, layouts and threads. What
fails ends the worker, and its number is told; `--only` repeats it.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

import fastsparse as fs
from bench.draws import Draws, windows
from bench.guarded import Outcome, forgetful, guarded, guarded_memory, main
from fastsparse import nn
from fastsparse.csr import CSR, Pattern
from fastsparse.ops.target import tuned
from fastsparse_kernels import reference as ref
from tests import checking
from tests.checking import PATTERNS, SETTINGS, choose, numbers

Array = NDArray[Any]
Rng = np.random.Generator
SIZES = (1, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 24, 31, 32, 33, 48, 63, 64, 65, 80, 97, 127, 128, 129, 160)
FUNCTIONS = {1: fs.conv1d, 2: fs.conv2d, 3: fs.conv3d}


class Case(Draws):
    """One case: what is drawn once for all calls of it."""

    def __init__(self, seed: int, number: int) -> None:
        super().__init__([seed, number])
        self.rng = self.numbers
        self.dtype = str(self.one("float32", "float32", "float64"))
        self.kind = str(self.one("integers", "numbers", "numbers", "numbers", "specials"))
        self.bits = True  # whether calls give the same bits, under the same choices at least
        self.choices_matter = False
        self.calls: list[Callable[[], Any]] = []

    def size(self, least: int = 0) -> int:
        return least if self.rng.random() < 0.02 else int(self.one(*SIZES))

    def activation(self) -> str | None:
        names = [name for name in fs.functional.ACTIVATIONS if name]
        return str(self.one(*names)) if self.kind != "integers" and self.rng.random() < 0.4 else None

    def weight(self, rows: int, columns: int, finite: bool = False) -> CSR:
        """A matrix whose arrays end in front of guard pages."""
        mask = PATTERNS[str(self.one(*PATTERNS))](self.rng, (rows, columns))
        W = checking.matrix(self.rng, mask, self.dtype, self.kind == "integers")
        parts = [guarded(a.shape, a.dtype) for a in (W.indptr, W.indices, W.data)]
        for part, array in zip(parts, (W.indptr, W.indices, W.data if finite else self.spoilt(W.data)), strict=True):
            part[...] = array
            part.flags.writeable = False
        return CSR._trusted(Pattern._trusted(parts[0], parts[1], W.shape), parts[2])

    def dense(self, *shape: int) -> Array:
        return self.spoilt(numbers(self.rng, shape, self.dtype, self.kind == "integers"))

    def spoilt(self, array: Array) -> Array:
        """With some NaN and Inf, in cases of such."""
        if self.kind == "specials" and array.size and self.rng.random() < 0.5:
            array = array.copy()
            array.flat[self.rng.integers(0, array.size, 2)] = self.one(np.nan, np.inf, -np.inf)
        return array

    def bias(self, size: int) -> Array | None:
        return self.dense(size) if self.rng.random() < 0.6 else None

    def placed(self, array: Array | None) -> Any:
        """The same numbers in any layout, beside a guard page."""
        if array is None:
            return None
        kind, shape = int(self.rng.integers(12)), array.shape
        if kind == 0:
            twin = guarded(shape[::-1], array.dtype).T
        elif kind == 1:
            twin = guarded((*shape[:-1], 2 * shape[-1]), array.dtype)[..., ::2]
        elif kind == 2:
            twin = guarded(shape, array.dtype, front=True)[::-1]
        elif kind == 3:
            twin = guarded((array.nbytes + 1,), np.uint8)[: array.nbytes].view(array.dtype).reshape(shape)
        elif kind == 4:
            twin = guarded(shape, array.dtype.newbyteorder())
        elif kind == 5:
            order = self.rng.permutation(array.ndim)
            twin = guarded(tuple(shape[n] for n in order), array.dtype).transpose(np.argsort(order))
        elif kind == 6:
            wide = tuple(n + int(self.rng.integers(0, 4)) for n in shape)
            twin = guarded(wide, array.dtype)[tuple(slice(w - n, None) for w, n in zip(wide, shape, strict=True))]
        elif kind == 7:
            twin = guarded((array.size * 3,), array.dtype)[::-3].reshape(shape)
        elif kind == 8:
            return array.tolist() if 0 < array.size < 50 and array.dtype == "float64" else array
        else:
            twin = guarded(shape, array.dtype, front=kind == 9)
        twin[...] = array
        if self.rng.random() < 0.2:
            twin.flags.writeable = False
        return twin

    def out(self, shape: tuple[int, ...]) -> Array | None:
        return guarded(shape, self.dtype) if self.rng.random() < 0.5 else None

    def check(self, result: Array, exact: Array, k: Any, total: Array, activation: str | None = None) -> None:
        """A result against its oracle's, before the activation; total is the sum of absolute values."""
        assert result.dtype == self.dtype, result.dtype
        if self.kind == "specials":
            told = exact if activation is None else ref.apply_activation(activation, exact)
            assert result.shape == told.shape, (result.shape, told.shape)
            checking.assert_same_specials(result, np.asarray(told, self.dtype))
        elif self.kind == "integers" and activation is None:
            assert np.array_equal(result, exact), f"{np.sum(result != exact)} of {result.size} are not exact"
        else:
            checking.assert_within(result, exact, k, total, activation)

    def run(self, call: Callable[[], Any], check: Callable[[Any], None]) -> None:
        """Call twice, each time under other choices, and check the first result."""
        results, setting = [], None
        for number in range(2):
            if not number or not self.choices_matter:
                setting = str(self.one(*SETTINGS)) if self.rng.random() < 0.5 else None
            with contextlib.ExitStack() as stack, np.errstate(all="ignore"):
                stack.enter_context(fs.threads(int(self.rng.integers(1, 3))))
                stack.enter_context(tuned(streamed_calls=0 if number else 1))  # both ways of one column
                if setting:
                    stack.enter_context(choose(setting))
                if self.rng.random() < 0.2:
                    stack.enter_context(forgetful())
                stack.enter_context(guarded_memory())
                result = call()
            results.append(result)
            try:
                with np.errstate(all="ignore"):
                    check(result)
            except AssertionError as error:
                raise AssertionError(f"{error} with {setting or 'usual choices'}") from None
        if self.bits and self.kind != "specials":
            assert checking.same_bits(*(r[0] if isinstance(r, tuple) else r for r in results)), (
                "other bits the second time"
            )


# ---------------------------------------------------------------- functions


def _product(case: Case, W: CSR, X: Array, bias: Array | None) -> tuple[Array, Array]:
    """W @ X + bias in a wide type, and the sum of absolute values."""
    parts = W.indptr, W.indices
    exact = ref.spmm(*parts, W.data, W.shape, X, bias)
    return exact, ref.spmm(*parts, abs(W.data), W.shape, abs(X), None if bias is None else abs(bias))


def _scattered(case: Case, W: CSR) -> CSR:
    """W with empty rows, columns or both between its own."""
    shape = tuple(case.one((40_000, W.shape[1]), (W.shape[0], 40_000), (40_000, 50_000)))
    rows, columns = (np.sort(case.rng.choice(many, few, replace=False)) for many, few in zip(shape, W.shape))
    indptr = np.zeros(shape[0] + 1, np.int64)
    indptr[rows + 1] = np.diff(W.indptr)
    return CSR._trusted(Pattern._trusted(np.cumsum(indptr), columns[W.indices], shape), W.data)


def spmm(case: Case) -> None:
    W = case.weight(case.size(), case.size())
    scattered = max(W.shape) < 100 and case.rng.random() < 0.2
    if scattered:
        W = _scattered(case, W)
    columns = case.one(None, 1, 2, case.size(), case.size(), case.size())
    X = case.dense(W.shape[1], *(() if columns is None else (columns,)))
    bias, activation = case.bias(W.shape[0]), case.activation()
    if scattered and case.rng.random() < 0.7:
        bias = activation = None
    shape = (W.shape[0], *X.shape[1:])
    case.choices_matter = X.size == W.shape[1]
    exact, total = _product(case, W, X, bias)
    lengths = np.diff(W.indptr).reshape(-1, *(1,) * (X.ndim - 1))
    way = case.rng.integers(3) if bias is None and activation is None else 0

    def call() -> Any:
        if way == 1:
            return fs.matmul(W, case.placed(X), out=case.out(shape))
        if way == 2:
            return W @ case.placed(X)
        return fs.spmm(W, case.placed(X), bias=case.placed(bias), activation=activation, out=case.out(shape))

    case.run(call, lambda y: case.check(y, exact, lengths, total, activation))


def linear(case: Case) -> None:
    W = case.weight(case.size(), case.size())
    samples = case.one((), (1,), (case.size(),), (2, case.size()), (case.size(), 3))
    x = case.dense(*samples, W.shape[1])
    bias, activation = case.bias(W.shape[0]), case.activation()
    rows = x.reshape(int(np.prod(samples)), W.shape[1])
    exact, total = (a.T.reshape(*samples, W.shape[0]) for a in _product(case, W, rows.T, bias))
    case.choices_matter = len(rows) == 1
    sparse_x = len(samples) == 1 and case.kind != "specials" and case.rng.random() < 0.4
    if sparse_x:
        kept = case.rng.random(x.shape) < 0.3
        x = np.where(kept, x, 0).astype(x.dtype)
        exact, total = (a.T for a in _product(case, W, x.T, bias))

    def call() -> Any:
        given: Any = case.placed(x)
        if sparse_x:
            given = case.one(sparse.csr_array, sparse.csc_array, sparse.coo_array, sparse.csr_matrix)(x)
        return fs.linear(
            given, W, case.placed(bias), activation=activation, out=case.out((*samples, W.shape[0]))
        )  # fmt: skip

    case.run(call, lambda y: case.check(y, exact, np.diff(W.indptr), total, activation))


def linear_backward(case: Case) -> None:
    W, samples = case.weight(case.size(), case.size()), case.size()
    x, grad = case.dense(samples, W.shape[1]), case.dense(samples, W.shape[0])
    parts = W.indptr, W.indices
    exact = ref.linear_backward(grad, x, *parts, W.data, W.shape)
    totals = ref.linear_backward(abs(grad), abs(x), *parts, abs(W.data), W.shape)
    counts = np.bincount(W.indices, minlength=W.shape[1]), samples, samples
    case.choices_matter = samples == 1

    def check(found: Any) -> None:
        for y, want, k, total in zip(found, exact, counts, totals, strict=True):
            case.check(y, want, k, total)

    case.run(lambda: fs.linear_backward(case.placed(grad), case.placed(x), W), check)


def sddmm(case: Case) -> None:
    W, inner = case.weight(case.size(), case.size()), case.size()
    A, B, case.choices_matter = case.dense(W.shape[0], inner), case.dense(inner, W.shape[1]), True
    exact, total = (ref.sddmm(W.indptr, W.indices, a, b) for a, b in ((A, B), (abs(A), abs(B))))
    case.run(lambda: fs.sddmm(W.pattern, case.placed(A), case.placed(B)).data,
             lambda y: case.check(y, exact, inner, total))  # fmt: skip


def sparse_product(case: Case) -> None:
    """Of two sparse matrices, ours or SciPy's; and by a dense matrix from the left."""
    case.kind, case.bits = "numbers" if case.kind == "specials" else case.kind, False
    A = case.weight(case.size(), case.size())
    B = case.weight(A.shape[1], case.size())
    exact, total = (a.toarray() @ b.toarray() for a, b in ((A.to_scipy().astype("f8"), B.to_scipy().astype("f8")),
                                                           (abs(A.to_scipy()), abs(B.to_scipy()))))  # fmt: skip
    way = case.rng.integers(3)

    def call() -> Any:
        if way == 0:
            y = fs.matmul(A, B)
        elif way == 1:
            y = fs.matmul(A.to_scipy(), B)
        else:
            y = fs.matmul(A, B.to_scipy())
        return np.asarray(y.toarray())

    case.run(call, lambda y: case.check(y, exact, A.shape[1], total))


def _geometry(case: Case, axes: int) -> tuple[dict[str, Any], tuple[int, ...], int, int]:
    """Options of a convolution, the shape of its images (batch first), and its channels."""
    spatial = [case.between(1, {1: 69, 2: 17, 3: 6}[axes]) for _ in range(axes)]
    w = windows(case, spatial, (1, 1, 2, 3, 3, 4), pads=lambda kernel: 3, dilations=(1, 1, 1, 2, 3), tiling=0.1)
    channels = int(case.one(1, 2, 3, 4, 6, 8))
    groups = case.divisor(channels, 1, 1, channels)
    out = groups * case.between(1, 3)
    batch = int(case.one(0, 1, 1, 2, 2, 3, 7, 8, 16, 17, 33)) if axes < 3 else int(case.one(1, 2, 17))
    names = ("kernel_size", "stride", "padding", "dilation")
    options = dict(zip(names, map(tuple, w[:4]), strict=True)) | {"groups": groups}
    return options, (batch, channels, *spatial), out, math.prod(w.kernel)


def conv(case: Case) -> None:
    axes = int(case.one(1, 2, 2, 2, 3))
    options, shape, out, taps = _geometry(case, axes)
    W, x = case.weight(out, shape[1] // options["groups"] * taps), case.dense(*shape)
    bias, activation = case.bias(out), case.activation()
    exact = ref.conv(W.indptr, W.indices, W.data, W.shape, x, bias=bias, **options)
    total = ref.conv(W.indptr, W.indices, abs(W.data), W.shape, abs(x), bias=None if bias is None else abs(bias),
                     **options)  # fmt: skip
    lengths = np.diff(W.indptr).reshape(-1, *(1,) * axes)
    case.run(
        lambda: FUNCTIONS[axes](case.placed(x), W, case.placed(bias), activation=activation, out=case.out(exact.shape),
                                **options),
        lambda y: case.check(y, exact, lengths, total, activation),
    )  # fmt: skip


def conv_backward(case: Case) -> None:
    axes = int(case.one(1, 2, 2, 2, 3))
    options, shape, out, taps = _geometry(case, axes)
    # At borders weights multiply zeros, which is NaN of those that are not finite.
    W, x = case.weight(out, shape[1] // options["groups"] * taps, finite=True), case.dense(*shape)
    sizes = ref.conv(W.indptr, W.indices, W.data, W.shape, np.zeros(shape, x.dtype), **options).shape
    grad = case.dense(*sizes)
    parts = W.indptr, W.indices
    exact = ref.conv_backward(grad, *parts, W.data, W.shape, x, **options)
    totals = ref.conv_backward(abs(grad), *parts, abs(W.data), W.shape, abs(x), **options)
    counts = W.nnz, grad.size // out, grad.size // out

    def check(found: Any) -> None:
        for y, want, k, total in zip(found, exact, counts, totals, strict=True):
            case.check(y, want, k, total)

    case.run(lambda: fs.functional.conv_backward(case.placed(grad), case.placed(x), W, **options), check)


def conv_transpose(case: Case) -> None:
    options, shape, out, taps = _geometry(case, 2)
    batch, channels, *spatial = shape
    out //= options["groups"]
    sides = zip(
        spatial, options["stride"], options["kernel_size"], options["dilation"], options["padding"], strict=True
    )
    sizes = tuple((n - 1) * s + d * (k - 1) + 1 - sum(p) for n, s, k, d, p in sides)
    if min(sizes) < 1:
        return
    W, x, bias = case.weight(channels, out * taps, True), case.dense(*shape), case.bias(out * options["groups"])
    activation, images = case.activation(), np.zeros((batch, out * options["groups"], *sizes))
    parts, column = (W.indptr, W.indices), (-1, 1, 1)
    exact, total = (
        ref.conv_backward(grad, *parts, data, W.shape, images, **options)[0]
        + (0 if b is None else b.astype(np.float64).reshape(column))
        for grad, data, b in ((x, W.data, bias), (abs(x), abs(W.data), None if bias is None else abs(bias)))
    )
    case.run(
        lambda: fs.conv_transpose2d(case.placed(x), W, case.placed(bias), activation=activation,
                                    out=case.out(exact.shape), **options),
        lambda y: case.check(y, exact, W.nnz, total, activation),
    )  # fmt: skip


def layer(case: Case) -> None:
    """A layer, forward and backward, in float32 against the same in float64."""
    case.kind, case.bits, rng = "numbers", False, case.rng
    case.dtype = "float32"
    shape = (int(rng.integers(1, 20)), int(rng.integers(1, 9)), *(int(n) for n in rng.integers(1, 14, 2)))
    flat, sides = (shape[0], case.size(1)), [int(case.one(1, 2, 3)) for _ in range(2)]
    pads = tuple((int(rng.integers(0, k // 2 + 1)), int(rng.integers(0, k // 2 + 1))) for k in sides)
    window = tuple(sides), tuple(int(n) for n in rng.integers(1, 4, 2)), pads
    fits = all(n + sum(p) >= k for n, k, p in zip(shape[2:], sides, pads, strict=True))
    tokens, heads = (shape[0], int(rng.integers(1, 20)), 12), int(case.one(1, 2, 3, 4, 6))
    some = int(rng.integers(1, 4))
    axes = int(rng.integers(1, 3))
    seed, causal = int(rng.integers(2**31)), bool(rng.integers(2))
    kept = fs.csr(PATTERNS["scattered"](rng, (12, 12)).astype(float)).pattern

    def projections(dtype: str) -> dict[str, Any]:
        names = ("query", "key", "value", "output")
        return {n: nn.SparseLinear(12, 12, pattern=kept, dtype=dtype, rng=i) for i, n in enumerate(names)}

    normed = (*shape[:2], shape[2] + 3, shape[3] + 3)
    makers: list[tuple[Callable[[str], nn.Module], tuple[int, ...]]] = [
        (lambda t: nn.MaxPool2d(*window), shape if fits else (*shape[:2], 5, 6)),
        (lambda t: nn.AvgPool2d(*window), shape if fits else (*shape[:2], 5, 6)),
        (lambda t: nn.AdaptiveAvgPool2d((1 + shape[2] // 2, 1)), shape),
        (lambda t: nn.BatchNorm2d(shape[1], dtype=t), (shape[0] + 3, *shape[1:])),
        (lambda t: nn.BatchNorm1d(flat[1], dtype=t), (flat[0] + 9, flat[1])),
        (lambda t: nn.LayerNorm(normed[-axes:], dtype=t), normed),
        (lambda t: nn.RMSNorm(flat[1], dtype=t), flat),
        (lambda t: nn.Softmax(), shape),
        (lambda t: nn.Softmax(), flat),
        (lambda t: nn.Upsample((some, 2), ("nearest", "bilinear")[axes - 1]), shape),
        (lambda t: nn.MultiheadAttention(12, heads, causal=causal, **projections(t)), tokens),
        (lambda t: nn.Conv2d(shape[1], 5, 1, dtype=t, rng=seed), shape),
        (lambda t: nn.Linear(flat[1], 7, activation="gelu", dtype=t, rng=seed), flat),
        (lambda t: nn.SparseLinear(flat[1], 9, sparsity=0.7, activation="silu", dtype=t, rng=seed), flat),
        (lambda t: nn.Residual(nn.SparseLinear(12, 12, sparsity=0.5, activation="tanh", dtype=t, rng=seed)), tokens),
        (lambda t: nn.Concat(None, nn.SparseConv2d(shape[1], 3, 1, sparsity=0.5, dtype=t, rng=seed)), shape),
        (lambda t: nn.SparseConv1d(shape[1], 6, some, 2, 1, sparsity=0.6, dtype=t, rng=seed), (*shape[:2], flat[1])),
        (lambda t: nn.SparseConv3d(shape[1], 4, some, 1, 1, sparsity=0.6, dtype=t, rng=seed), (*shape, 1 + axes)),
        (lambda t: nn.SparseConvTranspose2d(shape[1], 4, some, some, sparsity=0.6, dtype=t, rng=seed), shape),
        *[(lambda t, make=make: make(), shape) for make in (
            nn.GELU, nn.SiLU, nn.Hardswish, nn.Sigmoid, nn.Tanh, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Hardsigmoid,
        )],
    ]  # fmt: skip
    make, size = makers[int(rng.integers(len(makers)))]
    x = rng.standard_normal(size)
    narrow, wide = make("float32"), make("float64")
    if narrow.parameters():
        for (_, a), (_, b) in zip(narrow.named_parameters(), wide.named_parameters(), strict=True):
            b.value = a.value.astype(np.float64)
    x = x.astype(np.float32)
    y = wide(x.astype(np.float64))
    dy = rng.standard_normal(y.shape).astype(np.float32)
    expected = [y, wide.backward(dy.astype(np.float64)), *(p.grad for p in wide.parameters())]

    def call() -> Any:
        for p in narrow.parameters():
            p.grad = None
        y = narrow(case.placed(x))
        return [y, narrow.backward(case.placed(dy)), *(p.grad for p in narrow.parameters())]

    def check(found: Any) -> None:
        for i, (a, b) in enumerate(zip(found, expected, strict=True)):
            assert (a is None) == (b is None), i
            if a is not None:
                assert a.shape == b.shape, (i, a.shape, b.shape)
                off = float(abs(a - b).max(initial=0)) / max(1.0, float(abs(b).max(initial=0)))
                assert off < 3e-4, f"{type(narrow).__name__}: {('y', 'dx', *'p' * i)[min(i, 2)]} is off by {off:.1e}"

    case.run(call, check)


def optimizer(case: Case) -> None:
    """Three steps of an optimizer, in memory beside guard pages, against the same in float64."""
    case.kind, rng = "numbers", case.rng
    shapes = [(case.size(), *((case.size(),) * int(rng.integers(0, 2)))) for _ in range(int(rng.integers(1, 4)))]
    start = [case.dense(*shape) for shape in shapes]
    grads = [[case.dense(*shape) if rng.random() < 0.9 else None for shape in shapes] for _ in range(3)]
    rate, decay = float(rng.choice([0.5, 1e-3])), float(rng.choice([0, 0.1]))
    norm = float(rng.choice([0.5, 1e9])) if rng.random() < 0.3 else None
    kind, momentum = str(rng.choice(["SGD", "Adam", "AdamW"])), float(rng.choice([0, 0.9]))
    nesterov = bool(momentum and rng.random() < 0.5)
    own: dict[str, Any] = {"momentum": momentum, "nesterov": nesterov} if kind == "SGD" else {}

    exact, means, squares = ([np.array(a, np.longdouble) * scale for a in start] for scale in (1, 0, 0))
    for number, given in enumerate(grads):
        size = np.sqrt(sum(float((g.astype(np.longdouble) ** 2).sum()) for g in given if g is not None))
        for i, grad in enumerate(given):
            if grad is None:
                continue
            g = grad.astype(np.longdouble) * (1 if norm is None or size <= norm else norm / size)
            if kind == "AdamW":
                exact[i] = exact[i] * (1 - np.longdouble(rate) * decay)
            else:
                g = g + decay * exact[i]
            if kind == "SGD":
                means[i] = momentum * means[i] + g
                exact[i] = exact[i] - rate * (g + momentum * means[i] if nesterov else means[i])
                continue
            means[i], squares[i] = 0.9 * means[i] + (1 - 0.9) * g, 0.999 * squares[i] + (1 - 0.999) * g**2
            corrected = np.sqrt(squares[i] / (1 - 0.999 ** (number + 1))) + 1e-8
            exact[i] = exact[i] - rate * (means[i] / (1 - 0.9 ** (number + 1))) / corrected

    def call() -> Any:
        held = [guarded(a.shape, a.dtype, front=bool(rng.integers(2))) for a in start]
        for array, values in zip(held, start, strict=True):
            array[...] = values
        parameters = [nn.Parameter(array) for array in held]
        made = getattr(fs.training, kind)(parameters, rate, weight_decay=decay, max_norm=norm, **own)
        for given in grads:
            for parameter, grad in zip(parameters, given, strict=True):
                parameter.grad = None if grad is None else np.asarray(case.placed(grad), case.dtype)
            made.step()
        return tuple(held)

    def check(found: Any) -> None:
        eps = 60 * float(np.finfo(case.dtype).eps)
        most = max([float(abs(g).max(initial=0)) for given in grads for g in given if g is not None], default=0.0)
        for y, want in zip(found, exact, strict=True):
            off = abs(y - want) - eps * (abs(want) + rate * (most if kind == "SGD" else 10))
            assert (off <= 0).all(), f"{kind} is off by {off.max():.1e} more than its bound"

    case.run(call, check)


CASES = (
    spmm, spmm, spmm, linear, linear, linear_backward, sddmm, sparse_product, conv, conv, conv, conv_backward,
    conv_backward, conv_transpose, layer, layer, optimizer,
)  # fmt: skip


def outcome(seed: int, number: int) -> str:
    """Run a case; the function's name."""
    case = Case(seed, number)
    function = case.one(*CASES)
    function(case)
    return str(function.__name__)


def opened(_: str, seed: int) -> contextlib.AbstractContextManager[Outcome]:
    """What runs a case."""
    return contextlib.nullcontext(lambda number: outcome(seed, number))


if __name__ == "__main__":
    sys.exit(main("fuzz_functions", __doc__.partition("\n")[0], ["calls"], opened))
