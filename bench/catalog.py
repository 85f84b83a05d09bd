"""The groups of workloads: what `fastsparse bench` and `pytest bench/` run, each with its providers and its reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import checks, dlmc, workloads
from bench.providers import Provider, conv, spmm, steps

# Of the DLMC these are raced: dense NumPy stands for dense products, torch's would take as long again.
_DLMC_PROVIDERS = [p for p in spmm.PROVIDERS if p.name != "torch dense"]


@dataclass(frozen=True)
class Chosen:
    """What the command line asks for."""

    dlmc: Path | None = None
    quick: bool = False


@dataclass(frozen=True)
class Group:
    """Workloads of one kind.

    Attributes
    ----------
    name : str
        Starts the names of its workloads.
    title : str
    cases : callable
        Workloads by what was chosen; some need the DLMC's files.
    providers : list of Provider
        The first is fastsparse.
    expected : callable
        A case's right results, with the largest error allowed.
    """

    name: str
    title: str
    cases: Callable[[Chosen], Sequence[Any]]
    providers: Sequence[Provider]
    expected: Callable[[Any], checks.Expected]

    def fresh(self, chosen: Chosen) -> Iterator[Any]:
        """The workloads, each new: its matrices go with it, all of them together would fill the memory."""
        for case in self.cases(chosen):
            yield dataclasses.replace(case)

    def label(self, case: Any) -> str:
        """Group and workload, what `-k` looks at."""
        return f"{self.name} {case.name}"


def dlmc_spmm(chosen: Chosen) -> list[workloads.Spmm]:
    """Every pruned layer, once for each number of columns that it meets; of a quick run, one layer in six."""
    if chosen.dlmc is None:
        return []
    files = sorted(chosen.dlmc.rglob("*.smtx"))
    if not files:
        raise FileNotFoundError(f"no .smtx file found below {chosen.dlmc}")
    cases = []
    for file in files[:: 6 if chosen.quick else 1]:
        rows, columns, nonzeros = dlmc.shape_of(file)
        sparsity = 1 - nonzeros / (rows * columns)
        cases += [workloads.Spmm(rows, columns, n, sparsity, file) for n in dlmc.columns_of(file)]
    return cases


def _always(cases: Sequence[Any]) -> Callable[[Chosen], Sequence[Any]]:
    return lambda chosen: cases


GROUPS = {
    "kernels": [
        Group("spmm", "SpMM", _always(workloads.SPMM), spmm.PROVIDERS, checks.expected_spmm),
        Group("dlmc", "SpMM on pruned layers (DLMC)", dlmc_spmm, _DLMC_PROVIDERS, checks.expected_spmm),
        Group("conv", "Convolution", _always(workloads.CONV), conv.PROVIDERS, checks.expected_conv),
    ],
    "layers": [
        Group(
            "linear step", "Linear layer, forward and backward", _always(workloads.LINEAR_STEPS),
            steps.LINEAR_PROVIDERS, checks.expected_linear_step,
        ),
        Group(
            "conv step", "Convolution, forward and backward", _always(workloads.CONV_STEPS),
            steps.CONV_PROVIDERS, checks.expected_conv_step,
        ),
    ],
    "scaling": [],
    "startup": [],
}  # fmt: skip


def missing_providers() -> list[str]:
    """Who is not installed, and what that needs."""
    everybody = [provider for groups in GROUPS.values() for group in groups for provider in group.providers]
    return sorted({f"{p.name} (needs {', '.join(p.missing)})" for p in everybody if p.missing})
