"""Forward and backward of one layer by every library: returns (y, grad_x, grad_w, grad_b).

SparseProp computes whole vectors of samples and is wrong on batches that do not fill them; those are not timed.

fastsparse gives grad_w at the nonzeros; dense baselines give all of it, as they must.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from bench.baselines import OURS, Baseline, Call, conv, torch_on
from bench.workloads import ConvStep, LinearStep


def _linear_fastsparse(case: LinearStep, threads: int) -> Call:
    import fastsparse as fs

    weight, bias = fs.csr(case.weight), np.zeros(case.outputs, np.float32)
    return lambda: (fs.linear(case.x, weight, bias), *fs.linear_backward(case.grad, case.x, weight))


def _linear_numpy(case: LinearStep, threads: int) -> Call:
    weight = case.weight.toarray()
    y = np.empty((case.batch, case.outputs), np.float32)
    grad_x, grad_w = np.empty_like(case.x), np.empty_like(weight)
    return lambda: (
        np.matmul(case.x, weight.T, out=y),
        np.matmul(case.grad, weight, out=grad_x),
        np.matmul(case.grad.T, case.x, out=grad_w),
        case.grad.sum(axis=0),
    )


def _linear_torch(case: LinearStep, threads: int) -> Call:
    torch = torch_on(threads)
    weight = torch.from_numpy(case.weight.toarray()).requires_grad_()
    bias = torch.zeros(case.outputs, requires_grad=True)
    return _torch_step(torch, case, weight, bias, lambda x: torch.nn.functional.linear(x, weight, bias))


def _conv_fastsparse(case: ConvStep, threads: int) -> Call:
    import fastsparse as fs

    weight, bias = fs.csr(case.weight), np.zeros(case.out, np.float32)
    geometry: dict[str, Any] = {"kernel_size": case.kernel, "stride": case.stride, "padding": case.padding}
    return lambda: (
        fs.conv2d(case.x, weight, bias, **geometry),
        *fs.conv2d_backward(case.grad, case.x, weight, **geometry),
    )


def _conv_torch(case: ConvStep, threads: int) -> Call:
    torch = torch_on(threads)
    weight, window = torch.from_numpy(conv.dense_oihw(case)).requires_grad_(), (case.stride, case.padding)
    bias = torch.zeros(case.out, requires_grad=True)
    return _torch_step(torch, case, weight, bias, lambda x: torch.nn.functional.conv2d(x, weight, bias, *window))


def _torch_step(torch: Any, case: LinearStep | ConvStep, values: Any, bias: Any, forward: Callable[[Any], Any]) -> Call:
    """A step of a module with these parameters; those of sparse ones are in CSR's order."""
    x, grad = torch.from_numpy(case.x).requires_grad_(), torch.from_numpy(case.grad)

    def step() -> tuple[np.ndarray, ...]:
        y = forward(x)
        grads = torch.autograd.grad(y, (x, values, bias), grad)
        return (y.detach().numpy(), *(g.numpy() for g in grads))

    return step


def _linear_sparseprop(case: LinearStep, threads: int) -> Call:
    torch = torch_on(threads)
    import sparseprop
    from sparseprop.modules import SparseLinear

    sparseprop.set_num_threads(threads)
    layer = SparseLinear(torch.from_numpy(case.weight.toarray()), torch.nn.Parameter(torch.zeros(case.outputs)))
    return _torch_step(torch, case, layer.W_val, layer.bias, layer)


def _linear_sparselab(case: LinearStep, threads: int) -> Call:
    torch = torch_on(threads)
    layer = sparselab_layer(torch.from_numpy(case.weight.toarray()), torch.zeros(case.outputs))
    step, csr = _torch_step(torch, case, layer._values, layer.bias, layer), layer._csr
    # An empty row keeps a free place in the values, which is not a nonzero.
    live = np.concatenate([np.arange(n) + start for start, n in zip(csr.row_start, csr.row_nnz)])

    def result() -> tuple[np.ndarray, ...]:
        y, grad_x, grad_values, grad_bias = step()
        return y, grad_x, grad_values[live], grad_bias

    step.result = result  # type: ignore[attr-defined]
    return step


def sparselab_layer(weight: Any, bias: Any) -> Any:
    """SparseLab's linear layer with given weights: it draws some of its own, which are replaced."""
    import sparselab
    import torch

    layer = sparselab.SparseLinear(weight.shape[1], weight.shape[0])
    with warnings.catch_warnings():  # that torch's CSR is in beta
        warnings.simplefilter("ignore")
        layer._csr = sparselab.layout.from_dense(weight, padding_ratio=0.0)
    layer._values = torch.nn.Parameter(torch.from_numpy(np.asarray(layer._csr.values)))
    with torch.no_grad():
        layer.bias.copy_(bias)
    return layer


def _conv_sparseprop(over_batch: bool) -> Callable[[ConvStep, int], Call]:
    """SparseProp has two ways: vectors along image rows, or over the batch."""

    def setup(case: ConvStep, threads: int) -> Call:
        torch = torch_on(threads)
        import sparseprop
        from sparseprop.modules import SparseConv2d

        sparseprop.set_num_threads(threads)
        layer = SparseConv2d(
            torch.from_numpy(conv.dense_oihw(case)), torch.nn.Parameter(torch.zeros(case.out)), padding=case.padding,
            stride=case.stride, vectorizing_over_on=over_batch,
        )  # fmt: skip
        return _torch_step(torch, case, layer.W_val, layer.bias, layer)

    return setup


LINEAR = [
    Baseline(OURS, _linear_fastsparse),
    Baseline("numpy dense", _linear_numpy),
    Baseline("torch dense", _linear_torch, needs=("torch",)),
    Baseline("SparseProp", _linear_sparseprop, needs=("torch", "sparseprop")),
    Baseline("SparseLab", _linear_sparselab, needs=("torch", "sparselab")),
]

CONV = [
    Baseline(OURS, _conv_fastsparse),
    Baseline("torch dense", _conv_torch, needs=("torch",)),
    Baseline("SparseProp", _conv_sparseprop(False), needs=("torch", "sparseprop")),
    Baseline("SparseProp over batch", _conv_sparseprop(True), needs=("torch", "sparseprop")),
]
