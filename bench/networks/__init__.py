"""Networks of the end-to-end benchmarks: ONNX files with pruned weights, built from real patterns or random ones.

    python -m bench.networks resnet50 --dlmc DIR -o resnet50.onnx

Values are drawn at random and scaled so that activations keep about the same size from layer to layer.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx

from .bert import bert
from .mlp import mlp
from .mobilenet import efficientnet_b0, mobilenet, mobilenet_v3_small
from .resnet import resnet50

# By name: the DLMC's folder, if it is at hand, and a seed, to the model.
BUILDERS: dict[str, Callable[..., onnx.ModelProto]] = {
    "resnet50": lambda dlmc=None, seed=0: resnet50(dlmc, seed),
    "mobilenet": lambda dlmc=None, seed=0: mobilenet(seed),
    "mobilenet-v3-small": lambda dlmc=None, seed=0: mobilenet_v3_small(seed),
    "efficientnet-b0": lambda dlmc=None, seed=0: efficientnet_b0(seed),
    "bert": lambda dlmc=None, seed=0: bert(seed),
    "mlp": lambda dlmc=None, seed=0: mlp(seed),
}
