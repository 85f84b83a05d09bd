"""Activations: in the epilogue of a product, and forward and backward on arrays of their own."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse.ops.target import Target, target_for
from fastsparse.runtime import buffers
from fastsparse.runtime.buffers import address, in_place_out, read_address, readable
from fastsparse.runtime.launch import Arguments, Field, Launch
from fastsparse.runtime.memo import bounded_cache
from fastsparse_kernels import activations as kernels

Array = NDArray[Any]

CLAMPS = {None: (-np.inf, np.inf), "relu": (0.0, np.inf), "relu6": (0.0, 6.0)}
ACTIVATIONS = (*CLAMPS, *(name for name in kernels.ACTIVATIONS if name not in CLAMPS))

# Activations whose gradient follows from their output; the gradient of the others needs their input.
FROM_OUTPUT = kernels.KEEPS_OUTPUT


# ------------------------------------------------------------------------------------------------- in an epilogue


@functools.cache
def epilogue(activation: str | None, target: Target) -> dict[str, Field]:
    """The fields of the activation, which several kernels' arguments have."""
    limits = np.array(CLAMPS.get(activation, CLAMPS[None]), target.dtype)
    if activation is None or activation in CLAMPS:
        return {"limits": limits}
    kernel = kernels.activation_kernel(activation, target.bits, target.lanes)
    return {"limits": limits, "activation": kernel.address}


# ------------------------------------------------------------------------------------------------- on arrays


def activate(name: str, z: Array, out: Array | None = None) -> Array:
    """The activation `name` of every element; `out`, contiguous, may be z.

    Raises
    ------
    ValueError
        When the name is not known.
    """
    _check(name)
    z = readable(z)
    y = in_place_out(out, z)
    _prepared(name, False, z.size, target_for(z.dtype)).run(address(z), 0, address(y))
    return y


def activate_backward(name: str, dy: Array, kept: Array) -> Array:
    """Gradient at the activation's input, given the gradient `dy` at its output.

    `kept` is the activation's output for the names in ``FROM_OUTPUT``, its input for the others.

    Raises
    ------
    ValueError
        When the name is not known.
    """
    _check(name)
    dy = readable(dy)
    kept, dz = readable(kept, dy.dtype), buffers.array(dy.shape, dy.dtype)
    launch = _prepared(name, True, dy.size, target_for(dy.dtype))
    launch.run(address(dy), read_address(kept, dy.dtype, dy.size, "kept"), address(dz))
    return dz


def _check(name: str) -> None:
    if name not in kernels.ACTIVATIONS:
        raise ValueError(f"activation is {name!r}, which is not known")


@bounded_cache
def _prepared(name: str, gradient: bool, count: int, target: Target) -> Launch:
    """Launch of an activation, or of its gradient; operands x, kept, y."""
    kernel = kernels.activation_grad_kernel if gradient else kernels.activation_array_kernel
    arguments = Arguments(kernels.ACTIVATION, count=count, chunk=kernels.CHUNK)
    return Launch(
        kernel(name, target.bits, target.lanes), arguments, ("x", "kept", "y"), target.loop,
        tasks=-(-count // kernels.CHUNK), flops=target.heuristics.activation_flops * count,
        label=("activation gradient" if gradient else "activation", str(count), name),
    )  # fmt: skip
