"""ONNX models for the engine: read, specialised to shapes, cut into programs for the kernels and host steps."""
