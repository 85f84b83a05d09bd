"""Numba's private interfaces, all of them, and the versions they were tested with.

Numba has no public interface for what kernels need of it: an explicit on-disk cache, C callbacks that use it, the
vector features of the compilation target, assembly of a compiled function, whether its threads run. Nothing else of
this project imports them from Numba; another version of Numba is checked, and adapted to, here.
"""

from __future__ import annotations

import warnings
from typing import Any

import numba

# First version and first excluded version whose interfaces are those below; the same range stands in pyproject.toml.
TESTED_FROM, TESTED_BEFORE = (0, 61), (0, 69)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2] if part.isdigit())


def _check_version() -> None:
    if not TESTED_FROM <= _version(numba.__version__) < TESTED_BEFORE:
        first, last = (".".join(map(str, version)) for version in (TESTED_FROM, TESTED_BEFORE))
        warnings.warn(
            f"fastsparse is tested with numba >= {first}, < {last}; this is numba {numba.__version__}",
            RuntimeWarning,
            stacklevel=3,
        )


_check_version()
try:
    from numba.core import config, sigutils
    from numba.core.caching import _Cache as Cache
    from numba.core.ccallback import CFunc
    from numba.core.compiler import CompileResult
    from numba.core.compiler_lock import global_compiler_lock
    from numba.core.registry import cpu_target
    from numba.core.runtime.nrt import rtsys
    from numba.core.serialize import dumps

    _missing = [
        f"{owner.__name__}.{name}"
        for owner, names in ((CompileResult, ("_reduce", "_rebuild")), (CFunc, ("compile", "address")))
        for name in names
        if not hasattr(owner, name)
    ]
    if _missing:
        raise ImportError(", ".join(_missing))
except ImportError as error:
    raise ImportError(
        f"numba {numba.__version__} lacks an interface that fastsparse's kernels need ({error}); "
        f"install numba >= {TESTED_FROM[0]}.{TESTED_FROM[1]}, < {TESTED_BEFORE[0]}.{TESTED_BEFORE[1]}"
    ) from error

__all__ = [
    "CFunc",
    "Cache",
    "CompileResult",
    "assembly",
    "code_identity",
    "dumps",
    "global_compiler_lock",
    "llvm_ir",
    "rebuild",
    "register_implementations",
    "set_cache",
    "target_features",
    "threads_run",
]

# Settings (environment variables NUMBA_...) that change the machine code.
_CODE_SETTINGS = ("OPT", "BOUNDSCHECK", "DEBUGINFO_DEFAULT", "LOOP_VECTORIZE", "SLP_VECTORIZE")


def target_features() -> list[str]:
    """Features of the CPU that Numba compiles for, in LLVM's notation: "+avx2", "-avx512f", ..."""
    return str(cpu_target.target_context.codegen()._tm_features).split(",")


def code_identity(signature: Any, codegen: Any) -> tuple[Any, ...]:
    """Everything that decides on the machine code of one function but the function: types, target, settings."""
    args, result = sigutils.normalize_signature(signature)
    settings = [(name, str(getattr(config, name, None))) for name in _CODE_SETTINGS]
    return [str(arg) for arg in args], str(result), codegen.magic_tuple(), settings


def set_cache(compiled: Any, cache: Any) -> None:
    """Give a `CFunc` or a dispatcher its cache, before it is compiled."""
    compiled._cache = cache


def rebuild(target_context: Any, reduced: Any) -> Any:
    """A compile result from what `CompileResult._reduce` gave.

    `FunctionCache` would refresh the whole target context here (0.3 s of imports), which only compiling needs. Loaded
    code needs the runtime's symbols: reference counts, and nothing of linalg or random in kernels.
    """
    rtsys.initialize(target_context)
    return CompileResult._rebuild(target_context, *reduced)


def register_implementations() -> None:
    """Let Numba register its implementations of NumPy's functions now: tests replace some of the names."""
    cpu_target.target_context.refresh()


def assembly(compiled: Any) -> str:
    """Machine code of a compiled `CFunc` as text; empty when it was loaded from the cache."""
    return str(compiled._library.get_asm_str())


def llvm_ir(compiled: Any) -> str:
    """LLVM IR of a compiled `CFunc`; empty when it was loaded from the cache."""
    return str(compiled._library.get_llvm_str())


def threads_run() -> bool:
    """Whether Numba's worker threads were started already, by anybody."""
    from numba.np.ufunc import parallel

    return bool(getattr(parallel, "_is_initialized", False))
