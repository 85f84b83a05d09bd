"""What functions refuse, in a sentence, without changing anything: contract I4."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from scipy import sparse

import fastsparse as fs
from fastsparse import functional
from fastsparse_kernels import parallel
from tests.checking import same_bits

pytestmark = pytest.mark.I4

W = fs.csr(np.eye(4, 9))
K = fs.csr(np.ones((6, 2 * 9)))  # 6 outputs in 3 groups, 6 input channels, 3x3
CALLS: dict[str, tuple[Any, dict[str, Any]]] = {
    "spmm": (fs.spmm, {"W": W, "X": np.ones((9, 3)), "bias": np.ones(4), "activation": "relu", "out": np.ones((4, 3))}),
    "spmv": (fs.spmm, {"W": W, "X": np.ones(9), "bias": np.ones(4), "out": np.ones(4)}),
    "sddmm": (fs.sddmm, {"pattern": W.pattern, "A": np.ones((4, 3)), "B": np.ones((3, 9))}),
    "linear": (
        fs.linear,
        {"x": np.ones((2, 3, 9)), "W": W, "bias": np.ones(4), "activation": "gelu", "out": np.ones((2, 3, 4))},
    ),
    "sparse linear": (
        fs.linear,
        {"x": sparse.csr_array(np.ones((2, 9))), "W": W, "bias": np.ones(4), "out": np.ones((2, 4))},
    ),
    "linear_backward": (fs.linear_backward, {"grad": np.ones((2, 3, 4)), "x": np.ones((2, 3, 9)), "W": W}),
    "sparse linear_backward": (
        fs.linear_backward,
        {"grad": np.ones((2, 4)), "x": sparse.csr_array(np.ones((2, 9))), "W": W},
    ),
    "conv1d": (
        fs.conv1d,
        {"x": np.ones((2, 3, 8)), "W": W, "bias": np.ones(4), "kernel_size": 3, "out": np.ones((2, 4, 6))},
    ),
    "conv2d": (
        fs.conv2d,
        {
            "x": np.ones((1, 6, 5, 7)), "W": K, "bias": np.ones(6), "kernel_size": 3, "stride": (1, 2),
            "padding": ((1, 0), (2, 2)), "dilation": 1, "groups": 3, "activation": "silu",
            "out": np.ones((1, 6, 4, 5)),
        },
    ),
    "conv3d": (fs.conv3d, {"x": np.ones((2, 1, 3, 3, 4)), "W": W, "kernel_size": (1, 3, 3)}),
    "conv2d_backward": (
        fs.conv2d_backward,
        {"grad": np.ones((1, 6, 3, 5)), "x": np.ones((1, 6, 5, 7)), "W": K, "kernel_size": 3, "groups": 3},
    ),
    "conv1d_backward": (
        fs.conv1d_backward,
        {"grad": np.ones((2, 4, 6)), "x": np.ones((2, 3, 8)), "W": W, "kernel_size": 3},
    ),
    "conv3d_backward": (
        fs.conv3d_backward,
        {"grad": np.ones((2, 4, 3, 1, 2)), "x": np.ones((2, 1, 3, 3, 4)), "W": W, "kernel_size": (1, 3, 3)},
    ),
    "conv_backward": (
        functional.conv_backward,
        {"grad": np.ones((2, 4, 6)), "x": np.ones((2, 3, 8)), "W": W, "kernel_size": 3},
    ),
}  # fmt: skip


def contents(value: Any) -> Any:
    """All there is in an argument, to see whether it was changed."""
    if isinstance(value, np.ndarray):
        return value.shape, value.strides, value.dtype.str, value.tobytes(), value.flags.writeable
    if isinstance(value, fs.CSR):
        return contents(value.indptr), contents(value.indices), contents(value.data), value.shape
    if isinstance(value, fs.Pattern):
        return contents(value.indptr), contents(value.indices), value.shape
    if sparse.issparse(value):
        return {name: contents(part) for name, part in vars(value).items() if name != "maxprint"}
    if isinstance(value, dict):
        return {name: contents(part) for name, part in value.items()}
    return repr(value)


# ---------------------------------------------------------------------------------------------------- I4: messages

NO_DTYPE = "expected float64, float16, integers or bool"
NAMES = ", ".join(map(repr, functional.ACTIVATIONS))
FITS_W = "expected (9, N) or (9,) to match W of shape (4, 9)"
CAST = "expected float64 to match {}: convert one of them with .astype"
FITS_BATCH = "expected (batch, 9) to match W of shape (4, 9)"
UP_TO = "from {} to 2147483647"
MASKED = "is a masked array, expected an array without a mask (fill it first)"
RAGGED = (
    "is no array: setting an array element with a sequence. The requested array has an inhomogeneous shape after 1 "
    "dimensions. The detected shape was (2,) + inhomogeneous part."
)


def of_any_array(name: str) -> list[tuple[str, Any, str]]:
    """What every dense argument refuses; the message goes without the name of the argument."""
    return [
        (name, np.ones(4, complex), f"TypeError: has dtype complex128, {NO_DTYPE}"),
        (name, np.ones(4, "longdouble"), f"TypeError: has dtype {np.dtype('longdouble')}, {NO_DTYPE}"),
        (name, np.ones(4, object), f"TypeError: has dtype object, {NO_DTYPE}"),
        (name, "text", f"TypeError: has dtype <U4, {NO_DTYPE}"),
        (name, np.zeros(4, "datetime64[s]"), f"TypeError: has dtype datetime64[s], {NO_DTYPE}"),
        (name, np.ma.masked_array(np.ones(4)), f"TypeError: {MASKED}"),
        (name, W, "TypeError: is CSR, expected a dense array"),
        (name, W.pattern, "TypeError: is Pattern, expected a dense array"),
        (name, [[1.0], [1.0, 2.0]], f"ValueError: {RAGGED}"),
    ]  # fmt: skip


def of_samples(name: str) -> list[tuple[str, Any, str]]:
    """What samples refuse, which may be a CSR."""
    return [row for row in of_any_array(name) if row[1] is not W]


def of_single(name: str, against: str = "W") -> list[tuple[str, Any, str]]:
    """float32 where float64 is expected."""
    return [
        (name, np.ones((1, 6, 5, 7), np.float32), f"TypeError: has dtype float32, {CAST.format(against)}"),
        (name, np.ones((1, 6, 5, 7), ">f4"), f"TypeError: has dtype >f4, {CAST.format(against)}"),
    ]


def of_out(shape: tuple[int, ...]) -> list[tuple[str, Any, str]]:
    """What out must be."""
    bad_layout = "ValueError: is read-only, unaligned or not C-contiguous, expected a writable C-contiguous array"
    read_only = np.ones(shape)
    read_only.flags.writeable = False
    unaligned = np.zeros(read_only.nbytes + 1, np.uint8)[1:].view(np.float64).reshape(shape)
    wider = np.ones((*shape[:-1], 2 * shape[-1]))[..., ::2]
    fits = f"expected {shape} and float64"
    return [
        ("out", [1.0], "TypeError: is list, expected a NumPy array"),
        ("out", np.ones((*shape, 1)), f"ValueError: has shape {(*shape, 1)} and dtype float64, {fits}"),
        ("out", np.ones(shape, np.float32), f"ValueError: has shape {shape} and dtype float32, {fits}"),
        ("out", np.ones(shape, ">f8"), f"ValueError: has shape {shape} and dtype >f8, {fits}"),
        ("out", read_only, bad_layout),
        ("out", unaligned, bad_layout),
        ("out", wider, bad_layout),
    ]


def of_matrix() -> list[tuple[str, Any, str]]:
    wanted = "expected fastsparse.CSR (make one with fastsparse.csr)"
    return [
        ("W", np.eye(4, 9), f"TypeError: is ndarray, {wanted}"),
        ("W", sparse.eye_array(4, 9), f"TypeError: is dia_array, {wanted}"),
        ("W", W.pattern, f"TypeError: is Pattern, {wanted}"),
        ("W", None, f"TypeError: is NoneType, {wanted}"),
    ]


def of_bias(rows: int) -> list[tuple[str, Any, str]]:
    wanted = f"expected ({rows},), one per row of W"
    return [
        ("bias", 1.0, f"ValueError: has shape (), {wanted}"),
        ("bias", np.ones((rows, 1)), f"ValueError: has shape ({rows}, 1), {wanted}"),
        ("bias", np.ones(rows + 1), f"ValueError: has shape ({rows + 1},), {wanted}"),
        *of_any_array("bias"),
        *of_single("bias"),
    ]


def of_activation() -> list[tuple[str, Any, str]]:
    return [
        ("activation", value, f"ValueError: is {value!r}, expected one of {NAMES}")
        for value in ("ReLU", "", 0, ["relu"], np.array([1, 2]), np.tanh)
    ]


def of_axes(axes: int) -> list[tuple[str, Any, str]]:
    """Kernel size, stride and dilation."""
    wanted = "expected an integer" if axes == 1 else f"expected an integer or {axes} integers, each"
    values = (
        0,
        -1,
        1.0,
        "3",
        None,
        (),
        (1,) * (axes + 1),
        (0,) * axes,
        (1.5,) * axes,
        2**31,
        2**70,
        np.ones(axes, int),
    )
    return [
        (name, value, f"ValueError: is {value!r}, {wanted} {UP_TO.format(1)}")
        for name in ("kernel_size", "stride", "dilation")
        for value in values
    ]


def of_padding(axes: int) -> list[tuple[str, Any, str]]:
    wanted = f"expected an integer, one per axis ({axes}) or one pair (before, after) per axis, {UP_TO.format(0)}"
    values = (
        -1, 0.5, "same", None, (), (1,) * (axes + 1), (-1,) * axes, ((1, -1),) * axes, ((1, 2, 3),) * axes,
        ("ab",) * axes, 2**31, ((0, 2**70),) * axes,
    )  # fmt: skip
    return [("padding", value, f"ValueError: is {value!r}, {wanted}") for value in values]


REFUSED: dict[str, list[tuple[str, Any, str]]] = {
    "spmm": [
        *of_matrix(), *of_bias(4), *of_activation(), *of_out((4, 3)), *of_any_array("X"), *of_single("X"),
        ("X", np.ones((4, 9)), f"ValueError: has shape (4, 9), {FITS_W}"),
        ("X", np.ones((9, 1, 1)), f"ValueError: has shape (9, 1, 1), {FITS_W}"),
        ("X", 3.0, f"ValueError: has shape (), {FITS_W}"),
        ("X", sparse.eye_array(9), "TypeError: is dia_array, expected a dense array"),
    ],
    "spmv": [
        *of_out((4,)), ("X", np.ones(8), f"ValueError: has shape (8,), {FITS_W}"),
    ],
    "sddmm": [
        ("pattern", W, "TypeError: is CSR, expected fastsparse.Pattern"),
        *of_any_array("A"), *of_any_array("B"), *of_single("A", "B"), *of_single("B", "A"),
        ("A", np.ones(4), "ValueError: has shape (4,), expected (4, N) to match pattern of shape (4, 9)"),
        ("A", np.ones((3, 4)), "ValueError: has shape (3, 4), expected (4, N) to match pattern of shape (4, 9)"),
        ("B", np.ones((9, 3)), "ValueError: has shape (9, 3), expected (3, 9) to match A and pattern of shape (4, 9)"),
    ],
    "linear": [
        *of_matrix(), *of_bias(4), *of_activation(), *of_out((2, 3, 4)), *of_samples("x"), *of_single("x"),
        ("x", np.ones((9, 2)), "ValueError: has shape (9, 2), expected (..., 9) to match W of shape (4, 9)"),
        ("x", 3.0, "ValueError: has shape (), expected (..., 9) to match W of shape (4, 9)"),
    ],
    "sparse linear": [
        *of_matrix(), *of_bias(4), *of_activation(), *of_out((2, 4)),
        ("x", sparse.eye_array(4), f"ValueError: has shape (4, 4), {FITS_BATCH}"),
        ("x", sparse.coo_array(np.ones(9)), f"ValueError: has shape (9,), {FITS_BATCH}"),
        ("x", sparse.csr_array((2, 9), dtype="f4"), f"TypeError: has dtype float32, {CAST.format('W')}"),
        ("x", sparse.csr_array((2, 9), dtype="c8"), f"TypeError: has dtype complex64, {NO_DTYPE}"),
    ],
    "linear_backward": [
        *of_matrix(), *of_samples("x"), *of_single("x"), *of_any_array("grad"), *of_single("grad"),
        ("x", np.ones((3, 4)), "ValueError: has shape (3, 4), expected (..., 9) to match W of shape (4, 9)"),
        ("grad", np.ones((6, 4)), "ValueError: has shape (6, 4), expected (2, 3, 4) to match x and W"),
        ("grad", np.ones((2, 3, 9)), "ValueError: has shape (2, 3, 9), expected (2, 3, 4) to match x and W"),
    ],
    "sparse linear_backward": [
        ("x", sparse.eye_array(4), f"ValueError: has shape (4, 4), {FITS_BATCH}"),
        ("grad", np.ones((3, 4)), "ValueError: has shape (3, 4), expected (2, 4) to match x and W"),
    ],
    "conv1d": [
        *of_axes(1), *of_padding(1), ("x", np.ones((3, 8)), "ValueError: has shape (3, 8), expected (N, C, L)"),
        (
            "x", np.ones((2, 3, 2)),
            "ValueError: has shape (2, 3, 2), expected at least the window of kernel_size (3,) with dilation (1,) "
            "inside the padding ((0, 0),)",
        ),
    ],
    "conv2d": [
        *of_matrix(), *of_bias(6), *of_activation(), *of_out((1, 6, 4, 5)), *of_any_array("x"), *of_single("x"),
        *of_axes(2), *of_padding(2),
        ("x", np.ones((6, 5, 7)), "ValueError: has shape (6, 5, 7), expected (N, C, H, W)"),
        (
            "x", np.ones((1, 3, 5, 7)),
            "ValueError: W has shape (6, 18), expected (out, 9) = (out, C / groups * kernel) to match x of shape "
            "(1, 3, 5, 7), kernel_size (3, 3) and groups 3",
        ),
        ("groups", 0, f"ValueError: is 0, expected an integer {UP_TO.format(1)}"),
        ("groups", "1", f"ValueError: is '1', expected an integer {UP_TO.format(1)}"),
        ("groups", 4, "ValueError: is 4, expected a divisor of the 6 input channels of x"),
        ("dilation", 3, None),
        (
            "padding", 2**31 - 1,
            "ValueError: x has shape (1, 6, 5, 7), expected fewer than 9007199254740992 numbers per image with the "
            "padding ((2147483647, 2147483647), (2147483647, 2147483647)) and in the result",
        ),
    ],
    "conv3d": [
        ("x", np.ones((2, 1, 3, 4)), "ValueError: has shape (2, 1, 3, 4), expected (N, C, D, H, W)"),
        *of_axes(3), *of_padding(3),
    ],
    "conv2d_backward": [
        *of_matrix(), *of_any_array("grad"), *of_single("x"), *of_single("grad"), *of_axes(2),
        ("x", np.ones((6, 5, 7)), "ValueError: has shape (6, 5, 7), expected (N, C, H, W)"),
        ("x", np.ones((1, 6, 5)), "ValueError: has shape (1, 6, 5), expected (N, C, H, W)"),
        ("x", W, "TypeError: is CSR, expected a dense array"),
        ("x", [[1.0], [1.0, 2.0]], f"ValueError: {RAGGED}"),
        ("grad", np.ones((1, 6, 5, 3)), "ValueError: has shape (1, 6, 5, 3), expected (1, 6, 3, 5) to match x and W"),
    ],
    "conv_backward": [
        ("x", np.ones(8), "ValueError: has shape (8,), expected (N, C, ...) with one, two or three spatial axes"),
        ("grad", np.ones((2, 4, 5)), "ValueError: has shape (2, 4, 5), expected (2, 4, 6) to match x and W"),
    ],
}  # fmt: skip
CASES = [
    pytest.param(name, argument, value, message, id=f"{name}-{argument}-{i}")
    for name, refused in REFUSED.items()
    for i, (argument, value, message) in enumerate(refused)
]


@pytest.fixture
def no_kernel(monkeypatch):
    """Fail when a kernel is run."""

    def run(*_: Any) -> None:
        pytest.fail("a kernel was run")

    for name in ("run_serial", "run_parallel"):
        monkeypatch.setattr(parallel, name, lambda: run)


def test_every_argument_is_refused_something():
    for name, (_, good) in CALLS.items():
        if name in ("spmm", "conv2d", "linear", "sddmm"):
            assert {argument for argument, _, _ in REFUSED[name]} == set(good)


@pytest.mark.parametrize(("name", "argument", "value", "message"), CASES)
def test_bad_arguments_give_a_sentence_and_change_nothing(no_kernel, name, argument, value, message):
    function, good = CALLS[name]
    arguments = {**good, argument: value}
    before = contents(arguments)
    with pytest.raises((TypeError, ValueError)) as caught:
        function(**arguments)
    if message is None:
        message = (
            "ValueError: x has shape (1, 6, 5, 7), expected at least the window of kernel_size (3, 3) with dilation "
            "(3, 3) inside the padding ((1, 0), (2, 2))"
        )
    kind, _, sentence = message.partition(": ")
    named = sentence if re.match("(x|W) has shape", sentence) else f"{argument} {sentence}"
    assert (type(caught.value).__name__, str(caught.value)) == (kind, named)
    assert contents(arguments) == before


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("indices", [0, 9], "indices[1] is 9, expected 0 <= column < 9 to match shape (2, 9)"),
        ("indices", [-1, 3], "indices[0] is -1, expected 0 <= column < 9 to match shape (2, 9)"),
        ("indices", [0.0, 1.0], "indices has dtype float64, expected integers"),
        ("indptr", [0, 3, 2], "indptr[2] is 2, expected at least 3, the value before it"),
        ("indptr", [1, 1, 2], "indptr[0] is 1, expected 0"),
        ("indptr", [0, 1], "indptr has length 2, expected 3 to match shape (2, 9)"),
        ("data", [1.0], "data has shape (1,), expected (2,) to match indices"),
    ],
)
def test_sparse_samples_that_contradict_themselves(no_kernel, field, value, message):
    x = sparse.csr_array((np.ones(2), np.array([0, 1]), np.array([0, 1, 2])), shape=(2, 9))
    setattr(x, field, np.array(value))
    for call in (lambda: fs.linear(x, W), lambda: fs.linear_backward(np.ones((2, 4)), x, W)):
        with pytest.raises(ValueError, match=f"^x is not a valid sparse matrix: {re.escape(message)}$"):
            call()


@pytest.mark.parametrize("name", CALLS)
def test_calls_change_nothing(name):
    """But out, which is returned."""
    function, good = CALLS[name]
    arguments = {key: value for key, value in good.items() if key != "out"}
    before = contents(arguments)
    first = function(**arguments)
    assert contents(arguments) == before
    if "out" in good:
        out = good["out"].copy()
        assert function(**arguments, out=out) is out
        assert same_bits(out, first)
        assert contents(arguments) == before


SHARING = "^out shares memory with an input, expected memory of its own$"


def test_out_must_not_share_memory_with_an_input():
    square = fs.csr(np.eye(4))
    memory = np.ones(64)
    X = memory[:16].reshape(4, 4)
    before = memory.tobytes()
    samples = sparse.csr_array(np.ones((4, 4)))
    samples.data = memory[:16]
    for out in (X, memory[8:24].reshape(4, 4), memory[15:31].reshape(4, 4)):
        for call in (
            lambda out: fs.spmm(square, X, out=out),
            lambda out: fs.spmm(square, X.T, out=out),
            lambda out: fs.linear(X, square, out=out),
            lambda out: fs.linear(samples, square, out=out),
            lambda out: fs.conv1d(X[None], square, kernel_size=1, out=out[None]),
            lambda out: fs.spmm(square, np.ones((4, 4)), bias=memory[15:19], out=out),
            lambda out: fs.linear(np.ones((4, 4)), square, memory[15:19], out=out),
            lambda out: fs.linear(sparse.eye_array(4), square, memory[15:19], out=out),
            lambda out: fs.conv1d(np.ones((1, 4, 4)), square, memory[15:19], kernel_size=1, out=out[None]),
        ):
            with pytest.raises(ValueError, match=SHARING):
                call(out)
    assert memory.tobytes() == before
    fs.spmm(square, X, out=memory[16:32].reshape(4, 4))
    assert memory[:16].tobytes() == before[: 16 * 8]
    assert np.array_equal(memory[16:32].reshape(4, 4), X)


def test_matrix_operators_refuse_wrong_shapes():
    with pytest.raises(
        ValueError, match=r"^X has shape \(4, 2\), expected \(9, N\) or \(9,\) to match W of shape \(4, 9\)$"
    ):
        W @ np.ones((4, 2))
    with pytest.raises(
        ValueError, match=r"^X has shape \(2, 9\), expected \(N, 4\) or \(4,\) to match W of shape \(4, 9\)$"
    ):
        np.ones((2, 9)) @ W
