"""Optimizer steps, in place on contiguous arrays of one type."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse.ops.target import Target, target_for
from fastsparse.runtime.buffers import address, read_address, write_address
from fastsparse.runtime.launch import Arguments, Launch
from fastsparse.runtime.memo import bounded_cache
from fastsparse_kernels import optimizers as kernels

Array = NDArray[Any]


def sgd_step(
    value: Array, grad: Array, velocity: Array | None, rate: float, momentum: float, nesterov: bool,
    weight_decay: float,
) -> None:  # fmt: skip
    """One step of SGD, in place on value and velocity (None without momentum)."""
    numbers, dtype, size = np.array([-rate, momentum, weight_decay], value.dtype), value.dtype, value.size
    kind = "plain" if velocity is None else "nesterov" if nesterov else "momentum"
    launch = _prepared(kind, size, target_for(dtype))
    launch.run(
        write_address(value, dtype, size, "value"), read_address(grad, dtype, size, "grad"),
        0 if velocity is None else write_address(velocity, dtype, size, "velocity"), address(numbers),
    )  # fmt: skip


def adam_step(
    value: Array, grad: Array, first: Array, second: Array, rate: float, betas: tuple[float, float], eps: float,
    weight_decay: float, decoupled: bool, steps: int,
) -> None:  # fmt: skip
    """Step number `steps` (from 1) of Adam, in place on value and both moments."""
    beta1, beta2 = betas
    scale = 1 / math.sqrt(1 - beta2**steps)
    decay, shrink = (0.0, 1 - rate * weight_decay) if decoupled else (weight_decay, 1.0)
    step = -rate / (1 - beta1**steps)
    numbers = np.array([beta1, 1 - beta1, beta2, 1 - beta2, scale, eps, step, decay, shrink], value.dtype)
    dtype, size = value.dtype, value.size
    launch = _prepared("adam", size, target_for(dtype))
    launch.run(
        write_address(value, dtype, size, "value"), read_address(grad, dtype, size, "grad"),
        write_address(first, dtype, size, "first"), write_address(second, dtype, size, "second"), address(numbers),
    )  # fmt: skip


@bounded_cache
def _prepared(kind: str, count: int, target: Target) -> Launch:
    """Launch of Adam ("adam"), or of a kind of SGD."""
    if kind == "adam":
        label, kernel, dtype = kind, kernels.adam_kernel(target.bits, target.lanes), kernels.ADAM
        operands: tuple[str, ...] = ("value", "grad", "first", "second", "numbers")
    else:
        label, kernel, dtype = "sgd", kernels.sgd_kernel(kind, target.bits, target.lanes), kernels.SGD
        operands = "value", "grad", "velocity", "numbers"
    return Launch(
        kernel, Arguments(dtype, count=count, chunk=kernels.CHUNK), operands, target.loop,
        tasks=-(-count // kernels.CHUNK), flops=target.heuristics.optimizer_flops * count, label=(label, str(count)),
    )  # fmt: skip
