"""The inference engine: a network compiled into one sequence of kernel calls."""

from fastsparse.engine.engine import Engine, compile  # noqa: A004 - the public name
from fastsparse.engine.loading import load_engine
from fastsparse.engine.program import UnsupportedOperatorError

__all__ = ["Engine", "UnsupportedOperatorError", "compile", "load_engine"]
