"""Random small networks of fastsparse's layers, for `bench.fuzz_networks`, `bench.fuzz_files` and the test suite.

What is likely to go wrong is likely here: windows as wide as their stride, padding on one side, images that vectors and
grids do not divide, depthwise layers, sums of any kind; and now and then images of more than 256 KB, in batches, with
layers of one channel in a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.draws import Case, Steps, groups, transposed_windows, windows
from fastsparse import csr, nn
from fastsparse.engine.from_model import program_of
from tests.checking import PATTERNS

Array = NDArray[Any]
Shape = tuple[int, ...]

ACTIVATIONS = {
    "relu": nn.ReLU, "relu6": nn.ReLU6, "leaky_relu": nn.LeakyReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh,
    "silu": nn.SiLU, "hardswish": nn.Hardswish, "hardsigmoid": nn.Hardsigmoid, "gelu": nn.GELU,
}  # fmt: skip
CONVS = {1: nn.SparseConv1d, 2: nn.SparseConv2d, 3: nn.SparseConv3d}
LARGE = 0.01  # share of networks of large images
MARGIN = 64  # numbers in front of and behind the user's arrays, NaN or untouched


@dataclass(frozen=True)
class Network:
    """A network in evaluation mode, and what it is given.

    shapes : of one sample of each input
    rows : for each input that is integers how many there are, 0 for others
    """

    model: nn.Sequential
    shapes: tuple[Shape, ...]
    rows: tuple[int, ...] = (0,)
    batch: int = 1
    dtype: str = "float32"

    def inputs(self, batch: int | None = None) -> Any:
        """Numbers between NaNs, or integers; a tuple where there are several inputs."""
        batch = self.batch if batch is None else batch
        found = [self._numbers(i, (batch, *shape)) for i, shape in enumerate(self.shapes)]
        return found[0] if len(found) == 1 else tuple(found)

    def _numbers(self, number: int, shape: Shape) -> Array:
        rng, count = np.random.default_rng([len(self.model), number]), math.prod(shape)
        if self.rows[number]:
            return rng.integers(0, self.rows[number], shape)
        around = np.full(count + 2 * MARGIN, np.nan, self.dtype)
        x = around[MARGIN : MARGIN + count].reshape(shape)
        x[...] = rng.standard_normal(shape)
        return x


def random_network(case: Case, dtype: str = "", most_layers: int = 6) -> Network:
    """The network that a case stands for; it is told what is drawn.

    Parameters
    ----------
    case : see `bench.draws`; with `large` its images are
    dtype : in place of the one that is drawn
    """
    drawing = _Drawing(case)
    network = drawing.network(dtype, most_layers)
    drawing.tell(case)
    return network


class _Drawing(Steps):
    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.large = bool(case.get("large")) or self.d.chance(LARGE)

    def network(self, dtype: str, most_layers: int) -> Network:
        d, axes = self.d, int(self.d.one(2, 2, 2, 2, 2, 0, 1, 3))
        self.dtype = dtype or str(d.one("float32", "float32", "float64"))
        batch, shape, most = self._large() if self.large else self._sizes(axes)
        layers: list[nn.Module] = []
        shapes, rows = (shape,), (0,)
        alone = axes == 3 or self.large or not d.chance(0.15)
        if not alone:
            join, shapes, rows = self._join(shape)
            layers, shape = [join], self._after(join, *shapes)
        elif not self.large and d.chance(0.12):
            shapes, rows = (shape[:-1],), (d.between(1, 39),)
            positions = shape[0] if len(shape) == 2 and d.chance(0.4) else 0
            layers.append(nn.Embedding(rows[0], shape[-1], positions=positions, dtype=self.dtype, rng=d.numbers))
        for _ in self.rest(d.between(1, most_layers)):
            layer = self._layer(shape)
            after = self._after(layer, shape)
            if math.prod(after) * batch <= most:
                layers.append(layer)
                shape = after
        model = nn.Sequential(*(layers or [nn.ReLU()])).eval()
        return Network(model, shapes, rows, batch, self.dtype if model.parameters() else "float32")

    def _sizes(self, axes: int) -> tuple[int, Shape, int]:
        """Samples of a batch, the shape of each, and the most numbers of a tensor."""
        d = self.d
        most, batch = d.one(5_000, 15_000, 40_000), d.one(1, 1, 1, 1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33)
        if axes == 0:
            return batch, (d.between(1, 80),), most
        largest = {1: (12, 80, 80), 2: (12, 30, 80), 3: (4, 7, 12)}[axes]
        channels, *spatial = d.between(1, 8), *(d.between(1, d.one(*largest)) for _ in range(axes))
        while channels * math.prod(spatial) * batch > most:
            batch, spatial = max(1, batch // 2), spatial if batch > 2 else [-(-n // 2) for n in spatial]
        return batch, (channels, *spatial), most

    def _large(self) -> tuple[int, Shape, int]:
        d, channels = self.d, int(self.d.one(1, 1, 1, 1, 2, 3))
        batch, width = d.one(4, 5, 7, 8, 9, 12, 15, 16), d.between(120, 700)
        return batch, (channels, d.between(66, 76) * 1000 // (width * channels) + 1, width), 2_600_000

    def _after(self, layer: nn.Module, *shapes: Shape) -> Shape:
        """Shape of one sample behind a layer."""
        program = program_of(nn.Sequential(layer), *shapes)
        return program.shapes[program.outputs[0]]

    # ---------------------------------------------------------------- several inputs

    def _join(self, shape: Shape) -> tuple[nn.Module, tuple[Shape, ...], tuple[int, ...]]:
        """A layer of several inputs of about this shape, the inputs' shapes, and rows of those that are integers."""
        d, (channels, *spatial) = self.d, (shape[0], *(min(n, 12) for n in shape[1:]))
        if len(spatial) == 1 and d.chance(0.4):
            return self._attention(spatial[0]), tuple((d.between(1, 8), *spatial) for _ in range(2)), (0, 0)
        added = d.chance(0.4)
        shapes = tuple((d.between(1, 8), *spatial) for _ in range(2 if added else d.one(2, 2, 3)))
        branches, rows = zip(
            *(self._branch(one, channels if added else d.between(1, 8)) for one in shapes), strict=True
        )
        integers = tuple(one[:-1] if n else one for one, n in zip(shapes, rows, strict=True))
        if added:
            return nn.Residual(branches[0] or nn.Sequential(), branches[1], self._activation()), integers, rows
        return nn.Concat(*branches), integers, rows

    def _branch(self, shape: Shape, out: int) -> tuple[nn.Module | None, int]:
        """Layers behind an input that leave all sizes but the first as they are; that becomes `out`."""
        d, layers, rows = self.d, list[nn.Module](), 0
        if len(shape) < 3 and d.chance(0.25):
            rows = d.between(1, 39)
            layers.append(nn.Embedding(rows, shape[-1], dtype=self.dtype, rng=d.numbers))
        channels = shape[0]
        for _ in range(d.below(3) if channels == out else 1):
            layers.append(self._pointwise((channels, *shape[1:]), out))
            channels = out
            if d.chance(0.3):
                layers.append(self._activate())
        return nn.Sequential(*layers) if layers else None, rows

    # ---------------------------------------------------------------- layers

    def _layer(self, shape: Shape) -> nn.Module:
        kinds: list[Callable[[Shape], nn.Module]] = [
            lambda shape: self._activate(), self._norm, self._row_wise, self._concat, self._residual,
        ]  # fmt: skip
        if len(shape) == 1:
            kinds += [self._linear] * 4
        elif len(shape) == 3:
            kinds += [self._conv] * 6 + [self._pool] * 4 + [self._residual] * 2 + [self._transpose, self._upsample] * 2
            kinds += [self._adaptive]
        else:
            kinds += [self._conv] * 4 + [self._linear, self._row_wise]
        if len(shape) > 1 and math.prod(shape) <= 3000:
            kinds.append(lambda shape: nn.Flatten())
        return self.d.one(*([self._conv] * 30 if self.large and len(shape) == 3 else []), *kinds)(shape)  # type: ignore[no-any-return]

    def _activate(self) -> nn.Module:
        return ACTIVATIONS[self.d.one(*ACTIVATIONS)]()

    def _activation(self) -> str | None:
        return self.d.one(*ACTIVATIONS) if self.d.chance(0.3) else None

    def _norm(self, shape: Shape) -> nn.Module:
        if len(shape) == 4:
            return self._conv(shape)
        norm: Any = (nn.BatchNorm2d if len(shape) == 3 else nn.BatchNorm1d)(shape[0], dtype=self.dtype)
        rng, channels = self.d.numbers, shape[0]
        norm.weight.value = rng.uniform(-1.5, 1.5, channels).astype(self.dtype)
        norm.bias.value = rng.standard_normal(channels).astype(self.dtype)
        norm.running_mean = rng.standard_normal(channels).astype(self.dtype)
        norm.running_var = rng.uniform(0.3, 2, channels).astype(self.dtype)
        return norm  # type: ignore[no-any-return]

    def _row_wise(self, shape: Shape) -> nn.Module:
        d, common = self.d, {"dtype": self.dtype, "rng": self.d.numbers}
        if d.chance(0.3):
            return d.one(nn.Softmax(), nn.Softmax(), nn.Dropout(0.3, rng=d.numbers))  # type: ignore[no-any-return]
        if len(shape) == 2 and d.chance(0.15):
            return nn.TransformerEncoderLayer(
                shape[1], d.divisor(shape[1]), d.between(1, 32), 0.0, d.one("relu", "gelu"), norm_first=d.chance(0.5),
                causal=d.chance(0.5), sparsity=d.one(0.0, 0.5, 0.9), **common,
            )  # fmt: skip
        if len(shape) == 2 and d.chance(0.6):
            return self._attention(shape[1])
        sizes = shape[-d.between(1, len(shape)) :]
        norm = d.one(nn.LayerNorm, nn.LayerNorm, nn.RMSNorm)(sizes, dtype=self.dtype)
        norm.weight.value = d.numbers.uniform(-1.5, 1.5, sizes).astype(self.dtype)
        if norm.bias is not None:
            norm.bias.value = d.numbers.standard_normal(sizes).astype(self.dtype)
        return norm  # type: ignore[no-any-return]

    def _attention(self, width: int) -> nn.Module:
        d = self.d
        return nn.MultiheadAttention(
            width, d.divisor(width), d.chance(0.7), causal=d.chance(0.5), sparsity=d.one(0.0, 0.3, 0.7, 0.95),
            dtype=self.dtype, rng=d.numbers,
        )  # fmt: skip

    def _weighted(self, dense: Any, sparse: Any, *arguments: Any, **more: Any) -> nn.Module:
        """A layer with weights, now and then a dense one, or one with empty rows or the like."""
        d = self.d
        more |= {"bias": d.chance(0.7), "activation": self._activation(), "dtype": self.dtype, "rng": d.numbers}
        if dense is None or not d.chance(0.15):
            dense = sparse
            more["sparsity"] = d.one(0.0, 0.3, 0.7, 0.95)
            if d.chance(0.15):
                mask = PATTERNS[d.one(*PATTERNS)]
                more["pattern"] = lambda shape: csr(mask(d.numbers, shape).astype(float)).pattern
        made = dense(*arguments, **more)
        if made.bias is not None:
            made.bias.value = d.numbers.standard_normal(made.bias.value.shape).astype(self.dtype)
        return made  # type: ignore[no-any-return]

    def _linear(self, shape: Shape, out: int = 0) -> nn.Module:
        return self._weighted(nn.Linear, nn.SparseLinear, shape[-1], out or self.d.between(1, 40))

    def _convolution(self, shape: Shape, out: int, kernel: Any, stride: Any, padding: Any, *rest: Any) -> nn.Module:
        axes = len(shape) - 1
        kinds = nn.Conv2d if axes == 2 else None, CONVS[axes]
        window = (tuple(kernel), tuple(stride), tuple(map(tuple, padding)), *rest)
        return self._weighted(*kinds, shape[0], out, *window)

    def _conv(self, shape: Shape) -> nn.Module:
        d, thin = self.d, self.large and self.d.chance(0.7)
        w = windows(d, shape[1:], **({"tiling": 0.0, "strides": (1,)} if thin else {}))
        groups_ = 1 if thin or d.chance(0.6) else groups(d, shape[0], 0)
        out = d.one(1, 1, 1, 2) if thin else groups_ * d.between(1, 3 if groups_ > 1 else 12)
        return self._convolution(shape, out, w.kernel, w.stride, w.padding, tuple(w.dilation), groups_)

    def _pointwise(self, shape: Shape, out: int, stride: Any = None) -> nn.Module:
        """To other channels, where a sample has positions; else a linear layer."""
        axes = len(shape) - 1
        if not axes:
            return self._linear(shape, out)
        return self._convolution(shape, out, (1,) * axes, stride or (1,) * axes, ((0, 0),) * axes)

    def _transpose(self, shape: Shape) -> nn.Module:
        d, w = self.d, transposed_windows(self.d, shape[1:])
        groups_ = groups(d, shape[0], 2)
        sides = map(tuple, (w.kernel, w.stride, w.padding, w.more))
        out = groups_ * d.between(1, 4)
        return self._weighted(
            None, nn.SparseConvTranspose2d, shape[0], out, *sides, groups_, dilation=tuple(w.dilation)
        )

    def _upsample(self, shape: Shape) -> nn.Module:
        return nn.Upsample(tuple(self.d.one(1, 2, 2, 3) for _ in shape[1:]), self.d.one("nearest", "bilinear"))

    def _pool(self, shape: Shape) -> nn.Module:
        w = windows(self.d, shape[1:], (1, 2, 2, 2, 3, 3, 4), pads=lambda k: k // 2, dilations=(1,), tiling=0.5)
        return self.d.one(nn.MaxPool2d, nn.AvgPool2d)(tuple(w.kernel), tuple(w.stride), tuple(w.padding))  # type: ignore[no-any-return]

    def _adaptive(self, shape: Shape) -> nn.Module:
        return nn.AdaptiveAvgPool2d(tuple(self.d.between(1, min(n, 5)) for n in shape[1:]))

    def _concat(self, shape: Shape) -> nn.Module:
        d = self.d
        return nn.Concat(None, *(self._pointwise(shape, d.between(1, 6)) for _ in range(d.between(len(shape) > 1, 2))))

    def _residual(self, shape: Shape) -> nn.Module:
        d, axes, activation = self.d, len(shape) - 1, self._activation()
        ones = (1,) * axes

        def keeping(shape: Shape, out: int, stride: Any = ones) -> nn.Module:
            """A layer of the same size, by padding that is not the same on both sides where it has no stride."""
            if not axes:
                return self._linear(shape, out)
            kernel = [d.one(1, 1, 3, 3, 5) for _ in range(axes)]
            front = [d.below(k) if set(stride) == {1} else k // 2 for k in kernel]
            back = [k - 1 - p if set(stride) == {1} else k // 2 for k, p in zip(kernel, front, strict=True)]
            return self._convolution(shape, out, kernel, stride, zip(front, back, strict=True))

        kind = d.below(3)
        if kind == 0:
            inner = (d.between(1, 8), *shape[1:]) if d.chance(0.5) else shape
            body = [keeping(shape, inner[0])] if inner is not shape else []
            return nn.Residual(nn.Sequential(*body, keeping(inner, shape[0])), None, activation)
        if kind == 1:
            out, stride = d.between(1, 12), tuple(d.one(1, 1, 2, 3) for _ in range(axes))
            # reads the image beside the shortcut, at another size than that writes
            body = (
                [] if d.chance(0.5) else [self._residual(shape) if d.chance(0.3) else keeping(shape, d.between(1, 8))]
            )
            inner = self._after(nn.Sequential(*body), shape) if body else shape
            if inner[1:] != shape[1:]:
                body, inner = [], shape
            body.append(keeping(inner, out, stride))
            if d.chance(0.5):
                body.append(keeping(self._after(nn.Sequential(*body), shape), out))
            return nn.Residual(nn.Sequential(*body), self._pointwise(shape, out, stride), activation)
        inner_layer = self._activate()
        if d.chance(0.2):
            inner_layer = self._row_wise(shape)
        elif axes == 2 and d.chance(0.6):
            inner_layer = d.one(nn.MaxPool2d, nn.AvgPool2d)(3, 1, 1)
        shortcut = keeping(shape, shape[0]) if d.chance(0.4) else None
        return nn.Residual(nn.Sequential(inner_layer), shortcut, activation)
