"""Torch modules for the algorithms of `fastsparse.sparsity`: SET, RigL, gradual and magnitude pruning.

They see a sparse layer's values as a parameter of fastsparse: values, pattern, gradient. A new pattern goes into the
layer's own tensors, which the optimizer keeps, and the optimizer's state (momentum, moments) follows its nonzeros.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from fastsparse.csr import Pattern
from fastsparse.sparsity import _model, growth
from fastsparse.torch import operators

if TYPE_CHECKING:
    from fastsparse.torch.layers import SparseLayer

Array = NDArray[Any]

_optimizers: weakref.WeakSet[Optimizer] = weakref.WeakSet()
_hooks: list[Any] = []


def follow_optimizers() -> None:
    """From now on notice which optimizers make steps, so that their state can follow its nonzeros."""
    if not _hooks:
        _hooks.append(register_optimizer_step_post_hook(lambda optimizer, *_: _optimizers.add(optimizer)))


class LayerParameter:
    """The values of a sparse layer, as algorithms see a parameter (`SparseParameter`)."""

    def __init__(self, layer: SparseLayer) -> None:
        self._layer = layer

    def _structure(self) -> operators.Structure:
        layer = self._layer
        return operators.structure_of(layer.indptr, layer.indices, layer._columns)

    @property
    def value(self) -> Array:
        """Values, (nnz,)."""
        return _array(self._layer.values)

    @property
    def pattern(self) -> Pattern:
        """Where they are."""
        return self._layer.pattern

    @property
    def grad(self) -> Array | None:
        """Gradient at the nonzeros, (nnz,)."""
        grad = self._layer.values.grad
        return None if grad is None else _array(grad)

    def watch(self, wanted: bool) -> None:
        """Have the next backward passes keep what `grow_scores` needs, or not."""
        structure = self._structure()
        structure.watched = wanted
        if not wanted:
            structure.gradients = []

    def grow_scores(self, k: int) -> tuple[NDArray[np.int64], Array]:
        """Places outside the pattern with the largest gradients, and their magnitudes; see `growth.grow_scores`."""
        return growth.grow_scores(self.pattern, self._structure().gradients, k)

    def replace_pattern(self, pattern: Pattern, source: Any = None) -> None:
        """Move to another pattern; values and the state of optimizers follow their nonzeros, new ones are zero."""
        layer, old = self._layer, self.pattern
        where = growth.checked_source(old, pattern, source)
        fresh = np.flatnonzero(where < 0)
        states = [o.state[layer.values] for o in list(_optimizers) if layer.values in o.state]
        for state in states:
            for name, tensor in state.items():
                if isinstance(tensor, torch.Tensor) and tensor.shape == (old.nnz,):
                    moved = growth.carried(_array(tensor), where, fresh)
                    state[name] = torch.from_numpy(moved).to(tensor.dtype)
        self.watch(False)
        layer._adopt(pattern, growth.carried(self.value, where, fresh))


class _DenseParameter(NamedTuple):
    """What algorithms leave alone."""

    pattern: None = None


def _array(tensor: torch.Tensor) -> Array:
    tensor = tensor.detach()
    return (tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()).numpy()


@_model.named_parameters.register
def _(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Parameters by name; values that layers share are one."""
    seen = set()
    for prefix, layer in model.named_modules():
        for name, parameter in layer.named_parameters(prefix, recurse=False):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            values = getattr(layer, "indices", None) is not None and parameter is getattr(layer, "values", None)
            yield name, LayerParameter(layer) if values else _DenseParameter()
