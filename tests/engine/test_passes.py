"""Passes: what is folded and fused, what is not, and that a program computes the same before and after."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import fastsparse as fs
from fastsparse import nn
from fastsparse.engine.from_model import program_of
from fastsparse.engine.passes import (
    activations_as_products,
    check_optimised,
    complete_dense_layers,
    fold_scales,
    fold_scales_forward,
    fuse_activations,
    move_activations_before_max,
    optimised,
    scales_as_products,
)
from fastsparse.engine.program import (
    Activate,
    Conv,
    Gather,
    Interpolate,
    Linear,
    Pool,
    Program,
    Reshape,
    RowWise,
    Scale,
)
from fastsparse.engine.serial import to_plain
from tests.engine.networks import NETWORKS, network
from tests.engine.test_graphs import PROGRAMS, Graph


def kinds(program: Program) -> list[str]:
    return [type(node.operator).__name__ for node in program.nodes]


def program(*layers: nn.Module, shape: tuple[int, ...] = (4, 6, 6)) -> Program:
    return program_of(nn.Sequential(*layers), shape)


def conv(**rest: object) -> nn.SparseConv2d:
    return nn.SparseConv2d(4, 4, 3, padding=1, sparsity=0.5, rng=0, **rest)


def test_batch_norm_goes_into_values_and_bias():
    norm = nn.BatchNorm2d(4)
    norm.running_mean, norm.running_var = np.arange(4, dtype=np.float32), np.arange(1, 5, dtype=np.float32)
    norm.weight.value, norm.bias.value = np.float32([1, -2, 0.5, 0]), np.float32([3, 1, 0, -1])
    layer = conv()
    layer.bias.value = np.float32([0.1, 0.2, 0.3, 0.4])
    (node,) = fold_scales(program(layer, norm)).nodes
    scale = norm.weight.value.astype(float) / np.sqrt(norm.running_var.astype(float) + norm.eps)
    rows = layer.weight.pattern.rows()
    # One rounding from float64.
    np.testing.assert_array_equal(node.operator.weight.data, (layer.values.value * scale[rows]).astype(np.float32))
    bias = layer.bias.value.astype(float) * scale + norm.bias.value - norm.running_mean * scale
    np.testing.assert_array_equal(node.operator.bias, bias.astype(np.float32))
    assert node.name == "0 SparseConv2d + 1 BatchNorm2d"


def test_batch_norm_behind_an_activation_stays():
    folded = fold_scales(program(conv(activation="relu"), nn.BatchNorm2d(4)))
    assert kinds(folded) == ["Conv", "Scale"]
    folded = fold_scales(fuse_activations(program(conv(), nn.ReLU(), nn.BatchNorm2d(4))))
    assert kinds(folded) == ["Conv", "Scale"]


def test_successive_batch_norms_all_fold():
    assert kinds(fold_scales(program(conv(), nn.BatchNorm2d(4), nn.BatchNorm2d(4)))) == ["Conv"]


@pytest.mark.parametrize("channels", [1, 2])
def test_scales_of_other_axes_than_the_product_s_stay(channels, rng):
    """One channel of several features: a batch norm scales the channel, a linear layer's rows are features."""
    norm = nn.BatchNorm1d(channels)
    norm.running_mean, norm.running_var = rng.random(channels), rng.random(channels) + 0.5
    x = rng.standard_normal((3, channels, 2)).astype("f4")
    square, wide = nn.SparseLinear(2, 2, sparsity=0.0, rng=0), nn.SparseLinear(2, 3, sparsity=0.0, rng=0)
    for layers in ([square, norm], [wide, norm], [norm, square]):
        model = nn.Sequential(*layers).eval()
        np.testing.assert_allclose(fs.compile(model, x.shape, tune=False)(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("reader", "shifted", "kept"),
    [
        ({"kernel_size": 1}, True, False), ({"kernel_size": 3}, True, False),
        ({"kernel_size": 3, "groups": 2}, True, False),
        ({"kernel_size": 3, "padding": 1}, True, True), ({"kernel_size": 3, "padding": 1}, False, False),
    ],
)  # fmt: skip
def test_scales_behind_activations_go_into_what_reads_them(reader, shifted, kept, rng):
    layers = [
        conv(activation="relu"),
        nn.BatchNorm2d(4),
        nn.BatchNorm2d(4),
        nn.SparseConv2d(4, 6, sparsity=0.3, **reader),
    ]
    before = program(*layers)
    scales = [node.operator for node in before.nodes if isinstance(node.operator, Scale)]
    for scale in scales:
        scale.scale[:] = rng.uniform(0.5, 2, 4)
        scale.shift[:] = rng.standard_normal(4) * shifted
    after = fold_scales_forward(before)
    assert kinds(after) == ["Conv", *["Scale"] * kept, "Conv"]
    first, second = scales
    scale, shift = second.scale * first.scale, second.scale * first.shift + second.shift
    last, product = before.nodes[-1].operator, after.nodes[-1].operator
    if kept:
        found = after.nodes[1].operator
        np.testing.assert_array_equal([found.scale, found.shift], [scale, shift])
        assert product is last
        return
    window = last.weight.toarray().astype(float).reshape(6, 4 // last.geometry.groups, -1)
    channels = np.arange(4).reshape(last.geometry.groups, -1).repeat(6 // last.geometry.groups, 0)
    np.testing.assert_array_equal(
        product.weight.toarray(), (window * scale[channels][..., None]).astype(np.float32).reshape(6, -1)
    )
    wanted = (window * shift[channels][..., None]).sum((1, 2)) + (0 if last.bias is None else last.bias)
    np.testing.assert_allclose(0 if product.bias is None else product.bias, wanted, rtol=1e-6, atol=1e-7)


def test_scales_that_others_read_stay():
    branch = nn.Sequential(nn.BatchNorm2d(4), nn.Residual(nn.SparseConv2d(4, 4, 1, sparsity=0.5, rng=0)))
    assert kinds(fold_scales_forward(program(nn.ReLU(), *branch))) == ["Activate", "Scale", "Conv", "Add"]


def test_the_first_activation_fuses_and_the_second_does_not():
    fused = fuse_activations(program(conv(), nn.SiLU(), nn.Tanh()))
    assert kinds(fused) == ["Conv", "Activate"]
    assert fused.nodes[0].operator.activation == "silu"
    assert fused.nodes[1].operator == Activate("tanh")


def test_monotone_activations_move_before_a_maximum_only():
    moved = move_activations_before_max(program(conv(), nn.MaxPool2d(2), nn.ReLU6(), nn.ReLU()))
    assert kinds(moved) == ["Conv", "Activate", "Activate", "Pool"]
    assert [moved.shapes[node.output] for node in moved.nodes] == [(4, 6, 6)] * 3 + [(4, 3, 3)]
    for layers in ((nn.AvgPool2d(2), nn.ReLU()), (nn.MaxPool2d(2), nn.SiLU())):
        assert kinds(move_activations_before_max(program(conv(), *layers))) == ["Conv", "Pool", "Activate"]


def test_what_is_left_becomes_a_diagonal():
    layers = nn.BatchNorm2d(4), nn.MaxPool2d(2), nn.Tanh(), nn.Flatten(), nn.GELU()
    left = activations_as_products(scales_as_products(program(*layers)))
    assert kinds(left) == ["Conv", "Pool", "Conv", "Reshape", "Linear"]
    for node in left.nodes:
        if isinstance(node.operator, Conv | Linear):
            weight = node.operator.weight
            assert weight.nnz == weight.shape[0] == weight.shape[1]


def test_a_scale_takes_an_activation_and_a_sum_in():
    body = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(1), nn.BatchNorm2d(4))
    nodes = optimised(program(nn.MaxPool2d(2), nn.Residual(body, activation="tanh"))).nodes
    made = [(node.operator.activation, node.residual is not None) for node in nodes if isinstance(node.operator, Conv)]
    assert made == [("relu", False), ("tanh", True)]


@pytest.mark.parametrize("name", NETWORKS)
def test_programs_end_with_what_can_be_run(name):
    model, shape = network(name)
    program = optimised(program_of(model, shape))
    for node in program.nodes:
        assert isinstance(node.operator, Conv | Linear | Interpolate | Pool | Reshape | RowWise | Gather)
        assert not isinstance(node.operator, Scale)
    written = set(program.inputs)
    for node in program.nodes:
        assert set(node.inputs) <= written
        assert node.output not in written
        written.add(node.output)
    assert set(program.outputs) <= written


def test_passes_do_not_change_their_argument():
    model, shape = network("convolutions")
    before = program_of(model, shape)
    arrays: list[dict[str, np.ndarray]] = [{}, {}]
    plain = [to_plain(before, arrays[0])]
    arrays[0] = {name: array.copy() for name, array in arrays[0].items()}
    optimised(before)
    plain.append(to_plain(before, arrays[1]))
    assert plain[0] == plain[1]
    for name, array in arrays[0].items():
        np.testing.assert_array_equal(array, arrays[1][name])


def test_zeros_of_dense_layers_are_written_out_where_most_weights_are_there():
    weight = np.ones((8, 6), np.float32)
    weight[0, :3] = 0
    few = np.where(np.arange(48).reshape(8, 6) % 3, 0, 1).astype(np.float32)
    for values, full in ((weight, True), (few, False)):
        layer = nn.Linear(6, 8, rng=0)
        layer.weight.value = values
        (node,) = complete_dense_layers(program(layer, shape=(6,))).nodes
        assert (node.operator.weight.nnz == 48) == full
        np.testing.assert_array_equal(node.operator.weight.toarray(), values)
    sparse = nn.SparseLinear.from_dense(weight)
    (node,) = complete_dense_layers(program(sparse, shape=(6,))).nodes
    assert node.operator.weight.nnz == 45


@pytest.mark.parametrize("name", [*NETWORKS, *PROGRAMS])
def test_what_passes_give_has_the_form_that_schedules_take(name):
    if name in PROGRAMS:
        check_optimised(optimised(PROGRAMS[name]))
    else:
        model, shape = network(name)
        check_optimised(optimised(program_of(model, shape)))


def test_what_passes_would_rewrite_is_refused():
    g = Graph((3, 4, 4))
    with pytest.raises(ValueError, match="node 'n1' is a Add, expected a part of a product"):
        check_optimised(g.program(g.sum(g.conv(0, 3), 0)))
    g = Graph((3, 4, 4))
    flat = g.flatten(0)
    last = g.linear(flat, 48)
    nodes = [*g.nodes[:-1], replace(g.nodes[-1], inputs=(flat, flat))]
    with pytest.raises(ValueError, match="node 'n1' adds a tensor that has another shape in memory"):
        check_optimised(replace(g.program(last), nodes=tuple(nodes)))


def test_a_product_of_joined_images_copies_nothing():
    block = nn.Concat(None, nn.SparseConv2d(4, 3, 1, sparsity=0.5, rng=0))
    read = nn.SparseConv2d(7, 5, 3, padding=1, sparsity=0.5, activation="relu", rng=1)
    found = optimised(program(block, read))
    assert [node.operator.weight.shape for node in found.nodes] == [(3, 4), (5, 36), (5, 27)]
    assert [node.operator.activation for node in found.nodes] == [None, None, "relu"]
    np.testing.assert_array_equal(
        np.hstack([node.operator.weight.toarray() for node in found.nodes[1:]]), read.weight.toarray()
    )


def test_products_go_in_front_of_interpolation_where_that_costs_less():
    def layers(channels, side=1, activation="relu", scale=2):
        conv = nn.SparseConv2d(4, channels, side, padding=side // 2, sparsity=0, activation=activation, rng=0)
        return nn.Upsample(scale, "bilinear"), conv

    found = optimised(program(*layers(2), nn.BatchNorm2d(2)))
    assert kinds(found) == ["Conv", "Interpolate", "Conv"]  # the norm is behind the activation
    assert found.shapes[found.nodes[0].output] == (2, 6, 6)
    assert [node.operator.activation for node in found.nodes] == [None, "relu", None]
    found = optimised(program(*layers(2, activation="gelu")))
    assert kinds(found) == ["Conv", "Interpolate", "Conv"]  # the kernel has no such epilogue
    assert [node.operator.activation for node in found.nodes] == [None, None, "gelu"]
    for stays in (layers(8), layers(2, side=3), layers(4, scale=1)):
        assert kinds(optimised(program(*stays))) == ["Interpolate", "Conv"]
    read_twice = nn.Residual(nn.Sequential(layers(4)[1]))
    assert kinds(optimised(program(layers(4)[0], read_twice)))[0] == "Interpolate"


def test_norms_and_activations_go_in_front_of_gathers_into_the_product():
    grown = nn.SparseConvTranspose2d(4, 4, 3, 2, sparsity=0.5, rng=0)
    found = optimised(program(grown, nn.BatchNorm2d(4), nn.ReLU(), nn.Upsample(2), nn.Tanh()))
    assert kinds(found) == ["Conv", "Conv", "Gather", "Gather"]
    assert found.nodes[0].operator.activation == "relu"
    assert kinds(optimised(program(nn.Upsample(2), nn.LayerNorm(12)))) == ["Gather", "LayerNorm"]
