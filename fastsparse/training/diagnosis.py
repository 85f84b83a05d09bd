"""Search for the layer where the numbers of a model become NaN or infinite."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from fastsparse.arguments import is_sparse
from fastsparse.nn.module import Array, Module
from fastsparse.nn.parameter import Parameter
from fastsparse.nn.watching import watching


def find_not_finite(model: Module, x: Any) -> str:
    """Name the first array with NaN or Inf when the model, in its present mode, runs on x.

    Buffers (running statistics) are restored.
    """
    for part in x if isinstance(x, tuple) else (x,):
        if not _finite(np.asarray(part.data if is_sparse(part) else part)):
            return "the batch's x is not finite"
    for name, parameter in model.named_parameters():
        if not _finite(parameter.value):
            return f"parameter {name!r} is not finite"
    names = {id(module): name for name, module in model.named_modules()}
    found: list[str] = []

    def watch(module: Module, y: Array) -> None:
        if not found and not _finite(y):
            found.append(f"layer {names[id(module)]!r} ({type(module).__name__}) gives an output that is not finite")

    saved = [
        (module, name, getattr(module, name)) for _, module in model.named_modules() for name in module.buffer_names
    ]
    try:
        with watching(watch), np.errstate(all="ignore"):
            model(x)
    finally:
        for module, name, array in saved:
            setattr(module, name, array)
    return found[0] if found else "the outputs of all layers are finite, the loss function is not"


def _finite(array: Array) -> bool:
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def check_parameters(model: Module, trained: Collection[Parameter], when: str) -> None:
    """Raise unless those that were trained are finite: a gradient may overflow where the loss does not.

    Raises
    ------
    FloatingPointError
    """
    for name, parameter in model.named_parameters():
        if parameter in trained and parameter.grad is not None and not _finite(parameter.value):
            raise FloatingPointError(f"parameter {name!r} is not finite {when}, its gradient or the step was too large")
