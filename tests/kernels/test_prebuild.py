"""Kernels compiled ahead of time: for every level, found in the package, the same bits as those compiled here."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import pytest

from fastsparse_kernels import codegen

ROOT = Path(__file__).parents[2]

PREBUILD = """
import sys
from pathlib import Path
from fastsparse_kernels import codegen, kernel_cache, layouts, parallel, prebuild, sparse_operator, spmm, spmv
level = sys.argv[1]
codegen.use_level(level)
lanes = codegen.vector_bytes() // 4
functions = [(parallel.run_serial, ()), (sparse_operator.order_nonzeros, (32,)), (sparse_operator.gather, (32,))]
kernels = [(spmm.spmm_kernel, (32, lanes, 2, 1, 0))]
prebuild.compile_variants(kernel_cache.PACKAGE / kernel_cache.cache_digest(), level, functions + kernels)
"""
MULTIPLY = """
import hashlib, json, sys
import numpy as np
import fastsparse as fs
from fastsparse_kernels import codegen, compiler
rng = np.random.default_rng(3)
W = rng.standard_normal((40, 64)) * (rng.random((40, 64)) < 0.4)
lanes = codegen.vector_bytes() // 4
compiled = []
with fs.threads(1), compiler.on_compile(lambda: compiled.append(1)):
    Y = fs.spmm(fs.csr(W, "float32"), rng.standard_normal((64, 2 * lanes), dtype=np.float32))
with open("/dev/null", "w") as file:
    found = fs.show_config(file=file)
print(json.dumps([hashlib.sha256(Y).hexdigest(), len(compiled), found["level"], found["prebuilt_kernels"]]))
"""


@pytest.mark.C5
def test_prebuilt_kernels_are_used_and_give_the_same_bits(run_python, tmp_path):
    """In an installed package without any cache."""
    root = tmp_path / "tree"
    for name in ("fastsparse", "kernels"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    nowhere = {"FASTSPARSE_CACHE_DIR": "/dev/null/none"}
    bits, compiled, level, directory = json.loads(run_python(MULTIPLY, root=root, **nowhere).stdout)
    assert compiled
    assert directory is None
    assert level == codegen.level()
    run_python(PREBUILD, level, root=root)
    done = run_python(MULTIPLY, root=root, **nowhere)
    found = json.loads(done.stdout)
    assert found[:2] == [bits, 0], "something was compiled"
    assert Path(found[3]).parent == root / "kernels/fastsparse_kernels/prebuilt"
    assert done.stderr == ""
    for file in Path(found[3]).iterdir():  # damaged: compiled again
        file.write_bytes(file.read_bytes()[:-1])
    damaged = json.loads(run_python(MULTIPLY, root=root, **nowhere).stdout)
    assert damaged[0] == bits


@pytest.mark.C5
def test_levels_are_told_apart_by_features(monkeypatch):
    known = codegen.X86_LEVELS
    every = {feature: True for _, features in known.values() for feature in features}
    monkeypatch.setattr(codegen, "_X86", True)
    monkeypatch.setattr(codegen, "_ARM64", False)
    monkeypatch.setattr(codegen.config, "CPU_NAME", None)
    names = list(known)
    for name, lower in itertools.pairwise(names):
        for feature in known[name][1]:
            host = every | {feature: False}
            monkeypatch.setattr(codegen.llvm, "get_host_cpu_features", lambda host=host: host)
            assert codegen._level_here.__wrapped__() == lower, feature
            every_below = [f for other in names[names.index(name) + 1 :] for f in known[other][1]]
            assert feature not in every_below
        every = {key: value for key, value in every.items() if key not in known[name][1]}
    monkeypatch.setattr(codegen.llvm, "get_host_cpu_features", dict)
    assert codegen._level_here.__wrapped__() == "x86-64"


def test_wheels_bring_the_usual_levels():
    assert set(codegen.PREBUILT) <= {*codegen.X86_LEVELS, "generic"}
