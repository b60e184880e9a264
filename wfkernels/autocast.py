"""What torch.autocast means for our ops: matrix ops take the autocast dtype, normalisation goes to float32.

Tensors are cast at the door, where autograd sees it. Inside a library op autocast is off, because a caller's autocast
would turn the float32 products of a reference into half ones.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def enabled(device: torch.device) -> bool:
    """True inside torch.autocast for the kind of device given."""
    # Some kinds of device have no autocast ("meta"), and torch raises when asked about them.
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def off(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which torch.autocast is off for the kind of device given."""
    return torch.autocast(device.type, enabled=False) if enabled(device) else nullcontext()


def dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype in which a matrix op takes `tensor`: autocast's where it is on, the tensor's own otherwise."""
    # Like torch's own rules, float64 stays float64.
    if enabled(tensor.device) and tensor.is_floating_point() and tensor.dtype != torch.float64:
        return torch.get_autocast_dtype(tensor.device.type)
    return tensor.dtype


def cast(tensor: Tensor) -> Tensor:
    """Return a float32 or half tensor in the autocast dtype where autocast is on; anything else as it is."""
    return tensor.to(dtype(tensor))


def cast_optional(tensor: Tensor | None) -> Tensor | None:
    """`cast` for an argument that may be None."""
    return None if tensor is None else cast(tensor)


def widen(tensor: Tensor) -> Tensor:
    """Return a half tensor in float32 where autocast is on; anything else as it is."""
    return tensor.float() if enabled(tensor.device) and tensor.dtype != torch.float64 else tensor
