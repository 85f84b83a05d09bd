"""What nodes cost in the library and in the kernels, by estimate. Units are operations of a dense product at its peak.

The figures are ratios of times measured on x86-64 cores with AVX2 and AVX-512; only differences count.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fastsparse.engine.program import Conv, Linear, Operator, Recurrent, Reshape, Shape


@dataclass(frozen=True)
class Costs:
    """What the compiler estimates with.

    Attributes
    ----------
    dense, sparse, full : float
        An operation of the library's dense products, of the kernels per weight that is there, and of the kernels on
        dense weights.
    depthwise : (float, float)
        An operation of a depthwise convolution: of the library, and of the kernels.
    few : int
        Samples below which reading the weights decides.
    vectors : float
        How many times longer an operation takes in a recurrent layer on few samples.
    read, read_sparse : float
        Reading a weight: a dense one, and one of those that are there.
    elementwise : float
        An element that the library reads and writes once more, where the kernels have it in registers.
    crossing : float
        An element that is brought into the kernels' layouts, or out.
    region : float
        Calls to and fro.
    densest, least : float, int
        Density up to which, and numbers from which on, a weight is sparse.
    always : bool
        Whether the kernels run networks without a sparse weight, too.
    """

    dense: float = 1.35
    sparse: float = 3.0
    full: float = 1.6
    depthwise: tuple[float, float] = (4.0, 2.5)
    few: int = 8
    vectors: float = 3.0
    read: float = 32.0
    read_sparse: float = 64.0
    elementwise: float = 8.0
    crossing: float = 16.0
    region: float = 4e5
    densest: float = 0.4
    least: int = 128
    always: bool = False

    def saving(self, operator: Operator | None, shape: Shape, samples: int, sparse: bool) -> float:
        """What the kernels save on an operator whose input has this shape; less than zero where they lose."""
        if isinstance(operator, Conv | Linear):
            rows, columns = operator.weight.shape
            positions = operator.geometry.positions if isinstance(operator, Conv) else 1
            work = 2.0 * rows * columns * positions * samples
            if isinstance(operator, Conv) and operator.geometry.groups > 1:
                ours = operator.useful_flops * samples if sparse else work
                return work * self.depthwise[0] - ours * self.depthwise[1]
            library = work * self.dense
            kernels = operator.useful_flops * samples * self.sparse if sparse else work * self.full
            if positions * samples < self.few:
                library = max(library, rows * columns * self.read)
                kernels = max(kernels, operator.weight.nnz * self.read_sparse)
            return library - kernels
        if isinstance(operator, Recurrent):
            every = 2.0 * operator.times * sum(math.prod(w.shape) for d in operator.directions for w in (d.W, d.R))
            slower = shape[1] * (self.vectors if shape[1] < self.few else 1.0)
            return (every * self.dense - operator.useful_flops * self.sparse) * slower
        moves = operator is not None and not isinstance(operator, Reshape)
        return self.elementwise * math.prod(shape) * samples if moves else 0.0

    def crossed(self, shape: Shape) -> float:
        """What it costs to bring a tensor in or out."""
        return self.crossing * math.prod(shape)


# The kernels take whatever they can: where there is no onnxruntime, or it does not have the types.
KERNELS_FIRST = Costs(
    dense=1e9, depthwise=(1e9, 1.0), read=1e9, elementwise=1.0, crossing=0.0, region=0.0, least=1, always=True
)  # fmt: skip
