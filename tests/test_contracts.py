"""docs/contracts.md: every promise has a marker and tests that carry it, and the tests that it names exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NUMBER = re.compile(r"[RITCF]\d+")


def contracts() -> dict[str, list[str]]:
    """The tests that docs/contracts.md names, by the number of the promise."""
    lines = (ROOT / "docs" / "contracts.md").read_text("utf-8").splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if re.match(r"\| [RITCF]\d+ \|", line)]
    assert len({row[0] for row in rows}) == len(rows), "a number stands twice"
    return {row[0]: re.findall(r"`(tests/[^`]+)`", row[-1]) for row in rows}


def _marks(expression: ast.expr) -> set[str]:
    return {
        node.attr
        for node in ast.walk(expression)
        if isinstance(node, ast.Attribute) and NUMBER.fullmatch(node.attr) and ast.unparse(node.value) == "pytest.mark"
    }


def marked(path: Path) -> dict[str, set[str]]:
    """Numbers of contracts by test, for every test of a file."""
    body = ast.parse(path.read_text("utf-8")).body
    common: set[str] = set()
    for node in body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark":
            common |= _marks(node.value)
    return {
        node.name: common.union(*map(_marks, node.decorator_list))
        for node in body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


CONTRACTS = contracts()
TESTS = {
    f"{path.relative_to(ROOT).as_posix()}::{test}": numbers
    for path in sorted((ROOT / "tests").rglob("test_*.py"))
    for test, numbers in marked(path).items()
}


def test_markers_are_the_numbers_of_the_contracts(pytestconfig):
    registered = {line.partition(":")[0] for line in pytestconfig.getini("markers")}
    assert {name for name in registered if NUMBER.fullmatch(name)} == set(CONTRACTS)
    assert set().union(*TESTS.values()) <= set(CONTRACTS)


@pytest.mark.parametrize("number", CONTRACTS)
def test_every_contract_has_tests(number):
    named = CONTRACTS[number]
    assert named, f"docs/contracts.md names no test of {number}"
    for test in named:
        assert number in TESTS.get(test, ()), f"{test} does not exist or is not marked {number}"


def test_numbers_that_are_cited_exist():
    cited = re.compile(r"[Cc]ontracts? ((?:[RITCF]\d+(?:, | and | to |/)?)+)")
    unknown = [
        f"{path.relative_to(ROOT)}: {number}"
        for folder in ("fastsparse", "kernels", "tests", "bench", "docs")
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in (".py", ".md")
        for numbers in cited.findall(path.read_text("utf-8"))
        for number in NUMBER.findall(numbers)
        if number not in CONTRACTS
    ]
    assert not unknown
