"""The groups of workloads that `fastsparse bench` and `pytest bench/` run, each with providers and a reference."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import checks, dlmc, startup, waits, workloads
from bench.providers import Provider, chain, conv, scaling, sparse_input, spmm, steps

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
    expected : callable, or None
        A case's right results, with the largest error allowed.
    measure : callable, optional
        Where there is no race: `measure(case, clock)` gives seconds by name, and facts.
    """

    name: str
    title: str
    cases: Callable[[Chosen], Sequence[Any]]
    providers: Sequence[Provider]
    expected: Callable[[Any], checks.Expected] | None
    measure: Callable[..., waits.Measured] | None = None

    def fresh(self, chosen: Chosen) -> Iterator[Any]:
        """The workloads, each new: its matrices go with it, all of them together would fill the memory."""
        for case in self.cases(chosen):
            yield dataclasses.replace(case)

    def label(self, case: Any) -> str:
        """Group and workload, what `-k` looks at."""
        return f"{self.name} {case.name}"


def _files(chosen: Chosen) -> list[Path]:
    """The pruned layers; of a quick run one in six."""
    if chosen.dlmc is None:
        return []
    files = sorted(chosen.dlmc.rglob("*.smtx"))
    if not files:
        raise FileNotFoundError(f"no .smtx file found below {chosen.dlmc}")
    return files[:: 6 if chosen.quick else 1]


def dlmc_spmm(chosen: Chosen) -> list[workloads.Spmm]:
    """Every pruned layer, once for each number of columns that it meets."""
    return [case for file in _files(chosen) for case in _spmm_of(file)]


def _spmm_of(file: Path) -> list[workloads.Spmm]:
    rows, columns, _ = dlmc.shape_of(file)
    return [workloads.Spmm(rows, columns, n, _sparsity(file), file) for n in dlmc.columns_of(file)]


def panels(chosen: Chosen) -> list[workloads.Spmm]:
    """Shapes at 90% that fill panels, each once: from the pruned layers, or random ones where they are not at hand."""
    cases = dlmc_spmm(chosen) or [case for case in workloads.SPMM if case.n > 1]
    wide = [case for case in cases if case.n >= 512 and case.k >= 256 and round(case.sparsity, 2) == 0.9]
    return list({(case.m, case.k, case.n): case for case in reversed(wide)}.values())[::-1]


def layers(chosen: Chosen) -> list[workloads.Conv]:
    """ResNet-50's 3x3 and 1x1 layers at 90%, each shape once, on one image and on sixteen."""
    found: dict[tuple[int, ...], workloads.Conv] = {}
    for file in _files(chosen):
        geometry = dlmc.convolution_of(file)
        if geometry is None or round(_sparsity(file), 2) != 0.9:
            continue
        side, kernel, stride = geometry
        rows, columns, _ = dlmc.shape_of(file)
        for batch in dlmc.RESNET_BATCHES:
            case = workloads.Conv(batch, columns // kernel**2, side, rows, kernel, _sparsity(file), stride, file)
            found.setdefault((batch, columns, rows, *geometry), case)
    return list(found.values())


def _sparsity(file: Path) -> float:
    rows, columns, nonzeros = dlmc.shape_of(file)
    return 1 - nonzeros / (rows * columns)


def _always(cases: Sequence[Any]) -> Callable[[Chosen], Sequence[Any]]:
    return lambda chosen: cases


def _threaded(chosen: Chosen) -> Sequence[Any]:
    return workloads.SCALING if (os.cpu_count() or 1) > 1 else []


GROUPS = {
    "kernels": [
        Group("spmm", "SpMM", _always(workloads.SPMM), spmm.PROVIDERS, checks.expected_spmm),
        Group("dlmc", "SpMM on pruned layers (DLMC)", dlmc_spmm, _DLMC_PROVIDERS, checks.expected_spmm),
        Group("panels", "SpMM from panels to panels", panels, spmm.PANEL_PROVIDERS, checks.expected_spmm),
        Group("conv", "Convolution", _always(workloads.CONV), conv.PROVIDERS, checks.expected_conv),
        Group("resnet", "ResNet-50's pruned convolutions", layers, conv.LAYER_PROVIDERS, checks.expected_conv),
        Group("chain", "Layers in a row", _always(workloads.CHAINS), chain.PROVIDERS, checks.expected_chain),
        Group(
            "sparse input", "Sparse samples", _always(workloads.SPARSE_INPUTS), sparse_input.PROVIDERS,
            checks.expected_sparse_input,
        ),
        Group("memory", "Memory of a first call", _always(waits.MEMORY), [], None, waits.memory),
        Group("plan", "First call beyond later ones, kernels warm", waits.plans, [], None, waits.planning),
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
    "scaling": [
        Group("threads", "More threads against one", _threaded, scaling.PROVIDERS, checks.expected_any),
        Group("sizes", "One size at a time", _always(workloads.SIZES), _DLMC_PROVIDERS, checks.expected_spmm),
    ],
    "startup": [Group("startup", "New processes", _always(startup.WAITS), [], None, waits.starting)],
}  # fmt: skip


def missing_providers() -> list[str]:
    """Who is not installed, and what that needs."""
    everybody = [provider for groups in GROUPS.values() for group in groups for provider in group.providers]
    return sorted({f"{p.name} (needs {', '.join(p.missing)})" for p in everybody if p.missing})
