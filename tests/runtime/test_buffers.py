"""Contract T6: memory is flat over many calls; workspaces are reused and bounded."""

from __future__ import annotations

import sys
import weakref
from threading import Thread

import numpy as np
import pytest

import fastsparse as fs
from fastsparse.runtime import buffers
from fastsparse.runtime.buffers import address
from fastsparse.runtime.launch import rehearsal
from fastsparse_kernels.compiler import aligned_empty
from tests.checking import watch_launches
from tests.runtime.test_interrupt import NAMES, calls

CALLS = """
import numpy as np
import fastsparse as fs
from scipy import sparse

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

rng = np.random.default_rng(0)
A = rng.standard_normal((30, 40)) * (rng.random((30, 40)) < 0.2)
W, X, G = fs.csr(A), rng.standard_normal((40, 20)), rng.standard_normal((20, 30))
F = fs.csr(rng.standard_normal((6, 27)) * (rng.random((6, 27)) < 0.3))
images, dy = rng.standard_normal((9, 3, 8, 8)), rng.standard_normal((9, 6, 8, 8))
x = sparse.csr_array(X.T * (X.T > 0))

def once(i):
    fs.spmm(W, X)
    fs.linear(X.T, W, activation="gelu")
    fs.linear(X[:, 0], W)
    fs.linear(x, W)
    fs.linear_backward(G, X.T, W.with_data(W.data * 1.5))  # as after a step of an optimizer
    fs.conv2d(images[: 1 + i % 9], F, kernel_size=3, padding=1)
    fs.conv2d_backward(dy, images, F, kernel_size=3, padding=1)
    fs.spmm(W, X[:, : 2 + i % 18])  # plans come and go
    if i % 10 == 0:
        fs.spmm(fs.csr(A), X)  # patterns too

for i in range(300):
    once(i)
before = resident()
for i in range(2000):
    once(i)
print(resident() - before)
"""


@pytest.mark.T6
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_flat_over_many_calls(run_python):
    """18 000 calls in all. A plan kept by mistake is 20 KB, a byte of a call 18 KB."""
    grown = int(run_python(CALLS, OPENBLAS_NUM_THREADS="1", FASTSPARSE_NUM_THREADS="2").stdout)
    assert grown < 2_000_000


@pytest.mark.T6
def test_workspace_is_reused_and_bounded(monkeypatch):
    monkeypatch.undo()  # of the poison
    first = buffers.take("test", 1000)
    assert len(first) >= 1000
    assert first.ctypes.data % 64 == 0
    assert buffers.take("test", 500) is first
    assert buffers.take("other", 500) is not first
    larger = buffers.take("test", 3000)
    assert larger is not first
    assert buffers.take("test", 1000) is larger
    monkeypatch.setattr(buffers, "KEEP_BYTES", 10_000)
    huge = buffers.take("test", 10_001)
    assert len(huge) >= 10_001
    assert not np.shares_memory(huge, buffers.take("test", 10_001)), "not kept"
    assert buffers.take("test", 3000) is larger


@pytest.mark.R7
def test_a_rehearsal_leaves_the_buffers_of_a_call_that_waits_for_a_kernel(rng):
    packed = buffers.take("x", 4096)
    packed[:] = 7
    W, x = fs.csr(rng.standard_normal((8, 16)) * (rng.random((8, 16)) < 0.5)), rng.standard_normal((32, 16))
    with rehearsal():
        fs.linear(x, W)  # packs x
    assert (packed == 7).all()
    assert np.shares_memory(buffers.take("x", 4096), packed)


@pytest.mark.T6
def test_scratch_is_that_of_threads_that_can_run(rng):
    """A number of threads beyond all measure is allowed, and does not use more."""
    call = calls(rng)["spmm"][0]
    expected = call()
    with fs.threads(10**9):
        assert np.array_equal(call(), expected)


@pytest.mark.T1
def test_every_thread_has_its_own_workspace(monkeypatch):
    monkeypatch.undo()
    mine, found = buffers.take("test", 1000), []
    thread = Thread(target=lambda: found.append(buffers.take("test", 1000)))
    thread.start()
    thread.join()
    assert not np.shares_memory(mine, found[0])


@pytest.mark.parametrize("name", NAMES)
def test_buffers_are_held_while_kernels_use_them(rng, monkeypatch, name):
    """What the workspace does not keep is freed when the last reference goes, whoever has its address."""
    lent: list[tuple[int, int, weakref.ref[np.ndarray], np.ndarray]] = []
    used: list[int] = []

    def take(purpose: str, size: int) -> np.ndarray:
        memory = aligned_empty((max(size, 64),), np.uint8)
        view = np.asarray(memoryview(memory))  # what is cut from it holds it
        lent.append((memory.ctypes.data, memory.ctypes.data + len(memory), weakref.ref(view), memory))
        return view

    def check(kernel: int, words: list[int]) -> None:
        for word in words:
            for start, end, held, _ in lent:
                if start <= word < end:
                    assert held() is not None, "the buffer was given back"
                    used.append(word)

    monkeypatch.setattr(buffers, "take", take)
    watch_launches(monkeypatch, check)
    calls(rng)[name][0]()
    assert used or name == "sparse gradient"  # which needs no buffer


@pytest.mark.T6
def test_memory_of_a_result_is_used_again_when_nobody_holds_it(monkeypatch):
    monkeypatch.undo()  # of the poison
    monkeypatch.setattr(buffers, "_own", buffers._Own())
    shape = (300, 400)
    first = buffers.array(shape, np.float32)
    assert first.flags.c_contiguous
    assert first.flags.writeable
    assert first.ctypes.data % 64 == 0
    begin = first.ctypes.data
    part = first[3:5].T.reshape(-1, 2)[1:]  # a view of a view
    part[...] = 7
    del first
    second = buffers.array(shape, np.float32)
    second.fill(1)
    assert second.ctypes.data != begin
    assert (part == 7).all()
    del part
    third = buffers.array((299, 400), np.float32)
    assert third.ctypes.data == begin, "a little smaller fits too"
    assert not np.shares_memory(second, third)
    third.fill(2)
    assert (second == 1).all()
    small = buffers.array((2, 3), np.float64)
    assert small.shape == (2, 3)
    assert small.base is None, "the C library serves small ones"


@pytest.mark.T6
def test_memory_of_results_is_bounded(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(buffers, "POOL_BYTES", 1_000_000)
    monkeypatch.setattr(buffers, "_own", buffers._Own())
    held = [buffers.array((400_000,), np.uint8) for _ in range(6)]
    for i, result in enumerate(held):
        result.fill(i)
    kept = buffers._own.owners
    assert sum(map(len, kept)) <= 1_000_000
    assert all((result == i).all() for i, result in enumerate(held)), "what was given up stays with its holder"
    held.clear()
    buffers.array((900_000,), np.uint8)
    assert sum(map(len, kept)) <= 1_000_000
    assert buffers.array((2_000_000,), np.uint8).base is None


def test_results_are_the_callers(monkeypatch, rng):
    """A result that is held stays as it is, whatever is computed afterwards, also in other threads."""
    monkeypatch.undo()
    W = fs.csr(rng.standard_normal((64, 50)) * (rng.random((64, 50)) < 0.2))
    X = rng.standard_normal((50, 2000))
    first = fs.spmm(W, X)
    kept, view = first.copy(), first[5]
    del first
    threads = [Thread(target=lambda: [fs.spmm(W, X + i) for i in range(20)]) for _ in range(2)]
    for thread in threads:
        thread.start()
    for i in range(20):
        fs.spmm(W, X + i)
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(view, kept[5])


def test_addresses_are_those_of_numpy(rng):
    whole = rng.standard_normal((5, 6, 7))
    frozen = whole.view()
    frozen.flags.writeable = False
    arrays = [
        whole, whole[1:, 2:], whole[::-1, :, ::-1], whole.T, frozen, np.asfortranarray(whole[0]), np.empty(0),
        whole[5:], np.array(1.0), np.broadcast_to(whole[0, 0], (3, 7)), whole.astype("float32"), whole.view(np.uint8),
        whole[0].view(np.recarray), np.frombuffer(b"12345678", np.uint8)[3:],
        np.zeros(3, [("a", "i4"), ("b", "f8")])["b"],
    ]  # fmt: skip
    assert [address(array) for array in arrays] == [array.ctypes.data for array in arrays]
