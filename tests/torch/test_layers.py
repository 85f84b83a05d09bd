"""Sparse layers of fastsparse.torch against torch's dense ones, and as modules among others."""

from __future__ import annotations

import copy
import io
import pickle
import weakref

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F
from torch import nn
from torch.autograd import gradcheck
from torch.func import functional_call
from torch.nn.utils import prune
from torch.utils._python_dispatch import TorchDispatchMode

import fastsparse as fs
import fastsparse.torch as fst
from fastsparse.sparsity import RigL
from fastsparse.torch import operators

CONVS = {1: fst.SparseConv1d, 2: fst.SparseConv2d, 3: fst.SparseConv3d}


def whole(module: nn.Module) -> nn.Module:
    """The module with small integers for weights: sums are exact then, whatever their order."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randint(-4, 5, parameter.shape))
    return module


def integers(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randint(-8, 9, shape).to(dtype)


def gradients(module: nn.Module, x: torch.Tensor, dy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Output, and gradient of x; those of parameters are in the module."""
    x = x.clone().requires_grad_()
    y = module(x)
    y.backward(dy)
    return y.detach(), x.grad


def assert_same_step(sparse: nn.Module, x: torch.Tensor) -> None:
    """Output and gradients equal those of the dense twin."""
    dense = sparse.to_dense()
    dy = integers(*dense(x).shape, dtype=x.dtype)
    (y, grad_x), (expected, expected_x) = gradients(sparse, x, dy), gradients(dense, x, dy)
    assert torch.equal(y, expected)
    assert torch.equal(grad_x, expected_x)
    pattern = sparse.pattern
    at = torch.from_numpy(pattern.rows()), torch.tensor(pattern.indices).long()
    assert torch.equal(sparse.values.grad, dense.weight.grad.reshape(pattern.shape)[at])
    if sparse.bias is not None:
        assert torch.equal(sparse.bias.grad, dense.bias.grad)
    with torch.no_grad():
        assert torch.equal(sparse(x), expected)


# ------------------------------------------------------------------------------------------------- against torch


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(33,), (1, 33), (3, 33), (40, 33), (2, 3, 33), (0, 33)])
def test_linear_equals_the_dense_layer(shape, dtype):
    layer = whole(fst.SparseLinear(33, 21, sparsity=0.7, dtype=dtype))
    assert_same_step(layer, integers(*shape, dtype=dtype))


def test_linear_without_bias_and_with_empty_rows():
    pattern = fs.Pattern([0, 0, 2, 2], [1, 4], (3, 5))
    layer = whole(fst.SparseLinear(5, 3, bias=False, pattern=pattern))
    assert layer.bias is None
    assert_same_step(layer, integers(7, 5))


@pytest.mark.parametrize(
    "view", [lambda x: x.T, lambda x: x[:, ::2].repeat(1, 2), lambda x: x[::2], lambda x: x[:1].expand(6, -1)]
)
def test_inputs_of_any_layout(view):
    x = view(integers(12, 12))
    layer = whole(fst.SparseLinear(x.shape[1], 5, sparsity=0.5))
    assert_same_step(layer, x)


GEOMETRIES = [
    (1, {"kernel_size": 3, "padding": 1}),
    (1, {"kernel_size": 4, "padding": "same", "dilation": 2}),
    (2, {"kernel_size": 3, "stride": 2, "padding": 1}),
    (2, {"kernel_size": (2, 3), "padding": (0, 2), "dilation": (1, 2), "bias": False}),
    (2, {"kernel_size": 1}),
    (2, {"kernel_size": 3, "groups": 2, "padding": "same"}),
    (2, {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"}),
    (2, {"kernel_size": 3, "padding": (1, 0), "padding_mode": "circular"}),
    (3, {"kernel_size": 2, "stride": (1, 2, 1), "padding": 1}),
]


@pytest.mark.parametrize(("axes", "arguments"), GEOMETRIES)
@pytest.mark.parametrize("images", [1, 17])
def test_convolution_equals_the_dense_layer(axes, arguments, images):
    layer = whole(CONVS[axes](4, 6, sparsity=0.6, **arguments))
    assert_same_step(layer, integers(images, 4, *(6, 7, 5)[:axes]))


@pytest.mark.parametrize("grad", [False, True])
def test_tensors_without_numbers_give_shapes(grad):
    layers = nn.Sequential(fst.SparseConv2d(3, 4, 3, stride=2), nn.Flatten(), fst.SparseLinear(16, 5)).to("meta")
    with torch.set_grad_enabled(grad):
        for batch in (1, 1, 1, 6):  # the first of which would be prepared
            y = layers(torch.empty(batch, 3, 5, 6, device="meta"))
            assert (y.is_meta, y.shape, y.requires_grad) == (True, (batch, 5), grad)
    if grad:
        y.sum().backward()
        assert layers[0].values.grad.shape == layers[0].values.shape


@pytest.mark.parametrize("rows", [1, 5])
def test_negated_views_are_resolved(rows):
    layer = fst.SparseLinear(12, 6, sparsity=0.5)
    dense = layer.to_dense()
    x = torch.randn(rows, 12)
    for _ in range(4):  # the calls after the second are prepared
        with torch.no_grad():
            torch.testing.assert_close(layer(torch._neg_view(x)), dense(-x))
    grads = []
    for module in (layer, dense):
        given = torch.conj(torch.complex(x, x)).imag.requires_grad_()
        y = module(given)
        torch.complex(torch.ones_like(y), y).conj().square().imag.sum().backward()  # a gradient that is negated, too
        grads.append((given.grad, module.bias.grad))
    torch.testing.assert_close(*grads)


def test_a_single_image_needs_no_batch_axis():
    layer = whole(fst.SparseConv2d(4, 6, 3, sparsity=0.5))
    x = integers(4, 8, 8)
    assert torch.equal(layer(x), layer.to_dense()(x))


@pytest.mark.parametrize("make", [
    lambda: (fst.SparseLinear(7, 5, sparsity=0.5, dtype=torch.float64), (3, 7)),
    lambda: (fst.SparseConv2d(2, 3, 3, stride=2, padding=1, sparsity=0.5, dtype=torch.float64), (2, 2, 5, 4)),
])  # fmt: skip
def test_gradcheck(make):
    layer, shape = make()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)

    def run(x, values, bias):
        return functional_call(layer, {"values": values, "bias": bias}, (x,))

    assert gradcheck(run, (x, layer.values, layer.bias))


def test_second_derivatives_are_refused():
    layer = fst.SparseLinear(5, 4, sparsity=0.5)
    x = torch.randn(3, 5, requires_grad=True)
    (grad,) = torch.autograd.grad(layer(x).square().sum(), [x], create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivatives"):
        grad.sum().backward()


@pytest.mark.parametrize("need_input", [True, False])
def test_opcheck(need_input):
    linear, conv = fst.SparseLinear(9, 5, sparsity=0.5), fst.SparseConv2d(3, 4, 3, sparsity=0.5)
    ops = torch.ops.fastsparse
    for layer, rest, op, backward, x, dy in (
        (linear, (9,), ops.linear, ops.linear_backward, torch.randn(6, 9), torch.randn(6, 5)),
        (conv, ([3, 3], [1, 1], [1, 1, 0, 0], [1, 1], 1), ops.conv, ops.conv_backward, torch.randn(2, 3, 5, 6),
         torch.randn(2, 4, 5, 4)),
    ):  # fmt: skip
        values, structure = layer.values.detach(), (layer.indptr, layer.indices)
        torch.library.opcheck(op.default, (x, values, layer.bias.detach(), *structure, *rest, need_input))
        torch.library.opcheck(backward.default, (dy, x, values, *structure, *rest, need_input))


def test_compile_and_export():
    model = nn.Sequential(fst.SparseConv2d(2, 4, 3, sparsity=0.5), nn.ReLU(), nn.Flatten(), fst.SparseLinear(36, 3))
    whole(model)
    x, dy = integers(5, 2, 5, 5), integers(5, 3)
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    (y, grad_x), (expected, expected_x) = gradients(compiled, x, dy), gradients(model, x, dy)
    assert torch.equal(y, expected)
    assert torch.equal(grad_x, expected_x)
    for ours, theirs in zip(compiled.parameters(), model.parameters()):
        assert torch.equal(ours.grad, theirs.grad)
    assert torch.equal(torch.export.export(model, (x,)).module()(x), expected)


def test_compiled_layers_see_new_patterns():
    layer = whole(fst.SparseLinear(12, 8, sparsity=0.5))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = integers(5, 12)
    for _ in range(3):
        assert torch.equal(compiled(x), layer.to_dense()(x))
        fs.sparsity.SET(layer, every=1).step(1)
        whole(layer)


# ------------------------------------------------------------------------------------------------- types and memory


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_converted_once(dtype):
    layer = whole(fst.SparseLinear(12, 8, sparsity=0.5))
    x = integers(5, 12)
    y = layer(x)
    assert torch.equal(layer(x.to(dtype)), y.to(dtype))
    with torch.autocast("cpu", dtype):
        assert torch.equal(layer(x.to(dtype)), y.to(dtype))
        assert layer(x).dtype == torch.float32
    half = copy.deepcopy(layer).to(dtype)
    y = half(x.to(dtype))
    assert torch.equal(y, layer(x).to(dtype))
    y.sum().backward()
    assert half.values.grad.dtype == dtype
    with torch.no_grad():
        half.values.add_(1)
        assert torch.equal(half(x.to(dtype)), half.float()(x).to(dtype))


def test_contiguous_tensors_are_not_copied(monkeypatch):
    layer = fst.SparseLinear(64, 32, sparsity=0.5)
    x, seen = torch.randn(16, 64), []
    forward = operators.linear_ops.forward

    def spy(matrix, x, y, *rest):
        seen.append((x.ctypes.data, matrix.data.ctypes.data, y.ctypes.data))
        forward(matrix, x, y, *rest)

    monkeypatch.setattr(operators.linear_ops, "forward", spy)
    y = layer(x)
    assert seen == [(x.data_ptr(), layer.values.data_ptr(), y.data_ptr())]


def test_calls_use_no_more_threads_than_torch_has(monkeypatch):
    layer, before = fst.SparseLinear(8, 8), torch.get_num_threads()
    found = []
    make = operators._target
    monkeypatch.setattr(operators, "_target", lambda matrix: found.append(make(matrix).threads) or make(matrix))
    monkeypatch.setattr(operators, "get_num_threads", lambda: 2)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            layer(torch.randn(4, 8))
    finally:
        torch.set_num_threads(before)
    assert found == [1, 2, 2]


def _by_step(layer):
    optimizer = torch.optim.SGD(layer.parameters(), 1.0)
    layer.values.grad = torch.ones_like(layer.values)
    optimizer.step()


CHANGES = {
    "optimizer": _by_step,
    "in place": lambda layer: layer.values.detach().add_(1),
    "data": lambda layer: layer.values.data.mul_(2),
    "numpy": lambda layer: np.add(layer.values.detach().numpy(), 1, out=layer.values.detach().numpy()),
    "other memory": lambda layer: setattr(layer.values, "data", layer.values.data + 1),
    "state": lambda layer: layer.load_state_dict({**layer.state_dict(), "values": layer.values.detach() + 1}),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("rows", [1, 5])
def test_changed_values_are_noticed(change, rows):
    layer = whole(fst.SparseLinear(30, 20, sparsity=0.5))
    x = integers(rows, 30)
    for gradient in (False, True, False):
        with torch.set_grad_enabled(gradient):
            assert torch.equal(layer(x), layer.to_dense()(x))
            CHANGES[change](layer)
            assert torch.equal(layer(x), layer.to_dense()(x))


def test_a_single_changed_value_is_noticed_where_gradients_are_wanted():
    layer = whole(fst.SparseLinear(300, 20, sparsity=0.5))
    x = torch.ones(2, 300)
    for position in (0, 1, 777, -1):
        layer(x)
        layer.values.data[position] += 1
        assert torch.equal(layer(x), layer.to_dense()(x))


def test_temporary_values_are_told_apart():
    """Memory of the first ones may be given to the next."""
    layer, x = whole(fst.SparseLinear(30, 20, sparsity=0.5)), integers(3, 30).bfloat16()
    for gradient in (False, True):
        for _ in range(4):
            values = torch.randint(-4, 5, layer.values.shape).bfloat16().requires_grad_(gradient)
            y = functional_call(layer, {"values": values}, (x,))
            layer.values.data.copy_(values.detach())
            assert torch.equal(y, layer.to_dense()(x.float()).bfloat16())
            del values, y


def test_inference_mode():
    with torch.inference_mode():
        layer = whole(fst.SparseLinear(30, 20, sparsity=0.5))
        x = integers(3, 30)
        for _ in range(2):
            assert torch.equal(layer(x), layer.to_dense()(x))
            layer.values.add_(1)


@pytest.mark.usefixtures("no_collector")
def test_what_is_kept_goes_with_the_layer():
    layer = fst.SparseLinear(8, 8)
    layer(torch.randn(2, 8)).sum().backward()
    key = layer.indices.untyped_storage()._cdata
    values = weakref.ref(layer.values)
    packed = weakref.ref(operators._structures[key].pattern)
    del layer
    assert key not in operators._structures
    assert values() is None
    assert packed() is None


@pytest.mark.usefixtures("no_collector")
def test_what_is_kept_goes_with_the_pattern():
    layer = fst.SparseLinear(8, 8, sparsity=0.5)
    layer(torch.randn(2, 8))
    layer._adopt(fst.SparseLinear(8, 8, sparsity=0.9).pattern, np.ones(6))
    layer(torch.randn(2, 8))
    assert not any(structure.expired for structure in operators._structures.values())


@pytest.mark.parametrize("features", [0, 4])
@pytest.mark.parametrize("samples", [(), (0,), (1,), (5,), (2, 0)])
@pytest.mark.parametrize("rows", [0, 3])
def test_operator_without_nonzeros(rows, samples, features):
    empty, bias = torch.zeros(0, dtype=torch.int32), torch.arange(rows).float()
    indptr = torch.zeros(rows + 1, dtype=torch.int64)
    y = torch.ops.fastsparse.linear(
        torch.randn(*samples, features), torch.zeros(0), bias, indptr, empty, features, False
    )
    assert torch.equal(y, bias.expand(*samples, rows))


@pytest.mark.parametrize("name", ["linear", "conv"])
def test_modes_see_the_operators(name):
    if name == "linear":
        layer, x = fst.SparseLinear(8, 8), torch.randn(3, 8)
    else:
        layer, x = fst.SparseConv1d(4, 4, 3), torch.randn(2, 4, 9)
    seen = []

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    expected = layer(x)
    with Names():
        y = layer(x)
        y.sum().backward()
        with torch.no_grad():
            layer(x)
    assert torch.equal(y, expected)
    ours = [called for called in seen if called.startswith("fastsparse")]
    assert ours == [f"fastsparse.{called}.default" for called in (name, f"{name}_backward", name)]


# ------------------------------------------------------------------------------------------------- as modules


def test_initial_values_follow_the_seed():
    torch.manual_seed(3)
    first = fst.SparseLinear(50, 40)
    torch.manual_seed(3)
    second = fst.SparseLinear(50, 40)
    assert first.pattern == second.pattern
    assert torch.equal(first.values, second.values)
    assert first.pattern.nnz == 200
    wide = fst.SparseLinear(4000, 50, sparsity=0.5)
    assert float(wide.values.detach().var()) == pytest.approx(2 / 2000, rel=0.05)


@pytest.mark.parametrize("copied", [
    copy.deepcopy,
    lambda layer: pickle.loads(pickle.dumps(layer)),
    lambda layer: torch.load(_saved(layer), weights_only=False),
])  # fmt: skip
def test_copies_are_layers_of_their_own(copied):
    layer = whole(fst.SparseConv2d(3, 5, 3, padding="same", sparsity=0.5))
    x = integers(2, 3, 6, 6)
    y = layer(x)
    twin = copied(layer)
    assert torch.equal(twin(x), y)
    whole(twin)
    fs.sparsity.SET(twin, every=1).step(1)
    assert torch.equal(layer(x), y)
    assert torch.equal(twin(x), twin.to_dense()(x))


def _saved(item):
    file = io.BytesIO()
    torch.save(item, file)
    file.seek(0)
    return file


def test_state_dict_brings_its_pattern():
    source, target = whole(fst.SparseLinear(30, 20, sparsity=0.5)), fst.SparseLinear(30, 20, sparsity=0.9)
    x = integers(4, 30)
    target(x)
    parameter = target.values
    state = torch.load(_saved(source.state_dict()), weights_only=True)
    assert set(state) == {"values", "bias", "indptr", "indices"}
    target.load_state_dict(state)
    assert target.values is parameter
    assert target.pattern == source.pattern
    assert torch.equal(target(x), source(x))
    fs.sparsity.SET(source, every=1).step(1)  # as many nonzeros, at other places
    target.load_state_dict(source.state_dict())
    assert torch.equal(target(x), source(x))


@pytest.mark.parametrize(("name", "spoil", "text"), [
    ("indices", lambda t: t.flip(0), "indices"),
    ("indices", lambda t: t + 1000, r"indices\[\d+\] is \d+, expected 0 <= column < 30"),
    ("indices", lambda t: t[:-1], "indptr"),
    ("indptr", lambda t: t * 2, "indptr"),
    ("values", lambda t: t[:-1], "values has shape"),
])  # fmt: skip
def test_damaged_state_is_refused_and_changes_nothing(name, spoil, text):
    layer = whole(fst.SparseLinear(30, 20, sparsity=0.5))
    x = integers(4, 30)
    y = layer(x)
    state = layer.state_dict()
    with pytest.raises(RuntimeError, match=text):
        layer.load_state_dict({**state, name: spoil(state[name])})
    assert torch.equal(layer(x), y)


@pytest.mark.parametrize("optimizer", [
    lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01),
    lambda p: torch.optim.AdamW(p, 0.01),
])  # fmt: skip
def test_training_equals_that_of_the_masked_dense_network(optimizer):
    """Accumulated and clipped gradients, schedules, recomputed activations and all."""
    torch.manual_seed(0)
    model = nn.Sequential(
        fst.SparseConv2d(2, 6, 3, sparsity=0.5, dtype=torch.float64), nn.Tanh(), nn.Flatten(),
        fst.SparseLinear(54, 4, sparsity=0.7, dtype=torch.float64),
    )  # fmt: skip
    dense = fst.densify(copy.deepcopy(model))
    masks = {name: p != 0 for name, p in dense.named_parameters() if p.ndim > 1}
    runs = []
    for network in (model, dense):
        torch.manual_seed(1)
        steps = optimizer(network.parameters())
        schedule = torch.optim.lr_scheduler.StepLR(steps, 2, 0.5)
        losses = []
        for _ in range(5):
            steps.zero_grad()
            for _ in range(2):
                x, y = torch.randn(6, 2, 5, 5, dtype=torch.float64), torch.randint(4, (6,))
                out = torch.utils.checkpoint.checkpoint_sequential(network, 2, x, use_reentrant=False)
                loss = F.cross_entropy(out, y)
                loss.backward()
                losses.append(loss.item())
            for name, parameter in network.named_parameters():
                if network is dense and name in masks:
                    parameter.grad *= masks[name]
            nn.utils.clip_grad_norm_(network.parameters(), 0.5)
            steps.step()
            schedule.step()
        runs.append(losses)
    np.testing.assert_allclose(runs[0], runs[1], rtol=1e-12)
    assert runs[0][-1] != runs[0][0]


def test_distributed_data_parallel():
    """Buffers that are broadcast, and so written to, before each step do not cost a new plan."""
    dist = torch.distributed
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        layer = whole(fst.SparseLinear(30, 20, sparsity=0.5))
        parallel = nn.parallel.DistributedDataParallel(layer)
        x = integers(4, 30)
        parallel(x).sum().backward()
        pattern = layer.pattern
        layer.indices.copy_(layer.indices.clone())
        assert layer.pattern is pattern
        assert torch.equal(layer.values.grad, _gradient_of_sum(layer, x))
    finally:
        dist.destroy_process_group()


def _on(device, layer, *sizes):
    with torch.device(device):
        return layer(*sizes)


def _gradient_of_sum(layer, x):
    return x.sum(0)[layer.indices.long()]


def test_the_weight_as_torch_has_it():
    layer = whole(fst.SparseLinear(6, 4, sparsity=0.5))
    with torch.no_grad():
        assert layer.weight.shape == (4, 6)
        assert torch.equal(layer.weight.to_dense(), layer.to_dense().weight)
    assert np.array_equal(layer.matrix().toarray(), layer.to_dense().weight.detach().numpy())


# ------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(("call", "kind", "text"), [
    (lambda layer: layer(torch.zeros(3, 7)), ValueError, r"x has shape \(3, 7\), expected \(..., 8\)"),
    (lambda layer: layer(torch.zeros(3, 8).double()), TypeError, "x has dtype torch.float64, expected torch.float32"),
    (lambda layer: layer(torch.zeros(3, 8).long()), TypeError, "x has dtype torch.int64"),
    (lambda layer: layer(torch.zeros(3, 8, device="meta")), ValueError, "x is on meta and the layer on cpu"),
    (lambda layer: layer(np.zeros((3, 8))), TypeError, "x is ndarray, expected a Tensor"),
    (lambda layer: fst.SparseLinear(8, 4, device="meta"), ValueError, "device is .meta., expected the CPU"),
    (lambda layer: _on("meta", fst.SparseLinear, 8, 4), ValueError, "type='meta'.*, expected the CPU"),
    (lambda layer: fst.SparseLinear(8, 4, dtype=torch.int8), TypeError, "dtype is torch.int8"),
    (lambda layer: fst.SparseLinear(0, 4), ValueError, "in_features is 0"),
    (lambda layer: fst.SparseLinear(8, 4, sparsity=1.5), ValueError, "sparsity is 1.5"),
    (lambda layer: fst.SparseLinear(8, 4, pattern=fs.Pattern([0], [], (0, 8))), ValueError, "pattern has shape"),
    (lambda layer: fst.SparseLinear.from_dense(nn.Linear(8, 4), torch.ones(4, 7)), ValueError, "mask has shape"),
    (lambda layer: fst.SparseConv2d(2, 2, 3)(torch.zeros(1, 3, 5, 5)), ValueError, r"x has shape \(1, 3, 5, 5\)"),
    (lambda layer: fst.SparseConv2d(2, 2, 3)(torch.zeros(1, 2, 2, 5)), ValueError, "expected at least the window"),
])  # fmt: skip
def test_what_does_not_fit_is_refused_in_a_sentence(call, kind, text):
    with pytest.raises(kind, match=text):
        call(fst.SparseLinear(8, 4))


@pytest.mark.parametrize("spoil", [
    lambda a: (a[0][:, :-1], *a[1:]),
    lambda a: (a[0], a[1][:-1], *a[2:]),
    lambda a: (*a[:2], a[2][:-1], *a[3:]),
    lambda a: (*a[:3], a[3] + 1, *a[4:]),
    lambda a: (*a[:4], a[4] + 100, *a[5:]),
    lambda a: (a[0].double(), *a[1:]),
])  # fmt: skip
def test_the_bare_operator_checks_what_it_reads(spoil):
    layer = fst.SparseLinear(8, 4, sparsity=0.5)
    arguments = torch.randn(3, 8), layer.values.detach(), layer.bias.detach(), layer.indptr, layer.indices, 8, False
    with pytest.raises((TypeError, ValueError)):
        torch.ops.fastsparse.linear(*spoil(arguments))


# ------------------------------------------------------------------------------------------------- sparse inputs


@pytest.mark.parametrize("layout", [torch.sparse_csr, torch.sparse_coo, torch.sparse_csc])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_sparse_input_gives_what_a_dense_one_gives(layout, dtype):
    torch.manual_seed(0)
    layer = fst.SparseLinear(50, 20, sparsity=0.7, dtype=dtype)
    x = (torch.randn(9, 50) * (torch.rand(9, 50) < 0.2)).to(dtype)
    found, expected = [], []
    for given, results in ((x.to_sparse(layout=layout), found), (x, expected)):
        layer.zero_grad()
        y = layer(given)
        y.float().square().sum().backward()
        results += [y, layer.values.grad, layer.bias.grad]
        with torch.no_grad():
            assert torch.equal(layer(given), y)
    for ours, theirs in zip(found, expected):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-4)


def test_rigl_grows_from_sparse_inputs():
    torch.manual_seed(0)
    layer = fst.SparseLinear(50, 20, sparsity=0.9)
    twin = copy.deepcopy(layer)
    x = torch.randn(9, 50) * (torch.rand(9, 50) < 0.2)
    for module, given in ((layer, x.to_sparse_csr()), (twin, x)):
        algorithm = RigL(module, every=1)
        module(given).square().sum().backward()
        algorithm.step(1)
    assert layer.pattern == twin.pattern


def test_a_sparse_input_has_no_gradient():
    layer, x = fst.SparseLinear(5, 4), torch.eye(5).to_sparse_csr()
    with pytest.raises(ValueError, match="x is sparse and requires a gradient"):
        layer(x.requires_grad_())
    with pytest.raises(ValueError, match=r"x has shape \(5, 5\), expected \(\.\.\., 6\)"):
        fst.SparseLinear(6, 4)(torch.eye(5).to_sparse_csr())


@pytest.mark.parametrize("name", ["values", "bias"])
@pytest.mark.parametrize("make", [lambda: fst.SparseLinear(20, 10), lambda: fst.SparseConv2d(5, 4, (1, 2), padding=1)])
def test_layers_are_pruned_by_torch(make, name):
    layer = make()
    x = torch.randn(3, 20) if isinstance(layer, fst.SparseLinear) else torch.randn(2, 5, 3, 4)
    prune.random_unstructured(layer, name, 0.5)
    y = layer(x)
    torch.testing.assert_close(y, layer.to_dense()(x), atol=1e-5, rtol=1e-5)
    y.sum().backward()
    original, mask = getattr(layer, f"{name}_orig"), getattr(layer, f"{name}_mask")
    assert not original.grad[mask == 0].any()
    if name == "values":
        with pytest.raises(ValueError, match=r"values_orig is masked by torch\.nn\.utils\.prune, expected values"):
            RigL(nn.Sequential(layer))
    prune.remove(layer, name)
    torch.testing.assert_close(layer(x), y)


def test_any_change_of_values_made_in_inference_mode_is_noticed():
    """torch counts no changes of such tensors."""
    with torch.inference_mode():
        layer, x = fst.SparseLinear(100, 50), torch.ones(2, 100)
        before = layer(x)
        layer.values[7] += 100
        assert (layer(x) - before).abs().max() > 99


def test_a_trace_keeps_the_operator():
    layer = fst.SparseLinear(20, 10)
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(layer, torch.ones(2, 20)), file)
    file.seek(0)
    x = torch.randn(5, 20)
    torch.testing.assert_close(torch.jit.load(file)(x), layer(x))


STRANGE = (None, "strange", 1.5, -1, 2**70, [1, None], np.ones(3), torch.ones(2, 3), object(), nn.Linear)
ARGUMENTS = [
    (fst.SparseLinear, {"in_features": 4, "out_features": 3}, ("in_features", "out_features", "bias", "sparsity")),
    (
        fst.SparseConv2d,
        {"in_channels": 4, "out_channels": 2, "kernel_size": 3},
        ("in_channels", "kernel_size", "stride", "padding", "dilation", "groups", "bias", "padding_mode"),
    ),
    (fst.SparseLinear.from_dense, {"linear": nn.Linear(3, 3)}, ("linear",)),
    (
        fst.sparsify,
        {"module": nn.Sequential(), "measure": False},
        ("module", "threshold", "method", "scope", "measure"),
    ),
    (fst.densify, {}, ("module",)),
    (fst.SparseLinear, {"in_features": 4, "out_features": 3}, ("device", "dtype", "pattern")),
    (fst.SparseLinear.from_dense, {"linear": nn.Linear(3, 3)}, ("mask",)),
]


@pytest.mark.parametrize(("function", "good", "names"), ARGUMENTS)
def test_whatever_comes_is_refused_by_name(function, good, names):
    for name in names:
        for value in STRANGE[name in ("device", "dtype", "pattern", "mask", "threshold") :]:
            with pytest.raises((TypeError, ValueError), match=name):
                function(**{**good, name: value})
