"""Command line: `python -m bench.networks NAME -o FILE`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import onnx

from bench.networks import BUILDERS, bert


def _described(model: onnx.ModelProto, path: Path) -> str:
    """Size and sparsity."""
    arrays = [onnx.numpy_helper.to_array(t) for t in model.graph.initializer]
    large = [a for a in arrays if a.ndim > 1 and a.dtype == np.float32]
    weights, nonzeros = sum(a.size for a in large), sum(np.count_nonzero(a) for a in large)
    return f"{path}: {len(model.graph.node)} nodes, {weights / 1e6:.1f} M weights, {1 - nonzeros / weights:.1%} zeros"


def main(arguments: list[str] | None = None) -> int:
    """Build a network and write it."""
    parser = argparse.ArgumentParser(prog="python -m bench.networks", description=__doc__)
    parser.add_argument("name", choices=BUILDERS)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--dlmc", type=Path, metavar="DIR", help="real patterns for resnet50; random ones otherwise")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ids", action="store_true", help="bert: from ids of tokens instead of hidden states")
    options = parser.parse_args(arguments)
    try:
        ids = options.name == "bert" and options.ids
        model = bert(options.seed, ids=True) if ids else BUILDERS[options.name](options.dlmc, options.seed)
        onnx.save(model, options.output)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(_described(model, options.output))
    return 0


if __name__ == "__main__":
    sys.exit(main())
