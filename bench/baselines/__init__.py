"""Who fastsparse is compared with. A baseline is a name, the packages it needs, and `setup(case, threads) -> callable`.

The callable does the work once, from user arrays to a user array, and returns the result (for steps: a tuple of
results). Setup may convert weights, allocate outputs and plan; it is not timed. Where the timed result is not in the
user's layout, the callable has an attribute `result`: a callable that does the same work and gives it in that layout.
It may also have `facts`, a dict of what is to be said beside its times, and `elapsed` (see `fastsparse.timing`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastsparse.runtime.info import version

Call = Callable[[], Any]

# fastsparse is measured first; all others are its baselines.
OURS = "fastsparse"


@dataclass(frozen=True)
class Baseline:
    """One way to do a kind of work.

    Attributes
    ----------
    name : str
    setup : callable
        `setup(case, threads)` returns the callable to time; None where there is none for this case.
    needs : tuple of str
        Distributions that must be installed.
    checked : bool
        False for bounds, which leave out what would make their results right, and for shorter numbers.
    """

    name: str
    setup: Callable[[Any, int], Call | None]
    needs: tuple[str, ...] = ()
    checked: bool = True

    @property
    def missing(self) -> list[str]:
        """Distributions this baseline needs and this environment lacks."""
        return [name for name in self.needs if version(name) is None]


def with_facts(call: Call, facts: dict[str, str]) -> Call:
    """The call, and what is to be said beside its times."""
    call.facts = facts  # type: ignore[attr-defined]
    return call


def torch_on(threads: int) -> Any:
    """The module torch, told to use so many threads."""
    import torch

    torch.set_num_threads(threads)
    return torch


def onnx_session(model: str | bytes, threads: int, optimised: bool = True) -> Any:
    """A session of onnxruntime for a file or a serialised model; it says nothing of what it finds odd there."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 4
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
