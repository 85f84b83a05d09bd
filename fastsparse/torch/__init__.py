"""fastsparse in PyTorch (extra ``torch``): sparse layers, and pruned modules made fast by one call.

Types: weights are float32 or float64, or float16 and bfloat16, whose products are computed in float32. Inputs in the
last two, under autocast or not, are converted once; a result has the type of the input. Contiguous tensors are read and
written where they are; others, channels_last among them, are copied first.

Derivatives: first ones. A second one raises NotImplementedError.

Values: whatever torch counts as a change of a parameter is noticed, and in training any change. Without gradients,
changes that it does not count (through ``.data`` or NumPy, or of parameters made in inference mode) are noticed by 32
of the values: those of whole tensors always, those of single numbers maybe not.

Threads: a call uses as many as both ``torch.get_num_threads()`` and ``fastsparse.get_num_threads()`` allow. torch's
OpenMP threads spin while they wait. With as many threads as cores, and something else running on these, a training
step was seen to take four to ten times as long for that; ``OMP_WAIT_POLICY=passive`` in the environment of Python
prevents it. On an idle machine it made no difference.

DistributedDataParallel: only values and biases are reduced. ``forward_sync_buffers=False`` (``broadcast_buffers=False``
before torch 2.13) saves sending the patterns at each step. RigL decides on the sum of all ranks' gradients, and every
change of patterns is compared by a hash; SET needs the same ``rng`` on all ranks. A change of the number of nonzeros
(gradual pruning) needs a new wrapper, as any change of sizes does.
"""

from fastsparse import extras

if not extras.installed("torch"):
    _MESSAGE = extras.needs("fastsparse.torch", "torch", "PyTorch")
    raise ModuleNotFoundError(f"{_MESSAGE}; on Linux, PyTorch's own index has builds for CPUs alone", name="torch")

from fastsparse.torch.attention import MultiheadAttention
from fastsparse.torch.converting import compile, from_torch, to_torch  # noqa: A004
from fastsparse.torch.layers import SparseConv1d, SparseConv2d, SparseConv3d, SparseLinear
from fastsparse.torch.pruning import densify, sparsify

__all__ = [
    "MultiheadAttention",
    "SparseConv1d",
    "SparseConv2d",
    "SparseConv3d",
    "SparseLinear",
    "compile",
    "densify",
    "from_torch",
    "sparsify",
    "to_torch",
]
