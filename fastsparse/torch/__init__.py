"""fastsparse in PyTorch (extra ``torch``): sparse layers, and pruned modules made fast by one call."""

from fastsparse.torch.layers import SparseConv1d, SparseConv2d, SparseConv3d, SparseLinear

__all__ = ["SparseConv1d", "SparseConv2d", "SparseConv3d", "SparseLinear"]
