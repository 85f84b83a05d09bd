"""Networks of the end-to-end benchmarks: ONNX files with pruned weights, built from real patterns or random ones.

    python -m bench.networks resnet50 --dlmc DIR -o resnet50.onnx

Values are drawn at random and scaled so that activations keep about the same size from layer to layer.
"""

from .resnet import resnet50, resnet50_model

__all__ = ["resnet50", "resnet50_model"]
