"""Code generation for kernels: for a level of CPUs, and by LLVM once per kernel.

Numba compiles for one CPU's name, and lets LLVM optimise and translate every function that a kernel calls, then the
kernel that they are linked into. Here functions are linked first; all but the kernel's entry points become private to
it, so that no two kernels share a symbol; and LLVM runs once, which halves the time.

A *level* is a set of instructions that many CPUs share: what was compiled for x86-64-v4 runs on every CPU with AVX-512.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

from llvmlite import binding as llvm

from .numba_internals import JITCodeLibrary, JITCPUCodegen, config, kernel_target, optimize

# Levels of x86-64 (System V ABI, x86-64 supplement), the best first: bytes of a vector, and features beyond the next.
X86_LEVELS = {
    "x86-64-v4": (64, ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")),
    "x86-64-v3": (32, ("avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe", "xsave")),
    "x86-64-v2": (16, ("cx16", "popcnt", "sahf", "sse3", "sse4.1", "sse4.2", "ssse3")),
    "x86-64": (16, ()),
}
_X86 = llvm.get_process_triple().startswith(("x86_64", "amd64"))
_ARM64 = llvm.get_process_triple().startswith(("aarch64", "arm64"))
PREBUILT = ("x86-64-v3", "x86-64-v4") if _X86 else ("generic",) if _ARM64 else ()  # levels that wheels bring
_ENTRIES = "cfunc.", "_ZN7cpython"  # names of the functions that are called from outside begin so
_chosen: list[str] = []


def level() -> str:
    """LLVM's name of the level that kernels are compiled for: the best of this CPU, or what NUMBA_CPU_NAME says."""
    return _chosen[0] if _chosen else _level_here()


def chosen_level() -> str | None:
    """The level that `use_level` has set."""
    return _chosen[0] if _chosen else None


def use_level(name: str) -> None:
    """Compile for a level, to be said before anything is compiled; code for a better one than this CPU's cannot run."""
    _chosen[:] = [name]


@functools.cache
def _level_here() -> str:
    if config.CPU_NAME is not None:
        return str(config.CPU_NAME)
    if _ARM64:
        return "generic"
    host = llvm.get_host_cpu_features()
    names = list(X86_LEVELS) if _X86 else []
    for i, name in enumerate(names):
        if all(host.get(feature) for below in names[i:] for feature in X86_LEVELS[below][1]):
            return name
    return str(llvm.get_host_cpu_name())


def _features() -> str:
    """Features beyond those of the level, in LLVM's notation."""
    if config.CPU_FEATURES is not None and not _chosen:
        return str(config.CPU_FEATURES)
    known = level() in X86_LEVELS if _X86 else _ARM64
    return "" if known else str(llvm.get_host_cpu_features().flatten())


@functools.cache
def vector_bytes() -> int:
    """Width of the widest vector register kernels are compiled for: 64 (AVX-512), 32 (AVX2), 16 (NEON, SSE)."""
    features = _features().split(",")
    if "+avx512f" in features and "+avx512vl" in features:
        return 64
    if "+avx2" in features:
        return 32
    return X86_LEVELS.get(level(), (16, ()))[0]


def vector_registers(nbytes: int) -> int:
    """Vector registers of this architecture with vectors of so many bytes."""
    return 16 if _X86 and nbytes < 64 else 32


def target_identity() -> tuple[str, str, str]:
    """Everything about the target that decides on the machine code."""
    return str(llvm.get_process_triple()), level(), _features()


class _Library(JITCodeLibrary):
    """A kernel, or a function that kernels call.

    It becomes machine code when the address of an entry point is asked for; before, it is linked into what calls it.
    """

    def _optimize_functions(self, ll_module: Any) -> None:
        ll_module.data_layout = self._codegen._data_layout

    def _ensure_finalized(self) -> None:
        """Called for everything that is linked, where it is too early."""

    def add_linking_library(self, library: Any) -> None:
        self._linking_libraries.append(library)

    def _link(self) -> None:
        """Take in everything that is called."""
        parts: dict[Any, None] = {}
        _collect(self, parts)
        for part in parts:
            if hasattr(part, "_reload_init"):  # not in Numba 0.61
                self._reload_init.update(part._reload_init)
            if isinstance(part, _Library) and not part._finalized:
                self._final_module.link_in(_shareable(part._final_module))
            else:
                self._final_module.link_in(part._get_module_for_linking(), preserve=True)
        self._linking_libraries: list[Any] = []

    def _get_module_for_linking(self) -> Any:
        if self._shared_module is None:
            if not self._finalized:
                self._link()
            self._shared_module: Any = _shareable(self._final_module)
        return self._shared_module

    def _finish(self) -> None:
        if self._finalized:
            return
        module = self._final_module
        inner = {function.name for function in module.functions if not function.name.startswith(_ENTRIES)}
        own = {item.name for item in _definitions(module)} - inner
        self._link()
        for item in _definitions(module):
            # Not private yet: LLVM would inline whatever is called once, rare code into the innermost loops, too.
            if item.name not in own:
                item.linkage = "linkonce_odr"
        optimize(self._codegen, module)
        for item in _definitions(module):
            if item.name not in own:
                item.linkage = "internal"
        module.verify()
        self._finalize_final_module()

    def get_pointer_to_function(self, name: str) -> int:
        if not self._finalized:
            if name not in {item.name for item in _definitions(self._final_module)}:
                return 0  # as of a function that Python never calls: it has no such entry point
            self._finish()
        return int(super().get_pointer_to_function(name))

    @property
    def has_dynamic_globals(self) -> bool:
        self._finish()
        return bool(self._dynamic_globals)

    def serialize_using_object_code(self) -> Any:
        """As Numba does, but without bitcode for linking, which takes more room than the machine code."""
        self._finish()
        return self.name, "object", (self._get_compiled_object(), _names(self._final_module).as_bitcode())


class _Codegen(JITCPUCodegen):
    _library_class = _Library

    def _get_host_cpu_name(self) -> str:
        return level()

    def _get_host_cpu_features(self) -> str:
        return _features()

    def set_env(self, env_name: str, env: Any) -> None:
        if self._engine.is_symbol_defined(env_name):  # functions that are linked into others have none
            super().set_env(env_name, env)


kernel_target.codegen = lambda: _Codegen("fastsparse.kernels")


def _collect(library: Any, found: dict[Any, None]) -> None:
    """Libraries that `library` calls, directly or not, in order."""
    for called in library._linking_libraries:
        if called not in found:
            found[called] = None
            if isinstance(called, _Library):
                _collect(called, found)


def _definitions(module: Any) -> list[Any]:
    return [item for item in (*module.functions, *module.global_variables) if not item.is_declaration]


def _shareable(module: Any) -> Any:
    """A copy whose functions may be defined in several modules."""
    copy = module.clone()
    for function in copy.functions:
        if not function.is_declaration and function.linkage == llvm.Linkage.external:
            function.linkage = "linkonce_odr"
    return copy


def _names(module: Any) -> Any:
    """A module that defines the same public names and nothing else: all that loading machine code needs."""
    lines = [f'define void @"{item.name}"() {{ unreachable }}' for item in public(module.functions)]
    lines += [f'@"{item.name}" = global i64 0' for item in public(module.global_variables)]
    return llvm.parse_assembly("\n".join(lines))


def public(items: Iterable[Any]) -> list[Any]:
    """Functions or variables that a module defines for others."""
    linkages = llvm.Linkage.external, llvm.Linkage.common
    return [item for item in items if not item.is_declaration and item.linkage in linkages]
