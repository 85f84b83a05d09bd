"""Compiling in several processes: what a program must not notice of it, and what it is told."""

from __future__ import annotations

import sys

import pytest

from fastsparse.runtime import compiling, kernel_cache

# A script as users write them, without `if __name__ == "__main__"`. It has three functions compiled, two of them by a
# helper, and tells what came of it.
SCRIPT = """
print("main")
import sys, threading
import numpy as np
from fastsparse.runtime import compiling
from fastsparse_kernels import compiler, sparse_operator

compiling._helpers_worth = lambda units: 1
{prelude}
from fastsparse.runtime import launch
for bits in (32, 64):
    sparse_operator.gather.expect(bits)
scatter = sparse_operator.scatter(32)
out = np.zeros(2, np.float32)
scatter(np.array([3, 4], np.float32), np.array([1, 0], np.uint32), out)
compiler.compile_waiting()
for thread in threading.enumerate():
    if thread.name == "fastsparse helper":
        thread.join(30)
print(out, len(compiling._idle + compiling._working))
{epilogue}
"""
STARTED = """
compiling.start_early = lambda: None
compiling._idle.append(compiling._Helper())
compiling._idle[0].wait_for_start()
"""
COUNT = """
loaded = []
load = compiler.KernelCache.load_overload
def counted(self, *args):
    found = load(self, *args)
    loaded.append(found is not None)
    return found
compiler.KernelCache.load_overload = counted
"""
FORK = """
import os, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # CPython 3.12 and later warn of forks beside threads
if hasattr(os, "fork"):
    child = os.fork()
    if not child:
        os._exit(len(compiling._idle + compiling._working))
    assert os.waitpid(child, 0)[1] == 0, "a child of fork() has its parent's helper"
"""
INTERRUPTED = """
import ctypes, os, signal
from fastsparse.runtime import compiling
@ctypes.CFUNCTYPE(None)
def called_by_llvm():
    os.kill(os.getpid(), signal.SIGINT)
    for step in range(10): step  # where the signal is answered

class Unit:
    bytecodes, variant, is_compiled = 1, None, False
    def compile(self):
        called_by_llvm()
        self.is_compiled = True

signal.signal(signal.SIGINT, signal.default_int_handler)
unit = Unit()
try:
    compiling.compile_ahead([unit], [unit], print)
    print("lost")
except KeyboardInterrupt:
    print("answered", unit.is_compiled, signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""
PRELUDES = {
    "cannot be started": "def refused(*args, **kwargs): raise OSError('no more processes')\n"
    "compiling.subprocess.Popen = refused",
    "dies while it compiles": "compiling._PROGRAM = 'input(), input(), print(flush=True), input()'" + STARTED,
    "has other sources": "compiling.source_digest = lambda: 'other'",
}


def run(tmp_path, run_python, prelude="", epilogue="", **environment):
    code = SCRIPT.format(prelude=prelude, epilogue=epilogue)
    return run_python(code, FASTSPARSE_CACHE_DIR=str(tmp_path / "cache"), **environment)


def test_a_helper_starts_with_the_first_import_where_nothing_is_compiled(tmp_path, run_python):
    code = "from fastsparse.runtime import compiling, launch; print(len(compiling._idle))"
    helpers = 0 if compiling.cpu.available_cpus() == 1 else 1
    for content, expected in (None, helpers), ("some.kernel", 0):
        if content is not None:
            directory = next((tmp_path / "cache").iterdir())
            (directory / content).touch()
        done = run_python(code, FASTSPARSE_CACHE_DIR=str(tmp_path / "cache"))
        assert done.stdout.split() == [str(expected)]


def kernels(tmp_path):
    return sorted(path.name.partition(".")[0] for path in tmp_path.glob("cache/*/*.kernel"))


def test_a_helper_compiles_into_the_cache(tmp_path, run_python):
    done = run(tmp_path, run_python, STARTED + COUNT, FORK + "print(sum(loaded))", FASTSPARSE_VERBOSE="0")
    assert done.stdout.splitlines()[:2] == ["main", "[4. 3.] 1"], "the program runs once"
    assert int(done.stdout.splitlines()[2]) > 0, "the helper was of no use"
    assert done.stderr == ""
    assert kernels(tmp_path) == ["gather_f32", "gather_f64", "scatter_f32"]


@pytest.mark.parametrize("trouble", PRELUDES)
def test_without_helpers_all_is_compiled_here(tmp_path, run_python, trouble):
    done = run(tmp_path, run_python, PRELUDES[trouble], FASTSPARSE_VERBOSE="0")
    assert done.stdout.splitlines() == ["main", "[4. 3.] 0"]
    assert done.stderr == ""
    assert kernels(tmp_path) == ["gather_f32", "gather_f64", "scatter_f32"]


class Unit:
    bytecodes = 10**6


def test_where_no_helper_is_started(monkeypatch, tmp_path):
    found = kernel_cache.Directories(write=str(tmp_path))
    monkeypatch.setattr(kernel_cache, "cache_directories", lambda: found)
    monkeypatch.setattr(compiling.cpu, "available_cpus", lambda: 4)
    units = [Unit()] * 9
    assert compiling._helpers_worth(units) == 3
    assert compiling._helpers_worth(units[:2]) == 1
    assert compiling._helpers_worth(units[:1]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(Unit, "bytecodes", 100)
        assert compiling._helpers_worth(units) == 0, "little work"
        patch.setattr(compiling, "_idle", [object()])
        assert compiling._helpers_worth(units) == 1, "one runs already"
        assert compiling._helpers_worth(units[:1]) == 0
    for name in ("/opt/blender/blender", None, ""):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "executable", name)
            assert compiling._helpers_worth(units) == 0, "starting the program again would be a surprise"
    with monkeypatch.context() as patch:
        patch.setattr(sys, "frozen", True, raising=False)
        assert compiling._helpers_worth(units) == 0
    with monkeypatch.context() as patch:
        patch.setattr(compiling.threading_layer, "forked", lambda: True)
        assert compiling._helpers_worth(units) == 0
    with monkeypatch.context() as patch:
        patch.setattr(compiling.multiprocessing, "parent_process", lambda: object())
        assert compiling._helpers_worth(units) == 0, "there may be as many children as CPUs"
    monkeypatch.setattr(kernel_cache, "cache_directories", kernel_cache.Directories)
    assert compiling._helpers_worth(units) == 0, "nowhere to put what they compile"


class Asked:
    """A unit, and where it was compiled."""

    variant, by = ("module", "builder", ()), ""

    def __init__(self, bytecodes):
        self.bytecodes = bytecodes

    is_compiled = property(lambda self: self.by == "here")

    def is_cached(self):
        return self.by == "helper"

    def compile(self):
        self.by = self.by or "here"


def test_what_is_asked_for_does_not_wait_for_the_rest(monkeypatch):
    begun, go_on = compiling.threading.Event(), compiling.threading.Event()

    class Helper:
        started = True
        wait_for_start = close = lambda self: None

        def compile(self, variant, directory):
            begun.set()
            assert go_on.wait(30)
            large.by = "helper"

    small, large = Asked(100), Asked(10**4)
    monkeypatch.setattr(compiling, "_helpers_worth", lambda units: 1)
    monkeypatch.setattr(compiling, "_idle", [Helper()])
    monkeypatch.setattr(compiling, "_give_back", lambda helper: None)
    done = []
    compiling.compile_ahead([small, large], [small], done.append)
    assert begun.wait(30)
    assert (small.by, large.by, done) == ("here", "", [small]), "the helper has not ended"
    go_on.set()
    compiling.compile_ahead([large], [large], done.append)
    assert (large.by, done) == ("helper", [small, large])


# ------------------------------------------------------------------------------------------------- saying so


def announced(seconds_late, times=1):
    """Blocks of compiling, each longer than `seconds_late`."""
    for _ in range(times):
        with compiling._announced():
            if not seconds_late:
                compiling.time.sleep(0.1)


@pytest.fixture
def anew(monkeypatch):
    """Nothing was said, and it is said at once."""
    monkeypatch.setattr(compiling, "_LATE", 0.0)
    monkeypatch.setattr(compiling, "SILENT", False)
    for name in ("spent", "ended", "said"):
        monkeypatch.setattr(compiling._Said, name, 0.0 if name == "spent" else -compiling._PAUSE)


def test_compiling_is_announced_once_on_stderr(anew, capsys):
    announced(0, times=2)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "fastsparse: compiling kernels (once per machine)\n"


def test_short_compiling_is_not_announced_but_adds_up(anew, capsys, monkeypatch):
    monkeypatch.setattr(compiling, "_LATE", 3600.0)
    announced(0)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(compiling._Said, "spent", 3600.0)
    announced(0)
    assert "compiling kernels" in capsys.readouterr().err


def test_silence(anew, capsys, monkeypatch):
    with compiling.compiler.on_compile(lambda: None):  # a progress bar
        announced(0)
    monkeypatch.setattr(compiling, "SILENT", True)
    announced(0)
    monkeypatch.setattr(compiling, "SILENT", False)
    monkeypatch.setattr(sys, "stderr", None)
    announced(0)
    monkeypatch.undo()
    assert capsys.readouterr().err == ""


def test_without_a_cache_it_is_not_once(anew, capsys, monkeypatch):
    monkeypatch.setattr(kernel_cache, "cache_directories", kernel_cache.Directories)
    announced(0)
    assert capsys.readouterr().err == "fastsparse: compiling kernels (in every process: they cannot be kept)\n"


@pytest.mark.T4
@pytest.mark.skipif(sys.platform == "win32", reason="os.kill ends the process there")
def test_ctrl_c_while_a_kernel_is_compiled_is_answered_after_it(run_python):
    done = run_python(INTERRUPTED)
    assert done.stdout.split() == ["answered", "True", "True"]
    assert not done.stderr
