"""The command `fastsparse`: demo, bench, info.

Exit status: 0 on success, 2 on bad arguments, 1 on failure, 130 after Ctrl-C. Messages go to standard error, one line
each and never a traceback; set FASTSPARSE_TRACEBACK=1 to see where an error comes from.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
# What `fastsparse bench` can be asked for: the keys of bench.catalog.GROUPS, which is imported when it runs.
_BENCHES = ("kernels", "layers", "scaling", "startup")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the program's name; those of the process by default.

    Returns
    -------
    int
        Exit status; bad arguments leave through SystemExit(2), as argparse does.
    """
    parser = _parser()
    args = parser.parse_args(argv)
    if getattr(args, "cpu_time", False) and args.threads > 1:
        parser.error(f"argument --cpu-time: got --threads {args.threads}, expected 1")
    args.argv = list(sys.argv[1:] if argv is None else argv)
    try:
        return args.run(args)
    except KeyboardInterrupt:
        _say("interrupted")
        return _INTERRUPTED
    except BrokenPipeError:  # the reader of our output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if os.environ.get("FASTSPARSE_TRACEBACK"):
            traceback.print_exc()
        _say(f"error: {_one_line(error)}")
        return 1


def _parser() -> argparse.ArgumentParser:
    from fastsparse import __version__
    from fastsparse.demo import options

    parser = argparse.ArgumentParser(prog="fastsparse", description="Sparse neural networks on CPUs.")
    parser.add_argument("--version", action="version", version=f"fastsparse {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    demo = commands.add_parser(
        "demo", help="train a sparse network on handwritten digits and race it", description=_run_demo.__doc__
    )
    options.add_arguments(demo)
    demo.set_defaults(run=_run_demo)
    bench = commands.add_parser("bench", help="measure the kernels against others", description=_run_bench.__doc__)
    _add_bench_arguments(bench, options.positive, options.report_path)
    bench.set_defaults(run=_run_bench)
    info = commands.add_parser(
        "info", help="show versions, threads, processor and cache", description=_run_info.__doc__
    )
    info.set_defaults(run=_run_info)
    return parser


def _add_bench_arguments(
    parser: argparse.ArgumentParser, positive: Callable[[str], int], written: Callable[[str], Path]
) -> None:
    what = parser.add_argument("what", nargs="*", metavar="WHAT", help=f"some of: {', '.join(_BENCHES)} (default all)")
    what.type = _bench_name
    parser.add_argument(
        "-k", dest="only", metavar="EXPRESSION", help="only those whose names match: words with and, or, not"
    )
    parser.add_argument("--threads", type=positive, default=1, help="threads for every provider (default 1)")
    parser.add_argument(
        "--dlmc", metavar="DIR", type=_directory, help="also multiply by the .smtx patterns found below DIR"
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds, and only some of the pruned layers")
    parser.add_argument("--html", metavar="FILE", type=written, help="write a report with pictures")
    parser.add_argument("--json", metavar="FILE", type=written, help="write all measurements")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="processor time instead of wall clock, for busy machines; one thread only",
    )
    parser.add_argument("--isa", choices=("native", "avx2"), default="native", help="hold every library to AVX2")


def _directory(text: str) -> Path:
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a directory")
    return path.resolve()


def _bench_name(text: str) -> str:
    if text not in _BENCHES:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected one of {', '.join(_BENCHES)}")
    return text


def _run_demo(args: argparse.Namespace) -> int:
    """Train a 90% sparse network and its dense twin on handwritten digits, compile it, race it, write a report."""
    started = time.perf_counter()
    from fastsparse.demo import options

    options.require_extra()
    from fastsparse.demo.run import run
    from fastsparse.demo.summary import summary

    chosen = options.from_arguments(args)
    with contextlib.redirect_stdout(sys.stderr):  # standard output is for the result alone
        results = run(chosen, started)
    print(json.dumps(results.to_json()) if args.json else summary(results, chosen.report), flush=True)
    return 0


def _run_bench(args: argparse.Namespace) -> int:
    """Measure fastsparse and the libraries that are installed beside it, on workloads of a source checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / "bench" / "workloads.py").is_file():
        raise FileNotFoundError("the benchmarks come with the source: run this from an editable install of a checkout")
    if find_spec("threadpoolctl") is None:
        raise ImportError('the benchmarks need threadpoolctl; the extra "test" brings it: pip install -e ".[test]"')
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    from bench import command

    return command.run(args)


def _run_info(args: argparse.Namespace) -> int:
    """Show versions, threads, processor and cache."""
    import fastsparse

    fastsparse.show_config()
    return 0


def _one_line(error: Exception) -> str:
    """The error's message; its kind too where users could not have caused it."""
    message = " ".join(str(error).split())
    if isinstance(error, (ValueError, TypeError, OSError, ImportError)) and message:
        return message
    return f"{type(error).__name__}: {message}"


def _say(message: str) -> None:
    print(f"fastsparse: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
