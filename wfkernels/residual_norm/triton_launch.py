"""The Triton implementation of residual_norm on NVIDIA GPUs: when it can run, and its launches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wfkernels import gpu
from wfkernels.gpu import Config

# A sum over rows is split into about so many chunks: a few for every multiprocessor of the largest GPU.
CHUNKS = 1024


def why_not(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, *rest: object) -> str | None:
    """Return why the call cannot run in Triton, None where it can."""
    return gpu.why_not(x, residual, weight, bias)


def why_not_backward(
    grad_h: Tensor | None, grad_y: Tensor | None, h: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, *rest: object
) -> str | None:
    return gpu.why_not(grad_h, grad_y, h, mean, rstd, weight)


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
    rows, width = x.shape
    h, y = x.new_empty(x.shape), x.new_empty(x.shape)
    mean, rstd = (x.new_empty(rows, dtype=torch.float32) for _ in range(2))
    if x.numel() == 0:
        return h, y, mean.fill_(torch.nan), rstd.fill_(torch.nan)
    from wfkernels.residual_norm.triton_kernels import _residual_norm_forward_kernel

    def step(config: Config) -> None:
        gpu.launch(
            _residual_norm_forward_kernel,
            -(-rows // config.block_m),
            config,
            x.device,
            x=x.contiguous(),
            residual=residual.contiguous(),
            weight=weight.contiguous(),
            bias=bias.contiguous(),
            h=h,
            y=y,
            mean=mean,
            rstd=rstd,
            rows=rows,
            width=width,
            eps=eps,
            **_dropout(dropout_p, seed, site),
            **_blocks(config, width),
        )

    gpu.tuned("residual_norm_forward", x.device, width, 8 * x.element_size(), step)
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
    rows, width = h.shape
    if h.numel() == 0 or (grad_h is None and grad_y is None):
        return h.new_zeros(h.shape), h.new_zeros(h.shape), weight.new_zeros(width), weight.new_zeros(width)
    grad_x, grad_residual = h.new_empty(h.shape), h.new_empty(h.shape)
    from wfkernels.residual_norm.triton_kernels import _residual_norm_backward_kernel

    def step(config: Config) -> Tensor:
        chunk = config.block_m * -(-rows // (config.block_m * CHUNKS))
        chunks = -(-rows // chunk)
        sums = mean.new_empty(chunks, 2, width)
        gpu.launch(
            _residual_norm_backward_kernel,
            chunks,
            config,
            h.device,
            grad_h=None if grad_h is None else grad_h.contiguous(),
            grad_y=None if grad_y is None else grad_y.contiguous(),
            h=h.contiguous(),
            mean=mean.contiguous(),
            rstd=rstd.contiguous(),
            weight=weight.contiguous(),
            grad_x=grad_x,
            grad_residual=grad_residual,
            sums=sums,
            rows=rows,
            chunk=chunk,
            width=width,
            **_dropout(dropout_p, seed, site),
            **_blocks(config, width),
        )
        return sums

    sums = gpu.tuned("residual_norm_backward", h.device, width, 8 * h.element_size(), step)
    if grad_y is None:
        return grad_x, grad_residual, weight.new_zeros(width), weight.new_zeros(width)
    grad_weight, grad_bias = (total.to(weight.dtype) for total in sums.sum(0, dtype=torch.float64))
    return grad_x, grad_residual, grad_weight, grad_bias


def _dropout(dropout_p: float, seed: Tensor | None, site: int) -> dict[str, Any]:
    return {
        "seed": seed if dropout_p else None,
        "site": site,
        "threshold": min(round(dropout_p * 2**32), 2**32 - 1),
        "kept": 1 / (1 - dropout_p),
        "HAS_DROPOUT": dropout_p > 0,
    }


def _blocks(config: Config, width: int) -> dict[str, int | bool]:
    """Return the sizes of the tiles by the names of the kernels."""
    columns = min(config.block_n, 1 << (width - 1).bit_length())
    return {"BLOCK_M": config.block_m, "BLOCK_D": columns, "WHOLE": width <= columns}
