"""Bounds of settings, checked where a dataclass of settings is made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def check(settings: Any, least: Mapping[str, float], name: str | None = None) -> None:
    """Raise ValueError for the first setting below its bound, NaN or infinite; entries of tuples one by one."""
    title = name or type(settings).__name__
    for field, bound in least.items():
        value = getattr(settings, field)
        for entry in value if isinstance(value, tuple) else (value,):
            if not bound <= entry < math.inf:
                raise ValueError(f"{title}: {field}: expected a finite number from {bound:g}, got {entry}")


def check_some(settings: Any, *names: str) -> None:
    """Raise ValueError for the first tuple that is empty."""
    for field in names:
        if not getattr(settings, field):
            raise ValueError(f"{type(settings).__name__}: {field}: expected at least one entry, got none")
