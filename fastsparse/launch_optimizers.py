"""Launching optimizer steps. A part of `launch`: contiguous arrays of one type in, kernel calls out, in place."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse.launch import Record, address, run
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
    numbers = np.array([-rate, momentum, weight_decay], value.dtype)
    record = Record(
        kernels.SGD,
        count=value.size,
        chunk=kernels.CHUNK,
        value=address(value),
        grad=address(grad),
        velocity=0 if velocity is None else address(velocity),
        numbers=address(numbers),
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
    numbers = np.array([beta1, 1 - beta1, beta2, 1 - beta2, scale, eps, step, decay, shrink], value.dtype)
    record = Record(
        kernels.ADAM,
        count=value.size,
        chunk=kernels.CHUNK,
        value=address(value),
        grad=address(grad),
        first=address(first),
        second=address(second),
        numbers=address(numbers),
    )
    _run(kernels.adam_kernel(m.bits, m.lanes), record, value.size, m)


def _run(kernel: Any, record: Record, count: int, m: Machine) -> None:
    run(kernel, record, -(-count // kernels.CHUNK), _FLOPS * count, m.workers)
