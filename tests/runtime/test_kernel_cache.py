"""Contract C3: code is loaded from directories that nobody but a trusted owner can write, and they do not grow for
ever."""

from __future__ import annotations

import os
import stat
import sys
import time
from pathlib import Path

import pytest

from fastsparse.runtime import kernel_cache
from fastsparse_kernels.kernel_cache import _refusal

pytestmark = pytest.mark.C3

posix = pytest.mark.skipif(sys.platform == "win32", reason="modes and owners are POSIX's")

DIGEST_NAME = "0123456789abcdef0123"
COMPILE = """
from fastsparse.runtime import launch, kernel_cache
from fastsparse_kernels import parallel, sparse_operator
parallel.run_serial()
sparse_operator.scatter(32)
print(kernel_cache.cache_directories().write)
"""


def opened(base, named=False):
    return kernel_cache.open_directory(base, DIGEST_NAME, named)


def refused(base, reason, named=False):
    with pytest.raises(kernel_cache.UnusableDirectory, match=reason):
        opened(base, named)


@posix
@pytest.mark.parametrize(("named", "mode"), [(False, 0o700), (True, 0o755)])
def test_directories_are_made_private_or_for_all_to_read(tmp_path, named, mode):
    old = os.umask(0)
    try:
        found = opened(tmp_path / "a" / "b", named)
    finally:
        os.umask(old)
    assert found == (tmp_path / "a" / "b" / DIGEST_NAME, True)
    for path in (found[0], found[0].parent):
        assert stat.S_IMODE(path.stat().st_mode) == mode
    assert opened(tmp_path / "a" / "b", named) == found
    kernel_cache.write_cached(str(found[0] / "kernel"), b"")
    assert stat.S_IMODE((found[0] / "kernel").stat().st_mode) == mode & 0o644


@posix
@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770, 0o702])
@pytest.mark.parametrize("below", ["", DIGEST_NAME])
@pytest.mark.parametrize("named", [False, True])
def test_directories_that_others_can_write_are_refused(tmp_path, mode, below, named):
    directory = tmp_path / "base" / below
    opened(tmp_path / "base", named)
    directory.chmod(mode)
    refused(tmp_path / "base", rf"can be written by others \(mode {mode:04o}\)$", named)


@posix
@pytest.mark.parametrize("below", ["", DIGEST_NAME])
def test_links_are_refused(tmp_path, below):
    elsewhere = tmp_path / "elsewhere"
    opened(elsewhere)
    base = tmp_path / "base"
    if below:
        opened(base)
        (base / below).rmdir()
    (base / below).symlink_to(elsewhere / below, target_is_directory=True)
    refused(base, "is a symbolic link$", named=True)


class Someone:
    """The status of a directory of another user."""

    def __init__(self, found, user):
        self.st_mode, self.st_uid = found.st_mode, user


@posix
def test_whose_directories_are_used(tmp_path, monkeypatch):
    """Root's by everybody; another user's only where it was named, and nobody else could have put it there."""
    base = tmp_path / "base"
    opened(base)
    lstat, above = Path.lstat, Path.stat
    owner = 4242
    monkeypatch.setattr(os, "geteuid", lambda: 77)
    monkeypatch.setattr(os, "access", lambda path, mode: True)
    monkeypatch.setattr(Path, "lstat", lambda path: Someone(lstat(path), owner))
    refused(base, "base belongs to user 4242, not to user 77$")
    monkeypatch.setattr(Path, "stat", lambda path, **_: Someone(above(path), owner if path == base else 0))
    monkeypatch.setattr(kernel_cache, "_only_by", lambda user, directory: True)
    assert opened(base, named=True) == (base / DIGEST_NAME, False)
    refused(base, "belongs to user 4242")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    refused(base, "belongs to user 4242, not to user 0$", named=True)
    owner = 0
    monkeypatch.setattr(os, "geteuid", lambda: 77)
    assert opened(base) == opened(base, named=True) == (base / DIGEST_NAME, False)


@posix
def test_who_could_have_put_a_directory_where_it_is(tmp_path):
    assert kernel_cache._only_by(os.geteuid(), Path("/usr/lib"))
    assert not kernel_cache._only_by(os.geteuid() + 1, tmp_path / "base")  # below a directory of this user
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o1777)
    assert not kernel_cache._only_by(os.geteuid(), tmp_path / "shared" / "base")


@posix
def test_files_are_checked_like_directories(tmp_path):
    file = tmp_path / "kernel"
    file.write_bytes(b"")
    for mode, refusal in ((0o600, ""), (0o644, ""), (0o664, "can be written by others"), (0o602, "can be written")):
        file.chmod(mode)
        assert _refusal(file.stat(), str(tmp_path)).startswith(refusal)
        assert bool(_refusal(file.stat(), str(tmp_path))) == bool(refusal)
    assert _refusal(Someone(file.stat(), os.geteuid() + 1), str(tmp_path)).startswith("belongs to user")


def test_several_directories(tmp_path):
    """All are read, the first that can be written gets new kernels."""
    (tmp_path / "file").write_text("in the way")
    names = [tmp_path / name for name in ("file", "first", "second")]
    found = kernel_cache.find_directories({"FASTSPARSE_CACHE_DIR": os.pathsep.join(map(str, names))})
    digest = kernel_cache.kernel_digest()
    assert found.private == (str(tmp_path / "first" / digest), str(tmp_path / "second" / digest))
    assert found.write == str(tmp_path / "first" / digest)
    assert found.unwritable == ""
    nobody = os.pathsep.join(["~nobody-has-this-name/kernels", str(tmp_path / "second"), " "])
    found = kernel_cache.find_directories({"FASTSPARSE_CACHE_DIR": nobody})
    assert found.private == (found.write,) == (str(tmp_path / "second" / digest),)
    missing = tmp_path / "file" / "base"
    found = kernel_cache.find_directories({"FASTSPARSE_CACHE_DIR": str(missing)})
    assert found.private == ()
    assert found.write is None
    assert str(missing.parent) in found.unwritable


def test_a_planted_file_is_refused(tmp_path):
    (tmp_path / "base").mkdir(mode=0o700)
    (tmp_path / "base" / DIGEST_NAME).write_text("planted")
    refused(tmp_path / "base", "is not a directory$")


@posix
def test_a_shared_temporary_folder_is_never_used(run_python, tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    done = run_python(COMPILE, FASTSPARSE_CACHE_DIR=str(shared), TMPDIR=str(tmp_path))
    reason = f"RuntimeWarning: compiled kernels are not kept: {shared} can be written by others (mode 1777)"
    assert done.stderr.count(reason) == 1
    assert list(shared.iterdir()) == []


@posix
@pytest.mark.parametrize("empty", ["", os.pathsep, f" {os.pathsep}"])
def test_no_names_mean_the_users_own_directory(tmp_path, empty):
    found = kernel_cache.find_directories({"FASTSPARSE_CACHE_DIR": empty, "XDG_CACHE_HOME": str(tmp_path)})
    assert found.write == str(tmp_path / "fastsparse" / kernel_cache.kernel_digest())
    assert stat.S_IMODE((tmp_path / "fastsparse").stat().st_mode) == 0o700


@posix
def test_a_working_directory_that_is_gone(run_python, tmp_path):
    """Relative names mean nothing then; others are used."""
    gone = tmp_path / "gone"
    code = """
import os, sys
from fastsparse.runtime import kernel_cache
gone, kept = sys.argv[1:]
os.mkdir(gone)
os.chdir(gone)
os.rmdir(gone)
found = kernel_cache.find_directories({"FASTSPARSE_CACHE_DIR": os.pathsep.join(["relative", kept])})
assert found.write == os.path.join(kept, kernel_cache.kernel_digest()), found
"""
    run_python(code, str(gone), str(tmp_path / "kept"))


def test_where_the_directory_is(tmp_path):
    home = Path.home()
    find = kernel_cache.base_directories
    assert find({"FASTSPARSE_CACHE_DIR": str(tmp_path), "XDG_CACHE_HOME": "/x"}) == [tmp_path]
    assert find({"FASTSPARSE_CACHE_DIR": "~/kernels"}) == [home / "kernels"]
    if sys.platform != "win32":
        assert find({"XDG_CACHE_HOME": str(tmp_path)}) == [tmp_path / "fastsparse"]
        assert find({"XDG_CACHE_HOME": "relative"}) == find({}) == [home / ".cache" / "fastsparse"]


def test_directories_of_other_sources_go_when_nothing_used_them_for_long(tmp_path):
    base, day, now = tmp_path / "base", 86_400, time.time()
    opened(base)
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
    directory, _ = opened(base)
    os.utime(directory, (0, 0))
    opened(base)
    assert time.time() - directory.stat().st_mtime < 3600


@posix
@pytest.mark.parametrize("home", ["/dev/null", "{file}", "{file}/home"])
def test_a_bad_home_means_no_cache_and_one_warning(run_python, home, tmp_path):
    (tmp_path / "file").write_text("in the way")
    home = home.format(file=tmp_path / "file")
    done = run_python(COMPILE, HOME=home, XDG_CACHE_HOME=None, FASTSPARSE_CACHE_DIR=None)
    assert done.stdout == "None\n"
    assert done.stderr.count("RuntimeWarning: compiled kernels are not kept: ") == 1
