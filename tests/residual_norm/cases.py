"""Calls of residual_norm, and the op written out."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.properties import Call, Leaves
from wfkernels import residual_norm
from wfkernels.philox import keep_mask

SEED = torch.tensor([(5 << 32) + 17])
SHAPES = {
    "one": (1, 1),
    "flat": (17,),
    "3 x 65": (3, 65),
    "17 x 127": (17, 127),
    "65 x 3": (65, 3),
    "127 x 1": (127, 1),
    "leading dimensions": (2, 1, 3, 5),
    "no rows": (0, 5),
}


def naive(leaves: Leaves, dropout_p: float, eps: float) -> tuple[Tensor, Tensor]:
    x, residual, weight, bias = leaves.values()
    branch = x.reshape(-1, x.shape[-1])
    if dropout_p:
        zero = torch.zeros((), dtype=torch.int64)
        row, column = (torch.arange(size) for size in branch.shape)
        keep = keep_mask(SEED, 0, zero, zero, row[:, None], column, dropout_p)
        branch = branch * keep / (1 - dropout_p)
    h = residual + branch.view(x.shape)
    centred = h - h.mean(-1, keepdim=True)
    y = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    return h, y * weight + bias


def call(shape: str, dropout_p: float = 0.0, eps: float = 1e-5) -> Call:
    generator = torch.Generator().manual_seed(len(shape))
    size = SHAPES[shape]
    sizes = {"x": size, "residual": size, "weight": size[-1:], "bias": size[-1:]}
    leaves = {
        name: torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for name, s in sizes.items()
    }

    def run(leaves: Leaves, impl: str = "auto") -> tuple[Tensor, Tensor]:
        return residual_norm(**leaves, eps=eps, dropout_p=dropout_p, seed=SEED, impl=impl)

    return Call(leaves, run, lambda leaves: naive(leaves, dropout_p, eps))
