"""What is measured, as data: the shapes the README's figures speak of.

Add a row and every baseline runs it. Sparsity is the share of weights that are zero; patterns are uniformly random
unless a `.smtx` file says otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from bench.dlmc import read_smtx

Floats = NDArray[np.float32]
_PRIME = 1_048_573


class Workload:
    """What reports and targets read of a workload: a name that is readable and unique, and the least work there is.

    `flops` are useful operations, at nonzeros only. `bytes_moved` is what must travel once: values, 32-bit columns,
    operands, results.
    """

    name: str
    flops = 0
    bytes_moved = 0


@dataclass(frozen=True)
class Spmm(Workload):
    """W (m, k) times X (k, n), both float32, row-major; n = 1 is a vector."""

    m: int
    k: int
    n: int
    sparsity: float = 0.9
    file: Path | None = None

    @property
    def name(self) -> str:
        origin = f"{self.file.parent.name}-{self.file.stem}-" if self.file else ""
        return f"{origin}{self.m}x{self.k}-N{self.n}-{self.sparsity:.0%}"

    @cached_property
    def weight(self) -> sp.csr_array:
        """The sparse matrix, with normal values."""
        rng = np.random.default_rng(1)
        if self.file is None:
            return random_weight(rng, self.m, self.k, self.sparsity)
        indptr, indices, shape = read_smtx(self.file)
        data = rng.standard_normal(len(indices), dtype=np.float32)
        return sp.csr_array((data, indices.copy(), indptr.copy()), shape=shape)

    @cached_property
    def x(self) -> Floats:
        """The dense operand: (k, n), or (k,) for one column."""
        return normal((self.k,) if self.n == 1 else (self.k, self.n))

    @property
    def bytes_moved(self) -> int:
        return 8 * int(self.weight.nnz) + 4 * self.n * (self.k + self.m)

    @property
    def flops(self) -> int:
        return 2 * int(self.weight.nnz) * self.n


@dataclass(frozen=True)
class Conv(Workload):
    """Convolution of x (batch, channels, side, side) with square kernels, float32, NCHW in and out."""

    batch: int
    channels: int
    side: int
    out: int
    kernel: int
    sparsity: float = 0.9
    stride: int = 1
    file: Path | None = None

    @property
    def name(self) -> str:
        stride = f"-s{self.stride}" if self.stride > 1 else ""
        shape = f"{self.batch}x{self.channels}x{self.side}x{self.side}"
        return f"{shape}-{self.out}-{self.kernel}x{self.kernel}{stride}-{self.sparsity:.0%}"

    @property
    def padding(self) -> int:
        """Zeros on every side: the output has the input's size at stride 1."""
        return self.kernel // 2

    @property
    def out_side(self) -> int:
        """Height and width of the output."""
        return (self.side + 2 * self.padding - self.kernel) // self.stride + 1

    @cached_property
    def weight(self) -> sp.csr_array:
        rng = np.random.default_rng(1)
        if self.file is None:
            return random_weight(rng, self.out, self.channels * self.kernel**2, self.sparsity)
        return pruned_convolution(self.file, self.channels, rng)

    @cached_property
    def x(self) -> Floats:
        return normal((self.batch, self.channels, self.side, self.side))

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        return (self.batch, self.out, self.out_side, self.out_side)

    @property
    def flops(self) -> int:
        return 2 * int(self.weight.nnz) * self.batch * self.out_side**2

    @property
    def bytes_moved(self) -> int:
        return 8 * int(self.weight.nnz) + 4 * (self.x.size + math.prod(self.out_shape))


@dataclass(frozen=True)
class LinearStep(Workload):
    """Forward and backward of a linear layer: x (batch, inputs), W (outputs, inputs); dX, dW and db are wanted."""

    batch: int
    inputs: int
    outputs: int
    sparsity: float = 0.9

    @property
    def name(self) -> str:
        return f"{self.batch}x{self.inputs}-{self.outputs}-{self.sparsity:.0%}"

    @cached_property
    def weight(self) -> sp.csr_array:
        return random_weight(np.random.default_rng(1), self.outputs, self.inputs, self.sparsity)

    @cached_property
    def x(self) -> Floats:
        return np.random.default_rng(2).standard_normal((self.batch, self.inputs), dtype=np.float32)

    @cached_property
    def grad(self) -> Floats:
        return np.random.default_rng(3).standard_normal((self.batch, self.outputs), dtype=np.float32)

    @property
    def flops(self) -> int:
        return 6 * int(self.weight.nnz) * self.batch

    @property
    def bytes_moved(self) -> int:
        return 12 * int(self.weight.nnz) + 8 * self.batch * (self.inputs + self.outputs)


@dataclass(frozen=True)
class ConvStep(Conv):
    """Forward and backward of a convolution; dX, dW and db are wanted."""

    @cached_property
    def grad(self) -> Floats:
        return np.random.default_rng(3).standard_normal(self.out_shape, dtype=np.float32)

    @property
    def flops(self) -> int:
        return 6 * int(self.weight.nnz) * self.batch * self.out_side**2

    @property
    def bytes_moved(self) -> int:
        return 12 * int(self.weight.nnz) + 8 * (self.x.size + math.prod(self.out_shape))


@dataclass(frozen=True)
class SparseInput(Workload):
    """Sparse x (batch, inputs) through sparse W (outputs, inputs), as word counts or genes are."""

    batch: int
    inputs: int
    outputs: int
    x_sparsity: float
    sparsity: float

    @property
    def name(self) -> str:
        return f"{self.batch}x{self.inputs}-{self.x_sparsity:.1%}-{self.outputs}-{self.sparsity:.0%}"

    @cached_property
    def weight(self) -> sp.csr_array:
        return random_weight(np.random.default_rng(1), self.outputs, self.inputs, self.sparsity)

    @cached_property
    def x(self) -> sp.csr_array:
        return random_weight(np.random.default_rng(2), self.batch, self.inputs, self.x_sparsity)

    @property
    def flops(self) -> int:
        per_column = np.bincount(self.weight.indices, minlength=self.inputs)
        return 2 * int(per_column[self.x.indices].sum())

    @property
    def bytes_moved(self) -> int:
        return 8 * int(self.weight.nnz + self.x.nnz) + 4 * self.batch * self.outputs


@dataclass(frozen=True)
class LayerCall(Workload):
    """A small linear layer in evaluation mode, where what surrounds the work is all."""

    batch: int
    size: int
    activation: str | None = None
    sparsity: float = 0.9

    @property
    def name(self) -> str:
        return f"SparseLinear {self.size}, {self.activation}, batch {self.batch}"

    @cached_property
    def weight(self) -> sp.csr_array:
        return random_weight(np.random.default_rng(1), self.size, self.size, self.sparsity)

    @cached_property
    def x(self) -> Floats:
        return normal((self.batch, self.size))


@dataclass(frozen=True)
class TrainingStep(Workload):
    """Forward, loss, backward and SGD with momentum, of a network of `bench.baselines.training`."""

    network: str
    sparsity: float = 0.9
    batch: int = 128

    @property
    def name(self) -> str:
        return f"{self.network} batch {self.batch} {self.sparsity:.0%}"


@dataclass(frozen=True)
class PatternChange(Workload):
    """A training whose patterns an algorithm of `fastsparse.sparsity` changes."""

    network: str
    algorithm: str
    sparsity: float = 0.9
    batch: int = 128
    changes: int = 15

    @property
    def name(self) -> str:
        return f"{self.network} {self.algorithm} {self.sparsity:.0%}"


@dataclass(frozen=True)
class Network(Workload):
    """A whole network of `bench.networks` on a batch; ResNet-50 has real patterns where the DLMC's folder is given."""

    network: str
    batch: int
    sample: tuple[int, ...]
    sparsity: float = 0.9
    dlmc: Path | None = None
    deepsparse: str | None = None

    @property
    def name(self) -> str:
        return f"{self.network} batch {self.batch}"

    @cached_property
    def x(self) -> Floats:
        return np.random.default_rng(1).standard_normal((self.batch, *self.sample), np.float32)


@dataclass(frozen=True)
class ModelFile(Workload):
    """An ONNX file, as it is or pruned to 90%, on random inputs."""

    path: Path
    pruned: bool

    @property
    def name(self) -> str:
        return f"{self.path.stem}{' pruned' if self.pruned else ''}"


@dataclass(frozen=True)
class TorchModule(Workload):
    """A torch network of `bench.baselines.torch_modules`: a step of training, a call, or a generation."""

    network: str
    batch: int = 1
    sparsity: float = 0.9
    layers: int = 0

    @property
    def name(self) -> str:
        layers = f", {self.layers} layers" if self.layers else ""
        return f"{self.network}{layers}, batch {self.batch}, {self.sparsity:.0%}"


@dataclass(frozen=True)
class TorchCall(Workload):
    """A torch layer with next to no work, or its operator."""

    name: str


@dataclass(frozen=True)
class DaskInference(Workload):
    """Blocks of rows through an engine on two workers of one thread."""

    blocks: int = 32

    @property
    def name(self) -> str:
        return f"{self.blocks} blocks"


@dataclass(frozen=True)
class Tuning(Workload):
    """Compilations of a network for two threads, in a state of the machine that is its name."""

    name: str
    count: int = 20


def pruned_convolution(file: Path, channels: int, rng: np.random.Generator) -> sp.csr_array:
    """A pruned layer's weights, columns as in OIHW; the file's run (kernel row, kernel column, input channel)."""
    indptr, indices, (rows, columns) = read_smtx(file)
    window, channel = np.divmod(indices, channels)
    data = rng.standard_normal(len(indices), dtype=np.float32)
    weight = sp.csr_array(
        (data, (channel * (columns // channels) + window).astype(np.int32), indptr.copy()), shape=(rows, columns)
    )
    weight.sort_indices()
    return weight


def normal(shape: tuple[int, ...], seed: int = 2) -> Floats:
    """Normal values. Large arrays repeat themselves after a prime number of values, which is soon made."""
    base = np.random.default_rng(seed).standard_normal(_PRIME, dtype=np.float32)
    return np.resize(base, shape) if math.prod(shape) > _PRIME else base[: math.prod(shape)].reshape(shape)


def random_weight(rng: np.random.Generator, rows: int, columns: int, sparsity: float) -> sp.csr_array:
    """Normal values at uniformly random elements, sorted columns, int32 indices."""
    matrix = sp.random_array(
        (rows, columns), density=1 - sparsity, format="csr", dtype=np.float32, rng=rng,
        data_sampler=lambda size: rng.standard_normal(size, dtype=np.float32),
    )  # fmt: skip
    matrix.sort_indices()
    return matrix


SPMM = [
    Spmm(2048, 512, 1024),
    Spmm(512, 512, 4096),
    Spmm(512, 2048, 1024),
    Spmm(512, 512, 4096, sparsity=0.7),
    Spmm(512, 512, 4096, sparsity=0.95),
    Spmm(512, 512, 64),
    Spmm(2048, 2048, 1),
]

CONV = [
    Conv(16, 128, 28, 128, 3),
    Conv(16, 256, 14, 256, 3),
    Conv(16, 512, 14, 512, 1),
    Conv(16, 128, 28, 128, 3, stride=2),
    Conv(1, 64, 56, 64, 3),
    Conv(1, 256, 14, 256, 3),
    Conv(1, 256, 14, 1024, 1),
]

LINEAR_STEPS = [LinearStep(128, 3072, 1024), LinearStep(512, 1024, 1024)]

CONV_STEPS = [ConvStep(32, 64, 32, 64, 3), ConvStep(32, 128, 16, 128, 3), ConvStep(32, 256, 8, 256, 3)]

# The two lines of the scaling figure: two threads against one.
SCALING = [SPMM[0], CONV[0]]

SMALL_SPMM = [Spmm(64, 64, n) for n in (1, 8, 16, 64)]
SMALL_CONV = [Conv(1, 8, 8, 8, 3)]
SMALL_LAYERS = [LayerCall(batch, 64, activation) for activation in (None, "relu") for batch in (1, 16)]

TRAINING_STEPS = [TrainingStep(name, sparsity) for name in ("mlp", "cnn") for sparsity in (0.9, 0.95)]
PATTERN_CHANGES = [PatternChange(name, algorithm) for name in ("mlp", "cnn") for algorithm in ("SET", "RigL")]
NETWORKS = [
    *[Network("resnet50", batch, (3, 224, 224)) for batch in (1, 16)],
    Network("mobilenet", 1, (3, 224, 224)),
    *[Network("bert", batch, (128, 768)) for batch in (1, 8)],
    *[Network("mlp", batch, (2048,)) for batch in (1, 64)],
]

SPARSE_INPUTS = [SparseInput(128, 50_000, 1024, 0.998, 0.99)]

# One size at a time changes.
SIZES = [
    *[Spmm(1024, 1024, n) for n in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)],
    *[Spmm(m, 1024, 512) for m in (16, 64, 256, 4096)],
    *[Spmm(1024, k, 512) for k in (64, 256, 4096)],
    *[Spmm(1024, 1024, 512, sparsity=s) for s in (0.5, 0.6, 0.7, 0.8, 0.95, 0.98, 0.99)],
]

# Sparsity against the number of columns, which is the batch of a linear layer: who is fastest where.
CROSSOVER = [
    Spmm(1024, 1024, n, sparsity=s)
    for n in (1, 8, 64, 512)
    for s in (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
]
