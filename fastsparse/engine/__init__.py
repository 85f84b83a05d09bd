"""The inference engine: a network compiled into one sequence of kernel calls."""

from fastsparse.engine.engine import Engine, compile
from fastsparse.engine.program import UnsupportedOperatorError

__all__ = ["Engine", "UnsupportedOperatorError", "compile"]
