"""Bounds of settings, checked where a dataclass of settings is made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

# The most of what memory and time depend on, the same wherever a setting has the name: far above what is of any use, so
# that a slip of the hand is refused before anything is computed.
MOST = {
    # teachers and their data
    **dict.fromkeys(("fast", "slow", "train", "validation", "test", "teachers", "held_out_teachers"), 100_000),
    **{"views": 10_000, "private": 1_000_000, "batch_size": 1_000_000, "sizes": 1_000, "group": 1_000, "groups": 1_000},
    # training
    **dict.fromkeys(("steps", "distillation", "tuning", "warmup"), 1_000_000_000),
    # models
    **{"width": 65_536, "heads": 65_536, "layers": 200, "feed_forward": 1_000_000, "buckets": 65_536},
    **{"cross_tokens": 1_000, "max_teachers": 1_000},
    # networks
    **{"classes": 1_000_000, "channels": 4_096, "size": 16_384},
}


def check(settings: Any, least: Mapping[str, float], name: str | None = None) -> None:
    """Raise ValueError for the first setting below its bound, above that in MOST, NaN or infinite.

    Entries of tuples are checked one by one.
    """
    title = name or type(settings).__name__
    for field, bound in least.items():
        value = getattr(settings, field)
        for entry in value if isinstance(value, tuple) else (value,):
            if not bound <= entry < math.inf:
                raise ValueError(f"{title}: {field}: expected a finite number from {bound:g}, got {entry}")
            check_most(title, field, entry)


def check_most(title: str, field: str, value: float) -> None:
    """Raise ValueError for a value above that in MOST."""
    if value > MOST.get(field, math.inf):
        raise ValueError(f"{title}: {field}: expected at most {MOST[field]}, got {value}")


def check_some(settings: Any, *names: str) -> None:
    """Raise ValueError for the first tuple that is empty."""
    for field in names:
        if not getattr(settings, field):
            raise ValueError(f"{type(settings).__name__}: {field}: expected at least one entry, got none")
