"""Numba's private interfaces, all of them, and the versions they were tested with.

Numba has no public interface for what kernels need of it: an explicit on-disk cache, C callbacks that use it, code
generation for another target than this CPU (`codegen.py`), a shorter pipeline, assembly of a compiled function, whether
its threads run. Nothing else of this project imports them from Numba; another version of Numba is checked, and adapted
to, here.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numba
import numpy as np
from llvmlite import ir

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
    from numba.core import (
        config,
        cpu,
        lowering,
        sigutils,
        target_extension,
        typed_passes,
        types,
        typing,
        untyped_passes,
    )
    from numba.core.analysis import dead_branch_prune
    from numba.core.caching import _Cache as Cache
    from numba.core.ccallback import CFunc
    from numba.core.codegen import JITCodeLibrary, JITCPUCodegen
    from numba.core.compiler import CompilerBase, CompileResult
    from numba.core.compiler_lock import global_compiler_lock
    from numba.core.descriptors import TargetDescriptor
    from numba.core.dispatcher import Dispatcher
    from numba.core.imputils import RefType, iternext_impl
    from numba.core.ir_utils import build_definitions
    from numba.core.rewrites import rewrite_registry
    from numba.core.serialize import dumps
    from numba.core.ssa import reconstruct_ssa
    from numba.core.targetconfig import ConfigStack
    from numba.core.transforms import canonicalize_cfg
    from numba.core.typing import templates

    _missing = [
        f"{owner.__name__}.{name}"
        for owner, names in (
            (CompileResult, ("_reduce", "_rebuild")),
            (CFunc, ("compile", "address")),
            (JITCodeLibrary, ("_optimize_functions", "_ensure_finalized", "_finalize_final_module")),
            (lowering.Lower, ("storevar", "_alloca_var", "getvar")),
            (typed_passes.PreLowerStripPhis, ("_strip_phi_nodes",)),
            (templates, ("RegistryLoader", "_OverloadAttributeTemplate")),
            (target_extension, ("target_registry", "dispatcher_registry", "jit_registry")),
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
    "Cache",
    "CompileResult",
    "JITCPUCodegen",
    "JITCodeLibrary",
    "KernelCFunc",
    "KernelDispatcher",
    "RefType",
    "assembly",
    "called_by_others",
    "code_identity",
    "config",
    "dumps",
    "global_compiler_lock",
    "iternext_impl",
    "jitable",
    "kernel_target",
    "llvm_ir",
    "optimize",
    "rebuild",
    "set_cache",
    "threads_run",
]

_TARGET = "fastsparse kernels"
# Settings (environment variables NUMBA_...) that change the machine code.
_CODE_SETTINGS = ("OPT", "BOUNDSCHECK", "DEBUGINFO_DEFAULT", "LOOP_VECTORIZE", "SLP_VECTORIZE")


class _Lower(lowering.Lower):
    """Code of a function whose variables need no reference counts: nothing happens when they are replaced or end."""

    def storevar(self, value: Any, name: str, argidx: int | None = None) -> None:
        self._alloca_var(name, self.typeof(name))
        if name in self._singly_assigned_vars:
            self._blk_local_varmap[name] = value
        else:
            self.builder.store(value, self.getvar(name))


class _NativeLowering(typed_passes.BaseNativeLowering):
    lowering_class = _Lower


class KernelCompiler(CompilerBase):
    """The passes of Numba's pipeline that kernels need, without analysis of variables between them."""

    def _compile_core(self) -> Any:
        state = self.state
        memo, state.typingctx.signatures = state.typingctx.signatures, {}
        try:
            with ConfigStack().enter(state.flags.copy()):
                untyped_passes.TranslateByteCode().run_pass(state)
                untyped_passes.FixupArgs().run_pass(state)
                state.func_ir.blocks = canonicalize_cfg(state.func_ir.blocks)
                dead_branch_prune(state.func_ir, state.args)
                state.func_ir.blocks = canonicalize_cfg(state.func_ir.blocks)
                rewrite_registry.apply("before-inference", state)
                state.func_ir = reconstruct_ssa(state.func_ir)
                state.func_ir._definitions = build_definitions(state.func_ir.blocks)
                typed_passes.NopythonTypeInference().run_pass(state)
                state.func_ir = typed_passes.PreLowerStripPhis()._strip_phi_nodes(state.func_ir)
                _NativeLowering().run_pass(state)
                typed_passes.NoPythonBackend().run_pass(state)
        finally:
            state.typingctx.signatures = memo
        state.pipeline = None
        return state.cr


class _Templates(templates.RegistryLoader):
    """Types of Python's language and of arrays, without methods that Numba adds: they bring much of NumPy."""

    def new_registrations(self, name: str) -> Iterator[Any]:
        for each in super().new_registrations(name):
            if name != "attributes" or not issubclass(each, templates._OverloadAttributeTemplate):
                yield each


class _Typing(typing.BaseContext):
    """What kernels use has a type. Numba's whole set takes 0.3 s to import, and much of it is tried for each sum."""

    signatures: dict[Any, Any]  # of calls in the function that is compiled: each is asked for several times

    def init(self) -> None:
        self.signatures = {}
        self._registries[templates.builtin_registry] = _Templates(templates.builtin_registry)

    def _get_global_type(self, value: Any) -> Any:
        if hasattr(value, "kernel_options"):
            return dispatcher_of(value)._type
        return super()._get_global_type(value)

    def resolve_value_type(self, val: Any) -> Any:
        """What has a type here keeps Numba from finding out whether it is a buffer, or of cffi, or a typed list."""
        number = isinstance(val, type) and issubclass(val, np.generic)
        known = self._get_global_type(val) if callable(val) and not number else None
        return super().resolve_value_type(val) if known is None else known

    def resolve_function_type(self, func: Any, args: Any, kws: Any) -> Any:
        if not isinstance(func, types.Type):  # an operator, whose operands may be slices
            return super().resolve_function_type(func, args, kws)
        key = func, args, tuple(kws.items())
        if key not in self.signatures:
            self.signatures[key] = super().resolve_function_type(func, args, kws)
        return self.signatures[key]


class _Context(cpu.CPUContext):
    """Implementations of what `_Typing` knows."""

    def __init__(self, typing_context: Any, codegen: Any) -> None:
        self._internal_codegen = codegen
        super().__init__(typing_context, _TARGET)

    def init(self) -> None:
        self.is32bit = False

    def load_additional_registries(self) -> None:
        from numba.cpython import builtins, iterators, listobj, mathimpl, numbers, rangeobj, tupleobj  # noqa: F401
        from numba.np import arrayobj  # noqa: F401

        self.install_registry(mathimpl.registry)

    def post_lowering(self, module: Any, library: Any) -> None:
        """Numba would link its runtime, which counts references and allocates."""

    def create_cfunc_wrapper(self, library: Any, fndesc: Any, env: Any, call_helper: Any) -> None:
        """The C function of a kernel, which raises nothing."""
        module = self.create_module("cfunc_wrapper")
        kernel = ir.Function(
            module, self.call_conv.get_function_type(fndesc.restype, fndesc.argtypes), fndesc.llvm_func_name
        )
        kind = ir.FunctionType(
            self.get_value_type(fndesc.restype), [self.get_value_type(each) for each in fndesc.argtypes]
        )
        wrapper = ir.Function(module, kind, fndesc.llvm_cfunc_wrapper_name)
        builder = ir.IRBuilder(wrapper.append_basic_block())
        _, result = self.call_conv.call_function(builder, kernel, fndesc.restype, fndesc.argtypes, wrapper.args)
        builder.ret(result)
        library.add_ir_module(module)


class _KernelTarget(TargetDescriptor):
    """Numba's compiler with contexts of our own; `codegen` makes the code generator."""

    options = cpu.CPUTargetOptions
    codegen: Callable[[], Any]

    @functools.cached_property
    def typing_context(self) -> Any:
        return _Typing()

    @functools.cached_property
    def target_context(self) -> Any:
        return _Context(self.typing_context, self.codegen())


kernel_target = _KernelTarget(_TARGET)


class KernelDispatcher(Dispatcher):
    """Numba's dispatcher for functions that Python calls, or kernels."""

    targetdescr = kernel_target

    def __init__(self, function: Callable[..., Any], **options: Any) -> None:
        options = {"nopython": True, "boundscheck": False, "error_model": "numpy", "_nrt": False, **options}
        super().__init__(function, targetoptions=options, pipeline_class=KernelCompiler)

    def get_call_template(self, args: Any, kws: Any) -> Any:
        """One machine code for all integers, literal or not."""
        return super().get_call_template(tuple(map(types.unliteral, args)), kws)


class KernelCFunc(CFunc):
    """Numba's C callback for kernels."""

    _targetdescr = kernel_target

    def __init__(self, function: Callable[..., Any], signature: Any) -> None:
        options = {"error_model": "numpy", "boundscheck": False, "_nrt": False}
        super().__init__(function, (signature.args, signature.return_type), {}, options, KernelCompiler)


def jitable(function: Callable[..., Any], *, forceinline: bool) -> Callable[..., Any]:
    """Mark a function: kernels that use it compile it. What Numba is not told it would take from the caller."""
    function.kernel_options = {"forceinline": forceinline}  # type: ignore[attr-defined]
    return function


def dispatcher_of(function: Any) -> KernelDispatcher:
    """The dispatcher of a function that kernels use."""
    if not hasattr(function, "dispatcher"):
        function.dispatcher = KernelDispatcher(
            function, no_cpython_wrapper=True, no_cfunc_wrapper=True, **function.kernel_options
        )
    found: KernelDispatcher = function.dispatcher
    return found


def called_by_others(context: Any, builder: Any, inside: Any, function: Any, args: list[Any]) -> None:
    """Call a function of int64 from one that `inside` builds, in the module of `builder`, and that is no Numba code."""
    kinds = (types.int64,) * len(args)
    dispatcher = dispatcher_of(function)
    dispatcher.compile(kinds)
    compiled = dispatcher.overloads[kinds]
    callee = context.declare_function(builder.module, compiled.fndesc)
    context.call_conv.call_function(inside, callee, types.void, kinds, args)
    context.active_code_library.add_linking_library(compiled.library)


class _Kernels(target_extension.CPU):
    """Numba's mark of the target: its own functions that kernels use are compiled for it, too."""


def _compiled_with(**options: Any) -> Callable[[Any], Any]:
    return lambda function: KernelDispatcher(function, no_cpython_wrapper=True, no_cfunc_wrapper=True)


target_extension.target_registry[_TARGET] = _Kernels
target_extension.dispatcher_registry[_Kernels] = KernelDispatcher
target_extension.jit_registry[_Kernels] = _compiled_with


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

    `FunctionCache` would refresh the target context here, which only compiling needs.
    """
    return CompileResult._rebuild(target_context, *reduced)


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
