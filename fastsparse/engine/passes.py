"""Passes: program in, program out. Each is one rewriting that is right by itself, and `optimised` is their order."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse.csr import CSR, Pattern
from fastsparse.engine.program import Activate, Add, Conv, Linear, Node, Pool, Program, Reshape, RowWise, Scale, Shape
from fastsparse.ops.geometry import ConvGeometry

Array = NDArray[Any]
# Share of weights from which on multiplying the zeros, too, is faster: full rows run at about twice the rate.
_FULL_FROM = 0.5
# These never turn the order of two numbers round, so they may be applied before a maximum as well as behind it.
_MONOTONE = ("relu", "relu6", "leaky_relu")


def optimised(program: Program) -> Program:
    """All passes, in their order."""
    for rewrite in _PASSES:
        program = rewrite(program)
    return program


def check_optimised(program: Program) -> None:
    """Check that a program has the form that :func:`optimised` gives, the only one that schedules are made of.

    Raises
    ------
    ValueError
        Naming the first node that is left to be rewritten.
    """
    roots = program.roots()
    for node in program.nodes:
        if not isinstance(node.operator, Conv | Linear | Pool | Reshape | RowWise):
            raise ValueError(f"node {node.name!r} is a {type(node.operator).__name__}, expected a part of a product")
        if node.residual is not None and program.shapes[roots[node.residual]] != program.shapes[node.output]:
            raise ValueError(f"node {node.name!r} adds a tensor that has another shape in memory")


def move_activations_before_max(program: Program) -> Program:
    """relu(max_pool(x)) -> max_pool(relu(x)), where the relu costs nothing once it is fused."""
    nodes = list(program.nodes)
    uses = program.uses()
    for i in range(len(nodes) - 1):
        first, second = nodes[i], nodes[i + 1]
        monotone = isinstance(second.operator, Activate) and second.operator.name in _MONOTONE
        maximum = isinstance(first.operator, Pool) and first.operator.kind == "max"
        if monotone and maximum and second.inputs == (first.output,) and uses[first.output] == 1:
            shapes = list(program.shapes)
            shapes[first.output] = shapes[first.inputs[0]]
            program = replace(program, shapes=tuple(shapes))
            nodes[i] = replace(second, inputs=first.inputs, output=first.output)
            nodes[i + 1] = replace(first, inputs=(first.output,), output=second.output)
    return program.with_nodes(nodes)


def fold_scales(program: Program) -> Program:
    """Batch norm right behind a product goes into its values and bias, rounded once from float64."""

    def merged(product: Node, scale: Node) -> Node | None:
        if not _takes_residual(product) or not isinstance(scale.operator, Scale):
            return None
        assert isinstance(product.operator, Conv | Linear)
        return replace(product, operator=_scaled(product.operator, scale.operator))

    return _merge_pairs(program, merged)


def fuse_activations(program: Program) -> Program:
    """An activation right behind a product or a sum becomes part of its epilogue."""

    def merged(product: Node, activation: Node) -> Node | None:
        if not isinstance(product.operator, Conv | Linear | Add) or not isinstance(activation.operator, Activate):
            return None
        if product.operator.activation is not None:
            return None
        return replace(product, operator=replace(product.operator, activation=activation.operator.name))

    return _merge_pairs(program, merged)


def fuse_adds(program: Program) -> Program:
    """A sum goes into the epilogue of the product that gives one of its terms: of the one that runs last.

    What is left of sums becomes a product with the identity that has a residual.
    """
    uses, producers = program.uses(), program.producers()
    position = {node.output: i for i, node in enumerate(program.nodes)}
    chosen: dict[int, Node] = {}  # by the output of the sum
    for node in program.nodes:
        if isinstance(node.operator, Add):
            terms = [t for t in node.inputs if uses[t] == 1 and _takes_residual(producers.get(t))]
            if terms:
                chosen[node.output] = producers[max(terms, key=lambda t: position[t])]
    gone = {product.output for product in chosen.values()}
    shapes, roots, nodes = list(program.shapes), program.roots(), []
    for node in program.nodes:
        if not isinstance(node.operator, Add):
            nodes += [node] if node.output not in gone else []
            continue
        shape, product = program.shapes[node.output], chosen.get(node.output)
        if product is None:
            x, residual = node.inputs
            product = Node("", _diagonal(np.ones(shape[0], program.dtype), None, None, shape), (x,), node.output)
        else:
            residual = node.inputs[node.inputs[0] == product.output]
        if shapes[roots[residual]] != shape:  # in memory it has the shape from before it was flattened
            identity = _diagonal(np.ones(shape[0], program.dtype), None, None, shape)
            nodes.append(Node(f"{node.name} (copy)", identity, (residual,), len(shapes)))
            residual = len(shapes)
            shapes.append(shape)
        operator = replace(product.operator, activation=node.operator.activation)  # type: ignore[arg-type]
        name = f"{product.name} + {node.name}" if product.name else node.name
        nodes.append(Node(name, operator, (*product.inputs, residual), node.output))
    return replace(program, shapes=tuple(shapes), nodes=tuple(nodes))


def _takes_residual(node: Node | None) -> bool:
    """Whether the node is a product whose epilogue has room for a residual."""
    return (
        node is not None
        and isinstance(node.operator, Conv | Linear)
        and node.operator.activation is None
        and node.residual is None
    )


def scales_as_products(program: Program) -> Program:
    """What is left of scales and activations becomes a product with a diagonal matrix: one kernel serves all."""
    nodes = []
    for node in program.nodes:
        shape = program.shapes[node.output]
        if isinstance(node.operator, Scale):
            scale, shift = (v.astype(program.dtype) for v in (node.operator.scale, node.operator.shift))
            node = replace(node, operator=_diagonal(scale, shift, None, shape))
        elif isinstance(node.operator, Activate):
            ones = np.ones(shape[0], program.dtype)
            node = replace(node, operator=_diagonal(ones, None, node.operator.name, shape))
        nodes.append(node)
    return program.with_nodes(nodes)


def complete_dense_layers(program: Program) -> Program:
    """Weights of dense layers with some zeros among them become full ones: kernels run full rows four at a time.

    Only layers that the model itself calls dense: an absent weight of a sparse one never meets an Inf.
    """
    nodes = []
    for node in program.nodes:
        op = node.operator
        if isinstance(op, Conv | Linear) and op.dense and (isinstance(op, Linear) or op.geometry.groups == 1):
            rows, columns = op.weight.shape
            if _FULL_FROM * rows * columns <= op.weight.nnz < rows * columns:
                everywhere = np.tile(np.arange(columns), rows)
                indptr = np.arange(rows + 1) * columns
                full = CSR(indptr, everywhere, op.weight.toarray().ravel(), op.weight.shape)
                node = replace(node, operator=replace(op, weight=full))
        nodes.append(node)
    return program.with_nodes(nodes)


def _merge_pairs(program: Program, merged: Any) -> Program:
    """Replace producer and only consumer by merged(producer, consumer), where that gives a node."""
    uses, nodes = program.uses(), dict(program.producers())
    for node in program.nodes:
        producer = nodes.get(node.inputs[0]) if len(node.inputs) == 1 else None
        both = merged(producer, node) if producer is not None and uses[node.inputs[0]] == 1 else None
        if producer is not None and both is not None:
            del nodes[producer.output]
            nodes[node.output] = replace(both, output=node.output, name=f"{producer.name} + {node.name}")
    return program.with_nodes([nodes[node.output] for node in program.nodes if node.output in nodes])


def _scaled(product: Conv | Linear, scale: Scale) -> Conv | Linear:
    weight, wide = product.weight, np.float64
    values = weight.data.astype(wide) * scale.scale[weight.pattern.rows()]
    bias = scale.shift if product.bias is None else product.bias.astype(wide) * scale.scale + scale.shift
    dtype = weight.dtype
    return replace(product, weight=weight.with_data(values.astype(dtype)), bias=bias.astype(dtype))


def _diagonal(scale: Array, shift: Array | None, activation: str | None, shape: Shape) -> Conv | Linear:
    channels, spatial = shape[0], shape[1:]
    pattern = Pattern(np.arange(channels + 1), np.arange(channels), (channels, channels))
    weight = CSR(pattern.indptr, pattern.indices, scale, pattern.shape)
    if not spatial:
        return Linear(weight, shift, activation)
    ones, none = (1,) * len(spatial), ((0, 0),) * len(spatial)
    return Conv(weight, shift, ConvGeometry(channels, channels, spatial, ones, ones, none, ones, 1), activation)


_PASSES = (
    complete_dense_layers,
    move_activations_before_max,
    fold_scales,
    fuse_activations,
    fuse_adds,
    scales_as_products,
    fuse_activations,
)
