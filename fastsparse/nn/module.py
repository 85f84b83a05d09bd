"""The base of all layers: calls, explicit backward, names of parameters, saved state.

In training mode a layer keeps what its backward needs, from a forward call to the next backward call; of two forward
calls it keeps nothing, since backward could not tell which of them is meant. In evaluation mode it keeps nothing, so
that any number of threads may call one model at once.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastsparse import checks
from fastsparse.arguments import Samples, as_cast
from fastsparse.nn.parameter import Parameter
from fastsparse.nn.state import commit, pattern_prefix, stage
from fastsparse.nn.summary import summary_table
from fastsparse.nn.watching import current_watcher

Array = NDArray[Any]
Self = TypeVar("Self", bound="Module")
_SEVERAL = object()  # in place of what was kept: there were several forward calls


class Module:
    """Base class of layers.

    A layer defines ``forward`` and ``backward``. Parameters and layers held as attributes, or in lists and tuples that
    are attributes, are found by themselves, in the order in which they were assigned.
    """

    training: bool = True
    # Arrays that are saved with the parameters and not trained.
    buffer_names: ClassVar[tuple[str, ...]] = ()
    # Type of the numbers a layer takes when that is not the type of its parameters.
    input_kind: ClassVar[str | None] = None
    _saved: Any = None

    def __call__(self, x: Samples) -> Array:
        """Run the layer on `x`; the same as ``forward``."""
        try:
            y = self.forward(x)
        except BaseException:
            if self.training:
                self._forget()  # layers before the one that failed
            raise
        watcher = current_watcher.get()
        if watcher is not None:
            watcher(self, y)
        return y

    def forward(self, x: Samples) -> Array:
        """Compute the output for `x`."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward")

    def backward(self, dy: Array, *, need_input: bool = True) -> Array | None:
        """Propagate the gradient of the forward call in training mode that came before.

        Parameters
        ----------
        dy : array of the output's shape
            Gradient of the loss at the output.
        need_input : bool
            False saves the work for the gradient at the input.

        Returns
        -------
        array of the input's shape, or None
            Gradient of the loss at the input. The gradients of the parameters are added to their ``grad``.

        Raises
        ------
        RuntimeError
            When no forward call in training mode came before, or several did: the gradient belongs to one of them.
            :meth:`train` forgets them.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define backward")

    def _keep(self, saved: Any) -> None:
        """Keep `saved` for backward, in training mode only."""
        if self.training:
            self._saved = saved if self._saved is None else _SEVERAL

    def _taken(self) -> Any:
        """What forward kept; it is forgotten here."""
        saved, self._saved = self._saved, None
        if saved is None:
            raise RuntimeError(f"{type(self).__name__}.backward needs a forward call in training mode before it")
        if saved is _SEVERAL:
            raise RuntimeError(
                f"{type(self).__name__}.backward came after several forward calls in training mode, expected one: "
                "make the others in evaluation mode, or call train() to forget them"
            )
        return saved

    def _forget(self) -> None:
        """Forget what forward calls kept, here and in all layers inside."""
        for _, module in self.named_modules():
            module._saved = None

    def __getstate__(self) -> dict[str, Any]:
        # What forward kept belongs to a step, not to the model.
        return {name: item for name, item in self.__dict__.items() if name != "_saved"}

    def takes_mask(self) -> bool:
        """Whether the layer has attention that hides keys: then x may be a tuple with a padding mask at its end."""
        return False

    # --- what is inside ------------------------------------------------------------------------

    def children(self) -> Iterator[tuple[str, Module]]:
        """Yield (name, layer) of the layers directly inside."""
        for name, item in self.members():
            if isinstance(item, Module):
                yield name, item

    def members(self) -> Iterator[tuple[str, Any]]:
        """Yield (name, object) of the attributes, of lists and tuples what is in them: ("blocks.0", ...)."""
        for name, item in vars(self).items():
            if isinstance(item, (list, tuple)) and name != "_saved":
                yield from ((f"{name}.{position}", inner) for position, inner in enumerate(item))
            else:
                yield name, item

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """Yield (name, layer) of this layer (named "") and of all layers inside, parents first."""
        yield prefix, self
        for name, child in self.children():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Yield (name, parameter) of all parameters, for example ("0.values", ...)."""
        for prefix, module in self.named_modules():
            for name, item in module.members():
                if isinstance(item, Parameter):
                    yield (f"{prefix}.{name}" if prefix else name), item

    def parameters(self) -> list[Parameter]:
        """All parameters."""
        return [parameter for _, parameter in self.named_parameters()]

    def common_dtype(self) -> np.dtype[Any]:
        """The type of all parameters, float32 where there are none.

        Raises
        ------
        TypeError
            When they have several.
        """
        dtypes = {parameter.dtype.name for parameter in self.parameters()}
        if len(dtypes) > 1:
            raise TypeError(f"model has parameters of {' and '.join(sorted(dtypes))}, expected one dtype")
        return np.dtype(dtypes.pop() if dtypes else np.float32)

    def named_buffers(self) -> Iterator[tuple[str, Array]]:
        """Yield (name, array) of all arrays that are saved but not trained."""
        for prefix, module in self.named_modules():
            for name in module.buffer_names:
                yield (f"{prefix}.{name}" if prefix else name), getattr(module, name)

    # --- modes and state -----------------------------------------------------------------------

    def train(self: Self, mode: bool = True) -> Self:
        """Switch to training mode (to evaluation mode with False); returns the layer."""
        for _, module in self.named_modules():
            module.training = bool(mode)
            module._saved = None
        return self

    def eval(self: Self) -> Self:
        """Switch to evaluation mode; returns the layer."""
        return self.train(False)

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self.parameters():
            parameter.zero_grad()

    def state_dict(self) -> dict[str, Array]:
        """Copies of all parameters, patterns and buffers.

        Returns
        -------
        dict of str to array
            ``name`` of every parameter and buffer; for a sparse parameter ``prefix.values`` also ``prefix.indptr``
            and ``prefix.indices``, for one of another name ``name.indptr`` and ``name.indices``.
        """
        state: dict[str, Array] = {}
        for name, parameter in self.named_parameters():
            if parameter.pattern is not None:
                prefix = pattern_prefix(name)
                state[f"{prefix}indptr"] = parameter.pattern.indptr.copy()
                state[f"{prefix}indices"] = parameter.pattern.indices.copy()
            state[name] = parameter.value.copy()
        state.update((name, array.copy()) for name, array in self.named_buffers())
        return state

    def load_state_dict(self, state: Mapping[str, ArrayLike]) -> None:
        """Take over what :meth:`state_dict` gave, patterns included: all of it or, on an error, nothing.

        Raises
        ------
        ValueError
            When a name is missing or unknown, or an array has another shape or type than the model's.
        """
        commit(stage(self, state))

    def config(self) -> dict[str, Any]:
        """Constructor arguments, in types that JSON knows, that rebuild the layer's geometry.

        By default those that the layer has as attributes of the same names; of its parameters, whether there is a bias
        and the dtype.
        """
        own = {name: item for name, item in self.members() if isinstance(item, Parameter)}
        found: dict[str, Any] = {}
        for name in inspect.signature(type(self)).parameters:
            if name in ("rng", "sparsity", "pattern"):  # which say what is drawn
                continue
            if name == "bias" and own:
                found[name] = self.__dict__.get(name) is not None
            elif name == "dtype" and own:
                found[name] = next(iter(own.values())).dtype.name
            elif isinstance(value := self.__dict__.get(name, self), (bool, int, float, str, tuple, list, type(None))):
                found[name] = _listed(value)
        return found

    def summary(self, input_shape: tuple[int, ...] | None = None) -> None:
        """Print a table of the layers with nonzeros, density and memory.

        Parameters
        ----------
        input_shape : tuple of int, optional
            With it (batch first) the table shows output shapes, found by one run on zeros.
        """
        print(summary_table(self, input_shape))

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.config().items())
        return f"{type(self).__name__}({arguments})"


def _listed(value: Any) -> Any:
    """A value with lists in place of tuples, as JSON has them."""
    return [_listed(item) for item in value] if isinstance(value, tuple) else value


def distinct(modules: list[Module], owner: str) -> None:
    """Raise unless no layer occurs twice inside `modules`, since a layer keeps what one forward call left."""
    seen: set[int] = set()
    for module in modules:
        for _, inner in module.named_modules():
            if id(inner) in seen:
                raise ValueError(f"{owner} holds the same {type(inner).__name__} twice, expected different layers")
            seen.add(id(inner))


def check_gradient(dy: ArrayLike, shape: tuple[int, ...], dtype: np.dtype[Any] | None = None) -> Array:
    """`dy` as an array of the output's shape and, unless it is None, type."""
    array = dy
    if not isinstance(array, np.ndarray) or array.dtype != dtype:
        array = checks.real_array(dy, "dy") if dtype is None else as_cast(dy, dtype, "dy", "the output")
    if array.shape != shape:
        raise ValueError(f"dy has shape {array.shape}, expected {shape}, the shape of the output")
    return array
