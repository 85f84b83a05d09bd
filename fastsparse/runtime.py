"""Threads, threading layer, fork guard, kernel cache: what the process around the kernels must be like.

The number of threads is fastsparse's own: a number that `launch` reads to choose how many worker slots share a call.
Numba's and BLAS's settings are never read for it nor changed by it.

After fork() a child computes with the serial twins. GNU OpenMP does not survive a fork (Numba stops the child with
SIGTERM), TBB does when the main thread forked, and one rule for all is easier to rely on than three.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import operator
import os
import platform
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastsparse import _cachedir, _cpus, atomic_file
from fastsparse._version import __version__

_ENVIRONMENT = "FASTSPARSE_NUM_THREADS"
MOST_THREADS = 1024  # a larger number is taken for this one; files that name a larger one are refused
_PARALLEL_LAYERS = ("tbb", "omp")  # workqueue is not safe when two Python threads call at once, so it is never used


class _Block:
    """An open `with threads(n)` block."""

    __slots__ = ("count",)

    def __init__(self, count: int) -> None:
        self.count = count


class _Own(threading.local):
    """The blocks that one thread has open; a tuple on the class, since a missing attribute would cost a microsecond."""

    blocks: tuple[_Block, ...] = ()


_own = _Own()
_blocks: list[_Block] = []  # those open in any thread
_default_threads: int | None = None  # set_num_threads, once called
_layer_lock = threading.Lock()
_layer: str | None = None  # what prepare_threading() found
_numba_threads = 1  # how many that started
_foreign = False  # Numba's threads were there before us, and may have been left behind by a fork
_forked = False


# ---------------------------------------------------------------------------------------------------------- threads


def checked_count(count: Any, name: str = "threads") -> int:
    """Return a number of threads as an integer from 1 to `MOST_THREADS`.

    Raises
    ------
    TypeError, ValueError
        Naming the argument `name`, when it is not a positive integer.
    """
    try:
        number = operator.index(count)
    except TypeError:
        raise TypeError(f"{name} is {count!r}, expected a positive integer") from None
    if number < 1:
        raise ValueError(f"{name} is {number}, expected a positive integer")
    return min(number, MOST_THREADS)


def set_num_threads(n: int) -> None:
    """Set the number of threads that fastsparse's calls use, in every Python thread, those to come included.

    Inside a ``with threads(...)`` block of the same thread, the number holds until the end of the block.

    Parameters
    ----------
    n : int
        At least 1. More than Numba has threads (``numba.config.NUMBA_NUM_THREADS``, normally the number of CPUs)
        is allowed and does not use more; more than 1024 counts as 1024.

    Raises
    ------
    TypeError, ValueError
        When `n` is not a positive integer.
    """
    global _default_threads
    count = checked_count(n, "n")
    if _own.blocks:
        _own.blocks[-1].count = count
    else:
        _default_threads = count


def get_num_threads() -> int:
    """Return the number of threads that a call made here and now would use at most.

    The innermost ``with threads(n)`` block of this thread; else the latest one open in another thread; else what
    `set_num_threads` said; else FASTSPARSE_NUM_THREADS; else the number of CPUs this process may use, with regard to
    affinity and the quota of its control group.

    Raises
    ------
    ValueError
        When FASTSPARSE_NUM_THREADS is needed and is not a positive integer.
    """
    if _blocks:
        if _own.blocks:
            return _own.blocks[-1].count
        if latest := _blocks[-1:]:  # a slice: another thread may empty the list at any time
            return latest[0].count
    return _default_threads if _default_threads is not None else _initial_threads()


@functools.cache
def _initial_threads() -> int:
    given = os.environ.get(_ENVIRONMENT, "").strip()
    if not given:
        return _cpus.available_cpus()
    try:
        return checked_count(int(given), _ENVIRONMENT)
    except ValueError:
        raise ValueError(f"{_ENVIRONMENT} is {given!r}, expected a positive integer") from None


@contextlib.contextmanager
def threads(n: int) -> Iterator[None]:
    """Use `n` threads inside a ``with`` block.

    The block holds for the thread that opened it, and for all threads that have no block of their own.

    Parameters
    ----------
    n : int
        At least 1, as for `set_num_threads`.

    Examples
    --------
    >>> import fastsparse as fs
    >>> with fs.threads(1):
    ...     fs.get_num_threads()
    1
    """
    block = _Block(checked_count(n, "n"))
    _own.blocks = (*_own.blocks, block)
    _blocks.append(block)
    try:
        yield
    finally:
        _own.blocks = tuple(other for other in _own.blocks if other is not block)
        _blocks.remove(block)


def worker_slots() -> int:
    """Return how many workers may share the next kernel call; 1 means the serial twin.

    Starts Numba's threads when they are needed and not there yet.
    """
    count = get_num_threads()
    if count == 1 or not parallel_allowed():
        return 1
    return min(count, _numba_threads)


# -------------------------------------------------------------------------------------------------- threading layer


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
    from numba.np.ufunc import parallel

    return bool(getattr(parallel, "_is_initialized", False))


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


def _after_fork_in_child() -> None:
    global _forked
    _forked = True
    _blocks[:] = _own.blocks  # threads that are not here any more close no block


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


# ------------------------------------------------------------------------------------------------------ kernel cache


@functools.cache
def cache_directory() -> str | None:
    """Return the private directory of compiled kernels, made when there is none yet.

    ``fastsparse`` in the user's cache directory, or FASTSPARSE_CACHE_DIR; below that, one directory for each state
    of the kernel sources and each version of Numba, llvmlite and Python. Directories of other states are removed
    when nothing has used them for 30 days.

    Returns
    -------
    str or None
        None, after one warning, when it cannot be made or is not private: a link, somebody else's, or writable by
        others. Kernels are then compiled in every process.
    """
    directory = _cachedir.find_directory()
    return None if directory is None else str(directory)


def write_cached(path: str, content: bytes) -> None:
    """Write a private file of the kernel cache; a checksum in it tells when a failure of the system damaged it."""
    atomic_file.write_bytes(path, content, durable=False, mode=0o600)


def warmup(*, progress: bool = True) -> None:
    """Compile the usual kernels, or load them from the cache, so that no later call has to wait for that.

    Takes up to a minute or two with an empty cache, a second with a full one.

    Parameters
    ----------
    progress : bool
        Show a progress bar on stderr.
    """
    from tqdm import tqdm

    from fastsparse_kernels import build, variants

    build.set_cache_directory(cache_directory, write_cached)
    parallel = parallel_allowed()  # starts the threads that the parallel launch needs at loading
    usual = [(name, prepare) for name, prepare in variants.usual() if parallel or prepare not in variants.PARALLEL]
    with tqdm(usual, desc="kernels", unit="kernel", disable=not progress) as bar:
        for name, prepare in bar:
            bar.set_postfix_str(name)
            prepare()


# ------------------------------------------------------------------------------------------------------------ report


def show_config(*, file: Any = None) -> dict[str, Any]:
    """Print what fastsparse found on this machine, and return it.

    Parameters
    ----------
    file : text file, optional
        Where to print; default ``sys.stdout``.

    Returns
    -------
    dict
        "fastsparse", "python", "numba", "llvmlite", "numpy", "scipy" (versions), "cpu", "cpus", "vector_bits",
        "threads", "threading_layer", "tbb" (version or None), "parallel", "cache_directory".
    """
    import llvmlite
    import numba
    import numpy
    import scipy

    from fastsparse_kernels import build

    layer = "none" if _forked else prepare_threading()
    found: dict[str, Any] = {
        "fastsparse": __version__,
        "python": platform.python_version(),
        "numba": numba.__version__,
        "llvmlite": llvmlite.__version__,
        "numpy": numpy.__version__,
        "scipy": scipy.__version__,
        "cpu": _cpu_name(),
        "cpus": _cpus.available_cpus(),
        "vector_bits": 8 * build.vector_bytes(),
        "threads": get_num_threads(),
        "threading_layer": layer,
        "tbb": _version("tbb"),
        "parallel": parallel_allowed(),
        "cache_directory": cache_directory(),
    }
    width = max(map(len, found))
    for name, value in found.items():
        print(f"{name:<{width}}  {value}", file=file)
    return found


def _version(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    """Model as the system tells it, and LLVM's name for it."""
    from llvmlite import binding

    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    return f"{model} ({binding.get_host_cpu_name()})"
