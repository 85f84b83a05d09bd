"""Switches in the environment, all of which understand the same words."""

from __future__ import annotations

import os
from collections.abc import Mapping

_OFF = ("0", "false", "no", "off")


def switch(name: str, environment: Mapping[str, str] = os.environ) -> bool | None:
    """Whether a switch is on: None when it is not set or empty, False for 0, false, no and off, in any case."""
    value = environment.get(name, "").strip().lower()
    return value not in _OFF if value else None
