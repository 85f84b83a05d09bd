"""The table that ``model.summary()`` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastsparse import checks
from fastsparse.nn.parameter import Parameter
from fastsparse.nn.watching import watching
from fastsparse.text_table import text_bytes, text_table

if TYPE_CHECKING:
    from fastsparse.nn.module import Module

_HEADER = ("layer", "type", "output shape", "nonzeros", "of", "density", "memory")


def summary_table(model: Module, input_shape: tuple[int, ...] | None = None) -> str:
    """Describe the layers of `model`, one line each, and their totals.

    Parameters
    ----------
    model : Module
    input_shape : tuple of int, optional
        Batch first; output shapes are found by one run on zeros in evaluation mode.
    """
    shapes = {} if input_shape is None else _output_shapes(model, checks.shape(input_shape, "input_shape"))
    rows = []
    for name, module in model.named_modules():
        own = [item for _, item in module.members() if isinstance(item, Parameter)]
        if not own and any(True for _ in module.children()):
            continue
        shape = shapes.get(id(module))
        text = "" if shape is None else "(" + ", ".join(map(str, shape)) + ")"
        rows.append((name or "model", type(module).__name__, text, *_counts(own)))
    rows.append(("total", "", "", *_counts(model.parameters())))
    return text_table(_HEADER, rows, text=3, total=True)


def _counts(parameters: list[Parameter]) -> tuple[str, str, str, str]:
    """Stored numbers, numbers a dense layer would have, their ratio, bytes."""
    if not parameters:
        return "", "", "", ""
    stored = sum(p.value.size for p in parameters)
    full = sum(int(np.prod(p.shape, dtype=object)) for p in parameters)
    return f"{stored:,}", f"{full:,}", f"{stored / max(full, 1):.2%}", text_bytes(sum(p.nbytes for p in parameters))


def _output_shapes(model: Module, input_shape: tuple[int, ...]) -> dict[int, tuple[int, ...]]:
    """Shape of every layer's output, by the layer's id."""
    shapes: dict[int, tuple[int, ...]] = {}

    def watch(module: Module, y: NDArray[Any]) -> None:
        shapes[id(module)] = tuple(y.shape)

    modes = [(module, module.training) for _, module in model.named_modules()]
    zeros = np.zeros(input_shape, _input_type(model))
    try:
        for module, _ in modes:
            module.training = False
        with watching(watch):
            model(zeros)
    finally:
        for module, mode in modes:
            module.training = mode
    return shapes


def _input_type(model: Module) -> np.dtype[Any]:
    """Input dtype of the first layer that has one: integers for an Embedding, else that of its parameters."""
    for _, module in model.named_modules():
        if module.input_kind is not None:
            return np.dtype(module.input_kind)
        own = [item for _, item in module.members() if isinstance(item, Parameter)]
        if own:
            return own[0].dtype
    return np.dtype(np.float32)
