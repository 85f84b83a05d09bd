"""Directives of docs/operations.md, made from the code: `kernel-families` and `layer-list`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

WIDTHS = 64, 32, 16  # bytes of a vector
BITS = 32, 64


def families() -> list[list[str]]:
    """A row for each kernel family of the registry: its name, and the variants of each type and vector length."""
    from fastsparse_kernels.registry import FAMILIES

    def count(family: Any, bits: int, width: int) -> str:
        return str(len(family.arguments(bits, width * 8 // bits)) or "-")

    return [[family.name, *(count(family, bits, width) for bits in BITS for width in WIDTHS)] for family in FAMILIES]


def layers() -> list[list[str]]:
    """A row for each layer of `fs.nn`: whether its weight is sparse, and whether engines take it."""
    from fastsparse import nn
    from fastsparse.engine import from_model

    known = set(re.findall(r"\bnn\.(\w+)", inspect.getsource(from_model)))
    found = [getattr(nn, name) for name in nn.__all__ if name not in ("Module", "Parameter")]
    return [
        [
            f"`{layer.__name__}`",
            (layer.__doc__ or "").strip().partition("\n")[0].rstrip("."),
            "yes" if any(base.__name__ in known - {"Module"} for base in layer.__mro__) else "no",
        ]
        for layer in found
    ]


class _Table(SphinxDirective):
    """A table of rows that a function returns, in a Markdown page."""

    header: Sequence[str] = ()

    def rows(self) -> list[list[str]]:
        """Without the header."""
        raise NotImplementedError

    def run(self) -> list[nodes.Node]:
        """The table."""
        self.env.note_reread()  # the code may have changed
        rows = [self.header, ["---"] * len(self.header), *self.rows()]
        lines = [f"| {' | '.join(row)} |" for row in rows]
        parsed: list[nodes.Node] = self.parse_text_to_nodes(StringList(lines, source=self.env.docname))
        return parsed


class KernelFamilies(_Table):
    """`kernel-families`."""

    header = ("kernel family", *(f"float{bits}, {width * 8}-bit" for bits in BITS for width in WIDTHS))

    def rows(self) -> list[list[str]]:
        """See `families`."""
        return families()


class Layers(_Table):
    """`layer-list`."""

    header = "layer", "what it computes", "in engines"

    def rows(self) -> list[list[str]]:
        """See `layers`."""
        return layers()


def setup(app: Any) -> dict[str, bool]:
    """What Sphinx calls."""
    app.add_directive("kernel-families", KernelFamilies)
    app.add_directive("layer-list", Layers)
    return {"parallel_read_safe": True}
