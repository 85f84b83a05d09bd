"""ONNX's own backend tests (`onnx.backend.test`) against the engine: `python -m bench.onnx_suite`.

A case is in scope when all its operators are in the engine's table, and its inputs and outputs are tensors of types
that NumPy has. All others are counted by the reason that puts them out. Cases come from the package onnx: single nodes,
simple models, what PyTorch exported, and networks ("real"), whose weights the package replaces by constants so that
nothing has to be downloaded.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests
from onnx.backend.test.runner import Runner
from tabulate import tabulate

from fastsparse.onnx.backend import FastsparseBackend
from fastsparse.onnx.ops import OPERATORS

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator", "real")
_TYPES = {1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13}  # TensorProto's that NumPy has
# Cases that give an input for what only a model in training has; the operators themselves are in scope.
_TRAINING = ("training_mode", "training")


@dataclass(frozen=True)
class Case:
    """A model with inputs and the outputs that are expected."""

    name: str
    kind: str
    model: Any
    data: list[tuple[list[Any], list[Any]]]
    rtol: float
    atol: float


@dataclass
class Tally:
    """What became of the cases of a kind."""

    passed: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    outside: Counter[str] = field(default_factory=Counter)


def cases(kind: str) -> Iterator[Case]:
    """All cases of a kind."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = load_model_tests(kind=kind)
    for test in sorted(found, key=lambda t: t.name):
        if test.model is not None:
            yield Case(test.name, kind, test.model, test.data_sets, test.rtol, test.atol)
        elif test.url is None:
            yield _from_folder(test, kind)
        else:
            yield _light(test, kind)


def _from_folder(test: Any, kind: str) -> Case:
    folder = Path(test.model_dir)
    model = onnx.load(folder / "model.onnx")
    data = []
    for directory in sorted(folder.glob("test_data_set_*")):
        groups = []
        for name in ("input", "output"):
            files = sorted(directory.glob(f"{name}_*.pb"), key=lambda p: int(p.stem.rpartition("_")[2]))
            groups.append([_tensor(path) for path in files])
        data.append((groups[0], groups[1]))
    return Case(test.name, kind, model, data, test.rtol, test.atol)


def _tensor(path: Path) -> Any:
    tensor = onnx.TensorProto()
    try:
        tensor.ParseFromString(path.read_bytes())
        return numpy_helper.to_array(tensor)
    except Exception:  # a sequence: such cases are out of scope
        return None


def _light(test: Any, kind: str) -> Case:
    """A network whose weights are constants; the input is the one that the package's runner makes."""
    path = Path(onnx.__file__).parent.parent / test.url
    model = onnx.load(path)
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [Runner.generate_dummy_data(v, seed=0, name=test.model_name, random=False)
              for v in model.graph.input if v.name not in constants]  # fmt: skip
    outputs = [_tensor(path.with_name(f"{path.stem}_output_0.pb"))]
    return Case(test.name, kind, model, [(inputs, outputs)], test.rtol, test.atol)


# ---------------------------------------------------------------- scope


def reason_outside(case: Case) -> str | None:
    """Why a case is out of scope, or None."""
    graph = case.model.graph
    for value in (*graph.input, *graph.output):
        if not value.type.HasField("tensor_type"):
            return "sequences, optionals or maps"
        if value.type.tensor_type.elem_type not in _TYPES:
            return f"elements of type {onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)}"
    functions = {(f.domain, f.name) for f in case.model.functions}
    nodes = [*graph.node, *(node for f in case.model.functions for node in f.node)]
    for node in nodes:
        if node.domain not in ("", "ai.onnx") and (node.domain, node.op_type) not in functions:
            return f"domain {node.domain}"
        if node.op_type not in OPERATORS and (node.domain, node.op_type) not in functions:
            return f"operator {node.op_type}"
        for attribute in node.attribute:
            if node.op_type in ("Cast", "EyeLike") and attribute.name in ("to", "dtype") and attribute.i not in _TYPES:
                return f"elements of type {onnx.TensorProto.DataType.Name(attribute.i)}"
            if attribute.name == "value" and attribute.t.data_type not in (0, *_TYPES):
                return f"elements of type {onnx.TensorProto.DataType.Name(attribute.t.data_type)}"
            if attribute.name == "training_mode" and attribute.i:
                return "training"
    if any(name in case.name for name in _TRAINING) and "Dropout" in {n.op_type for n in nodes} and _trains(case):
        return "training"
    return None


def _trains(case: Case) -> bool:
    """Whether a Dropout is told to drop something: its third input is True, its second not 0."""
    inputs = [np.asarray(array) for array in case.data[0][0]]
    flags = [array for array in inputs if array.dtype == np.bool_]
    ratios = [float(array) for array in inputs[1:] if array.dtype.kind == "f" and array.size == 1]
    return any(flag.all() for flag in flags) and not (ratios and ratios[0] == 0)


# ---------------------------------------------------------------- running


def failure(case: Case) -> str | None:
    """What is wrong with the engine's outputs, or None."""
    try:
        prepared = FastsparseBackend.prepare(case.model)
        for inputs, expected in case.data:
            arrays = [numpy_helper.to_array(x) if isinstance(x, onnx.TensorProto) else x for x in inputs]
            wanted = [numpy_helper.to_array(y) if isinstance(y, onnx.TensorProto) else y for y in expected]
            found = prepared.run(arrays)
            Runner.assert_similar_outputs(wanted, found, rtol=case.rtol, atol=case.atol)
    except Exception as error:  # whatever goes wrong is a failure of the case
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return None


def run(kinds: tuple[str, ...] = KINDS, only: str = "", progress: bool = False) -> dict[str, Tally]:
    """Run all cases of some kinds whose names contain `only`."""
    tallies = {}
    for kind in kinds:
        tally = tallies[kind] = Tally()
        for case in cases(kind):
            if only not in case.name:
                continue
            reason = reason_outside(case)
            if reason is not None:
                tally.outside[reason] += 1
                continue
            wrong = failure(case)
            if wrong is None:
                tally.passed += 1
            else:
                tally.failed[case.name] = wrong
            if progress:
                print(f"\r{kind}: {tally.passed} passed, {len(tally.failed)} failed", end="", file=sys.stderr)
        if progress:
            print(file=sys.stderr)
    return tallies


def table(tallies: dict[str, Tally], reasons: int = 0) -> str:
    """What was found, kind by kind, and why cases are out of scope."""
    rows, outside = [], Counter[str]()
    for kind, tally in tallies.items():
        rows.append([kind, tally.passed, tally.passed + len(tally.failed), sum(tally.outside.values())])
        outside.update(tally.outside)
    rows.append(["all", *(sum(column) for column in list(zip(*rows))[1:])])
    lines = [tabulate(rows, ["kind", "passed", "in scope", "out of scope"], "github"), "", "out of scope:"]
    lines += [f"  {count:5}  {reason}" for reason, count in outside.most_common(reasons or None)]
    for kind, tally in tallies.items():
        lines += [f"FAILED {kind} {name}: {wrong}" for name, wrong in tally.failed.items()]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run the suite; 1 when a case in scope fails."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kind", action="append", choices=KINDS, help="only these; may be given several times")
    parser.add_argument("-k", dest="only", default="", help="only cases whose names contain this")
    args = parser.parse_args(argv)
    started = time.perf_counter()
    tallies = run(tuple(args.kind or KINDS), args.only, progress=True)
    print(table(tallies))
    print(f"\nonnx {onnx.__version__}, {time.perf_counter() - started:.0f} s")
    return 1 if any(tally.failed for tally in tallies.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
