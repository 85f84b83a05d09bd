"""What the demo found out: one record that the report, the summary and the JSON all read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Engines of the comparison, in the order in which they are shown.
OURS, SCIPY, NUMPY = "fastsparse", "SciPy sparse", "dense NumPy"


@dataclass(frozen=True)
class LayerRow:
    """One layer with weights: its name, the shape of its weights as (out, in, ...), and how many are kept."""

    name: str
    shape: tuple[int, ...]
    nonzeros: int

    @property
    def size(self) -> int:
        """Weights of a dense layer of this shape."""
        return int(np.prod(self.shape))

    @property
    def sparsity(self) -> float:
        """Share of the weights that are gone."""
        return 1 - self.nonzeros / self.size


@dataclass(frozen=True)
class Curves:
    """One entry per epoch; accuracies as fractions."""

    loss: list[float]
    accuracy: list[float]
    validation_loss: list[float]
    validation_accuracy: list[float]


@dataclass(frozen=True)
class Speed:
    """Times of one batch size, in milliseconds per batch, by engine.

    `ratios` holds how many times faster fastsparse is (medians of ratios within one round); `product_times` and
    `product_ratios` set the baselines' matrix products alone against the whole of the compiled network.
    """

    batch: int
    times: dict[str, float]
    ratios: dict[str, float]
    product_times: dict[str, float]
    product_ratios: dict[str, float]


@dataclass(frozen=True)
class Agreement:
    """Largest difference from the float64 outputs over the test images, relative to the largest output."""

    layers: float
    compiled: float
    scipy: float
    numpy: float
    reloaded_is_identical: bool


@dataclass(frozen=True)
class Mistakes:
    """Test images the sparse network gets wrong: `images` (n, 8, 8), `labels` (n,), `predicted` (n,)."""

    images: NDArray[np.floating]
    labels: NDArray[np.integer]
    predicted: NDArray[np.integer]


@dataclass(frozen=True)
class Results:
    """Everything a run of the demo reports; lists run over the seeds.

    `compile_seconds` is what compiling kernels, or loading them, took in all; no other figure but `seconds`, the time
    of the whole demo, has it in it.
    """

    layers: list[LayerRow]
    sparse_accuracy: list[float]
    dense_accuracy: list[float]
    sparse_curves: Curves
    dense_curves: Curves
    sparse_train_seconds: list[float]
    dense_train_seconds: list[float]
    compile_seconds: float
    speeds: dict[int, Speed]
    tuned_scipy_ratio: float
    tuned_scipy_chunk: int
    agreement: Agreement
    mistakes: Mistakes
    pattern: NDArray[np.bool_]
    pattern_name: str
    train_images: int
    validation_images: int
    test_images: int
    epochs: int
    seconds: float
    threads: int
    blas_threads: int
    versions: dict[str, str]
    machine: str

    @property
    def sparsity(self) -> float:
        """Share of the weights (biases and batch norm apart) that are gone."""
        return 1 - sum(row.nonzeros for row in self.layers) / sum(row.size for row in self.layers)

    @property
    def mean_sparse_accuracy(self) -> float:
        """Mean test accuracy of the sparse networks, as a fraction."""
        return float(np.mean(self.sparse_accuracy))

    @property
    def mean_dense_accuracy(self) -> float:
        """Mean test accuracy of the dense networks, as a fraction."""
        return float(np.mean(self.dense_accuracy))

    def to_json(self) -> dict[str, Any]:
        """Flat figures for a program to read."""
        figures: dict[str, Any] = {
            "sparsity": self.sparsity,
            "test_accuracy_sparse": self.mean_sparse_accuracy,
            "test_accuracy_dense": self.mean_dense_accuracy,
            "test_accuracies_sparse": self.sparse_accuracy,
            "test_accuracies_dense": self.dense_accuracy,
            "seeds": len(self.sparse_accuracy),
            "epochs": self.epochs,
            "seconds": self.seconds,
            "train_seconds_sparse": self.sparse_train_seconds,
            "train_seconds_dense": self.dense_train_seconds,
            "compile_seconds": self.compile_seconds,
            "threads": self.threads,
            "blas_threads": self.blas_threads,
        }
        for batch, speed in self.speeds.items():
            for key, name in (("scipy", SCIPY), ("numpy", NUMPY)):
                figures[f"speedup_{key}_b{batch}"] = speed.ratios[name]
                figures[f"speedup_{key}_products_b{batch}"] = speed.product_ratios[name]
            figures[f"milliseconds_b{batch}"] = {
                **speed.times,
                **{f"{name}, products alone": value for name, value in speed.product_times.items()},
            }
        largest = max(self.speeds)
        figures[f"speedup_scipy_chunked_b{largest}"] = self.tuned_scipy_ratio
        figures["scipy_chunk"] = self.tuned_scipy_chunk
        figures["relative_error"] = {
            "layers": self.agreement.layers,
            "compiled": self.agreement.compiled,
            "scipy": self.agreement.scipy,
            "numpy": self.agreement.numpy,
        }
        figures["reloaded_is_identical"] = self.agreement.reloaded_is_identical
        figures["images"] = {
            "train": self.train_images,
            "validation": self.validation_images,
            "test": self.test_images,
        }
        figures["machine"] = self.machine
        figures["versions"] = self.versions
        return figures
