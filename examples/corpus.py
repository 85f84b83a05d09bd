"""Docstrings as a labelled corpus: read from source files, without importing or running them."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# Every topic is a package or a part of one: of the standard library, or of what fastsparse and its examples need.
TOPICS = (
    "asyncio", "email", "logging", "unittest", "numpy", "numba", "matplotlib", "sklearn",
    "scipy.interpolate", "scipy.linalg", "scipy.optimize", "scipy.signal", "scipy.sparse", "scipy.spatial",
    "scipy.stats",
)  # fmt: skip
MOST_OF_A_TOPIC = 500
FEWEST_WORDS = 8
# Folders of other people's code, and of tests.
_LEFT_OUT = {"tests", "test", "testing", "externals", "_lib", "distutils", "cloudpickle", "cuda"}


@dataclass(frozen=True)
class Docstring:
    """One docstring, the file it stands in, and its topic."""

    text: str
    file: str
    topic: str


def read() -> list[Docstring]:
    """All topics' docstrings, at most MOST_OF_A_TOPIC of each, drawn with the same seed at every call."""
    found: list[Docstring] = []
    for topic in TOPICS:
        documents = list(_of_topic(topic))
        order = np.random.default_rng(0).permutation(len(documents))[:MOST_OF_A_TOPIC]
        found += [documents[i] for i in sorted(order)]
    return found


def _of_topic(topic: str) -> Iterator[Docstring]:
    """The different docstrings of one package, in the order of its files."""
    root, seen = folder(topic), set()
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root)
        if _LEFT_OUT & set(inside.parts):
            continue
        for text in docstrings(path):
            if text not in seen and len(text.split()) >= FEWEST_WORDS:
                seen.add(text)
                yield Docstring(text, f"{topic}/{inside.as_posix()}", topic)


def folder(topic: str) -> Path:
    """Where the sources of a topic lie, found without importing them."""
    package, *parts = topic.split(".")
    spec = importlib.util.find_spec(package)
    origin = None if spec is None else spec.origin
    base = Path(origin).parent if origin else Path(sysconfig.get_path("stdlib")) / package
    return base.joinpath(*parts)


def docstrings(path: Path) -> Iterator[str]:
    """Docstrings of a file's module, classes and functions."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=False)
            if text:
                yield inspect.cleandoc(text)
