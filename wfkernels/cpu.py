"""What the rooms share in front of their compiled CPU kernels: which tensors these read, and padding."""

from __future__ import annotations

import torch
from torch import Tensor

from wfkernels import compiled

DTYPES = (torch.float32, torch.float64, torch.bfloat16)
# Columns that kernels read in whole vectors come in multiples of this: kPad of csrc/attention/problem.h.
PAD = 16


def why_not(*tensors: Tensor | None) -> str | None:
    """Return why compiled kernels cannot read these tensors, None where they can."""
    given = [t for t in tensors if t is not None]
    elsewhere = {str(t.device) for t in given if t.device.type != "cpu"}
    if elsewhere:
        return f"it reads CPU tensors and these lie on {', '.join(sorted(elsewhere))}"
    unknown = {t.dtype for t in given}.difference(DTYPES)
    if unknown:
        return f"it does not know {', '.join(sorted(map(str, unknown)))}; cast to float32 first"
    return compiled.why_not(compiled.CPP)


def padded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return x in a dtype, contiguous, with zeros behind the columns up to a multiple of PAD."""
    return torch.nn.functional.pad(x.to(dtype), (0, -x.shape[-1] % PAD)).contiguous()


def padded_optional(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if x is None else padded(x, dtype)


def trimmed(x: Tensor, like: Tensor) -> Tensor:
    """Return x without its padding, contiguous, in the dtype of `like`."""
    return x[..., : like.shape[-1]].to(like.dtype).contiguous()
