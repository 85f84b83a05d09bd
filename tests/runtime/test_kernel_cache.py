"""Contract C3: the directory of compiled kernels is private, never shared, and does not grow for ever."""

from __future__ import annotations

import os
import stat
import sys
import time
from pathlib import Path

import pytest

from fastsparse.runtime import kernel_cache

pytestmark = pytest.mark.C3

posix = pytest.mark.skipif(sys.platform == "win32", reason="modes and owners are POSIX's")

DIGEST_NAME = "0123456789abcdef0123"
WHERE = "from fastsparse.runtime.kernel_cache import cache_directory as d; print(d()); print(d())"


def refused(base, reason):
    with pytest.raises(kernel_cache.UnusableDirectory, match=reason):
        kernel_cache.open_directory(base, DIGEST_NAME)


@posix
def test_the_directory_is_made_private(tmp_path):
    old = os.umask(0)
    try:
        directory = kernel_cache.open_directory(tmp_path / "a" / "b", DIGEST_NAME)
    finally:
        os.umask(old)
    assert directory == tmp_path / "a" / "b" / DIGEST_NAME
    for path in (directory, directory.parent):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert kernel_cache.open_directory(tmp_path / "a" / "b", DIGEST_NAME) == directory


@posix
@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770, 0o702])
@pytest.mark.parametrize("below", ["", DIGEST_NAME])
def test_directories_that_others_can_write_are_refused(tmp_path, mode, below):
    directory = tmp_path / "base" / below
    kernel_cache.open_directory(tmp_path / "base", DIGEST_NAME)
    directory.chmod(mode)
    refused(tmp_path / "base", rf"can be written by others \(mode {mode:04o}\)$")


@posix
@pytest.mark.parametrize("below", ["", DIGEST_NAME])
def test_links_are_refused(tmp_path, below):
    elsewhere = tmp_path / "elsewhere"
    kernel_cache.open_directory(elsewhere, DIGEST_NAME)
    base = tmp_path / "base"
    if below:
        kernel_cache.open_directory(base, DIGEST_NAME)
        (base / below).rmdir()
    (base / below).symlink_to(elsewhere / below, target_is_directory=True)
    refused(base, "is a symbolic link$")


@posix
def test_directories_of_somebody_else_are_refused(tmp_path, monkeypatch):
    base = tmp_path / "base"
    kernel_cache.open_directory(base, DIGEST_NAME)
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    refused(base, f"base belongs to user {me}, not to user {me + 1}$")


def test_a_planted_file_is_refused(tmp_path):
    (tmp_path / "base").mkdir(mode=0o700)
    (tmp_path / "base" / DIGEST_NAME).write_text("planted")
    refused(tmp_path / "base", "is not a directory$")


@posix
def test_a_shared_temporary_folder_is_never_used(run_python, tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    done = run_python(WHERE, FASTSPARSE_CACHE_DIR=str(shared), TMPDIR=str(tmp_path))
    assert done.stdout == "None\nNone\n"
    reason = f"RuntimeWarning: compiled kernels are not kept: {shared} can be written by others (mode 1777)"
    assert done.stderr.count(reason) == 1
    assert list(shared.iterdir()) == []


def test_where_the_directory_is(tmp_path):
    home = Path.home()
    find = kernel_cache.base_directory
    assert find({"FASTSPARSE_CACHE_DIR": str(tmp_path), "XDG_CACHE_HOME": "/x"}) == tmp_path
    assert find({"FASTSPARSE_CACHE_DIR": "~/kernels"}) == home / "kernels"
    if sys.platform != "win32":
        assert find({"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path / "fastsparse"
        assert find({"XDG_CACHE_HOME": "relative"}) == find({}) == home / ".cache" / "fastsparse"


def test_directories_of_other_sources_go_when_nothing_used_them_for_long(tmp_path):
    base, day, now = tmp_path / "base", 86_400, time.time()
    kernel_cache.open_directory(base, DIGEST_NAME)
    ages = {f"{number:020x}": age * day for number, age in enumerate([0, 2, 3, 4, 5, 6, 7, 8, 9, 29, 31, 400])}
    for name, age in ages.items():
        directory = base / name
        directory.mkdir()
        (directory / "kernel").write_text("")
        os.utime(directory, (now - age, now - age))
    (base / "notes").mkdir()
    os.utime(base / "notes", (0, 0))
    new = "f" * 20
    kernel_cache.open_directory(base, new)
    left = {path.name for path in base.iterdir()}
    # the eight newest stay (DIGEST_NAME among them), and nothing but caches is touched
    assert left == {"notes", new, DIGEST_NAME, *list(ages)[:7]}


def test_a_directory_in_use_looks_used(tmp_path):
    base = tmp_path / "base"
    directory = kernel_cache.open_directory(base, DIGEST_NAME)
    os.utime(directory, (0, 0))
    kernel_cache.open_directory(base, DIGEST_NAME)
    assert time.time() - directory.stat().st_mtime < 3600


@posix
@pytest.mark.parametrize("home", ["/dev/null", "{file}", "{file}/home"])
def test_a_bad_home_means_no_cache_and_one_warning(run_python, home, tmp_path):
    (tmp_path / "file").write_text("in the way")
    home = home.format(file=tmp_path / "file")
    done = run_python(WHERE, HOME=home, XDG_CACHE_HOME=None, FASTSPARSE_CACHE_DIR=None)
    assert done.stdout == "None\nNone\n"
    assert done.stderr.count("RuntimeWarning: compiled kernels are not kept: ") == 1
