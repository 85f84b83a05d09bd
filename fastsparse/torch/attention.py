"""Multi-head attention whose projections are layers of their own, so that they can be sparse."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastsparse import checks
from fastsparse.torch.layers import SparseLinear


class MultiheadAttention(nn.Module):
    """torch.nn.MultiheadAttention with `in_proj` (query, key and value stacked) and `out_proj` as linear layers.

    Called as torch's. ``from_dense`` shares the parameters of the module it is made of.
    """

    # What torch's encoder layers look at before they take a way that reads dense weights.
    in_proj_bias = None
    _qkv_same_embed_dim = False

    def __init__(self, in_proj: nn.Module, out_proj: nn.Module, num_heads: int, dropout: float, batch_first: bool):
        super().__init__()
        for name, layer in (("in_proj", in_proj), ("out_proj", out_proj)):
            if not isinstance(layer, nn.Module):
                raise TypeError(f"{name} is {checks.shown(layer)}, expected a linear layer")
        self.in_proj, self.out_proj = in_proj, out_proj
        self.num_heads, self.dropout = checks.integer(num_heads, "num_heads"), checks.number(dropout, "dropout", 0, 1)
        self.batch_first = checks.flag(batch_first, "batch_first")

    @property
    def embed_dim(self) -> int:
        """Features of query, key, value and output."""
        return int(self.in_proj.in_features)

    @staticmethod
    def why_not(module: nn.MultiheadAttention) -> str | None:
        """Why attention cannot be taken apart; None when it can."""
        if type(module) is not nn.MultiheadAttention:
            return "a class of its own"
        if not module._qkv_same_embed_dim:
            return "keys or values have a size of their own"
        if module.bias_k is not None or module.add_zero_attn:
            return "it adds keys"
        if "in_proj_weight" not in module._parameters or "weight" not in module.out_proj._parameters:
            return "its weights are made by a hook (torch.nn.utils.prune.remove makes them parameters)"
        return None

    @classmethod
    def from_dense(cls, module: nn.MultiheadAttention) -> MultiheadAttention:
        """The same attention with linear layers that share its parameters."""
        in_proj = _linear(module.in_proj_weight, module.in_proj_bias)
        out_proj = _linear(module.out_proj.weight, module.out_proj.bias)
        attention = cls(in_proj, out_proj, module.num_heads, module.dropout, module.batch_first)
        attention.train(module.training)
        return attention

    def to_dense(self) -> nn.MultiheadAttention:
        """torch.nn.MultiheadAttention with the same weights."""
        first, second = (p.to_dense() if isinstance(p, SparseLinear) else p for p in (self.in_proj, self.out_proj))
        weight: Any = first.weight
        dense = nn.MultiheadAttention(
            self.embed_dim, self.num_heads, self.dropout, first.bias is not None, batch_first=self.batch_first,
            dtype=weight.dtype,
        )  # fmt: skip
        dense.in_proj_weight, dense.out_proj.weight = weight, second.weight
        if first.bias is not None:
            dense.in_proj_bias, dense.out_proj.bias = first.bias, second.bias
        return dense.train(self.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As torch.nn.MultiheadAttention."""
        single = query.ndim == 2
        if single:
            query, key, value = (t.unsqueeze(0) for t in (query, key, value))
        elif not self.batch_first:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        q, k, v = self._projected(query, key, value)
        mask = self._mask(q, k, key_padding_mask, attn_mask)
        dropout = self.dropout if self.training else 0.0
        weights: Tensor | None = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
            weights = torch.softmax(scores if mask is None else scores + mask, -1)
            weights = F.dropout(weights, dropout)
            y = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            y = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal and mask is None)
        y = self.out_proj(y.transpose(1, 2).flatten(2))
        if single:
            return y.squeeze(0), None if weights is None else weights.squeeze(0)
        return y if self.batch_first else y.transpose(0, 1), weights

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """(batch, heads, length, features of a head) each."""
        if query is key and key is value:
            parts = self.in_proj(query).chunk(3, -1)
        else:
            parts = tuple(self.in_proj(x).chunk(3, -1)[i] for i, x in enumerate((query, key, value)))
        return tuple(p.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for p in parts)

    def _mask(self, q: Tensor, k: Tensor, key_padding_mask: Tensor | None, attn_mask: Tensor | None) -> Tensor | None:
        """What is added to the scores, (batch, heads, length, keys) after broadcasting."""
        masks = []
        if attn_mask is not None:
            shaped = attn_mask.unflatten(0, (-1, self.num_heads)) if attn_mask.ndim == 3 else attn_mask
            masks.append(_additive(shaped, q))
        if key_padding_mask is not None:
            masks.append(_additive(key_padding_mask.reshape(-1, 1, 1, k.shape[2]), q))
        return sum(masks[1:], masks[0]) if masks else None


def _linear(weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Linear:
    with torch.device("meta"):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    linear.weight = weight
    linear.bias = bias
    return linear


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))
    return mask.to(like.dtype)
