"""Random networks: engines in all layouts against exact sums, ONNX engines against onnxruntime; and their poison."""

from __future__ import annotations

import json

import numpy as np
import pytest

import fastsparse as fs
from fastsparse import nn
from fastsparse.engine.lowering import batch_blocked, spatial_tiles
from fastsparse.engine.schedule import Buffer, Schedule, Step, Zeros
from fastsparse.engine.split import Split
from fastsparse.engine.workspace import Workspace
from fastsparse.ops.heuristics import heuristics_for
from fastsparse.ops.spatial_tiles import Reading
from fastsparse.ops.target import target_for
from fastsparse_kernels import compiler
from tests.engine.poison import live_buffers, poisoned

bench = pytest.importorskip("bench.fuzz_networks")
uses = pytest.importorskip("bench.engine_uses")

SEED = 7
BLOCK = 20


@pytest.mark.R1
@pytest.mark.R3
@pytest.mark.R7
@pytest.mark.R8
@pytest.mark.parametrize("first", range(0, 120, BLOCK))
def test_engines_of_random_layers_are_right_in_every_layout(first):
    """Contracts R1, R3, R7 and R8; a longer run is a command, `python -m bench.fuzz_networks`."""
    for number in range(first, first + BLOCK):
        case = bench.new_case("layers", SEED, number)
        wrong = bench.failure(case)
        assert not wrong, f"{wrong}\npython -m bench.fuzz_networks --replay '{json.dumps(case)}'"


@pytest.mark.R7
@pytest.mark.R8
@pytest.mark.parametrize("first", range(0, 200, 2 * BLOCK))
def test_engines_of_random_onnx_models_are_right(first):
    pytest.importorskip("onnx")
    for number in range(first, first + 2 * BLOCK):
        case = bench.new_case("onnx", SEED, number)
        wrong = bench.failure(case)
        assert not wrong, f"{wrong}\npython -m bench.fuzz_networks --replay '{json.dumps(case)}'"


@pytest.mark.R7
@pytest.mark.parametrize("number", range(3))
def test_engines_of_large_images_in_batches_are_right(number):
    """Images of more than 256 KB, and layers of one channel in a row."""
    case = bench.new_case("layers", SEED, number) | {"large": True}
    wrong = bench.failure(case)
    assert not wrong, f"{wrong}\npython -m bench.fuzz_networks --replay '{json.dumps(case)}'"


def test_names_that_the_compiler_would_give_are_the_models_own_first(tmp_path):
    onnx = pytest.importorskip("onnx")
    from bench.random_graphs import with_odd_names

    made = {"sparsity": 0.2, "rng": 0}
    parts = [(nn.SparseConv2d(2, 5, 3, padding=1, **made), nn.BatchNorm2d(5))]
    parts += [(nn.SparseConv2d(5, 5, 3, padding=1, **made), nn.BatchNorm2d(5)) for _ in range(2)]
    fs.to_onnx(nn.Sequential(*(layer for part in parts for layer in part)), tmp_path / "model.onnx")
    plain = onnx.load(tmp_path / "model.onnx")
    odd = with_odd_names(plain)
    onnx.checker.check_model(onnx.shape_inference.infer_shapes(odd))
    assert len({node.name for node in odd.graph.node}) < len(odd.graph.node)
    x = np.random.default_rng(0).standard_normal((1, 2, 9, 7)).astype(np.float32)
    np.testing.assert_array_equal(fs.compile(odd, x.shape, tune=False)(x), fs.compile(plain, x.shape, tune=False)(x))


# ---------------------------------------------------------------- what finds faults


HEIGHT = {4: 10, 8: 12, 16: 23}[compiler.lanes(32)]  # the pool reads past the image, in tiles as they were written
BEHIND = bench.Network(
    nn.Sequential(
        nn.SparseConv2d(2, 5, 3, padding=1, sparsity=0.2, rng=0), nn.MaxPool2d(2, 2, ((0, HEIGHT % 2), (0, 1)))
    ).eval(), ((2, HEIGHT, 23),),
)  # fmt: skip


@pytest.mark.R7
def test_what_nobody_has_written_is_found(monkeypatch):
    bench.check_layers(BEHIND, np.random.default_rng(0))
    monkeypatch.setattr(Reading, "exchanged", lambda self, spatial: any(map(any, self.padding)))
    with pytest.raises(AssertionError, match="wrong"):
        bench.check_layers(BEHIND, np.random.default_rng(0))


@pytest.mark.R7
def test_a_halo_exchange_goes_on_with_the_images_of_a_stack():
    """Stacks whose single images get a halo: their buffer begins anew with each stack, not with each exchange."""
    made = {"sparsity": 0.2, "dtype": "float64", "rng": 0}
    body = nn.SparseConv2d(4, 4, (1, 3), padding=((0, 0), (1, 1)), **made)
    last = nn.SparseConv2d(4, 1, 1, padding=((0, 1), (1, 1)), **made)
    model = nn.Sequential(nn.SparseConv2d(4, 4, 1, **made), nn.Residual(body), last).eval()
    program = fs.compile(model, (16, 4, 8, 12), tune=False)._program
    schedule = spatial_tiles.schedule(program, 16, target_for(np.dtype("float64"), 1), Split(False, 16, 1))
    x, y = np.ones((16, 4, 8, 12)), np.empty((16, 1, 9, 14))
    _ran_poisoned(schedule, x, y)
    np.testing.assert_allclose(y, model(x), rtol=1e-9, atol=1e-9)


class _Unsteady:
    """An engine whose results depend on how often it was called."""

    def __init__(self, engine):
        self.engine, self.calls, self._program = engine, 0, engine._program

    def __call__(self, x):
        self.calls += 1
        y = self.engine(x)
        return y + self.calls % 3 * np.float32(0.01)


@pytest.mark.parametrize("use", uses.USES, ids=lambda use: use.__name__)
def test_uses_of_an_engine_find_what_they_are_for(use):
    model = nn.Sequential(nn.SparseLinear(6, 5, sparsity=0.4, activation="relu", rng=0), nn.Linear(5, 3, rng=1)).eval()
    x = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    engine = fs.compile(model, x.shape, tune=False)
    use(model, engine, x, np.random.default_rng(1))
    with pytest.raises(AssertionError):
        use(model, _Unsteady(engine), x, np.random.default_rng(1))


def test_a_network_that_fails_is_made_smaller():
    def fails(case):
        layers = bench.random_network(case).model
        return "wrong" if any(isinstance(layer, nn.MaxPool2d) for layer in layers) else ""

    case = next(case for number in range(99) if fails(case := bench.new_case("layers", SEED, number)))
    small = bench.random_network(bench.shrunk(case, fails))
    assert repr(small.model) == repr(nn.Sequential(nn.MaxPool2d(1)))
    assert (small.shapes, small.batch) == (((1, 1, 1),), 1)
    assert repr(bench.random_network(case).model) != repr(small.model)


def _ran_poisoned(schedule, x, y):
    with poisoned():
        Workspace(schedule).run(x, y)


@pytest.mark.R7
def test_padded_planes_need_their_zeros_and_keep_them(monkeypatch):
    conv = nn.SparseConv2d(2, 3, 3, padding=1, sparsity=0.2, rng=0)
    model = nn.Sequential(nn.SparseConv2d(2, 2, 1, sparsity=0, rng=1), conv)
    program = fs.compile(model, (5, 2, 6, 7), tune=False)._program
    schedule = batch_blocked.schedule(program, 5, target_for(np.dtype("float32"), 1))
    x = np.random.default_rng(0).standard_normal((5, 2, 6, 7)).astype(np.float32)
    y = np.empty((5, 3, 6, 7), np.float32)
    _ran_poisoned(schedule, x, y)
    np.testing.assert_allclose(y, model(x), rtol=1e-5, atol=1e-6)
    monkeypatch.setattr(Workspace, "run_step", _spoiling(Workspace.run_step))
    with pytest.raises(AssertionError, match="which must stay zero"):
        _ran_poisoned(schedule, x, y)
    monkeypatch.undo()
    for buffer in schedule.buffers:
        object.__setattr__(buffer, "zeros", None)
    _ran_poisoned(schedule, x, y)
    assert np.isnan(y).any()


def _spoiling(run_step):
    def spoilt(space, index, task=0):
        run_step(space, index, task)
        buffer = next(i for i, b in enumerate(space.schedule.buffers) if b.zeros is not None)
        space.memory[0][space.offsets[buffer]] = 1  # the corner

    return spoilt


@pytest.mark.R7
def test_zeros_are_all_of_a_plane_but_its_image():
    zeros = Zeros(channel_stride=40, image_stride=100, spatial=(2, 1), strides=(12, 4), corner=8, position=4)
    mask = zeros.mask(210)
    inside = [
        image + channel + at for image in (0, 100) for channel in (0, 40) for at in (*range(8, 12), *range(20, 24))
    ]
    planes = [*range(80), *range(100, 180)]
    np.testing.assert_array_equal(np.flatnonzero(mask), np.setdiff1d(planes, inside))


def _step(sources, target):
    return Step("s", "", None, tuple(sources), target, lambda *_: None)


@pytest.mark.R7
def test_buffers_live_from_their_writer_to_their_last_reader():
    steps = [
        _step([(-1, 0)], (0, 0)), _step([(0, 0)], (1, 0)), _step([(1, 0)], (1, 0)), _step([(1, 0)], (2, 0)),
        _step([(-1, 0)], (0, 0)), _step([(0, 0)], (2, 64)), _step([(2, 0)], (-2, 0)),
    ]  # fmt: skip
    schedule = Schedule(steps, [Buffer(64, 0, 6)] * 3, 1, 1, True, heuristics_for(64))
    assert live_buffers(schedule) == [set(), {0}, {1}, {1}, {2}, {0, 2}, {2}]


@pytest.mark.R7
def test_a_user_of_one_pixel_gets_numbers_of_the_image_alone():
    """Parts of images smaller than a vector hang over their end in most lanes."""
    model = nn.Sequential(nn.SparseConv2d(1, 1, 1, padding=((0, 1), (0, 1)), sparsity=0, rng=0))
    program = fs.compile(model, (1, 1, 1, 1), tune=False)._program
    x, y = np.ones((1, 1, 1, 1), np.float32), np.empty((1, 1, 2, 2), np.float32)
    _ran_poisoned(spatial_tiles.schedule(program, 1, target_for(np.dtype("float32"), 1)), x, y)
    np.testing.assert_array_equal(y, model(x))
