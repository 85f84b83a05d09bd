"""SciPy's own tests of sparse matrices with our product in place of its own: `python -m bench.scipy_suite`.

Every product of a CSR or CSC matrix and a dense vector or matrix whose result is float32 or float64 is `fs.matmul`.
Words behind the command go to pytest. With `--own` the tests run on SciPy's own product, to tell what fails there, too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.sparse import _compressed

import fastsparse as fs

MODULES = ("base", "common1d", "csr", "csc", "construct", "coo", "extract", "arithmetic1d")


class Plugged:
    """Puts our product in place, and counts calls and the tests that reach it."""

    def __init__(self) -> None:
        self.calls = self.tests = 0
        for name in ("_matmul_vector", "_matmul_multivector"):
            setattr(_compressed._cs_matrix, name, self._ours(getattr(_compressed._cs_matrix, name)))

    def _ours(self, theirs: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        def product(matrix: Any, other: Any) -> Any:
            if np.result_type(matrix.dtype, other.dtype) not in (np.float32, np.float64) or matrix.ndim != 2:
                return theirs(matrix, other)
            self.calls += 1
            return fs.matmul(matrix, other)

        return product

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self) -> Any:
        """Count."""
        before = self.calls
        try:
            return (yield)
        finally:
            self.tests += self.calls > before

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Say what was reached."""
        terminalreporter.write_line(f"our product: {self.calls} calls, in {self.tests} tests")


def main() -> int:
    """Run the command line; pytest's exit status."""
    words = [word for word in sys.argv[1:] if word != "--own"]
    modules = [word for name in MODULES for word in ("--pyargs", f"scipy.sparse.tests.test_{name}")]
    plugins = [] if "--own" in sys.argv else [Plugged()]
    return int(
        pytest.main(["-q", "-p", "no:cacheprovider", "--no-header", "-c", "/dev/null", *modules, *words], plugins)
    )


if __name__ == "__main__":
    sys.exit(main())
