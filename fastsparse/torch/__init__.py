"""fastsparse in PyTorch (extra ``torch``): sparse layers, and pruned modules made fast by one call."""

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
