"""Convolution over one to three axes, and its gradients: contracts R1 to R6."""

from __future__ import annotations

import itertools
import math
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastsparse as fs
from fastsparse.ops import conv
from fastsparse.ops.target import tuned
from fastsparse.runtime.threading_layer import available_workers
from fastsparse_kernels import reference as ref
from tests.checking import (
    ACTIVATIONS,
    DTYPES,
    PATTERNS,
    SETTINGS,
    Array,
    assert_same_specials,
    choose,
    lanes,
    parts,
    same_bits,
    with_values,
)
from tests.geometries import TABLE, Sizes, assert_backward, assert_forward, geometries

everywhere = pytest.mark.parametrize("name", TABLE)
both_types = pytest.mark.parametrize("dtype", DTYPES)


def batches(dtype: Any) -> tuple[int, ...]:
    """Through padded planes, and batch-blocked with and without a tail."""
    vector = lanes(dtype)
    return 1, 3, vector, 2 * vector - 1


# ------------------------------------------------------------------------------------------------------------- R1


@pytest.mark.R1
@both_types
@everywhere
def test_error_bound_on_every_geometry(rng, name, dtype):
    for samples in batches(dtype):
        x, W, bias, grad = TABLE[name].drawn(rng, samples, dtype)
        assert_forward(TABLE[name].forward(x, W, bias), TABLE[name], x, W, bias, None)
        assert_backward(TABLE[name].backward(grad, x, W), TABLE[name], grad, x, W)


@pytest.mark.R1
@both_types
@pytest.mark.parametrize("pattern", PATTERNS)
def test_error_bound_on_every_pattern(rng, pattern, dtype):
    for name in ("3x3", "stride 2", "groups", "pointwise"):
        for samples in (2, lanes(dtype)):
            x, W, bias, grad = TABLE[name].drawn(rng, samples, dtype, pattern)
            assert_forward(TABLE[name].forward(x, W, bias), TABLE[name], x, W, bias, None)
            assert_backward(TABLE[name].backward(grad, x, W), TABLE[name], grad, x, W)


@pytest.mark.R1
@both_types
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_error_bound_with_every_activation(rng, activation, dtype):
    for name in ("3x3", "stride 2", "pointwise"):
        for samples in (1, lanes(dtype)):
            x, W, bias, _ = TABLE[name].drawn(rng, samples, dtype)
            x, W = rng.standard_normal(x.shape).astype(dtype), with_values(W, rng.standard_normal(W.nnz))
            for b in (bias, None):
                y = TABLE[name].forward(x, W, b, activation=activation)
                assert_forward(y, TABLE[name], x, W, b, activation)


@pytest.mark.R1
@given(
    geometries(), st.integers(1, 20), st.sampled_from(DTYPES), st.sampled_from(list(PATTERNS)), st.integers(0, 2**32)
)
def test_error_bound_on_drawn_geometries(sizes, samples, dtype, pattern, seed):
    x, W, bias, grad = sizes.drawn(np.random.default_rng(seed), samples, dtype, pattern)
    assert_forward(sizes.forward(x, W, bias), sizes, x, W, bias, None)
    assert_backward(sizes.backward(grad, x, W), sizes, grad, x, W)


# ------------------------------------------------------------------------------------------------------------- R2


@pytest.mark.R2
@both_types
@everywhere
def test_small_integers_are_exact(rng, name, dtype):
    sizes, vector = TABLE[name], lanes(dtype)
    for samples in (0, 1, 2, vector - 1, vector, vector + 1, 2 * vector + 1):
        x, W, bias, grad = sizes.drawn(rng, samples, dtype, integers=True)
        rest: Any = sizes.keywords
        expected = ref.conv(*parts(W), x, bias=bias, **rest)
        for layout in ("batch-blocked", "planes"):
            with choose(layout):
                assert np.array_equal(sizes.forward(x, W, bias), expected)
                assert np.array_equal(sizes.forward(x, W, bias, activation="relu"), expected.clip(0))
        for actual, wanted in zip(
            sizes.backward(grad, x, W), ref.conv_backward(grad, *parts(W), x, **rest), strict=True
        ):
            assert np.array_equal(actual, wanted)


@pytest.mark.R2
@both_types
@choose("planes")
def test_small_integers_are_exact_around_row_ends(rng, dtype):
    """Image rows of every length around one and two vectors, which tiles cross in padded planes."""
    vector = lanes(dtype)
    for width in {1, 2, 3, vector - 1, vector, vector + 1, 2 * vector - 1, 2 * vector, 2 * vector + 1}:
        for stride in (1, 2, 3):
            sizes = Sizes(2, 3, (4, width), (2, 3), (1, stride), ((1, 0), (1, 1)))
            x, W, bias, _ = sizes.drawn(rng, 2, dtype, integers=True)
            rest: Any = sizes.keywords
            assert np.array_equal(sizes.forward(x, W, bias), ref.conv(*parts(W), x, bias=bias, **rest))


# ------------------------------------------------------------------------------------------------------------- R3


def im2col(x: Array, sizes: Sizes) -> Array:
    """(channels * taps, samples * positions) for one group."""
    k = sizes.keywords
    padded = ref.pad_spatial(x, k["padding"], 0.0)
    rows = []
    for channel, offset in itertools.product(range(x.shape[1]), np.ndindex(*sizes.kernel)):
        window = ref.window_slices(offset, sizes.out_spatial, k["stride"], k["dilation"])
        rows.append(padded[(slice(None), channel, *window)].ravel())
    return np.array(rows, x.dtype).reshape(len(rows), -1)


@pytest.mark.R3
@both_types
@everywhere
def test_bits_are_those_of_a_product_with_im2col(rng, name, dtype):
    """Convolution in every layout sums as SpMM does: ascending columns, one FMA each, bias last."""
    sizes = TABLE[name]
    for samples in batches(dtype):
        x, W, bias, _ = sizes.drawn(rng, samples, dtype)
        dense, expected = W.toarray(), []
        for group in range(sizes.groups):
            rows = slice(group * sizes.outputs, (group + 1) * sizes.outputs)
            columns = im2col(x[:, group * sizes.channels : (group + 1) * sizes.channels], sizes)
            # One more column, so that a single one does not go through SpMV.
            columns = np.concatenate([columns, columns[:, :1]], axis=1)
            expected.append(fs.spmm(fs.csr(dense[rows]), columns, bias=bias[rows])[:, :-1])
        y = np.moveaxis(sizes.forward(x, W, bias), 1, 0).reshape(sizes.shape[0], -1)
        assert same_bits(y, np.concatenate(expected))


@pytest.mark.R3
@both_types
@pytest.mark.parametrize("setting", SETTINGS)
def test_bits_do_not_depend_on_the_plan(rng, setting, dtype):
    for name in ("3x3", "dilation and stride", "groups", "pointwise", "3-D, strided, grouped"):
        for samples in (2, lanes(dtype) + 1):
            x, W, bias, grad = TABLE[name].drawn(rng, samples, dtype)
            expected = TABLE[name].forward(x, W, bias, activation="tanh"), TABLE[name].backward(grad, x, W)[0]
            for threads in (1, 3):
                with choose(setting), fs.threads(threads):
                    y, dx = TABLE[name].forward(x, W, bias, activation="tanh"), TABLE[name].backward(grad, x, W)[0]
                assert same_bits(y, expected[0]), (name, samples, threads)
                assert same_bits(dx, expected[1]), (name, samples, threads)


@pytest.mark.R3
@both_types
@everywhere
def test_bits_of_a_sample_do_not_depend_on_its_batch(rng, name, dtype):
    vector = lanes(dtype)
    x, W, bias, grad = TABLE[name].drawn(rng, 3 * vector, dtype)
    y, dx = TABLE[name].forward(x, W, bias), TABLE[name].backward(grad, x, W)[0]
    for part in (slice(1), slice(3, 5), slice(1, vector + 1), slice(2 * vector + 1)):
        assert same_bits(TABLE[name].forward(x[part], W, bias), y[part])
        assert same_bits(TABLE[name].backward(grad[part], x[part], W)[0], dx[part])


@pytest.mark.R3
@both_types
@pytest.mark.parametrize(("stride", "side"), [(1, 8), (1, 12), (2, 23), (1, 3)])
def test_1x1_layers_of_a_batch_give_the_bits_of_the_batch_blocked_layout(rng, dtype, stride, side):
    """Images that fill vectors are read as they lie, others are packed; which, is no matter of bits."""
    sizes = Sizes(13, 9, (side, side), (1, 1), (stride, stride))
    x, W, bias, _ = sizes.drawn(rng, 2 * lanes(dtype), dtype)
    y = sizes.forward(x, W, bias, activation="relu")
    packed = any(key[0] is conv.plan_batch_blocked for key in W.pattern._entries)
    assert packed == (math.prod(sizes.out_spatial) < 7 * lanes(dtype))
    with choose("batch-blocked"):
        assert same_bits(sizes.forward(x, W, bias, activation="relu"), y)


@pytest.mark.R3
@both_types
@tuned(parallel_flops=0)
def test_bits_of_all_gradients_do_not_depend_on_threads(rng, parallel_regions, dtype):
    for name in ("3x3", "stride 2", "depthwise"):
        x, W, bias, grad = TABLE[name].drawn(rng, 2 * lanes(dtype) + 1, dtype)
        with fs.threads(1):
            expected = (*TABLE[name].backward(grad, x, W), TABLE[name].forward(x, W, bias))
        for repeat in range(40):
            with fs.threads(2 + repeat % 3):
                found = (*TABLE[name].backward(grad, x, W), TABLE[name].forward(x, W, bias))
            assert all(itertools.starmap(same_bits, zip(found, expected, strict=True)))
            assert parallel_regions() > repeat or available_workers(2) == 1


# ------------------------------------------------------------------------------------------------------------- R4


@pytest.mark.R4
@both_types
@everywhere
def test_every_element_is_written(rng, name, dtype):
    sizes = TABLE[name]
    for samples in batches(dtype):
        x, W, bias, _ = sizes.drawn(rng, samples, dtype)
        out = np.full((samples, sizes.shape[0], *sizes.out_spatial), np.nan, dtype)
        assert sizes.forward(x, W, bias, out=out) is out
        assert_forward(out, sizes, x, W, bias, None)


@pytest.mark.R4
@both_types
@pytest.mark.parametrize(
    ("sizes", "samples"),
    [
        (Sizes(0, 3, (4, 5), (3, 3)), 2),  # no input channel: the bias alone
        (Sizes(3, 0, (4, 5), (3, 3)), 2),
        (Sizes(3, 2, (4, 5), (3, 3)), 0),
        (Sizes(2, 2, (0, 5), (2, 3), padding=((1, 1), (0, 0))), 2),  # an image without a row, between padding
        (Sizes(2, 2, (5, 0), (2, 1), stride=(1, 2), padding=((0, 0), (1, 1))), 2),
        (Sizes(0, 0, (2, 2), (1, 1)), 1),
    ],
)
def test_sizes_of_zero(rng, sizes, samples, dtype):
    for samples_ in (samples, samples * lanes(dtype)):
        x, W, bias, grad = sizes.drawn(rng, samples_, dtype)
        assert_forward(sizes.forward(x, W, bias), sizes, x, W, bias, None)
        assert_backward(sizes.backward(grad, x, W), sizes, grad, x, W)


@pytest.mark.R4
@both_types
def test_nothing_around_the_output_is_written(rng, dtype):
    for name in ("3x3", "stride 2", "rows wider than a vector", "pointwise", "padding above kernel"):
        sizes = TABLE[name]
        for samples in batches(dtype):
            x, W, bias, _ = sizes.drawn(rng, samples, dtype)
            shape = samples, sizes.shape[0], *sizes.out_spatial
            memory = np.full(2048 + math.prod(shape), 7, dtype)
            sizes.forward(x, W, bias, out=memory[1024:-1024].reshape(shape))
            assert (memory[:1024] == 7).all()
            assert (memory[-1024:] == 7).all()


@pytest.mark.R4
def test_parts_of_a_batch_larger_than_the_workspace(rng, monkeypatch):
    """Buffers that the workspace does not keep live as long as a call: 64 images whose planes fill 100 KB each."""
    monkeypatch.setattr("fastsparse.runtime.buffers.KEEP_BYTES", 1000)
    for name in ("3x3", "stride 2"):
        for samples in (3, 64):
            x, W, bias, grad = TABLE[name].drawn(rng, samples, "float32")
            assert_forward(TABLE[name].forward(x, W, bias), TABLE[name], x, W, bias, None)
            assert_backward(TABLE[name].backward(grad, x, W), TABLE[name], grad, x, W)


# ------------------------------------------------------------------------------------------------------------- R5


@pytest.mark.R5
@both_types
@everywhere
def test_nan_and_inf_travel(rng, name, dtype):
    """Stored weights multiply the zeros of the padding, absent ones nothing."""
    sizes = TABLE[name]
    for samples in (2, lanes(dtype)):
        x, W, bias, _ = sizes.drawn(rng, samples, dtype)
        values = W.data.copy()
        if W.nnz > 4:
            values[[0, W.nnz // 2, W.nnz - 1]] = np.nan, np.inf, 0
        W = W.with_data(values)
        x.flat[rng.integers(x.size, size=3)] = np.inf, -np.inf, np.nan
        rest: Any = sizes.keywords
        for activation in (None, "relu", "silu"):
            expected = ref.conv(*parts(W), x, bias=bias, activation=activation, **rest)
            assert_same_specials(sizes.forward(x, W, bias, activation=activation), expected, name)


@pytest.mark.R5
@pytest.mark.filterwarnings("error::RuntimeWarning")
@both_types
@everywhere
def test_nan_and_inf_travel_backwards(rng, name, dtype):
    """In x and the gradient: numbers they do not reach stay finite, empty lanes and padding included."""
    sizes = TABLE[name]
    for samples in (2, lanes(dtype) + 1):
        x, W, _, grad = sizes.drawn(rng, samples, dtype)
        x.flat[rng.integers(x.size, size=2)] = np.inf, np.nan
        grad.flat[rng.integers(grad.size, size=2)] = -np.inf, np.nan
        rest: Any = sizes.keywords
        for actual, wanted in zip(
            sizes.backward(grad, x, W), ref.conv_backward(grad, *parts(W), x, **rest), strict=True
        ):
            assert_same_specials(actual, wanted, name)


# ------------------------------------------------------------------------------------------------------------- R6


@pytest.mark.R6
@everywhere
def test_gradients_are_finite_differences(rng, name):
    """The loss is linear in each of x, values and bias, so that a step of 1 has no truncation error."""
    sizes = TABLE[name]
    x, W, bias, grad = (
        array if isinstance(array, fs.CSR) else rng.standard_normal(array.shape)
        for array in sizes.drawn(rng, 2, "float64")
    )
    W = with_values(W, rng.standard_normal(W.nnz))
    found = sizes.backward(grad, x, W)

    def slope(steps: dict[str, Array]) -> float:
        def loss(sign: int) -> float:
            moved = W.with_data(W.data + sign * steps.get("values", 0))
            y = sizes.forward(x + sign * steps.get("x", 0), moved, bias + sign * steps.get("bias", 0))
            return float((grad * y).sum())

        return (loss(1) - loss(-1)) / 2

    for part, actual in zip(("x", "values", "bias"), found, strict=True):
        for index in rng.choice(actual.size, min(actual.size, 12), replace=False):
            step = np.zeros(actual.shape)
            step.flat[index] = 1
            assert abs(slope({part: step}) - actual.flat[index]) < 1e-10 * (1 + abs(grad).sum())


@pytest.mark.R6
@both_types
@everywhere
def test_adjoint_identity(rng, name, dtype):
    """<conv(x), g> = <x, dX(g)> = <w, dW(g)>: to 1e-12 in float64 of small integers times powers of two, exactly."""
    sizes = TABLE[name]
    for samples in batches(dtype):
        x, W, _, grad = sizes.drawn(rng, samples, dtype, integers=True)
        dx, dw, db = sizes.backward(grad, x, W)
        product = (sizes.forward(x, W).astype(np.float64) * grad).sum()
        assert product == (x * dx.astype(np.float64)).sum() == (W.data * dw.astype(np.float64)).sum()
        assert np.array_equal(db, grad.sum(axis=(0, *range(2, grad.ndim)), dtype=np.float64))


# ------------------------------------------------------------------------------------------------------ conveniences


def test_ways_to_say_the_same_geometry(rng):
    sizes = Sizes(2, 3, (6, 7), (3, 3), (2, 2), ((1, 1), (1, 1)))
    x, W, bias, grad = sizes.drawn(rng, 2, "float32")
    expected = sizes.forward(x, W, bias)
    assert same_bits(fs.conv2d(x, W, bias, kernel_size=3, stride=2, padding=1), expected)
    assert same_bits(fs.conv2d(x, W, bias, kernel_size=[3, 3], stride=np.int64(2), padding=(1, [1, 1])), expected)
    gradients = fs.conv2d_backward(grad, x, W, kernel_size=3, stride=2, padding=1)
    assert all(itertools.starmap(same_bits, zip(gradients, sizes.backward(grad, x, W), strict=True)))
    without = fs.conv2d_backward(grad, x, W, kernel_size=3, stride=2, padding=1, need_input=False)
    assert without[0] is None
    assert same_bits(without[1], gradients[1])
    single = replace(sizes, padding=((2, 2), (0, 0)))
    assert same_bits(fs.conv2d(x, W, kernel_size=3, stride=2, padding=(2, 0)), single.forward(x, W))


# ---------------------------------------------------------------------------------------------------- repeated calls


def python_calls(call: Any) -> list[tuple[str, str]]:
    """File and name of every Python function that a call enters."""
    found: list[tuple[str, str]] = []

    def note(frame: Any, event: str, _: Any) -> None:
        if event == "call":
            found.append((Path(frame.f_code.co_filename).name, frame.f_code.co_name))

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return found[1:]


# In files of plans, but no plans: values kept with W, gradients in W's order, and what depends on where arrays begin.
EVERY_CALL = {
    "packed_values",
    "packed_for_each",
    "<listcomp>",
    "current",
    "update",
    "take",
    "gather",
    "copy_runs",
    "<lambda>",
    "leaves_cache",
}
PLANNING = {"heuristics.py", "tiles.py", "layouts.py", "sparse_operator.py", "geometry.py", "operators.py", "csr.py"}


def test_a_second_call_plans_nothing(rng, monkeypatch):
    """Another call of the same shapes runs what the first one prepared, in few steps."""
    monkeypatch.undo()  # of the poison, which is Python
    for name, samples in (("3x3", 1), ("3x3", 40), ("pointwise", 2), ("stride 2", 1), ("depthwise", 33)):
        x, W, bias, grad = TABLE[name].drawn(rng, samples, "float32")
        forward, backward = partial(TABLE[name].forward, x, W, bias), partial(TABLE[name].backward, grad, x, W)
        for call in (forward, backward):
            first = python_calls(lambda call=call: call())
            assert PLANNING & {file for file, _ in first}, "the first call plans"
            call()
            second = python_calls(lambda call=call: call())
            assert not [at for at in second if at[0] in PLANNING and at[1] not in EVERY_CALL], (name, samples)
            assert not [at for at in second if at[1].startswith(("plan", "prepare"))], (name, samples)


def test_a_second_call_makes_few_python_calls(rng, monkeypatch):
    monkeypatch.undo()
    x, W, bias, _ = TABLE["3x3"].drawn(rng, 1, "float32")

    def call() -> None:
        fs.conv2d(x, W, bias, kernel_size=3, padding=1)

    call()
    call()
    assert len(python_calls(call)) <= 40, python_calls(call)
