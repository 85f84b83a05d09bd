"""From a model to a graph of fixed shapes: constants are folded, dead nodes dropped, every size is a number.

Shapes are found by the operators' own rules. What is computed on the way are constants alone: the arithmetic of
shapes, and weights that nodes make. A shape that depends on the numbers of an input makes that input a parameter:
graphs are then made per value of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from fastsparse.engine.program import UnsupportedOperatorError
from fastsparse.onnx.model import Array, Constant, Model, Node, Shape, names_in, unused
from fastsparse.onnx.ops import OPERATORS
from fastsparse.onnx.table import Info, Misfit, ValueNeeded, like

MOST_CONSTANTS = 2**32  # bytes of all that is folded
_MOST_PARAMETERS = 4096  # numbers in an input that shapes depend on


class ParametersNeeded(Exception):
    """Shapes depend on the numbers of these inputs."""

    def __init__(self, names: frozenset[str], why: str) -> None:
        super().__init__(why)
        self.names = names


@dataclass(eq=False)
class Graph:
    """A model whose sizes are all known. `infos` has every tensor that is left; constants are among them."""

    nodes: list[Node]
    infos: dict[str, Info]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def constant(self, name: str) -> Constant | None:
        """The numbers of a constant."""
        return self.infos[name].constant if name else None

    def array(self, name: str) -> Array | None:
        """The numbers of a constant, with their zeros."""
        return self.infos[name].value if name else None

    def producers(self) -> dict[str, Node]:
        """The node that writes each tensor."""
        return {name: node for node in self.nodes for name in node.outputs}

    def uses(self) -> Counter[str]:
        """How often each tensor is read, by nodes or as an output."""
        return Counter([name for node in self.nodes for name in node.inputs if name] + list(self.outputs))

    def readers(self) -> dict[str, list[Node]]:
        """The nodes that read each tensor."""
        found: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                found.setdefault(name, []).append(node)
        return found


def infos_of(node: Node, inputs: list[Info | None]) -> list[Info]:
    """What a node's outputs are; errors name the node.

    Raises
    ------
    ValueNeeded
        When they depend on numbers that are not known.
    ValueError
        When the inputs do not fit.
    """
    try:
        with np.errstate(all="ignore"):
            found = OPERATORS[node.op].infer(node, inputs)
    except Misfit as error:
        raise ValueError(f"{node}: {error}") from None
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f"{node} has inputs or attributes that do not fit: {error}") from error
    if len(found) != len(node.outputs):
        raise ValueError(f"{node} has {len(node.outputs)} outputs, expected {len(found)}")
    return [replace(info, shape=tuple(int(n) for n in info.shape)) for info in found]


def computed(node: Node, inputs: list[Array | None], infos: list[Info]) -> list[Array]:
    """A node's outputs, as new arrays or views of its inputs."""
    operator = OPERATORS[node.op]
    try:
        with np.errstate(all="ignore"):
            if operator.view is not None:
                return operator.view(node, inputs)
            outs = [np.empty(info.shape, info.dtype) for info in infos]
            operator.run(node, inputs, outs)
            return outs
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"{node} cannot be computed: {error}") from error


class _Propagation:
    """What is known of every tensor, found node by node."""

    def __init__(self, known: Mapping[str, Info]) -> None:
        self.infos: dict[str, Info] = dict(known)
        self.left: list[Node] = []
        self.folded = 0  # bytes

    def visit(self, node: Node, partial: bool) -> None:
        """Fold the node or keep it; `partial` keeps those whose inputs are not known yet."""
        named = [name for name in node.inputs if name]
        if partial and not all(name in self.infos for name in named):
            self.left.append(node)
            return
        inputs = [self.infos[name] if name else None for name in node.inputs]
        outputs = infos_of(node, inputs)
        if any(info.constant is None for info in outputs):
            if all(info is None or info.constant is not None for info in inputs):
                outputs = self._fold(node, inputs, outputs)
            else:
                self.left.append(node)
        self.infos.update(zip(node.outputs, outputs))

    def _fold(self, node: Node, inputs: list[Info | None], outputs: list[Info]) -> list[Info]:
        if OPERATORS[node.op].view is None:
            self.folded += sum(info.nbytes for info in outputs)
            if self.folded > MOST_CONSTANTS:
                raise ValueError(f"{node}: the model's constants take more than {MOST_CONSTANTS} bytes")
        arrays = computed(node, [None if info is None else info.value for info in inputs], outputs)
        return [Info(array.shape, array.dtype, array) for array in arrays]


def without_dead(nodes: Iterable[Node], outputs: Iterable[str]) -> list[Node]:
    """The nodes that outputs depend on."""
    wanted = set(outputs)
    left = []
    for node in reversed(list(nodes)):
        if wanted.intersection(node.outputs):
            left.append(node)
            wanted.update(node.inputs)
    return left[::-1]


def folded(model: Model) -> Model:
    """The model with everything computed that depends on constants alone, once for all shapes."""
    taken = names_in(model)
    nodes = without_dead((_with_named_outputs(node, taken) for node in model.nodes), (v.name for v in model.outputs))
    state = _Propagation({name: _info(constant) for name, constant in model.constants.items()})
    try:
        for node in nodes:
            state.visit(node, partial=True)
    except ValueNeeded as error:
        raise UnsupportedOperatorError(str(error)) from error
    read = {name for node in state.left for name in node.inputs} | {v.name for v in model.outputs}
    constants = {n: i.constant for n, i in state.infos.items() if n in read and i.constant is not None}
    return Model(tuple(state.left), constants, model.inputs, model.outputs)


def _info(constant: Constant) -> Info:
    return Info(tuple(constant.shape), constant.dtype, constant)


def _with_named_outputs(node: Node, taken: set[str]) -> Node:
    """Outputs that nobody asked for get names, since they are written all the same; missing last ones go.

    taken : names of tensors, to which the new ones are added
    """
    outputs = list(node.outputs)
    while len(outputs) > 1 and not outputs[-1]:
        outputs.pop()
    named = tuple(name or unused(f"{node.name}#{i}", taken) for i, name in enumerate(outputs))
    taken.update(named)
    inputs = list(node.inputs)
    while inputs and not inputs[-1]:
        inputs.pop()
    return replace(node, inputs=tuple(inputs), outputs=named)


def specialised(model: Model, shapes: Mapping[str, Shape], parameters: Mapping[str, Array]) -> Graph:
    """The graph for inputs of these shapes.

    Parameters
    ----------
    model : Model
        Made by :func:`folded`.
    shapes : shape of every input
    parameters : numbers of those inputs that are taken for constants

    Raises
    ------
    ParametersNeeded
        When more inputs must be constants.
    ValueError
        When the shapes do not fit the model, naming the node where that is seen.
    """
    known = {name: _info(constant) for name, constant in model.constants.items()}
    for value in model.inputs:
        known[value.name] = like(np.empty(0, value.dtype), shapes[value.name])
        if value.name in parameters:
            known[value.name] = _info(parameters[value.name])
    state = _Propagation(known)
    try:
        for node in model.nodes:
            state.visit(node, partial=False)
    except ValueNeeded as error:
        names = _sources(model, error.node.inputs[error.position]) - set(parameters)
        if not names or any(state.infos[name].size > _MOST_PARAMETERS for name in names):
            raise UnsupportedOperatorError(f"{error}, which come from large inputs") from error
        raise ParametersNeeded(frozenset(names), str(error)) from error
    outputs = tuple(v.name for v in model.outputs)
    nodes = without_dead(state.left, outputs)
    names = {name for node in nodes for name in (*node.inputs, *node.outputs)} | set(outputs)
    inputs = tuple(v.name for v in model.inputs)
    infos = {name: info for name, info in state.infos.items() if name in names or name in inputs}
    return Graph(nodes, infos, inputs, outputs)


def _sources(model: Model, tensor: str) -> set[str]:
    """The inputs of the model that a tensor is computed from."""
    wanted = {tensor}
    for node in reversed(model.nodes):
        if wanted.intersection(node.outputs):
            wanted.update(node.inputs)
    return wanted & {v.name for v in model.inputs}
