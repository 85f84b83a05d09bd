"""The threading layer of Numba: started once, with pip's TBB within reach, and never entered after a fork.

After fork() a child computes with the serial twins. GNU OpenMP does not survive a fork (Numba stops the child with
SIGTERM), TBB does when the main thread forked, and one rule for all is easier to rely on than three.
"""

from __future__ import annotations

import ctypes
import os
import sys
import warnings
from pathlib import Path

from fastsparse.runtime.fork import after_fork_in_child, fork_safe_lock

_PARALLEL_LAYERS = ("tbb", "omp")  # workqueue is not safe when two Python threads call at once, so it is never used

_layer_lock = fork_safe_lock()
_layer: str | None = None  # what prepare_threading() found
_numba_threads = 1  # how many that started
_foreign = False  # Numba's threads were there before us, and may have been left behind by a fork
_forked = False


def available_workers(threads: int) -> int:
    """Return how many of `threads` workers may share the next kernel call; 1 means the serial twin.

    Starts Numba's threads when they are needed and not there yet.
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
    """Start Numba's threads, with pip's TBB within reach, and return the name of the threading layer.

    To be called before the first parallel kernel is compiled, loaded or run; cheap afterwards. Must not be called in
    a forked child.

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
                _layer = started  # last: other threads look at it without the lock
    return _layer


def _running() -> bool:
    """Tell whether Numba's threads were started already, by somebody else."""
    from fastsparse_kernels.numba_internals import threads_run

    return threads_run()


def _start_threads(running: bool) -> str:
    import numba

    if not running and str(numba.config.THREADING_LAYER).lower() not in ("omp", "workqueue"):
        load_tbb()
    try:
        numba.get_num_threads()  # starts the threads
    except ValueError as error:
        warnings.warn(f"calls use one thread: {str(error).strip()}", RuntimeWarning, stacklevel=2)
        return "none"
    return str(numba.threading_layer())


def _openmp_was_left_behind() -> bool:
    """Tell whether OpenMP runs, but its threads are not here: a parent started it before a fork we did not see.

    Before its first parallel region a process looks the same, so the answer may be no later; only Linux tells at all.
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

    pip puts it where the dynamic linker does not look. It is loaded by its full path, for this process only; a later
    request for its bare name, as Numba makes, is then answered by the loaded one.
    """
    name = {"linux": "libtbb.so.12", "win32": "tbb12.dll"}.get(sys.platform)
    if name is None:
        return False
    if hasattr(os, "RTLD_NOLOAD") and _loads(name, os.RTLD_NOLOAD):
        return True  # another library brought one along: two would be one too many
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
