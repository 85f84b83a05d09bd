"""Making pruned modules fast: dense layers are replaced by sparse ones where that is measured to be faster."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod

from fastsparse import checks
from fastsparse.sparsity.patterns import count_nonzeros
from fastsparse.text_table import text_table
from fastsparse.timing import interleaved
from fastsparse.torch import scores
from fastsparse.torch.attention import MultiheadAttention
from fastsparse.torch.layers import (
    SparseConv1d,
    SparseConv2d,
    SparseConv3d,
    SparseLayer,
    SparseLinear,
    effective_weight,
    is_transposed,
    why_not_plain,
)

Array = NDArray[Any]
Filter = Callable[[str, nn.Module], bool]

_TWINS: dict[type[nn.Module], type[Any]] = {
    nn.Linear: SparseLinear,
    nn.modules.linear.NonDynamicallyQuantizableLinear: SparseLinear,
    nn.Conv1d: SparseConv1d,
    nn.Conv2d: SparseConv2d,
    nn.Conv3d: SparseConv3d,
}
_STATE = nn.Linear(1, 1, device="meta").__dict__.keys()  # names of what every linear layer has
_FAMILY = nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d
# Share of zeros from which on a layer takes part as it is: where measuring decides, and where nothing does.
_MEASURED, _UNMEASURED = 0.5, 0.8


# ------------------------------------------------------------------------------------------------- report


@dataclass(frozen=True)
class LayerReport:
    """What became of one layer.

    Attributes
    ----------
    name, kind : str
    shape : tuple of int
        Of its weight.
    sparsity : float
    sparse : bool
        Whether it is a sparse layer now.
    dense_seconds, sparse_seconds : float or None
        Of a call at the batch given (forward and backward in training mode), where that was measured.
    note : str
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    sparsity: float
    sparse: bool
    dense_seconds: float | None = None
    sparse_seconds: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Report:
    """What `sparsify` did; prints as a table."""

    layers: tuple[LayerReport, ...] = field(default=())

    @property
    def replaced(self) -> tuple[LayerReport, ...]:
        """The layers that are sparse now."""
        return tuple(layer for layer in self.layers if layer.sparse)

    def __str__(self) -> str:
        header = ("layer", "kind", "now", "note", "weight", "sparsity", "dense ms", "sparse ms", "faster")
        rows = [
            (
                r.name, r.kind, "sparse" if r.sparse else "dense", r.note, "x".join(map(str, r.shape)),
                f"{r.sparsity:.1%}", _milliseconds(r.dense_seconds), _milliseconds(r.sparse_seconds),
                f"{r.dense_seconds / r.sparse_seconds:.2f}x" if r.dense_seconds and r.sparse_seconds else "",
            )
            for r in self.layers
        ]  # fmt: skip
        table = text_table(header, rows, text=4) if rows else "no layer to replace"
        return f"{table}\n{len(self.replaced)} of {len(self.layers)} layers are sparse now"


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:.3g}" if seconds < 0.1 else f"{seconds * 1e3:,.0f}"


# ------------------------------------------------------------------------------------------------- sparsify


@dataclass(eq=False)
class _Candidate:
    """A dense layer that may be replaced."""

    name: str
    layer: nn.Module
    weight: Tensor  # what it multiplies with, (out, ...)
    mask: Array  # (out, columns), of the weights to keep
    input_shape: tuple[int, ...] | None = None
    squares: Array | None = None  # of the input's features or channels, summed over all samples
    products: Array | None = None  # of the input's features with each other, likewise
    updated: bool = False  # `weight` is no longer the layer's
    seconds: tuple[float, float] | None = None
    twin: SparseLayer | None = None
    note: str = ""

    @property
    def sparsity(self) -> float:
        return 1.0 - float(np.count_nonzero(self.mask)) / max(1, self.mask.size)


_Group = list[_Candidate]  # layers that share a weight


def sparsify(
    module: nn.Module,
    sparsity: float | None = None,
    *,
    threshold: float | None = None,
    method: str = "magnitude",
    scope: str = "layer",
    filter_fn: Filter | None = None,
    example_inputs: Any = None,
    measure: bool = True,
) -> Report:
    """Replace dense layers of a module by sparse ones, in place, where that makes it faster.

    Linear, Conv1d, Conv2d, Conv3d, Hugging Face's Conv1D and the projections of nn.MultiheadAttention take part.
    Masks of ``torch.nn.utils.prune`` (before ``remove``, too) and of parametrizations are understood; layers that share
    a weight are replaced together, and stay when something else shares it. Optimizers are to be made afterwards.

    Parameters
    ----------
    module : torch.nn.Module
        On the CPU. In training mode forward and backward passes are measured, in evaluation mode forward ones.
    sparsity : float in [0, 1), optional
        Prune all layers that take part to this sparsity first. A layer that is not faster then stays dense, with zeros.
        Without it, layers are taken as they are.
    threshold : float, optional
        Without `sparsity`, the share of zeros from which on a layer takes part; by default half of the weights where it
        is measured, and 80% where it is not.
    method : {"magnitude", "wanda", "sparsegpt", "random"}
        What is kept; "wanda" (magnitude times norm of the input) and "sparsegpt" (which also changes the weights that
        stay, so that outputs change least) need `example_inputs`. SparseGPT prunes linear layers only; all of them see
        inputs of the module as it was, and each takes memory for (in, in) numbers meanwhile.
    scope : {"layer", "global", "erk"}
        Whether each layer has this sparsity, or all together: by one threshold, or by Erdos-Renyi densities.
    filter_fn : function of (name, layer), optional
        Whether a layer takes part; by default all do.
    example_inputs : Tensor, tuple of arguments, dict of keywords, or list of these, optional
        What the module will be called with: says at which sizes layers are measured. Without it, linear layers are
        measured on one sample, and convolutions are not.
    measure : bool
        False replaces all layers that take part.

    Returns
    -------
    Report
        ``print(report)`` shows a line per layer.

    Raises
    ------
    TypeError, ValueError
        When an argument does not fit. Nothing has been changed then.

    Examples
    --------
    >>> import torch, fastsparse.torch as fst
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10)).eval()
    >>> report = fst.sparsify(model, 0.9, measure=False)
    >>> model[0]
    SparseLinear(in_features=64, out_features=64, bias=True, sparsity=0.9)
    """
    measure = checks.flag(measure, "measure")
    _check_arguments(module, sparsity, threshold, method, scope, filter_fn, example_inputs)
    apart = _taken_apart(module, filter_fn)
    try:
        groups, kept = _candidate_groups(module, filter_fn)
        candidates = [candidate for group in groups for candidate in group]
        _guard_encoders(module)
        if example_inputs is not None and candidates:
            _watch_inputs(module, candidates, example_inputs, method)
        if sparsity is not None and candidates:
            _choose(groups, sparsity, method, scope)
        decided = _decided(groups, sparsity is None, threshold, measure, module.training)
    except BaseException:
        _substitute(module, {new: old for old, new in apart.items()})
        _guard_encoders(module)
        raise
    with torch.no_grad():
        for candidate in candidates:
            if candidate not in decided and sparsity is not None:
                _write_zeros(candidate)
    for candidate in decided:
        _move_hooks(candidate.layer, candidate.twin)
    _substitute(module, {c.layer: c.twin for c in decided})
    unchanged = {new: old for old, new in apart.items() if not any(isinstance(m, SparseLayer) for m in new.modules())}
    _substitute(module, unchanged)
    _guard_encoders(module)
    lines = [_line(c, c in decided) for c in candidates] + kept
    order = {name: i for i, name in enumerate(_names(module))}
    return Report(tuple(sorted(lines, key=lambda line: order.get(line.name, len(order)))))


def _check_arguments(
    module: Any, sparsity: Any, threshold: Any, method: Any, scope: Any, filter_fn: Any, example_inputs: Any
) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(f"module is {type(module).__name__}, expected torch.nn.Module")
    if type(module) in _TWINS or is_transposed(module) or isinstance(module, nn.MultiheadAttention):
        kind = type(module).__name__
        raise ValueError(f"module is itself a {kind}, expected a module around it (torch.nn.Sequential, for example)")
    for name, parameter in module.named_parameters():
        if parameter.device.type != "cpu":
            raise ValueError(f"{name} is on {parameter.device}, expected the CPU (use module.cpu())")
    if sparsity is not None:
        count_nonzeros(1, sparsity)
    if threshold is not None:
        checks.number(threshold, "threshold", 0, 1)
    checks.choice(method, "method", scores.METHODS)
    checks.choice(scope, "scope", scores.SCOPES)
    named = scores.CALIBRATED.get(method)
    if named and scope == "global":
        raise ValueError(f"scope is 'global', expected 'layer' or 'erk': {named} compares weights of one layer")
    if named and example_inputs is None:
        raise ValueError(f"example_inputs is None, expected inputs: {named} weighs weights with them")
    if filter_fn is not None and (not callable(filter_fn) or isinstance(filter_fn, type)):
        raise TypeError(f"filter_fn is {checks.shown(filter_fn)}, expected a function of (name, layer)")


# ------------------------------------------------------------------------------------------------- finding layers


def _taken_apart(module: nn.Module, filter_fn: Filter | None) -> dict[nn.Module, nn.Module]:
    """Attention with layers for its projections, in place of torch's; what was there, and what is now."""
    found: dict[nn.Module, nn.Module] = {}
    for name, layer in module.named_modules():
        if isinstance(layer, nn.MultiheadAttention) and MultiheadAttention.why_not(layer) is None:
            new = MultiheadAttention.from_dense(layer)
            parts = ("in_proj", new.in_proj), ("out_proj", new.out_proj)
            if filter_fn is None or any(filter_fn(f"{name}.{part}", linear) for part, linear in parts):
                found[layer] = new
    _substitute(module, found)
    return found


def _candidate_groups(module: nn.Module, filter_fn: Filter | None) -> tuple[list[_Group], list[LayerReport]]:
    """Layers that take part, by the weight that they share, and lines on those that cannot."""
    inside = {part for m in module.modules() if isinstance(m, nn.MultiheadAttention) for part in m.children()}
    names = {layer: name for name, layer in module.named_modules()}
    holders: dict[int, set[nn.Module]] = defaultdict(set)
    for layer in names:
        for parameter in layer.parameters(recurse=False):
            holders[id(parameter)].add(layer)
    found: dict[int, list[_Candidate]] = defaultdict(list)
    kept = []
    for layer, name in names.items():
        if isinstance(layer, nn.MultiheadAttention):
            kept.append(_kept_line(name, layer, MultiheadAttention.why_not(layer) or "not chosen"))
            continue
        if not (isinstance(layer, _FAMILY) or is_transposed(layer)) or layer in inside:
            continue
        if filter_fn is not None and not filter_fn(name, layer):
            continue
        reason = why_not_plain(layer)
        known = type(layer) in _TWINS or is_transposed(layer) or getattr(layer, "parametrizations", None)
        if not reason and not known and not _computes_linear(layer):
            reason = "a class of its own"
        if reason:
            kept.append(_kept_line(name, layer, reason))
            continue
        weight, mask = effective_weight(layer)
        array = (weight if mask is None else mask).reshape(len(weight), -1) != 0
        found[id(_parameter(layer))].append(_Candidate(name, layer, weight, array.numpy()))
    groups = []
    for key, group in found.items():
        own = {part for c in group for part in (c.layer, *c.layer.modules())}  # of parametrizations, too
        others = sorted(names[holder] for holder in holders[key] - own)
        if others or not all(_alike(c, group[0]) for c in group):
            others = others or [c.name for c in group]
            kept += [_kept_line(c.name, c.layer, f"shares its weight with {', '.join(others)}") for c in group]
            continue
        groups.append(group)
    return groups, kept


def _computes_linear(layer: nn.Module) -> bool:
    """Whether a subclass of nn.Linear computes what nn.Linear does: it has its forward, or another (Falcon's) that
    gives the same numbers in both modes and reads nothing that could change them."""
    if not isinstance(layer, nn.Linear) or type(layer).__call__ is not nn.Module.__call__:
        return False
    if type(layer).forward is nn.Linear.forward and "forward" not in layer.__dict__:
        return True
    kinds = type(layer).__mro__
    own = [
        value for kind in kinds[: kinds.index(nn.Linear)] for name, value in vars(kind).items() if name != "__init__"
    ]
    read = {name for function in own for name in getattr(getattr(function, "__code__", None), "co_names", ())}
    if {*layer.state_dict(), *layer._buffers} - {"weight", "bias"} or read & (layer.__dict__.keys() - _STATE):
        return False
    weight, training = layer.weight.detach(), layer.training
    x = torch.randn((2, 3, layer.in_features), generator=torch.Generator().manual_seed(0)).to(weight.dtype)
    expected = nn.functional.linear(x, weight, None if layer.bias is None else layer.bias.detach())
    rtol = 1e-2 if weight.element_size() < 4 else 1e-4
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            for layer.training in (True, False):
                found = layer.forward(x)
                if type(found) is not Tensor or found.shape != expected.shape or found.dtype != expected.dtype:
                    return False
                if not torch.allclose(found, expected, rtol, rtol * float(expected.abs().max())):
                    return False
        except Exception:  # a forward that wants something else than one tensor
            return False
        finally:
            layer.training = training
    return True


def _alike(one: _Candidate, other: _Candidate) -> bool:
    """Whether two layers of one parameter multiply with the same weight: not where masks differ."""
    same = type(one.layer) is type(other.layer) and one.weight.shape == other.weight.shape
    return same and np.array_equal(one.mask, other.mask)


def _parameter(layer: nn.Module) -> Any:
    """The parameter behind a layer's weight."""
    known = getattr(layer, "parametrizations", None)
    if known is not None and "weight" in known:
        return known["weight"].original
    return getattr(layer, "weight_orig", None) if hasattr(layer, "weight_mask") else layer.weight


def _kept_line(name: str, layer: nn.Module, reason: str) -> LayerReport:
    weight = getattr(layer, "in_proj_weight", None) if isinstance(layer, nn.MultiheadAttention) else layer.weight
    if not isinstance(weight, Tensor) or isinstance(weight, nn.parameter.UninitializedParameter):
        weight = torch.empty(0)
    zeros = 1 - float(torch.count_nonzero(weight)) / max(1, weight.numel()) if weight.device.type == "cpu" else 0.0
    return LayerReport(name, type(layer).__name__, tuple(weight.shape), zeros, False, note=reason)


def _names(module: nn.Module) -> Iterable[str]:
    return (name for name, _ in module.named_modules(remove_duplicate=False))


# ------------------------------------------------------------------------------------------------- choosing weights


def _watch_inputs(module: nn.Module, candidates: list[_Candidate], example_inputs: Any, method: str) -> None:
    """Run the module and note the sizes of what the layers get, and what the method wants to know of it."""

    def note(candidate: _Candidate) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
            if not inputs:
                return
            if not isinstance(inputs[0], torch.Tensor):
                kind = type(inputs[0]).__name__
                raise TypeError(f"example_inputs gives {candidate.name} a {kind}, expected a Tensor")
            x = inputs[0].detach()
            if candidate.input_shape is None or x.numel() > math.prod(candidate.input_shape):
                candidate.input_shape = tuple(x.shape)
            if method == "sparsegpt":
                rows = x.reshape(-1, x.shape[-1]).float()
                products = (rows.T @ rows).numpy()
                candidate.products = products if candidate.products is None else candidate.products + products
            if method != "wanda":
                return
            axis = _features_axis(layer)
            squares = x.double().square().sum([a for a in range(x.ndim) if a != axis % x.ndim]).numpy()
            candidate.squares = squares if candidate.squares is None else candidate.squares + squares

        return hook

    handles = [c.layer.register_forward_pre_hook(note(c)) for c in candidates]
    training = {m: m.training for m in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            for batch in example_inputs if isinstance(example_inputs, list) else [example_inputs]:
                _call(module, batch)
    finally:
        for handle in handles:
            handle.remove()
        for m, mode in training.items():
            m.training = mode


def _call(module: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, dict) or hasattr(inputs, "keys"):
        return module(**inputs)
    return module(*inputs) if isinstance(inputs, tuple) else module(inputs)


def _features_axis(layer: nn.Module) -> int:
    """Axis of the features, or of the channels."""
    return -len(layer.kernel_size) - 1 if hasattr(layer, "kernel_size") else -1


def _choose(groups: list[_Group], sparsity: float, method: str, scope: str) -> None:
    """Masks at the sparsity wanted; of layers that share a weight the first decides."""
    firsts = [group[0] for group in groups]
    for candidate in firsts:
        if torch.isnan(candidate.weight).any():
            raise ValueError(f"{candidate.name}: a weight is NaN, expected numbers")
    if method == "sparsegpt":
        for group, density in zip(groups, scores.chosen_densities([c.weight for c in firsts], sparsity, scope)):
            _make_up(group, density)
        return
    norms = [_column_norms(group) if method == "wanda" else None for group in groups]
    rng = np.random.default_rng(int(torch.randint(2**63 - 1, ()))) if method == "random" else np.random.default_rng(0)
    masks = scores.chosen_masks(
        [c.weight for c in firsts], [c.mask for c in firsts], norms, sparsity, method, scope, rng
    )
    for group, mask in zip(groups, masks):
        for candidate in group:
            candidate.mask = mask


def _make_up(group: list[_Candidate], density: float) -> None:
    """Prune by SparseGPT: masks and weights of layers that share a weight."""
    candidate = group[0]
    if hasattr(candidate.layer, "kernel_size"):
        kind = type(candidate.layer).__name__
        raise ValueError(f"{candidate.name} is a {kind}, expected linear layers for SparseGPT (use filter_fn)")
    products = [c.products for c in group if c.products is not None]
    if not products:
        raise ValueError(f"{candidate.name} gets no input from example_inputs, expected inputs for all layers")
    mask, weight = scores.sparsegpt(candidate.weight.float().numpy(), candidate.mask, np.sum(products, axis=0), density)
    for c in group:
        c.mask, c.weight, c.updated, c.products = mask, torch.from_numpy(weight), True, None


def _column_norms(group: list[_Candidate]) -> Array:
    """Norm of the input that each column of the weight meets, or of every row: (columns,) or (out, columns)."""
    candidate = group[0]
    squares = [c.squares for c in group if c.squares is not None]
    if not squares:
        raise ValueError(f"{candidate.name} gets no input from example_inputs, expected inputs for all layers")
    norms = np.sqrt(sum(squares)).astype(np.float32)
    layer: Any = candidate.layer
    if not hasattr(layer, "kernel_size"):
        return norms
    by_group = np.repeat(norms, math.prod(layer.kernel_size)).reshape(layer.groups, -1)
    return np.repeat(by_group, layer.out_channels // layer.groups, axis=0)


# ------------------------------------------------------------------------------------------------- deciding


def _decided(
    groups: list[_Group], as_they_are: bool, threshold: float | None, measure: bool, training: bool
) -> set[_Candidate]:
    """The candidates to replace, each with its twin; layers that share a weight together."""
    decided: set[_Candidate] = set()
    for group in groups:
        usual = _MEASURED if measure and all(_sizes(c) for c in group) else _UNMEASURED
        least = usual if threshold is None else threshold
        if as_they_are and group[0].sparsity < least:
            for c in group:
                c.note = f"below the threshold of {least:.0%}"
            continue
        for c in group:
            c.twin = _twin(c)
            if measure:
                _measure(c, training)
        times = [c.seconds for c in group if c.seconds is not None]
        if times and sum(t[0] for t in times) <= sum(t[1] for t in times):
            for c in group:
                c.note, c.twin = "not faster", None
            continue
        for c in group[1:]:
            _share(group[0].twin, c.twin)
        decided |= set(group)
    return decided


def _twin(candidate: _Candidate) -> SparseLayer:
    layer = candidate.layer
    kind = next((twin for dense, twin in _TWINS.items() if isinstance(layer, dense)), SparseLinear)
    twin: SparseLayer = kind.from_dense(layer, torch.from_numpy(candidate.mask.reshape(candidate.weight.shape)))
    if candidate.updated:
        twin._take(candidate.weight, twin.bias, layer)
    return twin


def _move_hooks(layer: Any, twin: Any) -> None:
    """Users' hooks go with the layer, and their handles stay good; those that prune it have done their work."""
    for key, hook in list(layer._forward_pre_hooks.items()):
        if isinstance(hook, BasePruningMethod) and hook._tensor_name == "weight":
            del layer._forward_pre_hooks[key]
    for name, hooks in vars(layer).items():
        if name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called")) and "state_dict" not in name:
            setattr(twin, name, hooks)
    if hasattr(layer, "bias_mask"):  # a pruned bias stays so, by the hook that has moved
        del twin._parameters["bias"]
        twin.register_parameter("bias_orig", layer.bias_orig)
        twin.register_buffer("bias_mask", layer.bias_mask)
        twin.bias = layer.bias_orig * layer.bias_mask


def _share(first: Any, other: Any) -> None:
    """Have two layers of equal weight share it, as the dense ones did."""
    other.values, other.indptr, other.indices = first.values, first.indptr, first.indices


def _sizes(candidate: _Candidate) -> tuple[int, ...] | None:
    """Of the input that a layer is measured on: what was seen, or for linear layers one sample."""
    if candidate.input_shape is None and not hasattr(candidate.layer, "kernel_size"):
        return 1, candidate.mask.shape[1]
    return candidate.input_shape


def _measure(candidate: _Candidate, training: bool) -> None:
    """Time the dense and the sparse layer at the sizes seen."""
    twin, shape = candidate.twin, _sizes(candidate)
    if shape is None or twin is None:
        candidate.note = "not measured: no example_inputs"
        return
    x = torch.randn(shape).to(candidate.weight.dtype).requires_grad_(training)
    dense: nn.Module = twin.to_dense()  # as the layer is, without masks and hooks
    with torch.set_grad_enabled(training):
        calls = {"dense": _step(dense, x, training), "sparse": _step(twin, x, training)}
        times = interleaved(calls, rounds=(3, 9), seconds=0.1, block=0.001)
    twin.zero_grad()
    candidate.seconds = min(times["dense"]), min(times["sparse"])  # what others do on the machine only adds to it


def _step(layer: nn.Module, x: Tensor, training: bool) -> Callable[[], object]:
    if not training:
        return lambda: layer(x)
    grad = torch.ones_like(layer(x))
    return lambda: layer(x).backward(grad)


# ------------------------------------------------------------------------------------------------- changing the module


def _substitute(module: nn.Module, new: dict[Any, Any]) -> None:
    """Put layers in the places of others, wherever these stand."""
    if not new:
        return
    for parent in list(module.modules()):
        for name, child in list(parent._modules.items()):
            if child in new:
                parent._modules[name] = new[child]


def _write_zeros(candidate: _Candidate) -> None:
    """Prune a layer that stays dense."""
    parameter, transposed = _parameter(candidate.layer), is_transposed(candidate.layer)
    if candidate.updated:
        parameter.copy_(candidate.weight.T if transposed else candidate.weight)
    mask = torch.from_numpy(candidate.mask.reshape(candidate.weight.shape))
    parameter.mul_(mask.T if transposed else mask)


def _guard_encoders(module: nn.Module) -> None:
    """Have torch's encoders call their layers, instead of reading the dense weights of these."""
    for layer in module.modules():
        if isinstance(layer, (nn.TransformerEncoderLayer, nn.TransformerEncoder)):
            apart = any(isinstance(m, (SparseLayer, MultiheadAttention)) for m in layer.modules())
            switch = "activation_relu_or_gelu" if isinstance(layer, nn.TransformerEncoderLayer) else "use_nested_tensor"
            usual = layer.__dict__.setdefault(f"_usual_{switch}", getattr(layer, switch, 0))
            setattr(layer, switch, type(usual)(0) if apart else usual)


def _line(candidate: _Candidate, replaced: bool) -> LayerReport:
    dense, sparse = candidate.seconds or (None, None)
    return LayerReport(
        candidate.name, type(candidate.layer).__name__, tuple(candidate.weight.shape), candidate.sparsity, replaced,
        dense, sparse, candidate.note,
    )  # fmt: skip


def densify(module: nn.Module) -> nn.Module:
    """Put dense layers, with zeros, in the places of all sparse ones; the way back from `sparsify`.

    Weights that layers share stay shared. Hugging Face's Conv1D comes back as nn.Linear.

    Returns
    -------
    torch.nn.Module
        `module` itself, or the dense layer where it is itself a sparse one.
    """
    if isinstance(module, SparseLayer):
        return module.to_dense()
    shared: dict[int, Any] = {}
    new: dict[nn.Module, nn.Module] = {}
    if not isinstance(module, nn.Module):
        raise TypeError(f"module is {type(module).__name__}, expected torch.nn.Module")
    for layer in module.modules():
        if isinstance(layer, SparseLayer):
            dense: Any = layer.to_dense()
            dense.weight = shared.setdefault(id(layer.values), dense.weight)
            new[layer] = dense
    _substitute(module, new)
    apart = {m: m.to_dense() for m in module.modules() if isinstance(m, MultiheadAttention)}
    if module in apart:
        return apart[module]
    _substitute(module, apart)
    _guard_encoders(module)
    return module
