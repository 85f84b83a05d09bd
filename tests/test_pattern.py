"""Patterns and matrices once they are made: transposing, equality, copies, and what is kept for them."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref

import numpy as np
import pytest

import fastsparse as fs

SHAPE = (4, 8)
INDPTR, INDICES, DATA = [0, 2, 2, 5, 6], [0, 5, 1, 2, 7, 3], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


def make():
    """A small matrix, new each time."""
    return fs.CSR(INDPTR, INDICES, DATA, SHAPE)


def test_transpose_is_built_once_and_sorted():
    W = fs.csr(np.triu(np.arange(1.0, 31.0).reshape(5, 6)))
    assert np.array_equal(W.T.toarray(), W.toarray().T)
    assert W.T is W.T
    pattern, permutation = W.pattern.transpose()
    assert W.pattern.transpose()[0] is pattern is W.T.pattern
    assert permutation.dtype == np.uint32
    assert not permutation.flags.writeable
    assert np.array_equal(W.T.data, W.data[permutation])
    assert W.T.T.pattern == W.pattern
    assert np.array_equal(W.pattern.rows(), np.nonzero(W.toarray())[0])


def test_patterns_are_equal_and_hash_by_content():
    a, b = make().pattern, fs.csr(make().toarray().astype(np.float32)).pattern
    assert a == b
    assert a is not b
    assert hash(a) == hash(b)
    assert len({a, b}) == 1
    shifted = fs.Pattern(INDPTR, [0, 5, 1, 2, 7, 4], SHAPE)
    moved = fs.Pattern([0, 2, 3, 5, 6], INDICES, SHAPE)
    wider = fs.Pattern(INDPTR, INDICES, (4, 9))
    assert len({a, shifted, moved, wider}) == 4
    assert a != "pattern"
    assert repr(a) == "<Pattern 4x8, 6 nonzeros, density 0.1875>"


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda obj: pickle.loads(pickle.dumps(obj))])
def test_copies_and_pickles(duplicate):
    W = make()
    W.T  # noqa: B018  (what was built for W does not travel)
    other, pattern = duplicate((W, W.pattern))
    assert not any(array.flags.writeable for array in (other.data, other.indices, other.indptr))
    assert other.pattern is pattern
    assert pattern == W.pattern
    assert other.toarray().tobytes() == W.toarray().tobytes()


def test_cached_builds_once_and_forgets_the_oldest():
    pattern, built = make().pattern, []

    def build(key):
        built.append(key)
        return key

    for key in [*range(32), 0, 32]:
        assert pattern.cached(key, lambda key=key: build(key)) == key
    assert built == list(range(33))
    pattern.cached(0, lambda: build("again"))  # used recently, so still there
    assert built[-1] == 32
    pattern.cached(1, lambda: build("again"))  # the one not used for longest went
    assert built[-1] == "again"


def test_cached_keeps_nothing_of_a_failure():
    W = make()
    with pytest.raises(ZeroDivisionError):
        W.cached("key", lambda: 1 / 0)
    assert W.cached("key", lambda: 3) == 3
    assert W.cached("key", lambda: 4) == 3


def test_cached_gives_all_threads_the_same():
    pattern, found = make().pattern, []
    barrier = threading.Barrier(8)

    def ask():
        barrier.wait()
        found.append(pattern.cached("key", object))

    workers = [threading.Thread(target=ask) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 8
    assert len(set(map(id, found))) == 1


def test_a_matrix_goes_when_nobody_holds_it():
    W = make()
    W.T  # noqa: B018
    alive = weakref.ref(W)
    del W
    gc.collect()
    assert alive() is None
