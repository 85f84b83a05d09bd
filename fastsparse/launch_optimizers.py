"""Launching optimizer steps. A part of `launch`: contiguous arrays in, checked, kernel calls out, in place."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse.launch import Record, address, numbers, read_address, run, write_address
from fastsparse.plan.linear import Machine
from fastsparse_kernels import optimizers as kernels

Array = NDArray[Any]

# What an element costs, in units of launch's estimates: memory, mostly.
_FLOPS = 8.0


def run_sgd(
    value: Array,
    grad: Array,
    velocity: Array | None,
    rate: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    m: Machine,
) -> None:
    """One step of SGD, in place on value and velocity (None without momentum)."""
    constants, dtype, size = np.array([-rate, momentum, weight_decay], value.dtype), numbers(m), value.size
    record = Record(
        kernels.SGD,
        count=size,
        chunk=kernels.CHUNK,
        value=write_address(value, dtype, size, "value"),
        grad=read_address(grad, dtype, size, "grad"),
        velocity=0 if velocity is None else write_address(velocity, dtype, size, "velocity"),
        numbers=address(constants),
    )
    kind = kernels.PLAIN if velocity is None else kernels.NESTEROV if nesterov else kernels.MOMENTUM
    _run(kernels.sgd_kernel(kind, m.bits, m.lanes), record, value.size, m)


def run_adam(
    value: Array,
    grad: Array,
    first: Array,
    second: Array,
    rate: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    decoupled: bool,
    steps: int,
    m: Machine,
) -> None:
    """Step number `steps` (from 1) of Adam, in place on value and both moments."""
    beta1, beta2 = betas
    scale = 1 / math.sqrt(1 - beta2**steps)
    decay, shrink = (0.0, 1 - rate * weight_decay) if decoupled else (weight_decay, 1.0)
    step = -rate / (1 - beta1**steps)
    dtype, size = numbers(m), value.size
    constants = np.array([beta1, 1 - beta1, beta2, 1 - beta2, scale, eps, step, decay, shrink], value.dtype)
    record = Record(
        kernels.ADAM,
        count=size,
        chunk=kernels.CHUNK,
        value=write_address(value, dtype, size, "value"),
        grad=read_address(grad, dtype, size, "grad"),
        first=write_address(first, dtype, size, "first"),
        second=write_address(second, dtype, size, "second"),
        numbers=address(constants),
    )
    _run(kernels.adam_kernel(m.bits, m.lanes), record, value.size, m)


def _run(kernel: Any, record: Record, count: int, m: Machine) -> None:
    run(kernel, record, -(-count // kernels.CHUNK), _FLOPS * count, m.workers)
