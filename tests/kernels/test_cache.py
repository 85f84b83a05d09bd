"""Contracts C1, C2 and C4: compiled kernels on disk are never stale, never an error, never mixed up."""

from __future__ import annotations

import ast
import hashlib
import json
import shutil
import stat
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fastsparse_kernels import kernel_cache as cache

ROOT = Path(__file__).parents[2]
posix = pytest.mark.skipif(sys.platform == "win32", reason="modes and owners are POSIX's")

# Compiles two variants of one factory and a C callback, through a helper in another module, and tells for each what
# it computes and whether it came from the cache. `probe_helper` stands for any file of the kernels' package.
# Arguments: directory, order of the variants.
PROBE = """
import ctypes, json, sys
import numpy as np
from numba import types
from fastsparse.runtime.kernel_cache import write_cached
from fastsparse_kernels.kernel_cache import Directories, KernelCache
from fastsparse_kernels.numba_internals import KernelCFunc, KernelDispatcher
from fastsparse_kernels.probe_helper import scale

def variant(T):
    def kernel(x):
        return scale(x) + T
    kernel.__qualname__ = f"probe_T{T}"
    return kernel

def callback(x):
    return scale(x)

directories, found = Directories((sys.argv[1],), sys.argv[1]) if sys.argv[1] else Directories(), {}
signature = types.float64(types.float64)
for T in map(int, sys.argv[2]):
    dispatcher = KernelDispatcher(variant(T))
    dispatcher._cache = KernelCache(dispatcher.py_func, signature, directories, write_cached)
    dispatcher.compile(signature)
    found[f"T{T}"] = [dispatcher(10.0), sum(dispatcher._cache_hits.values())]
compiled = KernelCFunc(callback, signature)
compiled._cache = KernelCache(callback, signature, directories, write_cached)
compiled.compile()
found["callback"] = [compiled.ctypes(10.0), compiled.cache_hits]
print(json.dumps(found))
"""
HELPER = "from .compiler import kernel_function\n\n@kernel_function\ndef scale(x):\n    return {factor} * x\n"
COLD = {"T3": [23.0, 0], "T4": [24.0, 0], "callback": [20.0, 0]}
WARM = {"T3": [23.0, 1], "T4": [24.0, 1], "callback": [20.0, 1]}


@pytest.fixture
def tree(tmp_path):
    """A copy of both packages with a helper that the probe's kernels call."""
    root = tmp_path / "tree"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "fastsparse", root / "fastsparse", ignore=ignore)
    shutil.copytree(ROOT / "kernels", root / "kernels", ignore=ignore)
    (root / "kernels/fastsparse_kernels/probe_helper.py").write_text(HELPER.format(factor=2.0))
    return root


@pytest.fixture
def probe(run_python, tree, tmp_path):
    """Run the probe in a new process; returns what it found and its stderr."""

    def run(directory=tmp_path / "kernels", prelude="", order="34", **environment):
        done = run_python(prelude + PROBE, str(directory), order, root=tree, **environment)
        return json.loads(done.stdout), done.stderr

    return run


def files(directory):
    return sorted(path for path in directory.iterdir())


# --------------------------------------------------------------------------------------------------- loading, saving


def test_a_second_process_compiles_nothing(probe, tmp_path):
    assert probe() == (COLD, "")
    assert len(files(tmp_path / "kernels")) == 3
    assert probe() == (WARM, "")


def test_variants_have_files_of_their_own(probe, tmp_path):
    probe()
    names = [path.name for path in files(tmp_path / "kernels")]
    assert [name.partition(".")[0] for name in names] == ["callback", "probe_T3", "probe_T4"]


def test_without_a_directory_nothing_is_kept(probe, tmp_path):
    assert probe(directory="") == (COLD, "")
    assert probe(directory="") == (COLD, "")
    assert not (tmp_path / "kernels").exists()


def test_settings_that_change_the_code_change_the_file(probe):
    probe()
    assert probe(NUMBA_OPT="0")[0] == COLD
    assert probe(NUMBA_OPT="0")[0] == WARM
    assert probe()[0] == WARM


@posix
def test_files_are_private(probe, tmp_path):
    probe()
    assert stat.S_IMODE((tmp_path / "kernels").stat().st_mode) == 0o700
    for path in files(tmp_path / "kernels"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


# ------------------------------------------------------------------------------------------ C1: the sources changed

DIGEST = "from fastsparse.runtime import kernel_cache; print(kernel_cache.kernel_digest())"


@pytest.mark.C1
def test_an_edited_helper_changes_the_directory(run_python, tree):
    first = run_python(DIGEST, root=tree).stdout
    assert run_python(DIGEST, root=tree).stdout == first
    helper = tree / "kernels/fastsparse_kernels/probe_helper.py"
    helper.write_text(HELPER.format(factor=5.0))
    second = run_python(DIGEST, root=tree).stdout
    assert second != first
    helper.rename(helper.with_name("probe_helper_2.py"))
    assert run_python(DIGEST, root=tree).stdout not in (first, second)


@pytest.mark.C1
def test_an_edited_oracle_keeps_the_directory_as_no_kernel_imports_it(run_python, tree):
    first = run_python(DIGEST, root=tree).stdout
    oracle = tree / "kernels/fastsparse_kernels/reference.py"
    oracle.write_text(oracle.read_text() + "# edited\n")
    assert run_python(DIGEST, root=tree).stdout == first
    for path in oracle.parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = f"{getattr(node, 'module', '')} {' '.join(alias.name for alias in node.names)}"
                assert "reference" not in names, path


@pytest.mark.C1
def test_an_edited_helper_is_never_answered_from_the_cache(probe, tree, tmp_path):
    """The whole way: directory by digest, as the kernels' builder uses it."""
    prelude = "import sys; from fastsparse.runtime.kernel_cache import cache_directories as find\n"
    prelude += "sys.argv[1] = find().write\n"
    environment = {"FASTSPARSE_CACHE_DIR": str(tmp_path / "base")}
    assert probe(prelude=prelude, **environment)[0] == COLD
    assert probe(prelude=prelude, **environment)[0] == WARM
    (tree / "kernels/fastsparse_kernels/probe_helper.py").write_text(HELPER.format(factor=5.0))
    changed = {"T3": [53.0, 0], "T4": [54.0, 0], "callback": [50.0, 0]}
    assert probe(prelude=prelude, **environment)[0] == changed


@pytest.mark.C1
def test_sources_edited_while_a_process_runs_are_not_saved_under_the_old_digest(probe, tree, tmp_path):
    helper = tree / "kernels/fastsparse_kernels/probe_helper.py"
    edit = f"import fastsparse_kernels.kernel_cache; open({str(helper)!r}, 'a').write('# edited')\n"
    assert probe(prelude=edit)[0] == COLD
    assert not (tmp_path / "kernels").exists()


# --------------------------------------------------------------------------------------------- C2: damaged, unwritable


def truncate(path, share):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


DAMAGES = {
    "empty": lambda path: truncate(path, 0),
    "half": lambda path: truncate(path, 0.5),
    "one byte short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "flipped": lambda path: path.write_bytes(path.read_bytes()[:-100] + b"\xff" * 100),
    "other magic": lambda path: path.write_bytes(b"x" + path.read_bytes()[1:]),
    "text": lambda path: path.write_text("hello"),
    "whole but no pickle": lambda path: path.write_bytes(sealed(b"\x80\x05garbage")),
    "whole but another object": lambda path: path.write_bytes(sealed(b"\x80\x04N.")),
    "a directory": lambda path: (path.unlink(), path.mkdir()),
}


def sealed(payload):
    """A file as KernelCache writes it, checksum included."""
    return cache._MAGIC + hashlib.sha256(payload).digest() + payload


@pytest.mark.C2
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_means_compiling_again_and_one_warning(probe, tmp_path, damage):
    probe()
    for path in files(tmp_path / "kernels"):
        DAMAGES[damage](path)
    found, errors = probe()
    assert found == COLD
    assert errors.count("RuntimeWarning") == 1
    assert "kernels are compiled anew instead" in errors
    if damage != "a directory":
        assert probe() == (WARM, "")


@pytest.mark.C2
def test_a_read_only_directory_is_read_and_not_written(probe, tmp_path):
    probe()
    directory = tmp_path / "kernels"
    files(directory)[0].unlink()
    read_only = """
from fastsparse.runtime import atomic_file
def denied(*args, **kwargs): raise PermissionError(13, "Permission denied")
atomic_file._created = denied
"""
    found, errors = probe(prelude=read_only)
    assert found == {**WARM, "callback": COLD["callback"]}
    assert errors.count("RuntimeWarning") == 1
    assert len(files(directory)) == 2


@pytest.mark.C2
def test_a_file_in_the_place_of_the_directory(probe, tmp_path):
    (tmp_path / "kernels").write_text("not a directory")
    found, errors = probe()
    assert found == COLD
    assert errors.count("RuntimeWarning") == 1


@pytest.mark.C2
def test_a_full_disk_leaves_no_half_file(probe, tmp_path):
    prelude = """
import os
def full(*args): raise OSError(28, "No space left on device")
os.replace = full
"""
    found, errors = probe(prelude=prelude)
    assert found == COLD
    assert errors.count("RuntimeWarning") == 1
    assert files(tmp_path / "kernels") == []


@pytest.mark.C2
def test_warnings_come_once_per_process(monkeypatch):
    monkeypatch.setattr(cache, "_warned", cache.threading.Event())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cache._warn_once("first")
        cache._warn_once("second")
    assert [str(warning.message) for warning in caught] == ["first"]


# ------------------------------------------------------------------------------------------- C4: many cold processes

# Each process waits, before it puts its first file in place, until the other is about to do the same.
MEET = """
import os, pathlib, time
here, there = (pathlib.Path({meeting!r}, name) for name in {names!r})
replace = os.replace
def meet(*args):
    here.touch()
    while not there.exists():
        time.sleep(0.001)
    replace(*args)
os.replace = meet
"""


@pytest.mark.C4
@pytest.mark.parametrize("orders", [("34", "43"), ("34", "34")])
def test_writes_that_interleave_do_not_mix_variants(probe, tmp_path, orders):
    with ThreadPoolExecutor(2) as pool:
        done = [
            pool.submit(probe, prelude=MEET.format(meeting=str(tmp_path), names=names), order=order)
            for order, names in zip(orders, (("a", "b"), ("b", "a")))
        ]
    for found, errors in (future.result() for future in done):
        assert {name: value for name, (value, _) in found.items()} == {name: value for name, (value, _) in COLD.items()}
        assert errors == ""
    assert probe() == (WARM, "")
    assert len(files(tmp_path / "kernels")) == 3


SPMV = """
import hashlib
import numpy as np, fastsparse as fs
from fastsparse_kernels import compiler
rng = np.random.default_rng(3)
A = rng.standard_normal((40, 60)) * (rng.random((40, 60)) < 0.3)
with fs.threads(1):
    Y = fs.spmm(fs.csr(A, "float32"), rng.standard_normal(60).astype("float32"), activation="relu")
print(hashlib.sha256(Y).hexdigest())
"""


@pytest.mark.C4
def test_sixteen_cold_processes_at_once(run_python, tmp_path):
    environment = {"FASTSPARSE_CACHE_DIR": str(tmp_path / "cold"), "FASTSPARSE_VERBOSE": "0"}
    with ThreadPoolExecutor(16) as pool:
        done = list(pool.map(lambda _: run_python(SPMV, **environment), range(16)))
    warm = run_python(SPMV, **environment)
    uncached = run_python(SPMV, FASTSPARSE_CACHE_DIR="/dev/null/none")
    assert {process.stdout for process in done} == {warm.stdout} == {uncached.stdout}
    assert {process.stderr for process in (*done, warm)} == {""}
    (directory,) = files(tmp_path / "cold")
    assert {path.suffix for path in files(directory)} == {".kernel"}
