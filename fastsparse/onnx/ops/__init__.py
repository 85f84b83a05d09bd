"""The table of operators: one entry each, made in one module per family."""

from __future__ import annotations

from fastsparse.onnx.ops import (
    convolving,
    creating,
    elementwise,
    moving,
    multiplying,
    normalising,
    pooling,
    reducing,
    resizing,
    shape,
)
from fastsparse.onnx.table import Operator

OPERATORS: dict[str, Operator] = {
    **elementwise.OPERATORS,
    **shape.OPERATORS,
    **moving.OPERATORS,
    **creating.OPERATORS,
    **reducing.OPERATORS,
    **normalising.OPERATORS,
    **convolving.OPERATORS,
    **pooling.OPERATORS,
    **multiplying.OPERATORS,
    **resizing.OPERATORS,
}
