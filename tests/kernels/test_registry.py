"""The table of variants: every family compiles for both sizes, under names that no other variant shares."""

from __future__ import annotations

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

from fastsparse_kernels import codegen, compiler, diagnostics, registry

FOLDER = Path(compiler.__file__).parent


def public_symbols(kernel) -> set[str]:
    """Names that a variant defines for other code, without the compilation's number."""
    library = kernel.compiled._library
    module = library._shared_module or library._final_module  # the first where it was loaded
    names = (item.name for item in codegen.public((*module.functions, *module.global_variables)))
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
        symbols = public_symbols(family.get(*key))
        assert symbols, "no function found"
        assert not [name for name in symbols if "make" in name or "part" in name], "functions it calls are private"
        for name in symbols:
            assert name not in seen, f"{name} is defined by {seen[name]} and {key}"
            seen[name] = key


def test_warmup_lists_every_family_once_per_variant():
    variants = list(registry.usual())
    assert len(variants) == len(set(variants))
    for family in registry.FAMILIES:
        if family.arguments(32, compiler.lanes(32)):
            assert any(builder is family.get for builder, _ in variants)


def test_every_builder_of_the_package_is_in_the_table():
    """What is not there is in no wheel, and a user's first call compiles it."""
    builders = set()
    for module in map(import_module, (f"fastsparse_kernels.{path.stem}" for path in FOLDER.glob("*.py"))):
        builders |= {value for value in vars(module).values() if hasattr(value, "expect")}
    avx512 = {family.get for family in registry.FAMILIES if family.arguments(32, 16)}
    assert builders - avx512 - {builder for builder, _ in registry.every()} == {diagnostics.peak_kernel}


@pytest.mark.parametrize("family", registry.FAMILIES, ids=lambda family: family.name)
def test_longer_vectors_than_the_targets_are_not_expected_and_refused(family):
    """LLVM ends the process where inline assembly names registers that the CPU lacks."""
    for bits in (32, 64):
        lanes = compiler.lanes(bits)
        for key in set(family.arguments(bits, 2 * lanes)) - set(family.arguments(bits, lanes)):
            waiting = compiler.waiting()
            family.get.expect(*key)
            assert compiler.waiting() == waiting
            with pytest.raises(ValueError, match=f"vectors of .* bytes, expected at most {compiler.vector_bytes()}"):
                family.get(*key)


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
