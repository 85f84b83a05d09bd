"""Progress bars of long work: drawn often where someone watches, a line now and then where a log is written."""

from __future__ import annotations

import sys
import warnings
from typing import Any

_IN_A_LOG = 10.0  # seconds between two lines


def progress_bar(*arguments: Any, **options: Any) -> Any:
    """A bar of tqdm on stderr, with its arguments."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a notebook without ipywidgets: the bar is text there
        from tqdm.auto import tqdm

    watched = "ipykernel" in sys.modules or (sys.stderr is not None and sys.stderr.isatty())
    if not watched:
        options = {"mininterval": _IN_A_LOG, **options}
    return tqdm(*arguments, **options)
