"""What layers compute in both modes, against the oracles; what they refuse; how they start."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import sparse

import fastsparse as fs
from fastsparse import nn
from fastsparse.ops.sums import batch_sum
from fastsparse_kernels import reference as ref

Array = NDArray[Any]
DTYPES = ["float32", "float64"]


def _parts(W: fs.CSR) -> tuple[Any, ...]:
    return W.indptr, W.indices, W.data, W.shape


def _absolute(W: fs.CSR) -> tuple[Any, ...]:
    return W.indptr, W.indices, abs(W.data), W.shape


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
@pytest.mark.parametrize("training", [True, False])
def test_sparse_linear_is_the_product(dtype: str, activation: str | None, training: bool, rng: Any) -> None:
    layer = nn.SparseLinear(40, 12, sparsity=0.7, activation=activation, dtype=dtype, rng=rng).train(training)
    layer.bias.value = rng.normal(size=12)
    x = rng.normal(size=(5, 3, 40)).astype(dtype)
    y = layer(x)
    want = ref.linear(x, *_parts(layer.weight), layer.bias.value, activation)
    z = ref.linear(x, *_parts(layer.weight), layer.bias.value)
    abs_sum = ref.linear(abs(x), *_absolute(layer.weight), abs(layer.bias.value))
    # An activation's slope is below 1.2 and it adds 4 units itself; gelu in training is NumPy's, twice as coarse.
    extra = 0 if activation is None else 8 * np.finfo(dtype).eps / 2 * np.maximum(1, abs(z))
    assert y.dtype == dtype
    assert y.shape == (5, 3, 12)
    assert np.all(abs(y - want) <= 1.2 * ref.bound(40, abs_sum, dtype) + extra)


CONVOLUTIONS = [
    (nn.SparseConv1d, (11,), {"kernel_size": 3, "stride": 2, "padding": 1}),
    (nn.SparseConv2d, (7, 6), {"kernel_size": (3, 2), "padding": ((1, 0), (2, 1)), "dilation": (1, 2), "groups": 2}),
    (nn.SparseConv3d, (4, 3, 5), {"kernel_size": (2, 1, 3), "padding": 1, "stride": (1, 2, 1)}),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("layer_type", "spatial", "options"), CONVOLUTIONS)
def test_sparse_convolutions_are_the_oracle(layer_type: Any, spatial: Any, options: Any, dtype: str, rng: Any) -> None:
    layer = layer_type(4, 6, **options, sparsity=0.5, dtype=dtype, rng=rng)
    layer.bias.value = rng.normal(size=6)
    x = rng.normal(size=(3, 4, *spatial)).astype(dtype)
    window = {name: getattr(layer, name) for name in ("kernel_size", "stride", "padding", "dilation", "groups")}
    want = ref.conv(*_parts(layer.weight), x, **window, bias=layer.bias.value)
    abs_sum = ref.conv(*_absolute(layer.weight), abs(x), **window, bias=abs(layer.bias.value))
    assert np.all(abs(layer(x) - want) <= ref.bound(layer.weight.shape[1], abs_sum, dtype))
    assert np.all(abs(layer.eval()(x) - want) <= ref.bound(layer.weight.shape[1], abs_sum, dtype))


@pytest.mark.R1
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("batch", [1, 3, 33])
@pytest.mark.parametrize("activation", [None, "silu"])
def test_transposed_convolution_is_the_gradient_of_a_convolution(dtype: str, batch: int, activation: Any) -> None:
    """At sizes around a stride, with taps that reach no phase, and outputs that no tap reaches."""
    rng = np.random.default_rng(batch)
    for kernel, stride, padding, more, dilation, groups in (
        ((3, 3), (2, 2), ((1, 1), (1, 1)), (1, 0), (1, 1), 1),
        ((2, 3), (3, 1), ((0, 1), (2, 0)), (2, 0), (2, 1), 2),
        ((1, 1), (3, 2), ((0, 0), (0, 0)), (0, 1), (1, 1), 4),
        ((4, 2), (1, 2), ((3, 2), (0, 0)), (0, 0), (1, 3), 1),
        ((2, 2), (23, 19), ((1, 0), (0, 2)), (0, 0), (1, 1), 1),  # more phases than a store has entries
    ):
        layer = nn.SparseConvTranspose2d(
            4, 8, kernel, stride, padding, more, groups, dilation=dilation, sparsity=0.4, activation=activation,
            dtype=dtype, rng=rng,
        ).eval()  # fmt: skip
        assert layer.bias is not None
        layer.bias.value = rng.standard_normal(8).astype(dtype)
        x = rng.standard_normal((batch, 4, 5, 4)).astype(dtype)
        y, W = layer(x), layer.weight
        window = {"kernel_size": kernel, "stride": stride, "padding": padding, "dilation": dilation, "groups": groups}

        structure, zeros, bias = (W.indptr, W.indices), np.zeros(y.shape), layer.bias.value.reshape(-1, 1, 1)
        want = ref.conv_backward(x, *structure, W.data, W.shape, zeros, **window)[0] + bias
        total = ref.conv_backward(abs(x), *structure, abs(W.data), W.shape, zeros, **window)[0] + abs(bias)
        bound = ref.bound(W.nnz, total, dtype)
        if activation:
            bound = 1.1 * bound + 4 * np.finfo(dtype).eps / 2 * np.maximum(1, abs(want))
            want = ref.apply_activation(activation, want)
        assert y.dtype == dtype
        assert (abs(y - want) <= bound).all()
        again = np.empty_like(y)
        keywords = {**window, "output_padding": more, "activation": activation}
        fs.conv_transpose2d(x, W, layer.bias.value, **keywords, out=again)
        np.testing.assert_array_equal(again, y)
        with fs.threads(1):
            np.testing.assert_array_equal(layer(x[-1:]), y[-1:])  # R3: of any batch, on any number of threads


def test_bilinear_upsampling_keeps_constants_and_slopes() -> None:
    x = np.arange(5.0).reshape(1, 1, 1, 5) + np.zeros((1, 1, 4, 1))
    y = nn.Upsample((2, 4), "bilinear")(x)
    assert y.shape == (1, 1, 8, 20)
    np.testing.assert_allclose(y[0, 0, 3, 2:-2], np.arange(16) / 4 + 0.125)
    np.testing.assert_array_equal(y[0, 0, :, :2], 0)
    x[0, 0, 1, 1] = np.inf
    assert not np.isnan(nn.Upsample(3, "bilinear")(x)).any()  # a weight of zero never meets it


def test_a_branch_without_a_gradient_leaves_none_at_the_input() -> None:
    model = nn.Concat(None, nn.SparseLinear(4, 2, rng=0))
    y = model(np.ones((3, 4), "f"))
    assert model.backward(np.ones_like(y), need_input=False) is None
    assert model.branches[1].values.grad is not None  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", DTYPES)
def test_from_dense_computes_what_the_dense_layer_computes(dtype: str, rng: Any) -> None:
    dense = nn.Conv2d(4, 6, (3, 2), (2, 1), ((1, 0), (0, 2)), (1, 2), 2, dtype=dtype, rng=rng)
    dense.weight.value *= rng.random(dense.weight.shape) < 0.4
    dense.bias.value = rng.normal(size=6)
    sparse = nn.SparseConv2d.from_dense(
        dense.weight.value, dense.bias.value, stride=(2, 1), padding=((1, 0), (0, 2)), dilation=(1, 2), groups=2
    )
    assert sparse.values.dtype == dtype
    assert sparse.weight.nnz == np.count_nonzero(dense.weight.value)
    x = rng.normal(size=(40, 4, 6, 5)).astype(dtype)
    window = {name: getattr(dense, name) for name in ("kernel_size", "stride", "padding", "dilation", "groups")}
    abs_sum = ref.conv(*_absolute(sparse.weight), abs(x), **window, bias=abs(dense.bias.value))
    assert np.all(abs(sparse(x) - dense(x)) <= 2 * ref.bound(12, abs_sum, dtype))
    linear = nn.Linear(9, 4, dtype=dtype, rng=rng)
    again = nn.SparseLinear.from_dense(linear.weight.value, activation="tanh")
    assert again.bias is None
    assert again.activation == "tanh"
    np.testing.assert_array_equal(again.weight.toarray(), linear.weight.value)


def test_dense_convolution_of_a_large_batch_goes_in_parts(rng: Any) -> None:
    layer = nn.Conv2d(8, 4, 3, padding=1, rng=rng)
    x = rng.normal(size=(100, 8, 28, 28)).astype("f")  # 22 MB of columns, the buffer holds 16
    whole, pieces = layer(x), np.concatenate([layer(part) for part in np.array_split(x, 7)])
    np.testing.assert_allclose(whole, pieces, rtol=1e-4, atol=1e-5)
    layer.train()(x)
    dy = rng.normal(size=whole.shape).astype("f")
    grad_x = layer.backward(dy)
    grad = layer.weight.grad
    layer.zero_grad()
    parts = []
    for part, part_dy in zip(np.array_split(x, 7), np.array_split(dy, 7), strict=True):
        layer(part)
        parts.append(layer.backward(part_dy))
    np.testing.assert_allclose(grad_x, np.concatenate(parts), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(grad, layer.weight.grad, rtol=1e-3, atol=1e-2)


def test_initial_values_follow_each_row_s_own_fan_in(rng: Any) -> None:
    rows = np.repeat([2, 50, 800], 400)
    indptr = np.concatenate([[0], np.cumsum(rows)])
    indices = np.concatenate([np.arange(n) for n in rows])
    layer = nn.SparseLinear(1000, 1200, pattern=fs.Pattern(indptr, indices, (1200, 1000)), rng=rng)
    for first, count in ((0, 2), (400, 50), (800, 800)):
        values = layer.values.value[indptr[first] : indptr[first + 400]]
        spread = np.sqrt(2 / count)
        assert abs(values.std() / spread - 1) < 5 / np.sqrt(2 * values.size)  # five standard errors
        assert abs(values.mean()) < 5 * spread / np.sqrt(values.size)
    assert not layer.bias.value.any()


def test_the_pattern_may_come_from_a_function_of_the_shape() -> None:
    layer = nn.SparseConv2d(4, 3, 2, pattern=lambda shape: fs.csr(np.eye(*shape)).pattern)
    assert layer.weight.shape == (3, 16)
    assert layer.weight.nnz == 3


def test_the_same_seed_gives_the_same_layer() -> None:
    a, b, c = (nn.SparseConv2d(8, 8, 3, rng=seed) for seed in (1, 1, 2))
    assert a.pattern == b.pattern
    assert a.pattern != c.pattern
    np.testing.assert_array_equal(a.values.value, b.values.value)


def test_weight_is_a_snapshot_and_its_pattern_is_shared() -> None:
    layer = nn.SparseLinear(10, 5, sparsity=0.5, rng=0)
    before = layer.weight
    kept = before.data.copy()
    layer.values.value += 1
    np.testing.assert_array_equal(before.data, kept)
    np.testing.assert_array_equal(layer.weight.data, kept + 1)
    assert layer.weight.pattern is before.pattern


def test_a_changed_value_changes_the_output() -> None:
    layer = nn.SparseLinear(10, 5, sparsity=0.5, rng=0)
    x = np.ones((20, 10), "f")
    before = layer(x)
    layer.values.value *= 2
    layer.bias.value += 1
    np.testing.assert_array_equal(layer(x), 2 * before + 1)
    layer.values.value[:] = 0
    layer.values.updated()
    np.testing.assert_array_equal(layer(x), np.ones((20, 5), "f"))


@pytest.mark.parametrize("batch", [1, 20])
def test_copies_do_not_share_values(batch: int) -> None:
    layer = nn.Sequential(nn.SparseLinear(10, 5, sparsity=0.5, rng=0))
    x = np.ones((batch, 10), "f")
    before = layer(x)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        layer.parameters()[0].value += 1
        np.testing.assert_array_equal(twin(x), before)
        twin.parameters()[0].value += 5
        assert not np.array_equal(twin(x), before)
        layer.parameters()[0].value -= 1


def test_evaluation_keeps_nothing_and_backward_says_so() -> None:
    layer = nn.Sequential(nn.SparseLinear(4, 3, rng=0), nn.ReLU()).eval()
    layer(np.ones((2, 4), "f"))
    with pytest.raises(RuntimeError, match=r"^ReLU\.backward needs a forward call in training mode before it$"):
        layer.backward(np.ones((2, 3), "f"))
    layer.train()
    layer(np.ones((2, 4), "f"))
    layer.backward(np.ones((2, 3), "f"))
    with pytest.raises(RuntimeError, match=r"^ReLU\.backward needs"):
        layer.backward(np.ones((2, 3), "f"))


def test_batch_norm_moves_its_statistics_towards_the_batch(rng: Any) -> None:
    layer = nn.BatchNorm2d(3, momentum=0.25)
    x = rng.normal(2.0, 3.0, (8, 3, 5, 5)).astype("f")
    layer(x)
    flat = np.moveaxis(x, 1, 0).reshape(3, -1).astype(float)
    np.testing.assert_allclose(layer.running_mean, 0.25 * flat.mean(1), rtol=1e-6)
    np.testing.assert_allclose(layer.running_var, 0.75 + 0.25 * flat.var(1, ddof=1), rtol=1e-6)
    layer.eval()
    want = ref.batch_norm_eval(x, np.ones(3), np.zeros(3), layer.running_mean, layer.running_var, layer.eps)
    np.testing.assert_allclose(layer(x), want.astype(float), rtol=1e-5, atol=1e-6)
    before = layer.running_mean.copy()
    layer(x)
    np.testing.assert_array_equal(layer.running_mean, before)


def test_dropout_drops_and_scales_in_training_only() -> None:
    layer = nn.Dropout(0.25, rng=0)
    x = np.ones((400, 100), "f")
    y = layer(x)
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.75)}
    assert abs(np.mean(y == 0) - 0.25) < 5 * np.sqrt(0.25 * 0.75 / y.size)
    assert layer.eval()(x) is x


def test_embedding_looks_rows_up_and_checks_them() -> None:
    layer = nn.Embedding(5, 3, rng=0)
    np.testing.assert_array_equal(layer([[0, 4]]), layer.weight.value[[[0, 4]]])
    with pytest.raises(ValueError, match=r"^x goes from 0 to 5, expected 0 to 4$"):
        layer([0, 5])
    with pytest.raises(TypeError, match=r"^x has dtype float64, expected integers$"):
        layer([0.0])


def test_cross_attention_with_itself_is_self_attention(rng: Any) -> None:
    layer = nn.MultiheadAttention(6, 2, sparsity=0.3, dtype="float64", rng=0)
    x, dy = rng.normal(size=(2, 4, 6)), rng.normal(size=(2, 4, 6))
    y = layer(x)
    dx = layer.backward(dy)
    grads = [parameter.grad for parameter in layer.parameters()]
    layer.zero_grad()
    np.testing.assert_array_equal(layer((x, x)), y)
    one, other = layer.backward(dy)
    np.testing.assert_allclose(one + other, dx, rtol=1e-12, atol=1e-12)
    for parameter, grad in zip(layer.parameters(), grads, strict=True):
        np.testing.assert_array_equal(parameter.grad, grad)
    assert layer((x[:, :1], x)).shape == (2, 1, 6)


@pytest.mark.parametrize("causal", [False, True])
def test_padding_is_as_if_it_were_not_there(causal: bool, rng: Any) -> None:
    """Outputs and gradients are those of each sample with the keys that it has; a sample without any gives zeros."""
    layer = nn.MultiheadAttention(6, 2, causal=causal, sparsity=0.3, dtype="float64", rng=0)
    source, memory, dy = (rng.normal(size=(3, rows, 6)) for rows in (7, 9, 7))
    hidden = np.array([[False] * 9, [False] * 7 + [True] * 2, [True] * 9])
    if not causal:
        hidden[1] = [True, False, True, False, False, True, False, False, True]
    memory[hidden] = 1e6
    y = layer((source, memory, hidden))
    at_source, at_memory, none = layer.backward(dy)
    assert none is None
    grads = [parameter.grad for parameter in layer.parameters()]
    layer.zero_grad()
    for i in (0, 1):
        # A causal query's place is counted from the end, so queries of padding go, too.
        kept, first = np.flatnonzero(~hidden[i]), 2 * i if causal else 0
        rows = slice(None, 7 - first)
        np.testing.assert_allclose(y[i : i + 1, rows], layer((source[i : i + 1, rows], memory[i : i + 1, kept])), 1e-12)
        if not causal:
            one, other = layer.backward(dy[i : i + 1])
            np.testing.assert_allclose(at_source[i : i + 1], one, 1e-10, 1e-12)
            np.testing.assert_allclose(at_memory[i : i + 1, kept], other, 1e-10, 1e-12)
        layer.train()
    assert not at_memory[hidden].any()
    assert not at_source[2].any()
    np.testing.assert_allclose(y[2], np.broadcast_to(layer.output.bias.value, (7, 6)), 1e-12)
    if not causal:
        y[2], none = layer((source[2:], memory[2:], hidden[2:])), layer.backward(dy[2:])
        for parameter, grad in zip(layer.parameters(), grads, strict=True):
            np.testing.assert_allclose(parameter.grad, grad, 1e-10, 1e-12)
    alone = layer.eval()((memory, memory, hidden))
    np.testing.assert_array_equal(layer((memory, hidden)), alone)


def test_encoders_hide_padding_from_their_attention(rng: Any) -> None:
    """At the tokens that are there, outputs and gradients are those of each sample alone, without a mask."""
    common: dict[str, Any] = {"sparsity": 0.3, "dtype": "float64", "rng": rng}
    layers = [nn.TransformerEncoderLayer(6, 2, 7, 0.0, norm_first=first, **common) for first in (False, True)]
    start, around = nn.LayerNorm(6, dtype="float64"), nn.Residual(nn.MultiheadAttention(6, 3, **common))
    model = nn.Sequential(nn.Sequential(start, layers[0]), nn.Sequential(), layers[1], around)
    lengths, (x, dy) = (5, 3), rng.normal(size=(2, 2, 5, 6))
    padding = np.arange(5) >= np.array(lengths)[:, None]
    x[padding], dy[padding] = 1e3, 0
    y = model((x, padding))
    dx, none = model.backward(dy)
    assert none is None
    grads = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    for i, length in enumerate(lengths):
        one = slice(i, i + 1), slice(length)
        np.testing.assert_allclose(y[one], model(x[one]), 1e-10, 1e-12)
        np.testing.assert_allclose(dx[one], model.backward(dy[one]), 1e-10, 1e-12)
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        np.testing.assert_allclose(parameter.grad, grad, 1e-9, 1e-12)
    two = nn.Residual(nn.Sequential(nn.MultiheadAttention(6, 3, **common)), nn.ReLU())
    assert [part is None for part in (two((x, x, padding)), two.backward(dy))[1]] == [False, False, True]
    memory = nn.Sequential(nn.MultiheadAttention(6, 3, **common), layers[0])  # whose mask is for the first alone
    assert memory((x[:, :2], x, padding)).shape == (2, 2, 6)


def test_sparse_gradients_are_the_rows_of_the_full_one(rng: Any) -> None:
    layers = [nn.Embedding(50, 3, sparse=sparse, dtype="float64", rng=0) for sparse in (False, True)]
    for _ in range(2):  # two batches add up
        x, dy = rng.integers(0, 50, (4, 5)), rng.normal(size=(4, 5, 3))
        for layer in layers:
            layer(x)
            layer.backward(dy)
    full, rows = (layer.weight.grad for layer in layers)
    assert isinstance(rows, nn.RowGradient)
    assert len(rows.values) == len(np.flatnonzero(np.abs(full).sum(1)))
    np.testing.assert_allclose(np.asarray(rows), full, rtol=1e-13)
    layers[1].weight.accumulate(np.ones((50, 3)))  # and a full one, as of a head that shares the table
    np.testing.assert_allclose(layers[1].weight.grad, full + 1, rtol=1e-13)


REFUSED: list[tuple[Any, type[Exception], str]] = [
    (lambda: nn.SparseLinear(0, 3), ValueError, "in_features is 0, expected an integer of at least 1"),
    (lambda: nn.SparseLinear(3, 2.5), ValueError, "out_features is 2.5, expected an integer of at least 1"),
    (lambda: nn.SparseLinear(3, 3, sparsity=1.0), ValueError, "sparsity is 1.0, expected a number in [0, 1)"),
    (lambda: nn.SparseLinear(3, 3, sparsity="x"), TypeError, "sparsity is 'x', expected a number in [0, 1)"),
    (lambda: nn.SparseLinear(3, 3, dtype="float16"), TypeError, "dtype is 'float16', expected float32 or float64"),
    (lambda: nn.SparseLinear(3, 3, bias=1), TypeError, "bias is 1, expected True or False"),
    (
        lambda: nn.SparseLinear(3, 3, pattern=fs.csr(np.eye(4)).pattern),
        ValueError,
        "pattern has shape (4, 4), expected (3, 3) to match the layer",
    ),
    (
        lambda: nn.SparseLinear(3, 3, pattern=np.eye(3)),
        TypeError,
        "pattern is a ndarray, expected a fastsparse.Pattern",
    ),
    (
        lambda: nn.SparseLinear(3, 3, rng="x"),
        TypeError,
        "rng is 'x', expected None, an integer seed or a numpy.random.Generator",
    ),
    (lambda: nn.SparseConv2d(4, 6, 3, groups=3), ValueError, "groups is 3, expected a divisor of in_channels = 4"),
    (lambda: nn.Conv2d(3, 4, 3, groups=3), ValueError, "groups is 3, expected a divisor of out_channels = 4"),
    (
        lambda: nn.SparseConvTranspose2d(6, 4, 3, groups=4),
        ValueError,
        "groups is 4, expected a divisor of in_channels = 6",
    ),
    (
        lambda: nn.SparseConv2d.from_dense(np.ones((2, 3, 3))),
        ValueError,
        "weight has shape (2, 3, 3), expected 4 axes (out, in / groups, *kernel)",
    ),
    (
        lambda: nn.SparseLinear.from_dense(np.ones((2, 3)), np.ones(3)),
        ValueError,
        "bias has shape (3,), expected (2,) to match weight",
    ),
    (
        lambda: nn.SparseConvTranspose2d(4, 6, 3, 2, output_padding=2),
        ValueError,
        "output_padding is 2, expected less than the stride (2, 2)",
    ),
    (
        lambda: nn.SparseConvTranspose2d(4, 6, 3, padding=3)(np.ones((1, 4, 2, 2), "f")),
        ValueError,
        "x has shape (1, 4, 2, 2), expected an image that is larger than the padding ((3, 3), (3, 3)) cuts off",
    ),
    (
        lambda: nn.SparseConvTranspose2d(4, 6, 3)(np.ones((1, 6, 5, 5), "f")),
        ValueError,
        "x has shape (1, 6, 5, 5), expected (N, 4, H, W) to match the layer",
    ),
    (
        lambda: nn.SparseConvTranspose2d(4, 6, 3)(np.ones((1, 4, 5, 5), complex)),
        TypeError,
        "x has dtype complex128, expected float32, float16, integers or bool",
    ),
    (
        lambda: nn.SparseConvTranspose2d.from_dense(np.ones((2, 3))),
        ValueError,
        "weight has shape (2, 3), expected 4 axes (in, out / groups, height, width)",
    ),
    (lambda: nn.Upsample(2, "cubic"), ValueError, "mode is 'cubic', expected 'nearest' or 'bilinear'"),
    (
        lambda: nn.Upsample(0),
        ValueError,
        "scale_factor is 0, expected an integer or 2 integers, each from 1 to 2147483647",
    ),
    (
        lambda: nn.Upsample(2)(np.ones((3, 4), "f")),
        ValueError,
        "x has shape (3, 4), expected (N, C, H, W) with H and W at least 1",
    ),
    (
        lambda: nn.SparseConv2d(3, 8, 3)(np.ones((1, 8, 8, 3), "f")),
        ValueError,
        "x has shape (1, 8, 8, 3), expected (N, 3, H, W) to match the layer",
    ),
    (
        lambda: nn.MultiheadAttention(10, 3),
        ValueError,
        "num_heads is 3, expected a divisor of embed_dim = 10",
    ),
    (
        lambda: nn.MultiheadAttention(4, 2, key=nn.Linear(4, 5)),
        TypeError,
        "key is a Linear, expected a linear layer of 4 to 4 features",
    ),
    (
        lambda: nn.MultiheadAttention(4, 2)(np.ones((2, 4), "f")),
        ValueError,
        "x has shape (2, 4), expected (N, tokens, 4) to match the layer",
    ),
    (
        lambda: nn.MultiheadAttention(4, 2)((np.ones((2, 3, 4), "f"), np.ones((1, 3, 4), "f"))),
        ValueError,
        "memory has shape (1, 3, 4), expected (2, tokens, 4) to match the layer",
    ),
    (
        lambda: nn.MultiheadAttention(4, 2)((np.ones((2, 3, 4), "f"),) * 3),
        ValueError,
        "x is a tuple of 3 arrays, expected one array or two, and a mask",
    ),
    (
        lambda: nn.MultiheadAttention(4, 2)((np.ones((2, 3, 4), "f"), np.ones((2, 4), bool))),
        ValueError,
        "the mask has shape (2, 4), expected (2, 3), the keys",
    ),
    (
        lambda: nn.MultiheadAttention(4, 2)((np.ones((2, 3, 4), "f"), np.ones((2, 3), "f"))),
        TypeError,
        "the mask has dtype float32, expected booleans, which are True where a key is padding",
    ),
    (
        lambda: nn.MultiheadAttention(4, 2)(np.ones((2, 3, 4), complex)),
        TypeError,
        "x has dtype complex128, expected float32, float16, integers or bool",
    ),
    (
        lambda: nn.RMSNorm(3)(np.ones((2, 4), "f")),
        ValueError,
        "x has shape (2, 4), expected (..., 3) to match the layer",
    ),
    (lambda: nn.TransformerEncoderLayer(4, 2, dropout=1), ValueError, "dropout is 1, expected a number in [0, 1)"),
    (lambda: nn.Concat(), ValueError, "branches is empty, expected at least one layer or None"),
    (lambda: nn.Concat(3), TypeError, "branches[0] is a int, expected a layer of fastsparse.nn or None"),
    (
        lambda: nn.Concat(None, nn.MaxPool2d(2))(np.ones((1, 2, 4, 4), "f")),
        ValueError,
        "the branches give shapes (1, 2, 4, 4) and (1, 2, 2, 2), expected equal ones but for the second axis",
    ),
    (lambda: nn.Dropout(1.0), ValueError, "p is 1.0, expected a number in [0, 1)"),
    (lambda: nn.BatchNorm2d(3, eps=-1), ValueError, "eps is -1, expected a number of at least 0"),
    (lambda: nn.GELU("fast"), ValueError, "approximate is 'fast', expected 'none' or 'tanh'"),
    (lambda: nn.MaxPool2d(2, padding=2), ValueError, "padding is 2, expected at most half of kernel_size (2, 2)"),
    (lambda: nn.Sequential(np.ones(3)), TypeError, "layers[0] is a ndarray, expected a layer of fastsparse.nn"),
    (
        lambda: nn.Linear(3, 4)(np.ones((2, 4), "f")),
        ValueError,
        "x has shape (2, 4), expected (..., 3) to match the layer",
    ),
    (
        lambda: nn.Linear(3, 4)(np.ones((2, 3), complex)),
        TypeError,
        "x has dtype complex128, expected float32, float16, integers or bool",
    ),
    (
        lambda: nn.Conv2d(3, 4, 3)(np.ones((2, 4, 5, 5), "f")),
        ValueError,
        "x has shape (2, 4, 5, 5), expected (N, 3, H, W) to match the layer",
    ),
    (
        lambda: nn.Conv2d(1, 1, 5)(np.ones((1, 1, 4, 9), "f")),
        ValueError,
        "x has shape (1, 1, 4, 9), expected a height and width in which a window of size (5, 5) fits with padding "
        "((0, 0), (0, 0)) and dilation (1, 1)",
    ),
    (
        lambda: nn.MaxPool2d(3)(np.ones((1, 1, 2, 9), "f")),
        ValueError,
        "x has shape (1, 1, 2, 9), expected a height and width in which a window of size (3, 3) fits with padding "
        "((0, 0), (0, 0))",
    ),
    (
        lambda: nn.BatchNorm2d(3)(np.ones((2, 3), "f")),
        ValueError,
        "x has shape (2, 3), expected (N, 3, H, W) to match the layer",
    ),
    (
        lambda: nn.BatchNorm1d(3)(np.ones((1, 3), "f")),
        ValueError,
        "x has shape (1, 3), expected at least 2 values per channel in training mode",
    ),
    (
        lambda: nn.LayerNorm((3, 4))(np.ones((2, 4), "f")),
        ValueError,
        "x has shape (2, 4), expected (..., 3, 4) to match the layer",
    ),
    (lambda: nn.ReLU()(np.ones(2, complex)), TypeError, "x has dtype complex128, expected float32 or float64"),
    (
        lambda: nn.Residual(nn.Linear(3, 4))(np.ones((2, 3), "f")),
        ValueError,
        "body gives shape (2, 4) and the shortcut (2, 3), expected equal shapes",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED)
def test_bad_arguments_are_named(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message


def test_a_gradient_of_the_wrong_shape_is_refused() -> None:
    layer = nn.SparseLinear(4, 3, rng=0)
    layer(np.ones((2, 4), "f"))
    with pytest.raises(ValueError, match=r"^dy has shape \(2, 4\), expected \(2, 3\), the shape of the output$"):
        layer.backward(np.ones((2, 4), "f"))


def test_one_layer_cannot_stand_in_two_places() -> None:
    layer = nn.Linear(3, 3, rng=0)
    with pytest.raises(ValueError, match=r"^Sequential holds the same Linear twice, expected different layers$"):
        nn.Sequential(layer, nn.Sequential(layer))
    with pytest.raises(ValueError, match=r"^Residual holds the same Linear twice"):
        nn.Residual(layer, layer)


FORGETTING: dict[str, Any] = {
    "train": lambda model, x: model.train(),
    "eval and train": lambda model, x: model.eval().train(),
    "a copy": lambda model, x: None,
}


@pytest.mark.parametrize("how", FORGETTING)
@pytest.mark.parametrize("kind", [nn.ReLU, lambda: nn.MaxPool2d(2), lambda: nn.BatchNorm2d(2), nn.Dropout, nn.Softmax])
def test_backward_after_several_forward_calls_says_so(kind: Any, how: str) -> None:
    """The gradient belongs to one of them, and nobody knows to which."""
    model, x = nn.Sequential(nn.Conv2d(2, 2, 3, rng=0), kind()), np.ones((3, 2, 6, 6), "f")
    y = model(x)
    model(2 * x)
    model = copy.deepcopy(model) if how == "a copy" else model
    last = type(model[1]).__name__
    with pytest.raises(RuntimeError, match=rf"^{last}\.backward (came after several|needs a) forward call"):
        model.backward(np.ones_like(y))
    FORGETTING[how](model, x)
    model.train()
    model(x)
    assert model.backward(np.ones_like(y)) is not None
    with pytest.raises(RuntimeError, match=r"\.backward needs a forward call"):
        model.backward(np.ones_like(y))


def test_layers_that_backward_leaves_out_forget_too() -> None:
    model, x = nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(6, 2, rng=0)), np.ones((4, 2, 3), "f")
    for _ in range(3):
        model.backward(np.ones_like(model(x)), need_input=False)
    assert model.backward(np.ones_like(model(x))) is not None


def test_a_forward_call_that_fails_leaves_nothing_behind() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Linear(6, 2, rng=0))
    for _ in range(2):
        with pytest.raises(ValueError, match=r"^x has shape"):
            model(np.ones((4, 5), "f"))
    assert model.backward(np.ones_like(model(np.ones((4, 6), "f")))) is not None


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(1, 2, rng=0), (1_000_000, 1)),
        (nn.SparseLinear(1, 2, sparsity=0.0, rng=0), (1_000_000, 1)),
        (nn.SparseConv1d(1, 2, 1, sparsity=0.0, rng=0), (500_000, 1, 2)),
        (nn.Conv2d(1, 2, 1, rng=0), (300_000, 1, 1, 1)),
        (nn.Conv2d(200, 2, 1, rng=0), (30_000, 200, 1, 1)),
        (nn.LayerNorm(2), (1_000_000, 2)),
    ],
    ids=lambda item: type(item).__name__,
)
def test_bias_gradients_of_large_batches_are_right(layer: Any, shape: tuple[int, ...]) -> None:
    """One after the other in float32, a million numbers add up to a sum that is 1% off."""
    y = layer(np.ones(shape, "f"))
    layer.backward(np.full(y.shape, 0.1, "f"), need_input=False)
    exact = np.float32(0.1).astype(float) * (y.size // len(layer.bias.value))
    np.testing.assert_allclose(layer.bias.grad, exact, rtol=2e-6)


@pytest.mark.parametrize("shape", [(40, 300), (3, 1), (2, 5, 70, 50)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_layer_norm_is_as_exact_as_its_kernel(rng: Any, shape: tuple[int, ...], dtype: str) -> None:
    """The deviation of numbers about 1000 is lost in float32 sums; those of gradients are float64, too."""
    layer, u = nn.LayerNorm(shape[-1], dtype=dtype), np.finfo(dtype).eps / 2
    layer.weight.value, layer.bias.value = rng.uniform(0.5, 2, (2, shape[-1])).astype(dtype)
    x, dy = (rng.normal(size=shape) + 1000).astype(dtype), rng.normal(size=shape).astype(dtype)
    gamma, beta, wide, grad = (a.astype(np.longdouble) for a in (layer.weight.value, layer.bias.value, x, dy))
    centred = wide - wide.mean(axis=-1, keepdims=True)
    inverse = 1 / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + layer.eps)
    normal, lost = centred * inverse, 1e-13 * inverse.max()  # what float64 sums of such numbers lose
    size = abs(normal * gamma) + gamma + beta
    assert (abs(layer(x) - (normal * gamma + beta)) <= (16 * u + 1000 * lost) * size).all()
    dx = layer.backward(dy)
    inner = grad * gamma
    along = (inner * normal).mean(axis=-1, keepdims=True)
    want = inverse * (inner - inner.mean(axis=-1, keepdims=True) - normal * along)
    assert dx is not None
    assert (abs(dx - want) <= (16 * u + 1000 * lost) * inverse * abs(inner).max(axis=-1, keepdims=True)).all()
    rows = tuple(range(len(shape) - 1))
    for parameter, terms in ((layer.weight, grad * normal), (layer.bias, grad)):
        assert (abs(parameter.grad - terms.sum(axis=rows)) <= (4 * u + lost) * abs(terms).sum(axis=rows)).all()


def test_batch_sums_are_right_for_every_length(rng: Any) -> None:
    for rows in (0, 1, 2, 127, 128, 129, 255, 256, 300, 1000):
        for shape in ((3,), (), (2, 5), (0,)):
            for dtype in ("f", "d"):
                x = rng.normal(size=(rows, *shape)).astype(dtype)
                total = batch_sum(x)
                assert (total.dtype, total.shape) == (x.dtype, shape)
                bound = 130 * np.finfo(dtype).eps * abs(x).sum(axis=0, dtype=float)
                assert (abs(total - x.sum(axis=0, dtype=np.longdouble)) <= bound).all()


@pytest.mark.parametrize("dtype", ["float64", "int64", "uint8", "float16", ">f4"])
@pytest.mark.parametrize("container", [nn.Residual, lambda body, other=None: nn.Concat(other, body)])
@pytest.mark.parametrize("other", [None, nn.ReLU])
def test_branches_without_parameters_follow_those_that_have_some(dtype: str, container: Any, other: Any) -> None:
    layer = container(nn.SparseLinear(8, 8, sparsity=0.5, rng=0), other and other())
    x = np.arange(24).reshape(3, 8).astype(dtype)
    y = layer.eval()(x)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, layer(x.astype(np.float32)), rtol=1e-6)
    layer.train()(x)
    assert layer.backward(np.ones_like(y)).dtype == np.float32


def _hostile(kind: str) -> Any:
    """A sparse matrix (3, 8) with an index far outside, written after SciPy's own check."""
    x = sparse.csr_array(np.eye(3, 8, dtype=np.float32)).asformat(kind)
    (x.coords[1] if kind == "coo" else x.indices)[1] = 2**30
    return x


@pytest.mark.I1
@pytest.mark.parametrize("kind", ["csr", "csc", "coo", "bsr"])
@pytest.mark.parametrize("layer", [nn.Linear, nn.SparseLinear])
def test_sparse_samples_are_checked_before_they_are_converted(kind: str, layer: Any) -> None:
    layer = layer(8, 4, rng=0)
    with pytest.raises(ValueError, match="x is not a valid sparse matrix"):
        layer(_hostile(kind))
    optimizer = fs.training.SGD(layer.parameters(), 0.1)
    with pytest.raises(ValueError, match="x of data is not a valid sparse matrix"):
        fs.training.fit(layer, (_hostile(kind), np.zeros(3, int)), epochs=1, batch_size=3, optimizer=optimizer)
