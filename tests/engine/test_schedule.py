"""Cutting batches and sharing memory: tables of decisions, and what must hold for any of them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastsparse as fs
from fastsparse.engine import split
from fastsparse.engine.lowering import batch_blocked, padded, spatial_tiles, weights
from fastsparse.engine.schedule import Buffer, assign_memory
from fastsparse.engine.split import Split, Work
from fastsparse.ops import tiles
from fastsparse.ops.sparse_operator import build_operator, channel_blocks
from fastsparse.ops.spmm import SpmmPlan
from fastsparse.ops.target import target_for
from tests.checking import TARGETS, target
from tests.engine.networks import NETWORKS, network

# The demo's network, and one of linear layers only: flops and bytes of one group of 16 samples.
IMAGES = Work(14.4e6, 0.54e6, 942_208, 41_088, 8)
FEATURES = Work(0, 27e6, 0, 262_144, 8)


@pytest.mark.parametrize(
    ("work", "groups", "threads", "expected"),
    [
        (IMAGES, 1, 1, Split(True, 1, 1)),
        (IMAGES, 16, 1, Split(True, 16, 1)),
        (IMAGES, 16, 2, Split(True, 4, 1)),  # two tasks for each worker
        (IMAGES, 1, 2, Split(True, 1, 1)),  # one group of little work for each step: one worker runs it
        (IMAGES._replace(early_flops=60e6), 1, 2, Split(False, 1, 1)),  # of more: workers share its steps
        (FEATURES, 4, 1, Split(True, 4, 4)),
        (Work(60e9, 1e6, 10**8, 10**5, 20), 4, 2, Split(False, 1, 1)),  # long tasks would not notice Ctrl-C
        (Work(1e6, 0, 1000, 0, 3), 1000, 1, Split(True, 1000, 1000)),
    ],
)
def test_cuts(work, groups, threads, expected):
    assert split.choose(work, groups, target(32, 16, threads)) == expected


@pytest.mark.parametrize(
    ("work", "batch", "threads", "expected"),
    [
        (Work(1e6, 1e5, 50_000, 2_000, 8), 1, 1, Split(False, 1, 1)),
        (Work(1e6, 1e5, 50_000, 2_000, 8), 1, 2, Split(False, 1, 1)),
        (Work(1e6, 1e5, 50_000, 2_000, 8), 8, 1, Split(False, 8, 8)),
        (Work(1e6, 1e5, 50_000, 2_000, 8), 8, 2, Split(True, 4, 4)),
        (Work(1e9, 1e5, 10**7, 2_000, 8), 8, 2, Split(True, 4, 1)),
        (Work(1e6, 1e5, 50_000, 2_000, 8), 3, 2, Split(False, 3, 3)),  # a worker would idle a third of the time
        (Work(1e6, 1e8, 50_000, 2_000, 8), 8, 2, Split(False, 8, 8)),  # linear layers want the whole batch
        (Work(60e9, 1e5, 10**7, 2_000, 8), 8, 2, Split(False, 8, 1)),
        (Work(10, 0, 4_000, 0, 1), 2**61 - 1, 2, Split(False, 2**61 - 1, 1)),  # a prime: not every number is tried
    ],
)
def test_cuts_of_images(work, batch, threads, expected):
    assert split.choose_images(work, batch, target(32, 16, threads)) == expected


works = st.builds(
    Work, st.floats(0, 1e12), st.floats(0, 1e12), st.integers(0, 10**9), st.integers(0, 10**9), st.integers(1, 99)
)


@given(works, st.integers(1, 500), st.integers(1, 16), st.sampled_from(TARGETS))
def test_any_cut_covers_the_batch(work, groups, threads, cpu):
    cpu = replace(cpu, threads=threads)
    for cut in split.candidates(work, groups, cpu):
        assert 1 <= cut.inner <= cut.outer <= groups
        assert cut.outer % cut.inner == 0
        assert math.ceil(groups / cut.outer) * cut.outer < groups + cut.outer
    cut = split.choose_images(work, min(groups, 30), cpu)
    assert min(groups, 30) % cut.outer == 0
    assert cut.outer % cut.inner == 0


@given(
    st.lists(st.tuples(st.integers(1, 999), st.integers(0, 9), st.integers(0, 4), st.sampled_from("ab")), max_size=12),
    st.booleans(),
)
def test_buffers_that_live_at_once_do_not_overlap(specs, owned):
    buffers = [Buffer(size, first, first + span, zeros, plane=size // 500) for size, first, span, zeros in specs]
    offsets, total = assign_memory(buffers, owned)
    for i, (a, start) in enumerate(zip(buffers, offsets)):
        assert start % 64 == 0
        assert start + a.size <= total
        for b, other in zip(buffers[:i], offsets):
            apart = start + a.size <= other or other + b.size <= start
            assert apart or a.last < b.first or b.last < a.first
            assert apart or a.zeros == b.zeros  # what must stay zero stays zero
            assert apart or start == other
            assert apart or not owned or a.plane == b.plane  # workers own parts of planes


def test_buffers_share_memory():
    buffers = [Buffer(1000, i, i + 1) for i in range(10)]
    assert assign_memory(buffers)[1] < 3 * 1200


@pytest.mark.parametrize("batch", [1, 6, 48])
@pytest.mark.parametrize("name", NETWORKS)
def test_steps_stay_inside_their_buffers_and_read_what_was_written(name, batch):
    model, shape = network(name)
    program = fs.compile(model, (batch, *shape), tune=False)._program
    cpu = target_for(np.dtype("float32"), 2)
    schedules = [padded.schedule(program, batch, cpu), spatial_tiles.schedule(program, batch, cpu)]
    if batch > 1 and not program.row_wise:
        cuts = split.candidates(batch_blocked.work_of(program, cpu), -(-batch // cpu.lanes), cpu)
        schedules += [batch_blocked.schedule(program, batch, cpu, cut) for cut in cuts]
    for schedule in schedules:
        written = {-1}
        for step in schedule.steps:
            for buffer, offset in (*step.sources, step.target):
                assert buffer < 0 or 0 <= offset < schedule.buffers[buffer].size
            assert written.issuperset(buffer for buffer, _ in step.sources)
            written.add(step.target[0])
        assert -2 in written


def test_a_buffer_replaces_another_of_the_same_kind_at_its_last_use():
    old, other = Buffer(1000, 0, 3, "a"), Buffer(1000, 1, 9, "a")
    for new, replaces in (
        (Buffer(1000, 3, 5, "a", over=0), True),
        (Buffer(1000, 3, 5, "a"), False),
        (Buffer(1000, 2, 5, "a", over=0), False),
        (Buffer(1000, 3, 5, "b", over=0), False),
        (Buffer(960, 3, 5, "a", over=0), False),
    ):
        starts, _ = assign_memory([old, other, new])
        assert (starts[2] == starts[0]) == replaces
        assert starts[2] != starts[1]


def test_operators_that_differ_in_the_order_of_nonzeros_alone_are_two():
    """Columns (0, 1), (1, 2), (1, 2), (2, 3) have the same offsets row by row and interleaved; their values do not."""
    dense = np.zeros((4, 4), np.float32)
    dense[[0, 0, 1, 1, 2, 2, 3, 3], [0, 1, 1, 2, 1, 2, 2, 3]] = np.arange(1, 9)
    W, position = fs.csr(dense), np.zeros(1, np.int64)
    blocks = channel_blocks(4, 4, 32)
    operators = [
        build_operator(W.pattern.indptr, W.pattern.indices, blocks, TARGETS[0].heuristics, width=width)
        for width in (4, 1)
    ]
    assert [op.interleaved for op in operators] == [False, True]
    np.testing.assert_array_equal(operators[0].offsets, operators[1].offsets)
    table = tiles.whole_vectors(position, position, 1, target(32, 8))
    packed = [weights.packed(W, SpmmPlan(op, table)) for op in operators]
    for op, (plan, shared) in zip(operators, packed, strict=True):
        np.testing.assert_array_equal(shared.values, op.pack(W.data))
        assert plan.operator.interleaved == op.interleaved
