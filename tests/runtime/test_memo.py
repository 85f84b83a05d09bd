"""Contract T6: what matrices keep is built once, bounded by bytes, and shared by threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

import fastsparse as fs
from fastsparse.ops import spmm
from fastsparse.ops.target import target_for
from fastsparse.runtime import memo
from fastsparse.runtime.memo import LEAST_BYTES, MOST_ENTRIES, Memoized, array_bytes, bounded_cache
from tests.checking import PATTERNS, matrix

pytestmark = pytest.mark.T6


class Store(Memoized):
    """A store and nothing else."""

    def __init__(self, limit_bytes: int = 0) -> None:
        self._limit = limit_bytes


def held(store: Memoized) -> int:
    """Bytes of the arrays in a store, counted anew."""
    return sum(array_bytes(entry) for entry, _ in store._entries.values())


def third(made: list[Any], key: Any) -> Callable[[], Any]:
    """Build an array of a third of what a store may hold at least, and note it."""
    return lambda: made.append(key) or np.zeros(LEAST_BYTES // 3, np.uint8)


def test_a_store_builds_once_and_forgets_the_oldest():
    store, made = Store(), []
    first = {key: store.cached(key, third(made, key)) for key in (0, 1, 2, 0)}
    assert made == [0, 1, 2]
    assert store.cached(0, third(made, "again")) is first[0]
    store.cached(3, third(made, 3))
    assert made == [0, 1, 2, 3]
    assert list(store._entries) == [2, 0, 3], "1 was asked for longest ago"
    assert store.cached(2, third(made, "again")) is first[2]
    store.cached(1, third(made, 1))
    assert list(store._entries) == [3, 2, 1]
    assert made == [0, 1, 2, 3, 1]


def test_a_store_is_bounded_by_bytes():
    store = Store()
    for key in range(20):
        store.cached(key, third([], key))
        assert held(store) == store._bytes <= LEAST_BYTES
    huge = store.cached("huge", lambda: np.zeros(2 * LEAST_BYTES, np.uint8))
    assert list(store._entries) == ["huge"], "the one asked for last stays whatever its size"
    assert store.cached("huge", third([], "again")) is huge
    wide = Store(limit_bytes=3 * LEAST_BYTES)
    for key in range(20):
        wide.cached(key, third([], key))
    assert len(wide._entries) == 9
    small = Store()
    for key in range(2 * MOST_ENTRIES):
        small.cached(key, lambda: 1)
    assert len(small._entries) == MOST_ENTRIES


def test_every_array_of_an_entry_counts_once():
    array = np.zeros(1000)

    class Pair(NamedTuple):
        a: Any
        b: Any

    assert array_bytes(array) == array_bytes(array[3:].reshape(-1, 1)) == 8000, "a view keeps all of it alive"
    assert array_bytes(Pair(array, [array, {"x": array[2:]}])) == 8000
    assert array_bytes(Pair(array, np.zeros(5))) == 8040
    pattern = matrix(np.random.default_rng(0), np.ones((50, 60), bool), "float32").pattern
    here = target_for(np.dtype(np.float32), 1)
    plan = spmm.plan_row_major(pattern, 100, 400, here)
    assert (
        array_bytes(plan) > plan.operator.offsets.nbytes + plan.operator.permutation.nbytes + plan.tiles.pieces.nbytes
    )
    launch = spmm.prepare(plan, here, y_row_stride=400)
    assert array_bytes(launch) >= array_bytes(plan), "a launch keeps its plan alive"


def test_plans_of_a_matrix_are_bounded(rng):
    """Many shapes on one matrix; its stores know what they hold."""
    W = matrix(rng, PATTERNS["scattered"](rng, (9, 30)), "float32")
    for samples in range(2, 300):
        fs.spmm(W, np.ones((30, samples), np.float32))
    for store in (W, W.pattern):
        assert 0 < len(store._entries) <= MOST_ENTRIES
        assert held(store) == store._bytes <= store._limit


def test_launches_are_bounded_by_bytes():
    """A cache of a function forgets all when its arrays are too many, and by number what was not used longest."""
    made = []
    cached = bounded_cache(lambda key, size=LEAST_BYTES // 3: made.append(key) or np.zeros(size, np.uint8))
    assert cached(0) is cached(0)
    for key in range(1, 20):
        cached(key)
        assert cached.cache_info().currsize <= 3
    assert made == list(range(20))
    assert cached("huge", size=2 * LEAST_BYTES) is cached("huge", size=2 * LEAST_BYTES)
    cached(20)
    assert cached.cache_info().currsize == 1
    for key in range(2 * MOST_ENTRIES):
        cached(("small", key), size=1)
    assert cached.cache_info().currsize <= MOST_ENTRIES


def test_transposes_are_never_forgotten(rng):
    W = matrix(rng, PATTERNS["scattered"](rng, (9, 30)), "float32")
    W_T, (pattern_T, permutation) = W.T, W.pattern.transpose()
    for store in (W, W.pattern, W_T, pattern_T):
        for key in range(2 * MOST_ENTRIES):
            store.cached(("filler", key), third([], key) if key < 9 else lambda: 1)
    assert W.T is W_T
    assert W.pattern.transpose()[0] is pattern_T is W.T.pattern
    assert W.pattern.transpose()[1] is permutation


def test_a_store_passes_arguments_on_and_keeps_nothing_of_a_failure():
    for store in (Store(), fs.csr(np.eye(3)), fs.csr(np.eye(3)).pattern):
        with pytest.raises(ZeroDivisionError):
            store.cached("key", divmod, 7, 0)
        assert store.cached("key", divmod, 7, 2) == (3, 1)
        assert store.cached("key", divmod, 1, 1) == (3, 1)
        assert store.cached("other", divmod, 1, 1) == (1, 0)


def test_all_threads_get_the_same():
    store, found = Store(), []
    barrier = threading.Barrier(8)

    def ask() -> None:
        barrier.wait()
        found.append(store.cached("key", object))

    workers = [threading.Thread(target=ask) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 8
    assert len(set(map(id, found))) == 1


def test_many_threads_on_one_store():
    """They build and forget at once; what each gets is what it asked for, and the count of bytes stays right."""
    store, wrong = Store(), []

    def ask(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for key in rng.integers(0, 12, 300):
            entry = store.cached(int(key), lambda key=key: np.full(LEAST_BYTES // 64, key, np.uint8))
            if entry[0] != key:
                wrong.append(key)

    workers = [threading.Thread(target=ask, args=(seed,)) for seed in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong
    assert held(store) == store._bytes <= LEAST_BYTES


def test_nothing_is_built_under_the_lock():
    """Else a compilation in one thread would hold up all others, and one that forks."""
    store = Store()

    def build() -> bool:
        free = []
        worker = threading.Thread(target=lambda: free.append(memo._lock.acquire(timeout=20) and memo._lock.release()))
        worker.start()
        worker.join()
        return free == [None]

    assert store.cached("key", build)


def test_what_a_function_returns_for_a_store_is_kept_by_function_and_key():
    store, made = Store(), []

    def build(of: Any, *key: int) -> list[int]:
        made.append((of, key))
        return [*key]

    first = store.kept(build, 1, 2)
    assert store.kept(build, 1, 2) is first == [1, 2]
    assert store.kept(build) == []
    assert store.kept(build, 1, 2) is first, "another one was asked for between"
    assert store.kept(lambda _: "another function") == "another function"
    assert made == [(store, (1, 2)), (store, ())]
