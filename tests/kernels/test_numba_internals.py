"""Numba's private interfaces have one owner, which says in a sentence what it does not know or misses."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numba

from fastsparse_kernels import numba_internals

ROOT = Path(__file__).parents[2]
PUBLIC = {"numba", "numba.extending", "numba.core.cgutils"}  # and what Numba documents for writing extensions


def numba_imports(path: Path) -> set[str]:
    """Modules of Numba that a file imports, or imports names from."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "numba.core":
            found |= {f"numba.core.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(str(node.module))
    return {name for name in found if name.partition(".")[0] == "numba"}


def test_one_module_imports_what_is_private():
    owner = Path(numba_internals.__file__)
    assert numba_imports(owner) - PUBLIC
    for folder in ("fastsparse", "kernels", "bench", "examples"):
        for path in (ROOT / folder).rglob("*.py"):
            assert path == owner or numba_imports(path) <= PUBLIC, f"{path} uses private interfaces of Numba"


def test_pyproject_declares_the_tested_range():
    first, last = (".".join(map(str, v)) for v in (numba_internals.TESTED_FROM, numba_internals.TESTED_BEFORE))
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r'"(numba>.*?)"', text).group(1) == f"numba>={first},<{last}"


def test_another_version_gets_a_warning(run_python: Callable[..., CompletedProcess[str]]):
    code = """
import warnings, numba
for version in ("0.60.9", "9.0.1", numba.__version__):
    numba.__version__ = version
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        import fastsparse_kernels.numba_internals as internals
        internals._check_version()
    print(*(str(w.message) for w in caught if "fastsparse" in str(w.message)), sep="|")
"""
    old, new, present = run_python(code).stdout.splitlines()
    assert "this is numba 0.60.9" in old
    assert "this is numba 9.0.1" in new
    assert not present, f"numba {numba.__version__} is in the tested range"


def test_a_missing_interface_is_named(run_python: Callable[..., CompletedProcess[str]]):
    code = """
from numba.core.compiler import CompileResult
del CompileResult._rebuild
try:
    import fastsparse_kernels.numba_internals
except ImportError as error:
    print(error)
"""
    said = run_python(code).stdout
    assert "CompileResult._rebuild" in said
    assert f"numba {numba.__version__} lacks" in said
    assert "install numba >= " in said
