"""Measure fastsparse and what is installed beside it, in a checkout of the source: `python -m bench`.

A thin front of `pytest bench`: it runs the workloads that are asked for and prints the figures. The exit status is 1
when a baseline failed or was wrong; it is then named and not timed. Ctrl-C keeps what was measured.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench import groups, report, results
from bench.machine import AVX2, ROOT
from fastsparse.demo.options import report_path
from fastsparse.runtime.atomic_file import write_bytes

_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__.partition("\n")[0],
        epilog="Others go to pytest: see pytest bench --help, and write --name=value.",
        allow_abbrev=False,
    )  # fmt: skip
    names = ", ".join(groups.names())
    parser.add_argument(
        "what", nargs="*", metavar="WHAT", help=f"some of: {names} (default: {', '.join(groups.USUAL)})"
    )
    parser.add_argument("-k", metavar="EXPRESSION", help="only those whose names match: words with and, or, not")
    groups.add_options(parser.add_argument)
    parser.add_argument("--json", metavar="FILE", type=report_path, help="write all measurements")
    parser.add_argument("--isa", choices=("native", "avx2"), default="native", help="hold every library to AVX2")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="processor time, for busy machines; one thread only",
    )
    arguments = sys.argv[1:] if argv is None else list(argv)
    args, others = parser.parse_known_args(arguments)
    try:
        groups.chosen(",".join(args.what))
    except ValueError as error:
        parser.error(f"argument WHAT: {error}")
    if args.cpu_time and args.threads > 1:
        parser.error(f"argument --cpu-time: got --threads {args.threads}, expected 1")
    if args.isa == "avx2" and any(os.environ.get(name) != value for name, value in AVX2.items()):
        # The same in a process whose libraries are told, before they load, to use AVX2 at most.
        command = [sys.executable, "-m", "bench", *arguments]
        return subprocess.run(command, env=os.environ | AVX2, check=False).returncode
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "results.json"
        status = _run_pytest(args, others, file)
        if status in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED) and file.exists():
            found = results.read([file])
            print(report.text(found), flush=True)
            if args.json:
                write_bytes(args.json, Path(file).read_bytes())
    if status == pytest.ExitCode.NO_TESTS_COLLECTED:
        print(f"bench: no workload matches {args.k!r}", file=sys.stderr)
    if status == pytest.ExitCode.INTERRUPTED:
        return _INTERRUPTED
    return 2 if status == pytest.ExitCode.USAGE_ERROR else int(status != pytest.ExitCode.OK)


def _run_pytest(args: argparse.Namespace, others: list[str], file: Path) -> int:
    """Run the workloads; what pytest prints is progress, and goes to standard error."""
    options = [f"--what={','.join(args.what)}", f"--threads={args.threads}", f"--benchmark-json={file}"]
    options += [f"--{name}={getattr(args, name)}" for name in ("dlmc", "deepsparse", "onnx") if getattr(args, name)]
    options += ["--quick"] * args.quick
    options += ["--benchmark-quiet", "--no-header", "-v", "-p", "no:cacheprovider"]
    if args.k:
        options += ["-k", args.k]
    if args.cpu_time:
        options.append("--benchmark-timer=time.process_time")
    with contextlib.redirect_stdout(sys.stderr):
        return int(pytest.main([str(ROOT / "bench" / "test_workloads.py"), *options, *others]))


if __name__ == "__main__":
    sys.exit(main())
