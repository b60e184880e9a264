"""The compiled implementation of residual_norm on the CPU: csrc/residual_norm."""

from __future__ import annotations

import torch
from torch import Tensor

from wfkernels import compiled, cpu
from wfkernels.precision import accumulator

torch.library.define(
    "wfkernels_cpp::residual_norm",
    "(Tensor x, Tensor residual, Tensor weight, Tensor bias, float eps, float dropout_p, Tensor? seed, int site,"
    " int isa) -> (Tensor, Tensor, Tensor, Tensor)",
)
torch.library.define(
    "wfkernels_cpp::residual_norm_backward",
    "(Tensor? grad_h, Tensor? grad_y, Tensor h, Tensor mean, Tensor rstd, Tensor weight, float dropout_p, Tensor? seed,"
    " int site, int isa) -> (Tensor, Tensor, Tensor, Tensor)",
)


def why_not(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, *rest: object) -> str | None:
    """Return why the call cannot run compiled, None where it can."""
    return cpu.why_not(x, residual, weight, bias)


def why_not_backward(
    grad_h: Tensor | None, grad_y: Tensor | None, h: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, *rest: object
) -> str | None:
    return cpu.why_not(grad_h, grad_y, h, mean, rstd, weight)


def forward(
    x: Tensor,  # [rows, d]
    residual: Tensor,  # [rows, d]
    weight: Tensor,  # [d]
    bias: Tensor,  # [d]
    eps: float,
    dropout_p: float,
    seed: Tensor | None,
    site: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # h [rows, d], y [rows, d], mean [rows], rstd [rows]
    """Return h, y and the statistics of h as wfkernels.residual_norm.reference does."""
    wide = accumulator(x, weight)
    weight, bias = (cpu.padded(t, wide) for t in (weight, bias))
    h, y, mean, rstd = torch.ops.wfkernels_cpp.residual_norm(
        x.contiguous(), residual.contiguous(), weight, bias, eps, dropout_p, seed, site, compiled.isa()
    )
    return h, y, mean, rstd


def backward(
    grad_h: Tensor | None,  # [rows, d]
    grad_y: Tensor | None,  # [rows, d]
    h: Tensor,  # [rows, d]
    mean: Tensor,  # [rows]
    rstd: Tensor,  # [rows]
    weight: Tensor,  # [d]
    dropout_p: float,
    seed: Tensor | None,
    site: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # grads of x, residual [rows, d], weight, bias [d]
    """Return the gradients as wfkernels.residual_norm.reference does."""
    given = (None if grad is None else grad.contiguous() for grad in (grad_h, grad_y))
    grad_x, grad_residual, *sums = torch.ops.wfkernels_cpp.residual_norm_backward(
        *given,
        h.contiguous(),
        mean.contiguous(),
        rstd.contiguous(),
        cpu.padded(weight, mean.dtype),
        dropout_p,
        seed,
        site,
        compiled.isa(),
    )
    grad_weight, grad_bias = (cpu.trimmed(total, weight) for total in sums)
    return grad_x, grad_residual, grad_weight, grad_bias
