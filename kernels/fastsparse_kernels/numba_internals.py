"""Numba's private interfaces, all of them, and the versions they were tested with.

Numba has no public interface for what kernels need of it: an explicit on-disk cache, C callbacks that use it, code
generation for another target than this CPU (`codegen.py`), a shorter pipeline, assembly of a compiled function, whether
its threads run. Nothing else of this project imports them from Numba; another version of Numba is checked, and adapted
to, here.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
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
    from numba.core import config, sigutils, typed_passes, untyped_passes
    from numba.core.caching import _Cache as Cache
    from numba.core.ccallback import CFunc
    from numba.core.codegen import JITCodeLibrary, JITCPUCodegen
    from numba.core.compiler import CompilerBase, CompileResult
    from numba.core.compiler_lock import global_compiler_lock
    from numba.core.compiler_machinery import PassManager
    from numba.core.registry import cpu_target
    from numba.core.runtime.nrt import rtsys
    from numba.core.serialize import dumps

    _missing = [
        f"{owner.__name__}.{name}"
        for owner, names in (
            (CompileResult, ("_reduce", "_rebuild")),
            (CFunc, ("compile", "address")),
            (JITCodeLibrary, ("_optimize_functions", "_ensure_finalized", "_finalize_final_module")),
            (JITCPUCodegen, ("_module_pass_manager", "_get_host_cpu_name", "_get_host_cpu_features")),
        )
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
    "JITCPUCodegen",
    "JITCodeLibrary",
    "KernelCompiler",
    "assembly",
    "code_identity",
    "config",
    "dumps",
    "generating_with",
    "global_compiler_lock",
    "llvm_ir",
    "optimize",
    "rebuild",
    "register_implementations",
    "set_cache",
    "threads_run",
]

# Settings (environment variables NUMBA_...) that change the machine code.
_CODE_SETTINGS = ("OPT", "BOUNDSCHECK", "DEBUGINFO_DEFAULT", "LOOP_VECTORIZE", "SLP_VECTORIZE")


class KernelCompiler(CompilerBase):
    """Numba's pipeline without the passes for closures, comprehensions and array expressions, which kernels lack."""

    def define_pipelines(self) -> list[Any]:
        passes = PassManager("kernel")
        if self.state.func_ir is None:
            passes.add_pass(untyped_passes.TranslateByteCode, "bytecode")
            passes.add_pass(untyped_passes.FixupArgs, "arguments")
        for each in (
            untyped_passes.IRProcessing,
            untyped_passes.DeadBranchPrune,
            untyped_passes.GenericRewrites,
            untyped_passes.ReconstructSSA,
            typed_passes.NopythonTypeInference,
            typed_passes.PreLowerStripPhis,
            typed_passes.IRLegalization,
            typed_passes.NativeLowering,
            typed_passes.NoPythonBackend,
        ):
            passes.add_pass(each, each.__name__)
        passes.finalize()
        return [passes]


@contextlib.contextmanager
def generating_with(codegen: Any) -> Iterator[None]:
    """Within the block, which holds Numba's compiler lock, `codegen` generates the code of Numba's CPU target."""
    with global_compiler_lock:
        context = cpu_target.target_context
        rtsys.initialize(context)  # with Numba's own code generator, as it serves all other users of Numba
        own, context._internal_codegen = context._internal_codegen, codegen
        try:
            yield
        finally:
            context._internal_codegen = own


def optimize(codegen: Any, module: Any) -> None:
    """Run LLVM's passes on a module, once."""
    passes = codegen._module_pass_manager()
    if isinstance(passes, tuple):  # LLVM's new pass manager: numba 0.62 and later
        passes[0].run(module, passes[1])
    else:
        passes.run(module)


def code_identity(signature: Any) -> tuple[Any, ...]:
    """What decides on the machine code of one function besides the function and the target: types and settings."""
    args, result = sigutils.normalize_signature(signature)
    settings = [(name, str(getattr(config, name, None))) for name in _CODE_SETTINGS]
    return [str(arg) for arg in args], str(result), settings


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


def assembly(kernel: Any) -> str:
    """Machine code of a `Kernel` as text; empty when it was loaded from the cache."""
    return str(kernel.compiled._library.get_asm_str())


def llvm_ir(kernel: Any) -> str:
    """LLVM IR of a `Kernel`; empty when it was loaded from the cache."""
    return str(kernel.compiled._library.get_llvm_str())


def threads_run() -> bool:
    """Whether Numba's worker threads were started already, by anybody."""
    from numba.np.ufunc import parallel

    return bool(getattr(parallel, "_is_initialized", False))
