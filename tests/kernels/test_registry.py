"""The table of variants: every family compiles for both sizes, under names that no other variant shares."""

from __future__ import annotations

import ast
import re
import warnings
from pathlib import Path

import pytest

from fastsparse_kernels import compiler, registry
from fastsparse_kernels.numba_internals import llvm_ir


def defined_symbols(compiled) -> set[str]:
    """Names of a variant's functions, without the compilation's number: in its code, or in the file it came from."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        code = llvm_ir(compiled)  # nothing, when it was loaded
    names = re.findall(r'^define[^@]*@"?([^"(]+)', code, re.MULTILINE)
    if not names:
        file = next(Path(compiler._cache_directory()).glob(f"{compiled._pyfunc.__qualname__}.*.kernel"))
        names = [name.decode() for name in re.findall(rb"_ZN18fastsparse_kernels[\w$.]+", file.read_bytes())]
    return {re.sub(r"B\d+v\d+", "", name) for name in names}


@pytest.mark.parametrize("family", registry.FAMILIES, ids=lambda family: family.name)
def test_no_two_variants_define_the_same_symbol(family):
    """Code that different processes cached is linked into one: a shared name would answer for both."""
    seen: dict[str, tuple[int, ...]] = {}
    for bits in (32, 64):
        found = family.arguments(bits, compiler.lanes(bits))
        if not found:
            continue
        key = found[0]
        symbols = defined_symbols(family.get(*key))
        assert symbols, "no function found"
        assert not [name for name in symbols if "locals" in name]
        for name in symbols:
            assert name not in seen, f"{name} is defined by {seen[name]} and {key}"
            seen[name] = key


def test_warmup_lists_every_family_once_per_variant():
    names = [name for name, _ in registry.usual()]
    assert len(names) == len(set(names))
    for family in registry.FAMILIES:
        if family.arguments(32, compiler.lanes(32)):
            assert any(name.startswith(family.name) for name in names)


@pytest.mark.R5
def test_no_kernel_is_compiled_with_fast_math():
    """Such flags let LLVM assume that NaN, Inf and negative zeros do not occur, and change the order of sums."""
    found = {
        f"{path.name}:{node.lineno}"
        for path in Path(compiler.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg in ("fastmath", "flags") and ast.unparse(keyword.value) not in ("False", "()")
    }
    assert not found
