"""TensorFlow Lite models for the engine: read, checked, and written anew as ONNX models."""
