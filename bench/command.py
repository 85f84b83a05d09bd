"""`fastsparse bench`: measure what was asked for, print the figures, write the files."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import replace

from bench.machine import AVX2
from bench.rotation import Budget
from fastsparse.atomic_file import write_text

QUICK = Budget(seconds=0.3, fewest=3, most=5)


def run(args: argparse.Namespace) -> int:
    """Run the command with the arguments of `fastsparse.cli`; 1 when something failed or was wrong."""
    if args.isa == "avx2" and any(os.environ.get(name) != value for name, value in AVX2.items()):
        return _again_on_avx2(args.argv)
    from bench import catalog, html, runner, summary
    from fastsparse import launch

    chosen = catalog.Chosen(args.dlmc, args.quick)
    groups = [group for what in dict.fromkeys(args.what or catalog.GROUPS) for group in catalog.GROUPS[what]]
    budget = QUICK if args.quick else Budget()
    if args.cpu_time:
        budget = replace(budget, clock=time.process_time)
    results = runner.run(groups, chosen, threads=launch.workers_for(args.threads), only=args.only, budget=budget)
    if not results["workloads"]:
        if results["interrupted"]:
            raise KeyboardInterrupt
        raise ValueError(f"no workload matches {args.only!r}")
    if args.json:
        write_text(args.json, json.dumps(results))
    if args.html:
        write_text(args.html, html.page(results))
    print(summary.text(results))
    if results["interrupted"]:  # what was measured until then is kept
        raise KeyboardInterrupt
    return 1 if results["errors"] else 0


def _again_on_avx2(argv: list[str]) -> int:
    """The same command in a process whose libraries are told, before they load, to use AVX2 at most."""
    command = [sys.executable, "-m", "fastsparse.cli", *argv]
    return subprocess.run(command, env=os.environ | AVX2, check=False).returncode
