"""CPUs that this process may use (by affinity and control group quota), and the sizes of their caches."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def available_cpus() -> int:
    """Number of CPUs this process may keep busy, at least 1.

    The CPUs it may be scheduled on, or less when its control group (version 1 or 2, as containers have) grants less
    CPU time; part of a CPU counts as one.
    """
    try:
        count = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        count = os.cpu_count() or 1
    quota = cgroup_quota()
    return max(1, count if quota is None else min(count, math.ceil(quota)))


DEFAULT_CACHES = {1: 32 * 1024, 3: 8 * 2**20}  # default where the system does not say


def cache_bytes(level: int, root: Path = Path("/")) -> int:
    """Size of a core's level 1 (data) or level 3 cache in bytes; a common size where the system does not say.

    Parameters
    ----------
    root : Path
        Where the file system begins; tests pass another one.
    """
    for cache in sorted((root / "sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            found, kind, size = ((cache / name).read_text().strip() for name in ("level", "type", "size"))
        except (OSError, UnicodeDecodeError):
            continue
        if found == str(level) and kind in ("Data", "Unified") and size.endswith("K") and size[:-1].isdigit():
            return int(size[:-1]) * 1024
    return DEFAULT_CACHES[level]


def cgroup_quota(root: Path = Path("/")) -> float | None:
    """Quota of the control groups of this process, in CPUs; None without a limit.

    Parameters
    ----------
    root : Path
        Where the file system begins; tests pass another one.
    """
    try:
        memberships = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    quotas = [
        quota
        for directory, version in _directories(memberships, mounts)
        if (quota := _read_quota(root / directory.relative_to("/"), version)) is not None
    ]
    return min(quotas, default=None)


def _directories(memberships: list[str], mounts: list[str]) -> Iterator[tuple[PurePosixPath, int]]:
    """Directories of the control groups that limit this process, its own and those above, with their version."""
    for membership in memberships:
        number, _, rest = membership.partition(":")
        controllers, _, path = rest.partition(":")
        version = 2 if number == "0" and not controllers else 1
        if version == 1 and "cpu" not in controllers.split(","):
            continue
        for mount_root, mount_point in _cgroup_mounts(mounts, version):
            try:
                below = PurePosixPath(path).relative_to(mount_root)
            except ValueError:  # a path of the host, seen from inside a container
                below = PurePosixPath()
            for part in (below, *below.parents):
                yield mount_point / part, version


def _cgroup_mounts(mounts: list[str], version: int) -> Iterator[tuple[PurePosixPath, PurePosixPath]]:
    """(root, mount point) of the mounts of that version which have the cpu controller; see proc(5), mountinfo."""
    for line in mounts:
        fields, _, kind = line.partition(" - ")
        columns, about = fields.split(), kind.split()
        if len(columns) < 5 or not about or about[0] != ("cgroup2" if version == 2 else "cgroup"):
            continue
        if version == 1 and "cpu" not in about[-1].split(","):
            continue
        root, point = (column.replace("\\040", " ") for column in columns[3:5])
        if point.startswith("/"):
            yield PurePosixPath(root), PurePosixPath(point)


def _read_quota(directory: Path, version: int) -> float | None:
    """Quota of one control group in CPUs, or None."""
    try:
        if version == 2:
            quota, period = (directory / "cpu.max").read_text().split()
        else:
            quota = (directory / "cpu.cfs_quota_us").read_text()
            period = (directory / "cpu.cfs_period_us").read_text()
        granted = int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # no such file, or "max": no limit
        return None
    return granted if granted > 0 else None
