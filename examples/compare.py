"""All examples, sparse and dense, with several seeds: one table of test accuracies, and learning curves.

Every run is written to a JSON file as soon as it is done. A call that was interrupted goes on from there when it is
made again; runs made with other settings than today's are made anew.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from examples import digits, genes, mnist, table, text
from examples.command import piped, positive
from examples.experiment import Split, Task, start, train
from examples.table import Case, Run, Store
from fastsparse import extras
from fastsparse.runtime.atomic_file import replacing

TASKS: dict[str, Task] = {task.name: task for task in (mnist.TASK, digits.TASK, text.TASK, genes.TASK)}

# Points of accuracy that a sparse network may be behind its dense twin; None where nothing is promised.
CASES = (
    Case("mnist", "dense"),
    Case("mnist", "rigl", 0.9, 0.5),
    Case("mnist", "rigl", 0.95, 1.0),
    Case("mnist", "rigl", 0.98),
    Case("mnist", "static", 0.98),
    Case("digits", "dense"),
    Case("digits", "set", 0.9, 1.0),
    Case("digits", "rigl", 0.9, 1.0),
    Case("digits", "magnitude", 0.9, 1.0),
    Case("text", "dense"),
    Case("text", "rigl", 0.9, 1.0),
    Case("genes", "dense"),
    Case("genes", "magnitude", 0.9, 1.0),
    Case("genes", "rigl", 0.9),
)
# Two cases trained with the same seeds: the first shall be better by more than two standard errors.
PAIR = (Case("mnist", "rigl", 0.98), Case("mnist", "static", 0.98))


def main(argv: Sequence[str] | None = None) -> int:
    """Train what is missing, print the table, draw the curves; returns the exit code."""
    args = _parser().parse_args(argv)
    out = Path(args.out)
    store = Store(Path(args.json) if args.json else out / "runs.json")
    cases = [case for case in CASES if case.task in (args.only or TASKS)]
    try:
        fill(store, cases, args.seeds, quiet=args.quiet)
    except ModuleNotFoundError as error:
        print(extras.needs("compare", "examples", f"the module {error.name}"), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"stopped; {store.path} has what is done, and the same call goes on from there", file=sys.stderr)
        return 130
    runs = {case: store.runs(case, args.seeds, key(case)) for case in cases}
    print(table.accuracies(runs))
    if all(case in runs for case in PAIR):
        print(f"\n{table.paired(PAIR, runs)}")
    for name in dict.fromkeys(case.task for case in cases):
        path = out / f"{name}-curves.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        figure = table.learning_curves(TASKS[name].about, {c: r for c, r in runs.items() if c.task == name})
        with replacing(path) as file:
            figure.savefig(file, format="png", dpi=110)
        print(f"curves: {path}", file=sys.stderr)
    return 0


def fill(store: Store, cases: Sequence[Case], seeds: int, *, quiet: bool) -> None:
    """Make the runs that `store` does not have."""
    splits: dict[str, Split] = {}
    keys = {case: key(case) for case in cases}
    wanted = [(case, seed) for seed in range(seeds) for case in cases]
    missing = [(case, seed) for case, seed in wanted if store.find(case, seed, keys[case]) is None]
    for number, (case, seed) in enumerate(missing, start=1):
        task = TASKS[case.task]
        if task.name not in splits:
            splits[task.name] = task.load()
        outcome = train(task, splits[task.name], case.method, case.sparsity, seed, progress=not quiet)
        history = outcome.history
        run = Run(outcome.accuracy, outcome.seconds, history["loss"], history["val_accuracy"], outcome.nonzeros)
        store.add(case, seed, keys[case], run)
        if not quiet:
            head = f"{number}/{len(missing)} {case.task} {case.label}, seed {seed}"
            print(f"{head}: {run.accuracy:.2%} in {run.seconds:.0f} s", file=sys.stderr, flush=True)


def key(case: Case) -> dict[str, object]:
    """What a run depends on besides case and seed: the settings, and how many weights each layer has."""
    task = TASKS[case.task]
    model = task.network(start(case.method, case.sparsity), np.random.default_rng(0))
    return {**asdict(task.settings), "weights": [parameter.value.size for parameter in model.parameters()]}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m examples.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=positive, default=5, help="runs of each kind (default: 5)")
    parser.add_argument("--only", nargs="+", choices=TASKS, help="these examples only")
    parser.add_argument("--out", default="compare-out", help="folder for pictures and runs (default: compare-out)")
    parser.add_argument("--json", help="file of the runs (default: runs.json in that folder)")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    return parser


if __name__ == "__main__":
    sys.exit(piped(main))
