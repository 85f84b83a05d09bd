"""Contract T5: what importing fastsparse does, and the names it has."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import fastsparse as fs
from fastsparse import extras
from fastsparse.demo.options import require_extra
from fastsparse.onnx.racing import race
from fastsparse.training.history import History

IMPORT = """
import json, logging, sys, threading, warnings
import numba, scipy.sparse
from numba.core import event
compiled = []
class Listener(event.Listener):
    def on_start(self, event): compiled.append(str(event.data))
    def on_end(self, event): pass
event.register("numba:compile", Listener())
filters, handlers = list(warnings.filters), list(logging.root.handlers)
settings = {name: getattr(numba.config, name) for name in dir(numba.config) if name.isupper()}
import fastsparse
from numba.np.ufunc import parallel
print(json.dumps({
    "compiled": compiled,
    "threads": threading.active_count(),
    "started": parallel._is_initialized,
    "filters": filters == list(warnings.filters),
    "handlers": handlers == list(logging.root.handlers),
    "settings": all(getattr(numba.config, name) == value for name, value in settings.items()),
    "modules": sorted(name for name in sys.modules if name.startswith("fastsparse")),
}))
"""


@pytest.mark.T5
def test_import_changes_nothing(run_python):
    found = json.loads(run_python(IMPORT).stdout)
    modules = found.pop("modules")
    assert found == {
        "compiled": [],
        "threads": 1,
        "started": False,
        "filters": True,
        "handlers": True,
        "settings": True,
    }
    assert not [
        name for name in modules if name.startswith(("fastsparse_kernels", "fastsparse.nn", "fastsparse.engine"))
    ]


def test_every_public_name_is_there():
    for name in fs.__all__:
        assert getattr(fs, name) is not None
    assert set(fs.__all__) == set(dir(fs))


def test_unknown_names_of_the_package():
    with pytest.raises(AttributeError, match=r"^module 'fastsparse' has no attribute 'nonsense'$"):
        fs.nonsense  # noqa: B018


EXTRAS = [
    ("torch", "PyTorch", "torch", lambda: fs.torch),
    ("sklearn", "scikit-learn 1.6 or later", "sklearn", lambda: fs.sklearn),
    ("sklearn", "scikit-learn", "sklearn", lambda: fs.representations.Dictionary.learn(np.ones((4, 4)), 2)),
    ("pywt", "PyWavelets", "wavelets", lambda: fs.representations.Wavelet(8)),
    ("matplotlib", "Matplotlib", "plot", lambda: History().plot()),
    ("onnx", "onnx", "onnx", lambda: fs.compile("model.onnx")),
    ("onnx", "onnx", "onnx", lambda: fs.to_onnx(fs.nn.Linear(2, 2), "model.onnx")),
    ("onnx", "onnx", "tflite", lambda: fs.compile("model.tflite")),
    ("tflite", "tflite", "tflite", lambda: fs.compile("model.tflite")),
    ("tflite", "tflite", "tflite", lambda: race("model.tflite", [1], [], 1.0, 1)),
    ("threadpoolctl", "threadpoolctl", "demo", require_extra),
]


@pytest.mark.parametrize(("module", "name", "extra", "call"), EXTRAS)
def test_what_is_missing_is_named_with_the_extra_that_brings_it(module, name, extra, call, monkeypatch):
    for loaded in [loaded for loaded in sys.modules if loaded.startswith(("fastsparse.torch", "fastsparse.sklearn"))]:
        monkeypatch.delitem(sys.modules, loaded)
    for loaded in [module, *(loaded for loaded in sys.modules if loaded.startswith(f"{module}."))]:
        monkeypatch.setitem(sys.modules, loaded, None)
    for bridge in ("torch", "sklearn"):
        monkeypatch.delitem(vars(fs), bridge, raising=False)
    with pytest.raises(ImportError) as caught:
        call()
    assert f" needs {name}: pip install -e '.[{extra}]' in the checkout" in str(caught.value)


def test_an_installed_package_names_its_extra(monkeypatch, tmp_path):
    """There is no checkout where a wheel was installed."""
    monkeypatch.setattr(extras, "__file__", str(tmp_path / "site-packages" / "fastsparse" / "extras.py"))
    assert extras.needs("a model", "onnx", "onnx") == "a model needs onnx: pip install 'fastsparse[onnx]'"


def test_all_that_is_missing_is_named_at_once(monkeypatch):
    for module in ("tflite", "onnx"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"^a TFLite model needs tflite, onnx: pip install -e '\.\[tflite\]'"):
        fs.compile("model.tflite")


def _public_functions(module: Any) -> Iterator[tuple[str, Any]]:
    for name in module.__all__:
        found = getattr(module, name)
        if inspect.isfunction(found):
            yield name, found
        elif inspect.isclass(found):
            for method, function in inspect.getmembers(found, inspect.isfunction):
                if not method.startswith("_") or method in ("__init__", "__call__", "__matmul__", "__rmatmul__"):
                    yield f"{name}.{method}", function


@pytest.mark.parametrize(
    "module", [fs, fs.nn, fs.representations, fs.sparsity, fs.training], ids=lambda module: module.__name__
)
def test_public_arguments_have_types(module):
    """Any says nothing; what is built for matrices (`cached`) takes whatever its builder takes."""
    untyped = [
        f"{name}({parameter.name})"
        for name, function in _public_functions(module)
        for parameter in inspect.signature(function).parameters.values()
        if function.__module__.startswith("fastsparse") and not name.endswith(".cached")
        if parameter.annotation == "Any" or (parameter.annotation is parameter.empty and parameter.name != "self")
    ]
    assert not untyped
