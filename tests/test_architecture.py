"""The rules of the house: imports point down, kernels know nothing of fastsparse, files stay small."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = {"fastsparse": ROOT / "fastsparse", "fastsparse_kernels": ROOT / "kernels" / "fastsparse_kernels"}
LONGEST_FILE = 700

# A module may import modules of its own level and of those below, in no circle. The longest prefix counts.
LEVELS = {
    "fastsparse_kernels": 0,
    "fastsparse.timing": 0,
    "fastsparse.text_table": 0,
    "fastsparse._version": 0,
    "fastsparse._memo": 1,
    "fastsparse._validate": 1,
    "fastsparse._pattern": 1,
    "fastsparse._cpus": 1,
    "fastsparse._cachedir": 1,
    "fastsparse.runtime.atomic_file": 1,
    "fastsparse.csr": 1,
    "fastsparse.runtime": 1,
    "fastsparse.workspace": 1,
    "fastsparse.plan": 2,
    "fastsparse.launch": 3,
    "fastsparse.launch_engine": 3,
    "fastsparse.launch_layers": 3,
    "fastsparse.launch_layout": 3,
    "fastsparse.launch_optimizers": 3,
    "fastsparse.launch_products": 3,
    "fastsparse.launch_sparse": 3,
    "fastsparse._arguments": 4,
    "fastsparse._convolution": 4,
    "fastsparse._linear": 4,
    "fastsparse._sparse_input": 4,
    "fastsparse.functional": 4,
    "fastsparse.dense": 4,
    "fastsparse.elementwise": 4,
    "fastsparse.nn.parameter": 4,
    "fastsparse.sparsity": 4,
    "fastsparse.nn": 5,
    "fastsparse.files": 6,
    "fastsparse.html_page": 6,
    "fastsparse.training": 6,
    "fastsparse.engine": 6,
    "fastsparse.onnx": 6,
    "fastsparse": 7,  # the names a user sees; imported by nothing but what stands above everything
    "fastsparse.demo": 7,
    "fastsparse.torch": 7,
    "fastsparse.sklearn": 7,
    "fastsparse.cli": 8,
}

# The operators of CSR are short for calls into functional, which is looked up when they are used.
EXCEPTIONS = {("fastsparse.csr", "fastsparse.functional")}

# What others than launch may use of the kernels: compiling, the table, building structures. All else computes.
STRUCTURE_KERNELS = {"compiler", "kernel_cache", "numba_internals", "pattern_updates", "registry", "sparse_operator"}


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
    """Names of the modules of ours that one module imports, wherever in its text; type checking does not count."""

    def __init__(self, name: str, path: Path) -> None:
        self.found: set[str] = set()
        self.package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        self.visit(ast.parse(path.read_text(encoding="utf-8")))
        self.found.discard(name)

    def visit_If(self, node: ast.If) -> None:
        if "TYPE_CHECKING" not in ast.unparse(node.test):
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


GRAPH = {name: Imports(name, path).found for name, path in MODULES.items()}


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


def test_the_reader_of_imports_sees_them():
    assert {"fastsparse._validate", "fastsparse._pattern", "fastsparse.functional"} <= GRAPH["fastsparse.csr"]
    assert {"fastsparse_kernels.simd", "fastsparse_kernels.compiler"} <= GRAPH["fastsparse_kernels.parallel"]
    assert "fastsparse_kernels.kernel_cache" in GRAPH["fastsparse._cachedir"]
    assert len(MODULES) > 20


@pytest.mark.parametrize(("name", "target"), EDGES)
def test_imports_point_down(name, target):
    if name == "fastsparse":
        assert level(target) <= 1, "importing fastsparse must stay cheap: look the name up when it is touched"
    elif (name, target) not in EXCEPTIONS:
        assert level(target) <= level(name), f"{name} imports {target}, which stands above it"


def test_there_are_no_circles():
    graph = {name: {t for t in targets if (name, t) not in EXCEPTIONS} for name, targets in GRAPH.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"circle: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("fastsparse_kernels")])
def test_kernels_know_nothing_of_fastsparse(name):
    assert not [target for target in GRAPH[name] if target.partition(".")[0] == "fastsparse"]


def test_launch_alone_runs_compute_kernels():
    callers = {
        name
        for name, target in EDGES
        if name.startswith("fastsparse.")
        and target.startswith("fastsparse_kernels.")
        and target.split(".")[1] not in STRUCTURE_KERNELS
    }
    assert all(name.startswith("fastsparse.launch") for name in callers), callers


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
