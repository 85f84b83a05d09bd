"""The interface that ONNX's own tests speak to: `prepare` a model, `run` it on arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onnx.backend.base import Backend, BackendRep

from fastsparse.onnx.engine import GraphEngine, compile_onnx


class FastsparseRep(BackendRep):
    """A compiled model."""

    def __init__(self, engine: GraphEngine) -> None:
        self.engine = engine

    def run(self, inputs: Sequence[Any], **kwargs: Any) -> tuple[Any, ...]:
        """Outputs for inputs in the order of the model's."""
        return tuple(self.engine.run(inputs))


class FastsparseBackend(Backend):
    """Models on the CPU, without tuning."""

    @classmethod
    def prepare(cls, model: Any, device: str = "CPU", **kwargs: Any) -> FastsparseRep:
        """Compile a model."""
        return FastsparseRep(compile_onnx(model, tune=False))

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Only the CPU."""
        return device.partition(":")[0] == "CPU"


prepare, supports_device = FastsparseBackend.prepare, FastsparseBackend.supports_device
