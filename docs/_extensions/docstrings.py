"""Docstrings as reST, and the directive `source-reference`.

The directive documents a package whose import needs what is not installed (torch): signatures and docstrings are read
from the source, and nothing is imported.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.ext.napoleon import NumpyDocstring
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[2]
# Of prose outside of backticks: the star of `*axes`, in a shape or alone, and the bar of |x| and `a_` are themselves.
_MARKUP = re.compile(r"(?<=[(,] )\*(?=\w)|(?<=\()\*(?=\w)|(?<![\w*`\\])\*(?=\w)(?![^*\n]*\*)|\|(?=\S)|(?<=\w)_(?=\W|$)")
Documented = ast.ClassDef | ast.FunctionDef


def plain(line: str) -> str:
    """A line of a docstring in which reST sees the markup that we use, and no other."""
    if line.lstrip().startswith((">>>", "...")):
        return line
    parts = re.split(r"(`+[^`]*`+)", line)
    return "".join(part if i % 2 else _MARKUP.sub(r"\\\g<0>", part) for i, part in enumerate(parts))


def plain_docstring(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """What autodoc calls."""
    lines[:] = map(plain, lines)


def definitions(package: str) -> dict[str, Documented]:
    """Functions and classes of all modules of a package, by name."""
    files = sorted((ROOT / package.replace(".", "/")).glob("*.py"))
    trees = [ast.parse(file.read_text("utf-8")) for file in files]
    return {node.name: node for tree in trees for node in tree.body if isinstance(node, Documented)}


def ancestors(node: ast.ClassDef, known: dict[str, Documented]) -> list[ast.ClassDef]:
    """A class and its bases in the package, nearest first."""
    bases = [known[base.id] for base in node.bases if isinstance(base, ast.Name) and base.id in known]
    return [node, *(each for base in bases if isinstance(base, ast.ClassDef) for each in ancestors(base, known))]


def whole(node: Documented, known: dict[str, Documented]) -> Documented:
    """A class with the docstring and the `__init__` that it inherits from the package, where it has none."""
    if isinstance(node, ast.ClassDef):
        family = ancestors(node, known)
        documented = next((each.body[:1] for each in family if ast.get_docstring(each)), [])
        made = [part for each in family for part in each.body if getattr(part, "name", "") == "__init__"][:1]
        if not ast.get_docstring(node):
            node.body[:0] = documented
        if made and made[0] not in node.body:
            node.body += made
    return node


def signature(node: Documented) -> str:
    """Arguments as they are written, without types; of a class those of `__init__`."""
    if isinstance(node, ast.ClassDef):
        own = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
        return signature(own) if own else "()"
    arguments = node.args
    for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
        argument.annotation = None
    arguments.args = [argument for argument in arguments.args if argument.arg not in ("self", "cls")]
    return f"({ast.unparse(arguments)})"


class SourceReference(SphinxDirective):
    """`.. source-reference:: package`, with names in the body, one a line."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        """Nodes of all entries."""
        self.env.note_reread()  # the source may have changed
        package = self.arguments[0]
        found = definitions(package)
        lines: list[str] = [f".. py:module:: {package}", "   :no-index:", ""]
        for name in filter(None, map(str.strip, self.content)):
            lines += self._entry(package, whole(found[name], found))
        return self.parse_text_to_nodes(StringList(lines, source=package), allow_section_headings=False)

    def _entry(self, package: str, node: Documented) -> list[str]:
        is_class = isinstance(node, ast.ClassDef)
        lines = [f".. py:{'class' if is_class else 'function'}:: {package}.{node.name}{signature(node)}", ""]
        lines += [f"   {line}" for line in self._text(node)]
        for member in node.body if is_class else ():
            if isinstance(member, ast.FunctionDef) and not member.name.startswith("_") and ast.get_docstring(member):
                kinds = {d.id for d in member.decorator_list if isinstance(d, ast.Name)}
                kind = "property" if "property" in kinds else "method"
                lines += [f"   .. py:{kind}:: {member.name}{'' if kind == 'property' else signature(member)}", ""]
                lines += [f"      {line}" for line in self._text(member)]
        return lines

    def _text(self, node: Documented) -> list[str]:
        lines = [plain(line) for line in (ast.get_docstring(node) or "").splitlines()]
        return [*NumpyDocstring(lines, self.config).lines(), ""]


def setup(app: Any) -> dict[str, bool]:
    """What Sphinx calls."""
    app.connect("autodoc-process-docstring", plain_docstring, priority=400)  # before napoleon
    app.add_directive("source-reference", SourceReference)
    return {"parallel_read_safe": True}
