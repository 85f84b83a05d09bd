"""Lowering to spatial tiles: the bits of padded planes, what is said of it, and which networks take it."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

import fastsparse as fs
from fastsparse import nn
from fastsparse.engine import choosing, workspace
from fastsparse.engine import program as programs
from fastsparse.engine.lowering import padded, spatial_tiles
from fastsparse.engine.program import Conv, Pool
from fastsparse.engine.schedule import assign_memory
from fastsparse.engine.split import Split
from fastsparse.ops import spatial_tiles as tiles
from fastsparse.ops.heuristics import heuristics_for
from fastsparse.ops.spatial_tiles import shared_partition
from fastsparse.ops.target import target_for

TARGET = target_for(np.dtype("float32"), 1)


def _models() -> dict[str, tuple[nn.Sequential, tuple[int, ...]]]:
    rng = np.random.default_rng(5)
    return {
        "one axis": (
            nn.Sequential(
                nn.SparseConv1d(3, 9, 5, padding=2, sparsity=0.5, rng=rng),
                nn.SparseConv1d(9, 6, 3, stride=2, sparsity=0.5, rng=rng),
                nn.SparseConv1d(6, 4, 1, stride=3, sparsity=0.2, activation="relu", rng=rng),
            ),
            (3, 101),
        ),
        "three axes": (
            nn.Sequential(
                nn.SparseConv3d(2, 6, 3, padding=1, sparsity=0.5, rng=rng),
                nn.SparseConv3d(6, 5, (2, 3, 1), stride=(1, 2, 1), padding=(1, 0, 0), sparsity=0.5, rng=rng),
            ),
            (2, 5, 6, 7),
        ),
        "pools of both kinds behind one another": (
            nn.Sequential(
                nn.SparseConv2d(3, 8, 3, padding=1, sparsity=0.5, rng=rng),
                nn.MaxPool2d(3, 2, padding=1),
                nn.AvgPool2d(3, 1, padding=1),
                nn.SparseConv2d(8, 8, 5, padding=2, groups=8, sparsity=0.3, rng=rng),
                nn.MaxPool2d(2),
                nn.AdaptiveAvgPool2d((3, 2)),
                nn.Flatten(),
                nn.SparseLinear(48, 5, sparsity=0.5, rng=rng),
            ),
            (3, 23, 17),
        ),
        "small images behind large ones": (
            nn.Sequential(
                nn.SparseConv2d(3, 8, 3, stride=2, padding=1, sparsity=0.5, rng=rng),
                nn.SparseConv2d(8, 16, 3, padding=1, sparsity=0.5, rng=rng, activation="relu"),
                nn.Residual(
                    nn.Sequential(
                        nn.SparseConv2d(16, 8, 1, sparsity=0.5, rng=rng, activation="relu"),
                        nn.SparseConv2d(8, 24, 3, stride=2, padding=1, sparsity=0.5, rng=rng),
                    ),
                    shortcut=nn.SparseConv2d(16, 24, 1, stride=2, sparsity=0.5, rng=rng),
                ),
                nn.Residual(nn.SparseConv2d(24, 24, 3, padding=1, sparsity=0.5, rng=rng)),
                nn.SparseConv2d(24, 8, 3, stride=2, padding=(0, 2), sparsity=0.5, rng=rng),
                nn.AvgPool2d(3, 2),
                nn.SparseConv2d(8, 6, 2, sparsity=0.5, rng=rng),
                nn.Flatten(),
                nn.SparseLinear(12, 5, sparsity=0.5, rng=rng),
            ),
            (3, 56, 56),
        ),
        "small images for the user": (
            nn.Sequential(
                nn.SparseConv2d(3, 8, 3, padding=1, sparsity=0.5, rng=rng),
                nn.SparseConv2d(8, 8, 3, stride=2, padding=1, sparsity=0.5, rng=rng),
                nn.SparseConv2d(8, 5, 3, stride=2, padding=1, sparsity=0.5, rng=rng),
            ),
            (3, 28, 28),
        ),
        "images smaller than vectors": (
            nn.Sequential(
                nn.SparseConv2d(4, 8, 3, padding=1, sparsity=0.5, rng=rng),
                nn.SparseConv2d(8, 8, 2, stride=2, sparsity=0.5, rng=rng),
            ),
            (4, 3, 2),
        ),
    }


MODELS = _models()


@pytest.mark.R3
@pytest.mark.parametrize(
    ("batch", "threads", "group_positions"),
    [(3, 1, 7), (3, 2, 7), (1, 1, 7), (1, 2, 7), (1, 4, 1), (4, 1, 7), (16, 1, 7), (16, 2, 7)],
)
@pytest.mark.parametrize("name", MODELS)
def test_spatial_tiles_give_the_bits_of_padded_planes(name, batch, threads, group_positions):
    model, shape = MODELS[name]
    program = fs.compile(model, (batch, *shape), tune=False)._program
    target = target_for(np.dtype("float32"), threads)
    h = replace(target.heuristics, group_positions=group_positions, group_overhang=9.0)
    target = replace(target, threads=threads, heuristics=h)
    rng = np.random.default_rng(1)
    x = -np.abs(rng.standard_normal((batch, *shape))).astype(np.float32)  # zeros of padding would win any maximum
    results = []
    for make in (padded.schedule, spatial_tiles.schedule):
        space = workspace.Workspace(make(program, batch, target))
        for memory in space.memory:
            if make is spatial_tiles.schedule:
                memory.view(np.float32)[:] = np.nan  # spatial tiles ask nothing of memory that they have not written
        y = np.full((batch, *program.shapes[program.outputs[0]]), np.nan, np.float32)
        for _ in range(2):
            space.run(x, y)
        results.append(y)
    np.testing.assert_array_equal(results[0].view(np.int32), results[1].view(np.int32))


@pytest.mark.parametrize(
    ("side", "threads", "counts", "size"),
    [
        (56, 2, (4, 8), (14, 7)),
        (28, 2, (2, 16), (14, 2)),
        (14, 2, (2, 16), (7, 1)),
        (7, 2, (4, 4), (2, 2)),
        (56, 4, (8, 8), (7, 7)),
        (14, 4, (2, 16), (7, 1)),
        (56, 1, (4, 4), (14, 14)),
    ],
)
def test_workers_that_share_an_image_have_groups_of_tiles_of_their_own(side, threads, counts, size):
    target = replace(target_for(np.dtype("float32"), threads), threads=threads, lanes=16)
    found = shared_partition((side, side), target)
    assert (found.counts, found.size, found.groups * 16) == (counts, size, counts[0] * counts[1])


def test_what_runs_on_spatial_tiles_is_said():
    model, shape = MODELS["pools of both kinds behind one another"]
    program = fs.compile(model, (1, *shape), tune=False)._program
    steps = spatial_tiles.schedule(program, 1, TARGET).steps
    convolutions = [s for s in steps if s.node is not None and isinstance(s.node.operator, Conv)]
    assert all("on spatial tiles" in s.kernel for s in convolutions)
    pools = [s.kernel for s in steps if s.node is not None and isinstance(s.node.operator, Pool)]
    assert sum("on spatial tiles" in kernel for kernel in pools) >= 2
    assert ("on spatial tiles" in pools[-1]) == (TARGET.lanes < 8)  # on tiles of more parts its windows are not regular
    assert any(s.kernel == "gather halo" for s in steps)


@pytest.mark.I2
@pytest.mark.parametrize("kernel", [1, 3])
def test_strides_along_axes_of_one_window_cost_nothing(kernel):
    model = nn.Sequential(nn.SparseConv2d(2, 3, kernel, (1, 300_000), 1, sparsity=0.3, rng=0), nn.ReLU()).eval()
    x = np.random.default_rng(1).standard_normal((2, 2, 9, 4)).astype(np.float32)
    program, want = fs.compile(model, x.shape, tune=False)._program, model(x)
    assert want.shape[3] == 1
    tracemalloc.start()
    for choice in choosing.choices(program, 2, 1, True):
        y = np.full(want.shape, np.nan, np.float32)
        workspace.Workspace(choosing.scheduled(program, 2, 1, choice)).run([x], y)
        np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5, err_msg=str(choice))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2**22


@pytest.mark.R7
@pytest.mark.R8
@pytest.mark.parametrize("batch", [4, 8, 16])
@pytest.mark.parametrize("size", [12, 22, 35])
def test_stacks_of_images_that_single_layers_have_read(batch, size):
    """A shortcut from the image itself runs on stacks, the layer beside it on one image after another."""
    shortcut = nn.SparseConv2d(3, 2, 1, stride=2, sparsity=0.3, rng=0)
    body = nn.SparseConv2d(3, 3, 1, sparsity=0.3, rng=1), nn.SparseConv2d(3, 2, 1, stride=2, sparsity=0.3, rng=2)
    model = nn.Sequential(nn.Residual(nn.Sequential(*body), shortcut)).eval()
    x = np.random.default_rng(3).standard_normal((batch, 3, size, size)).astype(np.float32)
    program, want = fs.compile(model, x.shape, tune=False)._program, model(x)
    for workers in (1, 2):
        for choice in choosing.choices(program, batch, workers, True):
            y = np.full(want.shape, np.nan, np.float32)
            workspace.Workspace(choosing.scheduled(program, batch, workers, choice)).run([x], y)
            np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-4, err_msg=str(choice))


@pytest.mark.parametrize(
    ("lanes", "batch", "middle", "last"),
    [
        (16, 16, 4, 8),
        (16, 8, 4, 8),
        (16, 4, 4, 4),
        (16, 2, 1, 2),
        (16, 3, 1, 1),
        (8, 16, 2, 4),
        (8, 2, 2, 2),
        (8, 1, 1, 1),
    ],
)
def test_layers_whose_small_images_hang_over_run_on_stacks(lanes, batch, middle, last):
    """Four images of 14 x 14 fill 16 lanes with tiles of 7 x 7, two fill 8; eight images of 1 x 2 fill 16 lanes."""
    if lanes > TARGET.lanes:
        pytest.skip("this CPU has shorter vectors")
    model, shape = MODELS["small images behind large ones"]
    program = fs.compile(model, (batch, *shape), tune=False)._program
    steps = spatial_tiles.schedule(program, batch, replace(TARGET, lanes=lanes), Split(False, batch, 1)).steps
    runs = Counter(step.node.output for step in steps if step.node and isinstance(step.node.operator, Conv))
    assert [batch // runs[t] for t in sorted(runs)] == [1] * 3 + [middle] * 4 + [last]


def test_channels_beyond_31_bits_stay_on_padded_planes():
    conv = Conv(None, None, None)
    for count, fits in ((2**28, False), (2**27, True)):
        shapes = (1, count), (1, 4)
        program = programs.Program(shapes, (0,), (1,), (programs.Node("c", conv, (0,), 1),), np.dtype(np.float32))
        assert choosing._tiles_can_be_addressed(program) == fits


def test_workers_that_share_an_image_prefer_spatial_tiles():
    rng, at, layers = np.random.default_rng(0), 128, []
    for stride, width in ((1, 64), (1, 64), (2, 128), (1, 128)):
        for inputs, outputs, kernel, step in ((at, width, 1, 1), (width, width, 3, stride), (width, 4 * width, 1, 1)):
            layers.append(
                nn.SparseConv2d(inputs, outputs, kernel, step, kernel // 2, sparsity=0.93, activation="relu", rng=rng)
            )
        at = 4 * width
    program = fs.compile(nn.Sequential(*layers).eval(), (1, 128, 28, 28), tune=False)._program
    target = replace(TARGET, lanes=16, heuristics=heuristics_for(64))
    found = [choosing._by_image(program, 1, replace(target, threads=threads))[0] for threads in (1, 2)]
    assert [choice.layout for choice in found] == ["padded", "spatial tiles"]


def test_groups_of_tiles_of_all_sizes_share_memory():
    """Groups are as far apart in each layout, so a worker writes where it alone has written."""
    rng, target, at, layers = np.random.default_rng(0), replace(TARGET, threads=2), 32, []
    for stride in (1, 1, 2, 1, 1):
        convs = nn.SparseConv2d(at, stride * at, 3, stride, 1, rng=rng), nn.SparseConv2d(stride * at, 64, 1, rng=rng)
        layers, at = [*layers, *convs], 64
    program = fs.compile(nn.Sequential(*layers).eval(), (1, 32, 56, 56), tune=False)._program
    buffers = spatial_tiles.schedule(program, 1, target, Split(False, 1, 1)).buffers
    assert len(buffers) > 10
    assert len({buffer.plane for buffer in buffers}) == 1
    largest = max(buffer.size for buffer in buffers)
    assert assign_memory(buffers, owned=True)[1] < 3.1 * largest


def test_groups_of_tiles_that_gathers_cannot_address_are_one_group(monkeypatch):
    """Halos are eight times as large as these tiles, and a gather reaches from one group to the other."""
    rng, target = np.random.default_rng(0), replace(TARGET, threads=2)
    convs = [nn.SparseConv2d(8, 8, 5, padding=2, sparsity=0.5, rng=rng) for _ in range(2)]
    program = fs.compile(nn.Sequential(*convs).eval(), (1, 8, 14, 14), tune=False)._program
    assert spatial_tiles._TilesLowering(program, 1, Split(False, 1, 1), target)._groups_of(0) == 2
    monkeypatch.setattr(tiles, "SPATIAL_TILES_LIMIT", 26_000)
    assert spatial_tiles._TilesLowering(program, 1, Split(False, 1, 1), target)._groups_of(0) == 1
    assert spatial_tiles.schedule(program, 1, target, Split(False, 1, 1)).steps


def test_large_images_go_in_spatial_tiles_and_tiny_ones_do_not():
    def first(model, shape):
        return choosing.choices(fs.compile(model, (1, *shape), tune=False)._program, 1, 1, False)[0].layout

    rng = np.random.default_rng(0)
    convs = [nn.SparseConv2d(64, 64, 3, padding=1, sparsity=0.9, rng=rng) for _ in range(3)]
    assert first(nn.Sequential(*convs), (64, 56, 56)) == "spatial tiles"
    plain = nn.SparseConv2d(64, 64, 1, sparsity=0.9, rng=rng)
    assert first(nn.Sequential(plain), (64, 56, 56)) == "padded", "without windows, going in and out does not pay"
    tiny = nn.Sequential(nn.SparseConv2d(64, 64, 3, padding=1, sparsity=0.9, rng=rng))
    assert first(tiny, (64, 2, 2)) == "padded"
