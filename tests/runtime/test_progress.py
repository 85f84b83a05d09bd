"""Progress bars."""

from __future__ import annotations

from typing import Any


def test_in_a_notebook_without_widgets_the_bar_is_text_without_a_warning(run_python: Any) -> None:
    done = run_python("""
import sys
from types import ModuleType
shell = type("ZMQInteractiveShell", (), {})
notebook = ModuleType("IPython")
notebook.get_ipython = shell
sys.modules |= {"IPython": notebook, "IPython.display": None, "ipykernel": notebook, "ipykernel.zmqshell": notebook,
                "ipywidgets": None}
from fastsparse.runtime.progress import progress_bar
assert list(progress_bar(range(3))) == [0, 1, 2]
""")
    assert "3/3" in done.stderr
    assert "Warning" not in done.stderr
