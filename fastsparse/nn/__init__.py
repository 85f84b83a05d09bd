"""Layers: parameters and a call into ``fastsparse.functional``, with explicit backward."""

from fastsparse.nn.activations import GELU, Hardsigmoid, Hardswish, LeakyReLU, ReLU, ReLU6, Sigmoid, SiLU, Softmax, Tanh
from fastsparse.nn.attention import MultiheadAttention, TransformerEncoderLayer
from fastsparse.nn.containers import Concat, Residual, Sequential
from fastsparse.nn.conv import Conv2d, SparseConv1d, SparseConv2d, SparseConv3d, SparseConvTranspose2d
from fastsparse.nn.linear import Linear, SparseLinear
from fastsparse.nn.module import Module
from fastsparse.nn.norm import BatchNorm1d, BatchNorm2d, LayerNorm, RMSNorm
from fastsparse.nn.parameter import Parameter, RowGradient
from fastsparse.nn.pooling import AdaptiveAvgPool2d, AvgPool2d, MaxPool2d
from fastsparse.nn.shape import Dropout, Embedding, Flatten, Upsample

__all__ = [
    "Module",
    "Parameter",
    "RowGradient",
    "SparseLinear",
    "SparseConv1d",
    "SparseConv2d",
    "SparseConv3d",
    "SparseConvTranspose2d",
    "Linear",
    "Conv2d",
    "Embedding",
    "BatchNorm1d",
    "BatchNorm2d",
    "LayerNorm",
    "RMSNorm",
    "MultiheadAttention",
    "TransformerEncoderLayer",
    "ReLU",
    "ReLU6",
    "LeakyReLU",
    "Sigmoid",
    "Tanh",
    "GELU",
    "SiLU",
    "Hardsigmoid",
    "Hardswish",
    "Softmax",
    "Dropout",
    "MaxPool2d",
    "AvgPool2d",
    "AdaptiveAvgPool2d",
    "Flatten",
    "Upsample",
    "Sequential",
    "Residual",
    "Concat",
]
