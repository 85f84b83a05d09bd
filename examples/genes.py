"""Cell types from gene expression: 700 blood cells with 765 genes that come with scanpy, as a sparse matrix.

Source: G. Zheng et al., Massively parallel digital transcriptional profiling of single cells, Nature Communications 8,
14049 (2017). The file is read from scanpy's folder with h5py; scanpy itself is not imported.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
from scipy import sparse

from examples.command import piped, run
from examples.experiment import Settings, Split, Task, perceptron, split_stratified
from fastsparse import nn

FILE = "datasets/10x_pbmc68k_reduced.h5ad"


def load() -> Split:
    """420 cells to train, 70 to validate, 210 to test; log counts as they come, a third of them not zero."""
    import h5py

    package = importlib.util.find_spec("scanpy")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("the data come with scanpy, which is not installed", name="scanpy")
    with h5py.File(Path(package.origin).parent / FILE) as file:
        raw = file["raw.X"]
        shape = tuple(int(n) for n in raw.attrs["h5sparse_shape"])
        x = sparse.csr_array((raw["data"][:], raw["indices"][:], raw["indptr"][:]), shape=shape, dtype=np.float32)
        y = file["obs"]["bulk_labels"].astype(np.int64)
        classes = tuple(name.decode() for name in file["uns/bulk_labels_categories"])
    return split_stratified(x, y, classes, test=0.3, validation=0.1)


def network(sparsity: float | None, rng: np.random.Generator) -> nn.Sequential:
    """765-256-10; all dense for sparsity None."""
    return perceptron((765, 256, 10), sparsity, rng)


TASK = Task(
    "genes",
    "cell types of 700 blood cells, sparse input",
    load,
    network,
    Settings(epochs=60, rate=2e-3, optimizer="adamw", weight_decay=0.3, batch_size=32),
    method="magnitude",
)

if __name__ == "__main__":
    sys.exit(piped(lambda: run(TASK, __doc__)))
