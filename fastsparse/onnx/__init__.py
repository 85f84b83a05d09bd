"""ONNX models for the engine: read, cut into programs for the kernels and subgraphs for the library.

The way of a model: `reader` makes a `model.Model` of the file; `folding` infers shapes and computes what follows from
constants; `rewriting` makes each activation one node; `partition` cuts out regions, of nodes that `lowering` and
`recurrent` can write as programs, by `estimates`; `executor` runs regions on the kernels and the rest in `sessions` of
onnxruntime; `engine` is what users call, and measures who runs what. Apart from it: `writer`, for
`export` and models of TensorFlow Lite, `pruning`, and `racing` for ``fastsparse bench``.
"""

import fastsparse.engine  # noqa: F401 - the engine of a graph stands on it, and `compile` there makes both
