"""The command line: exit codes, one-line errors on standard error, results alone on standard output."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fastsparse import cli
from fastsparse.demo import race

_ROOT = Path(__file__).resolve().parent.parent
_ENV = {"PYTHONPATH": f"{_ROOT}:{_ROOT / 'kernels'}", "HOME": str(_ROOT)}


def _status(arguments: list[str]) -> int:
    """Exit status, whichever way it comes."""
    try:
        return cli.main(arguments)
    except SystemExit as stop:
        return stop.code


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "train a sparse network on handwritten digits and race it"),
        (
            ["prune", "m.tflite", "--sparsity", "0.9", "-o", "o.onnx"],
            "got 'm.tflite', expected the name of an ONNX file",
        ),
        (
            ["prune", "m.onnx", "--sparsity", "0.9", "-o", "o.tflite"],
            "got 'o.tflite', expected the name of an ONNX file",
        ),
        (["fly"], "invalid choice: 'fly'"),
        (["demo", "--epochs", "0"], "argument --epochs: got '0', expected an integer of at least 1"),
        (["demo", "--seeds", "many"], "argument --seeds: got 'many', expected an integer of at least 1"),
        (["demo", "--seed", "-1"], "argument --seed: got '-1', expected an integer of at least 0"),
        (["demo", "--threads", "1.5"], "argument --threads: got '1.5', expected an integer of at least 1"),
        (["demo", "--report", "/nowhere/at/all/r.html"], "the directory '/nowhere/at/all' does not exist"),
        (["demo", "--report", "/"], "'/' is a directory, expected a file name"),
        (
            ["bench", "kernels"],
            "the kernels' benchmarks come with the source: python -m bench, in a checkout",
        ),
        (["bench", "m.onnx", "--html", "/nowhere/r.html"], "argument --html: the directory '/nowhere' does not exist"),
        (["demo", "--wings"], "unrecognized arguments: --wings"),
    ],
)
def test_bad_arguments(arguments, complaint, capsys):
    assert _status(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert complaint in printed.err


@pytest.mark.parametrize("arguments", [["--help"], ["demo", "--help"], ["bench", "--help"], ["--version"]])
def test_help(arguments, capsys):
    assert _status(arguments) == 0
    assert "fastsparse" in capsys.readouterr().out


def test_missing_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert _status(["demo"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "fastsparse: error: the demo needs scikit-learn: pip install -e '.[demo]' in the checkout\n"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("x is 3,\n expected 4"), "fastsparse: error: x is 3, expected 4\n"),
        (OSError(28, "No space left on device"), "fastsparse: error: [Errno 28] No space left on device\n"),
        (KeyError("k"), "fastsparse: error: KeyError: 'k'\n"),
        (ValueError(), "fastsparse: error: ValueError: \n"),
    ],
)
def test_failure_is_one_line_without_traceback(error, message, monkeypatch, capsys):
    def fail(args):
        raise error

    monkeypatch.setattr(cli, "_run_info", fail)
    for off in ("", "0", " 0 ", "false", "NO", "off"):
        monkeypatch.setenv("FASTSPARSE_TRACEBACK", off)
        assert _status(["info"]) == 1
        assert capsys.readouterr().err == message
    monkeypatch.setenv("FASTSPARSE_TRACEBACK", "1")
    assert _status(["info"]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback")
    assert shown.endswith(message)


def test_interrupt(monkeypatch, capsys):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_run_info", interrupted)
    assert _status(["info"]) == 130
    assert capsys.readouterr().err == "fastsparse: interrupted\n"


_INTERRUPTED_AT_IMPORT = """
import os, signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Finder())
module = sys.argv.pop(1)
import fastsparse_command
sys.exit(fastsparse_command.main())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="os.kill ends the process there")
@pytest.mark.parametrize(
    "module",
    ["fastsparse", "numpy", "numpy.linalg", "numba.core", "fastsparse.csr", "fastsparse.cli", "fastsparse.demo"],
)
def test_ctrl_c_while_the_package_is_imported(module):
    done = _process(["-c", _INTERRUPTED_AT_IMPORT, module, "info"])
    assert (done.returncode, done.stderr, done.stdout) == (130, "fastsparse: interrupted\n", "")


@pytest.mark.skipif(sys.platform == "win32", reason="os.kill ends the process there")
@pytest.mark.parametrize("module", ["numpy", "numba.core", "fastsparse.csr", "fastsparse.__main__", "fastsparse.cli"])
def test_ctrl_c_while_python_m_imports_the_package(module, tmp_path):
    before = _INTERRUPTED_AT_IMPORT.partition("import fastsparse_command")[0]
    (tmp_path / "sitecustomize.py").write_text(before.replace("sys.argv.pop(1)", repr(module)), encoding="utf-8")
    environment = _ENV | {"PYTHONPATH": f"{tmp_path}:{_ENV['PYTHONPATH']}"}
    command = [sys.executable, "-m", "fastsparse", "info"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr, done.stdout) == (130, "fastsparse: interrupted\n", "")


@pytest.mark.parametrize("argv", [["-c"], ["-m", "fastsparse"]])
def test_importing_the_package_leaves_ctrl_c_alone(argv):
    """Also in a program with arguments that look like those of `python -m fastsparse`."""
    code = "import signal, fastsparse; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    assert _process(["-c", code, *argv]).stdout == "True\n"


def test_the_command_starts_before_the_package():
    """The installed script and wheels have a file that imports nothing but the standard library."""
    assert 'fastsparse = "fastsparse_command:main"' in (_ROOT / "pyproject.toml").read_text(encoding="utf-8")
    code = "import fastsparse_command, sys; print([name for name in sys.modules if name in ('numpy', 'fastsparse')])"
    assert _process(["-c", code]).stdout == "[]\n"


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell")
@pytest.mark.parametrize("arguments", ["--help", "info"])
def test_a_reader_that_has_left_and_no_standard_output(arguments):
    command = f"{sys.executable} -m fastsparse {arguments}"
    done = subprocess.run(f"({command}; echo $? >&2) | true", shell=True, capture_output=True, text=True, env=_ENV)
    assert done.stderr in ("0\n", "1\n")
    done = subprocess.run(f"{command} >&-", shell=True, capture_output=True, text=True, env=_ENV)
    assert done.returncode == 0
    assert not {"Traceback", "Error", "Exception"} & set(done.stderr.replace(":", " ").split())  # help goes to stderr


def _process(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=_ENV)


def test_info_as_a_process():
    done = _process(["-m", "fastsparse", "info"])
    assert done.returncode == 0, done.stderr
    assert "numba" in done.stdout


def test_demo(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(race, "PAUSE", 0.0)
    report = tmp_path / "report.html"
    assert _status(["demo", "--epochs", "1", "--threads", "1", "--report", str(report), "--json"]) == 0
    out = capsys.readouterr().out
    found = json.loads(out)
    assert out.count("\n") == 1
    assert abs(found["sparsity"] - 0.9) < 5e-4
    assert 0.3 < found["test_accuracy_sparse"] <= 1  # one epoch learns something; chance is 0.1
    assert 0.3 < found["test_accuracy_dense"] <= 1
    for key in ("scipy_b1", "numpy_b1", "scipy_b256", "numpy_b256", "scipy_products_b256", "numpy_products_b256"):
        assert found[f"speedup_{key}"] > 0
    assert found["seconds"] > found["compile_seconds"] >= 0
    assert found["threads"] == found["blas_threads"] == 1
    assert found["images"] == {"train": 1212, "validation": 135, "test": 450}
    assert max(found["relative_error"].values()) < 1e-5
    assert report.read_text(encoding="utf-8").endswith("</html>\n")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
