"""The compiled implementation of linear on the CPU: csrc/linear."""

from __future__ import annotations

import torch
from torch import Tensor

from wfkernels import compiled, cpu
from wfkernels.activation import ACTIVATIONS

DTYPES = (torch.float32, torch.float64)

torch.library.define(
    "wfkernels_cpp::linear", "(Tensor x, Tensor weight, Tensor? bias, int activation, int isa) -> Tensor"
)


def why_not(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> str | None:
    """Return why the call cannot run compiled, None where it can."""
    reason = cpu.why_not(x, weight, bias)
    if reason is None and x.dtype not in DTYPES:
        return f"the library's own product of {x.dtype} has instructions that ours has not"
    return reason


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """Return what wfkernels.linear.reference does."""
    bias = None if bias is None else bias.contiguous()
    out: Tensor = torch.ops.wfkernels_cpp.linear(
        x.contiguous(), weight, bias, ACTIVATIONS.index(activation), compiled.isa()
    )
    return out
