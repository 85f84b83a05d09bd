"""Peak memory of training one large sparse layer, in a process of its own: `python -m bench.training_memory`.

The layer has 50,000 inputs and 10,000 outputs at 99% sparsity: 5 million weights, where a dense one would need 2 GB for
its weights alone. What counts is the peak of the resident memory over what the process has after importing fastsparse.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
from collections.abc import Sequence
from typing import Any

INPUTS, OUTPUTS, SPARSITY, BATCH, STEPS = 50_000, 10_000, 0.99, 128, 3


def peak() -> float:
    """Largest resident memory of this process so far, in MB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def measure(inputs: int, outputs: int, sparsity: float, batch: int, need_input: bool) -> dict[str, Any]:
    """Train for some steps in this process; peaks in MB over the start, stage by stage."""
    import numpy as np

    import fastsparse as fs
    from fastsparse import nn, training

    before = peak()
    stages: dict[str, float] = {}

    def done(stage: str) -> None:
        stages.setdefault(stage, round(peak() - before, 1))

    model = nn.SparseLinear(inputs, outputs, sparsity=sparsity, rng=0)
    done("layer")
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((batch, inputs), dtype=np.float32), rng.integers(0, outputs, batch)
    optimizer = training.SGD(model.parameters(), 0.01, 0.9)
    done("batch and optimizer")
    for _ in range(STEPS):
        optimizer.zero_grad()
        output = model(x)
        done("forward")
        _, grad = training.cross_entropy(output, y)
        model.backward(grad, need_input=need_input)
        done("backward")
        optimizer.step()
        done("update")
    stages[f"{STEPS} steps"] = round(peak() - before, 1)
    return {"nonzeros": model.pattern.nnz, "threads": fs.get_num_threads(), "import": round(before, 1), "peaks": stages}


def in_new_process(*arguments: Any) -> dict[str, Any]:
    """:func:`measure` in a fresh interpreter."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, arguments)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the peak over the import, with and without the gradient at the input."""
    parser = argparse.ArgumentParser(prog="python -m bench.training_memory", description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--json", action="store_true", help="print one object")
    args = parser.parse_args(argv)
    found = {
        name: in_new_process(INPUTS, OUTPUTS, SPARSITY, args.batch, need_input)
        for name, need_input in (("training one layer", False), ("with the gradient at its input", True))
    }
    if args.json:
        print(json.dumps(found, indent=1))
        return 0
    print(f"SparseLinear {INPUTS:,} -> {OUTPUTS:,}, {SPARSITY:.0%} sparse, batch {args.batch}, SGD with momentum\n")
    for name, result in found.items():
        stages = ", ".join(f"{stage} {size:.0f}" for stage, size in result["peaks"].items())
        print(
            f"{name}: {max(result['peaks'].values()):.0f} MB over {result['import']:.0f} MB (so far, after: {stages})"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
