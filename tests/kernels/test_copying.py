"""Copies of any number of numbers: all of them, and nothing beside them."""

from __future__ import annotations

import numpy as np
import pytest

from fastsparse_kernels.layouts import make_copy_numbers
from tests.kernels.support import DTYPES, Guarded, bits_of, lanes_of
from tests.kernels.test_simd import compiled


@pytest.mark.parametrize("dtype", DTYPES)
def test_copies_of_any_length(rng, dtype):
    lanes = lanes_of(dtype)
    copy_numbers = make_copy_numbers(bits_of(dtype), lanes)

    def run(source, target, count):  # type: ignore[no-untyped-def]
        copy_numbers(source, target, count)

    copy = compiled(run, 3)
    for count in range(1, 5 * lanes + 2):
        source, target = Guarded(count, dtype), Guarded(count, dtype)
        source.inside[:] = rng.standard_normal(count)
        copy(source.inside, target.inside, count)
        np.testing.assert_array_equal(target.inside, source.inside)
        assert target.intact()
