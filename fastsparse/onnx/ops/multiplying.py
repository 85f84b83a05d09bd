"""Matrix products through NumPy's BLAS."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastsparse.functional import spmm
from fastsparse.onnx.model import Array, Node
from fastsparse.onnx.table import Info, Misfit, Operator, broadcast, dummy, like, optional


def _matmul_shape(node: Node, inputs: Sequence[Any]) -> list[Info]:
    a, b = inputs[0], inputs[1]
    if not a.ndim or not b.ndim:
        raise Misfit("an operand is a single number")
    left = a.shape if a.ndim > 1 else (1, *a.shape)
    right = b.shape if b.ndim > 1 else (*b.shape, 1)
    if left[-1] != right[-2]:
        raise Misfit(f"operands of shape {a.shape} and {b.shape} do not fit")
    shape = [*broadcast(left[:-2], right[:-2]), left[-2], right[-1]]
    if b.ndim == 1:
        del shape[-1]
    if a.ndim == 1:
        del shape[-1 if b.ndim == 1 else -2]
    return [like(a, shape)]


def _matmul(node: Node, inputs: Sequence[Any], outs: Sequence[Array]) -> None:
    np.matmul(inputs[0], inputs[1], out=outs[0])


def _linear_shape(node: Node, inputs: Sequence[Any]) -> list[Info]:
    return _matmul_shape(node, inputs[:2])


def _linear(node: Node, inputs: Sequence[Any], outs: Sequence[Array]) -> None:
    x, weight, out = inputs[0], inputs[1], outs[0]
    flat = x.reshape(-1, x.shape[-1]) if x.flags.c_contiguous else x
    np.matmul(flat, weight, out=out.reshape(-1, out.shape[-1]) if flat is not x else out)
    bias = optional(inputs, 2)
    if bias is not None:
        np.add(out, bias, out=out)


def _factors(node: Node, a: Any, b: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    if a.ndim != 2 or b.ndim != 2:
        raise Misfit(f"A has shape {a.shape} and B {b.shape}, expected two matrices")
    left = a.shape[::-1] if node.get("transA", 0) else a.shape
    right = b.shape[::-1] if node.get("transB", 0) else b.shape
    if left[1] != right[0]:
        raise Misfit(f"A of shape {a.shape} and B of shape {b.shape} do not fit")
    return (left[0], left[1]), (right[0], right[1])


def _gemm_shape(node: Node, inputs: Sequence[Any]) -> list[Info]:
    left, right = _factors(node, inputs[0], inputs[1])
    shape, addend = (left[0], right[1]), optional(inputs, 2)
    if addend is not None and broadcast(shape, addend.shape) != shape:
        raise Misfit(f"C has shape {addend.shape}, which does not broadcast to {shape}")
    return [like(inputs[0], shape)]


def _gemm(node: Node, inputs: Sequence[Any], outs: Sequence[Array]) -> None:
    a, b, out = inputs[0], inputs[1], outs[0]
    np.matmul(a.T if node.get("transA", 0) else a, b.T if node.get("transB", 0) else b, out=out)
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    if alpha != 1:
        np.multiply(out, out.dtype.type(alpha), out=out)
    addend = optional(inputs, 2)
    if addend is not None and beta != 0:
        np.add(out, addend if beta == 1 else addend * out.dtype.type(beta), out=out)


def _einsum_shape(node: Node, inputs: Sequence[Any]) -> list[Info]:
    try:
        # Sizes alone decide: a plan of the sum is made, and the sum of nothing is not taken.
        shape = _einsum_sizes(node.attributes["equation"], [dummy(x) for x in inputs])
    except (ValueError, KeyError) as error:
        raise Misfit(f"equation does not fit: {error}") from None
    return [like(inputs[0], shape)]


def _einsum_sizes(equation: str, operands: list[Array]) -> list[int]:
    text = equation.replace(" ", "")
    left, arrow, right = text.partition("->")
    terms = left.split(",")
    if len(terms) != len(operands):
        raise ValueError(f"{equation!r} has {len(terms)} operands, expected {len(operands)}")
    sizes: dict[str, int] = {}
    spread: tuple[int, ...] = ()
    for term, operand in zip(terms, operands):
        before, dots, after = term.partition("...")
        free = operand.ndim - len(before) - len(after)
        if free < 0 or (free and not dots):
            raise ValueError(f"{term!r} does not fit an operand of {operand.ndim} axes")
        tail = operand.shape[operand.ndim - len(after) :]
        for letter, n in [*zip(before, operand.shape), *zip(after, tail)]:
            if sizes.setdefault(letter, n) not in (n, 1) and n != 1:
                raise ValueError(f"{letter!r} has sizes {sizes[letter]} and {n}")
            sizes[letter] = max(sizes[letter], n)
        if dots:
            spread = broadcast(spread, operand.shape[len(before) : len(before) + free])
    if not arrow:
        letters = left.replace(",", "").replace(".", "")
        right = ("..." if "..." in left else "") + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    before, dots, after = right.partition("...")
    return [*(sizes[c] for c in before), *(spread if dots else ()), *(sizes[c] for c in after)]


def _einsum(node: Node, inputs: Sequence[Any], outs: Sequence[Array]) -> None:
    np.einsum(node.attributes["equation"].replace(" ", ""), *inputs, out=outs[0], optimize=len(inputs) > 1)


def _left_shape(node: Node, inputs: Sequence[Any]) -> list[Info]:
    x = inputs[0]
    return [like(x, (*x.shape[:-2], node.attributes["matrix"].shape[0], x.shape[-1]))]


def _left(node: Node, inputs: Sequence[Any], outs: Sequence[Array]) -> None:
    matrix, x, out = node.attributes["matrix"], inputs[0], outs[0]
    for index in np.ndindex(x.shape[:-2]):
        spmm(matrix, x[index], out=out[index])


OPERATORS: dict[str, Operator] = {
    "MatMul": Operator(_matmul_shape, _matmul),
    "Gemm": Operator(_gemm_shape, _gemm),
    "Einsum": Operator(_einsum_shape, _einsum),
    # Not of ONNX: x @ W + b for x of any number of axes, which a pass makes of MatMul and Add.
    "fastsparse.Linear": Operator(_linear_shape, _linear),
    # W @ x for a sparse constant W, which is an attribute.
    "fastsparse.SparseMatMul": Operator(_left_shape, _left),
}
