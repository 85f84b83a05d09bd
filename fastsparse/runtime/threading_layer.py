"""Numba's threading layer: started once, with pip's TBB made available, and never entered after a fork.

After fork() a child computes on one thread. GNU OpenMP does not survive a fork (Numba terminates the child), TBB does
if the main thread forked; one rule for all layers is easier to rely on.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import warnings
from pathlib import Path

from llvmlite import binding as llvm

from fastsparse.runtime.fork import after_fork_in_child, fork_safe_lock

_PARALLEL_LAYERS = ("tbb", "omp")  # workqueue is not safe for concurrent calls from Python threads, so it is never used

_NEITHER = (
    "Numba found neither TBB (pip install tbb; there are no packages for AArch64) "
    "nor OpenMP (libgomp1 of Debian and Ubuntu, libgomp of others)"
)

_layer_lock = fork_safe_lock()
_layer: str | None = None  # result of prepare_threading()
_numba_threads = 1  # number of threads that it started
_foreign = False  # Numba's threads were started before ours, perhaps in the parent of a fork
_forked = False


def available_workers(threads: int) -> int:
    """Return how many of `threads` workers may share the next kernel call; 1 means no parallel region.

    Starts Numba's threads when they are needed for the first time.
    """
    if threads == 1 or not parallel_allowed():
        return 1
    return min(threads, _numba_threads)


def parallel_allowed() -> bool:
    """Tell whether a parallel region may be entered in this process: never after fork(), never on workqueue."""
    if _forked:
        return False
    layer = prepare_threading()
    if _foreign and layer == "omp" and _openmp_was_left_behind():
        return False
    return layer in _PARALLEL_LAYERS


def prepare_threading() -> str:
    """Start Numba's threads, with pip's TBB made available, and return the name of the threading layer.

    To be called before the first parallel region; cheap afterwards. Must not be called in a forked child.

    Returns
    -------
    str
        "tbb", "omp" or "workqueue"; "none" when Numba cannot start the layer it was told to use.
    """
    global _layer, _numba_threads, _foreign
    if _layer is None:
        from numba import config

        with _layer_lock:
            if _layer is None:
                _foreign = _running()
                started = _start_threads(_foreign)
                _numba_threads = int(config.NUMBA_NUM_THREADS)
                _layer = started  # assigned last: other threads read it without the lock
    return _layer


def _running() -> bool:
    """Tell whether other code has started Numba's threads."""
    from fastsparse_kernels.numba_internals import threads_run

    return threads_run()


def _start_threads(running: bool) -> str:
    import numba

    wanted = str(numba.config.THREADING_LAYER).lower()
    if not running and wanted not in ("omp", "workqueue"):
        load_tbb()
    try:
        numba.get_num_threads()  # starts the threads
    except ValueError as error:
        warnings.warn(f"calls use one thread: {str(error).strip()}", RuntimeWarning, stacklevel=2)
        return "none"
    layer = str(numba.threading_layer())
    if layer == "workqueue" != wanted and numba.config.NUMBA_NUM_THREADS > 1:
        warnings.warn(f"calls use one thread: {_NEITHER}", RuntimeWarning, stacklevel=2)
    return layer


@functools.cache
def parallel_for() -> int:
    """Address of the threading layer's parallel loop, after its start."""
    return int(llvm.address_of_symbol("numba_parallel_for"))


def _openmp_was_left_behind() -> bool:
    """Tell whether OpenMP was started by a parent process, before a fork that happened before our import.

    A process before its first parallel region looks the same, so a later answer may differ. Linux only.
    """
    global _foreign
    from numba import config

    try:
        _foreign = len(os.listdir("/proc/self/task")) < config.NUMBA_NUM_THREADS
    except OSError:
        _foreign = False
    return _foreign


def load_tbb() -> bool:
    """Load the TBB library that pip installed, so that Numba finds it; True when one is loaded.

    pip installs it where the dynamic linker does not search. It is loaded by its full path, for this process only;
    Numba's later request by bare name then finds the loaded library.
    """
    name = {"linux": "libtbb.so.12", "win32": "tbb12.dll"}.get(sys.platform)
    if name is None:
        return False
    if hasattr(os, "RTLD_NOLOAD") and _loads(name, os.RTLD_NOLOAD):
        return True  # another package has loaded its own TBB: do not load a second one
    return any(_loads(str(path)) for path in _installed_files("tbb") if path.name == name)


def _loads(path: str, mode: int = ctypes.DEFAULT_MODE) -> bool:
    try:
        ctypes.CDLL(path, mode=mode)
    except OSError:
        return False
    return True


def _installed_files(package: str) -> list[Path]:
    from importlib import metadata

    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        return []
    return [Path(os.path.realpath(str(file.locate()))).with_name(file.name) for file in files]


@after_fork_in_child
def _stay_serial() -> None:
    global _forked
    _forked = True


def forked() -> bool:
    """Tell whether this process is the child of a fork that happened after this module was imported."""
    return _forked
