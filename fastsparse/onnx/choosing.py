"""Who runs what, by measuring: regions on which the kernels lose against the library become the library's."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from fastsparse.onnx.executor import Kernels, Plan, Tensors
from fastsparse.runtime import measure
from fastsparse.runtime.buffers import address

if TYPE_CHECKING:
    from fastsparse.onnx.engine import GraphEngine

SECONDS = 0.6  # for tuning the programs of an engine, about
_EACH = 0.02  # for comparing one region
_WHOLE = 0.3  # for comparing the engine with the library alone
_GAIN = 0.97  # of the library's time: what the kernels must stay below
_CLEAR = 1.3  # long calls on which the kernels win by this factor are not repeated

T = TypeVar("T")


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """What a call gives, and the seconds it took."""
    begin = time.perf_counter()
    found = call()
    return found, time.perf_counter() - begin


def measured_plan(engine: GraphEngine, plan: Plan) -> Plan:
    """The plan without the regions that lose, or the one that is the library's alone, where that is faster."""
    workers = engine._workers()
    try:
        values = engine._checked(engine.random_inputs())
        everything: dict[str, Any] = dict(values)
        plan.run(everything, workers)
    except (ValueError, TypeError):  # the model wants other numbers than random ones: the estimate stays
        return plan
    lost = [step for step in plan.kernels if not _wins(step, everything, workers, engine._reasons)]
    if lost:
        engine._library = tuple(sorted({name for step in lost for node in step.nodes for name in node.writes}))
        count, plan = len(plan.kernels), engine._made_plan(engine._regions(), plan.kernels)
        engine._reasons[""] = f"{len(lost)} of {count} regions are slower on the kernels than in the library, measured"
    if not plan.kernels:
        return plan
    whole = engine._made_plan([])
    assert whole.whole is not None
    session = whole.whole.session(workers)
    ours, library = _interleaved(
        lambda: engine._run_framed(plan, dict(values), workers, None),
        lambda: session.run({n: values[n] for n in session.inputs}),
        _WHOLE,
    )
    engine._reasons[""] = f"{ours * 1e3:.3f} ms measured, the library alone {library * 1e3:.3f} ms"
    if ours <= library * _GAIN:
        return plan
    engine._library = tuple(sorted({name for step in plan.kernels for node in step.nodes for name in node.writes}))
    return whole


def _wins(step: Kernels, values: dict[str, Any], workers: int, reasons: dict[str, str]) -> bool:
    """Whether the kernels run a step faster than the library, both on memory that stays where it is."""
    arrays = {name: np.require(values[name], requirements=["C", "A"]) for name in (*step.inputs, *step.twin.inputs)}
    arrays |= {name: values[name].copy() for name in step.outputs}
    places = {name: address(array) for name, array in arrays.items()}
    tensors: Tensors = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    (ours, _), (library, _) = (each.bound(places, tensors, workers) for each in (step, step.twin))
    times = _interleaved(lambda: ours({}), lambda: library({}), _EACH)
    reasons[step.outputs[0]] = f"{times[0] * 1e3:.3f} ms measured, the library {times[1] * 1e3:.3f} ms"
    return times[0] <= times[1] * _GAIN


def _interleaved(first: Callable[[], object], second: Callable[[], object], seconds: float) -> tuple[float, float]:
    """Least times of two calls that take turns, so that a machine that slows down slows both."""
    first(), first(), second()  # the second call is the first one on memory that is shared
    times = [measure.seconds(first)], [measure.seconds(second)]
    if times[0][0] * _CLEAR < times[1][0] and sum(map(sum, times)) > seconds / 10:
        return times[0][0], times[1][0]
    for _ in range(max(4, min(50, int(seconds / max(1e-6, times[0][0] + times[1][0]))))):
        times[0].append(measure.seconds(first))
        times[1].append(measure.seconds(second))
    return min(times[0]), min(times[1])
