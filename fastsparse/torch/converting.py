"""Between torch modules and fastsparse's own models and engines."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor, nn

import fastsparse.nn as fnn
from fastsparse.csr import csr
from fastsparse.engine.engine import compile as compile_engine
from fastsparse.nn.attention import PROJECTIONS
from fastsparse.nn.linear import SparseWeight
from fastsparse.torch.attention import MultiheadAttention
from fastsparse.torch.layers import SparseConv1d, SparseConv2d, SparseConv3d, SparseLinear, _SparseConv
from fastsparse.torch.pruning import densify

Array = NDArray[Any]

# ------------------------------------------------------------------------------------------------- engine

_ROUNDING = 0.05  # of the largest output: more is no rounding, not even in 16 bits


def compile(module: nn.Module, example_inputs: Any, *, threads: int | None = None, tune: bool = True) -> Any:  # noqa: A001
    """Compile a torch module for inference by fastsparse's engine.

    The module is exported to ONNX in memory (extra ``onnx``; torch's exporter needs ``onnxscript``), with dense weights
    whose zeros the engine finds again. The engine is a snapshot of the module in evaluation mode.

    Parameters
    ----------
    module : torch.nn.Module
        It is not changed.
    example_inputs : Tensor or tuple of Tensors
        Their shapes are those the engine is compiled for; the first axis of each may have other sizes later.
    threads, tune
        As for ``fastsparse.compile``.

    Returns
    -------
    GraphEngine
        Called with NumPy arrays: ``engine(x.numpy())``.

    Raises
    ------
    UnsupportedOperatorError
        When the graph has an operator that neither the engine nor NumPy can run.
    RuntimeError
        When the exported graph gives other numbers than the module does for the example: the exporter leaves out
        arguments of some operators.
    """
    import onnx

    arguments = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    for x in arguments:
        if not isinstance(x, Tensor):
            raise TypeError(f"example_inputs has a {type(x).__name__}, expected a Tensor or a tuple of Tensors")
    exported = densify(copy.deepcopy(module)).eval()
    file = io.BytesIO()
    names = [f"input_{i}" for i in range(len(arguments))]
    with torch.no_grad(), _quiet_exporter():
        program = torch.onnx.export(
            exported, arguments, dynamo=True, input_names=names, verbose=False,
            dynamic_shapes=[{0: torch.export.Dim.AUTO} if t.ndim else None for t in arguments],
        )  # fmt: skip
    assert program is not None
    program.save(file)
    proto = onnx.load_model_from_string(file.getvalue())
    shapes = {name: tuple(t.shape) for name, t in zip(names, arguments)}
    engine = compile_engine(proto, shapes if len(names) > 1 else shapes[names[0]], threads=threads, tune=tune)
    _check_exported(exported, arguments, engine)
    return engine


def _check_exported(module: nn.Module, arguments: tuple[Tensor, ...], engine: Any) -> None:
    """Raise unless the engine gives about what the module does, wherever that gives the same finite numbers twice."""

    def outputs() -> list[Tensor]:
        found = torch.utils._pytree.tree_leaves(module(*arguments))
        return [y.double() for y in found if isinstance(y, Tensor) and y.is_floating_point()]

    if any(x.dtype == torch.bfloat16 for x in arguments):  # which NumPy does not have
        return
    with torch.no_grad():
        wanted, again = outputs(), outputs()
    given = engine.run([x.detach().resolve_neg().numpy() for x in arguments])
    found = [torch.from_numpy(y.astype(np.float64)) for y in given if isinstance(y, np.ndarray) and y.dtype.kind == "f"]
    if len(found) != len(wanted):
        return
    for y, want, other in zip(found, wanted, again):
        if not want.numel() or not want.isfinite().all() or not torch.equal(want, other):
            continue
        off = float((y - want).abs().max()) if y.shape == want.shape else math.inf
        largest = float(want.abs().max())
        if not off <= _ROUNDING * max(largest, _ROUNDING):
            raise RuntimeError(
                f"the graph that torch's ONNX exporter wrote gives numbers that are off by {off:.2g}, where those of "
                f"the module go up to {largest:.2g}: it leaves out arguments of some operators"
            )


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Without what torch's exporter says of itself: packages that it does not need, names that it will change."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        log.setLevel(level)


# ------------------------------------------------------------------------- what torch has no module for


class Residual(nn.Module):
    """activation(body(x) + shortcut(x)), as ``fastsparse.nn.Residual``."""

    def __init__(self, body: nn.Module, shortcut: nn.Module, activation: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut, self.activation = body, shortcut, activation

    def forward(self, x: Tensor) -> Tensor:
        """x as body and shortcut take it."""
        return self.activation(self.body(x) + self.shortcut(x))


class Attention(nn.Module):
    """Attention to x itself, or to a memory, as ``fastsparse.nn.MultiheadAttention``."""

    def __init__(self, attention: MultiheadAttention, causal: bool) -> None:
        super().__init__()
        self.attention, self.causal = attention, causal

    def forward(self, x: Tensor, memory: Tensor | None = None, key_padding_mask: Tensor | None = None) -> Tensor:
        """x (N, tokens, embed_dim), memory (N, keys, embed_dim) and a mask (N, keys), True where a key is padding."""
        memory = x if memory is None else memory
        mask = None
        if self.causal:
            queries, keys = x.shape[1], memory.shape[1]
            last = (torch.arange(queries, device=x.device)[:, None] + keys - queries).clamp(min=0)
            mask = torch.arange(keys, device=x.device) > last
        y, _ = self.attention(x, memory, memory, key_padding_mask, need_weights=False, attn_mask=mask)
        return y


class PositionalEmbedding(nn.Module):
    """Rows of a table and of positions, added, as ``fastsparse.nn.Embedding`` with positions."""

    def __init__(self, words: nn.Embedding, positions: int) -> None:
        super().__init__()
        self.words = words
        self.position = nn.Parameter(words.weight.new_empty(positions, words.embedding_dim))

    def forward(self, x: Tensor) -> Tensor:
        """x (N, tokens), integers."""
        return self.words(x) + self.position[: x.shape[1]]


# ------------------------------------------------------------------------------------------------- to fs.nn


def from_torch(module: nn.Module) -> fnn.Module:
    """A model of ``fastsparse.nn`` with the same layers and copies of the weights.

    Parameters
    ----------
    module : torch.nn.Module
        A layer that both know, sparse or dense, or nn.Sequential of these, nested or not. Dense convolutions of one
        and three axes and transposed ones become sparse ones of their nonzeros. Attention has ``batch_first``, and
        loses the dropout of its weights; nn.TransformerEncoder and its layers become the Sequentials that they consist
        of, which take (x, mask) for ``src_key_padding_mask``.

    Raises
    ------
    TypeError
        Naming the first layer that has no counterpart (``compile`` takes any module that torch can export).
    """
    found = _to_fastsparse(module, type(module).__name__)
    if isinstance(found, list):
        found = fnn.Sequential(*found)
    for layer in (m for _, m in found.named_modules()):
        layer.training = module.training
    return found


def _to_fastsparse(module: nn.Module, name: str) -> Any:
    """The counterpart, or a list of them for a Sequential; None for a layer that does nothing."""
    if isinstance(module, nn.Sequential):
        found = []
        for key, child in module.named_children():
            layer = _to_fastsparse(child, key if name == "Sequential" else f"{name}.{key}")
            if layer is not None:
                found.append(fnn.Sequential(*layer) if isinstance(layer, list) else layer)
        return found
    if isinstance(module, nn.Identity):
        return None
    make = _FROM_TORCH.get(type(module))
    if make is None:
        where = "module" if name == type(module).__name__ else name
        kind = type(module).__name__
        raise TypeError(f"{where} is a {kind}, which fastsparse.nn does not have (fastsparse.torch.compile takes any)")
    try:
        return make(module)
    except ValueError as error:
        raise TypeError(f"{name}: {error}") from None


def _array(tensor: Tensor | None) -> Any:
    if tensor is None:
        return None
    tensor = tensor.detach()
    return (tensor if tensor.dtype == torch.float64 else tensor.float()).numpy().copy()


def _expect(name: str, found: Any, expected: Any) -> None:
    if found != expected:
        raise ValueError(f"{name} is {found!r}, expected {expected!r}")


def _filled(layer: Any, **arrays: Tensor | None) -> Any:
    """A layer with its parameters (or buffers) set."""
    for name, tensor in arrays.items():
        if tensor is not None:
            target = getattr(layer, name)
            if isinstance(target, fnn.Parameter):
                target.value = _array(tensor)
            else:
                setattr(layer, name, _array(tensor))
    return layer


def _dtype(tensor: Tensor) -> str:
    return "float64" if tensor.dtype == torch.float64 else "float32"


def _from_sparse_linear(m: SparseLinear) -> Any:
    layer = fnn.SparseLinear(
        m.in_features, m.out_features, m.bias is not None, pattern=m.pattern, dtype=_dtype(m.values)
    )
    return _filled(layer, values=m.values, bias=m.bias)


def _from_linear(m: nn.Linear) -> Any:
    layer = fnn.Linear(m.in_features, m.out_features, m.bias is not None, dtype=_dtype(m.weight))
    return _filled(layer, weight=m.weight, bias=m.bias)


def _window(m: Any) -> dict[str, Any]:
    _expect("padding_mode", m.padding_mode, "zeros")
    around = m._reversed_padding_repeated_twice if hasattr(m, "_reversed_padding_repeated_twice") else m._around
    pairs = tuple((around[i], around[i + 1]) for i in range(0, len(around), 2))[::-1]
    return {
        "in_channels": m.in_channels, "out_channels": m.out_channels, "kernel_size": m.kernel_size,
        "stride": m.stride, "padding": pairs, "dilation": m.dilation, "groups": m.groups, "bias": m.bias is not None,
    }  # fmt: skip


def _from_sparse_conv(m: _SparseConv) -> Any:
    kind = {1: fnn.SparseConv1d, 2: fnn.SparseConv2d, 3: fnn.SparseConv3d}[len(m.kernel_size)]
    return _filled(kind(**_window(m), pattern=m.pattern, dtype=_dtype(m.values)), values=m.values, bias=m.bias)


def _from_conv(m: Any) -> Any:
    if isinstance(m, nn.Conv2d):
        return _filled(fnn.Conv2d(**_window(m), dtype=_dtype(m.weight)), weight=m.weight, bias=m.bias)
    kind = SparseConv1d if isinstance(m, nn.Conv1d) else SparseConv3d
    return _from_sparse_conv(kind.from_dense(m))


def _from_batch_norm(m: Any) -> Any:
    if m.momentum is None or not m.track_running_stats:
        raise ValueError("it keeps no running statistics with a momentum")
    kind = fnn.BatchNorm1d if isinstance(m, nn.BatchNorm1d) else fnn.BatchNorm2d
    layer = kind(m.num_features, m.eps, m.momentum, dtype=_dtype(m.running_mean))
    return _filled(layer, weight=m.weight, bias=m.bias, running_mean=m.running_mean, running_var=m.running_var)


def _from_layer_norm(m: nn.LayerNorm) -> Any:
    dtype = "float32" if m.weight is None else _dtype(m.weight)
    return _filled(fnn.LayerNorm(m.normalized_shape, m.eps, dtype=dtype), weight=m.weight, bias=m.bias)


def _from_rms_norm(m: nn.RMSNorm) -> Any:
    dtype = torch.float32 if m.weight is None else m.weight.dtype
    eps = torch.finfo(dtype).eps if m.eps is None else m.eps
    name = "float64" if dtype == torch.float64 else "float32"
    return _filled(fnn.RMSNorm(m.normalized_shape, eps, dtype=name), weight=m.weight)


def _from_conv_transpose(m: nn.ConvTranspose2d) -> Any:
    _expect("padding_mode", m.padding_mode, "zeros")
    window = {name: getattr(m, name) for name in ("stride", "padding", "output_padding", "groups", "dilation")}
    return fnn.SparseConvTranspose2d.from_dense(_array(m.weight), _array(m.bias), **window)


def _from_upsample(m: nn.Upsample) -> Any:
    _expect("(size, align_corners)", (m.size, bool(m.align_corners)), (None, False))
    factors = m.scale_factor if isinstance(m.scale_factor, tuple) else (m.scale_factor, m.scale_factor)
    if any(factor is None or factor != int(factor) for factor in factors):
        raise ValueError(f"scale_factor is {m.scale_factor}, expected whole numbers")
    height, width = (int(factor) for factor in factors if factor is not None)
    return fnn.Upsample((height, width), m.mode)


def _from_attention(m: Any, causal: bool = False) -> Any:
    _expect("batch_first", m.batch_first, True)
    if isinstance(m, nn.MultiheadAttention):
        why = MultiheadAttention.why_not(m)
        if why is not None:
            raise ValueError(why)
        m = MultiheadAttention.from_dense(m)
    stacked = _to_fastsparse(m.in_proj, "in_proj")
    layers = [*_three(stacked), _to_fastsparse(m.out_proj, "out_proj")]
    return fnn.MultiheadAttention(m.embed_dim, m.num_heads, causal=causal, **dict(zip(PROJECTIONS, layers)))


def _three(layer: Any) -> list[Any]:
    """Query, key and value of the linear layer that has them stacked."""
    width, bias = layer.in_features, None if layer.bias is None else np.split(layer.bias.value, 3)
    found = []
    for i in range(3):
        rows = slice(i * width, (i + 1) * width)
        b = None if bias is None else bias[i]
        if isinstance(layer, fnn.Linear):
            part: Any = fnn.Linear(width, width, b is not None, dtype=layer.weight.dtype)
            part.weight.value = layer.weight.value[rows].copy()
            if b is not None:
                part.bias.value = b.copy()
        else:
            part = fnn.SparseLinear.from_dense(layer.weight[rows], b)
        found.append(part)
    return found


def _from_encoder(m: nn.TransformerEncoderLayer) -> Any:
    activation: Any = {F.relu: nn.ReLU(), F.gelu: nn.GELU()}.get(m.activation, m.activation)
    if not isinstance(activation, nn.Module):
        raise ValueError(f"its activation is {activation!r}, expected relu, gelu or a module")
    first, second = [m.self_attn, m.dropout1], [m.linear1, activation, m.dropout, m.linear2, m.dropout2]
    layers: list[Any] = []
    for parts, norm in ((first, m.norm1), (second, m.norm2)):
        made = [_to_fastsparse(part, type(part).__name__) for part in ([norm, *parts] if m.norm_first else parts)]
        layers.append(fnn.Residual(fnn.Sequential(*made)))
        if not m.norm_first:
            layers.append(_to_fastsparse(norm, "norm"))
    return fnn.Sequential(*layers)


def _from_encoders(m: nn.TransformerEncoder) -> Any:
    layers = [*m.layers, *([] if m.norm is None else [m.norm])]
    return fnn.Sequential(*(_to_fastsparse(layer, f"layers.{i}") for i, layer in enumerate(layers)))


def _from_residual(m: Residual) -> Any:
    body, shortcut = (_to_fastsparse(part, "body") for part in (m.body, m.shortcut))
    body, shortcut = (fnn.Sequential(*x) if isinstance(x, list) else x for x in (body, shortcut))
    made = fnn.Residual(fnn.Sequential() if body is None else body, shortcut)
    return made if isinstance(m.activation, nn.Identity) else [made, _to_fastsparse(m.activation, "activation")]


def _from_leaky_relu(m: nn.LeakyReLU) -> Any:
    _expect("negative_slope", m.negative_slope, 0.01)
    return fnn.LeakyReLU()


def _from_flatten(m: nn.Flatten) -> Any:
    _expect("(start_dim, end_dim)", (m.start_dim, m.end_dim), (1, -1))
    return fnn.Flatten()


def _from_max_pool(m: nn.MaxPool2d) -> Any:
    _expect("(dilation, ceil_mode, return_indices)", (m.dilation, m.ceil_mode, m.return_indices), (1, False, False))
    return fnn.MaxPool2d(m.kernel_size, m.stride, m.padding)


def _from_avg_pool(m: nn.AvgPool2d) -> Any:
    settings = m.ceil_mode, m.count_include_pad, m.divisor_override
    _expect("(ceil_mode, count_include_pad, divisor_override)", settings, (False, True, None))
    return fnn.AvgPool2d(m.kernel_size, m.stride, m.padding)


def _from_embedding(m: nn.Embedding) -> Any:
    _expect("max_norm", m.max_norm, None)
    layer = fnn.Embedding(m.num_embeddings, m.embedding_dim, sparse=m.sparse, dtype=_dtype(m.weight))
    return _filled(layer, weight=m.weight)


def _from_positions(m: PositionalEmbedding) -> Any:
    (positions, width), dtype = m.position.shape, _dtype(m.position)
    layer = fnn.Embedding(m.words.num_embeddings, width, positions=positions, sparse=m.words.sparse, dtype=dtype)
    return _filled(layer, weight=m.words.weight, position=m.position)


_FROM_TORCH: dict[type[nn.Module], Callable[[Any], Any]] = {
    SparseLinear: _from_sparse_linear,
    SparseConv1d: _from_sparse_conv,
    SparseConv2d: _from_sparse_conv,
    SparseConv3d: _from_sparse_conv,
    nn.Linear: _from_linear,
    nn.Conv1d: _from_conv,
    nn.Conv2d: _from_conv,
    nn.Conv3d: _from_conv,
    nn.BatchNorm1d: _from_batch_norm,
    nn.BatchNorm2d: _from_batch_norm,
    nn.LayerNorm: _from_layer_norm,
    nn.ReLU: lambda m: fnn.ReLU(),
    nn.ReLU6: lambda m: fnn.ReLU6(),
    nn.LeakyReLU: _from_leaky_relu,
    nn.Sigmoid: lambda m: fnn.Sigmoid(),
    nn.Tanh: lambda m: fnn.Tanh(),
    nn.SiLU: lambda m: fnn.SiLU(),
    nn.Hardswish: lambda m: fnn.Hardswish(),
    nn.GELU: lambda m: fnn.GELU(m.approximate),
    nn.Softmax: lambda m: fnn.Softmax(-1 if m.dim is None else m.dim),
    nn.Dropout: lambda m: fnn.Dropout(m.p),
    nn.Flatten: _from_flatten,
    nn.MaxPool2d: _from_max_pool,
    nn.AvgPool2d: _from_avg_pool,
    nn.AdaptiveAvgPool2d: lambda m: fnn.AdaptiveAvgPool2d(m.output_size),
    nn.Embedding: _from_embedding,
    nn.RMSNorm: _from_rms_norm,
    nn.ConvTranspose2d: _from_conv_transpose,
    nn.Upsample: _from_upsample,
    nn.MultiheadAttention: _from_attention,
    MultiheadAttention: _from_attention,
    nn.TransformerEncoderLayer: _from_encoder,
    nn.TransformerEncoder: _from_encoders,
    Residual: _from_residual,
    Attention: lambda m: _from_attention(m.attention, m.causal),
    PositionalEmbedding: _from_positions,
}


# ------------------------------------------------------------------------------------------------- to torch


_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "leaky_relu": nn.LeakyReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU("tanh"),
    "silu": nn.SiLU,
    "hardswish": nn.Hardswish,
}


def to_torch(model: fnn.Module) -> nn.Module:
    """A torch module with the same layers and copies of the weights; fused activations become layers of their own.

    Raises
    ------
    TypeError
        When the model has a layer that is not fastsparse's own.
    """
    if not isinstance(model, fnn.Module):
        raise TypeError(f"model is {type(model).__name__}, expected a model of fastsparse.nn")
    return _to_torch(model).train(model.training)


def _to_torch(model: Any) -> nn.Module:
    make = _TO_TORCH.get(type(model))
    if make is None:
        raise TypeError(f"the model has a {type(model).__name__}, which to_torch does not know")
    found, fused = make(model), getattr(model, "activation", None)
    fuses = isinstance(model, (fnn.Linear, fnn.Conv2d, SparseWeight))
    return nn.Sequential(found, _ACTIVATIONS[fused]()) if fuses and fused is not None else found


def _set(module: Any, source: Any, *names: str) -> Any:
    """A torch module with copies of these arrays of a layer of ours."""
    with torch.no_grad():
        for name in names:
            found = getattr(source, name)
            if found is not None:
                array = found.value if isinstance(found, fnn.Parameter) else np.asarray(found)
                getattr(module, name).copy_(torch.from_numpy(np.ascontiguousarray(array)))
    return module


def _type(parameter: fnn.Parameter) -> torch.dtype:
    return torch.float64 if parameter.dtype == np.float64 else torch.float32


def _symmetric(padding: Any) -> tuple[nn.Module | None, tuple[int, ...]]:
    """Padding as torch takes it: one number per axis, or a layer of its own where the sides differ."""
    if all(before == after for before, after in padding):
        return None, tuple(before for before, _ in padding)
    return nn.ZeroPad2d([n for pair in reversed(padding) for n in pair]), (0,) * len(padding)


def _padded(pad: nn.Module | None, layer: nn.Module) -> nn.Module:
    return layer if pad is None else nn.Sequential(pad, layer)


def _to_linear(m: Any) -> nn.Module:
    layer = nn.Linear(m.in_features, m.out_features, m.bias is not None, dtype=_type(m.weight))
    return _set(layer, m, "weight", "bias")


def _to_sparse_linear(m: Any) -> nn.Module:
    layer = SparseLinear(m.in_features, m.out_features, m.bias is not None, pattern=m.pattern, dtype=_type(m.values))
    return _set(layer, m, "values", "bias")


def _to_conv(m: Any) -> nn.Module:
    pad, padding = _symmetric(m.padding)
    arguments = (
        m.in_channels,
        m.out_channels,
        m.kernel_size,
        m.stride,
        padding,
        m.dilation,
        m.groups,
        m.bias is not None,
    )
    if isinstance(m, fnn.Conv2d):
        return _padded(pad, _set(nn.Conv2d(*arguments, dtype=_type(m.weight)), m, "weight", "bias"))
    kinds: dict[int, Any] = {1: SparseConv1d, 2: SparseConv2d, 3: SparseConv3d}
    layer = kinds[len(m.kernel_size)](*arguments, pattern=m.pattern, dtype=_type(m.values))
    return _padded(pad, _set(layer, m, "values", "bias"))


def _to_batch_norm(m: Any) -> nn.Module:
    kind = nn.BatchNorm1d if isinstance(m, fnn.BatchNorm1d) else nn.BatchNorm2d
    layer = kind(m.num_features, m.eps, m.momentum, dtype=_type(m.weight))
    return _set(layer, m, "weight", "bias", "running_mean", "running_var")


def _to_pool(kind: type[nn.Module]) -> Callable[[Any], nn.Module]:
    def make(m: Any) -> nn.Module:
        pad, padding = _symmetric(m.padding)
        if pad is not None:
            raise TypeError(f"the model has a {kind.__name__} with padding {m.padding}, expected equal sides")
        return kind(m.kernel_size, m.stride, padding)

    return make


def _to_residual(m: Any) -> nn.Module:
    shortcut = nn.Identity() if m.shortcut is None else _to_torch(m.shortcut)
    return Residual(
        _to_torch(m.body), shortcut, nn.Identity() if m.activation is None else _ACTIVATIONS[m.activation]()
    )


def _to_conv_transpose(m: Any) -> nn.Module:
    pad, padding = _symmetric(m.padding)
    if pad is not None:
        raise TypeError(f"the model has a SparseConvTranspose2d with padding {m.padding}, expected equal sides")
    layer = nn.ConvTranspose2d(
        m.in_channels, m.out_channels, m.kernel_size, m.stride, padding, m.output_padding, m.groups, m.bias is not None,
        m.dilation, dtype=_type(m.values),
    )  # fmt: skip
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(m.weight.toarray()).reshape(layer.weight.shape))
    return _set(layer, m, "bias")


def _to_attention(m: Any) -> nn.Module:
    parts = [getattr(m, name) for name in PROJECTIONS]
    if any(part.activation is not None for part in parts):
        raise TypeError("the model has a MultiheadAttention whose projections have activations, expected none")
    first, second = _stacked(parts[:3]), _to_torch(parts[3])
    return Attention(MultiheadAttention(first, second, m.num_heads, 0.0, True), m.causal)


def _stacked(parts: list[Any]) -> nn.Module:
    """One linear layer of several with one input; sparse where all of them are."""
    rows, columns = sum(part.out_features for part in parts), parts[0].in_features
    biases = [np.zeros(part.out_features) if part.bias is None else part.bias.value for part in parts]
    bias = None if all(part.bias is None for part in parts) else np.concatenate(biases)
    if all(isinstance(part, fnn.SparseLinear) for part in parts):
        joined = csr(sparse.vstack([part.weight.to_scipy() for part in parts]))
        return _to_sparse_linear(fnn.SparseLinear.from_dense(joined, bias))
    full = [part.weight.value if isinstance(part, fnn.Linear) else part.weight.toarray() for part in parts]
    layer = fnn.Linear(columns, rows, bias is not None, dtype=full[0].dtype)
    layer.weight.value = np.concatenate(full)
    if bias is not None:
        _filled(layer, bias=torch.from_numpy(bias))
    return _to_linear(layer)


def _to_embedding(m: Any) -> nn.Module:
    words = nn.Embedding(m.num_embeddings, m.embedding_dim, sparse=m.sparse, dtype=_type(m.weight))
    _set(words, m, "weight")
    return words if m.position is None else _set(PositionalEmbedding(words, m.positions), m, "position")


_TO_TORCH: dict[type[Any], Callable[[Any], nn.Module]] = {
    fnn.Sequential: lambda m: nn.Sequential(*map(_to_torch, m)),
    fnn.Residual: _to_residual,
    fnn.SparseLinear: _to_sparse_linear,
    fnn.Linear: _to_linear,
    fnn.SparseConv1d: _to_conv,
    fnn.SparseConv2d: _to_conv,
    fnn.SparseConv3d: _to_conv,
    fnn.Conv2d: _to_conv,
    fnn.BatchNorm1d: _to_batch_norm,
    fnn.BatchNorm2d: _to_batch_norm,
    fnn.LayerNorm: lambda m: _set(nn.LayerNorm(m.normalized_shape, m.eps, dtype=_type(m.weight)), m, "weight", "bias"),
    fnn.RMSNorm: lambda m: _set(nn.RMSNorm(m.normalized_shape, m.eps, dtype=_type(m.weight)), m, "weight"),
    fnn.Embedding: _to_embedding,
    fnn.SparseConvTranspose2d: _to_conv_transpose,
    fnn.Upsample: lambda m: nn.Upsample(scale_factor=m.scale_factor, mode=m.mode),
    fnn.MultiheadAttention: _to_attention,
    fnn.TransformerEncoderLayer: lambda m: nn.Sequential(*map(_to_torch, m)),
    fnn.Softmax: lambda m: nn.Softmax(m.axis),
    fnn.Dropout: lambda m: nn.Dropout(m.p),
    fnn.Flatten: lambda m: nn.Flatten(),
    fnn.MaxPool2d: _to_pool(nn.MaxPool2d),
    fnn.AvgPool2d: _to_pool(nn.AvgPool2d),
    fnn.AdaptiveAvgPool2d: lambda m: nn.AdaptiveAvgPool2d(m.output_size),
    **dict.fromkeys(
        (fnn.ReLU, fnn.ReLU6, fnn.LeakyReLU, fnn.Sigmoid, fnn.Tanh, fnn.GELU, fnn.SiLU, fnn.Hardswish),
        lambda m: _ACTIVATIONS[m.activation](),
    ),
}
