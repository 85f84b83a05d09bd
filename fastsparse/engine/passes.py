"""Passes: program in, program out. Each is one rewriting that is right by itself, and `optimised` is their order."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse.csr import CSR, Pattern
from fastsparse.engine.program import Activate, Conv, Linear, Node, Pool, Program, Scale, Shape
from fastsparse.plan.conv import Geometry

Array = NDArray[Any]
# These never turn the order of two numbers round, so they may be applied before a maximum as well as behind it.
_MONOTONE = ("relu", "relu6", "leaky_relu")


def optimised(program: Program) -> Program:
    """All passes, in their order."""
    for rewrite in (move_activations_before_max, fold_scales, fuse_activations, scales_as_products, fuse_activations):
        program = rewrite(program)
    return program


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
        if not isinstance(product.operator, Conv | Linear) or not isinstance(scale.operator, Scale):
            return None
        if product.operator.activation is not None:
            return None
        return replace(product, operator=_scaled(product.operator, scale.operator))

    return _merge_pairs(program, merged)


def fuse_activations(program: Program) -> Program:
    """An activation right behind a product becomes part of its epilogue."""

    def merged(product: Node, activation: Node) -> Node | None:
        if not isinstance(product.operator, Conv | Linear) or not isinstance(activation.operator, Activate):
            return None
        if product.operator.activation is not None:
            return None
        return replace(product, operator=replace(product.operator, activation=activation.operator.name))

    return _merge_pairs(program, merged)


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
    return Conv(weight, shift, Geometry(channels, channels, spatial, ones, ones, none, ones, 1), activation)
