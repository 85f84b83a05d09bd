"""Documentation: links, paths and commands that it names exist."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = "bench", "docs", "examples", "fastsparse", "kernels", "tests"
GENERATED = tuple(ROOT / "docs" / name for name in ("_build", "api", "gallery"))
FOUND = [*ROOT.glob("*.md"), *(path for name in FOLDERS for path in (ROOT / name).rglob("*.md"))]
PAGES = sorted(path for path in FOUND if not path.is_relative_to(GENERATED[0]) and path.parent not in GENERATED)
NAMES = [path.relative_to(ROOT).as_posix() for path in PAGES]


def test_the_pages_are_found():
    assert {"README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/contracts.md", "kernels/LADDER.md"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_to_files(name):
    page = ROOT / name
    targets = re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8"))
    assert not [target for target in targets if not (page.parent / target).exists()]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "CHANGELOG.md"])
def test_paths_and_commands_exist(name):
    text = (ROOT / name).read_text("utf-8")
    paths = re.findall(r"`((?:fastsparse|kernels|tests|bench|docs|examples)/[\w./]*)[`:]", text)
    assert not [path for path in paths if not (ROOT / path).exists()]
    modules = re.findall(r"python\s+-m\s+((?:bench|examples|fastsparse_kernels)[\w.]*)", text)
    assert not [module for module in modules if find_spec(module.rstrip(".")) is None]
