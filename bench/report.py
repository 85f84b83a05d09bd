"""Figures and the page again, from the JSON of one run or several: `python -m bench.report A.json B.json --html FILE`.

Of several, the first one's machine, peaks and date stand for all; runs on another machine or number of threads do not
belong together. A workload measured twice counts as it was measured last.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import html, summary
from bench.runner import FORMAT
from fastsparse.atomic_file import write_text


def main(argv: Sequence[str] | None = None) -> int:
    """Print the figures of results files, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=main.__doc__)
    parser.add_argument("results", type=Path, nargs="+", help="what fastsparse bench --json wrote")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the page")
    args = parser.parse_args(argv)
    try:
        results = merged([_read(path) for path in args.results])
    except (OSError, ValueError) as error:
        print(f"bench.report: {error}", file=sys.stderr)
        return 1
    print(summary.text(results))
    if args.html:
        write_text(args.html, html.page(results))
    return 0


def merged(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One set of results from several of the same machine and number of threads.

    Raises
    ------
    ValueError
        When they are not.
    """
    first = runs[0]
    for run in runs[1:]:
        for what, one, other in (
            ("cpu", first["machine"]["cpu"], run["machine"]["cpu"]),
            ("vector_bits", first["machine"]["vector_bits"], run["machine"]["vector_bits"]),
            ("threads", first["threads"], run["threads"]),
            ("clock", first["clock"], run["clock"]),
        ):
            if one != other:
                raise ValueError(f"the results differ in {what}: {one} and {other}")
    latest = {(entry["group"], entry["name"]): entry for run in runs for entry in run["workloads"]}
    errors = [error for run in runs for error in run["errors"]]
    return {**first, "workloads": list(latest.values()), "errors": list(dict.fromkeys(errors))}


def _read(path: Path) -> dict[str, Any]:
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(results, dict) or results.get("format") != FORMAT:
        raise ValueError(f"{path} is not a results file of fastsparse bench")
    return results


if __name__ == "__main__":
    sys.exit(main())
