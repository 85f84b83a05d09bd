"""What it costs that patterns change while a network trains: `python -m bench.pattern_change`.

A change is felt in two steps: the one it ends, in which the algorithm chooses and RigL computes gradients outside the
pattern, and the next one, which builds new plans. What these two take beyond two ordinary steps is the change's cost;
the table says what share of the training time it is when patterns change every so many steps.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence

import fastsparse as fs
from bench.measure import pinned
from bench.training_step import CASES, MOMENTUM, TIMED_RATE, data
from fastsparse import sparsity, training

# Steps between changes while measuring: the last ones of each round are ordinary.
_ROUND = 6


def measure(name: str, kind: type[sparsity.SET | sparsity.RigL], share: float, rounds: int) -> tuple[float, float]:
    """Seconds of an ordinary step, and what one change costs beyond that; medians over `rounds` changes."""
    make, shape = CASES[name]
    model, (x, y) = make(share), data(shape)
    optimizer = training.SGD(model.parameters(), TIMED_RATE, MOMENTUM)
    algorithm = kind(model, every=_ROUND)
    seconds: list[list[float]] = [[] for _ in range(_ROUND)]
    for step in range(1, (rounds + 2) * _ROUND):
        start = time.perf_counter()
        optimizer.zero_grad()
        _, grad = training.cross_entropy(model(x), y)
        model.backward(grad, need_input=False)
        optimizer.step()
        algorithm.step(step)
        if step >= 2 * _ROUND:
            seconds[step % _ROUND].append(time.perf_counter() - start)
    change, after = statistics.median(seconds[0]), statistics.median(seconds[1])
    ordinary = statistics.median(second for place in seconds[3:] for second in place)
    return ordinary, change + after - 2 * ordinary


def main(argv: Sequence[str] | None = None) -> int:
    """Print the cost of a change of patterns, and its share of the training time."""
    parser = argparse.ArgumentParser(prog="python -m bench.pattern_change", description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=fs.get_num_threads())
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--every", type=int, default=100, help="steps between changes that the share is for")
    parser.add_argument("--sparsity", type=float, default=0.9)
    args = parser.parse_args(argv)
    print(f"{args.threads} threads, {args.sparsity:.0%} sparse, a change every {args.every} steps; ms\n")
    print(
        "| network | algorithm | step | change of patterns with new plans | share of training |\n|---|---|---|---|---|"
    )
    with pinned(args.threads):
        for name in CASES:
            for kind in (sparsity.SET, sparsity.RigL):
                step, extra = measure(name, kind, args.sparsity, args.rounds)
                share = extra / (args.every * step + extra)
                cells = (name, kind.__name__, f"{step * 1e3:.1f}", f"{extra * 1e3:.1f}", f"{share:.1%}")
                print(f"| {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
