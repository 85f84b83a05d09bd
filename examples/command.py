"""The command line of one example: train a sparse network and its dense twin, say what came out, draw it."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from examples import pictures
from examples.experiment import METHODS, Outcome, Split, Task, described, train
from fastsparse import extras
from fastsparse.cli import escape_unprintable
from fastsparse.runtime.atomic_file import replacing


def piped(main: Callable[[], int]) -> int:
    """What `main` returns; 1, without a word, when the reader of its output has left (as `head` does)."""
    escape_unprintable()
    try:
        try:
            return main()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # What is still in the buffer goes nowhere when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def run(task: Task, about: str | None, argv: Sequence[str] | None = None) -> int:
    """Run the example `task`; returns the exit code."""
    args = parser(task, about).parse_args(argv)
    settings = dataclasses.replace(task.settings, epochs=args.epochs or task.settings.epochs)
    try:
        split = task.load()
    except ModuleNotFoundError as error:
        print(extras.needs(task.name, "examples", f"the module {error.name}"), file=sys.stderr)
        return 1
    print(sizes(split))
    outcomes: dict[str, Outcome] = {}
    for method in [args.method] if args.method == "dense" or args.alone else ["dense", args.method]:
        name = label(method, args.sparsity)
        if not args.quiet:
            print(f"training: {name}, {METHODS[method]}", file=sys.stderr, flush=True)
        outcomes[name] = train(
            task, split, method, args.sparsity, args.seed, settings=settings, progress=not args.quiet
        )
        print(line(name, outcomes[name]), flush=True)
    target = Path(args.out) / f"{task.name}.png"
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as file:
        pictures.report(split, outcomes).savefig(file, format="png", dpi=110)
    print(f"picture: {target}")
    return 0


def parser(task: Task, about: str | None) -> argparse.ArgumentParser:
    """The arguments of an example."""
    result = argparse.ArgumentParser(
        prog=f"python -m examples.{task.name}", description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ways = "; ".join(f"{name}: {what}" for name, what in METHODS.items())
    result.add_argument(
        "--method", choices=METHODS, default=task.method, help=f"how to train (default: {task.method}). {ways}"
    )
    result.add_argument("--sparsity", type=share, default=0.9, help="share of weights left out (default: 0.9)")
    result.add_argument("--seed", type=natural, default=0, help="of weights, pattern and order (default: 0)")
    result.add_argument("--epochs", type=positive, help=f"passes over the data (default: {task.settings.epochs})")
    result.add_argument("--alone", action="store_true", help="do not train the dense twin")
    result.add_argument("--out", default="examples-out", help="folder for pictures (default: examples-out)")
    result.add_argument("--quiet", action="store_true", help="no progress on stderr")
    return result


def share(text: str) -> float:
    """A number in [0, 1)."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number in [0, 1)")
    return value


def natural(text: str) -> int:
    """An integer of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least 0")
    return int(text)


def positive(text: str) -> int:
    """An integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least 1")
    return int(text)


def label(method: str, sparsity: float) -> str:
    """What a run is called in tables and pictures."""
    return "dense" if method == "dense" else f"{method} {sparsity:.4g}"


def sizes(split: Split) -> str:
    """How much data there is."""
    parts = [f"{len(part[1]):,} to {use}" for use, part in zip(USES, (split.train, split.validation, split.test))]
    return f"samples: {', '.join(parts)}; {described(split.train[0])}; {len(split.classes)} classes"


USES = ("train", "validate", "test")


def line(name: str, outcome: Outcome) -> str:
    """One run in one line."""
    return (
        f"{name:>14}: test accuracy {outcome.accuracy:7.2%}, {outcome.nonzeros:>9,} numbers stored, "
        f"{outcome.seconds:.1f} s of training"
    )
