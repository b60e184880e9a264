"""The dtype in which an op keeps statistics and sums."""

from __future__ import annotations

import torch
from torch import Tensor


def accumulator(*tensors: Tensor) -> torch.dtype:
    """Return float64 where one of the tensors is float64, else float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
