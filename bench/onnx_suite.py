"""ONNX's own backend tests (`onnx.backend.test`) against the engine: `python -m bench.onnx_suite`.

A case is in scope when onnxruntime passes it. Where it is not installed, or fails, cases are counted as out of scope.
Cases come from the package onnx: single nodes, simple models, what PyTorch exported, and networks ("real"), whose
weights the package replaces by constants so that nothing has to be downloaded. Every case runs twice: as it is
compiled, and with the kernels taking whatever they can.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import unittest
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from types import SimpleNamespace
from typing import Any
from unittest import mock

import onnx
from onnx.backend.base import Backend
from onnx.backend.test.runner import Runner
from tabulate import tabulate

from bench.baselines import onnx_session
from fastsparse.onnx.engine import compile_onnx
from fastsparse.onnx.estimates import KERNELS_FIRST

KINDS = {
    "node": "Node", "simple": "Simple", "pytorch-converted": "PyTorchConverted", "pytorch-operator": "PyTorchOperator",
    "real": "Real",
}  # fmt: skip
Runs = Callable[[Any], Callable[[list[Any]], list[Any]]]  # from a model to what runs it


@dataclass
class Tally:
    """What became of the cases of a kind."""

    passed: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    outside: Counter[str] = field(default_factory=Counter)


class _Backend(Backend):  # type: ignore[misc]
    """What the package's tests run."""

    runs: Runs

    @classmethod
    def prepare(cls, model: Any, device: str = "CPU", **_: Any) -> Any:
        return SimpleNamespace(run=cls.runs(model))

    @classmethod
    def supports_device(cls, device: str) -> bool:
        return device == "CPU"


@cache
def _tests() -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dict(Runner(_Backend).test_cases)


def cases(kind: str, only: str = "", every: int = 1) -> list[unittest.TestCase]:
    """The cases of a kind whose names contain `only`: all, or each `every`-th of them."""
    tests = _tests()[f"OnnxBackend{KINDS[kind]}ModelTest"]
    return [tests(name) for name in sorted(vars(tests)) if name.endswith("_cpu") and only in name][::every]


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


def failure(case: Any, runs: Runs) -> str | None:
    """What is wrong with the outputs, or None."""
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, ONNX_MODELS=folder):
        try:
            with mock.patch.object(_Backend, "runs", staticmethod(runs), create=True):
                getattr(case, case._testMethodName)()
        except Exception as error:  # whatever goes wrong is a failure of the case
            return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return None


def run(
    kinds: tuple[str, ...] = tuple(KINDS), only: str = "", progress: bool = False, every: int = 1
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
                tally.failed[case.id().rpartition(".")[2]] = wrong
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
