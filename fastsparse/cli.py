"""The command `fastsparse`: demo, bench, prune, info.

Exit status: 0 on success, 2 on bad arguments, 1 on failure, 130 after Ctrl-C. Messages go to standard error, one line
each and never a traceback; set FASTSPARSE_TRACEBACK=1 to see where an error comes from.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
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
    bench = commands.add_parser(
        "bench", help="measure the kernels, or an ONNX model, against others", description=_run_bench.__doc__
    )
    _add_bench_arguments(bench, options.positive, options.report_path)
    bench.set_defaults(run=_run_bench)
    prune = commands.add_parser(
        "prune", help="prune an ONNX model by magnitude, for trying", description=_run_prune.__doc__
    )
    _add_prune_arguments(prune)
    prune.set_defaults(run=_run_prune)
    info = commands.add_parser(
        "info", help="show versions, threads, processor and cache", description=_run_info.__doc__
    )
    info.set_defaults(run=_run_info)
    return parser


def _add_bench_arguments(
    parser: argparse.ArgumentParser, positive: Callable[[str], int], written: Callable[[str], Path]
) -> None:
    names = ", ".join(_BENCHES)
    what = parser.add_argument(
        "what", nargs="*", metavar="WHAT", help=f"some of: {names} (default all of these), or one MODEL.onnx"
    )
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
    model = parser.add_argument_group("for MODEL.onnx")
    model.add_argument("-b", "--batch", type=positive, action="append", help="batch size, may be repeated (default 1)")
    model.add_argument("--against", action="append", choices=["onnxruntime"], help="time it on the same inputs")
    model.add_argument(
        "--shape",
        type=_shape,
        action="append",
        metavar="NAME=1x128",
        help="shape of an input that the model leaves open",
    )
    model.add_argument("--seconds", type=_seconds, default=3.0, help="how long each is called (default 3)")


def _directory(text: str) -> Path:
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a directory")
    return path.resolve()


def _add_prune_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL.onnx")
    parser.add_argument("--sparsity", type=_share, required=True, help="share of zeros afterwards, in [0, 1)")
    parser.add_argument("-o", dest="output", metavar="OUT.onnx", required=True, help="where to write the pruned model")
    parser.add_argument("--scope", choices=["layer", "global"], default="layer", help="of each weight, or of all")
    parser.add_argument(
        "--exclude", metavar="NAME", nargs="+", action="extend", default=[], help="nodes or weights to leave alone"
    )
    parser.add_argument("--erk", action="store_true", help="leave small layers denser (Erdos-Renyi-kernel)")


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    name, _, sizes = text.rpartition("=")
    parts = sizes.split("x")
    if not name or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected NAME=SIZExSIZE...")
    return name, tuple(map(int, parts))


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a positive number")
    return number


def _share(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number in [0, 1)")
    return number


def _bench_name(text: str) -> str:
    if text.endswith(".onnx"):
        return text
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
    """Measure fastsparse and libraries installed beside it on a source checkout's workloads, or on an ONNX model."""
    if any(what.endswith(".onnx") for what in args.what):
        return _bench_model(args)
    root = Path(__file__).resolve().parent.parent
    if not (root / "bench" / "workloads.py").is_file():
        raise FileNotFoundError("the benchmarks come with the source: run this from an editable install of a checkout")
    if find_spec("threadpoolctl") is None:
        raise ImportError('the benchmarks need threadpoolctl; the extra "test" brings it: pip install -e ".[test]"')
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    from bench import command

    return command.run(args)


def _bench_model(args: argparse.Namespace) -> int:
    if len(args.what) > 1:
        raise ValueError(f"got {len(args.what)} things to measure, expected one ONNX model alone")
    from fastsparse.onnx import racing

    results = racing.race(
        args.what[0], args.batch or [1], args.against or [], args.seconds, args.threads, dict(args.shape or []),
        progress=sys.stderr.isatty(),
    )  # fmt: skip
    print(racing.table(results), flush=True)
    return 0


def _run_prune(args: argparse.Namespace) -> int:
    """Set the smallest weights of an ONNX model's products to zero and write the result."""
    from fastsparse.onnx import pruning

    results = pruning.prune_onnx(
        args.model, args.output, args.sparsity, scope=args.scope, exclude=args.exclude, erk=args.erk
    )
    print(pruning.summary(results), flush=True)
    return 0


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
