"""Moving whole data sets and pools to a device."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def on(value: T, device: torch.device | str) -> T:
    """Return `value` with every tensor in its nested dataclasses, tuples, lists and dicts on `device`."""
    moved: Any = value
    if isinstance(value, Tensor):
        moved = value.to(device)
    elif is_dataclass(value) and not isinstance(value, type):
        moved = replace(value, **{f.name: on(getattr(value, f.name), device) for f in fields(value) if f.init})
    elif isinstance(value, dict):
        moved = {key: on(item, device) for key, item in value.items()}
    elif isinstance(value, list | tuple):
        moved = type(value)(on(item, device) for item in value)
    result: T = moved
    return result
