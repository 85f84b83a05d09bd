"""Builds wheels with compiled kernels: for this version of Python and this platform, for several levels of CPUs.

They are used with the versions of Numba and llvmlite that are present here; others compile their own.
FASTSPARSE_PREBUILT=0 builds a pure wheel in a second, FASTSPARSE_PREBUILT=1 makes it an error when kernels cannot be
compiled, which otherwise gives a pure wheel, too.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class KernelsHook(BuildHookInterface):
    """Compile the kernels into a temporary folder, from which they go into the wheel."""

    _folder: str | None = None

    def dependencies(self) -> list[str]:
        """What compiling needs, in the versions that the project allows."""
        if _wanted() is False:
            return []
        return [need for need in self.metadata.core.dependencies if need.startswith(("numba", "numpy"))]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, unless the project is installed to be edited."""
        if version == "editable" or _wanted() is False:
            return
        self._folder = tempfile.mkdtemp()
        self.app.display_info("compiling kernels for the wheel, some minutes; FASTSPARSE_PREBUILT=0 leaves them out")
        paths = [os.path.join(self.root, "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])]
        command = [sys.executable, "-m", "fastsparse_kernels.prebuild", self._folder]
        done = subprocess.run(command, env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)}, check=False)
        if done.returncode:
            if _wanted() is True:
                raise RuntimeError("the kernels could not be compiled")
            self.app.display_warning("the kernels could not be compiled: the wheel has none")
            return
        build_data["force_include"][self._folder] = "fastsparse_kernels/prebuilt"
        build_data["pure_python"] = False
        build_data["tag"] = f"cp{sys.version_info.major}{sys.version_info.minor}-none-{_platform()}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the folder."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _wanted() -> bool | None:
    """What FASTSPARSE_PREBUILT says, in the words of `fastsparse.runtime.switches`, which cannot be imported here."""
    value = os.environ.get("FASTSPARSE_PREBUILT", "").strip().lower()
    return value not in ("0", "false", "no", "off") if value else None


def _platform() -> str:
    """Platform tag. Kernels are no shared libraries, they need of the platform what Numba needs."""
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        return f"manylinux_2_17_{platform.machine()}"
    return sysconfig.get_platform().replace("-", "_").replace(".", "_")
