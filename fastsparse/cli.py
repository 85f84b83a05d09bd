"""The command `fastsparse`: demo, bench, prune, info.

Exit status: 0 on success, 2 on bad arguments, 1 on failure, 130 after Ctrl-C. Messages go to standard error, one line
each and never a traceback; set FASTSPARSE_TRACEBACK=1 to see where an error comes from.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from fastsparse.runtime.switches import switch

_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


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
    try:
        try:
            return _run(sys.argv[1:] if argv is None else argv)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except KeyboardInterrupt:
        _say("interrupted")
        return _INTERRUPTED
    except BrokenPipeError:  # the reader of our output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if switch("FASTSPARSE_TRACEBACK"):
            traceback.print_exc()
        _say(f"error: {_one_line(error)}")
        return 1


def _run(given: Sequence[str]) -> int:
    parser = _parser()
    if not given:
        parser.print_help(sys.stderr)
        return 2
    args = parser.parse_args(given)
    escape_unprintable()
    status: int = args.run(args)
    return status


def escape_unprintable() -> None:
    """Write characters that the terminal's encoding lacks (names in a model, say) as escapes to standard output."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


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
        "bench", help="time an ONNX or TFLite model, also against other engines", description=_run_bench.__doc__
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
    info.add_argument("--heuristics", action="store_true", help="show the tuned numbers and choices for this CPU, too")
    info.add_argument(
        "--check", action="store_true",
        help="check every kernel against its reference, in seconds; where they are not compiled yet, in a minute",
    )  # fmt: skip
    info.set_defaults(run=_run_info)
    return parser


def _add_bench_arguments(
    parser: argparse.ArgumentParser, positive: Callable[[str], int], written: Callable[[str], Path]
) -> None:
    parser.add_argument("model", metavar="MODEL.onnx|MODEL.tflite", type=_model_name)
    parser.add_argument(
        "-b",
        "--batch",
        type=positive,
        action="append",
        help="batch size, may be repeated (default: what model and --shape say, else 1)",
    )
    parser.add_argument(
        "--against", action="append", choices=["onnxruntime", "litert"], help="time it on the same inputs, in turn"
    )
    parser.add_argument(
        "--shape", type=_shape, action="append", metavar="NAME=1x128",
        help="shape of an input that the model leaves open",
    )  # fmt: skip
    parser.add_argument("--seconds", type=_seconds, default=3.0, help="how long each engine is called (default 3)")
    parser.add_argument("--threads", type=positive, default=1, help="threads for every engine (default 1)")
    parser.add_argument("--html", metavar="FILE", type=written, help="write the results as a page")
    parser.add_argument("--json", metavar="FILE", type=written, help="write the results as JSON")


def _model_name(text: str) -> str:
    if text.endswith((".onnx", ".tflite")):
        return text
    raise argparse.ArgumentTypeError(
        f"got {text!r}, expected a model, MODEL.onnx or MODEL.tflite; the kernels' benchmarks come with the source: "
        "python -m bench, in a checkout"
    )


def _onnx_name(text: str) -> str:
    if text.endswith(".onnx"):
        return text
    raise argparse.ArgumentTypeError(f"got {text!r}, expected the name of an ONNX file, which ends in .onnx")


def _add_prune_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL.onnx", type=_onnx_name)
    parser.add_argument("--sparsity", type=_share, required=True, help="share of zeros afterwards, in [0, 1)")
    parser.add_argument(
        "-o", dest="output", metavar="OUT.onnx", type=_onnx_name, required=True, help="where to write the pruned model"
    )
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


def _number(text: str, wanted: str, fits: Callable[[float], bool]) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not fits(number):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected {wanted}")
    return number


def _seconds(text: str) -> float:
    return _number(text, "a positive number", lambda number: 0 < number < math.inf)


def _share(text: str) -> float:
    return _number(text, "a number in [0, 1)", lambda number: 0 <= number < 1)


def _run_demo(args: argparse.Namespace) -> int:
    """Train a 90% sparse network and its dense twin on handwritten digits, compile it, race it, write a report."""
    started = time.perf_counter()
    from fastsparse.demo import options

    options.require_extra()
    from fastsparse.demo.run import run
    from fastsparse.demo.summary import summary

    with contextlib.redirect_stdout(sys.stderr):  # standard output is for the result alone
        results = run(args, started)
    print(json.dumps(results.to_json()) if args.json else summary(results, args.report), flush=True)
    return 0


def _run_bench(args: argparse.Namespace) -> int:
    """Time an ONNX or TFLite model, and other engines in turn with it. Kernels: python -m bench, in a checkout."""
    from fastsparse import html_page
    from fastsparse.onnx import racing
    from fastsparse.runtime.atomic_file import write_text

    results = racing.race(
        args.model, list(dict.fromkeys(args.batch or [None])), list(dict.fromkeys(args.against or [])), args.seconds,
        args.threads, dict(args.shape or []), progress=sys.stderr.isatty(),
    )  # fmt: skip
    if args.json:
        write_text(args.json, racing.to_json(args.model, results, args.threads))
    if args.html:
        html_page.write(args.html, racing.page(args.model, results, args.threads))
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
    """Show versions, threads, processor and cache; with --check prove the kernels."""
    import fastsparse
    from fastsparse.ops.heuristics import described
    from fastsparse.ops.target import heuristics_here
    from fastsparse.text_table import text_facts

    fastsparse.show_config()
    if args.heuristics:
        print(f"\nheuristics\n{text_facts(described(heuristics_here()))}", flush=True)
    return _run_check() if args.check else 0


def _run_check() -> int:
    from tqdm import tqdm

    from fastsparse.kernel_check import check_kernels

    found = list(tqdm(check_kernels(), "checking kernels", unit="", disable=None, delay=1, leave=False))
    wrong = [f"{name}: {problem}" for name, problem in found if problem]
    if wrong:
        _say(f"{len(wrong)} of {len(found)} kernel families are wrong here: {'; '.join(wrong)}")
        return 1
    print(f"\nall {len(found)} kernel families are right")
    return 0


def _one_line(error: Exception) -> str:
    """The error's message; its kind too where users could not have caused it."""
    message = " ".join(str(error).split())
    if isinstance(error, (ValueError, TypeError, OSError, ImportError)) and message:
        return message
    return f"{type(error).__name__}: {message}"


def _say(message: str) -> None:
    print(f"fastsparse: {message}", file=sys.stderr, flush=True)
