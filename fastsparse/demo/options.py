"""What the demo can be asked to do, and whether this installation can do it."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from fastsparse import extras
from fastsparse.runtime.atomic_file import check_writable

# import name -> what to call it in a message


@dataclass(frozen=True)
class Options:
    """Settings of one run; `threads` None means fastsparse's own setting."""

    seeds: int = 1
    seed: int = 0
    epochs: int = 8
    threads: int | None = None
    report: Path = Path("fastsparse-demo.html")
    rounds: int = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the demo's command line."""
    default = Options()
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output, nothing else")
    parser.add_argument(
        "--seeds", type=positive, default=default.seeds, metavar="N", help="train N times and report means (default 1)"
    )
    parser.add_argument("--seed", type=natural, default=default.seed, help="first seed of the trainings (default 0)")
    parser.add_argument(
        "--epochs", type=positive, default=default.epochs, help=f"epochs of each training (default {default.epochs})"
    )
    parser.add_argument("--threads", type=positive, default=None, help="threads for every side (default: all cores)")
    parser.add_argument(
        "--report",
        type=report_path,
        default=str(default.report),
        metavar="PATH",
        help=f"HTML report (default {default.report})",
    )


def from_arguments(args: argparse.Namespace) -> Options:
    """The options behind parsed arguments."""
    return Options(seeds=args.seeds, seed=args.seed, epochs=args.epochs, threads=args.threads, report=args.report)


def require_extra() -> None:
    """Raise ImportError, naming the extra, when a package the demo needs is missing."""
    extras.require("the demo", "demo", sklearn="scikit-learn", matplotlib="Matplotlib", threadpoolctl="threadpoolctl")


def positive(text: str) -> int:
    """An integer of at least 1, for argparse."""
    return _at_least(text, 1)


def natural(text: str) -> int:
    """An integer of at least 0, for argparse."""
    return _at_least(text, 0)


def _at_least(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected an integer of at least {least}")
    return value


def report_path(text: str) -> Path:
    """A file that can be written, for argparse."""
    try:
        check_writable(text)
    except OSError as error:
        raise argparse.ArgumentTypeError(error.strerror) from error
    return Path(text)
