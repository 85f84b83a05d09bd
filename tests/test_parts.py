"""Images in parts: the tables hold what a padded image, cut with NumPy, has at the same places."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import fastsparse as fs
from fastsparse import launch, launch_layout, nn
from fastsparse.engine import choosing, flat, parts, workspace
from fastsparse.engine import program as programs
from fastsparse.engine.program import Conv, Pool
from fastsparse.plan import parts as plans
from fastsparse.plan import pooling
from fastsparse.plan.lanes import lanes_planes
from fastsparse.plan.linear import Machine

MACHINE = launch.machine(np.dtype("float32"), 1)
spatials = st.lists(st.integers(1, 13), min_size=1, max_size=3).map(tuple)


def cut(image: np.ndarray, r: plans.Reading, other: float) -> np.ndarray:
    """(parts, *padded size) of an image (*spatial), by padding and slicing."""
    ends = [c * n for c, n in zip(r.partition.counts, r.partition.size)]
    pads = [(b, e - n + a) for n, e, (b, a) in zip(image.shape, ends, r.padding)]
    whole = np.pad(image, pads, constant_values=other)
    found = []
    for corner in itertools.product(*map(range, r.partition.counts)):
        first = [c * n for c, n in zip(corner, r.partition.size)]
        found.append(whole[tuple(slice(f, f + n + b + a) for f, n, (b, a) in zip(first, r.partition.size, r.padding))])
    return np.stack(found)


def run(gather: plans.Gather, x: np.ndarray, y: np.ndarray, machine: Machine) -> None:
    """x and y (images, channels, bytes of a channel in numbers)."""
    strides = [(a.strides[0], a.strides[1]) for a in (x, y)]
    call = launch_layout.gather_call(
        gather, launch.address(x), strides[0], launch.address(y), strides[1], x.shape[1], len(x), machine
    )
    launch.run_call(call, machine.workers)


@pytest.mark.parametrize("count", [1, 2, 4, 8, 16])
@given(spatial=spatials)
def test_a_partition_covers_the_image_with_as_few_positions_as_any(spatial, count):
    found = plans.partition(spatial, count)
    assert math.prod(found.counts) == count
    assert all(c * n >= whole for c, n, whole in zip(found.counts, found.size, spatial))
    for counts in itertools.product(range(1, count + 1), repeat=len(spatial)):
        if math.prod(counts) == count:
            assert math.prod(found.size) <= math.prod(-(-n // c) for n, c in zip(spatial, counts))


@pytest.mark.parametrize(
    ("spatial", "count", "counts", "size"),
    [
        ((56, 56), 8, (4, 2), (14, 28)),
        ((14, 14), 8, (4, 2), (4, 7)),
        ((7, 7), 8, (8, 1), (1, 7)),
        ((56, 56), 16, (4, 4), (14, 14)),
        ((100,), 8, (8,), (13,)),
    ],
)
def test_partitions_of_usual_images(spatial, count, counts, size):
    assert plans.partition(spatial, count) == plans.Partition(counts, size)


@pytest.mark.parametrize("workers", [1, 2])
@given(
    spatial=spatials,
    deep=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=3, max_size=3),
    other=st.sampled_from([0.0, -np.inf]),
    seed=st.integers(0, 99),
)
def test_gathers_give_what_padding_and_slicing_give(spatial, deep, other, seed, workers):
    machine = launch.machine(np.dtype("float32"), workers)
    r = plans.Reading(plans.partition(spatial, machine.lanes), tuple(deep[: len(spatial)]), other)
    images, channels = 2, 3
    planes = lanes_planes(channels, r.partition.size, r.padding, machine)
    x = np.random.default_rng(seed).standard_normal((images, channels, *spatial)).astype(np.float32)
    flat_x = x.reshape(images, channels, -1)
    count = math.prod(n + b + a for n, (b, a) in zip(r.partition.size, r.padding))
    y = np.full((images, channels, planes.channel_stride // 4), np.nan, np.float32)
    expected = np.stack([[cut(channel, r, other).reshape(machine.lanes, -1).T for channel in image] for image in x])

    plain = np.arange(math.prod(spatial)) * 4
    run(plans.gather_parts(plain, spatial, r, machine), flat_x, y, machine)
    np.testing.assert_array_equal(y[..., : count * machine.lanes].reshape(expected.shape), expected)
    assert np.isnan(y[..., count * machine.lanes :]).all()

    # Borders alone, from the parts: what is not the image's own is spoilt first.
    at = plans.places(spatial, r.partition, planes, 4)
    spoilt = np.full_like(y, np.nan)
    np.put_along_axis(spoilt, np.broadcast_to(at // 4, flat_x.shape), flat_x, axis=2)
    run(plans.exchange(at, spatial, r, machine), spoilt, spoilt, machine)
    np.testing.assert_array_equal(spoilt, y)

    back = np.full((images, channels, flat_x.shape[2] + 9), np.nan, np.float32)
    run(plans.gather_plain(at, machine), y, back, machine)
    np.testing.assert_array_equal(back[..., : flat_x.shape[2]], flat_x)
    assert np.isnan(back[..., flat_x.shape[2] :]).all()


@given(
    size=st.integers(1, 12), kernel=st.integers(1, 5), stride=st.integers(1, 4),
    before=st.integers(0, 4), after=st.integers(0, 4),
)  # fmt: skip
def test_regular_windows_are_recognised(size, kernel, stride, before, after):
    assume(max(before, after) < kernel <= size + before + after)
    table = pooling._axis(size, kernel, stride, (before, after), True)
    assume((table[:, 1] - table[:, 0]).max() == kernel)  # some window is whole, or nobody could tell its size
    found = plans.windows_of(table, size)
    assert found is not None  # perhaps others than were asked for, but of the same windows
    k, s, b = found
    corner = np.arange(len(table)) * s - b
    np.testing.assert_array_equal(np.clip(corner, 0, size), table[:, 0])
    np.testing.assert_array_equal(np.clip(corner + k, 0, size), table[:, 1])


@given(
    n=st.integers(1, 40), kernel=st.integers(1, 4), stride=st.integers(1, 4), dilation=st.integers(1, 3),
    before=st.integers(0, 2), after=st.integers(0, 3), lanes=st.sampled_from([4, 8, 16]),
)  # fmt: skip
def test_a_reading_knows_whether_windows_leave_the_image(n, kernel, stride, dilation, before, after, lanes):
    outputs = (n + before + after - dilation * (kernel - 1) - 1) // stride + 1
    assume(outputs > 0)
    y = plans.partition((outputs,), lanes)
    r = plans.reading(y, (kernel,), (stride,), (dilation,), (before,), (n,), (outputs,), 7.0)
    at = np.add.outer(np.arange(outputs) * stride - before, np.arange(kernel) * dilation)
    assert (r.other == 7.0) == bool(((at < 0) | (at >= n)).any())
    deeper = plans.Reading(r.partition, tuple((b + 1, a) for b, a in r.padding), 7.0)
    assert deeper.serves(r)
    assert not r.serves(deeper)
    assert plans.Reading(r.partition, r.padding, -np.inf).serves(r) == (r.other is None)
    assert deeper.exchanged((n,))
    bare = plans.Reading(y, ((0, 0),), r.other)
    assert bare.exchanged((outputs,)) == (r.other is not None and bool(outputs % lanes))


def test_irregular_windows_are_none():
    assert plans.windows_of(pooling.adaptive_windows((10, 10), (4, 4)).rows, 10) is None
    assert plans.windows_of(np.empty((0, 3), np.int64), 7) is None


# ---------------------------------------------------------------- networks


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
        "images smaller than vectors": (
            nn.Sequential(
                nn.SparseConv2d(4, 8, 3, padding=1, sparsity=0.5, rng=rng),
                nn.SparseConv2d(8, 8, 2, stride=2, sparsity=0.5, rng=rng),
            ),
            (4, 3, 2),
        ),
    }


def _behind(reader: nn.Module, spatial: tuple[int, int]) -> tuple[nn.Sequential, tuple[int, ...]]:
    """A layer whose windows need no border, and yet look behind the image."""
    first = nn.SparseConv2d(2, 5, 3, padding=1, sparsity=0.2, activation="sigmoid", rng=np.random.default_rng(6))
    return nn.Sequential(first, reader), (2, *spatial)


BEHIND = ((0, 1), (0, 1))
MODELS = {
    **_models(),
    "1x1, padding behind": _behind(nn.SparseConv2d(5, 4, 1, padding=BEHIND, sparsity=0.2, rng=7), (19, 37)),
    "2x2 by twos, padding behind": _behind(
        nn.SparseConv2d(5, 4, 2, stride=2, padding=BEHIND, sparsity=0.2, rng=7), (23, 23)
    ),
    "largest of 2x2, padding behind": _behind(nn.MaxPool2d(2, padding=BEHIND), (23, 23)),
    "mean of 2x2, padding behind": _behind(nn.AvgPool2d(2, padding=BEHIND), (23, 23)),
}


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_parts_give_the_bits_of_flat_planes(name, batch, workers):
    model, shape = MODELS[name]
    program = fs.compile(model, (batch, *shape), tune=False)._program
    machine = launch.machine(np.dtype("float32"), workers)
    rng = np.random.default_rng(1)
    x = -np.abs(rng.standard_normal((batch, *shape))).astype(np.float32)  # zeros of a border would win any maximum
    results = []
    for make in (flat.flat_schedule, parts.parts_schedule):
        space = workspace.Workspace(make(program, batch, machine))
        for memory in space.memory:
            if make is parts.parts_schedule:
                memory.view(np.float32)[:] = np.nan  # parts ask nothing of memory that they have not written
        y = np.full((batch, *program.shapes[program.outputs[0]]), np.nan, np.float32)
        for _ in range(2):
            space.run(x, y)
        results.append(y)
    np.testing.assert_array_equal(results[0].view(np.int32), results[1].view(np.int32))


def test_what_runs_on_parts_is_said():
    model, shape = MODELS["pools of both kinds behind one another"]
    program = fs.compile(model, (1, *shape), tune=False)._program
    steps = parts.parts_schedule(program, 1, MACHINE).steps
    convolutions = [s for s in steps if s.node is not None and isinstance(s.node.operator, Conv)]
    assert all("in parts" in s.kernel for s in convolutions)
    pools = [s.kernel for s in steps if s.node is not None and isinstance(s.node.operator, Pool)]
    assert sum("in parts" in kernel for kernel in pools) >= 2
    assert "in parts" not in pools[-1]  # its windows are not regular
    assert any(s.kernel == "gather borders" for s in steps)


def test_channels_beyond_31_bits_stay_on_flat_planes():
    r = plans.Reading(plans.partition((3,), MACHINE.lanes), ((0, 0),), 0.0)
    with pytest.raises(ValueError, match="spans 2147483648 bytes"):
        plans.gather_parts(np.array([0, 1, 2**31]), (3,), r, MACHINE)
    conv = Conv(None, None, None)
    for count, fits in ((2**28, False), (2**27, True)):
        shapes = (1, count), (1, 4)
        program = programs.Program(shapes, (0,), (1,), (programs.Node("c", conv, (0,), 1),), np.dtype(np.float32))
        assert choosing._parts_can_be_addressed(program) == fits


def test_large_images_go_in_parts_and_tiny_ones_do_not():
    def first(model, shape):
        return choosing.choices(fs.compile(model, (1, *shape), tune=False)._program, 1, 1, False)[0].layout

    rng = np.random.default_rng(0)
    large = nn.Sequential(nn.SparseConv2d(64, 64, 3, padding=1, sparsity=0.9, rng=rng))
    assert first(large, (64, 56, 56)) == "parts"
    tiny = nn.Sequential(nn.SparseConv2d(64, 64, 3, padding=1, sparsity=0.9, rng=rng))
    assert first(tiny, (64, 2, 2)) == "flat"
