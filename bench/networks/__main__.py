"""Command line: `python -m bench.networks NAME -o FILE`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import onnx

from bench.baselines import onnx_session
from bench.networks import BUILDERS, bert

_SEQUENCE = 16


def _described(model: onnx.ModelProto, path: Path) -> str:
    """Size and sparsity, and, where onnxruntime is installed, what comes out for random input."""
    arrays = [onnx.numpy_helper.to_array(t) for t in model.graph.initializer]
    large = [a for a in arrays if a.ndim > 1 and a.dtype == np.float32]
    weights, nonzeros = sum(a.size for a in large), sum(np.count_nonzero(a) for a in large)
    text = f"{path}: {len(model.graph.node)} nodes, {weights / 1e6:.1f} M weights, {1 - nonzeros / weights:.1%} zeros"
    try:
        session = onnx_session(str(path), 1)
    except ImportError:
        return text
    rng, feeds = np.random.default_rng(0), {}
    for item in session.get_inputs():
        free = [1, _SEQUENCE]
        shape = [n if isinstance(n, int) else free.pop(0) for n in item.shape]
        ids = item.type == "tensor(int64)"
        feeds[item.name] = rng.integers(0, 1000, shape) if ids else rng.standard_normal(shape, np.float32)
    (y,) = session.run(None, feeds)
    sane = np.isfinite(y).all() and 1e-3 < y.std() < 1e3
    text += f"; output {y.shape}, mean {y.mean():.3f}, deviation {y.std():.3f}"
    if not sane:
        raise SystemExit(f"{text}: not what a trained network would give")
    return text


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
