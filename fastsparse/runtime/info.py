"""What fastsparse found on this machine."""

from __future__ import annotations

import contextlib
import platform
from typing import Any, TextIO

from fastsparse._version import __version__
from fastsparse.runtime import cpu, threading_layer
from fastsparse.runtime.threads import get_num_threads
from fastsparse.text_table import text_facts


def show_config(*, file: TextIO | None = None) -> dict[str, Any]:
    """Print what fastsparse found on this machine, and return it.

    Parameters
    ----------
    file : text file, optional
        Where to print; default ``sys.stdout``.

    Returns
    -------
    dict
        "fastsparse", "python", "numba", "llvmlite", "numpy", "scipy" (versions), "cpu", "cpus", "vector_bits",
        "threads", "threading_layer", "tbb" (version or None), "parallel", "level" (of CPUs that kernels are compiled
        for), "cache_directory", "other_caches" (that are read), "prebuilt_kernels" (directory or None).
    """
    import llvmlite
    import numba
    import numpy
    import scipy

    from fastsparse.runtime import kernel_cache
    from fastsparse_kernels import codegen

    directories = kernel_cache.cache_directories()
    layer = "none" if threading_layer.forked() else threading_layer.prepare_threading()
    found: dict[str, Any] = {
        "fastsparse": __version__,
        "python": platform.python_version(),
        "numba": numba.__version__,
        "llvmlite": llvmlite.__version__,
        "numpy": numpy.__version__,
        "scipy": scipy.__version__,
        "cpu": _cpu_name(),
        "cpus": cpu.available_cpus(),
        "vector_bits": 8 * codegen.vector_bytes(),
        "threads": get_num_threads(),
        "threading_layer": layer,
        "tbb": version("tbb"),
        "parallel": threading_layer.parallel_allowed(),
        "level": codegen.level(),
        "cache_directory": directories.write,
        "other_caches": [name for name in directories.private if name != directories.write],
        "prebuilt_kernels": directories.package,
    }
    print(text_facts((name, str(value)) for name, value in found.items()), file=file)
    return found


def version(package: str) -> str | None:
    """Version of an installed distribution; None where there is none."""
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    """Model name of the CPU, and LLVM's name for it."""
    from llvmlite import binding

    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    return f"{model} ({binding.get_host_cpu_name()})"
