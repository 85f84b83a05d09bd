"""ONNX models for the engine: read, cut into programs for the kernels and subgraphs for the library."""

import fastsparse.engine  # noqa: F401 - the engine of a graph stands on it, and `compile` there makes both
