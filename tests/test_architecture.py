"""The rules of the house: imports point down and in no circle, kernels know nothing of fastsparse, files stay small."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = {"fastsparse": ROOT / "fastsparse", "fastsparse_kernels": ROOT / "kernels" / "fastsparse_kernels"}
LONGEST_FILE = 700

# A module may import modules of its own level and of those below. The longest prefix counts.
LEVELS = {
    "fastsparse_kernels": 0,
    "fastsparse._version": 0,
    "fastsparse.extras": 0,
    "fastsparse.timing": 0,
    "fastsparse.text_table": 0,
    "fastsparse.runtime": 1,
    "fastsparse.checks": 1,
    "fastsparse.csr": 2,
    "fastsparse.scipy_matrices": 3,
    "fastsparse.html_page": 2,
    "fastsparse.ops": 3,
    "fastsparse.arguments": 4,
    "fastsparse.functional": 5,
    "fastsparse.sparsity": 5,
    "fastsparse.representations": 6,
    "fastsparse.nn": 6,
    "fastsparse.files": 7,
    "fastsparse.weights_files": 8,
    "fastsparse.training": 8,
    "fastsparse.engine": 8,
    "fastsparse.onnx": 8,
    "fastsparse.tflite": 8,
    "fastsparse": 9,  # the names a user sees; imported by nothing but what stands above everything
    "fastsparse.demo": 9,
    "fastsparse.torch": 9,
    "fastsparse.sklearn": 9,
    "fastsparse.kernel_check": 9,
    "fastsparse.cli": 10,
    "fastsparse.__main__": 11,
}

# What others than ops and runtime may use of the kernels: compiling, the table and its oracles, building structures.
# All else computes.
STRUCTURE_KERNELS = {
    "compiler",
    "kernel_cache",
    "numba_internals",
    "pattern_updates",
    "reference",
    "registry",
    "sparse_operator",
}
LAUNCHING = ("fastsparse.ops.", "fastsparse.runtime.")


def modules() -> dict[str, Path]:
    """Every module of both packages, by name."""
    found = {}
    for package, root in SOURCES.items():
        for path in root.rglob("*.py"):
            parts = (package, *path.relative_to(root).with_suffix("").parts)
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


class Imports(ast.NodeVisitor):
    """Names of the modules of ours that one module imports, wherever in its text: in functions, too.

    What stands under TYPE_CHECKING never runs and does not count.
    """

    def __init__(self, name: str, text: str, package: bool = False, functions: bool = True) -> None:
        self.found: set[str] = set()
        self.functions = functions
        self.package = name if package else name.rpartition(".")[0]
        self.visit(ast.parse(text))
        self.found.discard(name)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if self.functions:
            self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for statement in node.orelse:
                self.visit(statement)
        else:
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        self.found |= {alias.name for alias in node.names if alias.name.partition(".")[0] in SOURCES}

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        above = self.package.split(".")[: len(self.package.split(".")) - node.level + 1]
        base = ".".join([*above, *filter(None, [node.module])]) if node.level else node.module or ""
        if base.partition(".")[0] not in SOURCES:
            return
        for alias in node.names:
            whole = f"{base}.{alias.name}"
            self.found.add(whole if whole in MODULES else base)


def packages_around(name: str) -> set[str]:
    """The packages that a module is in: importing it runs their `__init__`, too."""
    parts = name.split(".")
    return {".".join(parts[:i]) for i in range(1, len(parts))}


GRAPH = {name: Imports(name, path.read_text("utf-8"), path.stem == "__init__").found for name, path in MODULES.items()}
EDGES = [(name, target) for name, targets in sorted(GRAPH.items()) for target in sorted(targets)]


def level(name: str) -> int:
    """Level of a module by the longest prefix in the table; a new module of fastsparse must be put there."""
    if name == "fastsparse":
        return LEVELS[name]
    prefix = name
    while prefix not in LEVELS:
        prefix = prefix.rpartition(".")[0]
        assert prefix != "fastsparse", f"{name} is not in LEVELS: say where it stands"
    return LEVELS[prefix]


def circle(graph: dict[str, set[str]]) -> str | None:
    """A circle in the graph, in words; None when there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return " <- ".join(error.args[1])
    return None


def test_the_reader_of_imports_sees_them():
    assert "fastsparse.runtime.memo" in GRAPH["fastsparse.csr"]
    assert {"fastsparse_kernels.simd", "fastsparse_kernels.compiler"} <= GRAPH["fastsparse_kernels.parallel"]
    assert {"fastsparse_kernels.kernel_cache", "fastsparse_kernels"} & GRAPH["fastsparse.runtime.kernel_cache"], (
        "in a function"
    )
    assert len(MODULES) > 100
    text = """
import fastsparse.csr
from fastsparse import nn
from . import spmm
from ..runtime.memo import Memoized
if TYPE_CHECKING:
    from fastsparse import engine
else:
    from fastsparse.ops import conv
def late():
    from fastsparse.functional import linear
"""
    found = Imports("fastsparse.ops.probe", text).found
    names = "csr", "nn", "ops.spmm", "runtime.memo", "ops.conv", "functional"
    assert found == {f"fastsparse.{name}" for name in names}
    at_once = Imports("fastsparse.ops.probe", text, functions=False).found
    assert found - at_once == {"fastsparse.functional"}


def test_the_search_for_circles_finds_them():
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) is None
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) is not None


@pytest.mark.parametrize(("name", "target"), EDGES)
def test_imports_point_down(name, target):
    assert level(target) <= level(name), f"{name} imports {target}, which stands above it"


@pytest.mark.T5
def test_importing_fastsparse_stays_cheap():
    """Other names are looked up when they are touched."""
    found = Imports("fastsparse", MODULES["fastsparse"].read_text("utf-8"), package=True, functions=False).found
    assert {"fastsparse.csr"} <= found
    assert not {target for target in found if level(target) > level("fastsparse.csr")}


def test_there_are_no_circles():
    """Among files, with imports in functions, and with the packages that importing a module runs."""
    graph = {
        name: targets.union(*(packages_around(target) - packages_around(name) - {name} for target in targets))
        for name, targets in GRAPH.items()
    }
    found = circle(graph)
    assert found is None, f"circle: {found}"


FIRST = """
import importlib, sys
for name in sys.argv[1:]:
    for loaded in [loaded for loaded in sys.modules if loaded.partition(".")[0] == "fastsparse"]:
        del sys.modules[loaded]
    try:
        importlib.import_module(name)
    except ImportError as error:
        print(f"{name}: {error}")
"""


def test_any_module_can_be_imported_first(run_python):
    """A circle that names looked up at run time make shows itself here."""
    optional = "fastsparse.sklearn", "fastsparse.torch"  # other libraries, which may not be there
    names = [name for name in MODULES if name.startswith("fastsparse.") and not name.startswith(optional)]
    assert run_python(FIRST, *sorted(names)).stdout == ""


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("fastsparse_kernels")])
def test_kernels_know_nothing_of_fastsparse(name):
    assert not [target for target in GRAPH[name] if target.partition(".")[0] == "fastsparse"]


def test_ops_and_runtime_alone_run_kernels():
    callers = {
        name
        for name, target in EDGES
        if name.startswith("fastsparse.")
        and target.startswith("fastsparse_kernels.")
        and target.split(".")[1] not in STRUCTURE_KERNELS
    }
    assert {"fastsparse.ops.spmm", "fastsparse.runtime.launch"} <= callers
    assert not {name for name in callers if not name.startswith(LAUNCHING)}


def test_kernels_have_no_package_above_them():
    assert not (ROOT / "kernels" / "__init__.py").exists()


@pytest.mark.parametrize("folder", ["fastsparse", "kernels", "tests", "bench", "examples"])
def test_files_stay_small(folder):
    long = {
        str(path.relative_to(ROOT)): lines
        for path in (ROOT / folder).rglob("*.py")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > LONGEST_FILE
    }
    assert not long
