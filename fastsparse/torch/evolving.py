"""Torch modules for the algorithms of `fastsparse.sparsity`: SET, RigL, gradual and magnitude pruning.

They see a sparse layer's values as a parameter of fastsparse: values, pattern, gradient. A new pattern goes into the
layer's own tensors, which the optimizer keeps, and the optimizer's state (momentum, moments) follows its nonzeros.

In a process group, full gradients are summed over all ranks, block by block, and new patterns are compared by a hash:
all ranks call the algorithms at the same steps, and end with the same patterns.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
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
        """Elements outside the pattern with the largest gradients, and their magnitudes; see `growth.grow_scores`."""
        gradients = self._structure().gradients
        return growth.grow_scores(self.pattern, [_Summed(gradients)] if gradients and _ranks() > 1 else gradients, k)

    def replace_pattern(self, pattern: Pattern, source: Any = None) -> None:
        """Move to another pattern; values and the state of optimizers follow their nonzeros, new ones are zero."""
        layer, old = self._layer, self.pattern
        _check_same_everywhere(pattern)
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


def _ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _Summed:
    """The full gradient over all ranks."""

    def __init__(self, gradients: Sequence[growth.FullGradient]) -> None:
        self._gradients = gradients

    def rows(self, first: int, stop: int) -> Array:
        """Rows `first` to `stop`; every rank gets the same bits."""
        block = np.ascontiguousarray(self._gradients[0].rows(first, stop))
        for gradient in self._gradients[1:]:
            block += gradient.rows(first, stop)
        dist.all_reduce(torch.from_numpy(block))
        return block


def _check_same_everywhere(pattern: Pattern) -> None:
    """Raise RuntimeError when the ranks of a process group have decided on different patterns."""
    if _ranks() == 1:
        return
    digest = hashlib.blake2b(pattern.indptr.data, digest_size=8)
    digest.update(pattern.indices.data)
    ours = torch.tensor([int.from_bytes(digest.digest(), "little", signed=True)])
    hashes = [torch.empty_like(ours) for _ in range(_ranks())]
    dist.all_gather(hashes, ours)
    if len(set(map(int, hashes))) > 1:
        raise RuntimeError(
            "the ranks decided on different patterns, expected the same values on all of them (DistributedDataParallel "
            "sees to it) and, for SET, the same rng"
        )


class _DenseParameter(NamedTuple):
    """What algorithms leave alone."""

    pattern: None = None


def _array(tensor: torch.Tensor) -> Array:
    tensor = tensor.detach()
    return (tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()).numpy()


@_model.named_parameters.register
def _(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Parameters by name; values that layers share are one."""
    seen: dict[int, tuple[str, Any]] = {}
    for prefix, layer in model.named_modules():
        for name, parameter in layer.named_parameters(prefix, recurse=False):
            first, indices = seen.setdefault(id(parameter), (name, getattr(layer, "indices", None)))
            if first != name:
                if indices is not getattr(layer, "indices", None):
                    raise ValueError(
                        f"{first} and {name} are one parameter, expected layers that share it to share the buffers "
                        "indptr and indices as well"
                    )
                continue
            if name.endswith("values_orig") and hasattr(layer, "_columns"):
                raise ValueError(
                    f"{name} is masked by torch.nn.utils.prune, expected values (prune.remove makes them so)"
                )
            values = getattr(layer, "indices", None) is not None and parameter is getattr(layer, "values", None)
            yield name, LayerParameter(layer) if values else _DenseParameter()
