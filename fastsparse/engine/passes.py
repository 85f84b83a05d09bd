"""Passes: program in, program out. Each is one rewriting that is right by itself, and `optimised` is their order."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse.csr import CSR
from fastsparse.engine.program import (
    Activate,
    Add,
    Concat,
    Conv,
    Gate,
    Gather,
    Interpolate,
    Linear,
    Node,
    Operator,
    Pool,
    Program,
    Reshape,
    RowWise,
    Scale,
    Shape,
)
from fastsparse.ops.conv import absolute_columns
from fastsparse.ops.geometry import ConvGeometry
from fastsparse.ops.interpolation import takes

Array = NDArray[Any]
# Share of weights from which on multiplying the zeros, too, is faster: full rows run at about twice the rate.
_FULL_FROM = 0.5
# Multiplications and additions that an interpolated number costs.
_INTERPOLATION = 16.0
# These never turn the order of two numbers round, so they may be applied before a maximum as well as behind it.
_MONOTONE = ("relu", "relu6", "leaky_relu")


def uses_of(program: Program) -> Counter[int]:
    """How often each tensor is read, by nodes or as an output."""
    return Counter([t for node in program.nodes for t in node.inputs] + list(program.outputs))


def producers_of(program: Program) -> dict[int, Node]:
    """The node that writes each tensor."""
    return {node.output: node for node in program.nodes}


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
        if not isinstance(node.operator, Conv | Linear | Interpolate | Pool | Reshape | RowWise | Gate | Gather):
            raise ValueError(f"node {node.name!r} is a {type(node.operator).__name__}, expected a part of a product")
        if node.residual is not None and program.shapes[roots[node.residual]] != program.shapes[node.output]:
            raise ValueError(f"node {node.name!r} adds a tensor that has another shape in memory")


def move_activations_before_max(program: Program) -> Program:
    """relu(max_pool(x)) -> max_pool(relu(x)), where the relu costs nothing once it is fused."""
    nodes = list(program.nodes)
    uses = uses_of(program)
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
    return replace(program, nodes=tuple(nodes))


def move_before_gathers(program: Program) -> Program:
    """Batch norms and activations behind a gather within channels go in front of it, where products take them in."""
    nodes, shapes = list(program.nodes), list(program.shapes)
    uses, again = uses_of(program), True
    while again:
        again = False
        for i in range(len(nodes) - 1):
            first, second, gather = nodes[i], nodes[i + 1], nodes[i].operator
            if second.inputs != (first.output,) or uses[first.output] != 1 or not isinstance(gather, Gather):
                continue
            x, moved = first.inputs[0], second.operator
            if isinstance(moved, Scale) and gather.blocks == gather.shape[0]:
                each = shapes[x][0] // gather.blocks
                moved = Scale(np.repeat(moved.scale, each), np.repeat(moved.shift, each))
            elif not isinstance(moved, Activate):
                continue
            shapes[first.output] = shapes[x]
            nodes[i] = replace(second, operator=moved, inputs=(x,), output=first.output)
            nodes[i + 1] = replace(first, inputs=(first.output,), output=second.output)
            again = True
    return replace(program, shapes=tuple(shapes), nodes=tuple(nodes))


def move_products_before_interpolation(program: Program) -> Program:
    """A 1x1 convolution of an interpolated image that nothing else reads goes in front of the interpolation, where
    there are fewer positions: weights of positions add up to 1, so that its bias may go with it."""
    uses, shapes, nodes = uses_of(program), list(program.shapes), list[Node]()
    found: dict[int, int] = {}  # interpolations that one node reads, by their output
    for node in program.nodes:
        op, index = node.operator, found.get(node.inputs[0])
        if isinstance(op, Interpolate) and op.activation is None and uses[node.output] == 1 and node.residual is None:
            found[node.output] = len(nodes)
        before = None if index is None or len(node.inputs) > 1 else nodes[index]
        if before is None or not isinstance(op, Conv) or not _saves_by_moving(op, before.operator):
            nodes.append(node)
            continue
        assert index is not None
        spatial = tuple(shapes[before.inputs[0]][1:])
        shapes[before.output] = (op.geometry.out_channels, *spatial)
        moved = replace(op, activation=None, geometry=replace(op.geometry, spatial=spatial))
        nodes[index] = replace(node, operator=moved, inputs=before.inputs, output=before.output)
        nodes.append(replace(before, inputs=(before.output,), output=node.output))
        if op.activation is not None:
            shapes.append(shapes[node.output])
            nodes[-1] = replace(nodes[-1], output=len(shapes) - 1)
            nodes.append(Node(node.name, Activate(op.activation), (len(shapes) - 1,), node.output))
    return replace(program, shapes=tuple(shapes), nodes=tuple(nodes))


def _saves_by_moving(op: Conv, before: Operator) -> bool:
    """Whether a convolution costs less in front of an interpolation, which then has its channels."""
    if not isinstance(before, Interpolate):
        return False
    g = op.geometry
    alone = {*g.kernel, *g.stride} == {1} and not any(map(any, g.padding))
    saved = op.useful_flops * (1 - 1 / math.prod(before.scale))
    return alone and saved > _INTERPOLATION * (g.out_channels - g.channels) * g.positions


def fold_scales(program: Program) -> Program:
    """Batch norm right behind a product goes into its values and bias, rounded once from float64."""

    def merged(product: Node, scale: Node) -> Node | None:
        if not _takes_residual(product) or not isinstance(scale.operator, Scale):
            return None
        if not isinstance(product.operator, Conv | Linear):
            return None
        rows, channels = getattr(product.operator, "rows", 1), len(scale.operator.scale)
        if rows > 1 or channels != product.operator.weight.shape[0]:  # the scale is along another axis
            return None
        return replace(product, operator=_scaled(product.operator, scale.operator))

    return _merge_pairs(program, merged)


def fold_scales_forward(program: Program) -> Program:
    """A scale in front of another one, or of a product that it alone is read by, goes into that, rounded once.

    A shift does not go in front of padding, which it leaves alone.
    """

    def merged(scale: Node, reader: Node) -> Node | None:
        first, op = scale.operator, reader.operator
        if not isinstance(first, Scale):
            return None
        if isinstance(op, Scale):
            return replace(scale, operator=Scale(op.scale * first.scale, op.scale * first.shift + op.shift))
        if isinstance(op, Conv):
            channels = absolute_columns(op.weight.pattern, op.geometry) // math.prod(op.geometry.kernel)
            fits = not (any(map(any, op.geometry.padding)) and first.shift.any())
        elif isinstance(op, Linear):
            channels, fits = op.weight.indices, op.rows == 1 and len(first.scale) == op.weight.shape[1]
        else:
            return None
        return replace(reader, operator=_read_scaled(op, first, channels), inputs=scale.inputs) if fits else None

    return _merge_pairs(program, merged)


def fuse_activations(program: Program) -> Program:
    """An activation right behind a product or a sum becomes part of its epilogue."""

    def merged(product: Node, activation: Node) -> Node | None:
        op = product.operator
        if not isinstance(op, Conv | Linear | Add | Interpolate) or not isinstance(activation.operator, Activate):
            return None
        if op.activation is not None or (isinstance(op, Interpolate) and not takes(activation.operator.name)):
            return None
        return replace(product, operator=replace(op, activation=activation.operator.name))

    return _merge_pairs(program, merged)


def split_products_of_concats(program: Program) -> Program:
    """A product of a concatenation becomes the sum of products of its parts: nothing is copied."""
    producers = producers_of(program)
    shapes, nodes = list(program.shapes), list[Node]()
    for node in program.nodes:
        op, source = node.operator, producers.get(node.inputs[0])
        whole = (isinstance(op, Linear) and op.rows == 1) or (isinstance(op, Conv) and op.geometry.groups == 1)
        if not whole or source is None or not isinstance(source.operator, Concat) or node.residual is not None:
            nodes.append(node)
            continue
        assert isinstance(op, Conv | Linear)
        first, sums = 0, list[int]()
        for part in source.inputs:
            channels = shapes[part][0]
            weight = _columns_between(op.weight, *(n * op.weight.shape[1] // shapes[source.output][0] for n in
                                                   (first, first + channels)))  # fmt: skip
            last = first + channels == shapes[source.output][0]
            product = replace(op, weight=weight, bias=op.bias if last else None, activation=None)
            if isinstance(product, Conv):
                product = replace(product, geometry=replace(product.geometry, channels=channels))
            first += channels
            sums.append(_appended(nodes, shapes, node.name, product, (part,), shapes[node.output]))
        _sum(nodes, shapes, node.name, sums, op.activation, node.output)
    program = replace(program, shapes=tuple(shapes), nodes=tuple(nodes))
    uses = uses_of(program)
    kept = [node for node in nodes if not isinstance(node.operator, Concat) or uses[node.output]]
    return replace(program, nodes=tuple(kept))


def concats_as_products(program: Program) -> Program:
    """What is left of concatenations becomes a sum of products that put each part into its place."""
    shapes, nodes = list(program.shapes), list[Node]()
    for node in program.nodes:
        if not isinstance(node.operator, Concat):
            nodes.append(node)
            continue
        channels, first, sums = shapes[node.output][0], 0, list[int]()
        for part in node.inputs:
            placed = _placed(shapes[part], first, channels, program.dtype)
            sums.append(_appended(nodes, shapes, node.name, placed, (part,), shapes[node.output]))
            first += shapes[part][0]
        _sum(nodes, shapes, node.name, sums, None, node.output)
    return replace(program, shapes=tuple(shapes), nodes=tuple(nodes))


def _appended(
    nodes: list[Node], shapes: list[Shape], name: str, operator: Any, inputs: tuple[int, ...], shape: Shape
) -> int:  # fmt: skip
    """Number of the tensor that a new node writes."""
    shapes.append(shape)
    nodes.append(Node(name, operator, inputs, len(shapes) - 1))
    return len(shapes) - 1


def _sum(
    nodes: list[Node], shapes: list[Shape], name: str, terms: list[int], activation: str | None, output: int
) -> None:  # fmt: skip
    """Add the terms one by one into `output`."""
    total = terms[0]
    if len(terms) == 1:  # the product itself writes it
        product = nodes[-1].operator
        assert isinstance(product, Conv | Linear)
        nodes[-1] = replace(nodes[-1], operator=replace(product, activation=activation), output=output)
        return
    for term in terms[1:-1]:
        total = _appended(nodes, shapes, name, Add(), (total, term), shapes[output])
    nodes.append(Node(name, Add(activation), (total, terms[-1]), output))


def _columns_between(weight: CSR, first: int, stop: int) -> CSR:
    """Columns `first` to `stop` of a matrix."""
    kept = (weight.indices >= first) & (weight.indices < stop)
    indptr = np.concatenate([[0], np.cumsum(kept)])[weight.indptr]
    return CSR(indptr, weight.indices[kept] - first, weight.data[kept], (weight.shape[0], stop - first))


def fuse_adds(program: Program) -> Program:
    """A sum goes into the epilogue of the product, or interpolation, that gives one of its terms: of the one that runs
    last.

    What is left of sums becomes a product with the identity that has a residual.
    """
    uses, producers = uses_of(program), producers_of(program)
    position = {node.output: i for i, node in enumerate(program.nodes)}
    chosen: dict[int, Node] = {}  # by the output of the sum
    for node in program.nodes:
        if isinstance(node.operator, Add):
            activation = node.operator.activation
            terms = [t for t in node.inputs if uses[t] == 1 and _takes_residual(producers.get(t), activation)]
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
            product = Node("", identity(shape, program.dtype), (x,), node.output)
        else:
            residual = node.inputs[node.inputs[0] == product.output]
        if shapes[roots[residual]] != shape:  # in memory it has the shape from before it was flattened
            nodes.append(Node(f"{node.name} (copy)", identity(shape, program.dtype), (residual,), len(shapes)))
            residual = len(shapes)
            shapes.append(shape)
        operator = replace(product.operator, activation=node.operator.activation)  # type: ignore[arg-type]
        name = f"{product.name} + {node.name}" if product.name else node.name
        nodes.append(Node(name, operator, (*product.inputs, residual), node.output))
    return replace(program, shapes=tuple(shapes), nodes=tuple(nodes))


def _takes_residual(node: Node | None, activation: str | None = None) -> bool:
    """Whether the node has an epilogue with room for a residual and an activation."""
    return (
        node is not None
        and isinstance(node.operator, Conv | Linear | Interpolate)
        and (not isinstance(node.operator, Interpolate) or takes(activation))
        and node.operator.activation is None
        and node.residual is None
    )


def scales_as_products(program: Program) -> Program:
    """What is left of scales becomes products with a diagonal matrix, which take activations and sums in."""

    def product(op: Operator, shape: Shape) -> Operator:
        if not isinstance(op, Scale):
            return op
        one, (scale, shift) = identity(shape, program.dtype), (v.astype(program.dtype) for v in (op.scale, op.shift))
        return replace(one, weight=one.weight.with_data(scale), bias=shift)

    return _with_operators(program, product)


def activations_as_products(program: Program) -> Program:
    """What is left of activations becomes a product with the identity: one kernel serves all."""

    def product(op: Operator, shape: Shape) -> Operator:
        return replace(identity(shape, program.dtype), activation=op.name) if isinstance(op, Activate) else op

    return _with_operators(program, product)


def complete_dense_layers(program: Program) -> Program:
    """Weights of dense layers with some zeros among them become full ones: kernels run full rows four at a time, and
    full windows of depthwise convolutions by a kernel of their own.

    Only layers that the model itself calls dense: an absent weight of a sparse one never meets an Inf.
    """

    def completed(op: Operator, shape: Shape) -> Operator:
        if not isinstance(op, Conv | Linear) or not op.dense:
            return op
        rows, columns = op.weight.shape
        whole = isinstance(op, Linear) or op.geometry.groups in (1, op.geometry.channels)  # or depthwise
        if not whole or not _FULL_FROM * rows * columns <= op.weight.nnz < rows * columns:
            return op
        everywhere, indptr = np.tile(np.arange(columns), rows), np.arange(rows + 1) * columns
        return replace(op, weight=CSR(indptr, everywhere, op.weight.toarray().ravel(), op.weight.shape))

    return _with_operators(program, completed)


def _with_operators(program: Program, rewritten: Callable[[Operator, Shape], Operator]) -> Program:
    """The program with what `rewritten` gives for every operator and the shape of its result."""
    nodes = [replace(node, operator=rewritten(node.operator, program.shapes[node.output])) for node in program.nodes]
    return replace(program, nodes=tuple(nodes))


def _merge_pairs(program: Program, merged: Any) -> Program:
    """Replace producer and only consumer by merged(producer, consumer), where that gives a node."""
    uses, nodes = uses_of(program), dict(producers_of(program))
    for node in program.nodes:
        producer = nodes.get(node.inputs[0]) if len(node.inputs) == 1 else None
        both = merged(producer, node) if producer is not None and uses[node.inputs[0]] == 1 else None
        if producer is not None and both is not None:
            del nodes[producer.output]
            nodes[node.output] = replace(both, output=node.output, name=f"{producer.name} + {node.name}")
    return replace(program, nodes=tuple([nodes[node.output] for node in program.nodes if node.output in nodes]))


def _scaled(product: Conv | Linear, scale: Scale) -> Conv | Linear:
    weight, wide = product.weight, np.float64
    values = weight.data.astype(wide) * scale.scale[weight.pattern.rows()]
    bias = scale.shift if product.bias is None else product.bias.astype(wide) * scale.scale + scale.shift
    dtype = weight.dtype
    return replace(product, weight=weight.with_data(values.astype(dtype)), bias=bias.astype(dtype))


def _read_scaled(product: Conv | Linear, scale: Scale, channels: NDArray[np.integer[Any]]) -> Conv | Linear:
    """The product of a scaled operand; `channels` are those that the weights read."""
    weight, values = product.weight, product.weight.data.astype(np.float64)
    bias = product.bias
    if scale.shift.any():
        added = np.bincount(weight.pattern.rows(), values * scale.shift[channels], weight.shape[0])
        bias = (added if bias is None else bias + added).astype(weight.dtype)
    return replace(product, weight=weight.with_data((values * scale.scale[channels]).astype(weight.dtype)), bias=bias)


def identity(shape: Shape, dtype: np.dtype[Any]) -> Conv | Linear:
    """The product that leaves a tensor of `shape` as it is."""
    return _placed(shape, 0, shape[0], dtype)


def _placed(shape: Shape, first: int, channels: int, dtype: np.dtype[Any]) -> Conv | Linear:
    """The product that puts a tensor of `shape` into `channels` channels, from `first` on."""
    count, *spatial = shape
    indptr = np.arange(channels + 1).clip(first, first + count) - first
    weight = CSR(indptr, np.arange(count), np.ones(count, dtype), (channels, count))
    if not spatial:
        return Linear(weight, None)
    ones, none = (1,) * len(spatial), ((0, 0),) * len(spatial)
    return Conv(weight, None, ConvGeometry(count, channels, tuple(spatial), ones, ones, none, ones, 1))


_PASSES = (
    complete_dense_layers,
    move_activations_before_max,
    move_before_gathers,
    fold_scales,
    move_products_before_interpolation,
    fold_scales_forward,
    scales_as_products,
    fuse_activations,
    split_products_of_concats,
    concats_as_products,
    fuse_adds,
    fuse_activations,
    activations_as_products,
)
