"""Attention with sparse projections, and the Transformer encoder's layer made of it.

Vaswani et al., Attention is all you need, NeurIPS 2017, sections 3.2 and 3.3.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from fastsparse import checks
from fastsparse.checks import Seed, as_array
from fastsparse.nn.containers import Residual, Sequential
from fastsparse.nn.linear import SparseLinear
from fastsparse.nn.module import Module, check_gradient, distinct
from fastsparse.nn.norm import LayerNorm
from fastsparse.nn.shape import Dropout, padding_mask
from fastsparse.ops import attention as attention_ops
from fastsparse.ops import softmax as softmax_ops

Array = NDArray[Any]
PROJECTIONS = ("query", "key", "value", "output")


class MultiheadAttention(Module):
    """Attention of several heads whose four projections are sparse.

    Parameters
    ----------
    embed_dim : int
        Features of a token.
    num_heads : int
        A divisor of embed_dim.
    bias : bool
    causal : bool
        A token sees those before it and itself. Of fewer queries than keys, the last query sees all keys.
    sparsity : float in [0, 1)
        Share of weights of each projection that do not exist.
    query, key, value, output : Module, optional
        Projections from embed_dim to embed_dim features to use instead of random sparse ones, for example dense ones.
    dtype : float32 or float64
    rng : None, int or Generator

    Examples
    --------
    >>> import numpy as np, fastsparse as fs
    >>> layer = fs.nn.MultiheadAttention(16, 4, causal=True, rng=0)
    >>> layer(np.ones((2, 7, 16), np.float32)).shape
    (2, 7, 16)
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        bias: bool = True,
        *,
        causal: bool = False,
        sparsity: float = 0.9,
        query: Module | None = None,
        key: Module | None = None,
        value: Module | None = None,
        output: Module | None = None,
        dtype: DTypeLike = "float32",
        rng: Seed = None,
    ) -> None:
        self.embed_dim = checks.integer(embed_dim, "embed_dim")
        self.num_heads = checks.integer(num_heads, "num_heads")
        if self.embed_dim % self.num_heads:
            raise ValueError(f"num_heads is {num_heads}, expected a divisor of embed_dim = {embed_dim}")
        self.causal = checks.flag(causal, "causal")
        generator = checks.generator(rng)
        layers = []
        for name, given in zip(PROJECTIONS, (query, key, value, output)):
            layer = given
            if layer is None:
                layer = SparseLinear(embed_dim, embed_dim, bias, sparsity=sparsity, dtype=dtype, rng=generator)
            sizes = getattr(layer, "in_features", None), getattr(layer, "out_features", None)
            if not isinstance(layer, Module) or sizes != (self.embed_dim, self.embed_dim):
                kind = type(layer).__name__
                raise TypeError(f"{name} is a {kind}, expected a linear layer of {embed_dim} to {embed_dim} features")
            setattr(self, name, layer)
            layers.append(layer)
        distinct(layers, "MultiheadAttention")
        self.query, self.key, self.value, self.output = layers

    def forward(self, x: ArrayLike) -> Array:
        """Attend.

        Parameters
        ----------
        x : array (N, tokens, embed_dim), or a tuple of two, or of one or two and a mask
            Of two, queries are made of the first and keys and values of the second (cross-attention). A mask, bool
            (N, keys), is True where a key is padding, which no query sees, as torch's ``key_padding_mask``. The output
            projection gets zeros from a query that sees no key at all.

        Returns
        -------
        array of the first one's shape
        """
        arrays = [as_array(one, "x") for one in (x if isinstance(x, tuple) else (x,))]
        masked = len(arrays) > 1 and arrays[-1].ndim == 2
        hidden = arrays.pop() if masked else None
        if not 1 <= len(arrays) <= 2:
            raise ValueError(f"x is a tuple of {len(arrays)} arrays, expected one array or two, and a mask")
        source, memory = arrays[0], arrays[-1]
        for name, array in (("x", source), ("memory", memory)):
            shape = np.shape(array)
            if len(shape) != 3 or shape[2] != self.embed_dim or not shape[1] or shape[0] != len(source):
                expected = f"({len(source) if name == 'memory' else 'N'}, tokens, {self.embed_dim})"
                raise ValueError(f"{name} has shape {shape}, expected {expected} to match the layer")
        mask = None
        if hidden is not None:
            if hidden.shape != memory.shape[:2]:
                raise ValueError(f"the mask has shape {hidden.shape}, expected {memory.shape[:2]}, the keys")
            mask = padding_mask(hidden, self.query.parameters()[0].dtype, "the mask")
        q, k, v = self.query(source), self.key(memory), self.value(memory)
        y = np.empty_like(q)
        attention_ops.attend(q, k, v, self.num_heads, self.causal, y, mask)
        self._keep((q, k, v, mask, len(arrays)))
        return self.output(y)

    def backward(self, dy: Array, *, need_input: bool = True) -> Any:
        """As ``Module.backward``; of two inputs the gradients are a tuple, with None for a mask."""
        q, k, v, mask, count = self._taken()
        grad = self.output.backward(check_gradient(dy, q.shape, q.dtype))
        assert grad is not None
        dq, dk, dv = _gradients(grad, q, k, v, self.num_heads, self.causal, mask)
        parts: list[Any] = [
            layer.backward(part, need_input=need_input)
            for layer, part in ((self.query, dq), (self.key, dk), (self.value, dv))
        ]
        if not need_input:
            return None
        source, memory = parts[0], parts[1] + parts[2]
        found = (source, memory) if count == 2 else (source + memory,)
        found = found if mask is None else (*found, None)
        return found if len(found) > 1 else found[0]

    def takes_mask(self) -> bool:
        return True


def _gradients(
    dy: Array, q: Array, k: Array, v: Array, heads: int, causal: bool, mask: Array | None
) -> tuple[Array, Array, Array]:
    """Gradients of attention at Q, K and V, from probabilities that are computed again."""

    def split(x: Array) -> Array:
        return x.reshape(*x.shape[:2], heads, x.shape[2] // heads).transpose(0, 2, 1, 3)

    def joined(x: Array) -> Array:
        samples, _, rows, _ = x.shape
        return np.ascontiguousarray(x.transpose(0, 2, 1, 3)).reshape(samples, rows, heads * x.shape[3])

    dy, q, k, v = map(split, (dy, q, k, v))
    scale = q.dtype.type(q.shape[-1] ** -0.5)
    scores = q @ k.transpose(0, 1, 3, 2) * scale
    if causal:
        queries, keys = scores.shape[2:]
        scores[..., np.arange(keys) > np.maximum(0, np.arange(queries)[:, None] + keys - queries)] = -np.inf
    if mask is not None:
        scores += mask[:, None, None]
    blind = np.isneginf(scores).all(axis=-1, keepdims=True)
    scores[np.broadcast_to(blind, scores.shape)] = 0
    p = softmax_ops.softmax(scores)
    p[np.broadcast_to(blind, p.shape)] = 0
    ds = dy @ v.transpose(0, 1, 3, 2)
    ds = p * (ds - (ds * p).sum(axis=-1, keepdims=True)) * scale
    return joined(ds @ k), joined(ds.transpose(0, 1, 3, 2) @ q), joined(p.transpose(0, 1, 3, 2) @ dy)


class TransformerEncoderLayer(Sequential):
    """Self-attention and two linear layers, each with a residual and a layer norm; all weights but the norms' sparse.

    It is a Sequential of these parts, and is saved as what it consists of. Of a tuple (x, mask), attention does not see
    the tokens where the mask, bool (N, tokens), is True, as with torch's ``src_key_padding_mask``. A Sequential hands
    the mask on to all its layers that have attention.

    Parameters
    ----------
    d_model : int
        Features of a token.
    nhead : int
        Heads of the attention; a divisor of d_model.
    dim_feedforward : int
        Features between the two linear layers.
    dropout : float in [0, 1)
        Behind the attention, between the linear layers and behind them.
    activation : str
        Between the linear layers.
    layer_norm_eps : float
    norm_first : bool
        Layer norms in front of attention and linear layers instead of behind the sums.
    causal : bool
        A token sees those before it and itself, as in a GPT.
    sparsity : float in [0, 1)
        Share of weights that do not exist.
    dtype : float32 or float64
    rng : None, int or Generator

    Examples
    --------
    >>> import numpy as np, fastsparse as fs
    >>> layer = fs.nn.TransformerEncoderLayer(16, 4, 32, rng=0).eval()
    >>> fs.compile(fs.nn.Sequential(layer), (1, 7, 16), tune=False)(np.ones((3, 7, 16), np.float32)).shape
    (3, 7, 16)
    >>> model = fs.nn.Sequential(fs.nn.Embedding(100, 16, rng=0), layer)
    >>> tokens, padding = np.zeros((3, 7), int), np.arange(7) >= np.array([[7], [5], [2]])
    >>> model((tokens, padding)).shape
    (3, 7, 16)
    """

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str = "relu",
        layer_norm_eps: float = 1e-5,
        norm_first: bool = False,
        *,
        causal: bool = False,
        sparsity: float = 0.9,
        dtype: DTypeLike = "float32",
        rng: Seed = None,
    ) -> None:
        generator = checks.generator(rng)
        d_model, nhead = checks.integer(d_model, "d_model"), checks.integer(nhead, "nhead")
        if d_model % nhead:
            raise ValueError(f"nhead is {nhead}, expected a divisor of d_model = {d_model}")
        dim_feedforward = checks.integer(dim_feedforward, "dim_feedforward")
        layer_norm_eps = checks.number(layer_norm_eps, "layer_norm_eps")
        drop = checks.number(dropout, "dropout", 0, 1, ends="[)")
        weights: dict[str, Any] = {"sparsity": sparsity, "dtype": dtype, "rng": generator}
        attention = MultiheadAttention(d_model, nhead, causal=causal, **weights)
        wide = SparseLinear(d_model, dim_feedforward, activation=activation, **weights)
        narrow = SparseLinear(dim_feedforward, d_model, **weights)
        parts = [attention, *_dropped(drop, generator)], [
            wide, *_dropped(drop, generator), narrow, *_dropped(drop, generator)
        ]  # fmt: skip
        layers: list[Module] = []
        for part in parts:
            norm = LayerNorm(d_model, layer_norm_eps, dtype=dtype)
            if checks.flag(norm_first, "norm_first"):
                layers.append(Residual(Sequential(norm, *part)))
            else:
                layers += [Residual(Sequential(*part)), norm]
        super().__init__(*layers)


def _dropped(p: float, rng: np.random.Generator) -> list[Module]:
    return [Dropout(p, rng=rng)] if p else []
