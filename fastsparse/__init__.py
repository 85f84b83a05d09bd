"""fastsparse: sparse neural networks on CPUs, in Numba.

Importing this package compiles nothing, starts no thread and changes no global setting. Everything but matrices and
thread settings is imported when it is first touched.
"""

from importlib import import_module
from typing import Any

from fastsparse._version import __version__
from fastsparse.csr import CSR, Pattern, csr
from fastsparse.runtime import get_num_threads, set_num_threads, show_config, threads, warmup

_MODULES = ("engine", "files", "functional", "nn", "sparsity", "training")
_HOMES = {
    **dict.fromkeys(("spmm", "sddmm", "linear", "conv1d", "conv2d", "conv3d"), "functional"),
    **dict.fromkeys(("linear_backward", "conv2d_backward"), "functional"),
    **dict.fromkeys(("compile", "load_engine", "UnsupportedOperatorError"), "engine"),
    **dict.fromkeys(("save", "load", "FileFormatError"), "files"),
}

__all__ = [
    "CSR",
    "Pattern",
    "__version__",
    "csr",
    "get_num_threads",
    "set_num_threads",
    "show_config",
    "threads",
    "warmup",
]


def __getattr__(name: str) -> Any:
    """Import the submodule that `name` is, or the one where it lives, when it is first touched."""
    if name not in _MODULES and name not in _HOMES:
        raise AttributeError(f"module 'fastsparse' has no attribute {name!r}")
    home = f"fastsparse.{_HOMES.get(name, name)}"
    try:
        module = import_module(home)
    except ModuleNotFoundError as error:
        if error.name != home:  # something that the module needs is missing: its own message tells what
            raise
        raise AttributeError(f"module 'fastsparse' has no attribute {name!r}: there is no {home}") from error
    found = module if name in _MODULES else getattr(module, name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*__all__, *_MODULES, *_HOMES})
