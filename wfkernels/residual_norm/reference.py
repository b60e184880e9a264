"""residual_norm in plain PyTorch: the definition of correct."""

from __future__ import annotations

import torch
from torch import Tensor

from wfkernels.philox import keep_mask
from wfkernels.precision import accumulator


def dropout(x: Tensor, dropout_p: float, seed: Tensor | None, site: int) -> Tensor:
    """Zero entries of x [rows, d] by the counter-based mask and scale the rest; its own adjoint."""
    if dropout_p == 0.0:
        return x
    assert seed is not None
    zero = torch.zeros((), dtype=torch.int64, device=x.device)
    row = torch.arange(x.shape[0], device=x.device)[:, None]
    column = torch.arange(x.shape[1], device=x.device)
    keep = keep_mask(seed, site, zero, zero, row, column, dropout_p)
    return torch.where(keep, x / (1 - dropout_p), torch.zeros((), dtype=x.dtype, device=x.device))


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
    """Return h, y and the statistics of h. y normalises h as it is returned, rounded to its dtype."""
    wide = accumulator(x, weight)
    h = (residual.to(wide) + dropout(x.to(wide), dropout_p, seed, site)).to(x.dtype).contiguous()
    y, mean, rstd = torch.native_layer_norm(h.to(wide), h.shape[1:], weight.to(wide), bias.to(wide), eps)
    return h, y.to(x.dtype), mean.view(-1), rstd.view(-1)


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
    """Return the gradients; None for an output that nobody used."""
    wide = mean.dtype
    total = torch.zeros(h.shape, dtype=wide, device=h.device) if grad_h is None else grad_h.to(wide)
    grad_weight, grad_bias = (torch.zeros(weight.shape, dtype=wide, device=h.device) for _ in range(2))
    if grad_y is not None:
        # The bias only says that its gradient is wanted.
        through, grad_weight, grad_bias = torch.ops.aten.native_layer_norm_backward(
            grad_y.to(wide),
            h.to(wide),
            h.shape[1:],
            mean[:, None],
            rstd[:, None],
            weight.to(wide),
            weight.to(wide),
            [True, True, True],
        )
        total = through if grad_h is None else total + through
    grad_x = dropout(total, dropout_p, seed, site)
    # Copies: what a library op returns is neither an argument nor shared by two results.
    grad_x, grad_residual = (g.to(h.dtype, memory_format=torch.contiguous_format, copy=True) for g in (grad_x, total))
    return grad_x, grad_residual, grad_weight.to(weight.dtype), grad_bias.to(weight.dtype)
