"""What the demo can be asked to do, and whether this installation can do it."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastsparse import extras
from fastsparse.runtime.atomic_file import check_writable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the demo's command line."""
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output, nothing else")
    parser.add_argument(
        "--seeds", type=positive, default=1, metavar="N", help="train N times and report means (default 1)"
    )
    parser.add_argument("--seed", type=natural, default=0, help="first seed of the trainings (default 0)")
    parser.add_argument("--epochs", type=positive, default=8, help="epochs of each training (default 8)")
    parser.add_argument("--threads", type=positive, default=None, help="threads for every side (default: all cores)")
    parser.add_argument(
        "--report", type=report_path, default="fastsparse-demo.html", metavar="PATH",
        help="HTML report (default fastsparse-demo.html)",
    )  # fmt: skip


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
