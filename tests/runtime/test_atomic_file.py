"""Contracts F1 and F4: files are replaced in one step or left as they are, whoever is killed or whatever is full."""

from __future__ import annotations

import os
import socket
import stat
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastsparse.runtime.atomic_file import replacing, write_bytes, write_text

kill_writers = pytest.importorskip("bench.kill_writers")
posix = pytest.mark.skipif(sys.platform == "win32", reason="modes, links, FIFOs and devices are POSIX's")


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _temporary(folder: Path, name: str = "target") -> Path:
    """The temporary file of a writer that is at work."""
    (found,) = (path for path in folder.iterdir() if path.name.startswith(f".{name}."))
    return found


@pytest.mark.F1
def test_the_old_file_is_there_until_the_new_one_is_complete(tmp_path):
    target = tmp_path / "target"
    write_text(target, "old")
    with replacing(target) as file:
        file.write(b"new")
        file.flush()
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["target"]


@pytest.mark.F1
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_an_exception_leaves_the_old_file_and_nothing_else(error, tmp_path):
    target = tmp_path / "target"
    write_text(target, "old")

    def interrupted() -> None:
        with replacing(target) as file:
            file.write(b"new")
            raise error

    with pytest.raises(error):
        interrupted()
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["target"]


@pytest.mark.F4
@posix
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o755, 0o444])
def test_f4_a_replaced_file_keeps_its_mode_and_is_private_meanwhile(mode, tmp_path):
    target = tmp_path / "target"
    target.write_bytes(b"old")
    target.chmod(mode)
    with replacing(target) as file:
        assert _mode(_temporary(tmp_path)) & 0o077 == 0
        file.write(b"new")
    assert _mode(target) == mode


@pytest.mark.F4
@posix
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_f4_a_new_file_honours_the_umask(umask, tmp_path):
    before = os.umask(umask)
    try:
        write_bytes(tmp_path / "target", b"new")
    finally:
        os.umask(before)
    assert _mode(tmp_path / "target") == 0o666 & ~umask


@pytest.mark.F4
@posix
@pytest.mark.parametrize("there", [True, False])
def test_f4_a_link_stays_and_its_target_is_replaced(there, tmp_path):
    (tmp_path / "other").mkdir()
    real, link = tmp_path / "other" / "real", tmp_path / "link"
    if there:
        real.write_bytes(b"old")
    link.symlink_to(real)
    write_bytes(link, b"new")
    assert link.is_symlink()
    assert real.read_bytes() == b"new"
    assert os.listdir(tmp_path / "other") == ["real"]


@pytest.mark.F4
@posix
def test_f4_a_fifo_is_written_to_when_somebody_reads_it(tmp_path):
    fifo, found = tmp_path / "fifo", []
    os.mkfifo(fifo)
    with pytest.raises(OSError, match="fifo"):
        write_bytes(fifo, b"nobody reads")
    with os.fdopen(os.open(fifo, os.O_RDONLY | os.O_NONBLOCK), "rb") as reader:
        os.set_blocking(reader.fileno(), True)
        thread = threading.Thread(target=lambda: found.append(reader.read()))
        content = b"x" * 300_000  # more than a pipe holds
        with replacing(fifo) as file:
            thread.start()
            file.write(content)
        thread.join()
    assert found == [content]
    assert stat.S_ISFIFO(fifo.stat().st_mode)
    assert os.listdir(tmp_path) == ["fifo"]


@pytest.mark.F4
@posix
def test_f4_a_device_is_written_to(tmp_path):
    master, slave = os.openpty()
    try:
        link = tmp_path / "link"
        link.symlink_to(os.ttyname(slave))
        write_bytes(link, b"new")
        assert os.read(master, 100) == b"new"
        assert stat.S_ISCHR(link.stat().st_mode)
        assert os.listdir(tmp_path) == ["link"]
    finally:
        os.close(master)
        os.close(slave)


@pytest.mark.F4
@posix
def test_f4_directories_and_sockets_are_refused(tmp_path):
    with pytest.raises(IsADirectoryError):
        write_bytes(tmp_path, b"new")
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(os.fspath(path))
        with pytest.raises(OSError, match="is no file, character device or FIFO"):
            write_bytes(path, b"new")
        assert stat.S_ISSOCK(path.stat().st_mode)


@pytest.mark.F1
def test_errors_name_the_file_that_was_asked_for(tmp_path):
    target = tmp_path / "nowhere" / "target"
    with pytest.raises(FileNotFoundError) as caught:
        write_bytes(target, b"new")
    assert caught.value.filename == os.fspath(target)


FULL = """
import os, resource, signal, sys
import numpy as np
import fastsparse as fs
from fastsparse import nn
from fastsparse.runtime.atomic_file import write_bytes
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
model, engine = nn.Sequential(nn.Linear(200, 200, rng=0)), None
engine = fs.compile(model, (2, 200), tune=False)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
for write in (lambda path: write_bytes(path, bytes(60_000)), lambda path: fs.save(model, path), engine.save):
    try:
        write(sys.argv[1])
    except OSError as error:
        print(error.filename == sys.argv[1], open(sys.argv[1]).read(), os.listdir(os.path.dirname(sys.argv[1])))
"""


@pytest.mark.F4
@posix
def test_f4_a_full_disk_is_an_oserror_and_leaves_the_old_file(run_python, tmp_path):
    target = tmp_path / "target"
    target.write_text("old")
    assert run_python(FULL, str(target)).stdout == "True old ['target']\n" * 3


@pytest.mark.F1
def test_names_of_any_length_that_files_can_have(tmp_path):
    for name in ("n" * 255, "\N{GREEK SMALL LETTER PI}" * 120):
        write_bytes(tmp_path / name, b"new")
    assert len(list(tmp_path.iterdir())) == 2


# ---------------------------------------------------------------- temporaries of killed writers


@pytest.mark.F4
def test_f4_the_next_writer_removes_what_killed_ones_left(tmp_path):
    for name in (".target.0123456789ab.tmp", ".target.ba9876543210.tmp"):
        (tmp_path / name).write_bytes(b"half")
    others = [".target.notes.tmp", ".target.0123456789ab.tmp.kept", ".target2.0123456789ab.tmp", "target.tmp"]
    for name in others:
        (tmp_path / name).write_bytes(b"somebody's")
    (tmp_path / ".target.00000000000d.tmp").mkdir()
    write_bytes(tmp_path / "target", b"new")
    assert sorted(os.listdir(tmp_path)) == sorted(["target", ".target.00000000000d.tmp", *others])


@pytest.mark.F4
def test_f4_the_temporary_file_of_a_writer_at_work_is_left_alone(tmp_path):
    target = tmp_path / "target"
    with replacing(target) as first:
        first.write(b"first")
        write_bytes(target, b"second")
        assert _temporary(tmp_path).exists()
        assert target.read_bytes() == b"second"
    assert target.read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["target"]


@pytest.mark.F1
def test_many_writers_at_once_leave_one_whole_file(tmp_path):
    target, contents, failed = tmp_path / "target", [bytes([i]) * 100_000 for i in range(8)], []

    def work(content: bytes) -> None:
        try:
            for _ in range(20):
                write_bytes(target, content, durable=False)
        except OSError as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert target.read_bytes() in contents
    assert os.listdir(tmp_path) == ["target"]


@pytest.fixture(scope="module")
def writers(tmp_path_factory) -> Any:
    return kill_writers.writers(tmp_path_factory.mktemp("writers"))


@pytest.mark.F1
@posix
@pytest.mark.parametrize("name", kill_writers.NAMES)
def test_f1_a_killed_writer_leaves_a_whole_file(name, writers, tmp_path):
    kill_writers.kill(writers[name], 4, tmp_path, np.random.default_rng(0))
