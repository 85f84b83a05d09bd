"""The inference engine: a network compiled into one sequence of kernel calls.

The names are looked up when they are touched: `compile` knows ONNX models, whose modules need some of this package.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fastsparse.engine.program import UnsupportedOperatorError

if TYPE_CHECKING:
    from fastsparse.engine.engine import Engine, compile  # noqa: A004 - the public name
    from fastsparse.engine.loading import load_engine

_HOMES = {"Engine": "engine", "compile": "engine", "load_engine": "loading"}

__all__ = ["Engine", "UnsupportedOperatorError", "compile", "load_engine"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fastsparse.engine' has no attribute {name!r}")
    return getattr(import_module(f"fastsparse.engine.{_HOMES[name]}"), name)
