"""Figures of the gallery: every script run with several seeds, and one table of what was claimed and what was measured.

Runs are kept in a JSON file as they are made, so that a call that was interrupted goes on, and interpreters with other
packages can add theirs. Runs of a script whose code has changed since do not count; its prose may follow the figures.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import io
import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from examples.command import piped, positive
from fastsparse.runtime.atomic_file import write_text

ROOT = Path(__file__).parents[1]
GALLERY = ROOT / "examples" / "gallery"
SETTINGS = "small", "full"
# A script in a process of its own: its `result` comes as the last line.
_RUN = """
import json, runpy, sys
names = runpy.run_path(sys.argv[1], run_name="__main__")
keep = {key: names["result"][key] for key in ("claim", "measured", "baseline", "unit", "holds")}
print("\\n" + json.dumps(keep, default=lambda value: value.item()))
"""


class ScriptError(Exception):
    """A script that did not end with a result: its last line of complaint."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, print and write the table; returns the exit code: 1 where a script failed."""
    args = _parser().parse_args(argv)
    scripts = [Path(name).resolve() for name in args.scripts] or sorted(GALLERY.rglob("plot_*.py"))
    runs = read(args.json)
    failed = []
    for script in scripts:
        name = script.relative_to(GALLERY).as_posix() if script.is_relative_to(GALLERY) else script.name
        entry = fresh(runs.get(name), script)
        runs[name] = entry
        for seed in range(args.seeds):
            if str(seed) in entry[args.setting]:
                continue
            try:
                entry[args.setting][str(seed)] = run = run_script(script, args.setting, seed)
            except ScriptError as error:
                failed.append(f"{name}: {error}")
                break
            print(f"{name}, {args.setting}, seed {seed}: {run['seconds']:.0f} s", file=sys.stderr, flush=True)
            write_text(args.json, json.dumps(runs, indent=1, sort_keys=True) + "\n")
    text = page(runs)
    print(text)
    if args.page:
        write_text(args.page, text)
    print("\n".join(failed), file=sys.stderr, end="\n" if failed else "")
    return int(bool(failed))


def read(path: Path) -> dict[str, Any]:
    """Runs of a file, by script; none where there is no file."""
    return dict(json.loads(path.read_text("utf-8"))) if path.exists() else {}


def fresh(entry: Mapping[str, Any] | None, script: Path) -> dict[str, Any]:
    """A script's runs by setting and seed, as far as they were made with its code of today."""
    digest = hashlib.sha256(_code(script.read_text("utf-8")).encode()).hexdigest()[:16]
    known = dict(entry) if entry and entry["digest"] == digest else {}
    return {"digest": digest, **{setting: known.get(setting, {}) for setting in SETTINGS}}


def _code(text: str) -> str:
    """A script without its docstring, lines of comments and empty lines."""
    first = ast.parse(text).body[0]
    is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    lines = text.splitlines()[(first.end_lineno or 0) if is_docstring else 0 :]
    return "\n".join(line for line in lines if line.strip() and not line.lstrip().startswith("#"))


def machine() -> str:
    """Processor, numbers of processors and threads, and Python."""
    import fastsparse as fs

    found = fs.show_config(file=io.StringIO())
    return f"{found['cpu']}, {found['cpus']} processors, threads: {found['threads']}, Python {found['python']}"


def run_script(script: Path, setting: str, seed: int) -> dict[str, Any]:
    """Run a script; its result with the seconds it took, of processors and elapsed, imports included.

    Raises
    ------
    ScriptError
        When it fails.
    """
    environment = {
        **os.environ, "MPLBACKEND": "Agg", "FASTSPARSE_EXAMPLES": setting, "FASTSPARSE_EXAMPLES_SEED": str(seed),
    }  # fmt: skip
    before, start = os.times(), time.perf_counter()
    command = [sys.executable, "-c", _RUN, str(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    after = os.times()
    seconds = sum(after[2:4]) - sum(before[2:4])  # of children: user and system
    elapsed = time.perf_counter() - start
    if done.returncode:
        raise ScriptError((done.stderr.strip() or "no complaint").splitlines()[-1])
    return {
        **json.loads(done.stdout.strip().splitlines()[-1]),
        "seconds": round(seconds, 1),
        "elapsed": round(elapsed, 1),
        "machine": machine(),
    }


def page(runs: Mapping[str, Any]) -> str:
    """The table, as a page of the documentation: a row for each setting of a script that was run."""
    rows = [
        "| example | setting | CPU s | s | claim | measured | baseline | holds |",
        "|---|---|---:|---:|---|---:|---:|---:|",
    ]
    rows += [
        _row(name, setting, runs[name][setting]) for name in sorted(runs) for setting in SETTINGS if runs[name][setting]
    ]
    measured = defaultdict(set)
    for name, entry in sorted(runs.items()):
        for setting in SETTINGS:
            for run in entry[setting].values():
                measured[run["machine"], setting].add(Path(name).stem.removeprefix("plot_"))
    machines = [
        f"- {where}, {setting}: {', '.join(sorted(names))}" for (where, setting), names in sorted(measured.items())
    ]
    return """# Figures of the gallery

Every script ends with what it claims, what was measured, and the baseline beside it, in a reduced setting (*small*),
which tests and the build of this site run, and in the *full* one. Means, and standard deviations where there are
several seeds; *holds* counts the seeds for which the claim held. *CPU s* is the processor time of the whole process,
imports included, median over the seeds; *s* is the shortest time that a run took on the two cores, which had other
work, too: idle cores take between half of the processor time and all of it.

Written by `python -m examples.figures --page docs/gallery-figures.md`; measured on

""" + "\n".join([*machines, "", *rows]) + "\n"  # fmt: skip


def _row(name: str, setting: str, runs: Mapping[str, Any]) -> str:
    found = [runs[seed] for seed in sorted(runs, key=int)]
    first = found[0]
    cells = (
        f"[{name.removesuffix('.py')}](../examples/gallery/{name})",
        f"{setting}, {len(found)} seed{'s' * (len(found) > 1)}",
        f"{statistics.median(run['seconds'] for run in found):.0f}",
        f"{min(run['elapsed'] for run in found):.0f}",
        " ".join(str(first["claim"]).split()).replace("|", "\\|"),
        f"{_mean([run['measured'] for run in found])} {first['unit']}",
        f"{_mean([run['baseline'] for run in found])} {first['unit']}",
        f"{sum(bool(run['holds']) for run in found)} of {len(found)}",
    )
    return f"| {' | '.join(cells)} |"


def _mean(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.4g}{spread}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m examples.figures", description=__doc__.partition("\n")[0])
    parser.add_argument("scripts", nargs="*", help="these scripts only (default: the whole gallery)")
    parser.add_argument("--setting", choices=SETTINGS, default="full", help="which setting to run (default: full)")
    parser.add_argument("--seeds", type=positive, default=1, help="seeds 0, 1, ... (default: 1)")
    parser.add_argument(
        "--json", type=Path, default=ROOT / "docs" / "gallery-figures.json", help="file of the runs, which is extended"
    )
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the table to this file, too")
    return parser


if __name__ == "__main__":
    sys.exit(piped(main))
