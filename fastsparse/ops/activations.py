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
ACTIVATIONS = (*CLAMPS, *(name for name in kernels.ACTIVATION_CODES if name not in CLAMPS))

# Activations whose gradient follows from their output; the gradient of the others needs their input.
FROM_OUTPUT = kernels.KEEPS_OUTPUT


# ------------------------------------------------------------------------------------------------- in an epilogue


@functools.cache
def epilogue(activation: str | None, target: Target) -> dict[str, Field]:
    """The fields of the activation, which several kernels' arguments have."""
    limits = np.array(CLAMPS.get(activation, CLAMPS[None]), target.dtype)
    if activation is None or activation in CLAMPS:
        return {"limits": limits}
    code = kernels.ACTIVATION_CODES[activation]
    return {"limits": limits, "activation": kernels.activation_kernel(code, target.bits, target.lanes).address}


# ------------------------------------------------------------------------------------------------- on arrays


def activate(name: str, z: Array, out: Array | None = None) -> Array:
    """The activation `name` of every element; `out`, contiguous, may be z.

    Raises
    ------
    ValueError
        When the name is not known.
    """
    code = _code(name)
    z = readable(z)
    y = in_place_out(out, z)
    _prepared(code, False, z.size, target_for(z.dtype)).run(address(z), 0, address(y))
    return y


def activate_backward(name: str, dy: Array, kept: Array) -> Array:
    """Gradient at the activation's input, given the gradient `dy` at its output.

    `kept` is the activation's output for the names in ``FROM_OUTPUT``, its input for the others.

    Raises
    ------
    ValueError
        When the name is not known.
    """
    code = _code(name)
    dy = readable(dy)
    kept, dz = readable(kept, dy.dtype), buffers.array(dy.shape, dy.dtype)
    launch = _prepared(code, True, dy.size, target_for(dy.dtype))
    launch.run(address(dy), read_address(kept, dy.dtype, dy.size, "kept"), address(dz))
    return dz


_names = {code: name for name, code in kernels.ACTIVATION_CODES.items()}


def _code(name: str) -> int:
    if name not in kernels.ACTIVATION_CODES:
        raise ValueError(f"activation is {name!r}, which is not known")
    return kernels.ACTIVATION_CODES[name]


@bounded_cache
def _prepared(code: int, gradient: bool, count: int, target: Target) -> Launch:
    """Launch of an activation, or of its gradient; operands x, kept, y."""
    kernel = kernels.activation_grad_kernel if gradient else kernels.activation_array_kernel
    arguments = Arguments(kernels.ACTIVATION, count=count, chunk=kernels.CHUNK)
    return Launch(
        kernel(code, target.bits, target.lanes), arguments, ("x", "kept", "y"), target.loop,
        tasks=-(-count // kernels.CHUNK), flops=target.heuristics.activation_flops * count,
        label=("activation gradient" if gradient else "activation", str(count), _names[code]),
    )  # fmt: skip
