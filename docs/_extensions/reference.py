"""Writes the pages of the reference, `api/*.md`: one for each public module, with all names of its `__all__`."""

from __future__ import annotations

import ast
import inspect
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from docstrings import ROOT

import fastsparse

HOMES = "files", "functional"  # their names are fastsparse's own
FROM_SOURCE = ("fastsparse.torch",)
MODULES = "fastsparse", *(f"fastsparse.{each}" for each in fastsparse._MODULES if each not in (*HOMES, "torch"))


def _names(module: ModuleType) -> list[str]:
    """Functions and classes, in the order of `__all__`; modules have pages of their own."""
    names = [name for name in module.__all__ if not name.startswith("__")]
    own = [name for name in names if not inspect.ismodule(getattr(module, name))]
    seen = {id(getattr(import_module("fastsparse"), name)) for name in import_module("fastsparse").__all__}
    return own if module.__name__ == "fastsparse" else [n for n in own if id(getattr(module, n)) not in seen]


def _submodules(module: ModuleType) -> list[str]:
    """Public modules inside of one."""
    found = [getattr(module, name) for name in module.__all__]
    return [each.__name__ for each in found if inspect.ismodule(each) and each.__name__.startswith(module.__name__)]


def _page(name: str, introduction: str, body: list[str]) -> str:
    paragraph = " ".join(introduction.strip().split("\n\n")[0].split()).replace("``", "`")
    return "\n".join([f"# {name}", "", paragraph, "", "```{eval-rst}", *body, "```", ""])


def pages() -> dict[str, str]:
    """Text of every page, by the module's name."""
    found: dict[str, str] = {}
    modules = list(MODULES)
    for module in map(import_module, MODULES[1:]):
        modules += [name for name in _submodules(module) if name not in modules]
    for name in modules:
        module = import_module(name)
        body = [f".. currentmodule:: {name}", "", ".. autosummary::", "   :toctree: generated", "   :nosignatures:", ""]
        found[name] = _page(name, module.__doc__ or "", body + [f"   {each}" for each in _names(module)])
    for name in FROM_SOURCE:
        tree = ast.parse((ROOT / name.replace(".", "/") / "__init__.py").read_text("utf-8"))
        value = next(
            node.value for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "__all__"
        )  # type: ignore[attr-defined]
        body = [f".. source-reference:: {name}", "", *(f"   {each}" for each in ast.literal_eval(value))]
        found[name] = _page(name, ast.get_docstring(tree) or "", body)
    return found


def write_pages(app: Any, config: Any) -> None:
    """Write what has changed, and delete pages of modules that are gone."""
    folder = Path(app.srcdir) / "api"
    folder.mkdir(exist_ok=True)
    texts = pages()
    for old in set(folder.glob("*.md")) - {folder / f"{name}.md" for name in texts}:
        old.unlink()
    for name, text in texts.items():
        path = folder / f"{name}.md"
        if not path.exists() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")


def setup(app: Any) -> dict[str, bool]:
    """What Sphinx calls."""
    app.connect("config-inited", write_pages)  # before Sphinx looks for pages
    return {"parallel_read_safe": True}
