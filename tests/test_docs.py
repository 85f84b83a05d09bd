"""Documentation: links, anchors, paths, names and commands exist, and its code runs."""

from __future__ import annotations

import ast
import contextlib
import doctest
import importlib.util
import io
import os
import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest

import fastsparse as fs
from fastsparse import cli

ROOT = Path(__file__).parents[1]
FOLDERS = "bench", "docs", "examples", "fastsparse", "kernels", "tests"
GENERATED = tuple(ROOT / "docs" / name for name in ("_build", "api", "gallery"))
FOUND = [*ROOT.glob("*.md"), *(path for name in FOLDERS for path in (ROOT / name).rglob("*.md"))]
PAGES = sorted(path for path in FOUND if not path.is_relative_to(GENERATED[0]) and path.parent not in GENERATED)
NAMES = [path.relative_to(ROOT).as_posix() for path in PAGES]
TODAY = [name for name in NAMES if name != "CHANGELOG.md"]  # what it says of the past need not be so any more
OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
OPTIONAL = "torch", "fastapi", "litert", "dask"  # extras that `dev` does not bring


def text_of(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def blocks(name: str, *languages: str) -> list[str]:
    """Fenced blocks of a page in one of these languages."""
    found = re.findall(r"^```([\w{}-]*)[^\n]*\n(.*?)^```", text_of(name), re.MULTILINE | re.DOTALL)
    return [code for language, code in found if language in languages]


def prose(name: str) -> str:
    """A page without its blocks."""
    return re.sub(r"^```.*?^```", "", text_of(name), flags=re.MULTILINE | re.DOTALL)


def anchors(path: Path) -> set[str]:
    """What can follow # in a link to a page: its headings, as code hosts and MyST write them."""
    headings = re.findall(r"^#+ (.+)$", prose(path.relative_to(ROOT).as_posix()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(name: str) -> list[tuple[str, str]]:
    """Files and anchors that a page links to."""
    found = re.findall(r"\]\(([^)\s]*)\)", prose(name))
    return [(path, anchor) for path, _, anchor in (target.partition("#") for target in found) if "://" not in path]


def commands(name: str) -> list[list[str]]:
    """Lines of a page's console blocks, without prompts, variables and comments."""
    lines = [line.removeprefix("$ ") for code in blocks(name, "", "console", "bash") for line in code.splitlines()]
    words = [
        shlex.split(line, comments=True) for line in lines if re.match(r"([A-Z_]+=\S+ )*(fastsparse|python) ", line)
    ]
    return [line[next(i for i, word in enumerate(line) if "=" not in word) :] for line in words]


def test_the_pages_are_found():
    assert {"README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/contracts.md", "kernels/LADDER.md"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_to_files_and_headings(name):
    page = ROOT / name
    targets = [((page.parent / path).resolve() if path else page, anchor) for path, anchor in links(name)]
    assert not [path for path, _ in targets if not path.exists()]
    assert not [(path, anchor) for path, anchor in targets if anchor and anchor not in anchors(path)]


@pytest.mark.parametrize("name", TODAY)
def test_paths_names_and_modules_exist(name):
    text = text_of(name)
    paths = re.findall(r"`((?:fastsparse|kernels|tests|bench|docs|examples)/[\w./]*)[`:]", text)
    assert not [path for path in paths if not (ROOT / path).exists()]
    modules = re.findall(r"python\s+-m\s+((?:bench|examples|fastsparse)[\w.]*)", text)
    assert not [module for module in modules if find_spec(module.rstrip(".")) is None]
    variables = set(re.findall(r"\bFASTSPARSE_[A-Z_]+[A-Z]\b", text))
    sources = [*ROOT.glob("*.py"), *(path for where in ("fastsparse", "docs") for path in (ROOT / where).rglob("*.py"))]
    known = [path.read_text("utf-8") for path in sources]
    assert not [variable for variable in variables if not any(variable in source for source in known)]


@pytest.mark.parametrize("name", TODAY)
def test_public_names_exist(name):
    for dotted in set(re.findall(r"\bfs\.((?:[A-Za-z]\w*\.)*[A-Za-z]\w*)", text_of(name))):
        found = fs
        for part in dotted.split("."):
            if not hasattr(found, part) and found.__name__.startswith("fastsparse"):
                importlib.import_module(f"{found.__name__}.{part}")
            found = getattr(found, part)


@pytest.mark.parametrize("name", [name for name in TODAY if commands(name)])
def test_commands_are_accepted(name):
    for program, *arguments in commands(name):
        if program == "python" and arguments[:2] == ["-m", "fastsparse"]:
            arguments = arguments[2:]
        elif program == "python":
            if arguments[0] == "-m":
                check_options_of(arguments[1], arguments[2:])
            continue
        with contextlib.redirect_stderr(io.StringIO()) as complaint:
            accepted = accepts(arguments)
        assert accepted, (arguments, complaint.getvalue())


def accepts(arguments: list[str]) -> bool:
    """Whether the command line understands them."""
    try:
        cli._parser().parse_args(arguments)
    except SystemExit as left:
        return left.code == 0
    return True


def check_options_of(module: str, arguments: list[str]) -> None:
    """Long options that are written behind `python -m module` stand in its source, or in that of its package."""
    if module.partition(".")[0] not in ("bench", "examples"):
        return
    folder = ROOT / module.partition(".")[0]
    sources = "\n".join(path.read_text("utf-8") for path in folder.glob("*.py"))
    options = [argument.partition("=")[0] for argument in arguments if argument.startswith("--")]
    assert not [option for option in options if f'"{option}"' not in sources]


def missing(code: str) -> str | None:
    """A package that the code imports, which is optional and not installed."""
    lines = r"^(?:>>> |\.\.\. )?\s*(?:import|from)\b.*\b{}\b"
    return next((p for p in OPTIONAL if re.search(lines.format(p), code, re.MULTILINE) and find_spec(p) is None), None)


# README.md is a doctest of its own; blocks of a page share their names, and what they write goes to a folder.
@pytest.mark.parametrize("name", [name for name in TODAY if name != "README.md" and blocks(name, "python")])
def test_code_runs(name, tmp_path, monkeypatch):
    code = blocks(name, "python")
    # Each snippet of a page about several libraries stands alone; elsewhere the first one imports for all.
    alone = name in ("docs/coming-from.md", "docs/many-machines.md")
    found = code if alone else ["\n".join(code)]
    if all(map(missing, found)):
        pytest.skip(f"needs {missing(found[0])}")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for block in code:
        if alone and missing(block):
            continue
        if ">>> " not in block:
            exec(compile(block, name, "exec"), names)
            continue
        example = doctest.DocTestParser().get_doctest(block, names, name, name, 0)
        output = io.StringIO()
        doctest.DocTestRunner(verbose=False, optionflags=OPTIONS).run(example, out=output.write, clear_globs=False)
        names.update(example.globs)
        assert not output.getvalue(), output.getvalue()


def test_broken_links_of_the_site_are_found(tmp_path):
    spec = importlib.util.spec_from_file_location("check_links", ROOT / "docs" / "check_links.py")
    check_links = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(check_links)
    (tmp_path / "index.html").write_text(
        '<a href="b.html#here">1</a><a href="b.html#gone">2</a><img src="gone.png"><a href="https://example.org">3</a>'
    )
    (tmp_path / "b.html").write_text('<p id="here"></p>')
    checked, outside, broken = check_links.broken_links(tmp_path)
    assert (checked, outside) == (3, 1)
    assert broken == ["index.html: b.html#gone: no such anchor", "index.html: gone.png: no such file"]


def test_the_gallery_runs_what_it_can(tmp_path, monkeypatch):
    """Scripts whose packages are missing or whose files the environment does not name are shown only."""
    text = (ROOT / "docs" / "conf.py").read_text("utf-8")
    functions = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
    conf = {"ast": ast, "re": re, "os": os, "find_spec": find_spec, "Path": Path}
    exec(compile(ast.Module(functions, []), "conf.py", "exec"), conf)
    monkeypatch.delenv("A_FOLDER", raising=False)
    script = tmp_path / "plot_it.py"
    for code, runs in (("import json", True), ("import a_missing_package", False), ('os.environ["A_FOLDER"]', False)):
        script.write_text(code, encoding="utf-8")
        assert conf["runnable"](script) is runs
    monkeypatch.setenv("A_FOLDER", "here")
    assert conf["runnable"](script)
