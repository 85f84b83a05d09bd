"""Compiling kernels before they are needed: the usual ones, or those of one network."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, TypeAlias

import numpy as np

from fastsparse import checks, nn
from fastsparse.engine.engine import Engine, checked_batch_sizes, make_ready
from fastsparse.nn.containers import first_layer
from fastsparse.onnx.engine import GraphEngine
from fastsparse.runtime.launch import rehearsal
from fastsparse.runtime.progress import progress_bar
from fastsparse_kernels import compiler, registry

Network: TypeAlias = nn.Module | Engine | GraphEngine


def warmup(
    model_or_engine: Network | None = None,
    batch_sizes: Sequence[int] | None = None,
    *,
    input_shape: Sequence[int] | None = None,
    progress: bool = True,
) -> None:
    """Compile kernels, or load them from the cache, so that later calls do not wait for it.

    Parameters
    ----------
    model_or_engine : nn.Module, Engine or GraphEngine, optional
        The network whose kernels are wanted, no others: an engine's for inference; a model's, in training mode, for
        forward and backward, too. It is run on made-up numbers once for each batch size, a model as a copy. Default:
        the usual kernels in float32, which takes half a minute with an empty cache, a second with a full one.
    batch_sizes : sequence of int, optional
        Batch sizes the network will be called with. Default: the one of `input_shape`.
    input_shape : tuple of int, optional
        Batch first. Engines know theirs, and so do models whose first layer is linear.
    progress : bool
        Show a progress bar on stderr when it takes longer than a second.

    Raises
    ------
    TypeError, ValueError
        When an argument does not fit the others.

    Examples
    --------
    >>> import fastsparse as fs
    >>> model = fs.nn.Sequential(fs.nn.SparseLinear(64, 32, activation="relu", rng=0), fs.nn.Linear(32, 10, rng=1))
    >>> fs.warmup(model, batch_sizes=(1, 8), progress=False)
    """
    if model_or_engine is None:
        if batch_sizes is not None or input_shape is not None:
            raise TypeError("batch_sizes and input_shape belong to a model or an engine, and there is none")
        for builder, key in registry.usual():
            builder.expect(*key)
        with progress_bar(
            total=compiler.waiting(), desc="kernels", unit="kernel", disable=not progress, delay=1
        ) as bar:
            compiler.compile_waiting(bar.update)
        return
    network: Any = model_or_engine
    if not isinstance(network, (nn.Module, Engine, GraphEngine)):
        kind = type(network).__name__
        raise TypeError(
            f"model_or_engine is a {kind}, expected a fastsparse.nn.Module or what fastsparse.compile gives"
        )
    shape = _shape(network, input_shape)
    sizes = checked_batch_sizes(shape[:1] if batch_sizes is None else batch_sizes)
    twin, trains = network, False
    if isinstance(network, nn.Module):
        twin, trains = copy.deepcopy(network), network.training
    with compiler.on_compile(lambda: None) if progress else nullcontext():  # the bar says enough
        for batch in progress_bar(sizes, desc="kernels", unit="batch size", disable=not progress, delay=1):
            if isinstance(twin, nn.Module):
                with rehearsal(), np.errstate(all="ignore"):
                    _run_model(twin, (batch, *shape[1:]), backward=trains)
                compiler.compile_waiting()
            else:
                make_ready(twin, (batch,))


def _shape(network: Network, input_shape: Sequence[int] | None) -> tuple[int, ...]:
    """The input shape of a network, batch first."""
    if not isinstance(network, nn.Module):
        if input_shape is not None:
            raise TypeError("input_shape belongs to models: an engine knows its own")
        return network.input_shape
    if input_shape is not None:
        return checks.shape(input_shape, "input_shape")
    first = first_layer(network)
    if isinstance(first, (nn.Linear, nn.SparseLinear)):
        return (1, first.in_features)
    kind = "nothing" if first is None else type(first).__name__
    raise ValueError(f"the model begins with {kind}, which takes inputs of many shapes: pass input_shape, batch first")


def _run_model(model: nn.Module, shape: tuple[int, ...], backward: bool) -> None:
    dtype = next((p.dtype for _, p in model.named_parameters()), np.dtype(np.float32))
    integers = isinstance(first_layer(model), nn.Embedding)
    x = np.zeros(shape, np.int64 if integers else dtype)
    model.eval()(x)
    if backward:
        y = model.train()(x)
        model.backward(np.zeros_like(y), need_input=not integers)
