"""How many CPUs a process may use, by affinity and control groups, and their caches."""

from __future__ import annotations

import os

import pytest

from fastsparse.runtime import cpu

V2_MOUNT = "25 1 0:22 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNT = "32 31 0:29 {root} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
V1_OTHER = "33 31 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"


def fake_system(root, membership, mounts, files):
    """A file tree with what the kernel tells about control groups."""
    for name, text in {"proc/self/cgroup": membership, "proc/self/mountinfo": mounts, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def v1_files(directory, quota, period="100000\n"):
    return {f"{directory}/cpu.cfs_quota_us": quota, f"{directory}/cpu.cfs_period_us": period}


V1, V2 = "sys/fs/cgroup/cpu,cpuacct", "sys/fs/cgroup"
SYSTEMS = {
    "v2": ("0::/app\n", V2_MOUNT, {f"{V2}/app/cpu.max": "150000 100000\n"}, 1.5),
    "v2 without a limit": ("0::/app\n", V2_MOUNT, {f"{V2}/app/cpu.max": "max 100000\n"}, None),
    "v2 limited above": (
        "0::/pod/app\n",
        V2_MOUNT,
        {f"{V2}/pod/app/cpu.max": "400000 100000\n", f"{V2}/pod/cpu.max": "200000 100000\n"},
        2.0,
    ),
    "v2 in a namespace": ("0::/\n", V2_MOUNT, {f"{V2}/cpu.max": "50000 100000\n"}, 0.5),
    "v2 path of the host": ("0::/../../other\n", V2_MOUNT, {f"{V2}/cpu.max": "300000 100000\n"}, 3.0),
    "v1": (
        "5:memory:/job\n4:cpu,cpuacct:/job\n0::/\n",
        V1_MOUNT.format(root="/") + V1_OTHER,
        v1_files(f"{V1}/job", "250000\n"),
        2.5,
    ),
    "v1 without a limit": ("4:cpu,cpuacct:/job\n", V1_MOUNT.format(root="/"), v1_files(f"{V1}/job", "-1\n"), None),
    "v1 in a container": (
        "4:cpu,cpuacct:/docker/abc\n",
        V1_MOUNT.format(root="/docker/abc"),
        v1_files(V1, "100000\n", "50000\n"),
        2.0,
    ),
    "v1 limited above": (
        "4:cpu,cpuacct:/a/b\n",
        V1_MOUNT.format(root="/"),
        v1_files(f"{V1}/a/b", "-1\n") | v1_files(f"{V1}/a", "100000\n"),
        1.0,
    ),
    "cpuset only": ("4:cpuset:/a\n", V1_OTHER, {}, None),
    "nonsense": ("what\n:\n", "ever\n - \n1 2 3 - cgroup2\n", {}, None),
    "damaged quota": ("0::/app\n", V2_MOUNT, {f"{V2}/app/cpu.max": "100000 0\n"}, None),
}


@pytest.mark.T3
@pytest.mark.parametrize("name", SYSTEMS)
def test_quota_of_control_groups(tmp_path, name):
    membership, mounts, files, expected = SYSTEMS[name]
    assert cpu.cgroup_quota(fake_system(tmp_path, membership, mounts, files)) == expected


@pytest.mark.T3
def test_no_quota_without_control_groups(tmp_path):
    assert cpu.cgroup_quota(tmp_path) is None


@pytest.mark.T3
@pytest.mark.parametrize(("quota", "expected"), [(0.2, 1), (1.0, 1), (1.5, 2), (2.0, 2), (100.0, 3), (None, 3)])
def test_cpus_follow_the_quota(monkeypatch, quota, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 5}, raising=False)
    monkeypatch.setattr(cpu, "cgroup_quota", lambda: quota)
    assert cpu.available_cpus() == expected


CACHE = "sys/devices/system/cpu/cpu0/cache"


def cache_files(number, level, kind, size):
    return {
        f"{CACHE}/index{number}/{name}": text + "\n"
        for name, text in zip(("level", "type", "size"), (level, kind, size), strict=True)
    }


@pytest.mark.parametrize(
    ("files", "first", "third"),
    [
        ({**cache_files(0, "1", "Data", "48K"), **cache_files(1, "1", "Instruction", "64K")}, 48 * 1024, 8 * 2**20),
        ({**cache_files(0, "1", "Instruction", "64K"), **cache_files(1, "1", "Data", "128K")}, 128 * 1024, 8 * 2**20),
        ({**cache_files(2, "3", "Unified", "32768K"), **cache_files(3, "1", "Unified", "16K")}, 16 * 1024, 2**25),
        (cache_files(0, "1", "Data", "much"), 32 * 1024, 8 * 2**20),
        ({f"{CACHE}/index0/level": "1\n"}, 32 * 1024, 8 * 2**20),
        ({}, 32 * 1024, 8 * 2**20),
    ],
)
def test_sizes_of_the_caches(tmp_path, files, first, third):
    root = fake_system(tmp_path, "", "", files)
    assert cpu.cache_bytes(1, root) == first
    assert cpu.cache_bytes(3, root) == third
