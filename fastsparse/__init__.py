"""fastsparse: sparse neural networks on CPUs, in Numba.

Importing this package compiles nothing, starts no thread and changes no global setting. Everything but matrices and
thread settings is imported when it is first touched.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if sys.argv[:1] == ["-m"] and sys.orig_argv[-len(sys.argv)].removeprefix("-m") == __name__:
    import fastsparse_command  # this is `python -m fastsparse`, which imports the package before it runs __main__

    fastsparse_command.leave_when_interrupted()

from fastsparse._version import __version__
from fastsparse.csr import CSR, Pattern, csr, define_products
from fastsparse.runtime.info import show_config
from fastsparse.runtime.threads import get_num_threads, set_num_threads, threads

if TYPE_CHECKING:
    from fastsparse import engine, files, functional, nn, representations, sparsity, training
    from fastsparse.engine import UnsupportedOperatorError, compile, load_engine  # noqa: A004
    from fastsparse.engine.warmup import warmup
    from fastsparse.files import FileFormatError, load, save
    from fastsparse.functional import (
        conv1d,
        conv1d_backward,
        conv2d,
        conv2d_backward,
        conv3d,
        conv3d_backward,
        conv_transpose2d,
        linear,
        linear_backward,
        matmul,
        sddmm,
        spmm,
    )
    from fastsparse.onnx.export import to_onnx
    from fastsparse.weights_files import load_weights

_BRIDGES = ("sklearn", "torch")  # each needs a package of its own, so a star import leaves them out
_MODULES = ("engine", "files", "functional", "nn", "representations", "sparsity", "training", *_BRIDGES)
_HOMES = {
    **dict.fromkeys(
        ("spmm", "sddmm", "matmul", "linear", "conv1d", "conv2d", "conv3d", "conv_transpose2d"), "functional"
    ),
    **dict.fromkeys(("linear_backward", "conv1d_backward", "conv2d_backward", "conv3d_backward"), "functional"),
    **dict.fromkeys(("compile", "load_engine", "UnsupportedOperatorError"), "engine"),
    **dict.fromkeys(("save", "load", "FileFormatError"), "files"),
    "load_weights": "weights_files",
    "warmup": "engine.warmup",
    "to_onnx": "onnx.export",
}

__all__ = [
    "CSR",
    "Pattern",
    "csr",
    # functions
    "spmm",
    "sddmm",
    "matmul",
    "linear",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose2d",
    "linear_backward",
    "conv1d_backward",
    "conv2d_backward",
    "conv3d_backward",
    # networks
    "nn",
    "sparsity",
    "training",
    "representations",
    "save",
    "load",
    "load_weights",
    "to_onnx",
    "FileFormatError",
    # inference
    "compile",
    "load_engine",
    "UnsupportedOperatorError",
    # runtime
    "set_num_threads",
    "get_num_threads",
    "threads",
    "warmup",
    "show_config",
    # modules whose names are above
    "engine",
    "files",
    "functional",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Import the submodule that `name` is, or the one where it lives, when it is first touched."""
    if name not in _MODULES and name not in _HOMES:
        raise AttributeError(f"module 'fastsparse' has no attribute {name!r}")
    module = import_module(f"fastsparse.{_HOMES.get(name, name)}")
    found = module if name in _MODULES else getattr(module, name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)


def _matmul(W: CSR, X: Any) -> Any:
    from fastsparse import functional

    return functional.product(W, X, ("W", "X"))


def _rmatmul(W: CSR, X: Any) -> Any:
    from fastsparse import functional

    return functional.product(X, W, ("X", "W"))


define_products(_matmul, _rmatmul)
