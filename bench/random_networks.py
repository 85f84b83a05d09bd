"""Random small networks, as layers of fastsparse and as ONNX models, for `bench.fuzz_networks` and the test suite.

A network is plain data, so that it can be printed, replayed and made smaller:

    {"dtype": "float32", "batch": 3, "shape": [2, 9, 7], "layers": [["conv", {...}], ["relu", {}], ...], "also": [4]}

With `embedding` the input is integers, which select rows of a table of so many: the shape is that of the rows. With
`several`, {"join": ["concat", {}], "branches": [{"shape": [...], "rows": 0, "layers": [...]}, ...]}, the network
has an input for each branch, and its shape is that of what the join makes of their results. `also` are nodes of the
ONNX model whose outputs are the model's, too; with `odd_names` its names are such as compilers like to make.

Its numbers come from its layers' places and sizes alone. What is likely to go wrong is likely here: windows as wide as
their stride, padding on one side, images that vectors and grids do not divide, depthwise layers, sums of any kind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsparse import csr, nn
from fastsparse.csr import Pattern
from tests.checking import PATTERNS

Array = NDArray[Any]
Rng = np.random.Generator
Layer = list[Any]  # [kind, options]
Network = dict[str, Any]

ACTIVATIONS = {
    "relu": nn.ReLU, "relu6": nn.ReLU6, "leaky_relu": nn.LeakyReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh,
    "silu": nn.SiLU, "hardswish": nn.Hardswish, "hardsigmoid": nn.Hardsigmoid, "gelu": nn.GELU,
}  # fmt: skip
MOST_NUMBERS = 5_000, 15_000, 40_000  # in the largest tensor of a batch, one of them
CONVS = {1: nn.SparseConv1d, 2: nn.SparseConv2d, 3: nn.SparseConv3d}


# ---------------------------------------------------------------- sizes


def windows_out(n: int, kernel: int, stride: int, padding: Sequence[int], dilation: int = 1, ceil: bool = False) -> int:
    """Outputs along an axis; not positive where no window fits."""
    free = n + sum(padding) - dilation * (kernel - 1) - 1
    out = (-(-free // stride) if ceil else free // stride) + 1
    return out - 1 if ceil and (out - 1) * stride >= n + padding[0] else out


def shape_after(layer: Layer, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of one sample behind a layer."""
    kind, options = layer
    if kind == "conv":
        axes = zip(
            shape[1:], options["kernel"], options["stride"], options["padding"], options["dilation"], strict=True
        )
        return (options["out"], *(windows_out(*axis) for axis in axes))
    if kind == "transpose":
        sides = zip(*(options[name] for name in ("kernel", "stride", "padding", "more", "dilation")), strict=True)
        return (options["out"], *((n - 1) * s + d * (k - 1) + 1 - sum(p) + m
                                  for n, (k, s, p, m, d) in zip(shape[1:], sides, strict=True)))  # fmt: skip
    if kind == "upsample":
        return (shape[0], *(n * s for n, s in zip(shape[1:], options["scale"], strict=True)))
    if kind in ("max", "mean"):
        axes = zip(shape[1:], options["kernel"], options["stride"], options["padding"], strict=True)
        return (shape[0], *(windows_out(*axis, ceil=options.get("ceil", False)) for axis in axes))
    if kind == "adaptive":
        return (shape[0], *options["output"])
    if kind == "flatten":
        return (math.prod(shape),)
    if kind == "linear":
        return (*shape[:-1], options["out"])
    if kind == "concat":
        return (shape[0] + sum(shape_after(inner, shape)[0] for inner in options["others"]), *shape[1:])
    if kind == "residual":
        for inner in options["body"]:
            shape = shape_after(inner, shape)
    return shape


# ---------------------------------------------------------------- drawing


def random_network(rng: Rng, onnx: bool = False) -> Network:
    """Draw a network; with `onnx` it may have what layers of fastsparse lack (see `as_onnx`)."""
    axes = int(rng.choice([0, 1, 2, 2, 2, 2, 2, 3]))
    most = int(rng.choice(MOST_NUMBERS))
    batch = int(rng.choice([1, 1, 1, 1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33]))
    shape: tuple[int, ...] = (int(rng.integers(1, 9)), *(_size(rng, axes) for _ in range(axes)))
    if axes == 0:
        shape = (int(rng.integers(1, 81)),)
    dtype = "float32" if onnx or rng.random() < 0.7 else "float64"
    network: Network = {"dtype": dtype, "batch": batch, "shape": list(shape), "layers": []}
    if not onnx and axes < 3 and rng.random() < 0.15:
        network["several"] = _several(rng, shape)
        shape = joined_shape(network["several"])
        network["shape"] = list(shape)
    while not network.get("several") and math.prod(shape) * batch > most:
        batch = network["batch"] = max(1, batch // 2)
        if batch == 1:
            shape = (shape[0], *(-(-n // 2) for n in shape[1:]))
            network["shape"] = list(shape)
    layers: list[Layer] = network["layers"]
    for _ in range(int(rng.integers(1, 7))):
        layer = _layer(rng, shape, onnx)
        after = shape_after(layer, shape)
        if min(after) >= 1 and math.prod(after) * batch <= most:
            layers.append(layer)
            shape = after
    if len(shape) > 1 and rng.random() < 0.35 and math.prod(shape) <= 3000:
        layers.append(["flatten", {}])
        shape = (math.prod(shape),)
        for _ in range(int(rng.integers(0, 3))):
            layers.append(_layer(rng, shape, onnx))
            shape = shape_after(layers[-1], shape)
    if not layers:
        layers.append([_one(rng, list(ACTIVATIONS)), {}])
    alone = not onnx and not network.get("several")
    network["embedding"] = int(rng.integers(1, 40)) if alone and rng.random() < 0.12 else 0
    network["also"] = [int(n) for n in rng.integers(0, 12, int(_one(rng, [0, 0, 1, 2])))] if onnx else []
    network["odd_names"] = bool(onnx and rng.random() < 0.3)
    numbers = str([layers, network.get("several")])
    if not any(word in numbers for word in ("sparsity", "norm", "'rows'")) and not network["embedding"]:
        network["dtype"] = "float32"
    return network


def _several(rng: Rng, shape: tuple[int, ...]) -> dict[str, Any]:
    """Inputs of about this shape, what happens to each alone, and how they are joined."""
    channels, spatial = shape[0], tuple(min(n, 12) for n in shape[1:])
    if len(spatial) == 1 and rng.random() < 0.4:
        heads = int(_one(rng, [n for n in range(1, spatial[0] + 1) if spatial[0] % n == 0]))
        join = ["attention", {"heads": heads, "causal": bool(rng.random() < 0.5), **_weights(rng)}]
        sizes = [int(rng.integers(1, 9)), int(rng.integers(1, 9))]
        return {"join": join, "branches": [{"shape": [n, *spatial], "rows": 0, "layers": []} for n in sizes]}
    if rng.random() < 0.4:
        branches = [_branch(rng, (int(rng.integers(1, 9)), *spatial), channels) for _ in range(2)]
        return {"join": ["residual", {"activation": _activation(rng)}], "branches": branches}
    count = int(_one(rng, [2, 2, 3]))
    branches = [_branch(rng, (int(rng.integers(1, 9)), *spatial), None) for _ in range(count)]
    return {"join": ["concat", {}], "branches": branches}


def _branch(rng: Rng, shape: tuple[int, ...], out: int | None) -> dict[str, Any]:
    """An input and its layers, which leave all sizes but the first as they are; that becomes `out`, if it is given."""
    layers: list[Layer] = []
    ones, none = [1] * (len(shape) - 1), [[0, 0]] * (len(shape) - 1)
    channels = int(rng.integers(1, 9)) if out is None else out
    for _ in range(int(_one(rng, [0, 1, 2])) if shape[0] == channels else 1):
        linear = len(shape) == 1
        layers.append(_linear(rng, channels) if linear else _convolution(rng, channels, ones, ones, none, ones))
        if rng.random() < 0.3:
            layers.append([_one(rng, list(ACTIVATIONS)), {}])
    rows = int(rng.integers(1, 40)) if len(shape) < 3 and rng.random() < 0.25 else 0
    return {"shape": list(shape), "rows": rows, "layers": layers}


def joined_shape(several: dict[str, Any]) -> tuple[int, ...]:
    """Shape of one sample behind the join."""
    ends = []
    for branch in several["branches"]:
        shape = tuple(branch["shape"])
        for layer in branch["layers"]:
            shape = shape_after(layer, shape)
        ends.append(shape)
    if several["join"][0] == "concat":
        return (sum(end[0] for end in ends), *ends[0][1:])
    return ends[0]


def _one(rng: Rng, among: Sequence[Any]) -> Any:
    return among[int(rng.integers(len(among)))]


def _size(rng: Rng, axes: int) -> int:
    most = {1: (12, 80, 80), 2: (12, 30, 80), 3: (4, 7, 12)}[axes]
    return int(rng.integers(1, _one(rng, most) + 1))


def _layer(rng: Rng, shape: tuple[int, ...], onnx: bool) -> Layer:
    rows = [] if onnx else ["row", "concat"]  # which the library runs in ONNX models
    if len(shape) == 1:
        kind = _one(rng, ["linear"] * 4 + ["norm", "activation", "residual"] + rows)
    elif len(shape) == 3:
        kinds = ["conv"] * 6 + ["pool"] * 4 + ["residual"] * 3 + ["adaptive", "norm", "activation"] + rows
        kind = _one(rng, kinds + (["gate"] * 3 + ["concat"] if onnx else ["transpose", "upsample"] * 2))
    else:
        kinds = ["conv"] * 4 + ["residual", "norm" if len(shape) == 2 else "conv", "activation"] + rows
        kind = _one(rng, kinds if onnx else [*kinds, "linear", "row"])
    if kind == "activation":
        return [_one(rng, list(ACTIVATIONS)), {}]
    if kind == "norm":
        return ["norm", {}]
    if kind == "row":
        return _row_wise(rng, shape)
    if kind == "gate":
        squeezed = int(rng.integers(1, 5))
        gate = _one(rng, ["sigmoid", "hardsigmoid", "relu", None])
        return ["gate", {"squeezed": squeezed, "activation": gate, "first": bool(rng.random() < 0.5)}]
    if kind == "upsample":
        mode = _one(rng, ["nearest", "bilinear"])
        return ["upsample", {"scale": [int(_one(rng, [1, 2, 2, 3])) for _ in shape[1:]], "mode": mode}]
    if kind == "transpose":
        return _transpose(rng, shape)
    if kind == "concat" and len(shape) == 1:
        others = [_linear(rng, int(rng.integers(1, 9))) for _ in range(int(rng.integers(0, 3)))]
        return ["concat", {"others": others}]
    if kind == "concat":
        ones = [1] * (len(shape) - 1)
        count, none = int(rng.integers(1, 3)), [[0, 0] for _ in ones]
        others = [_convolution(rng, int(rng.integers(1, 6)), ones, ones, none, ones) for _ in range(count)]
        return ["concat", {"others": others}]
    if kind == "linear":
        return _linear(rng, int(rng.integers(1, 41)))
    if kind == "conv":
        return _conv(rng, shape)
    if kind == "pool":
        return _pool(rng, shape, onnx)
    if kind == "adaptive":
        return ["adaptive", {"output": [int(rng.integers(1, min(n, 5) + 1)) for n in shape[1:]]}]
    return _residual(rng, shape, onnx)


def _row_wise(rng: Rng, shape: tuple[int, ...]) -> Layer:
    if rng.random() < 0.3:
        return [_one(rng, ["softmax", "softmax", "dropout"]), {}]
    if len(shape) == 2 and rng.random() < 0.15:
        heads = int(_one(rng, [n for n in range(1, shape[1] + 1) if shape[1] % n == 0]))
        return ["encoder", {
            "heads": heads, "causal": bool(rng.random() < 0.5), "norm_first": bool(rng.random() < 0.5), "dropout": 0.0,
            "sparsity": _one(rng, [0.0, 0.5, 0.9]), "dim_feedforward": int(rng.integers(1, 33)),
            "activation": _one(rng, ["relu", "gelu"]),
        }]  # fmt: skip
    if len(shape) == 2 and rng.random() < 0.6:
        heads = int(_one(rng, [n for n in range(1, shape[1] + 1) if shape[1] % n == 0]))
        return ["attention", {"heads": heads, "causal": bool(rng.random() < 0.5), **_weights(rng)}]
    if rng.random() < 0.3:
        return ["rms_norm", {"axes": int(rng.integers(1, len(shape) + 1))}]
    return ["layer_norm", {"axes": int(rng.integers(1, len(shape) + 1))}]


def _activation(rng: Rng) -> str | None:
    return _one(rng, list(ACTIVATIONS)) if rng.random() < 0.3 else None


def _linear(rng: Rng, out: int) -> Layer:
    return ["linear", {"out": out, **_weights(rng)}]


def _weights(rng: Rng) -> dict[str, Any]:
    return {
        "sparsity": _one(rng, [0.0, 0.3, 0.7, 0.95]), "bias": bool(rng.random() < 0.7), "activation": _activation(rng),
        "dense": bool(rng.random() < 0.15), "mask": _one(rng, list(PATTERNS)) if rng.random() < 0.15 else None,
    }  # fmt: skip


def _padding(rng: Rng, most: int) -> list[int]:
    """In front and behind, at most `most`: none, on one side, the same on both, or any."""
    kind, a, b = rng.integers(6), int(rng.integers(0, most + 1)), int(rng.integers(0, most + 1))
    return [[0, 0], [0, max(1, b)], [0, max(1, b)], [max(1, a), 0], [a, a], [a, b]][kind] if most else [0, 0]


def _conv(rng: Rng, shape: tuple[int, ...]) -> Layer:
    channels, *spatial = shape
    kernel, stride, padding, dilation = [], [], [], []
    one_kernel = int(_one(rng, [1, 1, 2, 3, 3])) if rng.random() < 0.6 else 0
    for n in spatial:
        k = one_kernel or int(_one(rng, [1, 1, 2, 3, 3, 4, 5]))
        d = 1 if rng.random() < 0.8 else int(rng.integers(2, 4))
        s = k if rng.random() < 0.3 else int(_one(rng, [1, 1, 1, 2, 3]))
        p = _padding(rng, 2 if rng.random() < 0.8 else 3)
        while windows_out(n, k, s, p, d) < 1:
            k = k - 1 if k > 1 else k
            d = 1
        kernel.append(k), stride.append(s), padding.append(p), dilation.append(d)
    divisors = [g for g in range(1, channels + 1) if channels % g == 0]
    groups = 1 if rng.random() < 0.65 else int(_one(rng, [*divisors, channels]))
    out = groups * int(rng.integers(1, 4 if groups > 1 else 13))
    return _convolution(rng, out, kernel, stride, padding, dilation, groups)


def _transpose(rng: Rng, shape: tuple[int, ...]) -> Layer:
    kernel, stride, padding, more, dilation = [], [], [], [], []
    for n in shape[1:]:
        k, s, d = int(rng.integers(1, 5)), int(_one(rng, [1, 1, 2, 2, 3])), int(_one(rng, [1, 1, 1, 2]))
        m, p = int(rng.integers(0, s)), _padding(rng, 3)
        while (n - 1) * s + d * (k - 1) + 1 - sum(p) + m < 1:
            p = [max(0, side - 1) for side in p]
        kernel.append(k), stride.append(s), padding.append(p), more.append(m), dilation.append(d)
    groups = int(_one(rng, [1, 1, *(g for g in range(1, shape[0] + 1) if shape[0] % g == 0)]))
    return ["transpose", {
        "out": groups * int(rng.integers(1, 5)), "kernel": kernel, "stride": stride, "padding": padding, "more": more,
        "dilation": dilation, "groups": groups, **_weights(rng),
    }]  # fmt: skip


def _convolution(
    rng: Rng, out: int, kernel: list[int], stride: list[int], padding: list[list[int]], dilation: list[int],
    groups: int = 1,
) -> Layer:  # fmt: skip
    return ["conv", {
        "out": out, "kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation, "groups": groups,
        **_weights(rng),
    }]  # fmt: skip


def _pool(rng: Rng, shape: tuple[int, ...], onnx: bool) -> Layer:
    kind = _one(rng, ["max", "mean"])
    kernel, stride, padding = [], [], []
    for n in shape[1:]:
        k = int(_one(rng, [1, 2, 2, 2, 3, 3, 4]))
        s = k if rng.random() < 0.5 else int(rng.integers(1, 4))
        p = _padding(rng, k // 2)
        while windows_out(n, k, s, p) < 1:
            k -= 1
            p = [min(side, k // 2) for side in p]
        kernel.append(k), stride.append(s), padding.append(p)
    options: dict[str, Any] = {"kernel": kernel, "stride": stride, "padding": padding}
    if onnx:
        options["ceil"] = bool(rng.random() < 0.4)
        options["counts"] = bool(kind == "max" or rng.random() < 0.5)
    return [kind, options]


def _residual(rng: Rng, shape: tuple[int, ...], onnx: bool) -> Layer:
    activation, channels, axes = _activation(rng), shape[0], len(shape) - 1
    if not axes:
        body = [_linear(rng, channels)] if rng.random() < 0.8 else [[_one(rng, list(ACTIVATIONS)), {}]]
        if not onnx and rng.random() < 0.2:
            body.insert(int(rng.integers(2)), _row_wise(rng, shape))
        shortcut = [_linear(rng, channels)] if rng.random() < 0.3 else None
        return ["residual", {"body": body, "shortcut": shortcut, "activation": activation}]
    ones = [1] * axes

    def keeping(out: int, stride: list[int]) -> Layer:
        kernel = [int(_one(rng, [1, 1, 3, 3, 5])) for _ in range(axes)]
        padding = [[k // 2, k // 2] for k in kernel]
        if set(stride) == {1}:  # the same size, by padding that is not the same on both sides
            padding = [[p := int(rng.integers(0, k)), k - 1 - p] for k in kernel]
        return _convolution(rng, out, kernel, stride, padding, ones)

    kind = rng.integers(3)
    if kind == 0:
        body = [keeping(int(rng.integers(1, 9)), ones), keeping(channels, ones)]
        return ["residual", {"body": body[int(rng.integers(2)) :], "shortcut": None, "activation": activation}]
    if kind == 1:
        out, stride = int(rng.integers(1, 13)), [int(_one(rng, [1, 1, 2, 3])) for _ in range(axes)]
        body = [keeping(out, stride), keeping(out, ones)][: int(rng.integers(1, 3))]
        if rng.random() < 0.5:  # reads the image beside the shortcut, at another size than that writes
            first = _residual(rng, shape, onnx) if rng.random() < 0.3 else keeping(int(rng.integers(1, 9)), ones)
            body = [first] * (shape_after(first, shape)[1:] == shape[1:]) + body
        shortcut = [_convolution(rng, out, ones, stride, [[0, 0]] * axes, ones)]
        return ["residual", {"body": body, "shortcut": shortcut, "activation": activation}]
    pool: Layer = [_one(rng, ["max", "mean"]), {"kernel": [3] * axes, "stride": ones, "padding": [[1, 1]] * axes}]
    if not onnx and rng.random() < 0.2:
        pool = _row_wise(rng, shape)
    inner = [pool] if axes == 2 and rng.random() < 0.6 else [[_one(rng, list(ACTIVATIONS)), {}]]
    shortcut = [keeping(channels, ones)] if rng.random() < 0.4 else None
    return ["residual", {"body": inner, "shortcut": shortcut, "activation": activation}]


# ---------------------------------------------------------------- as layers


def as_layers(network: Network) -> nn.Sequential:
    """The network in evaluation mode.

    Raises
    ------
    ValueError
        When no layer of fastsparse does what one of its does.
    """
    model, _ = _sequential(network["layers"], tuple(network["shape"]), network["dtype"], ())
    if network.get("embedding"):
        table = nn.Embedding(network["embedding"], network["shape"][-1], dtype=network["dtype"], rng=0)
        model = nn.Sequential(table, model)
    if network.get("several"):
        model = nn.Sequential(_join(network["several"], network["dtype"]), model)
    if network["dtype"] != "float32" and not any(True for _ in model.named_parameters()):
        raise ValueError("a network without parameters is of float32")
    return model.eval()


def _join(several: dict[str, Any], dtype: str) -> nn.Module:
    kind, options = several["join"]
    branches: list[nn.Module | None] = []
    for i, branch in enumerate(several["branches"]):
        body, _ = _sequential(branch["layers"], tuple(branch["shape"]), dtype, (1, i))
        if branch["rows"]:
            body = nn.Sequential(nn.Embedding(branch["rows"], branch["shape"][-1], dtype=dtype, rng=i), body)
        branches.append(body if len(body) else None)
    if kind == "concat":
        return nn.Concat(*branches)
    if kind == "residual":
        body = nn.Sequential() if branches[0] is None else branches[0]
        return nn.Residual(body, branches[1], options["activation"])
    return _module([kind, options], tuple(several["branches"][0]["shape"]), dtype, (1,))


def _sequential(
    layers: list[Layer], shape: tuple[int, ...], dtype: str, place: tuple[int, ...]
) -> tuple[nn.Sequential, tuple[int, ...]]:
    found = []
    for i, layer in enumerate(layers):
        found.append(_module(layer, shape, dtype, (*place, i)))
        shape = shape_after(layer, shape)
        if min(shape) < 1:
            raise ValueError(f"layer {layer} leaves nothing of its input")
    return nn.Sequential(*found), shape


def _module(layer: Layer, shape: tuple[int, ...], dtype: str, place: tuple[int, ...]) -> nn.Module:
    kind, options = layer
    rng = np.random.default_rng([len(shape), *place])
    if kind in ACTIVATIONS:
        return ACTIVATIONS[kind]()
    if kind == "flatten":
        return nn.Flatten()
    if kind == "norm":
        batch_norm = (nn.BatchNorm2d if len(shape) == 3 else nn.BatchNorm1d)(shape[0], dtype=dtype)
        for name, numbers in _norm_numbers(rng, shape[0]).items():
            if name in ("weight", "bias"):
                getattr(batch_norm, name).value = numbers.astype(dtype)
            else:
                setattr(batch_norm, name, numbers.astype(dtype))
        return batch_norm
    if kind == "softmax":
        return nn.Softmax()
    if kind == "attention":
        weights: dict[str, Any] = {"sparsity": options["sparsity"], "dtype": dtype, "rng": rng}
        return nn.MultiheadAttention(
            shape[1], options["heads"], options["bias"], causal=options["causal"], **weights
        )  # fmt: skip
    if kind == "encoder":
        names = ("dim_feedforward", "dropout", "activation", "norm_first", "causal", "sparsity")
        given = {name: options[name] for name in names}
        return nn.TransformerEncoderLayer(shape[1], options["heads"], **given, dtype=dtype, rng=rng)
    if kind == "dropout":
        return nn.Dropout(0.3, rng=rng)
    if kind in ("layer_norm", "rms_norm"):
        sizes = shape[len(shape) - options["axes"] :]
        if len(sizes) != options["axes"]:
            raise ValueError(f"layer {layer} has too many axes for {shape}")
        norm = (nn.LayerNorm if kind == "layer_norm" else nn.RMSNorm)(sizes, dtype=dtype)
        norm.weight.value = rng.uniform(-1.5, 1.5, sizes).astype(dtype)
        if norm.bias is not None:
            norm.bias.value = rng.standard_normal(sizes).astype(dtype)
        return norm
    if kind == "upsample":
        return nn.Upsample(tuple(options["scale"]), options["mode"])
    if kind == "concat":
        others = [_module(inner, shape, dtype, (*place, i)) for i, inner in enumerate(options["others"])]
        return nn.Concat(None, *others)
    if kind == "gate":
        raise ValueError(f"layer {layer} is of ONNX alone")
    if kind == "adaptive":
        return nn.AdaptiveAvgPool2d(tuple(options["output"]))
    if kind in ("max", "mean"):
        if options.get("ceil") or not options.get("counts", True):
            raise ValueError(f"layer {layer} is of ONNX alone")
        pads = tuple(map(tuple, options["padding"]))
        pool = nn.MaxPool2d if kind == "max" else nn.AvgPool2d
        return pool(tuple(options["kernel"]), tuple(options["stride"]), pads)
    if kind == "residual":
        body, out = _sequential(options["body"], shape, dtype, (*place, 0))
        shortcut = None
        if options["shortcut"] is not None:
            shortcut, passed = _sequential(options["shortcut"], shape, dtype, (*place, 1))
        if (shape if shortcut is None else passed) != out:
            raise ValueError(f"layer {layer} adds two shapes")
        return nn.Residual(body, shortcut, options["activation"])
    common = {"bias": options["bias"], "activation": options["activation"], "dtype": dtype, "rng": rng}
    made: Any
    if kind == "linear":
        kinds, arguments = (nn.Linear, nn.SparseLinear), (shape[-1], options["out"])
    elif kind == "transpose":
        sides = (tuple(options[name]) for name in ("kernel", "stride", "padding", "more"))
        kinds = (nn.SparseConvTranspose2d, nn.SparseConvTranspose2d)
        arguments = (shape[0], options["out"], *sides, options["groups"])
        common["dilation"] = tuple(options["dilation"])
    else:
        axes = len(shape) - 1
        kinds = nn.Conv2d, CONVS[axes]
        arguments = (
            shape[0], options["out"], tuple(options["kernel"]), tuple(options["stride"]),
            tuple(map(tuple, options["padding"])), tuple(options["dilation"]), options["groups"],
        )  # fmt: skip
    if options["dense"] and (kind == "linear" or (kind == "conv" and len(shape) == 3)):
        made = kinds[0](*arguments, **common)
    else:
        made = kinds[1](*arguments, **common, sparsity=options["sparsity"], pattern=_pattern(options, rng))
    if made.bias is not None:
        made.bias.value = rng.standard_normal(made.bias.value.shape).astype(dtype)
    return made


def _pattern(options: dict[str, Any], rng: Rng) -> Callable[[tuple[int, int]], Pattern] | None:
    """What makes a pattern such as one with empty rows; None for a random one."""
    mask = PATTERNS.get(options.get("mask") or "")
    return None if mask is None else lambda shape: csr(mask(rng, shape).astype(float)).pattern


def _norm_numbers(rng: Rng, channels: int) -> dict[str, Array]:
    return {
        "weight": rng.uniform(-1.5, 1.5, channels), "bias": rng.standard_normal(channels),
        "running_mean": rng.standard_normal(channels), "running_var": rng.uniform(0.3, 2, channels),
    }  # fmt: skip


# ---------------------------------------------------------------- as ONNX


def as_onnx(network: Network) -> Any:
    """The network as an ONNX model (opset 20) of an open batch size, with the same numbers."""
    from onnx import TensorProto, helper

    writer = _Writer(network["dtype"], network.get("odd_names", False))
    y = writer.sequence(network["layers"], "x", tuple(network["shape"]), ())
    kind = {"float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE}[network["dtype"]]
    source = helper.make_tensor_value_info("x", kind, ["N", *network["shape"]])
    names = [node.output[0] for node in writer.nodes]
    names = list(dict.fromkeys([y, *(names[n % len(names)] for n in network.get("also", []))]))
    targets = [helper.make_tensor_value_info(name, kind, None) for name in names]
    graph = helper.make_graph(writer.nodes, "network", [source], targets, writer.constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 9
    return model


class _Writer:
    def __init__(self, dtype: str, odd_names: bool) -> None:
        self.dtype, self.odd = dtype, odd_names
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, array: Array) -> str:
        from onnx import numpy_helper

        number = len(self.constants)
        name = (f"a_{number // 2}#bias" if number % 2 else f"#{number}") if self.odd else f"c{number}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        from onnx import helper

        number = len(self.nodes)
        name = f"a_{number}#{'0' if number % 4 else 'weight'}" if self.odd else f"t{number}"
        own = ("a" if number % 2 else f"a_{number + 1}") if self.odd else f"n{number}"  # some twice
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=own, **attributes))
        return name

    def sequence(self, layers: list[Layer], x: str, shape: tuple[int, ...], place: tuple[int, ...]) -> str:
        for i, layer in enumerate(layers):
            x = self.layer(layer, x, shape, (*place, i))
            shape = shape_after(layer, shape)
            if min(shape) < 1:
                raise ValueError(f"layer {layer} leaves nothing of its input")
        return x

    def activation(self, name: str | None, x: str) -> str:
        if name is None:
            return x
        simple = {"relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "hardswish": "HardSwish", "gelu": "Gelu"}
        if name in simple:
            return self.add(simple[name], x)
        if name == "hardsigmoid":
            return self.add("HardSigmoid", x, alpha=1 / 6, beta=0.5)
        if name == "leaky_relu":
            return self.add("LeakyRelu", x, alpha=0.01)
        if name == "silu":
            return self.add("Mul", x, self.add("Sigmoid", x))
        limits = [self.constant(np.array(v, self.dtype)) for v in (0, 6)]
        return self.add("Clip", x, *limits)

    def layer(self, layer: Layer, x: str, shape: tuple[int, ...], place: tuple[int, ...]) -> str:
        kind, options = layer
        if kind in ACTIVATIONS:
            return self.activation(kind, x)
        if kind == "flatten":
            return self.add("Flatten", x)
        if kind == "adaptive":
            if options["output"] != [1, 1]:
                raise ValueError("ONNX has no adaptive pooling but the global one")
            return self.add("GlobalAveragePool", x)
        if kind in ("max", "mean"):
            pads = [side for sides in zip(*options["padding"], strict=True) for side in sides]
            more = {} if kind == "max" else {"count_include_pad": int(options.get("counts", True))}
            return self.add(
                "MaxPool" if kind == "max" else "AveragePool", x, kernel_shape=options["kernel"], pads=pads,
                strides=options["stride"], ceil_mode=int(options.get("ceil", False)), **more,
            )  # fmt: skip
        if kind == "gate":
            rng, c, s = np.random.default_rng([len(shape), *place]), shape[0], options["squeezed"]
            g = self.add("GlobalAveragePool", x)
            for sizes, name in (((s, c), "relu"), ((c, s), options["activation"])):
                weight = (rng.standard_normal(sizes) * (rng.random(sizes) < 0.5)).astype(self.dtype)
                g = self.activation(name, self.add("Conv", g, self.constant(weight.reshape(*sizes, 1, 1))))
            return self.add("Mul", *((g, x) if options["first"] else (x, g)))
        if kind == "concat":
            others = [self.layer(inner, x, shape, (*place, i)) for i, inner in enumerate(options["others"])]
            return self.add("Concat", x, *others, axis=1)
        if kind == "residual":
            body = self.sequence(options["body"], x, shape, (*place, 0))
            passed = x if options["shortcut"] is None else self.sequence(options["shortcut"], x, shape, (*place, 1))
            return self.activation(options["activation"], self.add("Add", body, passed))
        module: Any = _module(layer, shape, self.dtype, place)
        if kind == "norm":
            numbers = module.weight.value, module.bias.value, module.running_mean, module.running_var
            return self.add("BatchNormalization", x, *map(self.constant, numbers), epsilon=module.eps)
        weight = module.weight
        dense = weight.value if hasattr(weight, "value") else weight.toarray()
        biases = [] if module.bias is None else [self.constant(module.bias.value)]
        if kind == "linear":
            y = self.add("Gemm", x, self.constant(dense), *biases, transB=1)
        else:
            window = (options["out"], shape[0] // options["groups"], *options["kernel"])
            pads = [side for sides in zip(*options["padding"], strict=True) for side in sides]
            how: dict[str, Any] = {"pads": pads}
            if pads == same_upper(shape[1:], options) and set(options["dilation"]) == {1}:  # as onnxruntime has it
                how = {"auto_pad": "SAME_UPPER"}
            y = self.add(
                "Conv", x, self.constant(dense.reshape(window)), *biases, strides=options["stride"],
                dilations=options["dilation"], group=options["groups"], kernel_shape=options["kernel"], **how,
            )  # fmt: skip
        return self.activation(options["activation"], y)


def same_upper(spatial: Sequence[int], options: dict[str, Any]) -> list[int]:
    """The pads that SAME_UPPER stands for."""
    before, after = [], []
    for n, k, s, d in zip(spatial, options["kernel"], options["stride"], options["dilation"], strict=True):
        total = max(0, (-(-n // s) - 1) * s + d * (k - 1) + 1 - n)
        before.append(total // 2)
        after.append(total - total // 2)
    return [*before, *after]
