"""Calls of residual_norm, and the op written out."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from tests.properties import DTYPES, Call, Leaves
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


@dataclass(frozen=True)
class Case:
    """One form of the call."""

    size: tuple[int, ...]
    dropout_p: float = 0.0
    eps: float = 1e-5


def draw(seed: int) -> tuple[Case, torch.dtype]:
    """A random case, and the dtype to run it in."""
    pick = Random(seed)
    dtype = pick.choice(DTYPES)
    lead = pick.choice(((), (0,), (1,), (3,), (17,), (65,), (2, 3), (2, 1, 3), (4, 0)))
    # One number is its own mean, and two are their mean plus and minus one: what remains of them is rounding.
    d = pick.choice((1, 2, 3, 8, 17, 65, 127, 128) if dtype == torch.float64 else (3, 8, 17, 65, 127, 128))
    return Case((*lead, d), pick.choice((0.0, 0.0, 0.3, 0.9)), pick.choice((1e-5, 0.1))), dtype


def call(shape: str, dropout_p: float = 0.0, eps: float = 1e-5) -> Call:
    return build(Case(SHAPES[shape], dropout_p, eps), len(shape))


def build(case: Case, seed: int) -> Call:
    generator = torch.Generator().manual_seed(seed)
    size = case.size
    sizes = {"x": size, "residual": size, "weight": size[-1:], "bias": size[-1:]}
    leaves = {
        name: torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for name, s in sizes.items()
    }

    def run(leaves: Leaves, impl: str = "auto") -> tuple[Tensor, Tensor]:
        return residual_norm(**leaves, eps=case.eps, dropout_p=case.dropout_p, seed=SEED, impl=impl)

    return Call(leaves, run, lambda leaves: naive(leaves, case.dropout_p, case.eps))
