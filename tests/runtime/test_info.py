"""What show_config tells of this machine."""

from __future__ import annotations

import io
import re

import numba
import pytest

import fastsparse as fs


@pytest.mark.C5
def test_show_config_prints_what_it_returns():
    text = io.StringIO()
    found = fs.show_config(file=text)
    lines = dict(re.split(r"\s+", line, maxsplit=1) for line in text.getvalue().splitlines())
    assert lines == {name: str(value) for name, value in found.items()}
    assert found["numba"] == numba.__version__
    assert found["fastsparse"] == fs.__version__
    assert found["vector_bits"] in (128, 256, 512)
    assert found["threads"] == fs.get_num_threads()
    assert found["threading_layer"] in ("tbb", "omp", "workqueue", "none")
    assert found["cpu"].strip()
