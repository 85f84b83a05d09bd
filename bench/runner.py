"""Run chosen groups of workloads with a progress bar: check everybody, time everybody in turn, keep every round."""

from __future__ import annotations

import datetime
import gc
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from tqdm import tqdm

from bench import machine
from bench.catalog import Chosen, Group, missing_providers
from bench.checks import check
from bench.rotation import Budget, pinned, rotate

Results = dict[str, Any]
Entry = dict[str, Any]
FORMAT = "fastsparse bench 1"
_SETTLED = 0.02  # seconds of calls, after which cores that were at rest run as fast as they can
_NOT_KEPT = ("file", "files", "program")  # fields of a workload that say how to make it, not what it is


def matcher(expression: str | None) -> Callable[[str], bool]:
    """Whether a name contains what is asked for: words with `and`, `or` and `not` between them, in any case.

    `not` binds closest, then `and`, then `or`; None matches everything.
    """
    if not expression or not expression.strip():
        return lambda name: True
    alternatives = [
        [_term(term) for term in alternative.split(" and ")] for alternative in expression.lower().split(" or ")
    ]

    def matches(name: str) -> bool:
        return any(all((word in name.lower()) is wanted for word, wanted in terms) for terms in alternatives)

    return matches


def _term(term: str) -> tuple[str, bool]:
    term = term.strip()
    return (term[4:].strip(), False) if term.startswith("not ") else (term, True)


def run(
    groups: Sequence[Group],
    chosen: Chosen,
    *,
    threads: int = 1,
    only: str | None = None,
    budget: Budget | None = None,
    progress: bool = True,
) -> Results:
    """Results of every workload whose label `only` matches.

    A provider that fails or is wrong is reported in "errors" and not timed. Ctrl-C ends the run, not what was measured:
    "interrupted" is true then.
    """
    wanted = matcher(only)
    picked = [(g, case) for g in groups for case in g.fresh(chosen) if wanted(g.label(case))]
    results: Results = {
        "format": FORMAT,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine.describe(),
        "peaks": machine.peaks(),
        "threads": threads,
        "clock": (budget or Budget()).clock.__name__,
        "missing": missing_providers(),
        "workloads": [],
        "errors": [],
        "interrupted": False,
    }
    with tqdm(picked, unit="workload", disable=not progress, dynamic_ncols=True) as bar:
        try:
            for group, case in _emptied(bar):
                bar.set_description(f"{group.name} {case.name[-44:]}")
                entry, errors = measure(group, case, threads, budget or Budget())
                results["workloads"].append(entry)
                results["errors"] += errors
                for error in errors:
                    bar.write(f"  {error}", file=sys.stderr)
        except KeyboardInterrupt:
            results["interrupted"] = True
    return results


def _emptied(bar: Iterable[tuple[Group, Any]]) -> Iterable[tuple[Group, Any]]:
    """The workloads; what each of them cached goes when the next one comes."""
    for group, case in bar:
        yield group, case
        for name in [name for name in vars(case) if name not in case.__dataclass_fields__]:
            vars(case).pop(name)
        gc.collect()


def measure(group: Group, case: Any, threads: int, budget: Budget) -> tuple[Entry, list[str]]:
    """One workload: every installed provider's rounds, and what went wrong."""
    fields = {name: getattr(case, name) for name in case.__dataclass_fields__ if name not in _NOT_KEPT}
    entry = {"group": group.name, "title": group.title, "name": case.name, "fields": fields, "flops": 0, "bytes": 0}
    errors: list[str] = []
    if group.measure is not None:
        try:
            with pinned(threads):
                entry["seconds"], entry["facts"] = group.measure(case, budget.clock)
        except Exception as error:
            entry["seconds"], entry["facts"] = {}, {}
            errors.append(_message(group, case, "fastsparse", error))
        return entry, errors
    if group.name == "threads":
        # Processor time would not show them; and no other library's threads are about that would need a rest.
        threads, budget = max(threads, 2), replace(budget, clock=Budget.clock, block=_SETTLED, pause=0.0)
    entry["seconds"] = _race(group, case, threads, budget, errors)
    return entry | {"flops": case.flops, "bytes": case.bytes_moved, "nnz": int(case.weight.nnz)}, errors


def _race(group: Group, case: Any, threads: int, budget: Budget, errors: list[str]) -> dict[str, list[float]]:
    calls = {}
    assert group.expected is not None
    with pinned(threads):
        expected = group.expected(case)
        for provider in group.providers:
            if provider.missing:
                continue
            try:
                call = provider.setup(case, threads)
                check(provider.name, getattr(call, "result", call)(), expected, case.weight)
                calls[provider.name] = call
            except Exception as error:
                errors.append(_message(group, case, provider.name, error))
        return rotate(calls, threads, budget) if calls else {}


def _message(group: Group, case: Any, provider: str, error: Exception) -> str:
    return f"{group.label(case)}: {provider}: {type(error).__name__}: {error}"
