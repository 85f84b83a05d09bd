"""Layers made of layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from textwrap import indent
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse import functional
from fastsparse.arguments import Samples
from fastsparse.nn.activations import floating
from fastsparse.nn.module import Module, check_gradient, distinct
from fastsparse.ops import activations

Array = NDArray[Any]


class Sequential(Module):
    """Layers run one after the other.

    A tuple of inputs is for the first layer. Where layers have attention, the last input may be a padding mask, bool
    (N, tokens), which is for these layers alone.

    Parameters
    ----------
    *layers : Module

    Examples
    --------
    >>> import fastsparse as fs
    >>> model = fs.nn.Sequential(fs.nn.SparseLinear(64, 32, activation="relu", rng=0), fs.nn.Linear(32, 10, rng=1))
    >>> [name for name, _ in model.named_parameters()]
    ['0.values', '0.bias', '1.weight', '1.bias']
    """

    def __init__(self, *layers: Module) -> None:
        for position, layer in enumerate(layers):
            if not isinstance(layer, Module):
                raise TypeError(f"layers[{position}] is a {type(layer).__name__}, expected a layer of fastsparse.nn")
        distinct(list(layers), "Sequential")
        self.layers = layers

    def children(self) -> Iterator[tuple[str, Module]]:
        return iter([(str(position), layer) for position, layer in enumerate(self.layers)])

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Module]:
        return iter(self.layers)

    def __getitem__(self, position: int) -> Module:
        return self.layers[position]

    def takes_mask(self) -> bool:
        return any(layer.takes_mask() for layer in self.layers)

    def forward(self, x: Samples) -> Array:
        y, mask = _without_mask(self, x)
        if mask is None:
            for layer in self.layers:
                y = layer(y)
            return y
        self._keep(mask)
        for position, layer in enumerate(self.layers):
            y = layer(_with_mask(layer, y, None if position and masks_memory(self, x) else mask))
        return y

    def backward(self, dy: Array, *, need_input: bool = True) -> Any:
        """As ``Module.backward``; of several inputs the gradients are a tuple, with None for a mask."""
        masked, self._saved = self._saved is not None, None
        grad: Any = dy
        # Without a gradient at the input, the first layer that has something to learn is the last one to run.
        first = 0 if need_input else next((i for i, layer in enumerate(self.layers) if layer.parameters()), 0)
        for layer in self.layers[:first]:
            layer._forget()
        for position in reversed(range(first, len(self.layers))):
            if grad is None:
                raise RuntimeError(f"layer {position + 1} gives no gradient at its input, which layer {position} needs")
            grad = self.layers[position].backward(grad, need_input=need_input or position > first)
            if masked and position:
                grad = _of_array(grad)
        if masked and need_input and not (len(self) and self.layers[0].takes_mask()):
            return (*grad, None) if isinstance(grad, tuple) else (grad, None)
        return grad

    def config(self) -> dict[str, Any]:
        return {}

    def __repr__(self) -> str:
        return _listing(type(self).__name__, self.layers)


class Residual(Module):
    """activation(body(x) + shortcut(x)); of a tuple of two inputs, body(x[0]) + shortcut(x[1]).

    Where a branch has attention, a padding mask, bool (N, tokens), may follow the inputs.

    Parameters
    ----------
    body : Module
    shortcut : Module, optional
        Default: x itself.
    activation : str, optional
    """

    def __init__(self, body: Module, shortcut: Module | None = None, activation: str | None = None) -> None:
        for name, item in (("body", body), ("shortcut", shortcut)):
            if not isinstance(item, Module) and not (item is None and name == "shortcut"):
                raise TypeError(f"{name} is a {type(item).__name__}, expected a layer of fastsparse.nn")
        functional.check_activation(activation)
        distinct([body] if shortcut is None else [body, shortcut], "Residual")
        self.body = body
        self.shortcut = shortcut
        self.activation = activation

    def forward(self, x: Samples) -> Array:
        inputs, mask = _without_mask(self, x)
        source, other = _inputs(inputs, 2)
        y = floating(self.body(_with_mask(self.body, source, mask)))
        shortcut = self.shortcut
        passed: Any = floating(other) if shortcut is None else shortcut(_with_mask(shortcut, other, mask))
        if y.shape != passed.shape:
            raise ValueError(f"body gives shape {y.shape} and the shortcut {passed.shape}, expected equal shapes")
        y, passed = _in_one_type(self, [y, passed])
        before = y + passed
        y = before if self.activation is None else activations.activate(self.activation, before)
        kept = y if self.activation in activations.FROM_OUTPUT else before
        self._keep((kept, y.shape, y.dtype, isinstance(inputs, tuple), mask is not None))
        return y

    def takes_mask(self) -> bool:
        return any(branch.takes_mask() for branch in (self.body, self.shortcut) if branch is not None)

    def backward(self, dy: Array, *, need_input: bool = True) -> Any:
        """As ``Module.backward``; of two inputs the gradients are a tuple, with None for a mask."""
        kept, shape, dtype, several, masked = self._taken()
        grad = check_gradient(dy, shape, dtype)
        if self.activation is not None:
            grad = activations.activate_backward(self.activation, grad, kept)
        through = _of_array(self.body.backward(grad, need_input=need_input))
        around = grad if self.shortcut is None else _of_array(self.shortcut.backward(grad, need_input=need_input))
        if several:
            return (through, around, *[None] * masked) if need_input else None
        if through is None or around is None:
            return None
        through, around = _in_one_type(self, [through, around])
        return (through + around, None) if masked else through + around

    def config(self) -> dict[str, Any]:
        return {"activation": self.activation}


class Concat(Module):
    """Outputs of several branches side by side, along the second axis: channels of images, or features.

    With None as a branch it is a skip connection by concatenation, as U-Nets and DenseNets have them. It is also the
    beginning of a model of several inputs: of a tuple of arrays each branch reads its own. Ronneberger et al., U-Net,
    MICCAI 2015; Huang et al., Densely connected convolutional networks, CVPR 2017.

    Parameters
    ----------
    *branches : Module or None
        None passes x on.

    Examples
    --------
    >>> import numpy as np, fastsparse as fs
    >>> block = fs.nn.Concat(None, fs.nn.SparseConv2d(8, 4, 3, padding=1, rng=0))
    >>> block(np.zeros((2, 8, 5, 5), np.float32)).shape
    (2, 12, 5, 5)
    """

    def __init__(self, *branches: Module | None) -> None:
        if not branches:
            raise ValueError("branches is empty, expected at least one layer or None")
        given: tuple[object, ...] = branches
        for position, branch in enumerate(given):
            if branch is not None and not isinstance(branch, Module):
                kind = type(branch).__name__
                raise TypeError(f"branches[{position}] is a {kind}, expected a layer of fastsparse.nn or None")
        distinct([branch for branch in branches if branch is not None], "Concat")
        self.branches = branches

    def children(self) -> Iterator[tuple[str, Module]]:
        return ((str(position), branch) for position, branch in enumerate(self.branches) if branch is not None)

    def forward(self, x: Samples) -> Array:
        """x, or a tuple of one array for each branch -> (N, sum of the branches' second axes, ...)."""
        sources = _inputs(x, len(self.branches))
        parts = [floating(one) if branch is None else branch(one) for branch, one in zip(self.branches, sources)]
        first = parts[0].shape
        for part in parts:
            if part.ndim < 2 or part.shape[:1] + part.shape[2:] != first[:1] + first[2:]:
                shapes = " and ".join(str(p.shape) for p in parts)
                raise ValueError(f"the branches give shapes {shapes}, expected equal ones but for the second axis")
        y = np.concatenate(_in_one_type(self, parts), 1)
        self._keep(([part.shape[1] for part in parts], y.shape, y.dtype, isinstance(x, tuple)))
        return y

    def backward(self, dy: Array, *, need_input: bool = True) -> Any:
        """As ``Module.backward``; of several inputs the gradients are a tuple."""
        sizes, shape, dtype, several = self._taken()
        parts = map(np.ascontiguousarray, np.split(check_gradient(dy, shape, dtype), np.cumsum(sizes)[:-1], 1))
        grads: list[Any] = [
            part if branch is None else branch.backward(part, need_input=need_input)
            for branch, part in zip(self.branches, parts)
        ]
        if several or not need_input:
            return tuple(grads) if need_input else None
        if any(grad is None for grad in grads):
            return None
        first, *rest = _in_one_type(self, grads)
        return sum(rest, first)

    def config(self) -> dict[str, Any]:
        return {"count": len(self.branches)}

    def __repr__(self) -> str:
        return _listing("Concat", self.branches)


def first_layer(model: Module) -> Module | None:
    """The layer that reads the input of a network of Sequentials, where it is one layer."""
    while isinstance(model, Sequential):
        if not len(model):
            return None
        model = model[0]
    return model


def masks_last(layer: Module, axes: Sequence[int]) -> bool:
    """Whether the last of a layer's inputs, which have so many axes, is a padding mask (N, tokens)."""
    if len(axes) < 2 or axes[-1] != 2 or not layer.takes_mask():
        return False
    first, inputs = first_layer(layer), 1
    if isinstance(first, (Concat, Residual)) and not first.takes_mask():
        inputs = len(first.branches) if isinstance(first, Concat) else 2
    return len(axes) > inputs


def masks_memory(layer: Module, x: Any) -> bool:
    """Whether the inputs are (x, memory, mask) of attention: then the mask is for the first layer alone."""
    return isinstance(x, tuple) and len(x) == 3 and not isinstance(first_layer(layer), (Concat, Residual))


def _without_mask(layer: Module, x: Any) -> tuple[Any, Any]:
    """Inputs, and the padding mask among them or None."""
    if not isinstance(x, tuple) or not masks_last(layer, [np.ndim(one) for one in x]):
        return x, None
    return (x[0] if len(x) == 2 else x[:-1]), x[-1]


def _with_mask(layer: Module, x: Any, mask: Any) -> Any:
    """What a layer gets when its container has got a mask."""
    if mask is None or not layer.takes_mask():
        return x
    return (*x, mask) if isinstance(x, tuple) else (x, mask)


def _of_array(grad: Any) -> Any:
    """The gradient at x where it comes as one of x and a mask."""
    return grad[0] if isinstance(grad, tuple) else grad


def _inputs(x: Any, count: int) -> tuple[Any, ...]:
    """What each of `count` branches reads: the same array, or of a tuple one each."""
    if not isinstance(x, tuple):
        return (x,) * count
    if len(x) != count:
        raise ValueError(f"x is a tuple of {len(x)} arrays, expected {count}, one for each branch")
    return x


def _in_one_type(layer: Module, parts: list[Array]) -> list[Array]:
    """What branches give in the type of the layer's parameters: branches without any keep that of the input."""
    if all(part.dtype == parts[0].dtype for part in parts):
        return parts
    dtype = next((parameter.dtype for parameter in layer.parameters()), np.result_type(*parts))
    with np.errstate(over="ignore"):
        return [part.astype(dtype, copy=False) for part in parts]


def _listing(name: str, layers: Sequence[Module | None]) -> str:
    """A container as text, one layer per line, those inside it indented."""
    lines = "".join(indent(f"{position}: {layer!r}\n", "  ") for position, layer in enumerate(layers))
    return f"{name}(\n{lines})" if lines else f"{name}()"
