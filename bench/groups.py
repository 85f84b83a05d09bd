"""The table of all groups of workloads, each with its baselines and its reference."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import checks, cold_start, dlmc, matrices, tuning, workloads
from bench.baselines import OURS, Baseline, conv, dask_inference, networks, products, steps, training
from fastsparse.demo.options import positive


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    threads: int = 1
    dlmc: Path | None = None
    quick: bool = False
    deepsparse: str | None = None
    onnx: Path | None = None


def add_options(add: Callable[..., object]) -> None:
    """Declare what Options holds, for argparse and for pytest."""
    add("--threads", type=positive, default=1, help="threads for every baseline (default 1)")
    add("--dlmc", type=_directory, metavar="DIR", help="also the .smtx patterns found below DIR")
    add("--quick", action="store_true", help="fewer rounds, and only some of the pruned layers")
    add("--deepsparse", metavar="PYTHON", help="interpreter of an environment with DeepSparse, for end_to_end")
    add("--onnx", type=_directory, metavar="DIR", help="the .onnx files below DIR, for onnx_files")


def _directory(text: str) -> Path:
    if Path(text).is_dir():
        return Path(text).resolve()
    raise argparse.ArgumentTypeError(f"got {text!r}, expected a directory")


@dataclass(frozen=True)
class Group:
    """Workloads of one kind.

    Attributes
    ----------
    section : str
        Groups that are asked for together.
    name : str
        Starts the names of its workloads.
    title : str
    workloads : sequence, or callable
        Workloads, or a function from Options to them: some need the DLMC's files.
    baselines : sequence of Baseline
        The first is fastsparse.
    expected : callable, or None
        A case's right results, with the largest error allowed.
    measure : callable, optional
        Where nothing is compared: `measure(case, clock)` gives seconds, and facts.
    rounds, seconds
        Most rounds, and seconds for all baselines of a workload together.
    block : float
        Seconds of calls of one kind in a row.
    """

    section: str
    name: str
    title: str
    workloads: Sequence[Any] | Callable[[Options], Sequence[Any]]
    baselines: Sequence[Baseline] = ()
    expected: Callable[[Any], checks.Expected | None] | None = None
    measure: Callable[..., cold_start.Measured] | None = None
    rounds: int = 15
    seconds: float = 1.0
    block: float = 0.003

    def cases(self, options: Options) -> Sequence[Any]:
        """The workloads."""
        return self.workloads(options) if callable(self.workloads) else self.workloads

    def label(self, case: Any) -> str:
        """Group and workload, what `-k` looks at."""
        return f"{self.name} {case.name}"


def _files(options: Options) -> list[Path]:
    """The pruned layers; of a quick run one in six."""
    if options.dlmc is None:
        return []
    files = sorted(options.dlmc.rglob("*.smtx"))
    if not files:
        raise FileNotFoundError(f"no .smtx file found below {options.dlmc}")
    return files[:: 6 if options.quick else 1]


def dlmc_spmm(options: Options) -> list[workloads.Spmm]:
    """Every pruned layer, once for each number of columns that it meets."""
    return [case for file in _files(options) for case in _spmm_of(file)]


def _spmm_of(file: Path) -> list[workloads.Spmm]:
    rows, columns, _ = dlmc.shape_of(file)
    return [workloads.Spmm(rows, columns, n, _sparsity(file), file) for n in dlmc.columns_of(file)]


def layers(options: Options) -> list[workloads.Conv]:
    """ResNet-50's 3x3 and 1x1 layers at 90%, each shape once, on one image and on sixteen."""
    found: dict[tuple[int, ...], workloads.Conv] = {}
    for file in _files(options):
        geometry = dlmc.convolution_of(file)
        if geometry is None or round(_sparsity(file), 2) != 0.9:
            continue
        side, kernel, stride = geometry
        rows, columns, _ = dlmc.shape_of(file)
        for batch in dlmc.RESNET_BATCHES:
            case = workloads.Conv(batch, columns // kernel**2, side, rows, kernel, _sparsity(file), stride, file)
            found.setdefault((batch, columns, rows, *geometry), case)
    return list(found.values())


def _sparsity(file: Path) -> float:
    rows, columns, nonzeros = dlmc.shape_of(file)
    return 1 - nonzeros / (rows * columns)


def _threaded(options: Options) -> Sequence[Any]:
    return workloads.SCALING if (os.cpu_count() or 1) > 1 else []


def _networks(options: Options) -> list[workloads.Network]:
    extra = {"dlmc": options.dlmc, "deepsparse": options.deepsparse}
    return [workloads.Network(case.network, case.batch, case.sample, **extra) for case in workloads.NETWORKS]


def _tuning(options: Options) -> list[workloads.Tuning]:
    return [workloads.Tuning(state, 3 if options.quick else 20) for state in ("quiet", "busy", "one core")]


def _onnx_files(options: Options) -> list[workloads.ModelFile]:
    files = sorted(options.onnx.rglob("*.onnx")) if options.onnx else []
    return [workloads.ModelFile(file, pruned) for file in files for pruned in (False, True)]


def _torch_steps(options: Options) -> list[workloads.TorchModule]:
    return [workloads.TorchModule("mlp", 128), workloads.TorchModule("gpt", 4, layers=2 if options.quick else 8)]


def _torch_inference(options: Options) -> list[workloads.TorchModule]:
    networks = ("encoder", 4), ("decoder", 2 if options.quick else 8)
    return [
        *[workloads.TorchModule("resnet18", batch) for batch in (1, 16)],
        *[workloads.TorchModule(name, 1, sparsity, n) for name, n in networks for sparsity in (0.5, 0.7, 0.9)],
    ]


def _in_torch(function: str) -> Callable[..., Any]:
    """A function of `bench.baselines.torch_modules`, which is imported when it is called: torch may be missing."""

    def call(case: Any, threads: int = 1) -> Any:
        from bench.baselines import torch_modules, torch_on

        torch_on(threads)
        return getattr(torch_modules, function)(case)

    return call


_TORCH = ("torch",)
_TORCH_MODULES = [
    Baseline(OURS, _in_torch("ours"), _TORCH),
    Baseline("torch dense", _in_torch("dense"), _TORCH),
    Baseline("torch bfloat16", _in_torch("half"), _TORCH, checked=False),
    Baseline("SparseLab", _in_torch("sparselab"), ("torch", "sparselab")),
    Baseline("SparseProp", _in_torch("sparseprop"), ("torch", "sparseprop")),
    # What the bridge adds to both together is its own time.
    Baseline("bound: kernels alone", _in_torch("bare_kernels"), _TORCH, checked=False),
    Baseline("bound: all but the sparse layers", _in_torch("free"), _TORCH, checked=False),
]
_TORCH_LAYERS = [Baseline(OURS, _in_torch("layer"), _TORCH), Baseline("nn.Linear", _in_torch("dense_layer"), _TORCH)]


_SMALL: dict[str, Any] = {"rounds": 200, "seconds": 3.0}
GROUPS = [
    Group("kernels", "spmm", "SpMM", workloads.SPMM, products.SPMM, checks.expected_spmm),
    Group("kernels", "dlmc", "SpMM on pruned layers (DLMC)", dlmc_spmm, products.DLMC, checks.expected_spmm),
    Group("kernels", "conv", "Convolution", workloads.CONV, conv.PLAIN, checks.expected_conv),
    Group("kernels", "resnet", "ResNet-50's pruned convolutions", layers, conv.LAYERS, checks.expected_conv),
    Group(
        "kernels", "sparse input", "Sparse samples", workloads.SPARSE_INPUTS, products.SPARSE_INPUT,
        checks.expected_sparse_input,
    ),
    Group(
        "kernels", "plan", "First call beyond later ones, kernels warm", lambda o: cold_start.plans(o.dlmc),
        measure=cold_start.plan,
    ),
    Group(
        "layers", "linear step", "Linear layer, forward and backward", workloads.LINEAR_STEPS, steps.LINEAR,
        checks.expected_linear_step,
    ),
    Group(
        "layers", "conv step", "Convolution, forward and backward", workloads.CONV_STEPS, steps.CONV,
        checks.expected_conv_step,
    ),
    Group(  # after so many seconds of calls cores that were at rest run as fast as they can
        "scaling", "threads", "More threads against one", _threaded, products.THREADS, checks.expected_any, block=0.02,
    ),
    Group("scaling", "sizes", "One size at a time", workloads.SIZES, products.DLMC, checks.expected_spmm),
    Group(
        "crossover", "crossover", "Sparsity against columns", workloads.CROSSOVER, products.SPMM, checks.expected_spmm
    ),
    Group("startup", "startup", "New processes", cold_start.STARTS, measure=cold_start.start),
    Group("demo", "demo", "The whole demo", cold_start.DEMOS, measure=cold_start.start),
    Group(
        "small calls", "small spmm", "Products with next to no work", workloads.SMALL_SPMM, products.SMALL_SPMM,
        checks.expected_spmm, **_SMALL,
    ),
    Group(
        "small calls", "small conv", "Convolutions with next to no work", workloads.SMALL_CONV, conv.SMALL,
        checks.expected_conv, **_SMALL,
    ),
    Group(
        "small calls", "small layers", "Layers with next to no work", workloads.SMALL_LAYERS, products.SMALL_LAYERS,
        **_SMALL,
    ),
    Group(
        "training", "training step", "Step of training", workloads.TRAINING_STEPS, training.TRAINING,
        training.expected, seconds=3.0,
    ),
    Group(
        "training", "pattern change", "Change of patterns in training", workloads.PATTERN_CHANGES,
        measure=training.pattern_change,
    ),
    Group("networks", "end to end", "Whole networks", _networks, networks.ENGINES, networks.expected, seconds=10.0),
    Group(
        "onnx files", "onnx files", "ONNX files", _onnx_files, networks.ENGINES[:2], networks.expected, rounds=1000,
    ),
    *[
        Group(
            "matrices", f"{form} {dtype}", f"Matrices of no layer, {form}, {dtype}", matrices.products(form, dtype),
            products.MATRICES, checks.expected_matrix,
        )
        for form in ("plain", "transposed", "column-major") for dtype in ("float32", "float64")
    ],
    Group(
        "matrices", "sddmm", "SDDMM at the nonzeros of such matrices", matrices.products("sddmm", "float32"),
        products.SDDMM, checks.expected_sddmm,
    ),
    Group(
        "torch", "torch call", "Layers of PyTorch with next to no work",
        [workloads.TorchCall("operator"), workloads.TorchCall("layer")], _TORCH_LAYERS, _in_torch("expected_layer"),
        **_SMALL,
    ),
    Group(  # long blocks: what came between is no part of training
        "torch", "torch step", "Step of training of PyTorch modules", _torch_steps, _TORCH_MODULES,
        _in_torch("expected"), seconds=15.0, block=0.15,
    ),
    Group(
        "torch", "torch inference", "PyTorch modules (decoders: 32 tokens after 64)", _torch_inference,
        _TORCH_MODULES, _in_torch("expected"), seconds=6.0,
    ),
    Group(
        "dask", "dask", "Inference on Dask", [workloads.DaskInference()], dask_inference.DASK, dask_inference.expected,
        seconds=15.0,
    ),
    Group("tuning", "tuning", "Choices of tuning", _tuning, measure=tuning.measure),
]  # fmt: skip

# What is measured when nothing is named.
USUAL = ("kernels", "layers", "scaling", "startup")


def names() -> list[str]:
    """Sections and groups, as the command line writes them."""
    return list(dict.fromkeys(name.replace(" ", "_") for group in GROUPS for name in (group.section, group.name)))


def chosen(what: str) -> list[Group]:
    """The groups that are asked for: names of sections or groups with commas in between.

    Raises
    ------
    ValueError
        When a name is none of `names()`.
    """
    asked = [name for name in what.split(",") if name] or list(USUAL)
    for name in asked:
        if name not in names():
            raise ValueError(f"got {name!r}, expected some of {', '.join(names())}")
    wanted = {name.replace("_", " ") for name in asked}
    return [group for group in GROUPS if {group.section, group.name} & wanted]


def missing_baselines() -> list[str]:
    """Baselines that are not installed, and what they need."""
    baselines = [baseline for group in GROUPS for baseline in group.baselines]
    return sorted({f"{b.name} (needs {', '.join(b.missing)})" for b in baselines if b.missing})
