"""Cells of recurrent layers against their oracle: every size around a vector, panels, specials, nothing beside."""

from __future__ import annotations

import numpy as np
import pytest

from fastsparse.ops import recurrent
from fastsparse.runtime.buffers import address
from fastsparse_kernels import reference as ref
from tests.kernels.support import DTYPES, Guarded, target_of, unit


@pytest.mark.parametrize("kind", recurrent.GATES)
@pytest.mark.parametrize("count", [1, 3, 4, 7, 8, 9, 15, 16, 17, 40])
@pytest.mark.parametrize("dtype", DTYPES)
def test_cells(dtype, count, kind, rng):
    gates, size = recurrent.GATES[kind], np.dtype(dtype).itemsize
    for threads, also in ((1, True), (3, False)):
        x, u = (rng.standard_normal((2, gates, count)).astype(dtype) * 3 for _ in range(2))
        before = rng.standard_normal((2, count)).astype(dtype)
        x[0, 0, 0], x[1, 0, -1] = np.nan, np.inf
        h, second, after = (Guarded((2, count), dtype) for _ in range(3))
        strides = gates * count * size, count * size
        launch = recurrent.prepare(kind, count, 2, strides, target_of(dtype, threads))
        places = x, u, before, after.inside
        launch.run(*map(address, places), address(second.inside) if also else 0, address(h.inside))
        assert all(array.intact() for array in (h, second, after))
        for panel in range(2):
            wanted, state = ref.cell(kind, x[panel], u[panel], before[panel])
            for found, want in ((h, wanted), (after, state))[: 1 + (kind == "lstm")]:
                got, finite = found.inside[panel], np.isfinite(want)
                np.testing.assert_array_equal(np.isfinite(got), finite)
                error = np.abs(got[finite] - want[finite])
                assert (error <= 16 * unit(dtype) * np.maximum(1, np.abs(want[finite]))).all()
        np.testing.assert_array_equal(second.inside, h.inside if also else np.nan)
        if kind != "lstm":
            assert np.isnan(after.inside).all()
