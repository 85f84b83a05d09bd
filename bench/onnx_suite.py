"""ONNX's own backend tests (`onnx.backend.test`) against the engine: `python -m bench.onnx_suite`.

A case is in scope when onnxruntime passes it. Where it is not installed, or fails, cases are counted as out of scope.
Cases come from the package onnx: single nodes, simple models, what PyTorch exported, and networks ("real"), whose
weights the package replaces by constants so that nothing has to be downloaded. Every case runs twice: as it is
compiled, and with the kernels taking whatever they can.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests
from onnx.backend.test.runner import Runner
from tabulate import tabulate

from bench.baselines import onnx_session
from fastsparse.onnx.engine import compile_onnx
from fastsparse.onnx.estimates import KERNELS_FIRST

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator", "real")


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


def cases(kind: str, only: str = "", every: int = 1) -> Iterator[Case]:
    """The cases of a kind whose names contain `only`: all, or each `every`-th of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = load_model_tests(kind=kind)
    for test in sorted((t for t in found if only in t.name), key=lambda t: t.name)[::every]:
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


# ---------------------------------------------------------------- running

Runs = Callable[[Any], Callable[[list[Any]], list[Any]]]  # from a model to what runs it


def by_onnxruntime(model: Any) -> Callable[[list[Any]], list[Any]]:
    """onnxruntime by itself."""
    session = onnx_session(model.SerializeToString(), 1)
    names = [value.name for value in session.get_inputs()]
    return lambda inputs: session.run(None, dict(zip(names, inputs)))


def by_engine(model: Any) -> Callable[[list[Any]], list[Any]]:
    """The engine."""
    return compile_onnx(model, tune=False).run


def by_kernels(model: Any) -> Callable[[list[Any]], list[Any]]:
    """The engine whose kernels take whatever they can; the second call runs on memory that is shared."""
    engine = compile_onnx(model, tune=False, costs=KERNELS_FIRST)

    def run(inputs: list[Any]) -> list[Any]:
        engine.run(inputs)
        return engine.run(inputs)

    return run


def failure(case: Case, runs: Runs) -> str | None:
    """What is wrong with the outputs, or None."""
    try:
        run = runs(case.model)
        for inputs, expected in case.data:
            arrays = [numpy_helper.to_array(x) if isinstance(x, onnx.TensorProto) else x for x in inputs]
            wanted = [numpy_helper.to_array(y) if isinstance(y, onnx.TensorProto) else y for y in expected]
            Runner.assert_similar_outputs(wanted, run(arrays), rtol=case.rtol, atol=case.atol)
    except Exception as error:  # whatever goes wrong is a failure of the case
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return None


def run(
    kinds: tuple[str, ...] = KINDS, only: str = "", progress: bool = False, every: int = 1
) -> dict[str, Tally]:  # fmt: skip
    """Run the cases of some kinds whose names contain `only`: all, or each `every`-th of them."""
    tallies = {}
    for kind in kinds:
        tally = tallies[kind] = Tally()
        for case in cases(kind, only, every):
            reason = failure(case, by_onnxruntime)
            if reason is not None:
                tally.outside[reason.partition(":")[0]] += 1
                continue
            wrong = failure(case, by_engine) or failure(case, by_kernels)
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
